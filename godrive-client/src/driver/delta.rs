//! Deltas and syncs along a chunk's chain, and what to do when a member fails.
//!
//! The first member receives, verifies, applies and forwards; it answers when all have the same contents. When
//! something fails, only the master may drop a member: the driver reports, gets a layout of a new epoch whose
//! `held` was elected, and goes on from there. If `held` is the version that this delta makes, it was applied before
//! the failure, because only the holder of the exclusive lease writes; a sync then confirms it. For that to hold,
//! a chunk whose last delta ended without an answer is settled by an election before the next one. No delta is sent onto
//! an election that kept less than the layout said was held, or something else.

use super::master::{Master, Session};
use super::reports::Reports;
use super::retry::{Backoff, ChainFault, Patience, chain_fault};
use super::slaves::Slaves;
use super::stats::Stats;
use crate::core::layout::is_regression;
use bytes::Bytes;
use godrive_proto::data::{
    Applied, CopyRange, CopyRangeRequest, Delta as DeltaOperation, DeltaRequest, Extent, Fill, Layout,
    Member, Source, Sync, SyncRequest,
};
use godrive_proto::lease::Problem;
use godrive_proto::limits::{MAX_DELTA_BYTES, MAX_DELTA_EXTENTS};
use godrive_proto::time::{Instant, Timestamp};
use godrive_proto::{ChunkId, Code, Fault, NodeId, OpId, Version};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Semaphore, SemaphorePermit};

/// A delta update of one chunk, before it has an epoch, a base version and an operation id.
#[derive(Clone, Debug)]
pub struct Delta {
    /// Ascending, not overlapping.
    pub extents: Vec<Extent>,
    /// `sums::piece` of every leaf piece of every `Bytes` extent, in order.
    pub sums: Vec<u64>,
    /// The bytes of the `Bytes` extents, in order, cut anywhere; at most `MAX_DELTA_BYTES`.
    pub payload: Vec<Bytes>,
    pub mtime: Timestamp,
    /// Every member syncs before it answers.
    pub sync: bool,
}

/// Bytes of another chunk for this one, which no client carries.
#[derive(Clone, Debug)]
pub struct Copy {
    pub source: Source,
    /// Where they go, within the chunk.
    pub offset: u32,
    /// At most `MAX_DELTA_BYTES`.
    pub len: u32,
    pub mtime: Timestamp,
}

/// Where the bytes of a delta come from.
enum Load<'a> {
    Payload(&'a [Bytes]),
    Chunk(&'a Source),
}

/// Deltas and syncs that are on their way at one time.
const MAX_FLIGHTS: usize = 32;
/// Corrupt answers to one delta that are taken for damage on the way.
const RESENDS_OF_CORRUPT: u32 = 2;

/// What is to be made of a chunk, wherever the bytes come from.
struct Change {
    extents: Vec<Extent>,
    sums: Vec<u64>,
    mtime: Timestamp,
    sync: bool,
}

/// Writes chunks.
pub struct Writer {
    master: Arc<Master>,
    slaves: Arc<Slaves>,
    reports: Arc<Reports>,
    last_op: AtomicU64,
    /// Chunks whose last delta got no good answer: their members may have applied it or not.
    unsettled: Mutex<BTreeSet<ChunkId>>,
    /// Held by a try, not between tries: chunks that wait for an election or for the return of a slave keep no others from theirs.
    flights: Semaphore,
}

impl Writer {
    pub fn new(master: Arc<Master>, slaves: Arc<Slaves>, reports: Arc<Reports>) -> Self {
        let flights = Semaphore::new(MAX_FLIGHTS);
        Self { master, slaves, reports, last_op: AtomicU64::new(0), unsettled: Mutex::default(), flights }
    }

    fn next_op(&self) -> u64 {
        self.last_op.fetch_add(1, Ordering::Relaxed) + 1
    }

    pub async fn write(&self, layout: &mut Layout, delta: Delta) -> Result<Applied, Fault> {
        let load = Load::Payload(&delta.payload);
        let payload_bytes = delta.payload.iter().map(Bytes::len).sum();
        let change =
            Change { extents: delta.extents, sums: delta.sums, mtime: delta.mtime, sync: delta.sync };
        self.apply(layout, change, load, payload_bytes).await
    }

    /// `NoSource` and `Forbidden`: whoever can carry the bytes may write them; an earlier try may have been applied.
    pub async fn copy(&self, layout: &mut Layout, copy: Copy) -> Result<Applied, Fault> {
        let extent = Extent { offset: copy.offset, len: copy.len, fill: Fill::Bytes };
        let change = Change { extents: vec![extent], sums: Vec::new(), mtime: copy.mtime, sync: false };
        self.apply(layout, change, Load::Chunk(&copy.source), copy.len as usize).await
    }

    async fn apply(
        &self,
        layout: &mut Layout,
        delta: Change,
        load: Load<'_>,
        payload_bytes: usize,
    ) -> Result<Applied, Fault> {
        if payload_bytes > MAX_DELTA_BYTES || delta.extents.len() > MAX_DELTA_EXTENTS {
            let detail =
                format!("a delta of {payload_bytes} bytes in {} extents is too large", delta.extents.len());
            return Err(Fault::new(Code::Malformed, detail));
        }
        let mut tries = Tries::new(self, layout);
        let chunk = tries.layout.chunk;
        if self.unsettled.lock().contains(&chunk.id) {
            tries.report(Problem::Diverged, "the last delta to this chunk had no answer").await?;
        }
        let mut request = DeltaRequest {
            chunk: chunk.id,
            chunk_bytes: chunk.chunk_bytes,
            disk: Default::default(),
            epoch: tries.layout.epoch,
            base: tries.known.held.version,
            op: OpId { session: tries.session.id, sequence: self.next_op() },
            extents: delta.extents,
            sums: delta.sums,
            chain: Vec::new(),
            sync: delta.sync,
            mtime: delta.mtime,
        };
        let applied = tries.apply(&mut request, &load, payload_bytes).await;
        // Refused at the first try, nothing is under way; an earlier one may have been applied, or be so later.
        let refused = |fault: &Fault| matches!(fault.code, Code::NoSource | Code::Forbidden);
        if applied.as_ref().err().is_none_or(|fault| tries.sent == 1 && refused(fault)) {
            self.unsettled.lock().remove(&chunk.id);
        }
        applied
    }

    pub async fn sync(&self, layout: &mut Layout) -> Result<Applied, Fault> {
        let expected = layout.held.version;
        if expected == Version(0) {
            return Ok(Applied { contents: layout.held, stable: true, used_bytes: 0 });
        }
        let mut tries = Tries::new(self, layout);
        loop {
            if tries.layout.held.version < expected {
                return Err(tries.regressed(expected));
            }
            match tries.send_sync().await {
                Ok(applied) => return Ok(applied),
                Err((first, fault)) => tries.recover(fault, first).await?,
            }
        }
    }
}

/// The tries of one delta or sync.
struct Tries<'a> {
    writer: &'a Writer,
    layout: &'a mut Layout,
    /// As it was before the first one.
    known: Layout,
    session: Arc<Session>,
    patience: Patience,
    backoff: Backoff,
    corrupt: u32,
    failures: u32,
    /// Of the last one.
    route: Vec<NodeId>,
    /// When this mount itself accused the first member last.
    accused: Option<Instant>,
    /// Deltas that a member may have got.
    sent: u32,
}

impl<'a> Tries<'a> {
    fn new(writer: &'a Writer, layout: &'a mut Layout) -> Self {
        let master = &writer.master;
        let (session, patience) = (master.session(), master.patience());
        let backoff = Backoff::default();
        let route = Vec::new();
        let known = layout.clone();
        Self {
            writer,
            layout,
            known,
            session,
            patience,
            backoff,
            corrupt: 0,
            failures: 0,
            route,
            accused: None,
            sent: 0,
        }
    }

    async fn apply(
        &mut self,
        request: &mut DeltaRequest,
        load: &Load<'_>,
        bytes: usize,
    ) -> Result<Applied, Fault> {
        let mut answered = false;
        loop {
            let held = self.layout.held.version;
            if !answered && held > request.base {
                // An election kept a version that nobody may have acknowledged: this delta's, or an older writer's.
                // A delta overwrites absolutely and only the exclusive holder writes, so it is applied on top of either.
                request.base = held;
                request.op.sequence = self.writer.next_op();
            }
            let outcome = match answered {
                true if held < request.base.next() => return Err(self.regressed(request.base.next())),
                true => self.send_sync().await,
                false if held < request.base || self.is_replaced() => {
                    return Err(self.regressed(request.base));
                }
                false => self.send_delta(request, load, bytes).await,
            };
            match outcome {
                Ok(applied) if applied.stable || !request.sync => return Ok(applied),
                Ok(_) => {
                    answered = true;
                    tracing::debug!(chunk = %request.chunk, "a delta was answered before it was stable; asking for a sync");
                }
                Err((first, fault)) => self.recover(fault, first).await?,
            }
        }
    }

    async fn send_delta(
        &mut self,
        request: &mut DeltaRequest,
        load: &Load<'_>,
        bytes: usize,
    ) -> Result<Applied, (NodeId, Fault)> {
        let (first, chain) = self.chain()?;
        let _flight = self.flight(first.node).await?;
        // Not before: whoever goes away while it waits leaves nothing under way.
        self.writer.unsettled.lock().insert(request.chunk);
        request.disk = first.disk;
        request.epoch = self.layout.epoch;
        request.chain = chain;
        let deadline = self.deadline(bytes);
        self.sent += 1;
        let slaves = &self.writer.slaves;
        let applied = match load {
            Load::Payload(payload) => {
                let sent = slaves.call::<DeltaOperation>(&first, request, payload, deadline).await;
                sent.map(|reply| reply.body)
            }
            Load::Chunk(source) => {
                let request = CopyRangeRequest { delta: request.clone(), source: (*source).clone() };
                let sent = slaves.call::<CopyRange>(&first, &request, &[], deadline).await;
                sent.map(|reply| reply.body)
            }
        };
        let applied = applied.map_err(|fault| (first.node, fault))?;
        if applied.contents.version != request.base.next() {
            let detail = format!(
                "slave {} answered version {} to a delta on version {}",
                first.node, applied.contents.version, request.base
            );
            return Err((first.node, Fault::at(Code::WrongVersion, first.node, detail)));
        }
        Ok(self.advance(applied))
    }

    async fn send_sync(&mut self) -> Result<Applied, (NodeId, Fault)> {
        let (first, chain) = self.chain()?;
        let _flight = self.flight(first.node).await?;
        let Layout { chunk, epoch, held, .. } = &*self.layout;
        let request = SyncRequest { chunk: chunk.id, epoch: *epoch, version: held.version, chain };
        let deadline = self.deadline(0);
        let sent = self.writer.slaves.call::<Sync>(&first, &request, &[], deadline).await;
        let applied = sent.map_err(|fault| (first.node, fault))?.body;
        if applied.contents != self.layout.held || !applied.stable {
            let detail = format!(
                "slave {} answered {:?} (stable: {}) to a sync of {:?}",
                first.node, applied.contents, applied.stable, self.layout.held
            );
            return Err((first.node, Fault::at(Code::WrongVersion, first.node, detail)));
        }
        Ok(self.advance(applied))
    }

    fn advance(&mut self, applied: Applied) -> Applied {
        self.writer.slaves.passed(&self.route);
        self.layout.held = applied.contents;
        if applied.stable {
            self.layout.stable = applied.contents;
        }
        applied
    }

    /// Waits for the others that are on their way, however long: that is not the delta's time.
    async fn flight(&mut self, first: NodeId) -> Result<SemaphorePermit<'a>, (NodeId, Fault)> {
        let timing = &self.writer.master.timing;
        let begun = timing.now();
        let closed = |_| (first, Fault::new(Code::Internal, "the driver has stopped"));
        let flight = self.writer.flights.acquire().await.map_err(closed)?;
        self.patience.extend(timing.now().since(begun));
        Ok(flight)
    }

    fn chain(&mut self) -> Result<(Member, Vec<Member>), (NodeId, Fault)> {
        let mut members = self.writer.slaves.chain(&self.layout.members);
        if members.is_empty() {
            let detail = format!("chunk {} has no members", self.layout.chunk.id);
            return Err((NodeId::default(), Fault::new(Code::WrongEpoch, detail)));
        }
        self.route = members.iter().map(|member| member.node).collect();
        let first = members.remove(0);
        Ok((first, members))
    }

    fn deadline(&self, bytes: usize) -> Duration {
        let timeouts = &self.writer.master.config.timeouts;
        let transfer = Duration::from_secs(bytes as u64)
            / u32::try_from(timeouts.slowest_bytes_per_s).unwrap_or(u32::MAX).max(1);
        let remaining = self.patience.remaining(self.writer.master.timing.now()).unwrap_or_default();
        (timeouts.delta + transfer).min(remaining)
    }

    /// After a failure: makes the next try worth while, or says that there is none.
    async fn recover(&mut self, fault: Fault, first: NodeId) -> Result<(), Fault> {
        self.still_in_session()?;
        let problem = match chain_fault(&fault, first) {
            ChainFault::Final => return Err(fault),
            ChainFault::Stale => Some(Problem::StaleLayout),
            ChainFault::Diverged => Some(Problem::Diverged),
            ChainFault::Failed(node) => {
                // If the master still counts it in, the next chain reaches it by another way.
                let failed = self.writer.slaves.broke(&self.route, node);
                let failed = failed.filter(|_| self.may_accuse(node));
                Some(failed.map_or(Problem::StaleLayout, Problem::Failed))
            }
            ChainFault::Corrupt(_) if self.corrupt < RESENDS_OF_CORRUPT => {
                self.corrupt += 1;
                None
            }
            ChainFault::Corrupt(node) => {
                self.corrupt = 0;
                Some(Problem::Corrupt(node))
            }
        };
        tracing::warn!(
            chunk = %self.layout.chunk.id, epoch = %self.layout.epoch, %fault, ?problem, "a delta or sync failed; trying again"
        );
        let epoch = self.layout.epoch;
        if let Some(problem) = problem {
            self.report(problem, &fault.to_string()).await?;
        }
        Stats::add(&self.writer.master.stats.retries, 1);
        self.failures += 1;
        if self.layout.epoch > epoch && self.failures == 1 {
            return Ok(());
        }
        let wait = self.backoff.next(self.writer.master.jitter());
        match self.patience.remaining(self.writer.master.timing.now()) {
            Some(remaining) if remaining > wait => self.writer.master.endpoint.pause(wait).await,
            _ => return Err(fault),
        }
        Ok(())
    }

    /// A mount that has heard of no slave since it accused the first member may be cut off itself.
    fn may_accuse(&mut self, node: NodeId) -> bool {
        if self.route.first() != Some(&node) {
            return true;
        }
        let heard = self.writer.slaves.heard();
        let may = self.accused.is_none_or(|when| heard > when);
        if may {
            self.accused = Some(self.writer.master.timing.now());
        }
        may
    }

    async fn report(&mut self, problem: Problem, detail: &str) -> Result<(), Fault> {
        self.writer.reports.report(self.layout, problem, detail, self.patience).await?;
        // A newer epoch is no leave to write in it: the lease went with the session.
        self.still_in_session()
    }

    fn still_in_session(&self) -> Result<(), Fault> {
        if self.writer.master.session().id == self.session.id {
            return Ok(());
        }
        let detail = format!("the session ended while chunk {} was written", self.layout.chunk.id);
        Err(Fault::new(Code::SessionLost, detail))
    }

    /// The version that was known is there, but not its contents.
    fn is_replaced(&self) -> bool {
        self.layout.held.version == self.known.held.version && is_regression(&self.known, self.layout)
    }

    fn regressed(&self, expected: Version) -> Fault {
        let Layout { chunk, epoch, held, .. } = &*self.layout;
        let detail = format!(
            "chunk {} came back from epoch change {epoch} with version {} instead of {expected}: \
             acknowledged data was lost or somebody else wrote",
            chunk.id, held.version
        );
        Fault::new(Code::WrongVersion, detail)
    }
}
