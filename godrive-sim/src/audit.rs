//! The state in which a run must end, or which the next fault needs: what the master's record says of every chunk, and
//! nothing else, is what the slaves' disks hold. It looks at copies of the disks, opened as after a kill.
//!
//! At rest each chunk has as many members as it should, no more, and nobody else has a replica of it; what was deleted is
//! reclaimed. What remains by design is allowed for: replicas put aside and unfinished copies (both for a week), unlinked inodes that a session has open or that lie in the trash, and
//! what the session of a client that died has open. Where a client still works, members may be ahead of the record, all of
//! them alike.

use crate::cluster::{Bay, MASTERS, Node, node_id};
use godrive_disk::{Disk, SimulatedDisk};
use godrive_master::core::state::State;
use godrive_master::core::state::values::Chunk;
use godrive_master::log::{Log, LogError, LogOptions};
use godrive_master::store::{RecoveryOptions, recover};
use godrive_proto::data::Member;
use godrive_proto::lease::LayoutRange;
use godrive_proto::meta::Kind;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, ClusterId, DiskId, Fault, Ino, NodeId, ROOT};
use godrive_slave::core::replica::Key;
use godrive_slave::store::table::Row;
use godrive_slave::store::{DiskStore, NewDisk, Options, Secret, fsck};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// More findings are only counted.
const SHOWN: usize = 12;

pub struct Audit<'a> {
    pub disks: &'a BTreeMap<Bay, SimulatedDisk>,
    pub cluster: ClusterId,
    pub replicas: usize,
}

/// A file or directory by its path: kind and length.
pub type Tree = BTreeMap<String, (Kind, u64)>;

/// What a slave's disk holds.
struct Held {
    node: NodeId,
    disk: DiskId,
    rows: BTreeMap<ChunkId, Row>,
    bad: BTreeSet<(Key, u32)>,
}

impl Audit<'_> {
    /// Every chunk has all its replicas, each on another node and each with the same contents, of which every leaf verifies:
    /// whatever happens to all but one of the nodes now, nothing is lost. What is not so, if anything.
    pub fn incomplete(&self) -> Vec<String> {
        self.look(false)
    }

    /// Nobody works any more: see the module. What is not so, if anything.
    pub fn wrong_at_rest(&self) -> Vec<String> {
        self.look(true)
    }

    /// All that the master's names lead to.
    pub fn tree(&self) -> Result<Tree, Fault> {
        let state = self.state().map_err(|text| Fault::new(godrive_proto::Code::Disk, text))?;
        Ok(walk(&state)?.0)
    }

    /// The members of every chunk.
    pub fn placed(&self) -> Result<BTreeMap<ChunkId, BTreeSet<NodeId>>, String> {
        let chunks = self.state()?.chunks(ChunkId(0), usize::MAX).map_err(|fault| fault.to_string())?;
        let members = |chunk: Chunk| chunk.members.iter().map(|member| member.node).collect();
        Ok(chunks.into_iter().map(|(id, chunk)| (id, members(chunk))).collect())
    }

    /// What the slave's disks hold, but for what is put aside and copies that did not end.
    pub fn held_at(&self, slave: Node) -> Vec<String> {
        let mut all = Vec::new();
        for (_, disk) in self.disks.iter().filter(|((node, _), _)| *node == slave) {
            match self.held(slave, disk) {
                Ok(held) => {
                    let rows = held.rows.iter().filter(|(_, row)| !row.partial);
                    all.extend(rows.map(|(id, row)| {
                        format!("chunk {id} (epoch {}, version {})", row.epoch, row.version)
                    }));
                }
                Err(error) => all.push(format!("a disk of {slave} cannot be opened: {error}")),
            }
        }
        all
    }

    /// The last record in the master's log and a digest of all that the state says of names and chunks, or why it
    /// cannot be opened.
    pub fn master(&self) -> Result<(u64, u64), String> {
        use std::hash::{Hash, Hasher};
        let state = self.state()?;
        let text = |fault: Fault| fault.to_string();
        let mut all = std::hash::DefaultHasher::new();
        let (tree, inodes) = walk(&state).map_err(text)?;
        format!("{tree:?}").hash(&mut all);
        for ino in inodes.keys() {
            format!("{:?}", state.inode(*ino).map_err(text)?).hash(&mut all);
        }
        format!("{:?}", state.chunks(ChunkId(0), usize::MAX).map_err(text)?).hash(&mut all);
        format!("{:?}", state.deleted(ChunkId(0), usize::MAX).map_err(text)?).hash(&mut all);
        format!("{:?}", state.sessions().map_err(text)?).hash(&mut all);
        Ok((state.applied().0, all.finish()))
    }

    /// What a loss of power left of the master's log, the namespace with it, is a prefix of what was written. A log that was damaged
    /// before says nothing.
    pub fn is_prefix_of(&self, written: &SimulatedDisk) -> Result<(), String> {
        let records = |disk: &SimulatedDisk| {
            let log = Log::open(Arc::new(disk.copy()), "log", self.cluster, LogOptions::default())?;
            let entries = log.entries(log.first()).map(|entry| entry.map(|entry| (entry.index, entry)));
            entries.collect::<Result<BTreeMap<_, _>, LogError>>()
        };
        let Ok(whole) = records(written) else { return Ok(()) };
        let left = records(&self.disks[&MASTERS])
            .map_err(|error| format!("the master's log after a loss of power: {error}"))?;
        let first = whole.keys().next().copied().unwrap_or_default();
        // Segments that had been removed may be back.
        match left.range(first..).find(|(index, entry)| whole.get(index) != Some(entry)) {
            Some((index, entry)) => Err(format!(
                "after a loss of power record {index} is {entry:?}, and was {:?}",
                whole.get(index)
            )),
            None => Ok(()),
        }
    }

    fn state(&self) -> Result<State, String> {
        let disk: Arc<dyn Disk> = Arc::new(self.disks[&MASTERS].copy());
        match recover(&disk, self.cluster, RecoveryOptions::default()) {
            Ok(recovered) => Ok(recovered.state),
            Err(error) => Err(format!("the master's state cannot be opened: {error}")),
        }
    }

    fn look(&self, at_rest: bool) -> Vec<String> {
        let state = match self.state() {
            Ok(state) => state,
            Err(text) => return vec![text],
        };
        let mut findings = Vec::new();
        let mut slaves = Vec::new();
        for ((node, at), disk) in self.disks.iter().filter(|((node, _), _)| matches!(node, Node::Slave(_))) {
            match self.held(*node, disk) {
                Ok(held) => slaves.push(held),
                Err(error) => findings.push(format!("disk {at} of {node} cannot be opened: {error}")),
            }
        }
        if let Err(fault) = self.compare(&state, &slaves, at_rest, &mut findings) {
            findings.push(format!("the master's state: {fault}"));
        }
        let more = findings.len().saturating_sub(SHOWN);
        findings.truncate(SHOWN);
        if more > 0 {
            findings.push(format!("and {more} more"));
        }
        findings
    }

    fn held(&self, node: Node, disk: &SimulatedDisk) -> std::io::Result<Held> {
        let options = Options::new(self.cluster);
        let report = fsck::check(Arc::new(disk.copy()), options, Timestamp(0))?;
        let store = DiskStore::open(
            Arc::new(disk.copy()),
            options,
            NewDisk { id: DiskId(0), secret: Secret(0) },
            Timestamp(0),
        )?;
        let rows =
            store.page(None, usize::MAX >> 1).map_err(|fault| std::io::Error::other(fault.to_string()))?;
        let live = rows.into_iter().filter(|(key, _)| key.aside == 0);
        Ok(Held {
            node: node_id(node),
            disk: store.id(),
            rows: live.map(|(key, row)| (key.chunk, row)).collect(),
            bad: report.bad.into_iter().collect(),
        })
    }

    fn compare(
        &self,
        state: &State,
        slaves: &[Held],
        at_rest: bool,
        findings: &mut Vec<String>,
    ) -> Result<(), Fault> {
        let chunks: BTreeMap<ChunkId, Chunk> = state.chunks(ChunkId(0), usize::MAX)?.into_iter().collect();
        for (id, chunk) in &chunks {
            // Of a client that died, while nobody wants the file.
            let left_open =
                chunk.open_by.is_some_and(|of| state.session(of).is_ok_and(|known| known.is_some()));
            self.members(*id, chunk, slaves, at_rest && !left_open, findings);
        }
        if !at_rest {
            return Ok(());
        }
        names(state, &chunks, findings)?;
        for (id, deleted) in state.deleted(ChunkId(0), usize::MAX)? {
            findings.push(format!("chunk {id} was deleted and is not reclaimed from {:?}", deleted.members));
        }
        for held in slaves {
            for (id, row) in held.rows.iter().filter(|(_, row)| !row.partial) {
                let member = chunks.get(id).is_some_and(|chunk| {
                    chunk.members.iter().any(|m| (m.node, m.disk) == (held.node, held.disk))
                });
                if !member {
                    findings.push(format!(
                        "node {} holds chunk {id} (epoch {}, version {}), which is not its",
                        held.node, row.epoch, row.version
                    ));
                }
            }
        }
        Ok(())
    }

    fn members(
        &self,
        id: ChunkId,
        chunk: &Chunk,
        slaves: &[Held],
        at_rest: bool,
        findings: &mut Vec<String>,
    ) {
        let nodes: BTreeSet<NodeId> = chunk.members.iter().map(|member| member.node).collect();
        // While somebody works, one that is too many may not have left yet.
        let right = if at_rest { nodes.len() == self.replicas } else { nodes.len() >= self.replicas };
        if !right || nodes.len() != chunk.members.len() {
            findings.push(format!("chunk {id} has the members {:?}, not {}", chunk.members, self.replicas));
        }
        if chunk.quarantined || chunk.pending.is_some() || chunk.unsettled {
            findings.push(format!("chunk {id} is not settled: {chunk:?}"));
        }
        if at_rest && chunk.open_by.is_some() {
            findings.push(format!("chunk {id} is still open: {:?}", chunk.open_by));
        }
        let mut common = None;
        for member in &chunk.members {
            let held = slaves.iter().find(|held| (held.node, held.disk) == (member.node, member.disk));
            let Some((held, row)) = held.and_then(|held| Some((held, held.rows.get(&id)?))) else {
                if chunk.held.version.0 > 0 {
                    let Member { node, disk, .. } = member;
                    findings.push(format!("disk {disk} of node {node} does not hold chunk {id}"));
                }
                continue;
            };
            let contents = row.contents();
            let right = match at_rest {
                true => contents == chunk.held,
                false => {
                    contents.version >= chunk.held.version && *common.get_or_insert(contents) == contents
                }
            };
            if !right || row.partial || row.epoch != chunk.epoch {
                findings.push(format!(
                    "node {} holds {contents:?} of epoch {} of chunk {id} (partial: {}), the record is {:?} of {}",
                    held.node, row.epoch, row.partial, chunk.held, chunk.epoch
                ));
            }
            let bad = held.bad.iter().filter(|(key, _)| *key == Key::live(id)).count();
            if bad > 0 {
                findings.push(format!("{bad} leaves of chunk {id} at node {} do not verify", held.node));
            }
        }
    }
}

/// Every inode has its names, every chunk its file, and the other way round.
fn names(state: &State, chunks: &BTreeMap<ChunkId, Chunk>, findings: &mut Vec<String>) -> Result<(), Fault> {
    let (_, inodes) = walk(state)?;
    let mut orphans = BTreeSet::new();
    for (session, _) in state.sessions()? {
        orphans.extend(state.orphans_of(session)?);
    }
    // Those in the trash have no name either, and may be open as well.
    orphans.extend(state.trashed(None, usize::MAX)?.into_iter().map(|(ino, ..)| ino));
    let counted = state.counts().inodes;
    if counted != (inodes.len() + orphans.len()) as u64 {
        findings.push(format!(
            "the master counts {counted} inodes; {} have names and {} are kept open or lie in the trash",
            inodes.len(),
            orphans.len()
        ));
    }
    let mut placed = BTreeSet::new();
    for (ino, names) in
        inodes.iter().map(|(ino, names)| (*ino, *names)).chain(orphans.iter().map(|ino| (*ino, 0)))
    {
        let inode = state.inode(ino)?;
        if inode.kind != Kind::Directory && u64::from(inode.nlink) != names {
            findings.push(format!("inode {ino} counts {} names and has {names}", inode.nlink));
        }
        for layout in state.layout(ino, LayoutRange { first: 0, count: u32::MAX })? {
            placed.insert(layout.chunk.id);
            if chunks.get(&layout.chunk.id).is_none_or(|chunk| chunk.ino != ino) {
                findings.push(format!("inode {ino} has chunk {}, which is not its", layout.chunk.id));
            }
        }
    }
    for (id, chunk) in chunks.iter().filter(|(id, _)| !placed.contains(id)) {
        findings.push(format!("chunk {id} was made for inode {} and belongs to no file", chunk.ino));
    }
    Ok(())
}

/// All paths, and how many names each inode has.
fn walk(state: &State) -> Result<(Tree, BTreeMap<Ino, u64>), Fault> {
    let mut tree = Tree::new();
    let mut inodes = BTreeMap::from([(ROOT, 1)]);
    let mut left = vec![(ROOT, String::new())];
    while let Some((directory, path)) = left.pop() {
        for (_, entry) in state.read_directory(directory, 0, usize::MAX >> 1)?.entries {
            let path = format!("{path}/{}", String::from_utf8_lossy(&entry.name.0));
            let inode = state.inode(entry.ino)?;
            *inodes.entry(entry.ino).or_default() += 1;
            let size = if inode.kind == Kind::File { inode.size } else { 0 };
            tree.insert(path.clone(), (inode.kind, size));
            if inode.kind == Kind::Directory {
                left.push((entry.ino, path));
            }
        }
    }
    Ok((tree, inodes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::data::{Contents, LayoutTag, Member};
    use godrive_proto::{Epoch, LogIndex};

    fn never_written(members: u128) -> Chunk {
        let address = ([127, 0, 0, 1], 1).into();
        Chunk {
            ino: ROOT,
            index: 0,
            references: 1,
            chunk_bytes: 1 << 16,
            layout: LayoutTag::Replicated,
            birth: 1,
            epoch: Epoch(1),
            pending: None,
            members: (0..members).map(|n| Member { node: NodeId(n), disk: DiskId(n), address }).collect(),
            held: Contents::default(),
            held_at: LogIndex(0),
            stable: Contents::default(),
            open_by: None,
            unsettled: false,
            used_bytes: 0,
            quarantined: false,
        }
    }

    #[test]
    fn at_rest_a_chunk_has_exactly_its_replicas() {
        let audit = Audit { disks: &BTreeMap::new(), cluster: ClusterId(1), replicas: 3 };
        let found = |members, at_rest| {
            let mut findings = Vec::new();
            audit.members(ChunkId(1), &never_written(members), &[], at_rest, &mut findings);
            findings.len()
        };
        assert_eq!([2, 3, 4].map(|members| found(members, true)), [1, 0, 1]);
        assert_eq!([2, 3, 4].map(|members| found(members, false)), [1, 0, 0]);
    }
}
