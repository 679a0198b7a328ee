//! Room that nobody else can take: a file of allocated blocks, the ballast, on the same file system. When a write finds no
//! room, the ballast is cut and the write repeated, so that what its owner may write on a full disk (it asks for room
//! first, for everything else) can be written although others have filled the file system to the last block.

use crate::{Disk, DiskFile, Space};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::time::Duration;

const FILE: &str = "ballast";
/// What one write that found no room gives back, at most.
const STEP_BYTES: u64 = 1 << 20;

/// A disk with a ballast.
pub struct Reserved {
    ballast: Arc<Ballast>,
}

struct Ballast {
    disk: Arc<dyn Disk>,
    wanted_bytes: u64,
    state: Mutex<State>,
}

struct State {
    /// None: there is no such file yet.
    file: Option<Arc<dyn DiskFile>>,
    len: u64,
}

impl Reserved {
    /// Takes what ballast there is; [`Self::refill`] makes it what is wanted. Writes nothing.
    pub fn new(disk: Arc<dyn Disk>, wanted_bytes: u64) -> io::Result<Self> {
        let file = if disk.exists(FILE)? { Some(disk.open(FILE, false)?) } else { None };
        let len = file.as_ref().map_or(Ok(0), |file| file.len())?;
        Ok(Self { ballast: Arc::new(Ballast { disk, wanted_bytes, state: Mutex::new(State { file, len }) }) })
    }

    /// Less than wanted is left.
    pub fn is_short(&self) -> bool {
        self.ballast.state.lock().len < self.ballast.wanted_bytes
    }

    /// Allocates what is missing. To be called while there is room.
    pub fn refill(&self) -> io::Result<()> {
        let Ballast { disk, wanted_bytes, state } = &*self.ballast;
        let mut state = state.lock();
        if state.len >= *wanted_bytes {
            return Ok(());
        }
        let file = match &state.file {
            Some(file) => file.clone(),
            None => {
                let file = disk.open(FILE, true)?;
                state.file = Some(file.clone());
                file
            }
        };
        let result = file.allocate(state.len, *wanted_bytes - state.len);
        // Also where only a part was allocated.
        state.len = file.len()?;
        result
    }
}

impl Ballast {
    /// Does it, again for as long as it finds no room and there is ballast to cut.
    fn with_room<T>(&self, act: impl Fn() -> io::Result<T>) -> io::Result<T> {
        loop {
            match act() {
                Err(error) if error.kind() == io::ErrorKind::StorageFull && self.cut() => {}
                result => return result,
            }
        }
    }

    fn cut(&self) -> bool {
        let mut state = self.state.lock();
        let Some(file) = state.file.clone().filter(|_| state.len > 0) else { return false };
        let len = state.len.saturating_sub(STEP_BYTES);
        // Synced: a file system may reuse blocks only when its journal says that they are free.
        match file.set_len(len).and_then(|()| file.sync()) {
            Ok(()) => {
                tracing::debug!(left_bytes = len, "the disk is full, some of its ballast is given up");
                state.len = len;
                true
            }
            Err(error) => {
                tracing::warn!(%error, "the ballast of a full disk cannot be cut");
                false
            }
        }
    }
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
        self.ballast.with_room(|| self.ballast.disk.create_directory(path))
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.ballast.with_room(|| self.ballast.disk.remove(path))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.ballast.with_room(|| self.ballast.disk.rename(from, to))
    }

    /// Not repeated: after an error, a second success says nothing about what the first one lost.
    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.ballast.disk.sync_directory(directory)
    }

    /// The ballast counts as free.
    fn space(&self) -> io::Result<Space> {
        // Held: what is cut meanwhile would be counted twice, or not at all.
        let state = self.ballast.state.lock();
        let space = self.ballast.disk.space()?;
        Ok(Space { free_bytes: space.free_bytes + state.len, ..space })
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
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SimulatedDisk;

    const MIB: u64 = 1 << 20;

    #[test]
    fn writes_go_on_when_others_have_taken_all_other_room() {
        let disk = SimulatedDisk::new(64 * MIB);
        let reserved = Reserved::new(Arc::new(disk.clone()), 3 * MIB).unwrap();
        assert!(reserved.is_short() && !disk.exists(FILE).unwrap());
        reserved.refill().unwrap();
        assert!(!reserved.is_short());
        assert_eq!(disk.space().unwrap().free_bytes, 61 * MIB);
        assert_eq!(reserved.space().unwrap().free_bytes, 64 * MIB);
        let file = reserved.open("a", true).unwrap();
        disk.set_capacity(3 * MIB);
        let half = vec![7; MIB as usize / 2];
        for piece in 0..6 {
            file.write_at(&[&half], piece * MIB / 2).unwrap();
        }
        assert_eq!(file.write_at(&[&half], 3 * MIB).unwrap_err().kind(), io::ErrorKind::StorageFull);
        assert_eq!(reserved.space().unwrap().free_bytes, 0);
        assert!(reserved.refill().is_err() && reserved.is_short());
        file.punch(0, 3 * MIB).unwrap();
        reserved.refill().unwrap();
        assert_eq!(Reserved::new(Arc::new(disk), 3 * MIB).unwrap().ballast.state.lock().len, 3 * MIB);
    }
}
