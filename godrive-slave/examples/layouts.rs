//! Measures ways to lay chunks out on a disk, for `docs/adr/0002-chunk-store.md`:
//!
//! ```sh
//! cargo run --release --example layouts -- /path/on/the/disk
//! ```
//!
//! Each layout gets the same changes of 4 KiB leaves in chunks of 1 MiB, and says after each group of them that they are
//! stable. Printed are groups per second (the median of three rounds), bytes given to the disk for each byte of the user,
//! and syncs for each group.
#![allow(clippy::disallowed_methods, reason = "a measurement on the real machine")]

use anyhow::{Context, Result};
use godrive_disk::RealDisk;
use godrive_proto::data::{DeltaRequest, Extent, Fill};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, ClusterId, DiskId, Epoch, OpId, SessionId, Version, sums};
use godrive_slave::store::{DiskStore, NewDisk, Options, Secret};
use redb::{Database, TableDefinition};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

const LEAF: usize = 4096;
const LEAVES: u32 = 256;
const ROUNDS: usize = 3;

/// Leaves of one chunk that change together.
struct Change {
    chunk: u64,
    first: u32,
    bytes: Vec<u8>,
}

trait Layout {
    fn write(&mut self, change: &Change) -> Result<()>;
    /// Everything written so far is stable. How many syncs that took.
    fn sync(&mut self) -> Result<u64>;
    /// What is left to do in the background: the disk holds only what it must.
    fn settle(&mut self) -> Result<()>;
}

/// A file per chunk, written in place, behind a journal that makes a change atomic.
struct Journal {
    folder: PathBuf,
    journal: File,
    end: u64,
    files: BTreeMap<u64, File>,
}

impl Journal {
    fn open(folder: &Path) -> Result<Self> {
        let journal = File::create(folder.join("journal"))?;
        Ok(Self { folder: folder.into(), journal, end: 0, files: BTreeMap::new() })
    }
}

impl Layout for Journal {
    fn write(&mut self, change: &Change) -> Result<()> {
        self.journal.write_all_at(&[0; LEAF], self.end)?;
        self.journal.write_all_at(&change.bytes, self.end + LEAF as u64)?;
        self.end += (LEAF + change.bytes.len()) as u64;
        let path = self.folder.join(change.chunk.to_string());
        let open = || OpenOptions::new().create(true).truncate(false).write(true).open(&path);
        let file = match self.files.entry(change.chunk) {
            std::collections::btree_map::Entry::Occupied(entry) => entry.into_mut(),
            std::collections::btree_map::Entry::Vacant(entry) => entry.insert(open()?),
        };
        Ok(file.write_all_at(&change.bytes, u64::from(change.first) * LEAF as u64)?)
    }

    fn sync(&mut self) -> Result<u64> {
        self.journal.sync_data()?;
        Ok(1)
    }

    fn settle(&mut self) -> Result<()> {
        for file in self.files.values() {
            file.sync_data()?;
        }
        File::open(&self.folder)?.sync_all()?;
        self.journal.set_len(0)?;
        self.end = 0;
        Ok(self.journal.sync_data()?)
    }
}

/// A file per chunk, written anew for each change and renamed over the old one.
struct Replace {
    folder: PathBuf,
    dirty: BTreeSet<u64>,
}

impl Layout for Replace {
    fn write(&mut self, change: &Change) -> Result<()> {
        let path = self.folder.join(change.chunk.to_string());
        let mut bytes = match std::fs::read(&path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(error.into()),
        };
        let at = change.first as usize * LEAF;
        bytes.resize(bytes.len().max(at + change.bytes.len()), 0);
        bytes[at..at + change.bytes.len()].copy_from_slice(&change.bytes);
        let new = self.folder.join(format!("{}.new", change.chunk));
        std::fs::write(&new, bytes)?;
        File::open(&new)?.sync_data()?;
        std::fs::rename(&new, &path)?;
        self.dirty.insert(change.chunk);
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        File::open(&self.folder)?.sync_all()?;
        let written = std::mem::take(&mut self.dirty).len() as u64;
        Ok(written + 1)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

const TABLE: TableDefinition<'_, (u64, u32), &[u8]> = TableDefinition::new("leaves");

/// Leaves as values of a B-tree.
struct Tree {
    database: Database,
    pending: Vec<(u64, u32, Vec<u8>)>,
}

impl Layout for Tree {
    fn write(&mut self, change: &Change) -> Result<()> {
        for (at, leaf) in change.bytes.chunks(LEAF).enumerate() {
            self.pending.push((change.chunk, change.first + at as u32, leaf.to_vec()));
        }
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        let transaction = self.database.begin_write()?;
        {
            let mut table = transaction.open_table(TABLE)?;
            for (chunk, leaf, bytes) in self.pending.drain(..) {
                table.insert((chunk, leaf), bytes.as_slice())?;
            }
        }
        transaction.commit()?;
        Ok(1)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(())
    }
}

/// The chunk store as it is.
struct Log {
    store: DiskStore,
    versions: BTreeMap<u64, u64>,
    runtime: tokio::runtime::Runtime,
}

impl Layout for Log {
    fn write(&mut self, change: &Change) -> Result<()> {
        let version = self.versions.entry(change.chunk).or_default();
        let extent =
            Extent { offset: change.first * LEAF as u32, len: change.bytes.len() as u32, fill: Fill::Bytes };
        let leaves = change.bytes.chunks(LEAF).enumerate();
        let sums =
            leaves.map(|(at, leaf)| sums::piece(ChunkId(change.chunk), change.first + at as u32, leaf));
        let request = DeltaRequest {
            chunk: ChunkId(change.chunk),
            chunk_bytes: LEAVES * LEAF as u32,
            disk: self.store.id(),
            epoch: Epoch(1),
            base: Version(*version),
            op: OpId { session: SessionId(1), sequence: *version + 1 },
            extents: vec![extent],
            sums: sums.collect(),
            chain: Vec::new(),
            sync: true,
            mtime: Timestamp(0),
        };
        self.store.delta(&request, &change.bytes)?;
        *version += 1;
        Ok(())
    }

    fn sync(&mut self) -> Result<u64> {
        self.runtime.block_on(self.store.sync())?;
        Ok(1)
    }

    fn settle(&mut self) -> Result<()> {
        Ok(self.store.checkpoint(Timestamp(0))?)
    }
}

fn open(name: &str, folder: &Path) -> Result<Box<dyn Layout>> {
    std::fs::create_dir_all(folder)?;
    Ok(match name {
        "journal" => Box::new(Journal::open(folder)?),
        "replace" => Box::new(Replace { folder: folder.into(), dirty: BTreeSet::new() }),
        "b-tree" => {
            Box::new(Tree { database: Database::create(folder.join("leaves.redb"))?, pending: Vec::new() })
        }
        _ => {
            let disk = Arc::new(RealDisk::open(folder)?);
            let store = DiskStore::open(
                disk,
                Options::new(ClusterId(1)),
                NewDisk { id: DiskId(1), secret: Secret(1) },
                Timestamp(0),
            )?;
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            Box::new(Log { store, versions: BTreeMap::new(), runtime })
        }
    })
}

/// What is done, in groups: each is written, then stable.
fn workload(name: &str) -> (Vec<Vec<Change>>, Vec<Vec<Change>>) {
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = move |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let noise = |leaves: u32, salt: u64| -> Vec<u8> {
        (0..leaves as usize * LEAF / 8)
            .flat_map(|at| (at as u64 ^ salt).wrapping_mul(0x2545_f491_4f6c_dd1d).to_le_bytes())
            .collect()
    };
    let whole = |chunk| Change { chunk, first: 0, bytes: noise(LEAVES, chunk) };
    let filled = (1..=32).map(|chunk| vec![whole(chunk)]).collect();
    let mut overwrite = |group: u64, count: u64| {
        let mut change = || {
            let (chunk, first) = (1 + random(32), random(u64::from(LEAVES)) as u32);
            Change { chunk, first, bytes: noise(1, chunk ^ u64::from(first)) }
        };
        (0..count / group).map(|_| (0..group).map(|_| change()).collect()).collect()
    };
    match name {
        "4 KiB overwrite" => (filled, overwrite(1, 400)),
        "16 x 4 KiB overwrites" => (filled, overwrite(16, 1600)),
        "4 KiB file" => (
            vec![],
            (1..=400).map(|chunk| vec![Change { chunk, first: 0, bytes: noise(1, chunk) }]).collect(),
        ),
        _ => (vec![], (1..=64).map(|chunk| vec![whole(chunk)]).collect()),
    }
}

/// Bytes that this process has given to disks.
fn written() -> Result<u64> {
    let text = std::fs::read_to_string("/proc/self/io")?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: "));
    Ok(line.context("/proc/self/io names no write_bytes")?.parse()?)
}

fn main() -> Result<()> {
    let base = PathBuf::from(std::env::args().nth(1).context("say a folder on the disk to be measured")?);
    std::fs::create_dir_all(&base)?;
    println!("{:24}{:10}{:>12}{:>14}{:>12}", "workload", "layout", "groups/s", "bytes/byte", "syncs/group");
    for work in ["4 KiB overwrite", "16 x 4 KiB overwrites", "4 KiB file", "1 MiB chunk"] {
        for name in ["journal", "replace", "b-tree", "log"] {
            let (mut rates, mut bytes, mut syncs) = (Vec::new(), 0.0, 0.0);
            for round in 0..ROUNDS {
                let folder =
                    tempfile::Builder::new().prefix(&format!("{name}-{round}-")).tempdir_in(&base)?;
                let mut layout = open(name, folder.path())?;
                let (before, groups) = workload(work);
                for change in before.iter().flatten() {
                    layout.write(change)?;
                }
                layout.sync()?;
                layout.settle()?;
                let (given, begun, mut synced) = (written()?, Instant::now(), 0);
                for group in &groups {
                    group.iter().try_for_each(|change| layout.write(change))?;
                    synced += layout.sync()?;
                }
                rates.push(groups.len() as f64 / begun.elapsed().as_secs_f64());
                layout.settle()?;
                let user: usize = groups.iter().flatten().map(|change| change.bytes.len()).sum();
                bytes = (written()? - given) as f64 / user as f64;
                syncs = synced as f64 / groups.len() as f64;
            }
            rates.sort_by(f64::total_cmp);
            println!("{work:24}{name:10}{:>12.0}{bytes:>14.1}{syncs:>12.1}", rates[ROUNDS / 2]);
        }
    }
    Ok(())
}
