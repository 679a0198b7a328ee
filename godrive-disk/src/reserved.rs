//! Room that nobody else can take: a file of allocated blocks, the ballast, on the same file system. What its owner must be
//! able to write on a full disk cuts the ballast when it finds no room, and is repeated: so it is written although others have
//! filled the file system to the last block. Everything else goes past it ([`Reserved::plain`]).

use crate::{Disk, DiskFile, Space};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

const FILE: &str = "ballast";
/// What one write that found no room gives back, at most.
const STEP_BYTES: u64 = 1 << 20;

/// A disk with a ballast. As a [`Disk`] it is what may cut it.
pub struct Reserved {
    ballast: Arc<Ballast>,
}

struct Ballast {
    disk: Arc<dyn Disk>,
    wanted_bytes: u64,
    len: AtomicU64,
    /// The blocks are there: the length alone says nothing of a copied file.
    allocated: AtomicBool,
    /// Something was given up and has not come back yet.
    cut: AtomicBool,
    complained: AtomicBool,
    /// Held while it is cut or filled. None: there is no such file yet.
    file: Mutex<Option<Arc<dyn DiskFile>>>,
}

impl Reserved {
    /// Takes what ballast there is; [`Self::refill`] makes it what is wanted. Writes nothing.
    pub fn new(disk: Arc<dyn Disk>, wanted_bytes: u64) -> io::Result<Self> {
        let file = if disk.exists(FILE)? { Some(disk.open(FILE, false)?) } else { None };
        let len = file.as_ref().map_or(Ok(0), |file| file.len())?;
        let ballast = Ballast {
            disk,
            wanted_bytes,
            len: len.into(),
            allocated: AtomicBool::default(),
            cut: AtomicBool::default(),
            complained: AtomicBool::default(),
            file: Mutex::new(file),
        };
        Ok(Self { ballast: Arc::new(ballast) })
    }

    /// The disk itself, for what may not cut.
    pub fn plain(&self) -> &Arc<dyn Disk> {
        &self.ballast.disk
    }

    /// Does it, again for as long as it finds no room and there is ballast to cut.
    pub fn with_room<T>(&self, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
        self.ballast.with_room(act)
    }

    /// What was cut has not come back yet.
    pub fn is_cut(&self) -> bool {
        self.ballast.cut.load(Ordering::Relaxed)
    }

    /// Allocates what is missing, if the disk has so many bytes beside it.
    pub fn refill(&self, leave_bytes: u64) {
        let ballast = &*self.ballast;
        if ballast.is_whole() {
            return;
        }
        match ballast.fill(leave_bytes) {
            Ok(()) => ballast.complained.store(false, Ordering::Relaxed),
            Err(error) if !ballast.complained.swap(true, Ordering::Relaxed) => {
                tracing::warn!(%error, bytes = ballast.wanted_bytes, "no ballast: other programs can take all of the disk's room");
            }
            Err(error) => tracing::debug!(%error, "no ballast yet"),
        }
    }
}

impl Ballast {
    fn is_whole(&self) -> bool {
        let whole = self.len.load(Ordering::Acquire) >= self.wanted_bytes;
        whole && (self.wanted_bytes == 0 || self.allocated.load(Ordering::Relaxed))
    }

    fn fill(&self, leave_bytes: u64) -> io::Result<()> {
        let mut known = self.file.lock();
        let missing = self.wanted_bytes.saturating_sub(self.len.load(Ordering::Acquire));
        if self.disk.space()?.free_bytes < missing.saturating_add(leave_bytes) {
            return Ok(());
        }
        let file = match &*known {
            Some(file) => file.clone(),
            None => known.insert(self.disk.open(FILE, true)?).clone(),
        };
        // From the beginning: what is allocated already costs nothing.
        let result = file.allocate(0, self.wanted_bytes);
        self.len.store(file.len()?, Ordering::Release);
        self.allocated.store(result.is_ok(), Ordering::Relaxed);
        self.cut.fetch_and(result.is_err(), Ordering::Relaxed);
        result
    }

    fn with_room<T>(&self, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            let len = self.len.load(Ordering::Acquire);
            match act() {
                Err(error) if is_full(&error) && self.cut(len) => {}
                result => return result,
            }
        }
    }

    /// True: there is more room than when the ballast had this length.
    fn cut(&self, seen: u64) -> bool {
        let known = self.file.lock();
        let len = self.len.load(Ordering::Acquire);
        if len < seen {
            return true; // By somebody else.
        }
        let Some(file) = known.as_ref().filter(|_| len > 0) else { return false };
        let left = len.saturating_sub(STEP_BYTES);
        self.cut.store(true, Ordering::Relaxed);
        // Synced: a file system may reuse blocks only when its journal says that they are free.
        let done = file.set_len(left).and_then(|()| file.sync());
        self.len.store(file.len().unwrap_or(left), Ordering::Release);
        match done {
            Ok(()) => tracing::debug!(left_bytes = left, "the disk is full, some of its ballast is given up"),
            Err(ref error) => tracing::warn!(%error, "the ballast of a full disk cannot be cut"),
        }
        done.is_ok()
    }
}

/// There is no room for what was to be written: on the disk, or for the user that this process is.
pub fn is_full(error: &io::Error) -> bool {
    [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded].contains(&error.kind())
}

impl Disk for Reserved {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let ballast = self.ballast.clone();
        let file = ballast.with_room(|| ballast.disk.open(path, create))?;
        Ok(Arc::new(ReservedFile { file, ballast }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.ballast.disk.exists(path)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.ballast.disk.list(directory)
    }

    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.with_room(|| self.ballast.disk.create_directory(path))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.with_room(|| self.ballast.disk.remove(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.with_room(|| self.ballast.disk.rename(from, to))
    }

    /// Not repeated: after an error, a second success says nothing about what the first one lost.
    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.ballast.disk.sync_directory(directory)
    }

    /// The ballast counts as free.
    fn space(&self) -> io::Result<Space> {
        let Ballast { disk, len, allocated, .. } = &*self.ballast;
        loop {
            let before = len.load(Ordering::Acquire);
            let space = disk.space()?;
            if len.load(Ordering::Acquire) == before {
                let ballast = if allocated.load(Ordering::Relaxed) { before } else { 0 };
                return Ok(Space { free_bytes: space.free_bytes + ballast, ..space });
            }
        }
    }

    fn is_instant(&self) -> bool {
        self.ballast.disk.is_instant()
    }

    fn sync_takes(&self) -> Duration {
        self.ballast.disk.sync_takes()
    }
}

struct ReservedFile {
    file: Arc<dyn DiskFile>,
    ballast: Arc<Ballast>,
}

impl DiskFile for ReservedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.ballast.with_room(|| self.file.set_len(len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        self.ballast.with_room(|| self.file.write_at(pieces, offset))
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.ballast.with_room(|| self.file.punch(offset, len))
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.start_writeback(offset, len)
    }

    /// Not repeated, as [`Disk::sync_directory`].
    fn sync(&self) -> io::Result<()> {
        self.file.sync()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.file.drop_cache()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{Faults, SimulatedDisk};

    const MIB: u64 = 1 << 20;

    fn reserved(disk: &SimulatedDisk) -> Reserved {
        Reserved::new(Arc::new(disk.clone()), 3 * MIB).unwrap()
    }

    #[test]
    fn writes_go_on_when_others_have_taken_all_other_room() {
        let disk = SimulatedDisk::new(64 * MIB);
        let reserved = reserved(&disk);
        reserved.refill(62 * MIB);
        assert!(!disk.exists(FILE).unwrap(), "so much is not free beside it");
        reserved.refill(MIB);
        assert_eq!(disk.space().unwrap().free_bytes, 61 * MIB);
        assert_eq!(reserved.space().unwrap().free_bytes, 64 * MIB);
        let file = reserved.open("a", true).unwrap();
        let plain = reserved.plain().open("a", false).unwrap();
        disk.set_capacity(3 * MIB);
        let half = vec![7; MIB as usize / 2];
        assert!(is_full(&plain.write_at(&[&half], 0).unwrap_err()) && !reserved.is_cut());
        for piece in 0..6 {
            file.write_at(&[&half], piece * MIB / 2).unwrap();
        }
        assert!(is_full(&file.write_at(&[&half], 3 * MIB).unwrap_err()) && reserved.is_cut());
        assert_eq!(reserved.space().unwrap().free_bytes, 0);
        reserved.refill(0);
        assert!(reserved.is_cut());
        file.punch(0, 3 * MIB).unwrap();
        reserved.refill(0);
        assert!(!reserved.is_cut());
        assert_eq!(disk.space().unwrap().free_bytes, 0);
    }

    /// As a copy that left out what reads as zeros restores it.
    #[test]
    fn a_ballast_without_blocks_is_no_ballast() {
        let disk = SimulatedDisk::new(64 * MIB);
        disk.open(FILE, true).unwrap().set_len(3 * MIB).unwrap();
        let reserved = reserved(&disk);
        assert_eq!(reserved.space().unwrap().free_bytes, 64 * MIB);
        reserved.refill(MIB);
        assert_eq!(disk.space().unwrap().free_bytes, 61 * MIB);
        assert_eq!(reserved.space().unwrap().free_bytes, 64 * MIB);
    }

    #[test]
    fn one_that_cannot_be_cut_or_filled_harms_nobody() {
        let disk = SimulatedDisk::new(64 * MIB);
        let reserved = reserved(&disk);
        disk.set_faults(Faults { writes: true, ..Faults::default() });
        reserved.refill(MIB);
        disk.set_faults(Faults::default());
        reserved.refill(MIB);
        let file = reserved.open("a", true).unwrap();
        disk.set_capacity(3 * MIB);
        disk.set_faults(Faults { syncs: true, ..Faults::default() });
        assert!(is_full(&file.write_at(&[&[7]], 0).unwrap_err()));
        assert_eq!(reserved.space().unwrap().free_bytes, 3 * MIB, "what was cut off is free");
        disk.set_faults(Faults::default());
        file.write_at(&[&[7]], 0).unwrap();
    }
}
