//! A disk whose syncs wait while its gate is closed, and that takes no bytes while it is full.

use godrive_disk::{Disk, DiskFile, RealDisk, Space};
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};

#[derive(Default)]
pub struct Gate {
    closed: Mutex<bool>,
    changed: Condvar,
    full: AtomicBool,
}

impl Gate {
    pub fn set_closed(&self, closed: bool) {
        *self.closed.lock().unwrap() = closed;
        self.changed.notify_all();
    }

    pub fn set_full(&self, full: bool) {
        self.full.store(full, Ordering::SeqCst);
    }

    fn is_full(&self) -> bool {
        self.full.load(Ordering::SeqCst)
    }

    fn pass(&self) {
        drop(self.changed.wait_while(self.closed.lock().unwrap(), |closed| *closed).unwrap());
    }
}

pub struct GatedDisk {
    disk: RealDisk,
    gate: Arc<Gate>,
}

impl GatedDisk {
    pub fn open(root: &Path, gate: Arc<Gate>) -> Self {
        Self { disk: RealDisk::open(root).unwrap(), gate }
    }
}

struct GatedFile {
    file: Arc<dyn DiskFile>,
    gate: Arc<Gate>,
}

impl Disk for GatedDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        Ok(Arc::new(GatedFile { file: self.disk.open(path, create)?, gate: self.gate.clone() }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        self.disk.exists(path)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        self.disk.list(directory)
    }

    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.disk.create_directory(path)
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        self.disk.remove(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.disk.rename(from, to)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        self.gate.pass();
        self.disk.sync_directory(directory)
    }

    fn space(&self) -> io::Result<Space> {
        let space = self.disk.space()?;
        Ok(if self.gate.is_full() { Space { free_bytes: 0, ..space } } else { space })
    }

    fn is_instant(&self) -> bool {
        false
    }
}

impl DiskFile for GatedFile {
    fn len(&self) -> io::Result<u64> {
        self.file.len()
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_at(buf, offset)
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        if self.gate.is_full() {
            return Err(io::ErrorKind::StorageFull.into());
        }
        self.file.write_at(pieces, offset)
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.allocate(offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.punch(offset, len)
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.file.start_writeback(offset, len)
    }

    fn sync(&self) -> io::Result<()> {
        self.gate.pass();
        self.file.sync()
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.gate.pass();
        self.file.drop_cache()
    }
}
