//! Waiters: who is in whose way, when to recall, when a silent holder has lapsed.

use super::table::Recall;
use super::{Effect, Leases, Need, Turn};
use godrive_proto::lease::RecallRequest;
use godrive_proto::time::Instant;
use godrive_proto::{Ino, SessionId};
use std::collections::{BTreeMap, BTreeSet};

/// A waiting request; the order of the numbers is the order of the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct WaiterId(pub u64);

#[derive(Debug)]
struct Waiter {
    session: SessionId,
    wants: Vec<(Ino, Need)>,
    /// Sessions whose release (or resumption) it waits for.
    blockers: BTreeSet<SessionId>,
}

/// Something to look at when its time comes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Due {
    Recall(Ino, SessionId),
    Lapse(SessionId),
}

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiters: BTreeMap<WaiterId, Waiter>,
    by_inode: BTreeMap<Ino, BTreeSet<WaiterId>>,
    due: BTreeSet<(Instant, Due)>,
    watched: BTreeSet<SessionId>,
}

impl Queue {
    pub fn at(&mut self, when: Instant, due: Due) {
        self.due.insert((when, due));
    }

    /// Another session's request waits for the inode and comes before this need.
    pub fn reserved(&self, session: SessionId, ino: Ino, need: Need) -> bool {
        let others = self.earlier(None, ino).filter(|waiter| waiter.session != session);
        others.into_iter().any(|waiter| waiter.needs(ino).any(|theirs| theirs.excludes(need)))
    }

    pub fn forget_session(&mut self, session: SessionId) {
        self.watched.remove(&session);
        let theirs: Vec<_> =
            self.waiters.iter().filter(|(_, w)| w.session == session).map(|(id, _)| *id).collect();
        for id in theirs {
            self.remove(id);
        }
    }

    fn earlier(&self, than: Option<WaiterId>, ino: Ino) -> impl Iterator<Item = &Waiter> {
        let ids = self.by_inode.get(&ino).into_iter().flatten();
        ids.take_while(move |id| than.is_none_or(|than| **id < than)).filter_map(|id| self.waiters.get(id))
    }

    fn put(&mut self, id: WaiterId, waiter: Waiter) {
        self.remove(id);
        for (ino, _) in &waiter.wants {
            self.by_inode.entry(*ino).or_default().insert(id);
        }
        self.waiters.insert(id, waiter);
    }

    fn remove(&mut self, id: WaiterId) -> Option<Waiter> {
        let waiter = self.waiters.remove(&id)?;
        for (ino, _) in &waiter.wants {
            if let Some(ids) = self.by_inode.get_mut(ino) {
                ids.remove(&id);
                if ids.is_empty() {
                    self.by_inode.remove(ino);
                }
            }
        }
        Some(waiter)
    }
}

impl Waiter {
    fn needs(&self, ino: Ino) -> impl Iterator<Item = Need> {
        self.wants.iter().filter(move |(wanted, _)| *wanted == ino).map(|(_, need)| *need)
    }
}

/// What stands between a request and its turn.
#[derive(Default)]
struct Obstacles {
    blocked: bool,
    sessions: BTreeSet<SessionId>,
    recalls: Vec<(Ino, SessionId, Need)>,
    without_grant: Vec<Ino>,
}

impl Leases {
    /// Asks for all of `wants`. The number must be new and higher than all before, or that of a waiting request,
    /// which keeps its place in the queue with the new wants. After [`Turn::Go`] the caller executes, takes the
    /// grants and says [`Self::done`].
    pub fn ask(
        &mut self,
        now: Instant,
        id: WaiterId,
        session: SessionId,
        wants: &[(Ino, Need)],
        effects: &mut Vec<Effect>,
    ) -> Turn {
        let obstacles = self.obstacles(id, session, wants);
        if !obstacles.blocked {
            return Turn::Go { without_grant: obstacles.without_grant };
        }
        for (ino, holder, need) in &obstacles.recalls {
            self.schedule_recall(now, *ino, *holder, *need);
        }
        for blocker in &obstacles.sessions {
            self.watch(now, *blocker);
        }
        self.queue.put(id, Waiter { session, wants: wants.to_vec(), blockers: obstacles.sessions });
        self.tick(now, effects);
        Turn::Wait
    }

    /// It waits for these sessions to resume, to end or to lapse, for something that no lease stands for. Its caller asks
    /// again when any of them has, or when it knows better.
    pub fn wait_for(
        &mut self,
        now: Instant,
        id: WaiterId,
        session: SessionId,
        blockers: BTreeSet<SessionId>,
        effects: &mut Vec<Effect>,
    ) {
        for blocker in blockers.iter().filter(|blocker| **blocker != session) {
            self.watch(now, *blocker);
        }
        self.queue.put(id, Waiter { session, wants: Vec::new(), blockers });
        self.tick(now, effects);
    }

    /// The request was executed, failed or gave up: it leaves the queue, and those behind it may move up.
    pub fn done(&mut self, now: Instant, id: WaiterId, effects: &mut Vec<Effect>) {
        if let Some(waiter) = self.queue.remove(id) {
            for (ino, _) in waiter.wants {
                self.wake(now, ino, effects);
            }
        }
    }

    /// Sends recalls that are due, and finds sessions that somebody waits for in vain.
    pub fn tick(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        while let Some((when, due)) = self.queue.due.first().copied().filter(|(when, _)| *when <= now) {
            self.queue.due.remove(&(when, due));
            match due {
                Due::Recall(ino, session) => self.recall_due(ino, session, effects),
                Due::Lapse(session) => self.lapse_due(now, session, effects),
            }
        }
    }

    /// When [`Self::tick`] has something to do next.
    pub fn next_tick(&self) -> Option<Instant> {
        self.queue.due.first().map(|(when, _)| *when)
    }

    pub fn waiting(&self) -> usize {
        self.queue.waiters.len()
    }

    fn obstacles(&self, id: WaiterId, session: SessionId, wants: &[(Ino, Need)]) -> Obstacles {
        let mut found = Obstacles::default();
        for other in self.unresumed.iter().filter(|other| **other != session) {
            found.blocked = true;
            found.sessions.insert(*other);
        }
        for (ino, need) in wants {
            if self.fenced.contains(ino) {
                found.blocked = true;
            }
            self.holders_in_the_way(session, *ino, *need, &mut found);
            self.waiters_in_the_way(id, session, *ino, *need, &mut found);
        }
        found
    }

    fn holders_in_the_way(&self, session: SessionId, ino: Ino, need: Need, found: &mut Obstacles) {
        for held in self.holders(ino) {
            if held.session == session {
                // A lease that is being recalled cannot be what an acquisition returns.
                if matches!(need, Need::Share | Need::Own) && held.recall.is_some_and(|recall| recall.sent) {
                    found.blocked = true;
                }
            } else if need.conflicts(held.mode) {
                found.blocked = true;
                found.sessions.insert(held.session);
                found.recalls.push((ino, held.session, need));
            }
        }
    }

    fn waiters_in_the_way(
        &self,
        id: WaiterId,
        session: SessionId,
        ino: Ino,
        need: Need,
        found: &mut Obstacles,
    ) {
        let own = self.mode(session, ino);
        for earlier in self.queue.earlier(Some(id), ino).filter(|earlier| earlier.session != session) {
            for theirs in earlier.needs(ino).filter(|theirs| theirs.excludes(need)) {
                let waits_for_us = own.is_some_and(|mode| theirs.conflicts(mode));
                if waits_for_us && matches!(need, Need::Read | Need::Change) {
                    found.without_grant.push(ino);
                } else {
                    found.blocked = true;
                }
            }
        }
    }

    fn schedule_recall(&mut self, now: Instant, ino: Ino, holder: SessionId, need: Need) {
        let held_at_least = self.settings.held_at_least;
        let Some(held) = self.held_mut(holder, ino) else { return };
        match &mut held.recall {
            // A sent one that asks for less is followed by another when it was answered.
            Some(recall) if recall.sent => {}
            Some(recall) => recall.may_keep = recall.may_keep.min(need.may_keep()),
            None => {
                held.recall = Some(Recall { may_keep: need.may_keep(), sent: false });
                let when = held.granted.after(held_at_least).max(now);
                self.queue.at(when, Due::Recall(ino, holder));
            }
        }
    }

    fn recall_due(&mut self, ino: Ino, session: SessionId, effects: &mut Vec<Effect>) {
        let Some(mode) = self.mode(session, ino) else { return };
        let wanted = self
            .queue
            .earlier(None, ino)
            .filter(|waiter| waiter.session != session)
            .any(|waiter| waiter.needs(ino).any(|need| need.conflicts(mode)));
        let Some(held) = self.held_mut(session, ino) else { return };
        match &mut held.recall {
            Some(recall) if !recall.sent && wanted => {
                recall.sent = true;
                let request = RecallRequest { ino, id: held.id, may_keep: recall.may_keep };
                effects.push(Effect::Recall(session, request));
            }
            Some(recall) if !recall.sent => held.recall = None,
            _ => {}
        }
    }

    fn watch(&mut self, now: Instant, session: SessionId) {
        if let Some(known) = self.sessions.get(&session)
            && !known.lapsed
            && self.queue.watched.insert(session)
        {
            let when = known.renewed.after(self.settings.revoked_after).max(now);
            self.queue.at(when, Due::Lapse(session));
        }
    }

    /// A lapsed session could not be revoked now: it is looked at again, in case somebody still waits.
    pub fn not_revoked(&mut self, now: Instant, session: SessionId) {
        let Some(known) = self.sessions.get_mut(&session) else { return };
        known.lapsed = false;
        if self.queue.watched.insert(session) {
            self.queue.at(now.after(self.settings.recall_again_after), Due::Lapse(session));
        }
    }

    fn lapse_due(&mut self, now: Instant, session: SessionId, effects: &mut Vec<Effect>) {
        self.queue.watched.remove(&session);
        let wanted = self.queue.waiters.values().any(|waiter| waiter.blockers.contains(&session));
        let Some(known) = self.sessions.get_mut(&session) else { return };
        if !wanted || known.lapsed {
            return;
        }
        if now >= known.renewed.after(self.settings.revoked_after) {
            known.lapsed = true;
            effects.push(Effect::Lapsed(session));
        } else {
            self.watch(now, session);
        }
    }

    /// Looks again at everyone who waits for the inode, in order.
    pub(super) fn wake(&mut self, now: Instant, ino: Ino, effects: &mut Vec<Effect>) {
        let ids: Vec<_> = self.queue.by_inode.get(&ino).into_iter().flatten().copied().collect();
        self.look_again(now, ids, effects);
    }

    pub(super) fn wake_all(&mut self, now: Instant, effects: &mut Vec<Effect>) {
        let ids: Vec<_> = self.queue.waiters.keys().copied().collect();
        self.look_again(now, ids, effects);
    }

    fn look_again(&mut self, now: Instant, ids: Vec<WaiterId>, effects: &mut Vec<Effect>) {
        for id in ids {
            let Some(waiter) = self.queue.waiters.get(&id) else { continue };
            let (session, wants) = (waiter.session, waiter.wants.clone());
            match self.ask(now, id, session, &wants, effects) {
                Turn::Go { .. } => effects.push(Effect::Ready(id)),
                Turn::Wait => {}
            }
        }
    }
}
