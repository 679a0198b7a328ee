//! Making a replica equal to another's: compare sums, fetch the leaves that differ (or are bad here), and adopt
//! them in one record. A source that is still being written moves on under the copy: what was fetched and is
//! still right is kept, the rest is fetched again; if it never holds still, the result is partial and serves as
//! the base of the copy that follows the seal.

use super::requests::deadline;
use super::shared::Shared;
use crate::core::leaves::LeafSum;
use crate::core::record::BLOCK;
use crate::store::{Adoption, DiskStore};
use bytes::Bytes;
use godrive_proto::cluster::CopyRequest;
use godrive_proto::data::{Contents, Fetch, FetchRequest, GetSums, Sums, SumsRequest};
use godrive_proto::frame::{Class, RequestHeader};
use godrive_proto::limits::GROUP_LEAVES;
use godrive_proto::net::Connection;
use godrive_proto::{ChunkId, Code, Epoch, Fault, Version, sums};
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

/// Leaves per fetch: 1 MiB.
const BATCH: usize = 256;
/// How often the copy starts over behind a source that moves on.
const ROUNDS: usize = 8;
const CALL: Duration = Duration::from_secs(10);

/// Leaves that were fetched or read here, with their sums.
type Leaves = BTreeMap<u32, (u64, Bytes)>;

pub async fn copy(
    shared: &Arc<Shared>,
    request: CopyRequest,
    header: RequestHeader,
) -> Result<Contents, Fault> {
    crate::core::delta::check_chunk_bytes(request.chunk_bytes)?;
    let copying = Copying::begin(shared, request.chunk)?;
    let _permit =
        shared.copies.acquire().await.map_err(|error| Fault::new(Code::Internal, error.to_string()))?;
    // Also when another disk has the chunk, which then moves.
    let store = shared.place(request.disk)?;
    let source = shared.peers.connection(&request.source, deadline(&header).min(CALL)).await;
    let source = source.map_err(|fault| Fault::at(fault.code, request.source.node, fault.detail))?;
    let mut copy = Copy {
        shared,
        copying,
        store,
        source,
        request,
        class: header.class,
        leaves: Leaves::new(),
        whole: true,
    };
    for round in 1.. {
        let last = round == ROUNDS && copy.request.expect.is_none();
        match copy.round(last).await {
            Err(fault) if matches!(fault.code, Code::WrongVersion | Code::Busy) && round < ROUNDS => {
                if copy.request.expect.is_some() && fault.code == Code::WrongVersion {
                    return Err(fault);
                }
                tracing::debug!(chunk = %copy.request.chunk, round, %fault, "the copy starts over");
            }
            other => return other,
        }
    }
    Err(Fault::new(Code::Internal, "unreachable: the last round returns"))
}

/// One copy of a chunk at a time, and none while what an earlier one left is removed.
pub(super) struct Copying<'a> {
    shared: &'a Shared,
    chunk: ChunkId,
    registration: u64,
}

impl<'a> Copying<'a> {
    pub(super) fn begin(shared: &'a Shared, chunk: ChunkId) -> Result<Self, Fault> {
        match shared.copying.lock().entry(chunk) {
            Entry::Vacant(entry) => drop(entry.insert(Epoch(0))),
            Entry::Occupied(_) => {
                return Err(Fault::new(Code::Busy, format!("chunk {chunk} is being copied already")));
            }
        }
        Ok(Self { shared, chunk, registration: shared.registrations.load(Ordering::SeqCst) })
    }

    /// What the master asked for on a connection that is over would be missing in the inventory of the next.
    pub(super) fn check_registration(&self) -> Result<(), Fault> {
        if self.registration == self.shared.registrations.load(Ordering::SeqCst) {
            return Ok(());
        }
        let detail = format!("this slave has registered again since the copy of chunk {} began", self.chunk);
        Err(Fault::new(Code::NotReady, detail))
    }

    /// What was copied for this epoch stays, unless it was deleted meanwhile: then nobody would know of it.
    pub(super) fn settle(&self, store: &DiskStore, epoch: Epoch) -> Result<(), Fault> {
        let Self { shared, chunk, .. } = self;
        let floor = shared.copying.lock().get(chunk).copied().unwrap_or_default();
        if epoch >= floor {
            return Ok(());
        }
        let over = Epoch(floor.0.saturating_sub(1));
        godrive_disk::blocking(store.is_instant(), || store.delete(&[(*chunk, over)], shared.clock.wall()))?;
        Err(Fault::new(Code::NoChunk, format!("chunk {chunk} was deleted while it was copied")))
    }
}

/// To be called before a deletion is carried out.
pub(super) fn deleting(shared: &Shared, chunk: ChunkId, epoch: Epoch) {
    if let Some(floor) = shared.copying.lock().get_mut(&chunk) {
        *floor = epoch.next().max(*floor);
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        self.shared.copying.lock().remove(&self.chunk);
    }
}

struct Copy<'a> {
    shared: &'a Arc<Shared>,
    copying: Copying<'a>,
    store: &'a Arc<DiskStore>,
    source: Connection,
    request: CopyRequest,
    class: Class,
    leaves: Leaves,
    /// Everything that was wanted is in `leaves`.
    whole: bool,
}

impl Copy<'_> {
    /// Brings the replica to what the source has now. `give_in`: keep what could be had, as a partial copy.
    async fn round(&mut self, give_in: bool) -> Result<Contents, Fault> {
        let chunk = self.request.chunk;
        let target = self.target().await?;
        let base = self.store.base(chunk)?;
        let (based_on, own) = match base {
            Some((_, bytes, _)) if bytes != self.request.chunk_bytes => {
                let detail = format!("chunk {chunk} has {bytes} bytes here");
                return Err(Fault::new(Code::Malformed, detail));
            }
            Some((position, _, own)) => (position, own),
            None => (0, vec![sums::HOLE; target.leaves.len()]),
        };
        let keep_aside = self.request.keep_aside && based_on > 0;
        let changed = self.changed(&target, &own, keep_aside)?;
        self.leaves.retain(|leaf, (sum, _)| target.leaves.get(*leaf as usize) == Some(sum));
        let missing: Vec<u32> = changed
            .iter()
            .filter(|change| change.sum != sums::HOLE && !self.leaves.contains_key(&change.leaf))
            .map(|change| change.leaf)
            .collect();
        self.whole = true;
        for batch in missing.chunks(BATCH) {
            match self.fetch(&target, batch).await {
                Err(fault) if fault.code == Code::WrongVersion && give_in => {
                    self.whole = false;
                    break;
                }
                other => other?,
            }
        }
        let done = self.adopt(&target, changed, based_on, keep_aside)?;
        self.copying.settle(self.store, self.request.epoch)?;
        if self.whole {
            self.shared.healed(chunk);
        }
        if !self.store.is_stable(done.position) {
            self.store.sync().await?;
        }
        self.shared.ring_if_due(self.store);
        Ok(done.contents)
    }

    /// What the source has, proven by its digest.
    async fn target(&self) -> Result<Sums, Fault> {
        let CopyRequest { chunk, chunk_bytes, expect, source, .. } = &self.request;
        let header = self.shared.request_header(self.class);
        let reply = self.source.call::<GetSums>(header, &SumsRequest { chunk: *chunk }, &[], CALL).await;
        let target = reply.map_err(|fault| Fault::at(fault.code, source.node, fault.detail))?.body;
        if target.chunk_bytes != *chunk_bytes || target.leaves.len() != sums::leaves_in(*chunk_bytes) as usize
        {
            let detail = format!("slave {} has chunk {chunk} with {} bytes", source.node, target.chunk_bytes);
            return Err(Fault::at(Code::Malformed, source.node, detail));
        }
        let groups: Vec<u64> = target.leaves.chunks(GROUP_LEAVES as usize).map(sums::group).collect();
        if sums::digest(*chunk, &groups) != target.contents.digest {
            let detail = format!(
                "the sums that slave {} sent for chunk {chunk} do not match their digest",
                source.node
            );
            return Err(Fault::at(Code::Corrupt, source.node, detail));
        }
        match expect {
            Some(expect) if *expect != target.contents => {
                let detail = format!(
                    "slave {} has {:?} of chunk {chunk}, not {expect:?}",
                    source.node, target.contents
                );
                Err(Fault::at(Code::WrongVersion, source.node, detail))
            }
            _ => Ok(target),
        }
    }

    /// Leaves to write: those that differ, and those that should be equal but are bad here. What is to be kept aside
    /// keeps its leaves, so then everything is written anew.
    fn changed(&mut self, target: &Sums, own: &[u64], keep_aside: bool) -> Result<Vec<LeafSum>, Fault> {
        let mut changed = Vec::new();
        for (leaf, (theirs, own)) in (0u32..).zip(target.leaves.iter().zip(own)) {
            let equal = theirs == own;
            if *theirs == sums::HOLE {
                if !equal && !keep_aside {
                    changed.push(LeafSum { leaf, sum: *theirs });
                }
                continue;
            }
            let good = match equal {
                true => godrive_disk::blocking(self.store.is_instant(), || {
                    self.store.good_leaf(self.request.chunk, leaf, *own)
                })?,
                false => None,
            };
            match good {
                Some(_) if !keep_aside => continue,
                Some(bytes) => drop(self.leaves.insert(leaf, (*theirs, bytes))),
                None => {}
            }
            changed.push(LeafSum { leaf, sum: *theirs });
        }
        Ok(changed)
    }

    async fn fetch(&mut self, target: &Sums, batch: &[u32]) -> Result<(), Fault> {
        let chunk = self.request.chunk;
        let node = self.request.source.node;
        let request = FetchRequest { chunk, version: target.contents.version, leaves: batch.to_vec() };
        let reply =
            self.source.call::<Fetch>(self.shared.request_header(self.class), &request, &[], CALL).await;
        let reply = reply.map_err(|fault| Fault::at(fault.code, node, fault.detail))?;
        let bytes: Bytes = reply.payload.concat().into();
        if bytes.len() != batch.len() * BLOCK {
            let detail = format!(
                "slave {node} sent {} bytes for {} leaves of chunk {chunk}",
                bytes.len(),
                batch.len()
            );
            return Err(Fault::at(Code::Malformed, node, detail));
        }
        for (at, leaf) in batch.iter().enumerate() {
            let block = bytes.slice(at * BLOCK..(at + 1) * BLOCK);
            let sum = target.leaves[*leaf as usize];
            if sums::piece(chunk, *leaf, &block) != sum {
                let detail = format!("leaf {leaf} of chunk {chunk} came from slave {node} with another sum");
                return Err(Fault::at(Code::Corrupt, node, detail));
            }
            self.leaves.insert(*leaf, (sum, block));
        }
        Ok(())
    }

    fn adopt(
        &self,
        target: &Sums,
        mut changed: Vec<LeafSum>,
        based_on: u64,
        keep_aside: bool,
    ) -> Result<crate::store::Done, Fault> {
        let chunk = self.request.chunk;
        changed.retain(|change| change.sum == sums::HOLE || self.leaves.contains_key(&change.leaf));
        if let Some(row) = self.store.row(chunk)?
            && changed.is_empty()
            && !row.partial
            && row.contents() == target.contents
        {
            let Contents { version, digest } = target.contents;
            return Ok(crate::store::Done {
                contents: Contents { version, digest },
                used_bytes: row.used_bytes,
                position: row.position,
            });
        }
        let fetched = changed.iter().filter_map(|change| self.leaves.get(&change.leaf));
        let adoption = Adoption {
            chunk,
            chunk_bytes: self.request.chunk_bytes,
            version: if self.whole { target.contents.version } else { Version(0) },
            partial: !self.whole,
            keep_aside,
            into_reserve: self.request.into_reserve,
            based_on,
            data: fetched.map(|(_, bytes)| bytes.clone()).collect(),
            leaves: changed,
            digest: target.contents.digest,
            epoch: self.request.epoch,
            now: self.shared.clock.wall(),
        };
        godrive_disk::blocking(self.store.is_instant(), || {
            let _adopting = self.shared.adopting.read();
            self.copying.check_registration()?;
            self.store.adopt(&adoption)
        })
    }
}
