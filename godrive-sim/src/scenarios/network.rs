//! Networks and clocks.

use super::{Scenario, about, any_client, any_slave, at_last, both, plan, s};
use crate::cluster::{Node, Plan};
use crate::events::Event;
use crate::weather::Weather;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

pub(super) const ALL: &[Scenario] = &[
    Scenario {
        name: "weather",
        about: "datagrams are lost (up to three in ten), doubled, altered, late and out of order",
        plan: weather,
    },
    Scenario {
        name: "bridge",
        about: "the cluster falls apart into two halves that see one slave",
        plan: bridge,
    },
    Scenario { name: "flapping", about: "links go up and down several times a second", plan: flapping },
    Scenario {
        name: "pauses",
        about: "clients, slaves and the master stand still for one, two and ten leases",
        plan: pauses,
    },
    Scenario { name: "clocks", about: "wall clocks are set hours and days ahead and back", plan: clocks },
];

/// After which a client's lease has run out.
const LEASE: Duration = Duration::from_secs(8);

pub(super) fn some_weather(dice: &mut SmallRng) -> Weather {
    let mut some = |most| if dice.random() { dice.random_range(1..=most) } else { 0 };
    Weather { lost: some(300), doubled: some(200), altered: some(100) }
}

fn weather(dice: &mut SmallRng) -> Plan {
    let worst = Weather { lost: 300, doubled: 100, altered: 50 };
    let mut schedule = vec![(s(3), Event::Weather(some_weather(dice)))];
    schedule.push((s(10), Event::Delay(dice.random_range(5..200))));
    schedule.push((s(15), Event::Weather(worst)));
    schedule.push((s(30), Event::Delay(Event::USUAL_DELAY)));
    schedule.push((s(32), Event::Weather(Weather::default())));
    plan(s(45), schedule, [both(s(3), s(10), 5), at_last(s(45), 50)].concat())
}

/// The master and a client with half of the slaves on one side, the other client on the other.
pub(super) fn some_bridge(dice: &mut SmallRng) -> (Event, Event) {
    let bridge = dice.random_range(1..=4);
    let mut slaves: Vec<Node> = (1..=4).filter(|slave| *slave != bridge).map(Node::Slave).collect();
    let alone = slaves.remove(dice.random_range(0..3));
    let client = dice.random_range(0..2);
    let mut ones = vec![Node::Master, Node::Client(client)];
    let mut others = vec![Node::Client(1 - client)];
    if dice.random() {
        ones.push(alone);
        others.extend(slaves);
    } else {
        others.push(alone);
        ones.extend(slaves);
    }
    (Event::Split(ones.clone(), others.clone()), Event::Unite(ones, others))
}

fn bridge(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in [6, 30] {
        let at = about(dice, at);
        let (begin, end) = some_bridge(dice);
        schedule.extend([(at, begin), (at + Duration::from_millis(dice.random_range(1000..18_000)), end)]);
    }
    plan(s(65), schedule, at_last(s(65), 30))
}

/// The link between the node and each other one, or one of them, fails and comes back, up to so long.
pub(super) fn some_flaps(dice: &mut SmallRng, from: Duration, node: Node) -> Vec<(Duration, Event)> {
    let mut schedule = vec![];
    let mut at = from;
    let other = any_client(dice);
    let one_link = dice.random_bool(0.5) && other != node;
    while at < from + s(8) {
        let down = Duration::from_millis(dice.random_range(20..700));
        let (begin, end) = match one_link {
            true => (Event::Part(node, other), Event::Join(node, other)),
            false => (Event::Cut(node), Event::Heal(node)),
        };
        schedule.extend([(at, begin), (at + down, end)]);
        at += down + Duration::from_millis(dice.random_range(20..900));
    }
    schedule
}

fn flapping(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let client = any_client(dice);
    for (at, node) in [(5, any_slave(dice)), (20, Node::Master), (35, client)] {
        let at = about(dice, at);
        schedule.extend(some_flaps(dice, at, node));
    }
    plan(s(65), schedule, at_last(s(65), 30))
}

/// For how many leases; ten of them seldom, as they take long.
pub(super) fn some_pause(dice: &mut SmallRng) -> Duration {
    let leases = *[1, 1, 1, 2, 2, 10].get(dice.random_range(0..6)).unwrap_or(&1);
    LEASE * leases + Duration::from_millis(dice.random_range(0..2000)) - s(1)
}

pub(super) fn asleep(
    node: Node,
    from: Duration,
    lasts: Duration,
    dice: &mut SmallRng,
) -> [(Duration, Event); 3] {
    // The network is back a little later than the programs.
    let back = Duration::from_millis(dice.random_range(1..300));
    [(from, Event::Sleep(node)), (from + lasts, Event::Wake(node)), (from + lasts + back, Event::LetGo(node))]
}

fn pauses(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let mut at = s(5);
    let nodes = [any_slave(dice), Node::Master, any_client(dice)];
    for (leases, node) in [1, 2, 10].into_iter().zip(nodes.iter().cycle().skip(dice.random_range(0..3))) {
        let lasts = LEASE * leases + Duration::from_millis(dice.random_range(0..2000)) - s(1);
        schedule.extend(asleep(*node, at, lasts, dice));
        at += lasts + s(12);
    }
    plan(at + s(10), schedule, at_last(at + s(10), 30))
}

pub(super) fn some_step(dice: &mut SmallRng, node: Node) -> Event {
    let most = *[2_000, 3_600_000, 20 * 24 * 3_600_000].get(dice.random_range(0..3)).unwrap_or(&1);
    Event::Step(node, dice.random_range(-most..=most))
}

fn clocks(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in 4..30 {
        let node = match dice.random_range(0..3) {
            0 => Node::Master,
            1 => any_slave(dice),
            _ => any_client(dice),
        };
        schedule.push((about(dice, at), some_step(dice, node)));
    }
    schedule.sort_by_key(|(at, _)| *at);
    // What is stamped with other days is still there after a start.
    let all: Vec<Node> = (1..=4).map(Node::Slave).chain([Node::Master]).collect();
    schedule.extend([(s(33), Event::Kill(all.clone())), (s(34), Event::Start(all))]);
    plan(s(55), schedule, [both(s(4), s(30), 200), at_last(s(55), 30)].concat())
}
