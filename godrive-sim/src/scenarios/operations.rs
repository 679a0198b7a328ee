//! What people do with slaves: drain, decommission, replace, take back.

use super::{Scenario, about, any_slave, at_last, plan, s, two_slaves};
use crate::cluster::{Node, Plan};
use crate::events::Event;
use godrive_proto::admin::Intention;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "drain",
        about: "a slave is drained, then one decommissioned, while others are killed and cut off, and each is wiped when empty",
        plan: drain,
    },
    Scenario {
        name: "drain-disk",
        about: "one of a slave's two disks is drained while the slave is killed or loses power; half of the time there is one replica",
        plan: drain_disk,
    },
    Scenario {
        name: "balance",
        about: "a slave comes back with an empty disk that is small, and replicas move there",
        plan: balance,
    },
];

/// How a slave is emptied, and how that ends.
pub(super) fn some_way(dice: &mut SmallRng) -> [Intention; 2] {
    match dice.random() {
        true => [Intention::Drain, Intention::Undrain],
        false => [Intention::Decommission, Intention::Recommission],
    }
}

/// Its disk is replaced the moment it is said to be empty: whatever only it had would be lost.
pub(super) fn wiped_when_empty(slave: Node, at: Duration, end: Intention) -> [(Duration, Event); 5] {
    [
        (at, Event::Emptied(slave)),
        (at, Event::Kill(vec![slave])),
        (at, Event::Replace(slave)),
        (at, Event::Intend(slave, end)),
        (at, Event::Start(vec![slave])),
    ]
}

fn drain(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let ways = [[Intention::Drain, Intention::Undrain], [Intention::Decommission, Intention::Recommission]];
    for (at, [begin, end]) in [6, 36].into_iter().zip(ways) {
        let at = about(dice, at);
        let [slave, other] = two_slaves(dice);
        let killed = if dice.random_bool(0.3) { Node::Master } else { other };
        let cut = if dice.random_bool(0.3) { slave } else { other };
        let mut some = |least, most| Duration::from_millis(dice.random_range(least..most));
        let (kill, part) = (at + some(0, 900), at + some(0, 2500));
        // Late datagrams make the drain last long enough to meet what happens.
        let mut round =
            vec![(at, Event::Intend(slave, begin)), (at, Event::Delay(20 + some(0, 100).as_millis() as u64))];
        round.extend([
            (kill, Event::Kill(vec![killed])),
            (kill + some(100, 4000), Event::Start(vec![killed])),
        ]);
        round.extend([(part, Event::Cut(cut)), (part + some(300, 8000), Event::Heal(cut))]);
        round.sort_by_key(|(at, _)| *at);
        let over = round.last().map_or(at, |(at, _)| *at);
        round.push((over, Event::Delay(Event::USUAL_DELAY)));
        round.extend(wiped_when_empty(slave, over, end));
        schedule.push((at, Event::Settle));
        schedule.append(&mut round);
    }
    let mut plan = plan(s(75), schedule, at_last(s(75), 30));
    plan.operator = true;
    plan
}

/// The only replica is killed with its slave, and not more.
fn drain_disk(dice: &mut SmallRng) -> Plan {
    let replicas = if dice.random() { 1 } else { 3 };
    let mut schedule = vec![];
    for at in [6, 26, 46, 66] {
        let (slave, at) = (any_slave(dice), about(dice, at));
        let mut some = |least, most| Duration::from_millis(dice.random_range(least..most));
        // Late datagrams make the moves last long enough to meet what happens.
        let late = 20 + some(0, 100).as_millis() as u64;
        let (down, long) = (at + some(0, 1500), some(100, 4000));
        let power = replicas > 1 && dice.random();
        schedule.extend([
            (at, Event::Settle),
            (at, Event::Delay(late)),
            (at, Event::IntendDisk(slave, Intention::Drain)),
            (down, if power { Event::PowerLoss(vec![slave]) } else { Event::Kill(vec![slave]) }),
            (down + long, Event::Start(vec![slave])),
            (down + long + s(1), Event::Delay(Event::USUAL_DELAY)),
            (down + long + s(6), Event::IntendDisk(slave, Intention::Undrain)),
        ]);
    }
    let mut plan = plan(s(90), schedule, at_last(s(90), 30));
    (plan.operator, plan.disks, plan.replicas) = (true, 2, replicas);
    plan
}

fn balance(dice: &mut SmallRng) -> Plan {
    let [slave, _] = two_slaves(dice);
    let at = about(dice, 8);
    let schedule = vec![
        (at, Event::Settle),
        (at, Event::Intend(slave, Intention::Drain)),
        (at, Event::Emptied(slave)),
        (at, Event::Kill(vec![slave])),
        (at, Event::Replace(slave)),
        (at, Event::Intend(slave, Intention::Undrain)),
        (at, Event::Start(vec![slave])),
        (at, Event::Balance(dice.random_range(2_500_000..4_000_000))),
        (at + s(5), Event::Empty),
    ];
    let mut plan = plan(at + s(25), schedule, at_last(at + s(25), 30));
    plan.operator = true;
    plan
}
