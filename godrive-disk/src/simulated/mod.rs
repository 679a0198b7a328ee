//! A disk in memory that keeps two images: what programs see and what a power loss leaves. [`SimulatedDisk::crash`]
//! turns the second into the first: unsynced writes are lost, kept, or torn at pages or sectors; names that
//! were not synced with their directory go back to what they were; handles from before fail.
//!
//! Faults are set from outside, while a daemon runs on a clone of the value: capacity, errors of each kind,
//! flipped bits, and a stop after so many changes (the crash that comes in the middle of something).

mod damage;
mod image;

pub use damage::Block;

use crate::{Disk, DiskFile, Space, check_directory, check_path, check_rename, parent};
use image::{Image, PAGE};
use parking_lot::Mutex;
use rand::Rng;
use rand::rngs::SmallRng;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;
use std::time::Duration;

/// Clones are the same disk.
#[derive(Clone)]
pub struct SimulatedDisk {
    state: Arc<Mutex<State>>,
}

/// What was done to the disk so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    pub writes: u64,
    pub written_bytes: u64,
    pub syncs: u64,
    pub reads: u64,
}

/// Which calls answer EIO.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Faults {
    pub reads: bool,
    pub writes: bool,
    pub syncs: bool,
}

struct State {
    capacity: u64,
    faults: Faults,
    /// Changes until the disk stops answering, if set.
    stop_after: Option<u64>,
    incarnation: u64,
    counters: Counters,
    files: BTreeMap<u64, Image>,
    next_file: u64,
    live: Names,
    durable: Names,
    /// Names changed since their directory was synced, in order, so that a crash keeps a prefix per directory.
    pending: Vec<(String, BTreeMap<String, Option<Entry>>)>,
    sync_takes: Duration,
}

type Names = BTreeMap<String, Entry>;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Entry {
    Directory,
    File(u64),
}

fn gone() -> io::Error {
    io::Error::other("the simulated disk stopped: this handle is from before a crash")
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

impl SimulatedDisk {
    pub fn new(capacity_bytes: u64) -> Self {
        Self { state: Arc::new(Mutex::new(State::new(capacity_bytes))) }
    }

    /// Power loss and restart: see the module. Also ends a [`Self::stop_after`].
    pub fn crash(&self, rng: &mut SmallRng) {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.incarnation += 1;
        state.stop_after = None;
        let pending = std::mem::take(&mut state.pending);
        let mut stuck = BTreeSet::new();
        for (directory, changes) in pending {
            if stuck.contains(&directory) || rng.random_bool(0.5) {
                stuck.insert(directory);
                continue;
            }
            apply(&mut state.durable, &changes);
        }
        // What lies in a directory goes with it. Parents come before what is in them.
        let mut durable = BTreeMap::new();
        for (path, entry) in std::mem::take(&mut state.durable) {
            if parent(&path).is_empty() || durable.contains_key(parent(&path)) {
                durable.insert(path, entry);
            }
        }
        state.durable = durable;
        state.live = state.durable.clone();
        let kept: BTreeSet<u64> = files_of(&state.live).collect();
        state.files.retain(|file, _| kept.contains(file));
        for image in state.files.values_mut() {
            image.crash(rng);
        }
    }

    /// The process dies (kill -9) but the machine lives: handles fail, nothing is lost. Also ends a [`Self::stop_after`].
    pub fn kill(&self) {
        let mut state = self.state.lock();
        state.incarnation += 1;
        state.stop_after = None;
    }

    /// After so many further changes (writes, syncs, names) every call fails until [`Self::crash`].
    pub fn stop_after(&self, changes: u64) {
        self.state.lock().stop_after = Some(changes);
    }

    pub fn set_faults(&self, faults: Faults) {
        self.state.lock().faults = faults;
    }

    pub fn set_capacity(&self, capacity_bytes: u64) {
        self.state.lock().capacity = capacity_bytes;
    }

    /// From now on a sync takes so long: see [`Disk::sync_takes`].
    pub fn set_sync_takes(&self, long: Duration) {
        self.state.lock().sync_takes = long;
    }

    /// Bit rot: flips a bit of the byte, on the medium and in what is read. False if there is no such file.
    pub fn flip(&self, path: &str, offset: u64) -> bool {
        self.with_file(path, |image| image.flip(offset)).is_some()
    }

    pub fn counters(&self) -> Counters {
        self.state.lock().counters
    }
}

fn apply(names: &mut Names, changes: &BTreeMap<String, Option<Entry>>) {
    for (path, entry) in changes {
        match entry {
            Some(entry) => names.insert(path.clone(), *entry),
            None => names.remove(path),
        };
    }
}

fn files_of(names: &Names) -> impl Iterator<Item = u64> {
    names.values().filter_map(|entry| match entry {
        Entry::File(file) => Some(*file),
        Entry::Directory => None,
    })
}

impl State {
    fn new(capacity: u64) -> Self {
        Self {
            capacity,
            faults: Faults::default(),
            stop_after: None,
            incarnation: 0,
            counters: Counters::default(),
            files: BTreeMap::new(),
            next_file: 0,
            live: Names::new(),
            durable: Names::new(),
            pending: Vec::new(),
            sync_takes: Duration::ZERO,
        }
    }

    fn used(&self) -> u64 {
        let named = files_of(&self.live).filter_map(|file| self.files.get(&file));
        named.map(Image::live_pages).sum::<u64>() * PAGE
    }

    /// Every call that changes something passes here.
    fn change(&mut self) -> io::Result<()> {
        match &mut self.stop_after {
            Some(0) => Err(gone()),
            Some(left) => {
                *left -= 1;
                Ok(())
            }
            None => Ok(()),
        }
    }

    fn stopped(&self) -> io::Result<()> {
        if self.stop_after == Some(0) { Err(gone()) } else { Ok(()) }
    }

    fn rename_entries(&mut self, directory: &str, changes: BTreeMap<String, Option<Entry>>) {
        apply(&mut self.live, &changes);
        self.pending.push((directory.to_owned(), changes));
    }

    fn require_directory(&self, path: &str) -> io::Result<()> {
        if path.is_empty() || self.live.get(path) == Some(&Entry::Directory) {
            return Ok(());
        }
        Err(io::Error::new(io::ErrorKind::NotFound, format!("no directory `{path}`")))
    }

    fn image(&mut self, handle: &SimulatedFile) -> io::Result<&mut Image> {
        if handle.incarnation != self.incarnation {
            return Err(gone());
        }
        self.stopped()?;
        self.counted(handle)
    }

    /// The image for a change that [`Self::change`] has let pass (perhaps as the last one).
    fn counted(&mut self, handle: &SimulatedFile) -> io::Result<&mut Image> {
        self.files.get_mut(&handle.file).ok_or_else(gone)
    }
}

impl Disk for SimulatedDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        check_path(path)?;
        let mut state = self.state.lock();
        state.stopped()?;
        state.require_directory(parent(path))?;
        let file = match state.live.get(path) {
            Some(Entry::File(file)) => *file,
            Some(Entry::Directory) => return Err(io::ErrorKind::IsADirectory.into()),
            None if create => {
                if state.faults.writes {
                    return Err(eio());
                }
                state.change()?;
                let file = state.next_file;
                state.next_file += 1;
                state.files.insert(file, Image::default());
                let changes = BTreeMap::from([(path.to_owned(), Some(Entry::File(file)))]);
                state.rename_entries(parent(path), changes);
                file
            }
            None => return Err(io::Error::new(io::ErrorKind::NotFound, format!("no file `{path}`"))),
        };
        Ok(Arc::new(SimulatedFile { state: self.state.clone(), file, incarnation: state.incarnation }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        check_path(path)?;
        let state = self.state.lock();
        state.stopped()?;
        Ok(state.live.contains_key(path))
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        check_directory(directory)?;
        let state = self.state.lock();
        state.stopped()?;
        state.require_directory(directory)?;
        let inside = state.live.keys().filter(|path| parent(path) == directory);
        Ok(inside.map(|path| path.rsplit('/').next().unwrap_or(path).to_owned()).collect())
    }

    fn create_directory(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        let mut state = self.state.lock();
        state.require_directory(parent(path))?;
        match state.live.get(path) {
            Some(Entry::Directory) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::AlreadyExists.into()),
            None => {
                state.change()?;
                let changes = BTreeMap::from([(path.to_owned(), Some(Entry::Directory))]);
                state.rename_entries(parent(path), changes);
                Ok(())
            }
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        check_path(path)?;
        let mut state = self.state.lock();
        if !matches!(state.live.get(path), Some(Entry::File(_))) {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no file `{path}`")));
        }
        state.change()?;
        state.rename_entries(parent(path), BTreeMap::from([(path.to_owned(), None)]));
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_rename(from, to)?;
        let mut state = self.state.lock();
        let Some(entry @ Entry::File(_)) = state.live.get(from).copied() else {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no file `{from}`")));
        };
        state.change()?;
        let changes = BTreeMap::from([(from.to_owned(), None), (to.to_owned(), Some(entry))]);
        state.rename_entries(parent(from), changes);
        Ok(())
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        check_directory(directory)?;
        let mut guard = self.state.lock();
        let state = &mut *guard;
        state.require_directory(directory)?;
        if state.faults.syncs {
            return Err(eio());
        }
        state.change()?;
        let (synced, waiting) =
            std::mem::take(&mut state.pending).into_iter().partition(|(of, _)| of == directory);
        state.pending = waiting;
        let synced: Vec<(String, BTreeMap<String, Option<Entry>>)> = synced;
        for (_, changes) in &synced {
            apply(&mut state.durable, changes);
        }
        let pending = state.pending.iter().flat_map(|(_, changes)| changes.values().flatten());
        let pending = pending.filter_map(|entry| match entry {
            Entry::File(file) => Some(*file),
            Entry::Directory => None,
        });
        let named: BTreeSet<u64> =
            files_of(&state.live).chain(files_of(&state.durable)).chain(pending).collect();
        state.files.retain(|file, _| named.contains(file));
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        let state = self.state.lock();
        state.stopped()?;
        Ok(Space { total_bytes: state.capacity, free_bytes: state.capacity.saturating_sub(state.used()) })
    }

    fn is_instant(&self) -> bool {
        true
    }

    fn sync_takes(&self) -> Duration {
        self.state.lock().sync_takes
    }
}

struct SimulatedFile {
    state: Arc<Mutex<State>>,
    file: u64,
    incarnation: u64,
}

impl SimulatedFile {
    fn change<T>(&self, act: impl FnOnce(&mut Image) -> T) -> io::Result<T> {
        let mut state = self.state.lock();
        state.image(self)?;
        state.change()?;
        if state.faults.writes {
            return Err(eio());
        }
        Ok(act(state.counted(self)?))
    }
}

impl DiskFile for SimulatedFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.state.lock().image(self)?.len)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.change(|image| image.set_len(len))
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        if state.faults.reads {
            return Err(eio());
        }
        state.counters.reads += 1;
        let image = state.image(self)?;
        if offset.checked_add(buf.len() as u64).is_none_or(|end| end > image.len) {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        image.read(buf, offset);
        Ok(())
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let bytes = pieces.concat();
        let mut state = self.state.lock();
        let added = state.image(self)?.added_pages(offset, bytes.len() as u64) * PAGE;
        if added > 0 && state.used() + added > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        drop(state);
        self.change(|image| image.write(&bytes, offset))?;
        let counters = &mut self.state.lock().counters;
        counters.writes += 1;
        counters.written_bytes += bytes.len() as u64;
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let mut state = self.state.lock();
        let added = state.image(self)?.added_pages(offset, len) * PAGE;
        if added > 0 && state.used() + added > state.capacity {
            return Err(io::ErrorKind::StorageFull.into());
        }
        drop(state);
        self.change(|image| image.allocate(offset, len))
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.change(|image| image.punch(offset, len))
    }

    fn start_writeback(&self, _offset: u64, _len: u64) -> io::Result<()> {
        self.state.lock().image(self)?;
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        let mut state = self.state.lock();
        state.image(self)?;
        state.change()?;
        state.counters.syncs += 1;
        let failing = state.faults.syncs;
        let image = state.counted(self)?;
        if failing {
            image.fail_sync();
            return Err(eio());
        }
        image.sync();
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        self.sync()?;
        self.state.lock().image(self)?.drop_cache();
        Ok(())
    }
}

#[cfg(test)]
mod tests;
