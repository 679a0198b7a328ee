//! What the fake slaves store, in one place, so that the fake master can look and a test can break things.

use bytes::Bytes;
use godrive_proto::data::{Applied, Contents, DeltaRequest, Fill, Proof};
use godrive_proto::limits::{GROUP_LEAVES, LEAF_BYTES};
use godrive_proto::{ChunkId, Code, Epoch, Fault, NodeId, OpId, Version, sums};
use std::collections::{BTreeMap, BTreeSet};

pub const CHUNK_BYTES: u32 = 1 << 20;
const LEAF: usize = LEAF_BYTES as usize;

#[derive(Clone, Debug, Default)]
pub struct Replica {
    pub epoch: Epoch,
    pub version: Version,
    pub leaves: BTreeMap<u32, Vec<u8>>,
    pub last_op: Option<OpId>,
    pub stable: bool,
}

impl Replica {
    pub fn leaf_sums(&self, chunk: ChunkId) -> Vec<u64> {
        (0..sums::leaves_in(CHUNK_BYTES))
            .map(|leaf| self.leaves.get(&leaf).map_or(sums::HOLE, |bytes| sums::piece(chunk, leaf, bytes)))
            .collect()
    }

    pub fn groups(&self, chunk: ChunkId) -> Vec<u64> {
        self.leaf_sums(chunk).chunks(GROUP_LEAVES as usize).map(sums::group).collect()
    }

    pub fn contents(&self, chunk: ChunkId) -> Contents {
        Contents { version: self.version, digest: sums::digest(chunk, &self.groups(chunk)) }
    }

    fn write(&mut self, offset: u32, bytes: &[u8]) {
        for (leaf, from, to) in sums::pieces(offset, bytes.len() as u32) {
            let within = ((offset as usize) + from) % LEAF;
            let old = self.leaves.entry(leaf).or_insert_with(|| vec![0; LEAF]);
            old[within..within + to - from].copy_from_slice(&bytes[from..to]);
        }
    }

    fn punch(&mut self, offset: u32, len: u32) {
        for (leaf, from, to) in sums::pieces(offset, len) {
            if to - from == LEAF {
                self.leaves.remove(&leaf);
            } else if let Some(old) = self.leaves.get_mut(&leaf) {
                let within = ((offset as usize) + from) % LEAF;
                old[within..within + to - from].fill(0);
            }
        }
    }
}

#[derive(Default)]
pub struct Replicas {
    pub all: BTreeMap<(NodeId, ChunkId), Replica>,
    /// Nodes that take part in no chain.
    pub dead: BTreeSet<NodeId>,
    /// Nodes that do not reach each other, the smaller first.
    pub cut: BTreeSet<(NodeId, NodeId)>,
    /// To these the next delta comes damaged.
    pub garbled: BTreeSet<NodeId>,
    /// How often a delta was really applied at any member.
    pub applications: u64,
}

impl Replicas {
    /// As the first member: applies along the chain, and compares.
    pub fn apply(&mut self, first: NodeId, request: &DeltaRequest, payload: &[u8]) -> Result<Applied, Fault> {
        verify_sums(request, payload)?;
        let members = std::iter::once(first).chain(request.chain.iter().map(|member| member.node));
        let (mut contents, mut last) = (None, first);
        for node in members {
            if self.dead.contains(&node) || self.cut.contains(&(last.min(node), last.max(node))) {
                return Err(Fault::at(Code::MemberFailed, node, "dead"));
            }
            last = node;
            if self.garbled.remove(&node) {
                return Err(Fault::at(Code::Corrupt, node, "damaged on the way"));
            }
            let applied = self.apply_one(node, request, payload)?;
            if contents.is_some_and(|contents| contents != applied) {
                return Err(Fault::at(Code::WrongVersion, node, "diverged"));
            }
            contents = Some(applied);
        }
        let contents = contents.ok_or(Code::Internal)?;
        let used_bytes = self.all[&(first, request.chunk)].leaves.len() as u32 * LEAF_BYTES;
        Ok(Applied { contents, stable: request.sync, used_bytes })
    }

    fn apply_one(&mut self, node: NodeId, request: &DeltaRequest, payload: &[u8]) -> Result<Contents, Fault> {
        let chunk = request.chunk;
        let replica = match self.all.entry((node, chunk)) {
            std::collections::btree_map::Entry::Vacant(vacant) if request.base == Version(0) => {
                vacant.insert(Replica { epoch: request.epoch, ..Replica::default() })
            }
            std::collections::btree_map::Entry::Vacant(_) => return Err(Fault::at(Code::NoChunk, node, "")),
            std::collections::btree_map::Entry::Occupied(occupied) => occupied.into_mut(),
        };
        if replica.epoch != request.epoch {
            return Err(Fault::at(Code::WrongEpoch, node, format!("{} is current", replica.epoch)));
        }
        if replica.last_op == Some(request.op) && replica.version == request.base.next() {
            return Ok(replica.contents(chunk));
        }
        if replica.version != request.base {
            return Err(Fault::at(Code::WrongVersion, node, format!("{} is here", replica.version)));
        }
        let mut at = 0;
        for extent in &request.extents {
            match extent.fill {
                Fill::Bytes => {
                    replica.write(extent.offset, &payload[at..at + extent.len as usize]);
                    at += extent.len as usize;
                }
                Fill::Hole => replica.punch(extent.offset, extent.len),
            }
        }
        replica.version = replica.version.next();
        replica.last_op = Some(request.op);
        replica.stable = request.sync;
        self.applications += 1;
        Ok(replica.contents(chunk))
    }

    pub fn prove(
        &self,
        node: NodeId,
        request: &godrive_proto::data::ReadRequest,
    ) -> Result<(Proof, Vec<Bytes>), Fault> {
        let replica = self.all.get(&(node, request.chunk)).ok_or(Code::NoChunk)?;
        if replica.epoch != request.epoch {
            return Err(Code::WrongEpoch.into());
        }
        if replica.version != request.version {
            return Err(Code::WrongVersion.into());
        }
        let sums = replica.leaf_sums(request.chunk);
        let from = (request.first_leaf / GROUP_LEAVES * GROUP_LEAVES) as usize;
        let end = request.first_leaf + request.leaves;
        let to = (end.div_ceil(GROUP_LEAVES) * GROUP_LEAVES) as usize;
        let proof = Proof { groups: replica.groups(request.chunk), leaves: sums[from..to].to_vec() };
        let leaves = replica.leaves.range(request.first_leaf..end);
        Ok((proof, leaves.map(|(_, bytes)| Bytes::copy_from_slice(bytes)).collect()))
    }
}

fn verify_sums(request: &DeltaRequest, payload: &[u8]) -> Result<(), Fault> {
    let mut sums_left = request.sums.iter();
    let mut at = 0;
    for extent in request.extents.iter().filter(|extent| extent.fill == Fill::Bytes) {
        let bytes = payload.get(at..at + extent.len as usize).ok_or(Code::Malformed)?;
        at += bytes.len();
        for (leaf, from, to) in sums::pieces(extent.offset, extent.len) {
            if sums_left.next() != Some(&sums::piece(request.chunk, leaf, &bytes[from..to])) {
                return Err(Code::Corrupt.into());
            }
        }
    }
    let complete = at == payload.len() && sums_left.next().is_none();
    complete.then_some(()).ok_or_else(|| Code::Malformed.into())
}
