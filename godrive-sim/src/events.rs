//! What happens to a simulated cluster, and how it is done.

use crate::cluster::{DISK_BYTES, MASTERS, Node, Parts, node_id};
use crate::damage::Damage;
use crate::weather::Weather;
use godrive_disk::{Disk, Faults, SimulatedDisk};
use godrive_proto::admin::Intention;
use std::time::Duration;
use turmoil::Sim;

/// What happens to the cluster.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// No datagram passes between the two.
    Part(Node, Node),
    /// None passes from the first to the second; the other way they do.
    PartOneWay(Node, Node),
    Join(Node, Node),
    /// Between the node and everybody.
    Cut(Node),
    Heal(Node),
    /// Between each of the first and each of the second; whoever is in neither group sees both.
    Split(Vec<Node>, Vec<Node>),
    Unite(Vec<Node>, Vec<Node>),
    /// The machines lose power at one moment: unsynced writes are lost, torn or kept as chance has it.
    PowerLoss(Vec<Node>),
    /// The processes are killed; what they wrote is there.
    Kill(Vec<Node>),
    Start(Vec<Node>),
    /// Datagrams are lost at this rate, in thousandths, and with them those that follow on their link.
    Lose(u16),
    /// Each datagram by itself is lost, doubled or altered.
    Weather(Weather),
    /// Datagrams take up to so many milliseconds, and overtake each other.
    Delay(u64),
    /// What is sent from or to the node arrives only when it is let go.
    Hold(Node),
    LetGo(Node),
    /// The machine falls asleep: its clock stands, its network is held, and nobody at a client asks for anything.
    Sleep(Node),
    /// The clock jumps to the present and programs go on; the network is there when the node is let go.
    Wake(Node),
    /// Somebody sets the node's wall clock so many milliseconds ahead or back.
    Step(Node, i64),
    /// So many bits flip anywhere on a disk of the slave.
    Rot(Node, u16),
    /// The slaves' disks have room for so much more and nothing beyond.
    Fill(u64),
    /// They have room again.
    Empty,
    /// Calls to a disk of the slave fail, or, without faults, to none of them any more.
    Fail(Node, Faults),
    /// Each sync of a disk of the slave takes so many milliseconds; with none, no disk is slow any more.
    Slow(Node, u64),
    /// From now on its disks can be set back to this moment.
    Remember(Node),
    Damage(Node, Damage),
    /// Blocks that were damaged and not written since are right again: the fault was in the cable.
    Undamage,
    /// Empty disks for the node, which keeps its name and its key. Its process must be down.
    Replace(Node),
    /// The second's disks become copies of the first's. Its process must be down.
    Clone(Node, Node),
    /// Somebody looks after a node that does not start, or not with all its disks: gives a slave an empty one, and puts back the master's directory.
    Mend(Node),
    /// What follows waits until every chunk has all its replicas, see [`crate::audit::Audit::incomplete`].
    Settle,
    /// From now on it is known who holds which chunk, and then it must be the same again.
    NoteMembers,
    SameMembers,
    /// The operator tells the master what to do with the slave.
    Intend(Node, Intention),
    /// The same of its last disk, to drain that one or to use it again.
    IntendDisk(Node, Intention),
    /// What follows waits until the slave is said to be empty; then nothing may be there that anybody needs.
    Emptied(Node),
    /// What follows waits until the master has moved a replica to level disks; those have only so many bytes left meanwhile.
    Balance(u64),
}

impl Event {
    /// Its kind, if it is a fault and not the end of one.
    pub fn fault(&self) -> Option<&'static str> {
        Some(match self {
            Self::Part(..) | Self::Cut(_) => "cut off",
            Self::PartOneWay(..) => "cut off one way",
            Self::Split(..) => "split in two",
            Self::PowerLoss(_) => "power lost",
            Self::Kill(_) => "killed",
            Self::Lose(1..) => "datagrams lost",
            Self::Weather(weather) if *weather != Weather::default() => "datagrams lost, doubled, altered",
            Self::Delay(ms) if *ms > Self::USUAL_DELAY => "datagrams late",
            Self::Hold(_) => "held",
            Self::Sleep(_) => "asleep",
            Self::Step(..) => "clock set",
            Self::Rot(..) => "rot",
            Self::Fill(_) => "disks full",
            Self::Fail(_, faults) if *faults != Faults::default() => "disk errors",
            Self::Slow(_, 1..) => "disk slow",
            Self::Damage(_, damage) => damage.name(),
            Self::Replace(_) => "disk replaced",
            Self::Clone(..) => "disk cloned",
            Self::Intend(_, Intention::Drain) => "drained",
            Self::IntendDisk(_, Intention::Drain) => "disk drained",
            Self::Intend(_, Intention::Decommission) => "decommissioned",
            _ => return None,
        })
    }

    pub const USUAL_DELAY: u64 = 2;
}

impl Parts {
    pub(crate) fn happen(&mut self, sim: &mut Sim<'_>, event: &Event) {
        self.disturbed_at = sim.elapsed();
        if let Some(kind) = event.fault() {
            *self.faults.entry(kind).or_default() += 1;
        }
        match event {
            Event::Part(one, other) => {
                sim.partition(one.to_string(), other.to_string());
                self.tell_parted(*one, *other, true);
            }
            Event::PartOneWay(from, to) => {
                sim.partition_oneway(from.to_string(), to.to_string());
                self.tell_parted(*from, *to, true);
            }
            Event::Join(one, other) => {
                sim.repair(one.to_string(), other.to_string());
                self.tell_parted(*one, *other, false);
            }
            Event::Cut(node) => {
                for other in self.others(*node) {
                    sim.partition(node.to_string(), other.to_string());
                }
                self.tell_cut(*node, true);
            }
            Event::Heal(node) => {
                for other in self.others(*node) {
                    sim.repair(node.to_string(), other.to_string());
                }
                self.tell_cut(*node, false);
            }
            Event::Split(ones, others) => {
                self.pairs(ones, others, |one, other| sim.partition(one, other));
                self.without_master(ones, others).iter().for_each(|node| self.tell_cut(*node, true));
            }
            Event::Unite(ones, others) => {
                self.pairs(ones, others, |one, other| sim.repair(one, other));
                self.without_master(ones, others).iter().for_each(|node| self.tell_cut(*node, false));
            }
            Event::PowerLoss(nodes) => self.lose_power(sim, nodes),
            Event::Kill(nodes) => nodes.iter().for_each(|node| self.kill(sim, *node)),
            Event::Start(nodes) => nodes.iter().for_each(|node| self.start(sim, *node)),
            Event::Hold(node) => self.hold(sim, *node),
            Event::LetGo(node) => {
                self.others(*node).iter().for_each(|other| sim.release(node.to_string(), other.to_string()));
                self.tell_cut(*node, false);
            }
            Event::Sleep(node) => self.sleep(sim, *node),
            Event::Wake(node) => self.wake(*node),
            Event::Step(node, ms) => self.clocks[node].step(ms * 1_000_000),
            Event::Lose(thousandths) => sim.set_fail_rate(f64::from(*thousandths) / 1000.0),
            Event::Weather(weather) => self.network.set(*weather),
            Event::Delay(ms) => sim.set_max_message_latency(Duration::from_millis(*ms)),
            Event::Rot(node, flips) => self.rot(*node, *flips),
            Event::Fill(spare_bytes) => self.fill(*spare_bytes),
            Event::Empty => self.slave_disks().for_each(|disk| disk.set_capacity(DISK_BYTES)),
            Event::Fail(node, faults) => {
                self.may_refuse.insert(*node);
                self.trouble(*node, *faults == Faults::default(), |disk| disk.set_faults(*faults));
            }
            Event::Slow(node, ms) => {
                self.trouble(*node, *ms == 0, |disk| disk.set_sync_takes(Duration::from_millis(*ms)));
            }
            Event::Remember(node) => {
                for bay in self.bays(*node) {
                    self.remembered.insert(bay, self.disks[&bay].copy());
                }
            }
            Event::Intend(node, intention) => {
                self.shared.with(|notes| notes.desk.order(node_id(*node), None, *intention));
            }
            Event::IntendDisk(node, intention) => self.intend_disk(*node, *intention),
            Event::NoteMembers => self.note_members(),
            Event::Damage(node, damage) => {
                self.wounded |= *node != Node::Master;
                self.damage(*node, *damage);
            }
            Event::Undamage => self.undamage(),
            Event::Replace(node) => self.disks_of(*node).for_each(SimulatedDisk::replace),
            Event::Clone(from, to) => {
                self.disks_of(*to).zip(self.disks_of(*from)).for_each(|(to, from)| to.set_back(from));
                self.may_refuse.insert(*to);
            }
            Event::Mend(node) => self.mend(sim, *node),
            // The drive waits.
            Event::Settle | Event::SameMembers | Event::Emptied(_) | Event::Balance(_) => {}
        }
    }

    fn sleep(&self, sim: &Sim<'_>, node: Node) {
        self.hold(sim, node);
        if let Node::Client(client) = node {
            self.shared.with(|notes| notes.asleep.insert(client));
        }
        self.clocks[&node].sleep(sim.elapsed());
    }

    fn wake(&self, node: Node) {
        self.clocks[&node].wake();
        if let Node::Client(client) = node {
            self.shared.with(|notes| notes.asleep.remove(&client));
        }
    }

    fn rot(&mut self, node: Node, flips: u16) {
        if let Some(bay) = self.some_bay(node) {
            crate::damage::flip_anywhere(&self.disks[&bay], flips, &mut self.dice);
            self.may_refuse.insert(node);
            self.wounded |= node != Node::Master;
        }
    }

    pub(crate) fn fill(&self, spare_bytes: u64) {
        for disk in self.slave_disks() {
            let space = disk.space().unwrap_or_else(|error| panic!("a simulated disk: {error}"));
            disk.set_capacity(space.total_bytes - space.free_bytes + spare_bytes);
        }
    }

    fn note_members(&mut self) {
        self.noted_members = self.audit().placed().unwrap_or_else(|why| panic!("a master that runs: {why}"));
    }

    pub(crate) fn kill(&self, sim: &mut Sim<'_>, node: Node) {
        self.end(sim, node);
        self.tell_dead(node);
    }

    /// Its disks first: its tasks are dropped in an order that depends on what ran before in this process, and what they do then
    /// (give up a place in a queue, so that the next one is served) a process that is dead does not do.
    fn end(&self, sim: &mut Sim<'_>, node: Node) {
        self.disks_of(node).for_each(SimulatedDisk::kill);
        sim.crash(node.to_string());
    }

    pub(crate) fn start(&self, sim: &mut Sim<'_>, node: Node) {
        self.shared.with(|notes| notes.refused.remove(&node));
        sim.bounce(node.to_string());
        self.tell_cut(node, false);
    }

    fn lose_power(&mut self, sim: &mut Sim<'_>, nodes: &[Node]) {
        let written = nodes.contains(&Node::Master).then(|| self.disks[&MASTERS].copy());
        for node in nodes {
            self.end(sim, *node);
            for bay in self.bays(*node) {
                self.disks[&bay].crash(&mut self.dice);
            }
            self.tell_dead(*node);
        }
        if let Some(written) = written
            && let Err(why) = self.audit().is_prefix_of(&written)
        {
            self.shared.problem(why);
        }
        // Held means that every member has it: it takes the power of all slaves, or of the master that
        // knows the length, to lose what was not synced.
        let slaves = nodes.iter().filter(|node| matches!(node, Node::Slave(_))).count();
        if slaves == usize::from(self.plan.slaves) || nodes.contains(&Node::Master) {
            self.shared.with(|notes| notes.oracle.power_fails());
        }
    }

    fn hold(&self, sim: &Sim<'_>, node: Node) {
        self.others(node).iter().for_each(|other| sim.hold(node.to_string(), other.to_string()));
        self.tell_cut(node, true);
    }

    fn pairs(&self, ones: &[Node], others: &[Node], act: impl Fn(String, String)) {
        for one in ones {
            others.iter().for_each(|other| act(one.to_string(), other.to_string()));
        }
    }

    /// Those that cannot renew their leases.
    fn without_master<'a>(&self, ones: &'a [Node], others: &'a [Node]) -> &'a [Node] {
        if ones.contains(&Node::Master) { others } else { ones }
    }

    pub(crate) fn slave_disks(&self) -> impl Iterator<Item = &SimulatedDisk> {
        self.disks.iter().filter(|((node, _), _)| matches!(node, Node::Slave(_))).map(|(_, disk)| disk)
    }

    /// One disk gets into trouble, all are out of it.
    fn trouble(&mut self, node: Node, is_over: bool, set: impl Fn(&SimulatedDisk)) {
        if is_over {
            self.disks_of(node).for_each(set);
        } else if let Some(bay) = self.some_bay(node) {
            set(&self.disks[&bay]);
        }
    }

    /// Nothing, of a disk that is not made ready yet.
    fn intend_disk(&self, node: Node, intention: Intention) {
        let last = self.disks_of(node).last().map(SimulatedDisk::copy);
        let options = godrive_slave::store::Options::new(self.cluster);
        if let Some(disk) = last.and_then(|disk| godrive_slave::store::disk_id(&disk, options)) {
            self.shared.with(|notes| notes.desk.order(node_id(node), Some(disk), intention));
        }
    }

    fn tell_dead(&self, node: Node) {
        if let Node::Client(number) = node {
            self.shared.with(|notes| {
                notes.oracle.dies(number);
                notes.histories.turn_all();
            });
        }
    }

    /// A client without the master cannot renew its lease.
    fn tell_parted(&self, one: Node, other: Node, parted: bool) {
        match (one, other) {
            (Node::Master, client @ Node::Client(_)) | (client @ Node::Client(_), Node::Master) => {
                self.tell_cut(client, parted);
            }
            _ => {}
        }
    }

    fn tell_cut(&self, node: Node, cut: bool) {
        if let Node::Client(number) = node {
            self.shared.with(|notes| notes.oracle.cut(number, cut));
        }
    }

    fn others(&self, node: Node) -> Vec<Node> {
        self.nodes().into_iter().filter(|other| *other != node).collect()
    }
}
