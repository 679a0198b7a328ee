//! What happens to a simulated cluster, and how it is done.

use crate::cluster::{DISK_BYTES, Node, Parts};
use godrive_disk::{Disk, SimulatedDisk};
use rand::Rng;
use rand::rngs::SmallRng;
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
    /// The machines lose power at one moment: unsynced writes are lost, torn or kept as chance has it.
    PowerLoss(Vec<Node>),
    /// The processes are killed; what they wrote is there.
    Kill(Vec<Node>),
    Start(Vec<Node>),
    /// Datagrams are lost at this rate, in thousandths.
    Lose(u16),
    /// What is sent from or to the node arrives only when it is let go.
    Hold(Node),
    LetGo(Node),
    /// The client's machine falls asleep: its clock stands, nobody there asks for anything, its network is held.
    Sleep(u16),
    /// The clock jumps to the present and programs go on; the network is there when the node is let go.
    Wake(u16),
    /// So many bits flip on the slave's disk.
    Rot(Node, u16),
    /// The slaves' disks have room for so much more and nothing beyond.
    Fill(u64),
    /// They have room again.
    Empty,
}

impl Parts {
    pub(crate) fn happen(&mut self, sim: &mut Sim<'_>, event: &Event) {
        match event {
            Event::Part(one, other) => sim.partition(one.to_string(), other.to_string()),
            Event::PartOneWay(from, to) => sim.partition_oneway(from.to_string(), to.to_string()),
            Event::Join(one, other) => sim.repair(one.to_string(), other.to_string()),
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
            Event::PowerLoss(nodes) => {
                for node in nodes {
                    sim.crash(node.to_string());
                    if let Some(disk) = self.disks.get(node) {
                        disk.crash(&mut self.dice);
                    }
                    self.tell_dead(*node);
                }
                // Held means that every member has it: it takes the power of all slaves, or of the master that
                // knows the length, to lose what was not synced.
                let slaves = nodes.iter().filter(|node| matches!(node, Node::Slave(_))).count();
                if slaves == usize::from(self.plan.slaves) || nodes.contains(&Node::Master) {
                    self.shared.with(|notes| notes.oracle.power_fails());
                }
            }
            Event::Kill(nodes) => {
                for node in nodes {
                    sim.crash(node.to_string());
                    if let Some(disk) = self.disks.get(node) {
                        disk.kill();
                    }
                    self.tell_dead(*node);
                }
            }
            Event::Start(nodes) => {
                for node in nodes {
                    sim.bounce(node.to_string());
                    self.tell_cut(*node, false);
                }
            }
            Event::Hold(node) => {
                self.others(*node).iter().for_each(|other| sim.hold(node.to_string(), other.to_string()));
                self.tell_cut(*node, true);
            }
            Event::LetGo(node) => {
                self.others(*node).iter().for_each(|other| sim.release(node.to_string(), other.to_string()));
                self.tell_cut(*node, false);
            }
            Event::Sleep(client) => {
                self.happen(sim, &Event::Hold(Node::Client(*client)));
                self.shared.with(|notes| notes.asleep.insert(*client));
                self.clocks[&Node::Client(*client)].sleep(sim.elapsed());
            }
            Event::Wake(client) => {
                self.clocks[&Node::Client(*client)].wake();
                self.shared.with(|notes| notes.asleep.remove(client));
            }
            Event::Rot(node, flips) => {
                if let Some(disk) = self.disks.get(node) {
                    rot(disk, *flips, &mut self.dice);
                }
            }
            Event::Fill(spare_bytes) => {
                for disk in self.slave_disks() {
                    let space = disk.space().unwrap_or_else(|error| panic!("a simulated disk: {error}"));
                    disk.set_capacity(space.total_bytes - space.free_bytes + spare_bytes);
                }
            }
            Event::Empty => self.slave_disks().for_each(|disk| disk.set_capacity(DISK_BYTES)),
            Event::Lose(thousandths) => sim.set_fail_rate(f64::from(*thousandths) / 1000.0),
        }
    }

    fn slave_disks(&self) -> impl Iterator<Item = &SimulatedDisk> {
        self.disks.iter().filter(|(node, _)| matches!(node, Node::Slave(_))).map(|(_, disk)| disk)
    }

    fn tell_dead(&self, node: Node) {
        if let Node::Client(number) = node {
            self.shared.with(|notes| {
                notes.oracle.dies(number);
                notes.histories.turn_all();
            });
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

fn rot(disk: &SimulatedDisk, flips: u16, dice: &mut SmallRng) {
    let mut files = Vec::new();
    let mut directories = vec![String::new()];
    while let Some(directory) = directories.pop() {
        for name in disk.list(&directory).unwrap_or_default() {
            let path = if directory.is_empty() { name } else { format!("{directory}/{name}") };
            match disk.open(&path, false).and_then(|file| file.len()) {
                Ok(0) => {}
                Ok(len) => files.push((path, len)),
                Err(_) => directories.push(path),
            }
        }
    }
    for _ in 0..flips {
        if files.is_empty() {
            return;
        }
        let (path, len) = &files[dice.random_range(0..files.len())];
        disk.flip(path, dice.random_range(0..*len));
    }
}
