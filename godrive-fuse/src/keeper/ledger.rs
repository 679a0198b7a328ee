//! The ledger as a file in memory that the keeper and the daemon share: a page of header, then slots of one inode each.
//!
//! | at | bytes | header |
//! |---|---|---|
//! | 0 | 8 | [`MAGIC`]; zeros: the notes are not complete, nobody may go on from them |
//! | 8 | 8 | session |
//! | 16 | 8 | sequences used lie below this |
//! | 24 | 2 | lives that ended |
//! | 28 | 4 | minor version of the kernel's interface; 0: not mounted |
//! | 32 | 8 | the kernel's capabilities |
//! | 40 | 4 | length of the mountpoint's path, which follows |
//!
//! A slot: inode (0: free), open handles (4 bytes), writers (4), flags (4), 4 unused. All little-endian. Each note is one
//! pwrite, which the kernel brings to its end however the daemon ends.

use godrive_client::ledger::{Inheritance, Ledger, Trace};
use godrive_proto::{Ino, SessionId};
use nix::sys::memfd::{MFdFlags, memfd_create};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

const MAGIC: [u8; 8] = *b"GDLEDG01";
const HEADER_BYTES: u64 = 4096;
const PATH_AT: u64 = 44;
const SLOT_BYTES: u64 = 24;
const UNSENT: u32 = 1;
const UNCOMMITTED: u32 = 2;
const LOST: u32 = 4;
const LOCKED: u32 = 8;

/// What the kernel agreed to when the mount was made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub minor: u32,
    pub capabilities: u64,
    pub path: PathBuf,
}

pub struct SharedLedger {
    file: File,
    slots: Mutex<Slots>,
}

#[derive(Default)]
struct Slots {
    taken: BTreeMap<Ino, u64>,
    free: Vec<u64>,
    len: u64,
    /// A note could not be taken.
    broken: bool,
}

impl SharedLedger {
    /// An empty one.
    pub fn create() -> io::Result<Self> {
        let file: File = memfd_create(c"godrive-ledger", MFdFlags::MFD_CLOEXEC)?.into();
        let mut header = vec![0; HEADER_BYTES as usize];
        header[..8].copy_from_slice(&MAGIC);
        file.write_all_at(&header, 0)?;
        Ok(Self { file, slots: Mutex::default() })
    }

    /// That of a predecessor or of this daemon's keeper, with what it says.
    pub fn open(descriptor: OwnedFd) -> io::Result<(Self, Option<(Mounted, Inheritance)>)> {
        let file = File::from(descriptor);
        let mut header = vec![0; HEADER_BYTES as usize];
        file.read_exact_at(&mut header, 0)?;
        let mut slots = Slots::default();
        let mut traces = Vec::new();
        let bytes = usize::try_from(file.metadata()?.len() - HEADER_BYTES).map_err(io::Error::other)?;
        let mut table = vec![0; bytes];
        file.read_exact_at(&mut table, HEADER_BYTES)?;
        for slot in table.chunks_exact(SLOT_BYTES as usize) {
            let (ino, trace) = decode(slot);
            if ino.0 == 0 {
                slots.free.push(slots.len);
            } else {
                slots.taken.insert(ino, slots.len);
                traces.push((ino, trace));
            }
            slots.len += 1;
        }
        let inherited = (header[..8] == MAGIC).then(|| mounted(&header)).flatten().map(|mounted| {
            let (session, from) = (SessionId(number(&header, 8)), number(&header, 16));
            let life = u16::from_le_bytes([header[24], header[25]]);
            (mounted, Inheritance { session, from, life, traces })
        });
        Ok((Self { file, slots: Mutex::new(slots) }, inherited))
    }

    pub fn descriptor(&self) -> io::Result<OwnedFd> {
        Ok(self.file.try_clone()?.into())
    }

    /// Another life of the daemon begins.
    pub fn begin_life(&self, life: u16) -> io::Result<()> {
        self.file.write_all_at(&life.to_le_bytes(), 24)
    }

    /// The mount exists: from now on another daemon could go on.
    pub fn mounted(&self, mounted: &Mounted) -> io::Result<()> {
        let path = mounted.path.as_os_str().as_bytes();
        if PATH_AT + path.len() as u64 > HEADER_BYTES {
            return Err(io::Error::other("the mountpoint's path is too long to be noted"));
        }
        self.file.write_all_at(path, PATH_AT)?;
        self.file.write_all_at(&(path.len() as u32).to_le_bytes(), 40)?;
        self.file.write_all_at(&mounted.capabilities.to_le_bytes(), 32)?;
        self.file.write_all_at(&mounted.minor.to_le_bytes(), 28)
    }

    /// Notes, or says for good that they are not complete.
    fn write(&self, bytes: &[u8], at: u64) {
        let Err(error) = self.file.write_all_at(bytes, at) else { return };
        if !std::mem::replace(&mut self.slots.lock().broken, true) {
            tracing::error!(%error, "the ledger cannot be written: a crash of this daemon will end the mount");
        }
        // Where even that fails there is no memory left to survive in.
        let _ = self.file.write_all_at(&[0; 8], 0);
    }
}

impl Ledger for SharedLedger {
    fn session(&self, session: SessionId) {
        self.write(&session.0.to_le_bytes(), 8);
    }

    fn sequences(&self, below: u64) {
        self.write(&below.to_le_bytes(), 16);
    }

    fn note(&self, ino: Ino, trace: Trace) {
        let mut slots = self.slots.lock();
        let (slot, bytes) = if trace == Trace::default() {
            let Some(slot) = slots.taken.remove(&ino) else { return };
            (slot, [0; SLOT_BYTES as usize])
        } else {
            let slot = match slots.taken.get(&ino) {
                Some(slot) => *slot,
                None => {
                    let end = slots.len;
                    let slot = slots.free.pop().unwrap_or(end);
                    slots.len = slots.len.max(slot + 1);
                    slots.taken.insert(ino, slot);
                    slot
                }
            };
            (slot, encode(ino, trace))
        };
        if trace == Trace::default() {
            slots.free.push(slot);
        }
        // Freed slots are given out again only under the lock, so notes of one slot stay in order.
        let failed = self.file.write_all_at(&bytes, HEADER_BYTES + slot * SLOT_BYTES).is_err();
        drop(slots);
        if failed {
            self.write(&bytes, HEADER_BYTES + slot * SLOT_BYTES);
        }
    }
}

fn encode(ino: Ino, trace: Trace) -> [u8; SLOT_BYTES as usize] {
    let mut slot = [0; SLOT_BYTES as usize];
    let flags = u32::from(trace.unsent) * UNSENT
        + u32::from(trace.uncommitted) * UNCOMMITTED
        + u32::from(trace.lost) * LOST
        + u32::from(trace.locked) * LOCKED;
    slot[..8].copy_from_slice(&ino.0.to_le_bytes());
    slot[8..12].copy_from_slice(&trace.open.to_le_bytes());
    slot[12..16].copy_from_slice(&trace.writers.to_le_bytes());
    slot[16..20].copy_from_slice(&flags.to_le_bytes());
    slot
}

fn decode(slot: &[u8]) -> (Ino, Trace) {
    let flags = small(slot, 16);
    let trace = Trace {
        open: small(slot, 8),
        writers: small(slot, 12),
        unsent: flags & UNSENT != 0,
        uncommitted: flags & UNCOMMITTED != 0,
        lost: flags & LOST != 0,
        locked: flags & LOCKED != 0,
    };
    (Ino(number(slot, 0)), trace)
}

fn mounted(header: &[u8]) -> Option<Mounted> {
    let (minor, len) = (small(header, 28), small(header, 40) as usize);
    let path = header.get(PATH_AT as usize..)?.get(..len)?;
    let path = PathBuf::from(OsString::from_vec(path.to_vec()));
    (minor != 0 && path != Path::new("")).then(|| Mounted { minor, capabilities: number(header, 32), path })
}

fn number(bytes: &[u8], at: usize) -> u64 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u64::from_le_bytes(*bytes))
}

fn small(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |bytes| u32::from_le_bytes(*bytes))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reopened(ledger: &SharedLedger) -> Option<(Mounted, Inheritance)> {
        SharedLedger::open(ledger.file.try_clone().unwrap().into()).unwrap().1
    }

    fn trace(open: u32) -> Trace {
        Trace {
            open,
            writers: 1,
            unsent: open == 2,
            uncommitted: open == 3,
            lost: open == 1,
            locked: open == 4,
        }
    }

    #[test]
    fn what_was_noted_is_read_and_slots_are_used_again() {
        let ledger = SharedLedger::create().unwrap();
        assert_eq!(reopened(&ledger), None, "nothing is mounted yet");
        let mounted = Mounted { minor: 45, capabilities: 1 << 40 | 7, path: "/mnt/ü".into() };
        ledger.mounted(&mounted).unwrap();
        ledger.session(SessionId(9));
        ledger.sequences(1024);
        for ino in 1..=3 {
            ledger.note(Ino(ino), trace(ino as u32));
        }
        ledger.note(Ino(2), Trace::default());
        ledger.note(Ino(77), trace(3));
        ledger.note(Ino(1), trace(2));
        ledger.begin_life(3).unwrap();
        let traces = vec![(Ino(1), trace(2)), (Ino(77), trace(3)), (Ino(3), trace(3))];
        let left = Inheritance { session: SessionId(9), from: 1024, life: 3, traces };
        assert_eq!(reopened(&ledger), Some((mounted, left)));
        assert_eq!(ledger.file.metadata().unwrap().len(), HEADER_BYTES + 3 * SLOT_BYTES);
        let (second, _) = SharedLedger::open(ledger.file.try_clone().unwrap().into()).unwrap();
        second.note(Ino(3), Trace::default());
        second.note(Ino(4), trace(1));
        assert_eq!(ledger.file.metadata().unwrap().len(), HEADER_BYTES + 3 * SLOT_BYTES);
        assert_eq!(reopened(&ledger).unwrap().1.traces[2], (Ino(4), trace(1)));
    }

    #[test]
    fn nobody_goes_on_from_notes_that_are_not_complete() {
        let ledger = SharedLedger::create().unwrap();
        ledger.mounted(&Mounted { minor: 45, capabilities: 7, path: "/mnt".into() }).unwrap();
        assert!(reopened(&ledger).is_some());
        ledger.file.write_all_at(&[0; 8], 0).unwrap();
        assert_eq!(reopened(&ledger), None);
    }

    #[test]
    fn a_slot_has_these_bytes() {
        let trace = Trace { open: 2, writers: 1, unsent: true, uncommitted: true, lost: true, locked: true };
        let bytes = [7, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 1, 0, 0, 0, 15, 0, 0, 0, 0, 0, 0, 0];
        assert_eq!(encode(Ino(7), trace), bytes);
        assert_eq!(decode(&bytes), (Ino(7), trace));
    }
}
