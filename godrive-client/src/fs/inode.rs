//! What this mount knows of one inode.
//!
//! [`State`] is behind a short mutex that is never held over an await. What must be in order over awaits has locks
//! of its own, always taken in this order: `content`, `order`, a chunk's `io`, then `state`; two states at once in the order
//! of their inodes' numbers.

use crate::core::attrs::{self, Pending};
use crate::core::directory::Directory;
use crate::core::gate::Gate;
use crate::core::layout::{adopt, is_regression};
use crate::core::lease::LeaseState;
use crate::core::neighbours::Neighbours;
use crate::core::page_cache::Tag;
use crate::core::write_buffer::WriteBuffer;
use crate::error::FsError;
use crate::ledger::Trace;
use bytes::Bytes;
use godrive_proto::data::{ChunkState, Layout};
use godrive_proto::lease::Mode;
use godrive_proto::limits::MAX_FILE_BYTES;
use godrive_proto::meta::{Attr, InodeView, Kind};
use godrive_proto::time::Timestamp;
use godrive_proto::{Ino, LeaseId, LogIndex, Version};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex as OrderMutex, Notify, OwnedRwLockWriteGuard, RwLock};
use tokio::time::Instant;

/// Layouts are asked for in windows of so many chunks.
pub const WINDOW_CHUNKS: u32 = 256;

/// Attributes that were known for longer are asked for again, for the sake of their access time.
const ACCESS_TIME_KNOWN_FOR: Duration = Duration::from_secs(3600);

pub struct Inode {
    pub ino: Ino,
    pub state: Mutex<State>,
    /// Writers share it, a truncation has it alone.
    pub content: RwLock<()>,
    /// One flush, commit, truncation or recall at a time.
    pub order: OrderMutex<()>,
    /// One request for a lease at a time.
    pub acquiring: OrderMutex<()>,
    /// The gate opened, someone left, a fetch ended.
    pub changed: Notify,
}

#[derive(Default)]
pub struct State {
    pub attr: Option<Attr>,
    pub lease: LeaseState,
    /// Raised each time the lease is lost: what was asked for before may not be cached after.
    pub generation: u64,
    /// Raised by each truncation: layouts that were asked for before name chunks that it may have freed.
    pub cuts: u64,
    /// Operations that have just got a lease and not yet used it.
    pub claims: u32,
    pub gate: Gate,
    /// Attributes that only this mount knows yet.
    pub pending: Pending,
    /// Those of a commit that is on its way.
    pub committing: Pending,
    /// A commit is on its way.
    pub committing_chunks: bool,
    /// Chunks whose new contents the master does not know yet.
    pub chunks: BTreeMap<u32, ChunkState>,
    /// The trim that is pending at the master is this mount's: its hole is in the buffer or has landed.
    pub trimming: bool,
    /// Holes that trims have made. A commit speaks of those that were flushed before it.
    pub trims: u64,
    /// The master is being asked to trim the file at its present length: it does not grow meanwhile.
    pub size_fixed: bool,
    /// The length that the master said last.
    pub told_size: u64,
    /// Changes of this inode that the master answered before they were on stable storage, and how many of them a
    /// later sync covers.
    pub answered_early: u64,
    pub synced: u64,
    /// The last record of the master's log in which such a change lies, of this inode or of a name in it.
    pub early: LogIndex,
    /// The master lost such a change with its power; the next fsync says so.
    pub unkept: bool,
    pub buffer: WriteBuffer,
    /// Since when there is something to flush or to commit.
    pub dirty_since: Option<Instant>,
    pub slots: BTreeMap<u32, Slot>,
    /// Windows whose layouts are known: in them, an index without a slot is a hole.
    pub windows: BTreeSet<u32>,
    /// Files that were listed together with this one, until it is read.
    pub neighbours: Option<Arc<Mutex<Neighbours>>>,
    /// Leaf runs that are being fetched: (index, first leaf) to the end.
    pub fetching: BTreeMap<(u32, u32), u32>,
    pub directory: Directory,
    /// Names asked of the master under this lease.
    pub unknown_names: u32,
    /// Operations in this directory, or changes of this inode, that the master has not answered.
    pub busy: u32,
    /// Removals here that changed this inode and that the master has not followed.
    pub unfollowed: u32,
    /// The master restarted meanwhile: when all is followed, this is read anew.
    pub outdated: bool,
    /// Until then the directory is contended: its names are given to the kernel with no time to live.
    pub hot_until: Option<Instant>,
    pub last_recall: Option<Instant>,
    /// The kernel was given names of this directory to keep.
    pub names_given: bool,
    pub target: Option<Bytes>,
    pub xattrs: Option<Vec<(Vec<u8>, Vec<u8>)>>,
    pub open: u32,
    pub writers: u32,
    /// Handles through which a program may store into shared mappings, of which nobody hears until the kernel writes its pages back.
    /// It does so before it releases the last of them.
    pub mappable: u32,
    /// The length when the last lease went, which is what the kernel can know of it.
    pub size_given_up: Option<u64>,
    /// The file has become longer elsewhere, and the kernel may not know it.
    pub grown: bool,
    /// It was opened since this knowledge began: the kernel's pages are covered by it.
    pub opened_before: bool,
    /// The master was told that it is open; it must be told when it no longer is.
    pub told_open: bool,
    /// The master is being told that it no longer is: whoever opens it waits, as that must not come behind what is said then.
    pub telling_closed: bool,
    /// Its last name is gone.
    pub removed: bool,
    /// Raised when dirty data was lost: handles opened before answer EIO.
    pub poison: u64,
    /// Writes were given up: what of them is held, or still under way, no commit names. The master is told before the lease goes back,
    /// and before it is asked for again.
    pub gave_up: bool,
    /// When the master last said what its attributes are.
    pub seen_at: Option<Instant>,
    /// It was read here, and what the master says of its access time may be older.
    pub accessed: Option<Timestamp>,
    /// There are byte-range locks of this mount on it.
    pub locked: bool,
    /// What failed behind the callers' backs; the next fsync or close reports it.
    pub error: Option<FsError>,
    /// A chunk that was held and not stable when its replicas lost power, and came back older: the next fsync or close
    /// reports it.
    pub regressed: Option<u32>,
    /// Chunks for which a background flush is under way.
    pub flushing: BTreeSet<u32>,
    /// A background flush of the whole inode is under way.
    pub flushing_all: bool,
    pub flush_failures: u32,
    /// What the ledger says of it.
    pub noted: Trace,
    /// Something was lost here and nobody knows it yet: an error follows.
    pub owes_error: bool,
    /// A handle that lost data may still be open.
    pub lost_open: bool,
    /// A dead daemon had not told the master of new contents: its times are to be set.
    pub owes_time: bool,
    /// For the eviction's clock: used since it last passed.
    pub used: bool,
}

/// A chunk of this file.
pub struct Slot {
    pub layout: Layout,
    pub tag: Tag,
    /// Open for writing in this session, under the present exclusive lease.
    pub opened: bool,
    /// The master knows no version of it.
    pub is_new: bool,
    /// What the master was last told of it, while it is open.
    pub told: Option<ChunkState>,
    /// A trim has made a hole in it since it was opened.
    pub is_cut: bool,
    /// Readers share it; a delta has it alone, so that a read meets the version it asks for.
    pub io: Arc<RwLock<()>>,
}

/// How far everything was held before a commit: the length, and the holes of trims.
#[derive(Clone, Copy)]
pub struct Flushed {
    pub size: u64,
    pub trims: u64,
}

/// A chunk's `io`, held alone.
pub type Alone = OwnedRwLockWriteGuard<()>;

impl Inode {
    pub fn new(ino: Ino, recalled: LeaseId) -> Self {
        Self {
            ino,
            state: Mutex::new(State { lease: LeaseState::after(recalled), used: true, ..State::default() }),
            content: RwLock::new(()),
            order: OrderMutex::new(()),
            acquiring: OrderMutex::new(()),
            changed: Notify::new(),
        }
    }

    /// Waits until a chunk is held alone. None: it has no slot. Its slot may go meanwhile and another one come, whose lock is another.
    pub async fn alone(&self, index: u32) -> Option<Alone> {
        loop {
            let io = self.state.lock().slots.get(&index).map(|slot| slot.io.clone())?;
            let alone = io.write_owned().await;
            if self.state.lock().slot_under(index, &alone).is_some() {
                return Some(alone);
            }
        }
    }
}

impl State {
    pub fn mode(&self) -> Option<Mode> {
        self.lease.mode()
    }

    /// The slot of a chunk, if this is its lock.
    pub fn slot_under(&self, index: u32, alone: &Alone) -> Option<&Slot> {
        let slot = self.slots.get(&index)?;
        Arc::ptr_eq(&slot.io, OwnedRwLockWriteGuard::rwlock(alone)).then_some(slot)
    }

    pub fn is_exclusive(&self) -> bool {
        self.mode() == Some(Mode::Exclusive)
    }

    pub fn kind(&self) -> Option<Kind> {
        self.attr.as_ref().map(|attr| attr.kind)
    }

    pub fn size(&self) -> u64 {
        self.attr.as_ref().map_or(0, |attr| attr.size)
    }

    /// The length beyond which chunk indexes would not fit.
    pub fn max_bytes(&self) -> u64 {
        MAX_FILE_BYTES.min(u64::from(self.chunk_bytes()) << 32)
    }

    /// The bytes behind the end may not be zeros, so that the file must be trimmed before it gets longer.
    pub fn must_trim(&self) -> bool {
        let pending = self.attr.as_ref().is_some_and(|attr| attr.trim_pending);
        self.size_fixed || (pending && !self.trimming)
    }

    pub fn chunk_bytes(&self) -> u32 {
        self.attr.as_ref().map_or(0, |attr| attr.chunk_bytes)
    }

    pub fn to_flush(&self) -> Flushed {
        Flushed { size: self.size(), trims: self.trims }
    }

    /// The chunk that holds the end of the file as the master knows it, and where that lies in it.
    pub fn told_end(&self) -> (u32, u32) {
        let chunk_bytes = u64::from(self.chunk_bytes().max(1));
        ((self.told_size / chunk_bytes) as u32, (self.told_size % chunk_bytes) as u32)
    }

    /// What lies behind the master's end of the file becomes zeros, but for what is dirty there. False: not yet, but before the file
    /// grows.
    pub fn cut_again(&mut self) -> bool {
        let (index, from) = self.told_end();
        let (chunk_bytes, is_exclusive) = (self.chunk_bytes(), self.is_exclusive());
        let Some(attr) = self.attr.as_mut().filter(|_| from > 0) else { return false };
        (attr.trim_pending, self.trimming) = (true, false);
        let Some(slot) = self.slots.get_mut(&index).filter(|slot| slot.opened && is_exclusive) else {
            return false;
        };
        slot.is_cut = true;
        let chunk = slot.layout.chunk.id;
        self.trims += 1;
        self.trimming = self.buffer.punch_beneath(index, chunk, from, chunk_bytes - from).is_ok();
        self.trimming
    }

    /// Behind an end between two chunks there is nothing to cut: whole chunks were dropped, and what is there now this mount wrote.
    pub fn cut_between_chunks(&mut self) -> bool {
        let is_between = self.told_end().1 == 0;
        if is_between {
            (self.trimming, self.trims) = (true, self.trims + 1);
        }
        is_between
    }

    /// Fields in which this mount is ahead of the master.
    pub fn local(&self) -> Pending {
        let mut local = self.pending;
        local.merge(self.committing);
        local
    }

    /// The lease holds and nothing newer than this view is known: what came with it may be cached.
    pub fn is_fresh(&self, view: &InodeView) -> bool {
        self.mode().is_some() && self.attr.as_ref().is_some_and(|attr| attr.change == view.attr.change)
    }

    /// Takes a view of a reply in. Without a lease it tells nothing that may be kept, but the order of changes.
    pub fn see(&mut self, view: &InodeView) {
        let new = self.mode().is_none();
        match &view.lease {
            // For the master it may still be the owner's, and what the file is, is not known until the members were asked.
            Some(_) if self.gave_up && !self.is_exclusive() => {}
            Some(lease) => self.lease.grant(lease),
            // What its owner said of it then, without a lease, is no news to a holder.
            None if self.mode().is_some()
                && self.attr.as_ref().is_some_and(|attr| attr.change == view.attr.change) =>
            {
                return;
            }
            None => {}
        }
        let newer = self.attr.as_ref().is_none_or(|attr| view.attr.change > attr.change);
        if newer && self.attr.as_ref().is_some_and(|attr| attr.xattrs || view.attr.xattrs) {
            self.xattrs = None;
        }
        // It was restored from the trash.
        self.removed &= !newer || self.unfollowed > 0 || view.attr.nlink == 0;
        if self.attr.as_ref().is_none_or(|attr| view.attr.change >= attr.change) {
            self.told_size = view.attr.size;
        }
        let local = self.local();
        attrs::merge(&mut self.attr, local, self.unfollowed > 0, view.attr.clone());
        let longer = self.size_given_up.is_some_and(|before| self.size() > before);
        self.grown |= new && self.mode().is_some() && longer;
        self.seen_at = Some(Instant::now());
        if let (Some(at), Some(attr)) = (self.accessed, &mut self.attr) {
            // As the master does: what was changed since is not undone.
            attr.atime = if at >= attr.ctime { attr.atime.max(at) } else { attr.atime };
        }
        self.used = true;
    }

    /// Other mounts may have read it since: their reads take no lease back.
    pub fn may_have_been_read(&self) -> bool {
        let known_for = self.seen_at.map(|at| at.elapsed());
        self.open == 0
            && !self.is_exclusive()
            && known_for.is_some_and(|known_for| known_for > ACCESS_TIME_KNOWN_FOR)
    }

    /// Bytes or attributes that the master or the slaves do not have yet.
    pub fn is_dirty(&self) -> bool {
        !self.buffer.is_empty() || self.has_commit()
    }

    pub fn has_commit(&self) -> bool {
        self.committing_chunks || self.local().any() || !self.chunks.is_empty() || self.trimming
    }

    /// A change that the master makes is on its way: others may have seen it before its answer is here, so what is known
    /// may be old.
    pub fn is_being_changed(&self) -> bool {
        self.busy > 0 && !self.is_exclusive()
    }

    /// What the next daemon must know of it if this one is killed now.
    pub fn trace(&self) -> Trace {
        let local = self.local();
        let attributes = local.size || local.is_set();
        let untold = self.owes_error || self.error.is_some() || self.regressed.is_some() || self.unkept;
        let removals = self.unfollowed > 0 && self.kind() == Some(Kind::Directory);
        Trace {
            open: self.open,
            writers: self.writers,
            unsent: !self.buffer.is_empty() || attributes || self.trimming || untold || removals,
            uncommitted: self.has_commit() || self.owes_time,
            lost: self.lost_open && self.open > 0,
            locked: self.locked,
        }
    }

    pub fn has_grown_open(&self) -> bool {
        self.grown && self.open > 0 && self.kind() == Some(Kind::File)
    }

    /// Nothing is lost if this is forgotten, but what a lease allows to remember.
    pub fn is_idle(&self) -> bool {
        self.open == 0
            && !self.is_dirty()
            && self.error.is_none()
            && self.regressed.is_none()
            && !self.unkept
            && self.busy == 0
            && self.unfollowed == 0
            && self.claims == 0
            && !self.told_open
            && !self.telling_closed
            && !self.is_exclusive()
            && !self.gave_up
            && !self.gate.is_closed()
            && self.gate.is_empty()
    }

    pub fn touch_dirty(&mut self) {
        if self.dirty_since.is_none() {
            self.dirty_since = Some(Instant::now());
        }
    }

    /// The lease is gone: what was known under it is no longer. Pages stay under their tags, to be found again if
    /// the chunk turns out to be the same. Gives the names that the kernel may have cached.
    pub fn forget(&mut self) -> Vec<godrive_proto::meta::Name> {
        if self.mode().is_some() {
            let size = self.size();
            // What grew elsewhere before, and was not told, is still not known.
            let known =
                if self.grown { self.size_given_up.map_or(size, |before| before.min(size)) } else { size };
            self.size_given_up = Some(known);
        }
        self.lease.lower(None);
        self.generation += 1;
        self.windows.clear();
        self.close_chunks();
        self.target = None;
        self.xattrs = None;
        self.accessed = None;
        self.names_given = false;
        self.unknown_names = 0;
        self.directory.clear()
    }

    /// The exclusive lease is gone: no chunk is open for writing.
    pub fn close_chunks(&mut self) {
        for slot in self.slots.values_mut() {
            slot.opened = false;
        }
    }

    /// Dirty data is lost: handles that are open answer EIO from now on. What the file is now, the master must say.
    pub fn lose_dirty(&mut self) {
        self.poison += 1;
        (self.owes_error, self.lost_open) = (true, self.open > 0);
        self.generation += 1;
        self.lease.lower(None);
        self.buffer.clear();
        self.pending = Pending::default();
        self.committing = Pending::default();
        self.committing_chunks = false;
        self.chunks.clear();
        self.trimming = false;
        self.dirty_since = None;
        self.size_given_up = Some(0);
        self.attr = None;
        self.gave_up = true;
        self.slots.clear();
        self.windows.clear();
    }

    /// Takes a layout in; `tag` is used if the chunk's contents are not those that the pages were cached for.
    pub fn place(&mut self, layout: Layout, opened: bool, tag: impl FnOnce() -> Tag) {
        match self.slots.get_mut(&layout.index) {
            // While deltas are ours alone, the slot knows the contents better than a reply on its way.
            Some(slot) if slot.opened => {}
            Some(slot) => {
                if slot.layout.chunk.id != layout.chunk.id || slot.layout.held != layout.held {
                    slot.tag = tag();
                }
                let is_older = is_regression(&slot.layout, &layout);
                slot.opened = opened;
                (slot.is_new, slot.told, slot.is_cut) = (layout.held.version == Version(0), None, false);
                self.take_over(layout, is_older);
            }
            None => {
                let io = Arc::new(RwLock::new(()));
                let is_new = layout.held.version == Version(0);
                let slot = Slot { tag: tag(), opened, is_new, told: None, is_cut: false, io, layout };
                self.slots.insert(slot.layout.index, slot);
            }
        }
    }

    /// Takes over what is newer than what is known of a chunk. All that learn of a layout come through here, so that the loss of what
    /// was held is never passed over: also not where a master that has lost its last records with its power says less at first. With it
    /// may come back what was cut off.
    pub fn renew_layout(&mut self, layout: Layout) {
        let Some(slot) = self.slots.get(&layout.index) else { return };
        // While a chunk is open only this mount's deltas raise its version, and none goes onto less than was known.
        let is_ahead = slot.opened && layout.held.version > slot.layout.held.version;
        let is_older = !is_ahead && is_regression(&slot.layout, &layout);
        self.take_over(layout, is_older);
    }

    fn take_over(&mut self, layout: Layout, is_older: bool) {
        let (index, (end, _)) = (layout.index, self.told_end());
        let Some(slot) = self.slots.get_mut(&index) else { return };
        if slot.layout.chunk.id == layout.chunk.id {
            adopt(&mut slot.layout, layout);
        } else {
            slot.layout = layout;
        }
        if is_older {
            self.regressed = Some(index);
            if index == end {
                self.cut_again();
            }
        }
    }

    /// The master answered a change of this inode before it was on stable storage: an fsync has to wait for that.
    pub fn not_durable_yet(&mut self, view: &InodeView) {
        self.answered_early += 1;
        self.touched_early(view);
    }

    /// The same of a directory, whose fsync always waits.
    pub fn touched_early(&mut self, view: &InodeView) {
        self.early = self.early.max(LogIndex(view.attr.change));
    }

    /// A commit of these chunks tells the master of first versions.
    pub fn has_new(&self, chunks: &BTreeMap<u32, ChunkState>) -> bool {
        chunks.keys().any(|index| self.slots.get(index).is_some_and(|slot| slot.is_new))
    }

    /// An fsync must wait for the master's log.
    pub fn is_unsynced(&self) -> bool {
        self.answered_early > self.synced
    }

    /// Takes a whole window of layouts in: what is not among them is a hole.
    pub fn place_window(&mut self, window: u32, layouts: Vec<Layout>, mut tag: impl FnMut() -> Tag) {
        let first = window.saturating_mul(WINDOW_CHUNKS);
        let range = first..first.saturating_add(WINDOW_CHUNKS);
        let named: BTreeSet<u32> = layouts.iter().map(|layout| layout.index).collect();
        self.slots.retain(|index, slot| slot.opened || !range.contains(index) || named.contains(index));
        for layout in layouts.into_iter().filter(|layout| range.contains(&layout.index)) {
            self.place(layout, false, &mut tag);
        }
        self.windows.insert(window);
    }

    /// The window of this index, if its layouts must be asked for first.
    pub fn unknown_window(&self, index: u32) -> Option<u32> {
        let window = index / WINDOW_CHUNKS;
        let known = self.windows.contains(&window) || self.slots.get(&index).is_some_and(|slot| slot.opened);
        (!known).then_some(window)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::core::layout::tests::layout;

    #[test]
    fn what_was_held_is_missed_also_if_the_master_has_forgotten_it_first() {
        let mut state = State::default();
        let tag = || Tag(0);
        state.place(layout(6, 184, 183), false, tag);
        // Both have lost their power; the slaves have not been asked yet.
        state.place(layout(6, 183, 183), false, tag);
        assert_eq!(state.regressed, None, "nobody has said so");
        state.place(layout(1 << 32, 183, 183), false, tag);
        assert_eq!(state.regressed, Some(3));
    }

    /// The election may have kept it, and a delta that had no answer; before the slot is open others may have written.
    #[test]
    fn deltas_on_top_of_what_was_held_hide_no_loss_but_are_none() {
        for (opened, held, expected) in
            [(true, 185, None), (true, 184, None), (true, 183, Some(3)), (false, 185, Some(3))]
        {
            let mut state = State::default();
            state.place(layout(6, 184, 183), opened, || Tag(0));
            match opened {
                true => state.renew_layout(layout(1 << 32, held, 183)),
                false => state.place(layout(1 << 32, held, 183), true, || Tag(0)),
            }
            assert_eq!(state.regressed, expected, "{opened} {held}");
        }
    }

    #[test]
    fn what_was_stable_or_has_come_back_is_not_missed() {
        for (known, elected) in [(183, 183), (184, 184)] {
            let mut state = State::default();
            let tag = || Tag(0);
            state.place(layout(6, known, 183), false, tag);
            state.place(layout(1 << 32, elected, 183), false, tag);
            assert_eq!(state.regressed, None);
        }
    }
}
