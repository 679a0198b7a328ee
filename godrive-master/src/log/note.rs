//! How far the log is on stable storage, noted beside it.
//!
//! A record tells what was synced before it, but of the last ones nothing behind them tells: damage there looks like a write that
//! a crash interrupted. So the end of the log is noted once it has been quiet for a moment, else once a second, and a log that ends
//! before its note has lost what it had promised. Two slots are written in turn, each within a sector: a note that is cut off leaves the last.
//!
//! ```text
//! slot at 0 and 4096   "GDLOGEND" · version u32 · 0 u32 · cluster u128 · index u64 · checksum u64   (48 bytes)
//! ```

use super::LogError;
use super::format::{VERSION, half, number, seed};
use godrive_disk::{Disk, write_zeros};
use godrive_proto::{ClusterId, LogIndex};
use std::io;
use std::sync::Arc;
use xxhash_rust::xxh3::xxh3_64_with_seed;

pub const NAME: &str = "synced";

const MAGIC: &[u8; 8] = b"GDLOGEND";
const SLOT_BYTES: usize = 48;
const PAGE_BYTES: usize = 4096;
const SLOTS: [u64; 2] = [0, PAGE_BYTES as u64];
const FILE_BYTES: u64 = 2 * PAGE_BYTES as u64;

/// What the notes say, and where the next goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Noted {
    pub index: LogIndex,
    pub next: usize,
}

/// The newest note; one that cannot be read says nothing.
pub fn read(disk: &dyn Disk, directory: &str, cluster: ClusterId) -> Result<Noted, LogError> {
    let path = path(directory);
    let io = |error| LogError::io(&path, error);
    if !disk.exists(&path).map_err(io)? {
        return Ok(Noted::default());
    }
    let file = disk.open(&path, false).map_err(io)?;
    let len = file.len().map_err(io)?;
    let mut noted = Noted::default();
    for (slot, at) in SLOTS.into_iter().enumerate() {
        let mut bytes = [0; SLOT_BYTES];
        if at + SLOT_BYTES as u64 > len {
            continue;
        }
        if let Err(error) = file.read_at(&mut bytes, at) {
            tracing::warn!(path, at, %error, "what was noted there cannot be read");
            continue;
        }
        let Some((version, index)) = parse(&bytes, cluster) else { continue };
        if version != VERSION {
            return Err(LogError::Version { path, version });
        }
        if index >= noted.index {
            noted = Noted { index, next: 1 - slot };
        }
    }
    Ok(noted)
}

/// A note to be written, on any thread; one at a time.
#[must_use]
pub struct Note {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) directory: String,
    pub(super) cluster: ClusterId,
    pub(super) index: LogIndex,
}

impl Note {
    /// Blocks until it is on stable storage, and returns the index that it names.
    pub fn run(&self) -> Result<LogIndex, LogError> {
        let Noted { next, .. } = read(&*self.disk, &self.directory, self.cluster)?;
        self.write(next).map_err(|error| LogError::io(&path(&self.directory), error))?;
        Ok(self.index)
    }

    fn write(&self, slot: usize) -> io::Result<()> {
        let file = self.disk.open(&path(&self.directory), true)?;
        let len = file.len()?;
        if len < FILE_BYTES {
            write_zeros(&*file, len, FILE_BYTES - len)?;
        }
        // The whole page: one that cannot be read need not be.
        let rest = [0; PAGE_BYTES - SLOT_BYTES];
        file.write_at(&[&bytes(self.cluster, self.index), &rest], SLOTS[slot])?;
        file.sync()?;
        if len < FILE_BYTES {
            self.disk.sync_directory(&self.directory)?;
        }
        Ok(())
    }
}

fn path(directory: &str) -> String {
    format!("{directory}/{NAME}")
}

fn bytes(cluster: ClusterId, index: LogIndex) -> [u8; SLOT_BYTES] {
    let mut bytes = [0; SLOT_BYTES];
    bytes[..8].copy_from_slice(MAGIC);
    bytes[8..12].copy_from_slice(&VERSION.to_le_bytes());
    bytes[16..32].copy_from_slice(&cluster.0.to_le_bytes());
    bytes[32..40].copy_from_slice(&index.0.to_le_bytes());
    let checksum = xxh3_64_with_seed(&bytes[..40], seed(cluster));
    bytes[40..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn parse(bytes: &[u8; SLOT_BYTES], cluster: ClusterId) -> Option<(u32, LogIndex)> {
    let is_one =
        bytes.starts_with(MAGIC) && xxh3_64_with_seed(&bytes[..40], seed(cluster)) == number(bytes, 40);
    is_one.then(|| (half(bytes, 8), LogIndex(number(bytes, 32))))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_disk::SimulatedDisk;
    use rand::rngs::SmallRng;
    use rand::{Rng, SeedableRng};

    const CLUSTER: ClusterId = ClusterId(0xc1);

    fn disk() -> Arc<SimulatedDisk> {
        let disk = Arc::new(SimulatedDisk::new(1 << 20));
        disk.create_directory("log").unwrap();
        disk.sync_directory("").unwrap();
        disk
    }

    fn note(disk: &Arc<SimulatedDisk>, index: u64) -> Result<LogIndex, LogError> {
        let index = LogIndex(index);
        Note { disk: disk.clone(), directory: "log".into(), cluster: CLUSTER, index }.run()
    }

    fn noted(disk: &Arc<SimulatedDisk>) -> u64 {
        read(&**disk, "log", CLUSTER).unwrap().index.0
    }

    #[test]
    fn the_newest_note_that_can_be_read_counts() {
        let disk = disk();
        assert_eq!(noted(&disk), 0);
        for index in [3, 5, 9] {
            note(&disk, index).unwrap();
            assert_eq!(noted(&disk), index);
        }
        let file = disk.open("log/synced", false).unwrap();
        assert_eq!(file.len().unwrap(), FILE_BYTES);
        // 9 went over 3, so that 5 is left where it is damaged.
        assert!(disk.flip("log/synced", 33));
        assert_eq!(noted(&disk), 5);
        assert!(disk.flip("log/synced", 4096));
        assert_eq!(noted(&disk), 0);
        file.set_len(20).unwrap();
        assert_eq!(noted(&disk), 0);
        note(&disk, 11).unwrap();
        assert_eq!((noted(&disk), file.len().unwrap()), (11, FILE_BYTES));
        let other = read(&*disk, "log", ClusterId(1)).unwrap();
        assert_eq!(other, Noted::default(), "another cluster's says nothing");
    }

    #[test]
    fn a_note_of_a_later_format_is_refused() {
        let disk = disk();
        note(&disk, 3).unwrap();
        let mut later = bytes(CLUSTER, LogIndex(3));
        later[8] = 2;
        let checksum = xxh3_64_with_seed(&later[..40], seed(CLUSTER));
        later[40..].copy_from_slice(&checksum.to_le_bytes());
        disk.open("log/synced", false).unwrap().write_at(&[&later], 0).unwrap();
        assert!(matches!(read(&*disk, "log", CLUSTER), Err(LogError::Version { version: 2, .. })));
    }

    #[test]
    fn what_was_noted_survives_every_crash() {
        let mut crashed = 0;
        for seed in 0..200 {
            let mut rng = SmallRng::seed_from_u64(seed);
            let disk = disk();
            let mut last = 0;
            for _ in 0..4 {
                let found = noted(&disk);
                assert!(found >= last, "seed {seed}: {found} < {last}");
                last = found;
                disk.stop_after(rng.random_range(1..12));
                let mut index = last;
                while index < last + 6 {
                    index += 1;
                    match note(&disk, index) {
                        Ok(noted) => last = noted.0,
                        Err(_) => break,
                    }
                }
                crashed += u32::from(index > last);
                disk.crash(&mut rng);
            }
        }
        assert!(crashed > 100, "{crashed}");
    }
}
