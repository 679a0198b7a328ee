//! Everything, as chance has it.

use super::disks::{master_damage, master_damaged, replaced, some_damage, some_faults, while_down};
use super::network::{asleep, some_bridge, some_flaps, some_pause, some_step, some_weather};
use super::operations::{some_way, wiped_when_empty};
use super::{Scenario, any_client, any_slave, at_last, plan, s, two_slaves};
use crate::cluster::{Node, Plan};
use crate::damage::Damage;
use crate::events::Event;
use crate::weather::Weather;
use godrive_disk::Faults;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

pub(super) const ALL: &[Scenario] =
    &[Scenario { name: "mixed", about: "everything at random, within what the contract bears", plan: mixed }];

type Schedule = Vec<(Duration, Event)>;

/// Four to six rounds. A round is one fault of slaves or of the master, or one of everybody's power, and beside it, as chance
/// has it, bad weather, a fault of a client and clocks that are set. It ends with everything healed and the
/// cluster settled: every chunk has all its replicas again, equal and verified.
///
/// So much the contract bears, and no more:
///
/// - *Wounds*: what takes bytes from disks (damage, an earlier time, an empty disk) hits at most two of a chunk's three
///   replicas, at one moment, out of the settled state. The third has everything that was acknowledged.
/// - While two are wounded, nothing else happens to slaves and the weather is fair: a third that is dropped from an epoch
///   because it was late may have the only good copy of a block, and what the two have acknowledged since then; that
///   chunk is unavailable for good (see the end of docs/SEMANTICS.md). With one wounded, two have everything, and bad weather
///   may drop one.
/// - *Outages* (killed, cut off, held, asleep, slow or full disks, flapping links, a split) take no bytes from anybody: they mix with
///   weather and with clients' faults, and cost progress only.
/// - A loss of power of one slave, or a failing disk, loses what that slave had not synced: as a wound of one. So is one whose
///   index is wrong: its disk is checked, and replaced.
/// - A loss of power of all slaves or of the master undoes what was not fsynced; the oracle is told.
/// - A fault of a client costs what it had not flushed; the oracle is told. It has no part in what the slaves hold.
/// - A slave that is said to be empty is wiped: that takes nothing from anybody, whatever happened while it was emptied.
/// - The damaged master is put back as it was if it refuses; what it has acknowledged is then all there.
fn mixed(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let mut at = s(4);
    for slave in (1..=4).map(Node::Slave).chain([Node::Master]) {
        schedule.push((at, Event::Remember(slave)));
    }
    for _ in 0..dice.random_range(4..=6) {
        at += Duration::from_millis(dice.random_range(500..4000));
        let mut round = round(dice, at);
        round.sort_by_key(|(at, _)| *at);
        let over = round.last().map_or(at, |(at, _)| *at);
        schedule.append(&mut round);
        at = over + s(1);
        schedule.push((at, Event::Settle));
        if dice.random_bool(0.3) {
            let remembered = if dice.random_bool(0.3) { Node::Master } else { any_slave(dice) };
            schedule.push((at, Event::Remember(remembered)));
        }
    }
    let mut plan = plan(at + s(20), schedule, at_last(at + s(20), 20));
    plan.operator = true;
    // The faults matter here, not the load.
    plan.workload.pause = Duration::from_millis(50);
    plan.at_least = 500;
    plan
}

fn round(dice: &mut SmallRng, at: Duration) -> Schedule {
    let lasts = Duration::from_millis(match dice.random_bool(0.5) {
        true => dice.random_range(50..2000),
        false => dice.random_range(2000..14_000),
    });
    let (mut round, fair) = match dice.random_range(0..12) {
        0..3 => (wounds(dice, at, lasts), true),
        3 | 4 => (one_wound(dice, at, lasts), false),
        5 => (power(dice, at, lasts), false),
        6 => (master_damaged(at, master_damage(dice)).to_vec(), false),
        7 => (emptied(dice, at, lasts), false),
        _ => (outage(dice, at, lasts), false),
    };
    if !fair && dice.random_bool(0.5) {
        round.push((at, Event::Weather(some_weather(dice))));
        round.push((at, Event::Delay(dice.random_range(2..100))));
        let over = at + Duration::from_millis(dice.random_range(1000..8000));
        round.extend([(over, Event::Weather(Weather::default())), (over, Event::Delay(Event::USUAL_DELAY))]);
    }
    if dice.random_bool(0.4) {
        round.extend(client_fault(dice, at));
    }
    for node in [Node::Master, any_slave(dice), any_client(dice)] {
        if dice.random_bool(0.2) {
            round.push((at + Duration::from_millis(dice.random_range(0..3000)), some_step(dice, node)));
        }
    }
    round
}

/// A slave is drained or decommissioned while something else happens, and gets an empty disk when that is done.
fn emptied(dice: &mut SmallRng, at: Duration, lasts: Duration) -> Schedule {
    let (slave, ways) = (any_slave(dice), some_way(dice));
    let mut round = vec![(at, Event::Intend(slave, ways[0]))];
    let during = at + Duration::from_millis(dice.random_range(0..600));
    round.extend(outage(dice, during, lasts));
    let over = round.iter().map(|(at, _)| *at).max().unwrap_or(at);
    round.extend(wiped_when_empty(slave, over, ways[1]));
    round
}

/// Two slaves at once.
fn wounds(dice: &mut SmallRng, at: Duration, lasts: Duration) -> Schedule {
    let slaves = two_slaves(dice);
    match dice.random_range(0..5) {
        0 | 1 => slaves.map(|slave| (at, Event::Damage(slave, some_damage(dice)))).to_vec(),
        2 => while_down(&slaves, at, lasts, |_| Damage::SetBack),
        3 => {
            let other = if dice.random() { Damage::Cut } else { Damage::SetBackFile };
            while_down(&slaves, at, lasts, |slave| if slave == slaves[0] { other } else { Damage::SetBack })
        }
        _ => {
            let mut round = vec![(at, Event::Kill(slaves.to_vec()))];
            round.extend(slaves.map(|slave| (at, Event::Replace(slave))));
            round.push((at + lasts, Event::Start(slaves.to_vec())));
            round
        }
    }
}

fn one_wound(dice: &mut SmallRng, at: Duration, lasts: Duration) -> Schedule {
    let [slave, other] = two_slaves(dice);
    match dice.random_range(0..6) {
        0 => vec![(at, Event::Damage(slave, some_damage(dice)))],
        1 => vec![
            (at, Event::Fail(slave, some_faults(dice))),
            (at + lasts, Event::Kill(vec![slave])),
            (at + lasts, Event::Fail(slave, Faults::default())),
            (at + lasts, Event::Start(vec![slave])),
        ],
        2 => {
            // The copy finds no master that takes it, and is taken away.
            let over = at + lasts;
            vec![
                (at, Event::Kill(vec![other])),
                (at, Event::Clone(slave, other)),
                (at, Event::Start(vec![other])),
                (over, Event::Kill(vec![other])),
                (over, Event::Replace(other)),
                (over, Event::Start(vec![other])),
            ]
        }
        3 => {
            // No scrub reads the index: people check the disk.
            let mut round = vec![(at, Event::Rot(slave, dice.random_range(1..30)))];
            let over = at + lasts;
            round.extend([(over, Event::Kill(vec![slave])), (over + s(1), Event::Start(vec![slave]))]);
            round.push((over + s(4), Event::Mend(slave)));
            round
        }
        4 => {
            let flips = dice.random_range(1..40);
            let mut round = while_down(&[slave], at, lasts, |_| Damage::FlipIndex(flips));
            // What a check finds wrong is not trusted any further.
            round.extend(replaced(slave, at + lasts + s(10)));
            round
        }
        _ => vec![(at, Event::PowerLoss(vec![slave])), (at + lasts, Event::Start(vec![slave]))],
    }
}

fn power(dice: &mut SmallRng, at: Duration, lasts: Duration) -> Schedule {
    let slaves = (1..=4).map(Node::Slave);
    let nodes: Vec<Node> = match dice.random_range(0..3) {
        0 => vec![Node::Master],
        1 => slaves.collect(),
        _ => slaves.chain([Node::Master]).collect(),
    };
    vec![(at, Event::PowerLoss(nodes.clone())), (at + lasts, Event::Start(nodes))]
}

fn outage(dice: &mut SmallRng, at: Duration, lasts: Duration) -> Schedule {
    let node = if dice.random_bool(0.3) { Node::Master } else { any_slave(dice) };
    let over = at + lasts;
    match dice.random_range(0..10) {
        0 => vec![(at, Event::Cut(node)), (over, Event::Heal(node))],
        1 => vec![(at, Event::Kill(vec![node])), (over, Event::Start(vec![node]))],
        2 => {
            let several: Vec<Node> = (1..=4).map(Node::Slave).chain([Node::Master]).collect();
            let several: Vec<Node> = several.into_iter().filter(|_| dice.random()).collect();
            vec![(at, Event::Kill(several.clone())), (over, Event::Start(several))]
        }
        3 => vec![(at, Event::Hold(node)), (over, Event::LetGo(node))],
        4 => {
            let lasts = some_pause(dice);
            asleep(node, at, lasts, dice).to_vec()
        }
        5 => {
            let (begin, end) = some_bridge(dice);
            vec![(at, begin), (over, end)]
        }
        6 => some_flaps(dice, at, node),
        7 => {
            let (slave, client) = (any_slave(dice), any_client(dice));
            let (from, to) = if dice.random() { (slave, client) } else { (client, slave) };
            let from = if dice.random_bool(0.3) && from == slave { Node::Master } else { from };
            vec![(at, Event::PartOneWay(from, to)), (over, Event::Join(from, to))]
        }
        8 => vec![(at, Event::Fill(dice.random_range(0..300_000))), (over, Event::Empty)],
        _ => {
            let slave = any_slave(dice);
            vec![(at, Event::Slow(slave, dice.random_range(10..5000))), (over, Event::Slow(slave, 0))]
        }
    }
}

fn client_fault(dice: &mut SmallRng, at: Duration) -> Schedule {
    let client = any_client(dice);
    let over = at + Duration::from_millis(dice.random_range(100..12_000));
    match dice.random_range(0..4) {
        0 => vec![(at, Event::Cut(client)), (over, Event::Heal(client))],
        1 => vec![(at, Event::Kill(vec![client])), (over, Event::Start(vec![client]))],
        2 => vec![(at, Event::Hold(client)), (over, Event::LetGo(client))],
        _ => asleep(client, at, over - at, dice).to_vec(),
    }
}
