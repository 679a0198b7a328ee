//! Byte-range locks (fcntl, flock) that all mounts of the cluster respect. They are advisory.
//!
//! The master keeps them in memory, for as long as the session lives. After its restart every session declares its own
//! again before it resumes, and nobody gets a new one until all have done so or lapsed; so they need no log.

use crate::Ino;
use crate::lease::ByteRange;
use crate::operation::operations;
use serde::{Deserialize, Serialize};

/// Whose locks do not exclude each other, within one session: a process, or an open file description.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct LockOwner(pub u64);

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum LockKind {
    /// Excludes writers.
    Read,
    /// Excludes everybody.
    Write,
}

/// One owner's lock on a range.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Lock {
    pub kind: LockKind,
    /// Not empty, and its end at most [`LOCKS_END`].
    pub range: ByteRange,
    /// The process that asked, by the numbers of its machine.
    pub pid: u32,
    /// The open file through which it was asked for; the client's own number.
    pub handle: u64,
}

/// Behind the last byte that can be locked.
pub const LOCKS_END: u64 = 1 << 63;

impl Lock {
    /// Whether two owners cannot have both.
    pub fn excludes(&self, other: &Self) -> bool {
        let written = self.kind == LockKind::Write || other.kind == LockKind::Write;
        written && self.range.start < other.range.end && other.range.start < self.range.end
    }
}

/// Puts `new` over whatever an owner has on its range, or takes everything away there. `locks` are in ascending order,
/// disjoint, and equal neighbours are one; they stay so.
pub fn set_range(locks: &mut Vec<Lock>, range: ByteRange, new: Option<Lock>) {
    let mut rest: Vec<Lock> = Vec::with_capacity(locks.len() + 2);
    for lock in locks.drain(..) {
        let before = ByteRange { start: lock.range.start, end: lock.range.end.min(range.start) };
        let behind = ByteRange { start: lock.range.start.max(range.end), end: lock.range.end };
        let left = [before, behind].into_iter().filter(|left| left.start < left.end);
        rest.extend(left.map(|range| Lock { range, ..lock }));
    }
    rest.extend(new.map(|new| Lock { range, ..new }));
    rest.sort_by_key(|lock| lock.range.start);
    for lock in rest {
        match locks.last_mut() {
            Some(last)
                if last.range.end == lock.range.start && Lock { range: last.range, ..lock } == *last =>
            {
                last.range.end = lock.range.end;
            }
            _ => locks.push(lock),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LockRequest {
    pub ino: Ino,
    pub owner: LockOwner,
    pub lock: Lock,
}

/// See [`AwaitLock`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct AwaitRequest {
    pub request: LockRequest,
    /// At most so long, in milliseconds.
    pub wait_ms: u32,
}

/// What the owner has on the inode now; the answer with the higher version is the newer one.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Locked {
    pub version: u64,
    pub locks: Vec<Lock>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct UnlockRequest {
    pub ino: Ino,
    pub owner: LockOwner,
    pub range: ByteRange,
}

/// A lock that is in the way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct InTheWay {
    pub lock: Lock,
    /// It is the asking session's own: its pid means something there.
    pub own: bool,
}

/// All locks of one owner on one inode.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerLocks {
    pub ino: Ino,
    pub owner: LockOwner,
    pub locks: Vec<Lock>,
}

operations! {
    /// None: others have it. All of these are refused on a connection that is not the session's newest, so that a late copy of
    /// one cannot undo what was done since.
    0x0120 SetLock(LockRequest) -> Option<Locked> [Client];
    0x0121 Unlock(UnlockRequest) -> Locked [Client];
    /// Which lock would be in the way, if any.
    0x0122 TestLock(LockRequest) -> Option<InTheWay> [Client];
    /// Each of these owners has exactly these locks, as far as others do not exclude them: after a restart of the master, and
    /// where the outcome of a request is not known. Answers the owners that could not have all, and now have none.
    0x0123 DeclareLocks(Vec<OwnerLocks>) -> Vec<(Ino, LockOwner)> [Client];
    /// The session's locks behind this inode and owner, at most [`crate::limits::MAX_LOCKS_TOLD`] in ascending order and
    /// never half an owner's; an empty page is the end.
    0x0124 OwnLocks(Option<(Ino, LockOwner)>) -> Vec<OwnerLocks> [Client];
    /// Answered when the lock can be had, or the time is over. It takes nothing, so that nothing is left behind by whoever gives up.
    0x0125 AwaitLock(AwaitRequest) -> () [Client];
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const BYTES: u64 = 24;

    fn lock(kind: LockKind, start: u64, end: u64, handle: u64) -> Lock {
        Lock { kind, range: ByteRange { start, end }, pid: 1, handle }
    }

    fn a_lock() -> impl Strategy<Value = Lock> {
        let kind = prop_oneof![Just(LockKind::Read), Just(LockKind::Write)];
        (kind, 0..BYTES, 1..BYTES, 0..2u64)
            .prop_map(|(kind, start, len, handle)| lock(kind, start, start + len, handle))
    }

    #[test]
    fn a_lock_in_the_middle_splits_and_the_same_again_joins() {
        let mut locks = vec![lock(LockKind::Read, 0, 10, 1)];
        let write = lock(LockKind::Write, 4, 6, 1);
        set_range(&mut locks, write.range, Some(write));
        assert_eq!(locks, [lock(LockKind::Read, 0, 4, 1), write, lock(LockKind::Read, 6, 10, 1)]);
        set_range(&mut locks, write.range, Some(lock(LockKind::Read, 4, 6, 1)));
        assert_eq!(locks, [lock(LockKind::Read, 0, 10, 1)]);
        set_range(&mut locks, ByteRange { start: 0, end: LOCKS_END }, None);
        assert_eq!(locks, []);
    }

    proptest! {
        #[test]
        fn ranges_are_as_if_each_byte_had_its_own_lock(
            steps in prop::collection::vec((a_lock(), any::<bool>()), 0..24),
        ) {
            let mut locks = Vec::new();
            let mut bytes = vec![None; 2 * BYTES as usize];
            for (step, takes) in steps {
                set_range(&mut locks, step.range, takes.then_some(step));
                let value = takes.then_some((step.kind, step.handle));
                bytes[step.range.start as usize..step.range.end as usize].fill(value);
                for (at, expected) in bytes.iter().enumerate() {
                    let at = at as u64;
                    let here = locks.iter().find(|lock| lock.range.start <= at && at < lock.range.end);
                    prop_assert_eq!(here.map(|lock| (lock.kind, lock.handle)), *expected);
                }
                for pair in locks.windows(2) {
                    prop_assert!(pair[0].range.end <= pair[1].range.start, "in order and disjoint");
                    let joined = pair[0].range.end == pair[1].range.start
                        && (pair[0].kind, pair[0].handle) == (pair[1].kind, pair[1].handle);
                    prop_assert!(!joined, "equal neighbours are one");
                }
            }
        }

        #[test]
        fn two_locks_exclude_each_other_where_a_written_byte_is_in_both(one in a_lock(), other in a_lock()) {
            let shared = (one.range.start..one.range.end).any(|at| (other.range.start..other.range.end).contains(&at));
            let written = one.kind == LockKind::Write || other.kind == LockKind::Write;
            prop_assert_eq!(one.excludes(&other), shared && written);
            prop_assert_eq!(other.excludes(&one), shared && written);
        }
    }
}
