//! Three clients share objects whose histories must be linearizable. What they take care of follows from what may be
//! lost under the faults of the scenario: see [`Care`].

use super::network::some_weather;
use super::{Scenario, about, s};
use crate::cluster::{Node, Plan, Progress};
use crate::events::Event;
use crate::sharing::{Care, Sharing};
use crate::weather::Weather;
use crate::workload::Workload;
use rand::Rng;
use rand::rngs::SmallRng;
use std::time::Duration;

const CLIENTS: u16 = 3;

pub(super) const ALL: &[Scenario] = &[
    Scenario { name: "linear-calm", about: "three clients share objects, nothing goes wrong", plan: calm },
    Scenario {
        name: "linear-crowd",
        about: "several programs on each of the clients share them, nothing goes wrong",
        plan: crowd,
    },
    Scenario { name: "linear-loss", about: "they do while datagrams are lost", plan: loss },
    Scenario {
        name: "linear-weather",
        about: "while three datagrams in ten are lost, others doubled, altered, late and out of order",
        plan: weather,
    },
    Scenario {
        name: "linear-slaves",
        about: "while slaves are cut off, held, killed, or lose their power",
        plan: slaves,
    },
    Scenario { name: "linear-master", about: "while the master is killed and started again", plan: master },
    Scenario {
        name: "linear-partitions",
        about: "while clients, slaves and the master are cut off",
        plan: partitions,
    },
    Scenario {
        name: "linear-pauses",
        about: "while what clients, slaves and the master send comes seconds late",
        plan: pauses,
    },
    Scenario {
        name: "linear-sleep",
        about: "while clients' machines sleep, shorter and longer than their lease",
        plan: sleep,
    },
    Scenario { name: "linear-kills", about: "while clients, slaves and the master are killed", plan: kills },
    Scenario { name: "linear-power", about: "while the whole cluster loses its power", plan: power },
    Scenario { name: "linear-chaos", about: "while all of it happens, as chance has it", plan: chaos },
];

fn plan(
    sharing: Sharing,
    until: Duration,
    schedule: Vec<(Duration, Event)>,
    progress: Vec<Progress>,
) -> Plan {
    let workload = Workload {
        clients: CLIENTS,
        places: 0,
        until,
        pause: Duration::from_millis(100),
        may_be_unreadable: false,
    };
    Plan { sharing: Some(sharing), schedule, progress, at_least: 2_000, ..Plan::new(workload) }
}

fn sharing(care: Care, removals_in_a_row: u32) -> Sharing {
    Sharing { care, lanes: 1, workers: 1, removals_in_a_row }
}

fn all_of(from: Duration, to: Duration, operations: usize) -> Vec<Progress> {
    (0..CLIENTS).map(|client| Progress { client, from, to, operations }).collect()
}

/// At its end, with everything healed, all make progress again.
fn at_last(until: Duration, operations: usize) -> Vec<Progress> {
    all_of(until - s(8), until, operations)
}

fn calm(dice: &mut SmallRng) -> Plan {
    let removals_in_a_row = if dice.random() { 4 } else { 0 };
    let sharing = sharing(Care::Plain, removals_in_a_row);
    plan(sharing, s(15), vec![], all_of(s(2), s(15), 500))
}

fn crowd(dice: &mut SmallRng) -> Plan {
    let removals_in_a_row = if dice.random() { 4 } else { 0 };
    let sharing = Sharing { workers: 2, ..sharing(Care::Plain, removals_in_a_row) };
    plan(sharing, s(10), vec![], all_of(s(2), s(10), 500))
}

fn loss(dice: &mut SmallRng) -> Plan {
    let (lost, more) = (dice.random_range(5..25), dice.random_range(20..60));
    let schedule = vec![(s(2), Event::Lose(lost)), (s(10), Event::Lose(more)), (s(18), Event::Lose(0))];
    plan(sharing(Care::Plain, 4), s(20), schedule, all_of(s(3), s(18), 60))
}

/// What is asked again because no answer came, or comes twice, happens once.
fn weather(dice: &mut SmallRng) -> Plan {
    let worst = Weather { lost: 300, doubled: 100, altered: 50 };
    let schedule = vec![
        (s(3), Event::Weather(some_weather(dice))),
        (s(8), Event::Delay(dice.random_range(5..100))),
        (s(14), Event::Weather(worst)),
        (s(30), Event::Delay(Event::USUAL_DELAY)),
        (s(32), Event::Weather(Weather::default())),
    ];
    plan(sharing(Care::Plain, 4), s(45), schedule, at_last(s(45), 60))
}

/// No client loses its session by what slaves do, and no chunk more members than it may.
fn slaves(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let mut at = s(3);
    for _ in 0..3 {
        let slave = Node::Slave(dice.random_range(1..=4));
        let lasts = Duration::from_millis(dice.random_range(200..9000));
        let (begin, end) = match dice.random_range(0..4) {
            0 => (Event::Cut(slave), Event::Heal(slave)),
            1 => (Event::Hold(slave), Event::LetGo(slave)),
            2 => (Event::Kill(vec![slave]), Event::Start(vec![slave])),
            _ => (Event::PowerLoss(vec![slave]), Event::Start(vec![slave])),
        };
        schedule.extend([(at, begin), (at + lasts, end)]);
        at += lasts + s(8);
    }
    let until = at + s(8);
    plan(sharing(Care::Plain, 4), until, schedule, at_last(until, 60))
}

/// Sessions and what they own outlive the master's process.
fn master(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for at in [4, 22] {
        let dies = about(dice, at);
        let lasts = Duration::from_millis(dice.random_range(100..2500));
        schedule.extend([
            (dies, Event::Kill(vec![Node::Master])),
            (dies + lasts, Event::Start(vec![Node::Master])),
        ]);
    }
    plan(sharing(Care::Plain, 4), s(42), schedule, at_last(s(42), 60))
}

fn any_node(dice: &mut SmallRng) -> Node {
    match dice.random_range(0..4) {
        0 => Node::Master,
        1 => Node::Slave(dice.random_range(1..=4)),
        _ => Node::Client(dice.random_range(0..CLIENTS)),
    }
}

/// Each fault is over before the next begins.
fn one_by_one(
    dice: &mut SmallRng,
    care: Care,
    faults: usize,
    mut fault: impl FnMut(&mut SmallRng) -> (Event, Vec<Event>),
) -> Plan {
    let mut schedule = vec![];
    let mut at = s(3);
    for _ in 0..faults {
        let lasts = Duration::from_millis(match dice.random_bool(0.5) {
            true => dice.random_range(100..5000),
            false => dice.random_range(7000..14_000),
        });
        let (begin, ends) = fault(dice);
        schedule.push((at, begin));
        at += lasts;
        for end in ends {
            schedule.push((at, end));
            at += Duration::from_millis(dice.random_range(1..300));
        }
        at += Duration::from_millis(dice.random_range(2000..8000));
    }
    let until = at + s(24);
    let removals_in_a_row = if dice.random_bool(0.7) { 4 } else { 0 };
    plan(sharing(care, removals_in_a_row), until, schedule, at_last(until, 30))
}

fn partitions(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Synced, 4, |dice| {
        let node = any_node(dice);
        match dice.random_range(0..3) {
            0 => {
                let client = Node::Client(dice.random_range(0..CLIENTS));
                let other = match dice.random() {
                    true => Node::Master,
                    false => Node::Slave(dice.random_range(1..=4)),
                };
                let (from, to) = if dice.random() { (client, other) } else { (other, client) };
                (Event::PartOneWay(from, to), vec![Event::Join(from, to)])
            }
            _ => (Event::Cut(node), vec![Event::Heal(node)]),
        }
    })
}

fn pauses(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Synced, 5, |dice| {
        let node = any_node(dice);
        (Event::Hold(node), vec![Event::LetGo(node)])
    })
}

fn sleep(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Synced, 5, |dice| {
        let client = Node::Client(dice.random_range(0..CLIENTS));
        (Event::Sleep(client), vec![Event::Wake(client), Event::LetGo(client)])
    })
}

fn kills(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Synced, 5, |dice| {
        let node = vec![any_node(dice)];
        (Event::Kill(node.clone()), vec![Event::Start(node)])
    })
}

fn power(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Proven, 3, |dice| {
        let slaves = (1..=4).map(Node::Slave);
        let nodes: Vec<Node> = match dice.random_range(0..3) {
            0 => vec![Node::Master],
            1 => slaves.collect(),
            _ => slaves.chain([Node::Master]).collect(),
        };
        (Event::PowerLoss(nodes.clone()), vec![Event::Start(nodes)])
    })
}

fn chaos(dice: &mut SmallRng) -> Plan {
    one_by_one(dice, Care::Proven, 8, |dice| {
        let (node, client) = (any_node(dice), Node::Client(dice.random_range(0..CLIENTS)));
        let everything = || [Node::Master].into_iter().chain((1..=4).map(Node::Slave)).collect::<Vec<_>>();
        match dice.random_range(0..8) {
            0 | 1 => (Event::Cut(node), vec![Event::Heal(node)]),
            2 => (Event::Hold(node), vec![Event::LetGo(node)]),
            3 | 4 => (Event::Kill(vec![node]), vec![Event::Start(vec![node])]),
            5 => (Event::Sleep(client), vec![Event::Wake(client), Event::LetGo(client)]),
            6 => (Event::Lose(50), vec![Event::Lose(0)]),
            _ => (Event::PowerLoss(everything()), vec![Event::Start(everything())]),
        }
    })
}
