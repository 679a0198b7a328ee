//! The one owner of the master's state.
//!
//! Everything that decides lies in [`Hub`], behind one lock. Whoever holds it reads the state, asks the tables
//! and proposes records; nothing in here waits. What has to be done outside (recalls, epoch changes) is put
//! into the outbox and started after the lock was given back ([`super::shared::Shared::with`]). A request is therefore
//! executed by its own task, without a hop to an actor and back, yet one after the other.

use super::journal::Journal;
use super::repair::Repairs;
use super::requests::{Attempt, Parked};
use super::slaves::Slaves;
use crate::config::Config;
use crate::core::leases::{Effect, Leases, Need, WaiterId};
use crate::core::locks::Locks;
use crate::core::nodes::Nodes;
use crate::core::placement::{NodeSelector, Reservations};
use crate::core::record::{Answer, Body, Origin, Record};
use crate::core::standstill::Watch;
use crate::core::state::{Closing, State};
use godrive_proto::lease::{Mode, RecallRequest, Release, RenewRequest};
use godrive_proto::meta::{Attr, InodeView};
use godrive_proto::net::Connection;
use godrive_proto::time::{Clock, Instant, Timestamp};
use godrive_proto::{ChunkId, ClusterId, Code, Fault, Ino, LogIndex, NodeId, SessionId, Term};
use std::collections::BTreeMap;
use std::sync::Arc;
use tokio::sync::oneshot;

/// A connection under a number that rises, so that a late loss of an old one does not unlink its successor.
#[derive(Clone)]
pub struct Link {
    pub number: u64,
    pub connection: Connection,
}

/// Something to be done once the lock is free.
pub enum Command {
    Recall(SessionId, RecallRequest),
    /// The chunk's writer is gone, or an epoch change of it was cut off.
    Settle(ChunkId),
}

/// See the module.
pub struct Hub {
    pub config: Config,
    pub cluster: ClusterId,
    pub term: Term,
    /// The log's end when this term began: a peer of an earlier term that saw more has seen what is lost here.
    pub began_at: LogIndex,
    pub state: State,
    pub journal: Journal,
    pub leases: Leases,
    pub locks: Locks,
    pub nodes: Nodes,
    watch: Watch,
    pub reserved: Reservations,
    pub selector: Box<dyn NodeSelector>,
    pub slaves: Slaves,
    /// Every session of the log, and the client it belongs to.
    pub owners: BTreeMap<SessionId, NodeId>,
    /// Where each session was last heard.
    pub clients: BTreeMap<SessionId, Link>,
    /// What each session said at its last renewal.
    pub renewals: BTreeMap<SessionId, RenewRequest>,
    /// Epoch changes under way, and who waits for their end.
    pub epochs: BTreeMap<ChunkId, Vec<oneshot::Sender<Result<(), Fault>>>>,
    /// Epoch changes that could not be finished, and when to try them again: sooner when a slave comes back.
    pub unfinished: BTreeMap<ChunkId, Instant>,
    /// Facts for people: how often a chunk went back behind what was held.
    pub regressed: u64,
    pub repairs: Repairs,
    /// Where the configuration and the log differ.
    pub config_warnings: Vec<String>,
    pub effects: Vec<Effect>,
    pub outbox: Vec<Command>,
    parked: BTreeMap<WaiterId, (SessionId, Box<dyn Parked>)>,
    next_waiter: u64,
    /// Each session's last change, and that of the master itself: other sessions see it when it is durable.
    changed_at: BTreeMap<SessionId, LogIndex>,
    /// Files whose chunks are to be closed once the log has room.
    unclosed: BTreeMap<(SessionId, Ino), Closing>,
    /// The master's disk has no more room than its reserve: nothing grows.
    pub disk_full: bool,
    /// Why nothing is served any more.
    pub refused: Option<String>,
    pub clock: Arc<dyn Clock>,
}

/// What [`super::start`] puts together.
pub struct Parts {
    pub config: Config,
    pub cluster: ClusterId,
    pub term: Term,
    pub began_at: LogIndex,
    pub state: State,
    pub journal: Journal,
    pub leases: Leases,
    pub nodes: Nodes,
    pub selector: Box<dyn NodeSelector>,
    pub clock: Arc<dyn Clock>,
}

impl Hub {
    pub fn new(parts: Parts) -> Self {
        Self {
            config: parts.config,
            cluster: parts.cluster,
            term: parts.term,
            began_at: parts.began_at,
            state: parts.state,
            journal: parts.journal,
            leases: parts.leases,
            locks: Locks::new(parts.term),
            nodes: parts.nodes,
            watch: Watch::default(),
            reserved: Reservations::default(),
            selector: parts.selector,
            slaves: Slaves::default(),
            owners: BTreeMap::new(),
            clients: BTreeMap::new(),
            renewals: BTreeMap::new(),
            epochs: BTreeMap::new(),
            unfinished: BTreeMap::new(),
            regressed: 0,
            repairs: Repairs::default(),
            config_warnings: Vec::new(),
            effects: Vec::new(),
            outbox: Vec::new(),
            parked: BTreeMap::new(),
            next_waiter: 0,
            changed_at: BTreeMap::new(),
            unclosed: BTreeMap::new(),
            disk_full: false,
            refused: None,
            clock: parts.clock,
        }
    }

    pub fn wall(&self) -> Timestamp {
        self.clock.wall()
    }

    /// Refuses everything once the log or the store failed, or history turned out to be missing.
    pub fn serving(&self) -> Result<(), Fault> {
        match &self.refused {
            None => Ok(()),
            Some(why) => Err(Fault::new(Code::NotReady, why.clone())),
        }
    }

    /// Stops serving until people have looked at it.
    pub fn refuse(&mut self, why: String) {
        if self.refused.is_none() {
            tracing::error!("this master serves nothing any more: {why}");
            self.refused = Some(why);
        }
    }

    pub fn note_room(&mut self, enough: bool) {
        let was_full = std::mem::replace(&mut self.disk_full, !enough);
        match (was_full, enough) {
            (false, false) => {
                tracing::error!("the master's disk is full: nothing new is made until it has room")
            }
            (true, true) => tracing::info!("the master's disk has room again"),
            _ => {}
        }
    }

    /// Logs and applies. Returns the answer and what must be durable before it may leave.
    pub fn propose(&mut self, origin: Origin, body: Body) -> Result<(Answer, LogIndex), Fault> {
        self.serving()?;
        if self.disk_full && body.grows() {
            let detail = "the master's disk is full: delete something, or give it room";
            return Err(Fault::new(Code::NoSpace, detail));
        }
        let record = Record { time: self.wall(), origin, body };
        let index = match self.journal.append(&record) {
            Ok(index) => index,
            // The log is as it was before: what needs no record goes on.
            Err(error) if error.is_full_disk() && !self.journal.log.has_failed() => {
                self.note_room(false);
                return Err(Fault::new(Code::NoSpace, format!("the master's disk is full: {error}")));
            }
            Err(error) if error.is_of_the_record() => {
                return Err(Fault::new(Code::Malformed, format!("this cannot be logged: {error}")));
            }
            Err(error) => {
                let why = error.to_string();
                self.refuse(format!(
                    "its log cannot be written: {why}. Repair or empty the disk and restart it"
                ));
                return Err(Fault::new(Code::Disk, why));
            }
        };
        let outcome = match self.state.apply(index, &record) {
            Ok(outcome) => outcome,
            Err(error) => {
                self.refuse(format!("{error}. Restart it: the state is rebuilt from checkpoint and log"));
                return Err(error.into());
            }
        };
        let whose = match &record.body {
            // Whoever gets the lease next must not have it while a restart could say that this one still writes.
            Body::ChunksClosed { session, .. } => Some(*session),
            Body::Mutation(_) => Some(origin.session),
            _ => outcome.sync_required.then_some(origin.session),
        };
        if let Some(session) = whose {
            self.changed_at.insert(session, index);
        }
        let durable = match outcome.sync_required {
            true => index,
            false => LogIndex(0),
        };
        for ino in &outcome.effects.removed {
            self.leases.removed(self.clock.now(), *ino, &mut self.effects);
            self.locks.removed(*ino, &mut self.effects);
        }
        for chunk in &outcome.effects.freed {
            self.reserved.release(*chunk);
            self.slaves.corrupt.remove(chunk);
            self.slaves.reclaim = true;
        }
        for chunk in &outcome.effects.unsettled {
            // It is open no longer.
            self.reserved.release(*chunk);
            self.fence(*chunk);
        }
        for ino in &outcome.effects.settled {
            self.unfence(self.clock.now(), *ino);
        }
        Ok((outcome.answer, durable))
    }

    /// What must be on stable storage before this session may see the state. Its own changes need not: they may be
    /// lost with the master's power until it asks for an fsync.
    pub fn must_be_durable(&self, session: SessionId) -> LogIndex {
        let others = self.changed_at.iter().filter(|(of, _)| **of != session || session == SessionId(0));
        others.map(|(_, index)| *index).max().unwrap_or_default()
    }

    /// A decision of the master itself.
    pub fn decide(&mut self, body: Body) -> Result<(Answer, LogIndex), Fault> {
        self.propose(Origin::MASTER, body)
    }

    /// Nobody gets the chunk's inode until an epoch change has put it in order.
    pub fn fence(&mut self, chunk: ChunkId) {
        if let Ok(Some(known)) = self.state.chunk(chunk) {
            self.leases.fence(known.ino);
        }
        self.outbox.push(Command::Settle(chunk));
    }

    /// Opens the inode again if none of its chunks is unsettled any more.
    pub fn unfence(&mut self, now: Instant, ino: Ino) {
        // A quarantined chunk stays as it is; the rest of the file can be used, and removed.
        let open =
            |chunk: &ChunkId| self.state.chunk(*chunk).is_ok_and(|c| c.is_some_and(|c| !c.quarantined));
        if self.state.unsettled_in(ino).is_ok_and(|chunks| !chunks.iter().any(open)) {
            self.leases.unfence(now, ino, &mut self.effects);
        }
    }

    pub fn revoke(&mut self, now: Instant, session: SessionId, why: &str) {
        let label = self.state.session(session).ok().flatten().map(|known| known.label).unwrap_or_default();
        tracing::warn!(%session, label, "revoked: {why}");
        if let Err(fault) = self.decide(Body::SessionRevoked { session }) {
            tracing::error!(%session, "the session cannot be revoked: {fault}");
            self.leases.not_revoked(now, session);
            return;
        }
        self.forget_session(now, session);
    }

    /// Before each step.
    pub fn look(&mut self, now: Instant) {
        if let Some(standstill) = self.watch.look(now) {
            tracing::warn!(lasted = ?standstill.lasted(), "this master stood still");
            self.nodes.stood_still(&standstill);
            self.leases.stood_still(&standstill);
        }
    }

    /// A slave is back: what could not be finished may be possible now.
    pub fn try_unfinished_soon(&mut self, now: Instant) {
        self.unfinished.values_mut().for_each(|when| *when = now);
    }

    /// What the session waits for is not executed any more. Dropped, it tells its requests so.
    pub fn drop_parked(&mut self, session: SessionId) {
        self.parked.retain(|_, (waiting, _)| *waiting != session);
    }

    pub fn forget_session(&mut self, now: Instant, session: SessionId) {
        self.drop_parked(session);
        self.locks.ended(session, &mut self.effects);
        self.leases.ended(now, session, &mut self.effects);
        if let Some(index) = self.changed_at.remove(&session) {
            let own = self.changed_at.entry(SessionId(0)).or_default();
            *own = index.max(*own);
        }
        self.owners.remove(&session);
        self.clients.remove(&session);
        self.renewals.remove(&session);
    }

    /// A lease came back. A writer that gave up without a last commit leaves its chunks closed.
    pub fn released(&mut self, now: Instant, session: SessionId, release: &Release) -> Result<(), Fault> {
        let owned = self.owns(session, release.ino);
        self.leases.released(now, session, release, &mut self.effects);
        let owns = self.owns(session, release.ino);
        if owned && !owns { self.close_chunks(session, release.ino, Closing::GivenBack) } else { Ok(()) }
    }

    /// The session's chunks of the file are open no longer. Where the log has no room, that is made up for.
    pub fn close_chunks(&mut self, session: SessionId, ino: Ino, how: Closing) -> Result<(), Fault> {
        if self.state.open_chunks(session, ino)?.is_empty() {
            return Ok(());
        }
        let body = match how {
            Closing::Committed | Closing::GivenBack => Body::ChunksClosed { session, ino },
            Closing::Revoked => Body::ChunksGivenUp { session, ino },
        };
        match self.decide(body) {
            Ok((answer, _)) => answer.map(drop),
            Err(fault) if fault.code == Code::NoSpace => {
                let known = self.unclosed.entry((session, ino)).or_insert(how);
                if how == Closing::Revoked {
                    *known = how;
                }
                Ok(())
            }
            Err(fault) => Err(fault),
        }
    }

    /// Whether the session has chunks of the file open, besides these, of which no version is known and which were placed before this
    /// term: their first versions may have been committed and lost with the master's power.
    pub fn has_chunks_in_doubt(
        &self,
        session: SessionId,
        ino: Ino,
        besides: &[ChunkId],
    ) -> Result<bool, Fault> {
        for id in self.state.open_chunks(session, ino)? {
            // Ids rise with time: those that follow are of this term, too.
            let Some(chunk) = self.state.chunk(id)?.filter(|chunk| chunk.birth <= self.began_at.0) else {
                break;
            };
            if chunk.held.version.0 == 0 && !besides.contains(&id) {
                return Ok(true);
            }
        }
        Ok(false)
    }

    pub fn owns(&self, session: SessionId, ino: Ino) -> bool {
        self.leases.mode(session, ino) == Some(Mode::Exclusive)
    }

    /// Closes what could not be closed while the disk was full.
    pub fn close_unclosed(&mut self) {
        for ((session, ino), how) in std::mem::take(&mut self.unclosed) {
            // It may own the file again.
            if self.owns(session, ino) {
                continue;
            }
            if let Err(fault) = self.close_chunks(session, ino, how) {
                tracing::error!(%session, %ino, "its chunks cannot be closed: {fault}");
            }
        }
    }

    pub fn next_waiter(&mut self) -> WaiterId {
        self.next_waiter += 1;
        WaiterId(self.next_waiter)
    }

    pub fn park(&mut self, id: WaiterId, session: SessionId, parked: Box<dyn Parked>) {
        self.parked.insert(id, (session, parked));
    }

    /// Its requester gave up.
    pub fn abandon(&mut self, now: Instant, id: WaiterId) {
        self.parked.remove(&id);
        self.waits_no_longer(now, id);
    }

    /// Over, one way or the other: it leaves the queues.
    pub fn waits_no_longer(&mut self, now: Instant, id: WaiterId) {
        self.locks.done(id);
        self.leases.done(now, id, &mut self.effects);
    }

    /// Follows up on what the lease table said, until it says nothing more.
    pub fn settle(&mut self, now: Instant) {
        self.leases.tick(now, &mut self.effects);
        while !self.effects.is_empty() {
            for effect in std::mem::take(&mut self.effects) {
                match effect {
                    Effect::Ready(id) => self.attempt_parked(now, id),
                    Effect::Recall(session, recall) => self.outbox.push(Command::Recall(session, recall)),
                    Effect::Lapsed(session) => {
                        self.revoke(now, session, "its lease time has passed and somebody waits")
                    }
                }
            }
        }
    }

    fn attempt_parked(&mut self, now: Instant, id: WaiterId) {
        let Some((session, mut parked)) = self.parked.remove(&id) else { return };
        if parked.attempt(self, now, id) {
            self.waits_no_longer(now, id);
        } else {
            self.parked.insert(id, (session, parked));
        }
    }

    /// Puts a lease into a view, or says that there is none.
    pub fn dress(
        &mut self,
        now: Instant,
        session: SessionId,
        view: &mut InodeView,
        mode: Mode,
        without: &[Ino],
    ) {
        let ino = view.attr.ino;
        let is_free = !without.contains(&ino) && !self.leases.is_withheld(session, ino);
        let is_granted = is_free && self.is_open_to(session, &view.attr);
        view.lease = if is_granted { self.leases.grant(now, session, ino, mode) } else { None };
    }

    fn is_open_to(&self, session: SessionId, attr: &Attr) -> bool {
        self.state.is_open_to(session, attr).unwrap_or_else(|fault| {
            tracing::error!(%session, ino = %attr.ino, "no lease is granted: {fault}");
            false
        })
    }

    /// As [`Self::dress`] for an answer that is repeated: only what nobody else minds. The one who made a file for
    /// writing owns it again, as the answer that was lost had said; after a restart only the log knows of it.
    pub fn dress_again(&mut self, now: Instant, session: SessionId, view: &mut InodeView, owns: bool) {
        let ino = view.attr.ino;
        // What it was then may have changed since; a lease goes with what it is now.
        let Ok(attr) = self.state.attr(ino) else { return };
        view.attr = attr;
        if !self.is_open_to(session, &view.attr) {
            return;
        }
        if owns && self.leases.free_now(session, ino, Need::Own) {
            view.lease = self.leases.grant(now, session, ino, Mode::Exclusive);
        } else if self.leases.free_now(session, ino, Need::Read) {
            view.lease = self.leases.grant(now, session, ino, Mode::Shared);
        }
    }

    /// The connections are closed for good.
    pub fn unlink_all(&mut self) {
        self.clients.clear();
        self.slaves.links.clear();
        self.parked.clear();
    }

    pub fn parameters(&self) -> Result<godrive_proto::lease::ClusterParameters, Fault> {
        match self.state.cluster() {
            Some(cluster) => Ok(cluster.parameters),
            None => Err(Fault::new(Code::NotReady, "the cluster was not bootstrapped")),
        }
    }
}

/// An attempt that is over, with what has to be durable before its answer leaves.
pub fn over<T>(result: Result<T, Fault>, durable: LogIndex) -> Attempt<T> {
    Some((result, durable))
}
