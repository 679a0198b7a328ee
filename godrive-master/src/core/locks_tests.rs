use super::*;
use godrive_proto::locks::{LOCKS_END, LockKind};
use proptest::prelude::*;

const FILE: Ino = Ino(7);

fn who(session: u64, owner: u64) -> Who {
    Who { session: SessionId(session), owner: LockOwner(owner) }
}

fn wanted(ino: Ino, who: Who, kind: LockKind, start: u64, end: u64) -> Wanted {
    Wanted { ino, who, lock: Lock { kind, range: ByteRange { start, end }, pid: 1, handle: 1 } }
}

fn write(who: Who, start: u64, end: u64) -> Wanted {
    wanted(FILE, who, LockKind::Write, start, end)
}

fn read(who: Who, start: u64, end: u64) -> Wanted {
    wanted(FILE, who, LockKind::Read, start, end)
}

struct Table {
    locks: Locks,
    effects: Vec<Effect>,
}

impl Table {
    fn new() -> Self {
        Self { locks: Locks::new(Term(3)), effects: Vec::new() }
    }

    fn takes(&mut self, wanted: &Wanted) -> bool {
        self.locks.lock(wanted, &mut self.effects).unwrap().is_some()
    }

    fn unlock(&mut self, who: Who, start: u64, end: u64) {
        self.locks.unlock(FILE, who, ByteRange { start, end }, &mut self.effects).unwrap();
    }

    fn waits(&mut self, id: u64, wanted: &Wanted) -> bool {
        match self.locks.wait(WaiterId(id), wanted) {
            Ok(()) => true,
            Err(fault) => {
                assert_eq!(fault.code, Code::Deadlock);
                false
            }
        }
    }

    fn woken(&mut self) -> Vec<u64> {
        let ready = |effect| match effect {
            Effect::Ready(id) => id.0,
            other => panic!("{other:?}"),
        };
        self.effects.drain(..).map(ready).collect()
    }
}

#[test]
fn readers_share_and_a_writer_is_alone() {
    let mut table = Table::new();
    let (a, b, c) = (who(1, 1), who(1, 2), who(2, 1));
    assert!(table.takes(&read(a, 0, 10)) && table.takes(&read(c, 5, 15)));
    assert!(!table.takes(&write(b, 9, 10)), "owners of one session exclude each other too");
    assert!(table.takes(&write(b, 15, 20)));
    assert!(!table.takes(&write(a, 0, 6)), "a reader becomes a writer only if it is the only one");
    assert!(table.takes(&write(a, 0, 5)));
    let seen = table.locks.test(&write(a, 7, 16)).unwrap();
    assert_eq!((seen.own, seen.lock.range), (true, ByteRange { start: 15, end: 20 }));
    assert!(!table.locks.test(&write(a, 7, 8)).unwrap().own);
    assert_eq!(table.locks.test(&read(a, 7, 8)), None);
    assert_eq!(table.locks.blockers(&write(a, 0, LOCKS_END)), BTreeSet::from([SessionId(1), SessionId(2)]));
}

#[test]
fn who_waits_is_told_when_something_became_free() {
    let mut table = Table::new();
    let (a, b, c) = (who(1, 1), who(2, 1), who(3, 1));
    assert!(table.takes(&write(a, 0, 10)));
    assert!(!table.takes(&write(c, 0, 5)) && table.waits(5, &write(c, 0, 5)));
    assert!(!table.takes(&write(b, 0, 5)) && table.waits(4, &write(b, 0, 5)));
    table.woken();
    table.unlock(a, 5, 10);
    table.unlock(a, 20, 30);
    assert_eq!(table.woken(), [4, 5], "in the order of the queue, and only where something changed");
    assert!(!table.takes(&write(b, 0, 5)));
    assert!(table.takes(&read(a, 0, 5)));
    assert_eq!(table.woken(), [4, 5], "a weaker lock may be enough");
    table.locks.done(WaiterId(4));
    table.locks.ended(SessionId(1), &mut table.effects);
    assert_eq!(table.woken(), [5], "and so is the end of a session");
    assert!(table.takes(&write(c, 0, 5)));
    assert_eq!(table.locks.counts(), (1, 1));
}

#[test]
fn a_request_that_would_wait_for_itself_is_refused() {
    let mut table = Table::new();
    let (a, b, c) = (who(1, 1), who(2, 1), who(3, 1));
    let other = Ino(8);
    assert!(table.takes(&write(a, 0, 1)) && table.takes(&write(b, 1, 2)));
    assert!(table.takes(&wanted(other, c, LockKind::Write, 0, 1)));
    assert!(table.waits(1, &write(a, 1, 2)));
    assert!(table.waits(2, &wanted(other, b, LockKind::Read, 0, LOCKS_END)));
    assert!(!table.waits(3, &write(c, 0, 1)), "c waits for a, for b, for c");
    table.locks.done(WaiterId(2));
    assert!(table.waits(3, &write(c, 0, 1)));
}

#[test]
fn what_is_declared_replaces_what_the_owner_had() {
    let mut table = Table::new();
    let (a, b) = (who(1, 1), who(2, 1));
    assert!(table.takes(&write(a, 0, 10)) && table.takes(&write(b, 20, 30)));
    let mine = [write(a, 5, 6).lock, read(a, 8, 9).lock];
    assert!(table.locks.declare(FILE, a, &mine, &mut table.effects));
    assert!(table.takes(&write(b, 0, 5)) && !table.takes(&write(b, 5, 6)));
    assert!(!table.locks.declare(FILE, a, &[write(a, 15, 25).lock], &mut table.effects));
    assert!(table.takes(&write(b, 0, 20)), "what could not all be had is not held in part");
    assert_eq!(table.locks.page(SessionId(1), None), []);
}

#[test]
fn a_session_is_told_its_own_in_pages() {
    let mut table = Table::new();
    for ino in 1..=5 {
        for owner in [1, 2] {
            let who = who(1, owner);
            for at in 0..1000 {
                let wanted = wanted(Ino(ino), who, LockKind::Read, 2 * at, 2 * at + 1);
                assert!(table.takes(&wanted));
            }
        }
        assert!(table.takes(&wanted(Ino(ino), who(2, 1), LockKind::Read, 0, 1)));
    }
    let (mut after, mut told) = (None, Vec::new());
    loop {
        let page = table.locks.page(SessionId(1), after);
        assert!(page.iter().map(|owner| owner.locks.len()).sum::<usize>() <= MAX_LOCKS_TOLD);
        let Some(last) = page.last() else { break };
        after = Some((last.ino, last.owner));
        told.extend(page.iter().map(|owner| (owner.ino.0, owner.owner.0, owner.locks.len())));
    }
    let all: Vec<_> = (1..=5).flat_map(|ino| [1, 2].map(|owner| (ino, owner, 1000))).collect();
    assert_eq!(told, all);
    table.locks.removed(Ino(1), &mut table.effects);
    assert_eq!(table.locks.counts().0, 8004);
    assert_eq!(table.locks.page(SessionId(1), None)[0].ino, Ino(2));
}

#[test]
fn there_is_an_end_to_locks() {
    let mut table = Table::new();
    for at in 0..MAX_OWNER_LOCKS as u64 {
        assert!(table.takes(&write(who(1, 1), 2 * at, 2 * at + 1)));
    }
    let one_more = write(who(1, 1), 1 << 20, (1 << 20) + 1);
    let refused = table.locks.lock(&one_more, &mut table.effects).unwrap_err();
    assert_eq!(refused.code, Code::NoLocks);
    assert!(table.takes(&write(who(1, 1), 0, LOCKS_END)), "the whole is one lock");
    for at in 1..MAX_OWNER_LOCKS as u64 {
        table.unlock(who(1, 1), 2 * at, 2 * at + 1);
    }
    let range = ByteRange { start: 1 << 20, end: (1 << 20) + 1 };
    let refused = table.locks.unlock(FILE, who(1, 1), range, &mut table.effects).unwrap_err();
    assert_eq!(refused.code, Code::NoLocks, "an unlock splits, too");
    assert_eq!(table.locks.counts().0, MAX_OWNER_LOCKS);
    for id in 0..MAX_LOCK_WAITS as u64 {
        assert!(table.waits(id, &write(who(2, id), 0, 1)));
    }
    let one_more = table.locks.wait(WaiterId(9999), &write(who(2, 9999), 0, 1)).unwrap_err();
    assert_eq!(one_more.code, Code::NoLocks);
    table.locks.wait(WaiterId(5), &write(who(2, 5), 0, 1)).unwrap();
}

#[test]
fn versions_rise_over_a_restart() {
    let (mut before, mut after) = (Locks::new(Term(3)), Locks::new(Term(4)));
    let version =
        |locks: &mut Locks| locks.lock(&write(who(1, 1), 0, 1), &mut Vec::new()).unwrap().unwrap().version;
    let first = version(&mut before);
    assert!(version(&mut before) > first);
    assert!(version(&mut after) > version(&mut before));
}

const BYTES: usize = 12;

proptest! {
    /// Two sessions of two owners each, against a table in which each byte has its own lock.
    #[test]
    fn as_if_each_byte_had_its_own_lock(
        steps in prop::collection::vec((0..4usize, 0..3u8, 0..BYTES, 1..BYTES), 1..60),
    ) {
        let mut table = Table::new();
        let owners = [who(1, 1), who(1, 2), who(2, 1), who(2, 2)];
        let mut model = [[None; 2 * BYTES]; 4];
        for (owner, what, start, len) in steps {
            let (range, who) = (start..start + len, owners[owner]);
            if what == 2 {
                table.unlock(who, start as u64, (start + len) as u64);
                model[owner][range].fill(None);
                continue;
            }
            let kind = if what == 1 { LockKind::Write } else { LockKind::Read };
            let in_the_way = (0..4).filter(|other| *other != owner).any(|other| {
                model[other][range.clone()].iter().flatten().any(|theirs| {
                    kind == LockKind::Write || *theirs == LockKind::Write
                })
            });
            let asked = wanted(FILE, who, kind, start as u64, (start + len) as u64);
            prop_assert_eq!(table.locks.test(&asked).is_some(), in_the_way);
            prop_assert_eq!(table.takes(&asked), !in_the_way);
            if !in_the_way {
                model[owner][range].fill(Some(kind));
            }
        }
        let runs = |bytes: &[Option<LockKind>]| {
            (0..bytes.len()).filter(|at| bytes[*at].is_some() && (*at == 0 || bytes[at - 1] != bytes[*at])).count()
        };
        let all: usize = model.iter().map(|bytes| runs(bytes)).sum();
        prop_assert_eq!(table.locks.counts().0, all);
    }
}
