//! The table of byte-range locks: who has which, and who waits.
//!
//! It is volatile, as the lease table is: see [`godrive_proto::locks`]. That nobody gets a lock which a session may hold
//! that has not resumed yet, and that the locks of a dead one go with its lease, is for the caller to see to.
//!
//! A request that waits takes nothing when its time has come: its requester asks again. It is told so whenever something on its
//! inode became free, those that have waited longest first, and a new request may go before them, as on Linux.
//!
//! A request that would wait for itself is refused, as fcntl(2) does: the wait-for graph of owners is searched from the
//! holders (Holt, "Some Deadlock Properties of Computer Systems", 1972).

use super::leases::{Effect, WaiterId};
use godrive_proto::lease::ByteRange;
use godrive_proto::limits::{MAX_LOCK_WAITS, MAX_LOCKS_TOLD, MAX_OWNER_LOCKS, MAX_SESSION_LOCKS};
use godrive_proto::locks::{InTheWay, Lock, LockOwner, Locked, OwnerLocks, set_range};
use godrive_proto::{Code, Fault, Ino, SessionId, Term};
use std::collections::{BTreeMap, BTreeSet};

/// An owner of locks, among all sessions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Who {
    pub session: SessionId,
    pub owner: LockOwner,
}

/// What somebody wants to have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wanted {
    pub ino: Ino,
    pub who: Who,
    pub lock: Lock,
}

/// See the module's description.
#[derive(Debug)]
pub struct Locks {
    term: Term,
    changes: u64,
    inodes: BTreeMap<Ino, BTreeMap<Who, Vec<Lock>>>,
    /// Inodes on which a session has locks, and how many it has in all.
    sessions: BTreeMap<SessionId, (BTreeSet<Ino>, usize)>,
    waiting: BTreeMap<WaiterId, Wanted>,
}

/// Changes of one term; the bits above are the term, so that versions rise over a restart.
const CHANGE_BITS: u32 = 40;
/// Owners that a search for a deadlock looks at; a longer circle is not found, and waits.
const MAX_SEARCHED: usize = 64;

impl Locks {
    pub fn new(term: Term) -> Self {
        Self {
            term,
            changes: 0,
            inodes: BTreeMap::new(),
            sessions: BTreeMap::new(),
            waiting: BTreeMap::new(),
        }
    }

    /// Takes the lock if nobody else's is in the way; None: somebody's is.
    pub fn lock(&mut self, wanted: &Wanted, effects: &mut Vec<Effect>) -> Result<Option<Locked>, Fault> {
        let Wanted { ino, who, lock } = *wanted;
        if self.in_the_way(wanted).next().is_some() {
            return Ok(None);
        }
        let mut locks = self.of_owner(ino, who).to_vec();
        set_range(&mut locks, lock.range, Some(lock));
        self.check_room(who.session, locks.len())?;
        // A weaker lock than before lets others in.
        Ok(Some(self.put(ino, who, locks, effects)))
    }

    /// Takes away what the owner has on the range, which may leave more pieces than there may be.
    pub fn unlock(
        &mut self,
        ino: Ino,
        who: Who,
        range: ByteRange,
        effects: &mut Vec<Effect>,
    ) -> Result<Locked, Fault> {
        let mut locks = self.of_owner(ino, who).to_vec();
        set_range(&mut locks, range, None);
        if locks.len() > self.of_owner(ino, who).len() {
            self.check_room(who.session, locks.len())?;
        }
        Ok(self.put(ino, who, locks, effects))
    }

    fn check_room(&self, session: SessionId, of_owner: usize) -> Result<(), Fault> {
        let all = self.sessions.get(&session).map_or(0, |(_, all)| *all);
        if of_owner <= MAX_OWNER_LOCKS && all < MAX_SESSION_LOCKS {
            return Ok(());
        }
        let detail = format!(
            "one owner has at most {MAX_OWNER_LOCKS} locks on a file, and a mount {MAX_SESSION_LOCKS}"
        );
        Err(Fault::new(Code::NoLocks, detail))
    }

    /// A lock that is in the way of this one.
    pub fn test(&self, wanted: &Wanted) -> Option<InTheWay> {
        let (who, lock) = self.in_the_way(wanted).next()?;
        Some(InTheWay { lock, own: who.session == wanted.who.session })
    }

    /// The sessions whose locks are in the way.
    pub fn blockers(&self, wanted: &Wanted) -> BTreeSet<SessionId> {
        self.in_the_way(wanted).map(|(who, _)| who.session).collect()
    }

    /// It waits under this number until [`Self::done`], and is told when to ask again. Refused: it would wait for itself, or
    /// too many of its session wait.
    pub fn wait(&mut self, id: WaiterId, wanted: &Wanted) -> Result<(), Fault> {
        if self.waits_for(wanted, wanted.who) {
            return Err(Fault::new(Code::Deadlock, "its holder waits for a lock of the requester"));
        }
        let others = self.waiting.iter().filter(|(other, _)| **other != id);
        if others.filter(|(_, other)| other.who.session == wanted.who.session).count() >= MAX_LOCK_WAITS {
            return Err(Fault::new(Code::NoLocks, format!("{MAX_LOCK_WAITS} requests of the session wait")));
        }
        self.waiting.insert(id, *wanted);
        Ok(())
    }

    pub fn done(&mut self, id: WaiterId) {
        self.waiting.remove(&id);
    }

    /// The owner has these locks and no others. False: somebody's is in the way, so it has none.
    pub fn declare(&mut self, ino: Ino, who: Who, declared: &[Lock], effects: &mut Vec<Effect>) -> bool {
        let room = declared.is_empty() || self.check_room(who.session, declared.len()).is_ok();
        let free = room
            && declared
                .iter()
                .all(|lock| self.in_the_way(&Wanted { ino, who, lock: *lock }).next().is_none());
        let mut locks = Vec::new();
        for lock in declared.iter().filter(|_| free) {
            set_range(&mut locks, lock.range, Some(*lock));
        }
        self.put(ino, who, locks, effects);
        free
    }

    /// One page of a session's locks, behind an inode and owner.
    pub fn page(&self, session: SessionId, after: Option<(Ino, LockOwner)>) -> Vec<OwnerLocks> {
        let inodes = self.sessions.get(&session).map(|(inodes, _)| inodes).into_iter().flatten();
        let owners = inodes.flat_map(|ino| {
            let all = self.inodes.get(ino).into_iter().flatten();
            all.filter(|(who, _)| who.session == session).map(move |(who, locks)| (*ino, who.owner, locks))
        });
        let mut page = Vec::new();
        let mut told = 0;
        for (ino, owner, locks) in
            owners.filter(|(ino, owner, _)| after.is_none_or(|after| (*ino, *owner) > after))
        {
            told += locks.len();
            if told > MAX_LOCKS_TOLD {
                break;
            }
            page.push(OwnerLocks { ino, owner, locks: locks.clone() });
        }
        page
    }

    /// Nothing of the session remains.
    pub fn ended(&mut self, session: SessionId, effects: &mut Vec<Effect>) {
        let (inodes, _) = self.sessions.remove(&session).unwrap_or_default();
        self.waiting.retain(|_, wanted| wanted.who.session != session);
        for ino in inodes {
            if let Some(owners) = self.inodes.get_mut(&ino) {
                owners.retain(|who, _| who.session != session);
                if owners.is_empty() {
                    self.inodes.remove(&ino);
                }
            }
            self.wake(ino, effects);
        }
    }

    /// The inode does not exist any more: who waits for it finds that out.
    pub fn removed(&mut self, ino: Ino, effects: &mut Vec<Effect>) {
        for (who, locks) in self.inodes.remove(&ino).unwrap_or_default() {
            self.count(who.session, ino, locks.len(), 0);
        }
        self.wake(ino, effects);
    }

    /// How many locks there are, and how many requests wait for one.
    pub fn counts(&self) -> (usize, usize) {
        (self.sessions.values().map(|(_, locks)| locks).sum(), self.waiting.len())
    }

    fn of_owner(&self, ino: Ino, who: Who) -> &[Lock] {
        self.inodes.get(&ino).and_then(|owners| owners.get(&who)).map_or(&[], Vec::as_slice)
    }

    fn in_the_way<'a>(&'a self, wanted: &'a Wanted) -> impl Iterator<Item = (Who, Lock)> + 'a {
        let others = self.inodes.get(&wanted.ino).into_iter().flatten();
        let others = others.filter(|(who, _)| **who != wanted.who);
        others
            .flat_map(|(who, locks)| locks.iter().map(|lock| (*who, *lock)))
            .filter(|(_, lock)| lock.excludes(&wanted.lock))
    }

    /// Whether those in the way wait, over however many others, for `who`.
    fn waits_for(&self, wanted: &Wanted, who: Who) -> bool {
        let mut seen = BTreeSet::new();
        let mut next: BTreeSet<Who> = self.in_the_way(wanted).map(|(who, _)| who).collect();
        while let Some(holder) = next.pop_first() {
            if holder == who {
                return true;
            }
            if seen.len() < MAX_SEARCHED && seen.insert(holder) {
                let waits = self.waiting.values().filter(|waiting| waiting.who == holder);
                next.extend(waits.flat_map(|waiting| self.in_the_way(waiting)).map(|(who, _)| who));
            }
        }
        false
    }

    fn put(&mut self, ino: Ino, who: Who, locks: Vec<Lock>, effects: &mut Vec<Effect>) -> Locked {
        self.changes += 1;
        let version = (self.term.0 << CHANGE_BITS) | self.changes;
        let before = self.of_owner(ino, who).to_vec();
        if before != locks {
            let owners = self.inodes.entry(ino).or_default();
            match locks.is_empty() {
                true => owners.remove(&who),
                false => owners.insert(who, locks.clone()),
            };
            if owners.is_empty() {
                self.inodes.remove(&ino);
            }
            self.count(who.session, ino, before.len(), locks.len());
            self.wake(ino, effects);
        }
        Locked { version, locks }
    }

    /// After one of the session's owners on the inode has so many locks instead of `before`.
    fn count(&mut self, session: SessionId, ino: Ino, before: usize, after: usize) {
        let owners = self.inodes.get(&ino);
        let has_some = owners.is_some_and(|owners| owners.keys().any(|who| who.session == session));
        let (inodes, all) = self.sessions.entry(session).or_default();
        *all = *all + after - before;
        match has_some {
            true => inodes.insert(ino),
            false => inodes.remove(&ino),
        };
        if *all == 0 {
            self.sessions.remove(&session);
        }
    }

    fn wake(&self, ino: Ino, effects: &mut Vec<Effect>) {
        let waits = self.waiting.iter().filter(|(_, wanted)| wanted.ino == ino);
        effects.extend(waits.map(|(id, _)| Effect::Ready(*id)));
    }
}

#[cfg(test)]
#[path = "locks_tests.rs"]
mod tests;
