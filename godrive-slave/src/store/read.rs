//! Reading: every leaf is verified against its sum before it leaves. A replica is held shared while its leaves are
//! read, so nothing that is read can be superseded, and what is not superseded is never punched.

use super::DiskStore;
use crate::core::leaves::Location;
use crate::core::record::BLOCK;
use crate::core::replica::{Key, Life, Replica, no_chunk};
use bytes::Bytes;
use godrive_proto::data::{FetchRequest, Proof, ReadRequest, Sums};
use godrive_proto::limits::{GROUP_LEAVES, LEAF_BYTES, MAX_READ_BYTES};
use godrive_proto::{ChunkId, Code, Fault, sums};
use std::sync::atomic::Ordering;

const MAX_LEAVES: u32 = MAX_READ_BYTES as u32 / LEAF_BYTES;

/// A leaf that is not a hole: index, sum, place.
type Leaf = (u32, u64, Location);

/// What the scrub found in a batch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verified {
    pub leaves: u32,
    pub read: u32,
    pub bad: Vec<u32>,
    pub epoch: godrive_proto::Epoch,
}

impl DiskStore {
    pub fn read(&self, request: &ReadRequest) -> Result<(Proof, Vec<Bytes>), Fault> {
        let shared = self.find(Key::live(request.chunk))?.ok_or_else(|| no_chunk(request.chunk))?;
        let replica = shared.read();
        replica.check_epoch(request.epoch)?;
        replica.check_version(request.version)?;
        let end =
            request.first_leaf.checked_add(request.leaves).filter(|end| *end <= replica.leaves.leaves());
        let Some(end) = end.filter(|_| request.leaves > 0 && request.leaves <= MAX_LEAVES) else {
            let detail =
                format!("{} leaves from {} are not in the chunk", request.leaves, request.first_leaf);
            return Err(Fault::new(Code::Malformed, detail));
        };
        let group = |leaf: u32| (leaf / GROUP_LEAVES) as usize;
        let proof = Proof {
            groups: replica.leaves.group_sums().to_vec(),
            leaves: replica.leaves.sums_of_groups(group(request.first_leaf), group(end - 1)),
        };
        let payload = self.read_leaves(&replica, request.first_leaf..end)?;
        Ok((proof, payload))
    }

    /// Whatever the replica has, at whatever epoch; not while it is partial.
    pub fn sums(&self, chunk: ChunkId) -> Result<Sums, Fault> {
        let shared = self.find(Key::live(chunk))?.ok_or_else(|| no_chunk(chunk))?;
        let replica = shared.read();
        whole(&replica)?;
        Ok(Sums {
            chunk_bytes: replica.leaves.chunk_bytes(),
            epoch: replica.epoch,
            contents: replica.contents(),
            leaves: replica.leaves.sums_of_groups(0, replica.leaves.group_sums().len() - 1),
        })
    }

    pub fn fetch(&self, request: &FetchRequest) -> Result<(Vec<u64>, Vec<Bytes>), Fault> {
        let shared = self.find(Key::live(request.chunk))?.ok_or_else(|| no_chunk(request.chunk))?;
        let replica = shared.read();
        whole(&replica)?;
        replica.check_version(request.version)?;
        let ascending = request.leaves.windows(2).all(|pair| pair[0] < pair[1]);
        let inside = request.leaves.last().is_none_or(|last| *last < replica.leaves.leaves());
        if !ascending || !inside || request.leaves.len() > MAX_LEAVES as usize {
            return Err(Fault::new(
                Code::Malformed,
                "the leaves to fetch are not ascending, inside and few enough",
            ));
        }
        let sums = request.leaves.iter().map(|leaf| replica.leaves.sum(*leaf)).collect();
        Ok((sums, self.read_leaves(&replica, request.leaves.iter().copied())?))
    }

    /// State and leaf sums of the own replica as the base of a copy: (position, sums); partial ones too.
    pub fn base(&self, chunk: ChunkId) -> Result<Option<(u64, u32, Vec<u64>)>, Fault> {
        let Some(shared) = self.find(Key::live(chunk))? else { return Ok(None) };
        let replica = shared.read();
        let last = replica.leaves.group_sums().len() - 1;
        let base = (replica.position, replica.leaves.chunk_bytes(), replica.leaves.sums_of_groups(0, last));
        Ok((replica.life == Life::Live).then_some(base))
    }

    /// Bytes of one leaf of the own replica, if they have this sum and verify.
    pub fn good_leaf(&self, chunk: ChunkId, leaf: u32, sum: u64) -> Result<Option<Bytes>, Fault> {
        let Some(shared) = self.find(Key::live(chunk))? else { return Ok(None) };
        let replica = shared.read();
        match replica.leaves.leaf(leaf) {
            Some((own, location)) if own == sum => match self.read_leaf(chunk, leaf, sum, location) {
                Ok(bytes) => Ok(Some(bytes.into())),
                Err(fault) if fault.code == Code::Corrupt => Ok(None),
                Err(fault) => Err(fault),
            },
            _ => Ok(None),
        }
    }

    /// Verifies up to `count` leaves from the first. None: the replica is gone.
    pub fn verify(&self, key: Key, first_leaf: u32, count: u32) -> Result<Option<Verified>, Fault> {
        let Some(shared) = self.find(key)? else { return Ok(None) };
        let replica = shared.read();
        if replica.life != Life::Live {
            return Ok(None);
        }
        let leaves = replica.leaves.leaves();
        let mut verified = Verified { leaves, epoch: replica.epoch, ..Verified::default() };
        for leaf in first_leaf..first_leaf.saturating_add(count).min(leaves) {
            if let Some((sum, location)) = replica.leaves.leaf(leaf) {
                verified.read += 1;
                match self.read_leaf(key.chunk, leaf, sum, location) {
                    Ok(_) => {}
                    Err(fault) if fault.code == Code::Corrupt => verified.bad.push(leaf),
                    Err(fault) => return Err(fault),
                }
            }
        }
        Ok(Some(verified))
    }

    pub(super) fn read_leaf(
        &self,
        chunk: ChunkId,
        leaf: u32,
        sum: u64,
        location: Location,
    ) -> Result<Vec<u8>, Fault> {
        let mut bytes = vec![0; BLOCK];
        self.read_run(chunk, &[(leaf, sum, location)], &mut bytes)?;
        Ok(bytes)
    }

    /// Leaves that are not holes; those that lie one after the other are read at once.
    fn read_leaves(&self, replica: &Replica, leaves: impl Iterator<Item = u32>) -> Result<Vec<Bytes>, Fault> {
        let present: Vec<Leaf> = leaves
            .filter_map(|leaf| replica.leaves.leaf(leaf).map(|(sum, location)| (leaf, sum, location)))
            .collect();
        let follows = |a: &Leaf, b: &Leaf| a.2.segment == b.2.segment && a.2.block + 1 == b.2.block;
        let mut payload = Vec::new();
        for run in present.chunk_by(follows) {
            let mut bytes = vec![0; run.len() * BLOCK];
            self.read_run(replica.key.chunk, run, &mut bytes)?;
            payload.push(bytes.into());
        }
        Ok(payload)
    }

    fn read_run(&self, chunk: ChunkId, run: &[Leaf], bytes: &mut [u8]) -> Result<(), Fault> {
        let (first, _, location) = run[0];
        match self.log.read(location, bytes) {
            // A file that ends too early or is gone is damage of this chunk; others may be whole.
            Err(error)
                if matches!(
                    error.kind(),
                    std::io::ErrorKind::UnexpectedEof | std::io::ErrorKind::NotFound
                ) =>
            {
                bytes.fill(0);
            }
            other => {
                other.map_err(|error| self.io(&format!("read of chunk {chunk}, leaf {first}"), &error))?
            }
        }
        for ((leaf, sum, location), bytes) in run.iter().zip(bytes.chunks(BLOCK)) {
            if sums::piece(chunk, *leaf, bytes) != *sum {
                self.bad_leaves.fetch_add(1, Ordering::Relaxed);
                let Location { segment, block } = location;
                tracing::error!(%chunk, leaf, segment, block, disk = %self.id, "a leaf does not match its sum");
                let detail =
                    format!("leaf {leaf} of chunk {chunk} on disk {} does not match its sum", self.id);
                return Err(Fault::new(Code::Corrupt, detail));
            }
        }
        Ok(())
    }
}

fn whole(replica: &Replica) -> Result<(), Fault> {
    replica.check_live()?;
    if replica.partial {
        return Err(Fault::new(
            Code::NoChunk,
            format!("chunk {} is an unfinished copy here", replica.key.chunk),
        ));
    }
    Ok(())
}
