//! What changes a replica: each operation checks under the replica's lock, appends one record, and only then
//! changes the index. If the record could not be appended, nothing happened.

use super::DiskStore;
use super::index::Shared;
use super::log::Place;
use super::table::Row;
use crate::core::delta::{self, Change};
use crate::core::leaves::{GroupSet, LeafMap, LeafSum};
use crate::core::record::{BLOCK, Kind, Record};
use crate::core::replica::{Admission, Key, Life, Replica, no_chunk};
use bytes::Bytes;
use godrive_disk::Disk;
use godrive_proto::data::{Contents, DeltaRequest};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Digest, Epoch, Fault, Version, sums};
use parking_lot::RwLock;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A replica after a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Done {
    pub contents: Contents,
    pub used_bytes: u32,
    /// Stable when the log is.
    pub position: u64,
}

impl Done {
    fn of(replica: &Replica) -> Self {
        Self { contents: replica.contents(), used_bytes: replica.used_bytes(), position: replica.position }
    }
}

/// What a copy makes of a replica.
pub struct Adoption {
    pub chunk: ChunkId,
    pub chunk_bytes: u32,
    pub version: Version,
    /// The leaves belong to no one version.
    pub partial: bool,
    pub keep_aside: bool,
    /// The room that is kept in reserve may be taken.
    pub into_reserve: bool,
    /// The replica must still be as it was when the difference was made; 0 if there was none.
    pub based_on: u64,
    /// What differs, ascending; with `keep_aside` everything.
    pub leaves: Vec<LeafSum>,
    /// Bytes of those that are not holes.
    pub data: Vec<Bytes>,
    /// What the whole must come out as, unless partial.
    pub digest: Digest,
    pub epoch: Epoch,
    pub now: Timestamp,
}

/// New leaves of a delta: sums, and the bytes of those that had to be put together.
struct Prepared {
    leaves: Vec<LeafSum>,
    /// For every leaf that is not a hole: from the payload at this offset, or the next of `merged`.
    sources: Vec<Option<usize>>,
    merged: Vec<Vec<u8>>,
}

impl DiskStore {
    /// What a delta would meet now; nothing is changed.
    ///
    /// A replica that has been through a restart takes no delta in its old epoch: a power loss may have taken its last
    /// versions, and those of the other members elsewhere. Only an election brings them level; deltas on top
    /// of what each has would make different contents of one version.
    pub fn admit(&self, request: &DeltaRequest) -> Result<Admission, Fault> {
        if let Some(replica) = self.find(Key::live(request.chunk))? {
            let replica = replica.read();
            if replica.life == Life::Live {
                let admission = replica.admit(request)?;
                if admission == Admission::Apply && replica.position <= self.opened_at {
                    let detail = format!(
                        "chunk {} was not elected since this slave started: a new epoch is needed",
                        request.chunk
                    );
                    return Err(Fault::new(Code::WrongVersion, detail));
                }
                return Ok(admission);
            }
        }
        self.check_creation(request)?;
        Ok(Admission::Apply)
    }

    fn check_creation(&self, request: &DeltaRequest) -> Result<(), Fault> {
        if request.base != Version(0) {
            return Err(no_chunk(request.chunk));
        }
        let floor = self.floor(request.chunk)?;
        if request.epoch < floor {
            let detail = format!("chunk {} was sealed or deleted here below epoch {floor}", request.chunk);
            return Err(Fault::new(Code::WrongEpoch, detail));
        }
        Ok(())
    }

    /// Applies a delta that passed [`delta::check`] and whose payload passed [`delta::verify`].
    pub fn delta(&self, request: &DeltaRequest, payload: &[u8]) -> Result<Done, Fault> {
        let key = Key::live(request.chunk);
        let changes = delta::changes(request);
        let vacant;
        let found = self.find(key)?;
        let (prepared, based_on) = {
            let guard = found.as_ref().map(|replica| replica.read());
            match guard.as_deref().filter(|replica| replica.life == Life::Live) {
                Some(replica) => {
                    if replica.admit(request)? == Admission::Already {
                        return Ok(Done::of(replica));
                    }
                    (self.prepare(replica, &changes, payload)?, replica.position)
                }
                None => {
                    self.check_creation(request)?;
                    vacant = Replica::vacant(key, request.chunk_bytes);
                    (self.prepare(&vacant, &changes, payload)?, 0)
                }
            }
        };
        let mut merged = prepared.merged.iter();
        let mut data: Vec<&[u8]> = Vec::with_capacity(prepared.sources.len());
        for source in &prepared.sources {
            match source {
                Some(at) => data.push(&payload[*at..*at + BLOCK]),
                None => data.extend(merged.next().map(Vec::as_slice)),
            }
        }
        let _gate = self.changing();
        self.change_or_create(key, request.chunk_bytes, |replica| {
            if replica.life == Life::Vacant {
                self.check_creation(request)?;
            } else if replica.admit(request)? == Admission::Already {
                return Ok(Done::of(replica));
            }
            if replica.position != based_on {
                let detail = format!("chunk {} was changed by something else meanwhile", request.chunk);
                return Err(Fault::new(Code::WrongVersion, detail));
            }
            let mut record = self.record(Kind::Delta, replica);
            (record.epoch, record.version, record.op) = (request.epoch, request.base.next(), request.op);
            record.time = request.mtime;
            record.digest = replica.leaves.digest_after(&prepared.leaves);
            record.leaves.clone_from(&prepared.leaves);
            self.check_room(&record)?;
            self.append(replica, record, &data)?;
            Ok(Done::of(replica))
        })
    }

    fn prepare(
        &self,
        replica: &Replica,
        changes: &[(u32, Change)],
        payload: &[u8],
    ) -> Result<Prepared, Fault> {
        let chunk = replica.key.chunk;
        let mut prepared = Prepared { leaves: Vec::new(), sources: Vec::new(), merged: Vec::new() };
        for (leaf, change) in changes {
            let old = replica.leaves.leaf(*leaf);
            let sum = match change {
                // Nothing to do: a hole stays one.
                _ if change.only_zeros() && old.is_none() => continue,
                Change::Hole => sums::HOLE,
                Change::Whole { at, sum } => {
                    prepared.sources.push(Some(*at));
                    *sum
                }
                Change::Merge(parts) => {
                    let mut bytes = match old.filter(|_| change.needs_old()) {
                        Some((sum, location)) => self.read_leaf(chunk, *leaf, sum, location)?,
                        None => vec![0; BLOCK],
                    };
                    delta::merge(&mut bytes, parts, payload);
                    let sum = sums::piece(chunk, *leaf, &bytes);
                    prepared.sources.push(None);
                    prepared.merged.push(bytes);
                    sum
                }
            };
            prepared.leaves.push(LeafSum { leaf: *leaf, sum });
        }
        Ok(prepared)
    }

    /// Refuses epochs below `epoch` from now on, also for a chunk that is not here (which answers `NoChunk`).
    pub fn seal(&self, chunk: ChunkId, epoch: Epoch, now: Timestamp) -> Result<Row, Fault> {
        if self.row(chunk)?.is_none() {
            self.bar(chunk, epoch, now)?;
        }
        let Some(shared) = self.find(Key::live(chunk))? else { return Err(no_chunk(chunk)) };
        let _gate = self.changing();
        let mut replica = shared.write();
        replica.check_live()?;
        if replica.sealed < epoch && replica.epoch < epoch {
            let mut record = self.record(Kind::Seal, &replica);
            record.sealed = epoch;
            record.time = now;
            self.append(&mut replica, record, &[])?;
        }
        Ok(Row::of(&replica))
    }

    /// Makes the replica a member of a new epoch with exactly these contents.
    pub fn install(
        &self,
        chunk: ChunkId,
        chunk_bytes: u32,
        epoch: Epoch,
        contents: Contents,
        now: Timestamp,
    ) -> Result<Done, Fault> {
        delta::check_chunk_bytes(chunk_bytes)?;
        let empty = Contents { version: Version(0), digest: sums::empty_digest(chunk, chunk_bytes) };
        self.check_usable()?;
        let _gate = self.changing();
        self.change_or_create(Key::live(chunk), chunk_bytes, |replica| {
            if replica.life == Life::Vacant {
                if contents != empty {
                    return Err(no_chunk(chunk));
                }
                let floor = self.floor(chunk)?;
                if epoch < floor {
                    return Err(Fault::new(
                        Code::WrongEpoch,
                        format!("chunk {chunk} is over below epoch {floor}"),
                    ));
                }
            } else if replica.admit_install(epoch, contents)? == Admission::Already {
                return Ok(Done::of(replica));
            }
            let mut record = self.record(Kind::Install, replica);
            (record.epoch, record.sealed, record.time) = (epoch, epoch, now);
            self.append(replica, record, &[])?;
            Ok(Done::of(replica))
        })
    }

    /// Makes the replica what a copy has fetched; one record, so all or nothing.
    pub fn adopt(&self, adoption: &Adoption) -> Result<Done, Fault> {
        let chunk = adoption.chunk;
        self.check_usable()?;
        let _gate = self.changing();
        self.change_or_create(Key::live(chunk), adoption.chunk_bytes, |replica| {
            if replica.position != adoption.based_on {
                return Err(Fault::new(Code::Busy, format!("chunk {chunk} changed while it was copied")));
            }
            if replica.sealed > adoption.epoch || replica.leaves.chunk_bytes() != adoption.chunk_bytes {
                let detail =
                    format!("chunk {chunk} is sealed for epoch {}: the copy is too late", replica.sealed);
                return Err(Fault::new(Code::WrongEpoch, detail));
            }
            if replica.epoch.0 > 0 && replica.epoch >= adoption.epoch && !replica.is_sealed() {
                let detail = format!(
                    "chunk {chunk} is a member of epoch {} here: nothing copies over it",
                    replica.epoch
                );
                return Err(Fault::new(Code::WrongEpoch, detail));
            }
            let mut record = self.record(Kind::Copy, replica);
            (record.partial, record.version, record.time) =
                (adoption.partial, adoption.version, adoption.now);
            record.op = Default::default();
            record.keep_aside = adoption.keep_aside && replica.life == Life::Live;
            record.digest = if record.keep_aside {
                LeafMap::new(chunk, adoption.chunk_bytes).digest_after(&adoption.leaves)
            } else {
                replica.leaves.digest_after(&adoption.leaves)
            };
            if !adoption.partial && record.digest != adoption.digest {
                let detail = format!(
                    "the copy of chunk {chunk} comes out as {}, not {}",
                    record.digest, adoption.digest
                );
                return Err(Fault::new(Code::Corrupt, detail));
            }
            record.leaves.clone_from(&adoption.leaves);
            if !adoption.into_reserve {
                self.check_room(&record)?;
            }
            let data: Vec<&[u8]> = adoption.data.iter().map(|bytes| &bytes[..]).collect();
            self.append(replica, record, &data)?;
            Ok(Done::of(replica))
        })
    }

    /// Runs a change on the replica, or on a vacant one that is dropped again unless it becomes live.
    fn change_or_create<T>(
        &self,
        key: Key,
        chunk_bytes: u32,
        change: impl FnOnce(&mut Replica) -> Result<T, Fault>,
    ) -> Result<T, Fault> {
        let shared: Shared =
            self.with_table(|table| self.index.lock().find_or_vacant(table, key, chunk_bytes))?;
        let mut replica = shared.write();
        if replica.life == Life::Gone {
            return Err(no_chunk(key.chunk));
        }
        let result = change(&mut replica);
        if replica.life == Life::Vacant {
            // Others may have it in hand already: they find it gone.
            replica.life = Life::Gone;
            self.index.lock().discard(key);
        }
        result
    }

    pub(super) fn record(&self, kind: Kind, replica: &Replica) -> Record {
        Record {
            kind,
            partial: replica.partial,
            keep_aside: false,
            sequence: 0,
            synced: 0,
            segment: 0,
            block: 0,
            chunk: replica.key.chunk,
            chunk_bytes: replica.leaves.chunk_bytes(),
            epoch: replica.epoch,
            sealed: replica.sealed,
            version: replica.version,
            op: replica.last_op,
            digest: replica.leaves.digest(),
            time: Timestamp(0),
            leaves: Vec::new(),
            deletions: Vec::new(),
        }
    }

    pub(super) fn append(
        &self,
        replica: &mut Replica,
        mut record: Record,
        data: &[&[u8]],
    ) -> Result<(), Fault> {
        let place = self.log.append(&mut record, data).map_err(|error| self.io("append", &error))?;
        self.settle(replica, &record, place);
        Ok(())
    }

    /// Carries out a record of one replica that is in the log. Called by changes and by the replay.
    pub(super) fn settle(&self, replica: &mut Replica, record: &Record, place: Place) {
        let blocks = u64::from(record.header_blocks() + record.data_blocks());
        self.grown.fetch_add(blocks * BLOCK as u64, Ordering::Relaxed);
        let born = replica.life == Life::Vacant;
        let mut everything = false;
        if record.kind == Kind::Aside || record.keep_aside {
            let emptied = LeafMap::new(replica.key.chunk, replica.leaves.chunk_bytes());
            let mut aside = replica.clone();
            aside.key.aside = place.sequence;
            aside.since = record.time;
            aside.position = place.sequence;
            replica.leaves = emptied;
            everything = true;
            let mut index = self.index.lock();
            let key = aside.key;
            index.put(key, Arc::new(RwLock::new(aside)));
            index.mark(key, GroupSet::ALL, place.sequence);
            index.count += 1;
        }
        if record.kind == Kind::Aside {
            replica.life = Life::Gone;
            let mut index = self.index.lock();
            index.account(record, place, &[]);
            index.remove(replica.key);
            return;
        }
        let changed = replica.apply(record, place.data);
        let mut index = self.index.lock();
        index.account(record, place, &changed.superseded);
        index.mark(replica.key, if everything { GroupSet::ALL } else { changed.groups }, place.sequence);
        index.count += u64::from(born);
    }

    /// New data leaves the reserve alone.
    fn check_room(&self, record: &Record) -> Result<(), Fault> {
        let space = self.disk.space().map_err(|error| self.io("free space", &error))?;
        let wanted = u64::from(record.header_blocks() + record.data_blocks()) * BLOCK as u64;
        let reserve = self.options.reserve(space.total_bytes);
        let needed = reserve.saturating_add(wanted);
        let full = record.data_blocks() > 0 && space.free_bytes < needed;
        self.full_up_to.store(if full { needed } else { 0 }, Ordering::Relaxed);
        if full {
            let free = space.free_bytes;
            let detail = format!("disk {} has {free} bytes free and keeps {reserve} in reserve", self.id);
            return Err(Fault::new(Code::NoSpace, detail));
        }
        Ok(())
    }
}
