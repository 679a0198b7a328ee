//! Networks and clocks.

use super::{
    AFTER_A_PARTITION, Scenario, about, any_client, any_slave, at_last, both, plan, s, synced_within,
};
use crate::cluster::{Node, Plan, Window};
use crate::events::Event;
use crate::shared::Kind;
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
        name: "standstill",
        about: "all slaves but one are cut off: nothing is acknowledged that only one has",
        plan: |dice| standstill(dice, cut_off),
    },
    Scenario {
        name: "standstill-one-way",
        about: "the same, but they still hear, or are still heard",
        plan: |dice| standstill(dice, cut_off_one_way),
    },
    Scenario {
        name: "pauses-slave",
        about: "a slave stands still for one, two and ten leases",
        plan: |dice| pauses(dice, any_slave),
    },
    Scenario {
        name: "pauses-master",
        about: "the master stands still for one, two and ten leases",
        plan: |dice| pauses(dice, |_| Node::Master),
    },
    Scenario {
        name: "pauses-client",
        about: "clients stand still for one, two and ten leases",
        plan: |dice| pauses(dice, any_client),
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
    let mut windows = vec![];
    for at in [6, 30] {
        let at = about(dice, at);
        let (begin, end) = some_bridge(dice);
        let heal = at + Duration::from_millis(dice.random_range(1000..18_000));
        schedule.extend([(at, begin), (heal, end)]);
        windows.extend(synced_within(AFTER_A_PARTITION, heal));
    }
    Plan { windows, ..plan(s(65), schedule, at_last(s(65), 30)) }
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
    let mut windows = vec![];
    for (at, node) in [(5, any_slave(dice)), (20, Node::Master), (35, client)] {
        let at = about(dice, at);
        let flaps = some_flaps(dice, at, node);
        windows
            .extend(flaps.last().into_iter().flat_map(|(heal, _)| synced_within(AFTER_A_PARTITION, *heal)));
        schedule.extend(flaps);
    }
    Plan { windows, ..plan(s(65), schedule, at_last(s(65), 30)) }
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

type Cut = (Vec<Event>, Vec<Event>);

fn cut_off(_: &mut SmallRng, away: &[Node]) -> Cut {
    (away.iter().copied().map(Event::Cut).collect(), away.iter().copied().map(Event::Heal).collect())
}

fn cut_off_one_way(dice: &mut SmallRng, away: &[Node]) -> Cut {
    let nodes = (1..=3).map(Node::Slave).chain([Node::Master, Node::Client(0), Node::Client(1)]);
    let (mut begin, mut end) = (vec![], vec![]);
    let mute = dice.random();
    for other in nodes {
        for slave in away.iter().copied().filter(|slave| *slave != other) {
            let (from, to) = if mute { (slave, other) } else { (other, slave) };
            begin.push(Event::PartOneWay(from, to));
            end.push(Event::Join(from, to));
        }
    }
    (begin, end)
}

/// Two of the three slaves must have what is acknowledged, and only one is reached.
fn standstill(dice: &mut SmallRng, cut: impl Fn(&mut SmallRng, &[Node]) -> Cut) -> Plan {
    let reached = dice.random_range(1..=3);
    let away: Vec<Node> = (1..=3).filter(|slave| *slave != reached).map(Node::Slave).collect();
    let from = about(dice, 8);
    let heal = from + Duration::from_millis(dice.random_range(5_000..30_000));
    let (begin, end) = cut(dice, &away);
    let schedule =
        begin.into_iter().map(|event| (from, event)).chain(end.into_iter().map(|event| (heal, event)));
    // What was written before the cut may be at every member.
    let nothing = |client| Window {
        client,
        kinds: &[Kind::Close, Kind::Fsync],
        begun: from,
        from,
        to: heal,
        operations: 0..=0,
    };
    let windows = [[0, 1].map(nothing), synced_within(AFTER_A_PARTITION, heal)].concat();
    let until = heal + s(25);
    Plan { slaves: 3, windows, ..plan(until, schedule.collect(), at_last(until, 30)) }
}

/// Each time the next of those that `any` picks. If it is no slave, no replica moves for that.
fn pauses(dice: &mut SmallRng, any: impl Fn(&mut SmallRng) -> Node) -> Plan {
    let mut schedule = vec![];
    let mut at = s(5);
    for leases in [1, 2, 10] {
        let node = any(dice);
        let lasts = LEASE * leases + Duration::from_millis(dice.random_range(0..2000)) - s(1);
        let keeps_members = !matches!(node, Node::Slave(_));
        if keeps_members {
            schedule.extend([(at, Event::Settle), (at, Event::NoteMembers)]);
        }
        schedule.extend(asleep(node, at, lasts, dice));
        at += lasts + s(12);
        if keeps_members {
            schedule.push((at, Event::SameMembers));
        }
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
