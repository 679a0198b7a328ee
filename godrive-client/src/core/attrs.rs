//! An inode's attributes: what the master said last, and what the holder of the exclusive lease has changed since.
//!
//! Replies can arrive out of order; [`Attr::change`] orders them. Under an exclusive lease size, times, mode and owners
//! belong to the holder until they are committed, and a reply's older values of them are ignored.

use godrive_proto::meta::{Attr, AttrChanges, Kind, SetTime};
use godrive_proto::time::Timestamp;

/// Which of the holder's changes the master does not know yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Pending {
    pub size: bool,
    pub mode: bool,
    pub owner: bool,
    pub atime: bool,
    pub mtime: bool,
    /// Somebody set it: no write, after which it may follow later.
    pub mtime_set: bool,
    pub ctime: bool,
}

impl Pending {
    pub const ALL: Self =
        Self { size: true, mode: true, owner: true, atime: true, mtime: true, mtime_set: true, ctime: true };

    pub fn any(&self) -> bool {
        *self != Self::default()
    }

    /// Something that a caller has set, which fsync makes durable.
    pub fn is_set(&self) -> bool {
        self.mode || self.owner || self.atime || self.mtime_set
    }

    pub fn merge(&mut self, other: Self) {
        self.size |= other.size;
        self.mode |= other.mode;
        self.owner |= other.owner;
        self.atime |= other.atime;
        self.mtime |= other.mtime;
        self.mtime_set |= other.mtime_set;
        self.ctime |= other.ctime;
    }

    /// What a commit says: the values at that moment. The size goes beside it.
    pub fn changes(&self, attr: &Attr) -> AttrChanges {
        AttrChanges {
            mode: self.mode.then_some(attr.mode),
            uid: self.owner.then_some(attr.uid),
            gid: self.owner.then_some(attr.gid),
            atime: self.atime.then_some(SetTime::At(attr.atime)),
            mtime: self.mtime.then_some(SetTime::At(attr.mtime)),
            ctime: self.ctime.then_some(attr.ctime),
        }
    }
}

/// Takes a reply's attributes in; `local` are the fields that the master does not know yet, and so are the links and what
/// a directory's names make of it while removals of names are `unfollowed`.
pub fn merge(known: &mut Option<Attr>, local: Pending, unfollowed: bool, new: Attr) {
    let Some(old) = known else {
        *known = Some(new);
        return;
    };
    if new.change < old.change {
        return;
    }
    let mut merged = new;
    if local.size {
        merged.size = old.size;
    }
    if local.mode {
        merged.mode = old.mode;
    }
    if local.owner {
        (merged.uid, merged.gid) = (old.uid, old.gid);
    }
    if local.atime {
        merged.atime = old.atime;
    }
    if local.mtime {
        merged.mtime = old.mtime;
    }
    if unfollowed {
        merged.nlink = old.nlink;
        if old.kind == Kind::Directory {
            (merged.size, merged.mtime) = (old.size, old.mtime);
        }
    }
    if local.ctime || unfollowed {
        merged.ctime = old.ctime.max(merged.ctime);
    }
    *known = Some(merged);
}

const SET_UID: u16 = 0o4000;
const SET_GID: u16 = 0o2000;
const GROUP_EXECUTE: u16 = 0o010;

/// The mode without the bits that a write, truncation or change of owner takes away: set-uid, and set-gid where it
/// means execution (without group execution it once meant mandatory locking and stays).
pub fn without_privileges(mode: u16) -> u16 {
    let group = if mode & GROUP_EXECUTE != 0 { SET_GID } else { 0 };
    mode & !(SET_UID | group)
}

/// The inode changed at `now`, its contents did not. Times never go backwards.
pub fn touch_status(attr: &mut Attr, now: Timestamp) {
    attr.ctime = attr.ctime.max(now);
}

/// The contents changed at `now`. An mtime above the ctime was set by a user, and gives way.
pub fn touch_contents(attr: &mut Attr, now: Timestamp) {
    attr.mtime = if attr.mtime <= attr.ctime { attr.mtime.max(now) } else { now.max(attr.ctime) };
    touch_status(attr, now);
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::Ino;

    fn attr(change: u64, size: u64) -> Attr {
        Attr {
            ino: Ino(2),
            kind: Kind::File,
            mode: 0o644,
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            size,
            blocks: 0,
            chunk_bytes: 1 << 20,
            atime: Timestamp(1),
            mtime: Timestamp(change as i64),
            ctime: Timestamp(change as i64),
            btime: Timestamp(1),
            change,
            xattrs: false,
            trim_pending: false,
        }
    }

    #[test]
    fn an_older_reply_changes_nothing() {
        let mut known = Some(attr(5, 50));
        merge(&mut known, Pending::default(), false, attr(4, 40));
        assert_eq!(known, Some(attr(5, 50)));
        merge(&mut known, Pending::default(), false, attr(6, 60));
        assert_eq!(known, Some(attr(6, 60)));
    }

    #[test]
    fn what_is_pending_stays_local_and_the_rest_is_taken_over() {
        let mut known = Some(attr(5, 500));
        let mut linked = attr(7, 0);
        linked.nlink = 2;
        merge(&mut known, Pending { size: true, mtime: true, ..Pending::default() }, false, linked);
        let merged = known.unwrap();
        assert_eq!((merged.size, merged.nlink, merged.change), (500, 2, 7));
        assert_eq!(merged.mtime, Timestamp(5));
        assert_eq!(merged.ctime, Timestamp(7));
    }

    #[test]
    fn what_removals_changed_stays_until_they_are_followed() {
        let mut directory = attr(5, 50);
        directory.kind = Kind::Directory;
        let mut told = Attr { change: 6, mode: 0o700, nlink: 3, ..directory.clone() };
        let mut known =
            Some(Attr { size: 49, nlink: 2, mtime: Timestamp(9), ctime: Timestamp(9), ..directory });
        merge(&mut known, Pending::default(), true, told.clone());
        let merged = known.clone().unwrap();
        assert_eq!((merged.size, merged.nlink, merged.mode, merged.change), (49, 2, 0o700, 6));
        assert_eq!((merged.mtime, merged.ctime), (Timestamp(9), Timestamp(9)));
        told.change = 7;
        merge(&mut known, Pending::default(), false, told.clone());
        assert_eq!(known, Some(told));
    }

    #[test]
    fn privileges_go_where_they_mean_execution() {
        assert_eq!(without_privileges(0o6755), 0o755);
        assert_eq!(without_privileges(0o2644), 0o2644);
        assert_eq!(without_privileges(0o4600), 0o600);
    }
}
