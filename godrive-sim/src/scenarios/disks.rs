//! Disks that hold something else than was written to them, fail, or are slow: on up to one slave less than a chunk has
//! replicas at once, unless the scenario is about more. Each fault meets a cluster that has all its replicas.

use super::{Scenario, about, any_slave, at_last, both, each, plan, s, two_slaves};
use crate::cluster::{Node, Plan};
use crate::damage::Damage;
use crate::events::Event;
use crate::shared::Kind;
use godrive_disk::Faults;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "damage",
        about: "blocks of two slaves' disks flip, change places, or lie where others should, at once",
        plan: damage,
    },
    Scenario { name: "cut-file", about: "files of two slaves' disks end before their end", plan: cut_file },
    Scenario {
        name: "set-back",
        about: "two slaves come back with the disks of an earlier time",
        plan: set_back,
    },
    Scenario {
        name: "set-back-file",
        about: "a slave comes back with one file of an earlier time",
        plan: set_back_file,
    },
    Scenario { name: "index", about: "bits of a slave's index flip while it is down", plan: index },
    Scenario {
        name: "ruin",
        about: "every block of every slave is bad: errors, never wrong bytes, and nothing is overwritten",
        plan: ruin,
    },
    Scenario {
        name: "stale-majority",
        about: "what two slaves acknowledged: one is gone, the others come back from the past",
        plan: stale_majority,
    },
    Scenario {
        name: "disk-errors",
        about: "reads, writes or syncs of a slave's disk fail",
        plan: disk_errors,
    },
    Scenario { name: "slow-disk", about: "a slave's disk takes up to seconds for a sync", plan: slow_disk },
    Scenario { name: "wiped", about: "a slave comes back with its name and an empty disk", plan: wiped },
    Scenario {
        name: "cloned",
        about: "a slave comes back with a copy of another one's disk, while that one runs or is gone",
        plan: cloned,
    },
    Scenario {
        name: "damaged-master",
        about: "files of the master are damaged, cut or of an earlier time: it has everything, or refuses",
        plan: damaged_master,
    },
];

/// What may hit a slave that runs.
pub(super) fn some_damage(dice: &mut SmallRng) -> Damage {
    match dice.random_range(0..4) {
        0 => Damage::Flip(dice.random_range(1..60)),
        1 => Damage::FlipAll,
        2 => Damage::Exchange(dice.random_range(1..30)),
        _ => Damage::Misplace(dice.random_range(1..30)),
    }
}

fn damage(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in [5, 15, 25] {
        let at = about(dice, at);
        schedule.push((at, Event::Settle));
        schedule.extend(two_slaves(dice).map(|slave| (at, Event::Damage(slave, some_damage(dice)))));
    }
    plan(s(45), schedule, at_last(s(45), 50))
}

/// Both at one moment, while they are down; later somebody looks after those that did not start.
pub(super) fn while_down(
    slaves: &[Node],
    at: Duration,
    down: Duration,
    damage: impl Fn(Node) -> Damage,
) -> Vec<(Duration, Event)> {
    let mut schedule = vec![(at, Event::Kill(slaves.to_vec()))];
    schedule.extend(slaves.iter().map(|slave| (at, Event::Damage(*slave, damage(*slave)))));
    schedule.push((at + down, Event::Start(slaves.to_vec())));
    schedule.extend(slaves.iter().map(|slave| (at + down + s(3), Event::Mend(*slave))));
    schedule
}

fn some_time(dice: &mut SmallRng) -> Duration {
    Duration::from_millis(match dice.random_bool(0.5) {
        true => dice.random_range(1..500),
        false => dice.random_range(500..16_000),
    })
}

fn cut_file(dice: &mut SmallRng) -> Plan {
    let at = about(dice, 8);
    let mut schedule = vec![(at, Event::Settle)];
    schedule.extend(while_down(&two_slaves(dice), at, some_time(dice), |_| Damage::Cut));
    plan(s(45), schedule, at_last(s(45), 30))
}

fn set_back(dice: &mut SmallRng) -> Plan {
    let slaves = two_slaves(dice);
    let mut schedule: Vec<_> = slaves.iter().map(|slave| (about(dice, 4), Event::Remember(*slave))).collect();
    let at = about(dice, 10);
    schedule.sort_by_key(|(at, _)| *at);
    schedule.push((at, Event::Settle));
    schedule.extend(while_down(&slaves, at, some_time(dice), |_| Damage::SetBack));
    plan(s(45), schedule, at_last(s(45), 30))
}

fn set_back_file(dice: &mut SmallRng) -> Plan {
    let slave = any_slave(dice);
    let mut schedule = vec![(about(dice, 4), Event::Remember(slave))];
    for at in [10, 30] {
        let at = about(dice, at);
        schedule.push((at, Event::Settle));
        schedule.extend(while_down(&[slave], at, s(1), |_| Damage::SetBackFile));
    }
    plan(s(50), schedule, at_last(s(50), 30))
}

fn index(dice: &mut SmallRng) -> Plan {
    let (slave, flips) = (any_slave(dice), dice.random_range(1..40));
    let at = about(dice, 8);
    let mut schedule = vec![(at, Event::Settle)];
    schedule.extend(while_down(&[slave], at, s(1), |_| Damage::FlipIndex(flips)));
    // What a check finds wrong is not trusted any further.
    schedule.extend(replaced(slave, at + s(20)));
    plan(s(50), schedule, at_last(s(50), 30))
}

pub(super) fn replaced(slave: Node, at: Duration) -> [(Duration, Event); 3] {
    [(at, Event::Kill(vec![slave])), (at, Event::Replace(slave)), (at, Event::Start(vec![slave]))]
}

/// Half of the time the fault was not in the disks: then what was acknowledged is all there again.
fn ruin(dice: &mut SmallRng) -> Plan {
    let at = about(dice, 8);
    let mut schedule = vec![(at, Event::Settle)];
    schedule.extend((1..=4).map(|slave| (at, Event::Damage(Node::Slave(slave), Damage::FlipAll))));
    let back = dice.random_bool(0.5);
    if back {
        schedule.push((about(dice, 25), Event::Undamage));
    }
    let mut plan = plan(s(70), schedule, both(s(2), s(8), 50));
    plan.workload.may_be_unreadable = !back;
    plan
}

fn stale_majority(dice: &mut SmallRng) -> Plan {
    let [gone, kept] = two_slaves(dice);
    let stale: Vec<Node> = (1..=4).map(Node::Slave).filter(|slave| ![gone, kept].contains(slave)).collect();
    let down = about(dice, 9);
    // The two that are left take everything, and acknowledge what the others never saw.
    let over = down + s(45);
    let mut schedule: Vec<_> = stale.iter().map(|slave| (s(6), Event::Remember(*slave))).collect();
    schedule.push((down, Event::Settle));
    schedule.push((down, Event::Kill(stale.clone())));
    schedule.push((over, Event::Kill(vec![gone])));
    schedule.extend(stale.iter().map(|slave| (over, Event::Damage(*slave, Damage::SetBack))));
    schedule.push((over + some_time(dice), Event::Start(stale)));
    schedule.extend([(over + s(17), Event::Replace(gone)), (over + s(17), Event::Start(vec![gone]))]);
    let progress = [both(down + s(20), over, 30), at_last(over + s(40), 30)].concat();
    let windows = each(&[Kind::Fsync], down + s(20), over, 5).to_vec();
    Plan { windows, ..plan(over + s(40), schedule, progress) }
}

/// The first error takes a disk out of service until its slave is started anew.
fn disk_errors(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in [6, 34] {
        let (slave, at) = (any_slave(dice), about(dice, at));
        schedule.extend([(at, Event::Settle), (at, Event::Fail(slave, some_faults(dice)))]);
        let over = at + Duration::from_millis(dice.random_range(500..15_000));
        schedule.push((over, Event::Kill(vec![slave])));
        schedule.push((over, Event::Fail(slave, Faults::default())));
        schedule.push((over + s(1), Event::Start(vec![slave])));
    }
    plan(s(65), schedule, [both(s(18), s(34), 30), at_last(s(65), 30)].concat())
}

pub(super) fn some_faults(dice: &mut SmallRng) -> Faults {
    match dice.random_range(0..4) {
        0 => Faults { reads: true, ..Faults::default() },
        1 => Faults { writes: true, ..Faults::default() },
        2 => Faults { syncs: true, ..Faults::default() },
        _ => Faults { reads: true, writes: true, syncs: true },
    }
}

fn slow_disk(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for (at, most) in [(5, 200), (15, 1500), (25, 6000)] {
        let (slave, at) = (any_slave(dice), about(dice, at));
        schedule.push((at, Event::Slow(slave, dice.random_range(most / 10..most))));
        schedule.push((at + s(7), Event::Slow(slave, 0)));
    }
    plan(s(50), schedule, [both(s(15), s(34), 20), at_last(s(50), 30)].concat())
}

fn wiped(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in [6, 26] {
        let (slaves, at, down) = (two_slaves(dice), about(dice, at), some_time(dice));
        schedule.extend([(at, Event::Settle), (at, Event::Kill(slaves.to_vec()))]);
        schedule.extend(slaves.map(|slave| (at, Event::Replace(slave))));
        schedule.push((at + down, Event::Start(slaves.to_vec())));
    }
    plan(s(65), schedule, at_last(s(65), 30))
}

fn cloned(dice: &mut SmallRng) -> Plan {
    let [one, other] = two_slaves(dice);
    let at = about(dice, 8);
    let mut schedule = vec![(at, Event::Settle)];
    if dice.random_bool(0.5) {
        // The other one's bearer is down, and comes back to find its disk with somebody else.
        schedule.push((at, Event::Kill(vec![one])));
        schedule.push((at + s(25), Event::Start(vec![one])));
    }
    schedule.push((at, Event::Kill(vec![other])));
    schedule.push((at, Event::Clone(one, other)));
    schedule.push((at + some_time(dice), Event::Start(vec![other])));
    schedule.extend(replaced(other, at + s(40)));
    plan(s(75), schedule, at_last(s(75), 30))
}

/// Any of its files; what refuses is put back as it was.
pub(super) fn master_damage(dice: &mut SmallRng) -> Damage {
    match dice.random_range(0..6) {
        0 => Damage::Flip(dice.random_range(1..10)),
        1 => Damage::Flip(dice.random_range(10..100)),
        2 => Damage::Exchange(dice.random_range(1..5)),
        3 => Damage::Misplace(dice.random_range(1..5)),
        4 => Damage::Cut,
        _ => {
            if dice.random() {
                Damage::SetBack
            } else {
                Damage::SetBackFile
            }
        }
    }
}

fn damaged_master(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![(about(dice, 4), Event::Remember(Node::Master))];
    for at in [9, 34, 59] {
        let at = about(dice, at);
        schedule.extend(master_damaged(at, master_damage(dice)));
    }
    plan(s(90), schedule, at_last(s(90), 30))
}

pub(super) fn master_damaged(at: Duration, damage: Damage) -> [(Duration, Event); 4] {
    let master = vec![Node::Master];
    [
        (at, Event::Kill(master.clone())),
        (at, Event::Damage(Node::Master, damage)),
        (at + s(1), Event::Start(master)),
        (at + s(9), Event::Mend(Node::Master)),
    ]
}
