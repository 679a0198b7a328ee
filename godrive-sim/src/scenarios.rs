//! What is tried. A scenario is a plan that the seed varies.

mod disks;
mod linear;
mod mixed;
mod network;
mod operations;

use crate::cluster::{Node, Plan, Progress, Window};
use crate::events::Event;
use crate::shared::Kind;
use crate::workload::Workload;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::Duration;

pub struct Scenario {
    pub name: &'static str,
    pub about: &'static str,
    plan: fn(&mut SmallRng) -> Plan,
}

impl Scenario {
    /// Where disks go wrong, each slave has one or two, as the seed has it.
    pub fn plan(&self, seed: u64) -> Plan {
        let mut dice = SmallRng::seed_from_u64(seed);
        let mut plan = (self.plan)(&mut dice);
        if [DISKS, MIXED].into_iter().flatten().any(|scenario| scenario.name == self.name) {
            plan.disks = dice.random_range(1..=2);
        }
        plan
    }
}

pub const ALL: &[Scenario] = &[
    Scenario { name: "calm", about: "two writers on one file, nothing goes wrong", plan: calm },
    Scenario { name: "loss", about: "one datagram in fifty is lost", plan: loss },
    Scenario {
        name: "partition-slave",
        about: "a slave is cut off from everybody and comes back",
        plan: partition_slave,
    },
    Scenario {
        name: "partition-client",
        about: "a client is cut off past its lease with unflushed writes",
        plan: partition_client,
    },
    Scenario {
        name: "partition-one-way",
        about: "a slave is heard but hears nothing, then the reverse",
        plan: partition_one_way,
    },
    Scenario {
        name: "crash-slave",
        about: "slaves lose power and come back, and one is killed",
        plan: crash_slave,
    },
    Scenario {
        name: "crash-two",
        about: "two slaves are killed at one moment, then two lose power",
        plan: crash_two,
    },
    Scenario {
        name: "partition-master",
        about: "the master is cut off from everybody and comes back",
        plan: partition_master,
    },
    Scenario { name: "crash-master", about: "the master is killed, then loses power", plan: crash_master },
    Scenario {
        name: "crash-client",
        about: "a client dies with unflushed writes and comes back",
        plan: crash_client,
    },
    Scenario { name: "crash-all", about: "the whole cluster loses power at one moment", plan: crash_all },
    Scenario {
        name: "restart",
        about: "the master, then all nodes start anew, and nothing moves when all come back soon",
        plan: restart,
    },
    Scenario {
        name: "late-datagrams",
        about: "what a client and a slave sent arrives seconds late",
        plan: late,
    },
    Scenario { name: "rot", about: "bits flip on one slave's disk", plan: rot },
    Scenario { name: "full", about: "the slaves' disks fill up and are emptied", plan: full },
];

/// Those in which three clients share objects whose histories must be linearizable ([`crate::sharing`]).
pub const LINEAR: &[Scenario] = linear::ALL;

/// What is wrong with disks, with the network and with clocks; and everything mixed.
pub const DISKS: &[Scenario] = disks::ALL;
pub const NETWORK: &[Scenario] = network::ALL;
pub const MIXED: &[Scenario] = mixed::ALL;

/// What people do with slaves.
pub const OPERATIONS: &[Scenario] = operations::ALL;

pub fn all() -> impl Iterator<Item = &'static Scenario> {
    [ALL, DISKS, NETWORK, OPERATIONS, MIXED, LINEAR].into_iter().flatten()
}

pub fn named(name: &str) -> Option<&'static Scenario> {
    all().find(|scenario| scenario.name == name)
}

fn s(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

fn any_slave(dice: &mut SmallRng) -> Node {
    Node::Slave(dice.random_range(1..=4))
}

/// Two different ones.
fn two_slaves(dice: &mut SmallRng) -> [Node; 2] {
    let one = dice.random_range(0..4);
    let other = (one + dice.random_range(1..4)) % 4;
    [Node::Slave(one + 1), Node::Slave(other + 1)]
}

fn any_client(dice: &mut SmallRng) -> Node {
    Node::Client(dice.random_range(0..2))
}

/// Up to two seconds later, so that seeds meet different moments.
fn about(dice: &mut SmallRng, seconds: u64) -> Duration {
    Duration::from_millis(seconds * 1000 + dice.random_range(0..2000))
}

fn plan(until: Duration, schedule: Vec<(Duration, Event)>, progress: Vec<Progress>) -> Plan {
    let workload = Workload {
        clients: 2,
        places: 40,
        until,
        pause: Duration::from_millis(20),
        may_be_unreadable: false,
    };
    Plan { schedule, progress, ..Plan::new(workload) }
}

/// Both clients get on again in the end.
fn at_last(until: Duration, operations: usize) -> Vec<Progress> {
    both(until - s(8), until, operations)
}

fn both(from: Duration, to: Duration, operations: usize) -> Vec<Progress> {
    (0..2).map(|client| Progress { client, from, to, operations }).collect()
}

/// At least one write and the `fsync` behind it, of each client, between this moment and so much later.
fn synced_within(limit: Duration, from: Duration) -> [Window; 2] {
    each(&[Kind::Fsync], from, from + limit, 1)
}

fn each(kinds: &'static [Kind], from: Duration, to: Duration, least: usize) -> [Window; 2] {
    [0, 1].map(|client| Window { client, kinds, begun: from, from, to, operations: least..=usize::MAX })
}

/// Ending the membership of one slave takes no longer while enough others are there.
const AFTER_A_KILL: Duration = Duration::from_secs(10);
const AFTER_A_PARTITION: Duration = Duration::from_secs(15);

fn calm(_: &mut SmallRng) -> Plan {
    plan(s(20), vec![], both(s(2), s(20), 200))
}

fn loss(_: &mut SmallRng) -> Plan {
    plan(s(20), vec![(s(3), Event::Lose(20)), (s(18), Event::Lose(0))], both(s(3), s(18), 50))
}

fn partition_slave(dice: &mut SmallRng) -> Plan {
    let slave = Node::Slave(dice.random_range(1..=4));
    let (cut, heal) = (about(dice, 6), about(dice, 26));
    let schedule = vec![(cut, Event::Cut(slave)), (heal, Event::Heal(slave))];
    // Ten seconds are granted for noticing and changing the epochs of the chunks it was a member of.
    let progress = [both(s(0), s(6), 40), both(cut + s(10), s(26), 50), both(s(30), s(40), 50)].concat();
    let windows = [synced_within(AFTER_A_KILL, cut), synced_within(AFTER_A_PARTITION, heal)].concat();
    Plan { windows, ..plan(s(45), schedule, progress) }
}

fn partition_client(dice: &mut SmallRng) -> Plan {
    let client = Node::Client(1);
    let (cut, heal) = (about(dice, 6), about(dice, 26));
    let schedule = vec![(cut, Event::Cut(client)), (heal, Event::Heal(client))];
    let other = Progress { client: 0, from: cut + s(12), to: s(26), operations: 50 };
    let windows = synced_within(AFTER_A_PARTITION, heal).to_vec();
    Plan { windows, ..plan(s(50), schedule, [vec![other], both(s(36), s(50), 30)].concat()) }
}

fn partition_one_way(dice: &mut SmallRng) -> Plan {
    let slave = Node::Slave(dice.random_range(1..=4));
    let others = [Node::Master, Node::Client(0), Node::Client(1)];
    let (first, second) = (about(dice, 6), about(dice, 26));
    let mut schedule: Vec<_> = others.iter().map(|other| (first, Event::PartOneWay(*other, slave))).collect();
    schedule.extend(others.iter().map(|other| (first + s(8), Event::Join(*other, slave))));
    schedule.extend(others.iter().map(|other| (second, Event::PartOneWay(slave, *other))));
    schedule.extend(others.iter().map(|other| (second + s(8), Event::Join(*other, slave))));
    let windows = [first, second].map(|at| synced_within(AFTER_A_PARTITION, at + s(8))).concat();
    Plan { windows, ..plan(s(52), schedule, both(s(40), s(50), 30)) }
}

fn crash_slave(dice: &mut SmallRng) -> Plan {
    let one = Node::Slave(dice.random_range(1..=4));
    let two = Node::Slave(dice.random_range(1..=4));
    let three = Node::Slave(dice.random_range(1..=4));
    // The third stays away for longer than it takes to go on without it.
    let deaths = [about(dice, 6), about(dice, 30), about(dice, 50)];
    let schedule = vec![
        (deaths[0], Event::PowerLoss(vec![one])),
        (about(dice, 12), Event::Start(vec![one])),
        (deaths[1], Event::PowerLoss(vec![two])),
        (about(dice, 33), Event::Start(vec![two])),
        (deaths[2], Event::Kill(vec![three])),
        (about(dice, 65), Event::Start(vec![three])),
    ];
    let progress = [both(s(20), s(30), 40), both(s(42), s(50), 30), both(s(70), s(80), 30)].concat();
    let windows = deaths.map(|at| synced_within(AFTER_A_KILL, at)).concat();
    Plan { windows, ..plan(s(80), schedule, progress) }
}

/// As many are left as accept writes, and each chunk has a member or two.
fn crash_two(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    let deaths = [about(dice, 6), about(dice, 40)];
    for (at, power) in deaths.into_iter().zip([false, true]) {
        let slaves = two_slaves(dice).to_vec();
        let event = if power { Event::PowerLoss(slaves.clone()) } else { Event::Kill(slaves.clone()) };
        schedule.extend([(at, Event::Settle), (at, event), (at + s(18), Event::Start(slaves))]);
    }
    let windows = deaths.map(|at| synced_within(AFTER_A_KILL, at)).concat();
    Plan { windows, ..plan(s(75), schedule, at_last(s(75), 30)) }
}

fn partition_master(dice: &mut SmallRng) -> Plan {
    let (cut, heal) = (about(dice, 6), Duration::from_millis(dice.random_range(9_000..26_000)));
    let schedule = vec![(cut, Event::Cut(Node::Master)), (heal, Event::Heal(Node::Master))];
    let windows = synced_within(AFTER_A_PARTITION, heal).to_vec();
    Plan { windows, ..plan(s(50), schedule, at_last(s(50), 30)) }
}

fn crash_master(dice: &mut SmallRng) -> Plan {
    let starts = [about(dice, 9), about(dice, 33)];
    let schedule = vec![
        (about(dice, 6), Event::Kill(vec![Node::Master])),
        (starts[0], Event::Start(vec![Node::Master])),
        (about(dice, 30), Event::PowerLoss(vec![Node::Master])),
        (starts[1], Event::Start(vec![Node::Master])),
    ];
    let windows = starts.map(|at| synced_within(AFTER_A_KILL, at)).concat();
    let progress = [both(s(22), s(30), 30), both(s(47), s(60), 30)].concat();
    Plan { windows, ..plan(s(60), schedule, progress) }
}

fn crash_client(dice: &mut SmallRng) -> Plan {
    let client = vec![Node::Client(1)];
    let crash = about(dice, 6);
    let schedule = vec![(crash, Event::Kill(client.clone())), (about(dice, 25), Event::Start(client))];
    let other = Progress { client: 0, from: crash + s(12), to: s(25), operations: 50 };
    plan(s(45), schedule, [vec![other], both(s(35), s(45), 30)].concat())
}

/// Half of the time the clients lose it, too.
fn crash_all(dice: &mut SmallRng) -> Plan {
    let mut all: Vec<Node> = (1..=4).map(Node::Slave).chain([Node::Master]).collect();
    let with_clients = dice.random();
    if with_clients {
        all.extend([0, 1].map(Node::Client));
    }
    let start = about(dice, 13);
    let schedule = vec![(about(dice, 10), Event::PowerLoss(all.clone())), (start, Event::Start(all))];
    let windows = synced_within(AFTER_A_KILL, start).to_vec();
    Plan { windows, ..plan(s(50), schedule, both(s(35), s(50), 30)) }
}

/// The slaves one after the other, before and after the master, all within its patience.
fn restart(dice: &mut SmallRng) -> Plan {
    let slaves: Vec<Node> = (1..=4).map(Node::Slave).collect();
    let mut schedule = vec![];
    for (at, with_slaves) in [(6, false), (30, true)] {
        let at = about(dice, at);
        schedule.extend([(at, Event::Settle), (at, Event::NoteMembers)]);
        schedule.push((at, Event::Kill(vec![Node::Master])));
        let start = at + Duration::from_millis(dice.random_range(100..3000));
        let mut starts = vec![(start, Event::Start(vec![Node::Master]))];
        if with_slaves {
            schedule.push((at, Event::Kill(slaves.clone())));
            let start = |slave: &Node| {
                let late = Duration::from_millis(dice.random_range(0..4000));
                (start + late - Duration::from_millis(50), Event::Start(vec![*slave]))
            };
            starts.extend(slaves.iter().map(start));
            starts.sort_by_key(|(at, _)| *at);
        }
        schedule.append(&mut starts);
        schedule.push((start + s(15), Event::SameMembers));
    }
    plan(s(60), schedule, at_last(s(60), 30))
}

fn late(dice: &mut SmallRng) -> Plan {
    let mut schedule = vec![];
    for (number, at) in [4, 14, 24, 34].into_iter().enumerate() {
        let node = if number % 2 == 0 { Node::Client(1) } else { Node::Slave(dice.random_range(1..=4)) };
        let hold = about(dice, at);
        let held = Duration::from_millis(dice.random_range(200..9000));
        schedule.extend([(hold, Event::Hold(node)), (hold + held, Event::LetGo(node))]);
    }
    plan(s(60), schedule, both(s(52), s(60), 30))
}

/// Also in the index, which no scrub reads: in the end people check the disk.
fn rot(dice: &mut SmallRng) -> Plan {
    let slave = Node::Slave(dice.random_range(1..=4));
    let rots = (5..25).step_by(2).map(|at| (about(dice, at), Event::Rot(slave, 30)));
    let mut schedule: Vec<_> = rots.collect();
    schedule.push((s(30), Event::Kill(vec![slave])));
    schedule.push((s(31), Event::Start(vec![slave])));
    schedule.push((s(33), Event::Mend(slave)));
    plan(s(40), schedule, both(s(5), s(40), 100))
}

fn full(dice: &mut SmallRng) -> Plan {
    let spare_bytes = dice.random_range(0..300_000);
    let schedule = vec![(about(dice, 6), Event::Fill(spare_bytes)), (about(dice, 25), Event::Empty)];
    let windows = [each(&[Kind::Read], s(8), s(25), 30), each(&[Kind::Removal], s(8), s(25), 10)].concat();
    Plan { windows, ..plan(s(45), schedule, both(s(35), s(45), 30)) }
}
