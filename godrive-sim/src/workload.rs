//! What a client does all day: it reads and writes stamped blocks of a file that all clients share, closes and
//! fsyncs it, publishes files of its own by renaming them over a name, and fills and empties a folder of its own.
//! Everything is told to the oracle.

mod folders;

use crate::oracle::{Place, Safety};
use crate::shared::{Kind, Shared};
use crate::stamp::{self, Found, Stamp};
use folders::OwnFolder;
use godrive_client::fs::{Caller, Found as Looked, Handle};
use godrive_client::{Fs, FsError};
use godrive_proto::meta::RenameMode;
use godrive_proto::{Ino, ROOT};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// The file that all clients share; each client's published file has the number 100 + client.
const SHARED: u32 = 1;
const PUBLISHED: u32 = 100;
/// Between two operations, while the cluster is to settle.
const WHILE_SETTLING: Duration = Duration::from_millis(150);
/// Who has waited for so long makes a write stable next: what is promised again by then is tried, not left to the dice.
const STALL: Duration = Duration::from_secs(1);
const SHARED_NAME: &[u8] = b"shared";
/// Not a multiple of a leaf, so that deltas are partial.
const BLOCK_BYTES: usize = 3000;
const STRIDE: u64 = 66_000;
const PUBLISHED_BYTES: usize = 20_000;

/// How much of what.
#[derive(Clone, Copy, Debug)]
pub struct Workload {
    pub clients: u16,
    /// Blocks of the shared file. They spread over several chunks.
    pub places: u64,
    pub until: Duration,
    /// The longest pause between two operations.
    pub pause: Duration,
    /// All replicas of a chunk may be bad at the end: reads of it may fail, and changes.
    pub may_be_unreadable: bool,
}

/// One client at work.
pub struct Worker {
    pub id: u16,
    pub fs: Arc<Fs>,
    pub shared: Shared,
    pub load: Workload,
    rng: SmallRng,
    sequence: u64,
    handle: Option<Handle>,
    /// When the last write began that no `close` or `fsync` has followed.
    wrote: Option<Duration>,
    folder: Option<OwnFolder>,
    /// Files and folders that were given up after an error or a disturbance.
    given_up: BTreeSet<Ino>,
}

type Outcome<T> = Result<T, FsError>;

impl Worker {
    pub fn new(id: u16, fs: Arc<Fs>, shared: Shared, load: Workload, seed: u64) -> Self {
        // A client that starts anew goes on with stamps that were not used.
        let sequence = turmoil::sim_elapsed().unwrap_or_default().as_micros() as u64;
        let rng = SmallRng::seed_from_u64(seed);
        Self {
            id,
            fs,
            shared,
            load,
            rng,
            sequence,
            handle: None,
            wrote: None,
            folder: None,
            given_up: BTreeSet::new(),
        }
    }

    /// Works until the time is over, then closes and verifies everything.
    pub async fn run(mut self) {
        while !self.shared.is_over(self.load.until) {
            self.awake().await;
            let began = now();
            self.step().await;
            if now() - began > STALL {
                self.awake().await;
                let place = self.rng.random_range(0..self.load.places);
                let outcome = self.write_and_sync(place).await;
                self.end_step(outcome).await;
            }
            let pause = self.rng.random_range(0..=self.load.pause.as_micros() as u64);
            tokio::time::sleep(Duration::from_micros(pause)).await;
            if self.shared.with(|notes| notes.settling) {
                tokio::time::sleep(WHILE_SETTLING).await;
            }
        }
        self.close().await;
        self.verify().await;
        self.shared.doing(self.id, "stopping");
        self.give_up_folder();
        let unflushed = self.fs.stop().await.err().map_or_else(Vec::new, |unflushed| unflushed.0);
        let unflushed: Vec<_> =
            unflushed.into_iter().filter(|(ino, _)| !self.given_up.contains(ino)).collect();
        if !unflushed.is_empty() && !self.load.may_be_unreadable {
            self.shared.problem(format!("client {} could not flush at its end: {unflushed:?}", self.id));
        }
        self.shared.doing(self.id, "nothing any more");
        self.shared.with(|notes| notes.finished.insert(self.id, true));
    }

    /// Nobody asks for anything while the machine sleeps.
    async fn awake(&self) {
        self.shared.awake(self.id).await;
    }

    async fn step(&mut self) {
        let place = self.rng.random_range(0..self.load.places);
        let outcome = match self.rng.random_range(0..100) {
            0..42 => self.read(place).await,
            42..72 => self.write(place).await,
            72..77 => return self.change_folder().await,
            77..80 => {
                let other = self.rng.random_range(0..self.load.clients);
                return self.list_folder(other).await;
            }
            80..85 => self.fsync().await,
            85..90 => {
                self.close().await;
                Ok(())
            }
            90..94 => return self.publish().await,
            _ => {
                let other = self.rng.random_range(0..self.load.clients);
                return self.look_at(other).await;
            }
        };
        self.end_step(outcome).await;
    }

    async fn end_step(&mut self, outcome: Outcome<()>) {
        match outcome {
            Ok(()) => self.shared.acknowledged(self.id),
            Err(_) => self.give_up().await,
        }
    }

    async fn write_and_sync(&mut self, place: u64) -> Outcome<()> {
        self.write(place).await?;
        self.fsync().await
    }

    /// After an error the handle may be poisoned: what was not flushed is in doubt, and a new handle must work.
    async fn give_up(&mut self) {
        self.wrote = None;
        // Who could not open it is told nothing of what was written before.
        self.shared.with(|notes| match self.handle {
            Some(_) => notes.oracle.failed(self.id, SHARED),
            None => notes.oracle.tally.errors += 1,
        });
        if let Some(handle) = self.handle.take() {
            self.shared.doing(self.id, "flush after an error");
            // Its outcome says nothing new: the writes are in doubt already.
            let _ = self.fs.flush(handle).await;
            self.fs.release(handle);
        }
        tokio::time::sleep(Duration::from_millis(200)).await;
    }

    async fn handle(&mut self) -> Outcome<Handle> {
        self.awake().await;
        if let Some(handle) = self.handle {
            return Ok(handle);
        }
        let (_, handle) = self.open_or_create(SHARED_NAME).await?;
        self.handle = Some(handle);
        Ok(handle)
    }

    async fn open_or_create(&self, name: &[u8]) -> Outcome<(Ino, Handle)> {
        self.awake().await;
        self.shared.doing(self.id, format!("open or create {}", String::from_utf8_lossy(name)));
        let caller = Caller::default();
        let opened = self.fs.create(ROOT, name, 0o644, O_RDWR, caller).await;
        let opened = opened.inspect_err(|error| self.shared.error("create", error))?;
        Ok((opened.entry.attr.ino, opened.opened.handle))
    }

    async fn read(&mut self, place: u64) -> Outcome<()> {
        let handle = self.handle().await?;
        self.shared.doing(self.id, format!("read block {place}"));
        let began = now();
        let reading = self.shared.with(|notes| notes.oracle.read_begins((SHARED, place)));
        let bytes = self.read_bytes(handle, place * STRIDE, BLOCK_BYTES).await?;
        let found = stamp::read(&bytes, place);
        self.shared.with(|notes| notes.oracle.read_ends(self.id, reading, found));
        self.shared.done(Kind::Read, self.id, began);
        Ok(())
    }

    /// What lies behind the file's end reads as zeros here.
    async fn read_bytes(&self, handle: Handle, offset: u64, len: usize) -> Outcome<Vec<u8>> {
        let pieces = self.fs.read(handle, offset, len as u32).await;
        let pieces = pieces.inspect_err(|error| self.shared.error("read", error))?;
        let mut bytes = pieces.concat();
        bytes.resize(len, 0);
        Ok(bytes)
    }

    async fn write(&mut self, place: u64) -> Outcome<()> {
        let handle = self.handle().await?;
        let stamp = self.stamp();
        self.shared.doing(self.id, format!("write block {place}"));
        self.shared.with(|notes| notes.oracle.write_begins((SHARED, place), stamp));
        let bytes = stamp::block(stamp, place, BLOCK_BYTES);
        let began = now();
        let written = self.fs.write(handle, place * STRIDE, bytes, false).await;
        let written = written.inspect_err(|error| self.shared.error("write", error))?;
        if *written as usize != BLOCK_BYTES {
            self.shared.problem(format!("a write of {BLOCK_BYTES} bytes took {}", *written));
        }
        self.shared.with(|notes| notes.oracle.write_ends((SHARED, place), stamp));
        self.wrote = Some(began);
        Ok(())
    }

    fn stamp(&mut self) -> Stamp {
        self.sequence += 1;
        Stamp { client: self.id, sequence: self.sequence }
    }

    async fn fsync(&mut self) -> Outcome<()> {
        let handle = self.handle().await?;
        self.shared.doing(self.id, "fsync");
        let below = self.sequence + 1;
        self.fs.fsync(handle, false).await.inspect_err(|error| self.shared.error("fsync", error))?;
        self.shared.with(|notes| notes.oracle.safe(self.id, SHARED, below, Safety::Stable));
        self.synced(Kind::Fsync);
        Ok(())
    }

    fn synced(&mut self, kind: Kind) {
        if let Some(began) = self.wrote.take() {
            self.shared.done(kind, self.id, began);
        }
    }

    async fn close(&mut self) {
        let Some(handle) = self.handle.take() else { return };
        self.shared.doing(self.id, "close");
        let below = self.sequence + 1;
        let flushed = self.fs.flush(handle).await.inspect_err(|error| self.shared.error("close", error));
        self.shared.with(|notes| match flushed {
            Ok(()) => notes.oracle.safe(self.id, SHARED, below, Safety::Held),
            Err(_) => notes.oracle.failed(self.id, SHARED),
        });
        match flushed {
            Ok(()) => self.synced(Kind::Close),
            Err(_) => self.wrote = None,
        }
        self.fs.release(handle);
    }

    /// Writes a new file and renames it over the published name: from then on that is what everyone must see,
    /// whole, and after a power loss too.
    async fn publish(&mut self) {
        let stamp = self.stamp();
        let place = (PUBLISHED + u32::from(self.id), 0);
        let temporary = format!("new-{}-{}", self.id, stamp.sequence);
        if let Err(error) = self.prepare(temporary.as_bytes(), stamp).await {
            return self.shared.error("prepare a file to publish", &error);
        }
        self.awake().await;
        self.shared.doing(self.id, "rename");
        self.shared.with(|notes| notes.oracle.write_begins(place, stamp));
        let name = published(self.id);
        let renamed =
            self.fs.rename(ROOT, temporary.as_bytes(), ROOT, name.as_bytes(), RenameMode::Replace).await;
        match renamed {
            Ok(()) => {
                self.shared.with(|notes| {
                    notes.oracle.write_ends(place, stamp);
                    notes.oracle.safe(self.id, place.0, stamp.sequence + 1, Safety::Held);
                });
                self.shared.acknowledged(self.id);
                self.shared.doing(self.id, "fsync of the directory");
                match self.sync_directory(ROOT).await {
                    Ok(()) => self.shared.with(|notes| {
                        notes.oracle.safe(self.id, place.0, stamp.sequence + 1, Safety::Stable);
                    }),
                    Err(error) => self.shared.error("fsync of the directory", &error),
                }
            }
            Err(error) => self.shared.error("rename", &error),
        }
    }

    async fn sync_directory(&self, ino: Ino) -> Outcome<()> {
        self.awake().await;
        let handle = self.fs.opendir(ino)?.handle;
        let synced = self.fs.fsyncdir(handle).await;
        self.fs.releasedir(handle);
        synced
    }

    async fn prepare(&mut self, name: &[u8], stamp: Stamp) -> Outcome<()> {
        let (ino, handle) = self.open_or_create(name).await?;
        self.shared.doing(self.id, "write a file to publish");
        let began = now();
        let written =
            self.fs.write(handle, 0, stamp::block(stamp, 0, PUBLISHED_BYTES), false).await.map(drop);
        self.shared.doing(self.id, "close a file to publish");
        let flushed = self.fs.flush(handle).await;
        self.fs.release(handle);
        let prepared = written.and(flushed);
        match prepared {
            Ok(()) => self.shared.done(Kind::Close, self.id, began),
            Err(_) => drop(self.given_up.insert(ino)),
        }
        prepared
    }

    async fn look_at(&mut self, other: u16) {
        let reading = self.shared.with(|notes| notes.oracle.read_begins(published_place(other)));
        match self.read_published(other).await {
            Ok(Some(found)) => {
                self.shared.with(|notes| notes.oracle.read_ends(self.id, reading, found));
                self.shared.acknowledged(self.id);
            }
            // Replaced between lookup and open.
            Ok(None) => {}
            Err(error) => self.shared.error("look at a published file", &error),
        }
    }

    async fn read_published(&self, other: u16) -> Outcome<Option<Found>> {
        self.awake().await;
        self.shared.doing(self.id, format!("look up the file that client {other} published"));
        let ino: Ino = match &self.fs.lookup(ROOT, published(other).as_bytes()).await?.value {
            Looked::Missing(_) => return Ok(Some(Found::Nothing)),
            Looked::Entry(entry) => entry.attr.ino,
        };
        let handle = match self.fs.open(ino, O_RDONLY).await {
            Ok(opened) => opened.handle,
            Err(error) if [ENOENT, ESTALE].contains(&error.errno) => return Ok(None),
            Err(error) => return Err(error),
        };
        self.awake().await;
        self.shared.doing(self.id, format!("read the file that client {other} published"));
        let bytes = self.read_bytes(handle, 0, PUBLISHED_BYTES).await;
        self.fs.release(handle);
        Ok(Some(stamp::read(&bytes?, 0)))
    }

    /// At the end, with everything healed, every block must be readable and right, within a few tries.
    async fn verify(&mut self) {
        let tries = if self.load.may_be_unreadable { 1 } else { 5 };
        for place in 0..self.load.places {
            let mut last = None;
            for _ in 0..tries {
                last = self.read(place).await.err();
                if last.is_none() {
                    break;
                }
                self.give_up().await;
            }
            if self.load.may_be_unreadable {
                continue;
            }
            if let Some(error) = last {
                self.shared
                    .problem(format!("client {} cannot read block {place} at the end: {error}", self.id));
            }
        }
        for other in 0..self.load.clients {
            self.look_at(other).await;
            self.list_folder(other).await;
        }
        self.close().await;
    }
}

fn now() -> Duration {
    turmoil::sim_elapsed().unwrap_or_default()
}

fn published(client: u16) -> String {
    format!("published-{client}")
}

fn published_place(client: u16) -> Place {
    (PUBLISHED + u32::from(client), 0)
}

// As Linux numbers them; the file system takes them raw.
const O_RDONLY: i32 = 0;
const O_RDWR: i32 = 2;
const ENOENT: i32 = 2;
const ESTALE: i32 = 116;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_block_crosses_a_chunk() {
        // Only within one chunk is a write atomic.
        let chunk = u64::from(godrive_proto::limits::MIN_CHUNK_BYTES);
        for place in 0..64 {
            let start = place * STRIDE;
            assert_eq!(start / chunk, (start + BLOCK_BYTES as u64 - 1) / chunk, "block {place}");
        }
    }
}
