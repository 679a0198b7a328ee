//! Holders and sessions: grants, releases, renewals, recovery.

use super::queue::{Due, Queue};
use super::{Effect, Need};
use crate::core::standstill::Standstill;
use godrive_proto::lease::{ByteRange, Lease, Mode, Release};
use godrive_proto::time::Instant;
use godrive_proto::{Ino, LeaseId, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

#[derive(Clone, Copy, Debug)]
pub struct Settings {
    pub revoked_after: Duration,
    /// A contended lease is not recalled sooner after its grant.
    pub held_at_least: Duration,
    /// A recall that could not be delivered is sent again after this.
    pub recall_again_after: Duration,
}

/// One session's lease on one inode.
#[derive(Clone, Debug)]
pub(super) struct Held {
    pub session: SessionId,
    pub id: LeaseId,
    pub mode: Mode,
    pub granted: Instant,
    pub recall: Option<Recall>,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct Recall {
    pub may_keep: Option<Mode>,
    pub sent: bool,
}

#[derive(Clone, Debug)]
pub(super) struct Session {
    pub renewed: Instant,
    /// False after a restart until the session said what it holds: till then it may hold anything.
    pub resumed: bool,
    /// [`Effect::Lapsed`] was given out.
    pub lapsed: bool,
    held: BTreeSet<Ino>,
    exclusive: u64,
}

/// See the module's description.
#[derive(Debug)]
pub struct Leases {
    term: Term,
    counter: u64,
    pub(super) settings: Settings,
    pub(super) sessions: BTreeMap<SessionId, Session>,
    pub(super) unresumed: BTreeSet<SessionId>,
    pub(super) inodes: BTreeMap<Ino, Vec<Held>>,
    /// Sessions that have handles open without a lease, as their releases said.
    open: BTreeMap<Ino, BTreeSet<SessionId>>,
    /// Inodes whose chunks are being put in order after their writer's death.
    pub(super) fenced: BTreeSet<Ino>,
    pub(super) queue: Queue,
}

impl Leases {
    pub fn new(term: Term, settings: Settings) -> Self {
        Self {
            term,
            counter: 0,
            settings,
            sessions: BTreeMap::new(),
            unresumed: BTreeSet::new(),
            inodes: BTreeMap::new(),
            open: BTreeMap::new(),
            fenced: BTreeSet::new(),
            queue: Queue::default(),
        }
    }

    /// A session known from the log at a restart.
    pub fn recovering(&mut self, now: Instant, session: SessionId) {
        self.insert(now, session, false);
        self.unresumed.insert(session);
    }

    pub fn opened(&mut self, now: Instant, session: SessionId) {
        self.insert(now, session, true);
    }

    fn insert(&mut self, now: Instant, session: SessionId, resumed: bool) {
        let fresh = Session { renewed: now, resumed, lapsed: false, held: BTreeSet::new(), exclusive: 0 };
        self.sessions.insert(session, fresh);
    }

    /// False if the session is unknown here.
    pub fn renewed(&mut self, now: Instant, session: SessionId) -> bool {
        let Some(known) = self.sessions.get_mut(&session) else { return false };
        known.renewed = now;
        true
    }

    /// Those that could not renew meanwhile are not taken for lost. To revoke later than a session gives up is always safe.
    pub fn stood_still(&mut self, standstill: &Standstill) {
        for known in self.sessions.values_mut() {
            known.renewed = standstill.counted(known.renewed);
        }
    }

    /// True if the session still has to say what it holds.
    pub fn must_resume(&self, session: SessionId) -> bool {
        self.unresumed.contains(&session)
    }

    /// Sessions, beside this one, that still have to say so.
    pub fn unresumed_besides(&self, session: SessionId) -> BTreeSet<SessionId> {
        self.unresumed.iter().copied().filter(|other| *other != session).collect()
    }

    /// Its lease time has passed: it may be revoked.
    pub fn may_be_revoked(&self, now: Instant, session: SessionId) -> bool {
        self.sessions
            .get(&session)
            .is_some_and(|known| now >= known.renewed.after(self.settings.revoked_after))
    }

    /// A session's word after a restart. Returns the exclusive leases it cannot have back.
    /// A repeated one only confirms what is held.
    pub fn resumed(
        &mut self,
        now: Instant,
        session: SessionId,
        exclusive: &[(Ino, LeaseId)],
        open: &[Ino],
        last: bool,
        effects: &mut Vec<Effect>,
    ) -> Vec<Ino> {
        let mut lost = Vec::new();
        let first_time = self.unresumed.contains(&session);
        for (ino, id) in exclusive {
            let free = first_time && self.holders(*ino).iter().all(|held| held.session == session);
            if self.mode(session, *ino) == Some(Mode::Exclusive) {
                continue;
            }
            // Ids of this term were not given to a session that has not resumed yet.
            if free && id.0 >> COUNTER_BITS < self.term.0 {
                self.put(now, session, *ino, *id, Mode::Exclusive);
            } else {
                lost.push(*ino);
            }
        }
        for ino in open {
            self.open.entry(*ino).or_default().insert(session);
        }
        if last && self.unresumed.remove(&session) {
            if let Some(known) = self.sessions.get_mut(&session) {
                known.resumed = true;
                known.renewed = now;
            }
            self.wake_all(now, effects);
        }
        lost
    }

    /// Another daemon goes on with the session, which caches nothing yet but what the kernel has: it owns nothing any
    /// more, and what was asked of the first is asked again. Inodes to be fenced must be fenced before.
    pub fn taken_over(&mut self, now: Instant, session: SessionId, effects: &mut Vec<Effect>) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        (known.renewed, known.lapsed, known.exclusive) = (now, false, 0);
        let held: Vec<Ino> = known.held.iter().copied().collect();
        for ino in held {
            let Some(held) = self.held_mut(session, ino) else { continue };
            held.mode = Mode::Shared;
            if let Some(recall) = &mut held.recall {
                recall.sent = false;
                self.queue.at(now, Due::Recall(ino, session));
            }
        }
        self.queue.forget_session(session);
        self.wake_all(now, effects);
    }

    /// Closed or revoked: nothing of it remains. Inodes to be fenced must be fenced before.
    pub fn ended(&mut self, now: Instant, session: SessionId, effects: &mut Vec<Effect>) {
        self.queue.forget_session(session);
        let Some(known) = self.sessions.remove(&session) else { return };
        for ino in &known.held {
            if let Some(holders) = self.inodes.get_mut(ino) {
                holders.retain(|held| held.session != session);
                if holders.is_empty() {
                    self.inodes.remove(ino);
                }
            }
        }
        self.open.retain(|_, sessions| {
            sessions.remove(&session);
            !sessions.is_empty()
        });
        self.unresumed.remove(&session);
        self.wake_all(now, effects);
    }

    /// Nobody is granted anything on the inode until [`Self::unfence`].
    pub fn fence(&mut self, ino: Ino) {
        self.fenced.insert(ino);
    }

    pub fn unfence(&mut self, now: Instant, ino: Ino, effects: &mut Vec<Effect>) {
        self.fenced.remove(&ino);
        self.wake(now, ino, effects);
    }

    /// The lease that a request which may go gets; None while the session's own is being recalled.
    pub fn grant(&mut self, now: Instant, session: SessionId, ino: Ino, mode: Mode) -> Option<Lease> {
        if !self.sessions.contains_key(&session) {
            return None;
        }
        let own = self.holders(ino).iter().find(|held| held.session == session);
        if own.is_some_and(|held| held.recall.is_some_and(|recall| recall.sent)) {
            return None;
        }
        let mode = own.map_or(mode, |held| held.mode.max(mode));
        self.counter += 1;
        let id = LeaseId((self.term.0 << COUNTER_BITS) | self.counter);
        self.put(now, session, ino, id, mode);
        Some(Lease { ino, id, mode, range: ByteRange::WHOLE })
    }

    fn put(&mut self, now: Instant, session: SessionId, ino: Ino, id: LeaseId, mode: Mode) {
        let before = self.mode(session, ino);
        let holders = self.inodes.entry(ino).or_insert_with(|| Vec::with_capacity(1));
        match holders.iter_mut().find(|held| held.session == session) {
            Some(held) => {
                held.id = id;
                if held.mode != mode {
                    (held.mode, held.granted) = (mode, now);
                }
            }
            None => holders.push(Held { session, id, mode, granted: now, recall: None }),
        }
        // The lease itself now says that the inode may be open.
        self.forget_open(session, ino);
        self.count(session, ino, before, Some(mode));
    }

    fn count(&mut self, session: SessionId, ino: Ino, before: Option<Mode>, after: Option<Mode>) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if before == Some(Mode::Exclusive) {
            known.exclusive -= 1;
        }
        if after == Some(Mode::Exclusive) {
            known.exclusive += 1;
        }
        match after {
            Some(_) => known.held.insert(ino),
            None => known.held.remove(&ino),
        };
    }

    /// A lease given back, asked for or not. A newer lease than the one named stays.
    pub fn released(
        &mut self,
        now: Instant,
        session: SessionId,
        release: &Release,
        effects: &mut Vec<Effect>,
    ) {
        let ino = release.ino;
        let before = self.mode(session, ino);
        let mut covered = before.is_none();
        if let Some(holders) = self.inodes.get_mut(&ino)
            && let Some(at) = holders.iter().position(|held| held.session == session)
            && holders[at].id <= release.id
        {
            covered = true;
            let asked = holders[at].recall.take().filter(|recall| recall.sent);
            let limit = asked.map_or(Some(holders[at].mode), |recall| recall.may_keep);
            match release.keeps.min(limit).min(before) {
                Some(mode) => {
                    holders[at].mode = mode;
                    self.count(session, ino, before, Some(mode));
                }
                None => {
                    holders.remove(at);
                    if holders.is_empty() {
                        self.inodes.remove(&ino);
                    }
                    self.count(session, ino, before, None);
                }
            }
        }
        if covered && self.mode(session, ino).is_none() {
            if release.open && self.sessions.contains_key(&session) {
                self.open.entry(ino).or_default().insert(session);
            } else {
                self.forget_open(session, ino);
            }
        }
        self.wake(now, ino, effects);
    }

    /// A commit said that the writer is done.
    pub fn downgrade(&mut self, now: Instant, session: SessionId, ino: Ino, effects: &mut Vec<Effect>) {
        if self.mode(session, ino) != Some(Mode::Exclusive) {
            return;
        }
        if let Some(held) = self.held_mut(session, ino) {
            held.mode = Mode::Shared;
        }
        self.count(session, ino, Some(Mode::Exclusive), Some(Mode::Shared));
        self.wake(now, ino, effects);
    }

    /// The inode does not exist any more: who waits for it finds that out.
    pub fn removed(&mut self, now: Instant, ino: Ino, effects: &mut Vec<Effect>) {
        for held in self.inodes.remove(&ino).unwrap_or_default() {
            self.count(held.session, ino, Some(held.mode), None);
        }
        self.open.remove(&ino);
        self.fenced.remove(&ino);
        self.wake(now, ino, effects);
    }

    /// The recall did not reach the holder, or it failed there.
    pub fn recall_failed(
        &mut self,
        now: Instant,
        session: SessionId,
        ino: Ino,
        id: LeaseId,
        effects: &mut Vec<Effect>,
    ) {
        let again = now.after(self.settings.recall_again_after);
        if let Some(held) = self.held_mut(session, ino)
            && held.id <= id
            && let Some(recall) = &mut held.recall
        {
            recall.sent = false;
            self.queue.at(again, Due::Recall(ino, session));
            // The holder's own requests for it had to wait for its answer.
            self.wake(now, ino, effects);
        }
    }

    /// Another session owns it, or its chunks are being put in order: a request that did not wait for that gets no lease with what it sees.
    pub fn is_withheld(&self, session: SessionId, ino: Ino) -> bool {
        let holders = self.holders(ino);
        let owned = holders.iter().any(|held| held.session != session && held.mode == Mode::Exclusive);
        owned || (self.fenced.contains(&ino) && self.mode(session, ino).is_none())
    }

    pub(super) fn held_mut(&mut self, session: SessionId, ino: Ino) -> Option<&mut Held> {
        self.inodes.get_mut(&ino)?.iter_mut().find(|held| held.session == session)
    }

    pub(super) fn holders(&self, ino: Ino) -> &[Held] {
        self.inodes.get(&ino).map_or(&[], Vec::as_slice)
    }

    /// What the session holds on the inode.
    pub fn mode(&self, session: SessionId, ino: Ino) -> Option<Mode> {
        self.holders(ino).iter().find(|held| held.session == session).map(|held| held.mode)
    }

    /// Another session that owns the inode.
    pub fn owner_besides(&self, session: SessionId, ino: Ino) -> Option<SessionId> {
        let owns = |held: &&Held| held.mode == Mode::Exclusive && held.session != session;
        self.holders(ino).iter().find(owns).map(|held| held.session)
    }

    /// The lease itself, unchanged.
    pub fn current(&self, session: SessionId, ino: Ino) -> Option<Lease> {
        let held = self.holders(ino).iter().find(|held| held.session == session)?;
        Some(Lease { ino, id: held.id, mode: held.mode, range: ByteRange::WHOLE })
    }

    /// Other sessions that have the inode open, as far as their releases said. Complete once they hold no lease.
    pub fn open_elsewhere(&self, session: SessionId, ino: Ino) -> Vec<SessionId> {
        let open = self.open.get(&ino).into_iter().flatten();
        open.copied().filter(|other| *other != session).collect()
    }

    /// The session has closed its last handle of an inode that it had said to have open without a lease.
    pub fn closed(&mut self, session: SessionId, ino: Ino) {
        self.forget_open(session, ino);
    }

    fn forget_open(&mut self, session: SessionId, ino: Ino) {
        if let Some(sessions) = self.open.get_mut(&ino) {
            sessions.remove(&session);
            if sessions.is_empty() {
                self.open.remove(&ino);
            }
        }
    }

    /// Shared and exclusive leases of a session, and when it renewed last.
    pub fn session(&self, session: SessionId) -> Option<(u64, u64, Instant)> {
        let known = self.sessions.get(&session)?;
        Some((known.held.len() as u64 - known.exclusive, known.exclusive, known.renewed))
    }

    /// Sessions that did not renew for so long, wanted or not.
    pub fn idle(&self, now: Instant, longer_than: Duration) -> Vec<SessionId> {
        let idle = self.sessions.iter().filter(|(_, known)| now.since(known.renewed) > longer_than);
        idle.map(|(session, _)| *session).collect()
    }

    /// Whether the inode could be had without a wait (for entries of a directory page, which never wait, and for
    /// answers that are repeated).
    pub fn free_now(&self, session: SessionId, ino: Ino, need: Need) -> bool {
        let others = self.unresumed.iter().any(|other| *other != session);
        let held = self.holders(ino).iter().any(|held| held.session != session && need.conflicts(held.mode));
        !others && !held && !self.fenced.contains(&ino) && !self.queue.reserved(session, ino, need)
    }
}

/// Grants of one term; the bits above are the term.
const COUNTER_BITS: u32 = 40;
