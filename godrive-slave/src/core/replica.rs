//! One replica and the rules of who may change it.
//!
//! ```text
//!   nothing --delta on version 0, install of version 0--> member of epoch e
//!   nothing --copy--> copy (epoch 0) --install--> member of epoch e
//!   member of e --delta of e--> member of e, one version on
//!   member of e --seal(e+1)--> sealed: refuses e --install(e+1)--> member of e+1
//! ```
//!
//! A copy of a source that would not hold still is `partial`: its leaves verify, its whole is no version. It only
//! serves as the base of the next copy.

use super::leaves::{Changed, LeafMap, Location};
use super::record::{Kind, Record};
use godrive_proto::data::{Contents, DeltaRequest};
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Epoch, Fault, OpId, Version};

/// What a name in the store is: the replica of a chunk, or contents kept aside (and not served).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    pub chunk: ChunkId,
    /// 0 for the replica; else the sequence of the record that put it aside.
    pub aside: u64,
}

impl Key {
    pub fn live(chunk: ChunkId) -> Self {
        Self { chunk, aside: 0 }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Life {
    /// Being made: no record of it was written yet.
    Vacant,
    Live,
    /// Deleted or put aside; whoever still holds it must look again.
    Gone,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Replica {
    pub key: Key,
    pub life: Life,
    /// 0: a copy that is not a member yet.
    pub epoch: Epoch,
    /// Refuses epochs below this.
    pub sealed: Epoch,
    pub version: Version,
    pub last_op: OpId,
    pub partial: bool,
    /// When it was put aside; of a partial copy, when it last changed.
    pub since: Timestamp,
    /// Sequence of the last record that changed it: stable when the log is synced so far.
    pub position: u64,
    pub leaves: LeafMap,
}

/// What to do with a delta.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Admission {
    Apply,
    /// It is the last one applied.
    Already,
}

impl Replica {
    pub fn vacant(key: Key, chunk_bytes: u32) -> Self {
        Self {
            key,
            life: Life::Vacant,
            epoch: Epoch(0),
            sealed: Epoch(0),
            version: Version(0),
            last_op: OpId::default(),
            partial: false,
            since: Timestamp(0),
            position: 0,
            leaves: LeafMap::new(key.chunk, chunk_bytes),
        }
    }

    pub fn contents(&self) -> Contents {
        Contents { version: self.version, digest: self.leaves.digest() }
    }

    pub fn used_bytes(&self) -> u32 {
        self.leaves.used_leaves() * godrive_proto::limits::LEAF_BYTES
    }

    pub fn is_sealed(&self) -> bool {
        self.sealed > self.epoch
    }

    /// Live, or a fault that names why not.
    pub fn check_live(&self) -> Result<(), Fault> {
        match self.life {
            Life::Live => Ok(()),
            Life::Vacant | Life::Gone => Err(no_chunk(self.key.chunk)),
        }
    }

    /// Whether the replica serves this epoch.
    pub fn check_epoch(&self, epoch: Epoch) -> Result<(), Fault> {
        self.check_live()?;
        if self.partial || self.epoch == Epoch(0) {
            let detail = format!("chunk {} is an unfinished copy here", self.key.chunk);
            return Err(Fault::new(Code::WrongEpoch, detail));
        }
        if self.epoch != epoch || self.is_sealed() {
            let Self { epoch: own, sealed, key: Key { chunk, .. }, .. } = self;
            let detail = format!("chunk {chunk} is at epoch {own} here (sealed for {sealed}), not {epoch}");
            return Err(Fault::new(Code::WrongEpoch, detail));
        }
        Ok(())
    }

    pub fn check_version(&self, version: Version) -> Result<(), Fault> {
        if self.version == version {
            return Ok(());
        }
        let detail = format!("chunk {} has version {} here, not {version}", self.key.chunk, self.version);
        Err(Fault::new(Code::WrongVersion, detail))
    }

    pub fn admit(&self, delta: &DeltaRequest) -> Result<Admission, Fault> {
        self.check_epoch(delta.epoch)?;
        if self.leaves.chunk_bytes() != delta.chunk_bytes {
            let detail = format!("chunk {} has {} bytes here", self.key.chunk, self.leaves.chunk_bytes());
            return Err(Fault::new(Code::Malformed, detail));
        }
        if self.version == delta.base.next() && self.last_op == delta.op {
            return Ok(Admission::Already);
        }
        self.check_version(delta.base)?;
        Ok(Admission::Apply)
    }

    /// Whether it may become a member of `epoch` with exactly these contents.
    pub fn admit_install(&self, epoch: Epoch, contents: Contents) -> Result<Admission, Fault> {
        self.check_live()?;
        if epoch < self.sealed || epoch < self.epoch {
            let Self { epoch: own, sealed, key, .. } = self;
            let detail =
                format!("chunk {} is at epoch {own} here, sealed for {sealed}: {epoch} is over", key.chunk);
            return Err(Fault::new(Code::WrongEpoch, detail));
        }
        if self.partial || self.contents() != contents {
            let detail = format!("chunk {} has {:?} here, not {contents:?}", self.key.chunk, self.contents());
            return Err(Fault::new(Code::WrongVersion, detail));
        }
        Ok(if self.epoch == epoch && !self.is_sealed() { Admission::Already } else { Admission::Apply })
    }

    /// Applies a record of a kind that changes one replica in place; `data` is where its leaves begin.
    pub fn apply(&mut self, record: &Record, data: Location) -> Changed {
        self.life = Life::Live;
        self.epoch = record.epoch;
        self.sealed = record.sealed;
        self.version = record.version;
        self.last_op = record.op;
        self.partial = record.partial;
        self.since = if record.partial { record.time } else { Timestamp(0) };
        self.position = record.sequence;
        match record.kind {
            Kind::Delta | Kind::Copy => self.leaves.apply(&record.leaves, data),
            Kind::Seal | Kind::Install | Kind::Delete | Kind::Aside => Changed::default(),
        }
    }
}

pub fn no_chunk(chunk: ChunkId) -> Fault {
    Fault::new(Code::NoChunk, format!("chunk {chunk} is not on this slave"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::{DiskId, SessionId, sums};

    const BYTES: u32 = 1 << 20;

    fn member(epoch: u64, sealed: u64, version: u64) -> Replica {
        let mut replica = Replica::vacant(Key::live(ChunkId(1)), BYTES);
        replica.life = Life::Live;
        (replica.epoch, replica.sealed, replica.version) = (Epoch(epoch), Epoch(sealed), Version(version));
        replica.last_op = OpId { session: SessionId(1), sequence: version };
        replica
    }

    fn delta(epoch: u64, base: u64, op: u64) -> DeltaRequest {
        DeltaRequest {
            chunk: ChunkId(1),
            chunk_bytes: BYTES,
            disk: DiskId(1),
            epoch: Epoch(epoch),
            base: Version(base),
            op: OpId { session: SessionId(1), sequence: op },
            extents: Vec::new(),
            sums: Vec::new(),
            chain: Vec::new(),
            sync: false,
            mtime: Timestamp(0),
        }
    }

    #[test]
    fn a_delta_needs_epoch_base_and_no_seal() {
        let code = |replica: &Replica, delta: &DeltaRequest| replica.admit(delta).map_err(|fault| fault.code);
        let replica = member(3, 3, 5);
        assert_eq!(code(&replica, &delta(3, 5, 9)), Ok(Admission::Apply));
        assert_eq!(code(&replica, &delta(3, 4, 5)), Ok(Admission::Already));
        assert_eq!(code(&replica, &delta(3, 4, 9)), Err(Code::WrongVersion));
        assert_eq!(code(&replica, &delta(3, 6, 9)), Err(Code::WrongVersion));
        assert_eq!(code(&replica, &delta(2, 5, 9)), Err(Code::WrongEpoch));
        assert_eq!(code(&replica, &delta(4, 5, 9)), Err(Code::WrongEpoch));
        assert_eq!(code(&member(3, 4, 5), &delta(3, 5, 9)), Err(Code::WrongEpoch));
        assert_eq!(
            code(&member(3, 4, 5), &delta(3, 4, 5)),
            Err(Code::WrongEpoch),
            "a seal refuses retries too"
        );
        assert_eq!(code(&member(0, 0, 5), &delta(0, 5, 9)), Err(Code::WrongEpoch), "a copy is no member");
        assert_eq!(
            code(&Replica { partial: true, ..member(3, 3, 5) }, &delta(3, 5, 9)),
            Err(Code::WrongEpoch)
        );
        assert_eq!(
            code(&Replica { life: Life::Gone, ..member(3, 3, 5) }, &delta(3, 5, 9)),
            Err(Code::NoChunk)
        );
    }

    #[test]
    fn an_install_needs_the_exact_contents_and_a_current_epoch() {
        let contents =
            |version| Contents { version: Version(version), digest: sums::empty_digest(ChunkId(1), BYTES) };
        let code = |replica: &Replica, epoch, version| {
            replica.admit_install(Epoch(epoch), contents(version)).map_err(|fault| fault.code)
        };
        assert_eq!(code(&member(3, 4, 5), 4, 5), Ok(Admission::Apply));
        assert_eq!(code(&member(4, 4, 5), 4, 5), Ok(Admission::Already));
        assert_eq!(code(&member(0, 0, 5), 4, 5), Ok(Admission::Apply));
        assert_eq!(code(&member(3, 5, 5), 4, 5), Err(Code::WrongEpoch));
        assert_eq!(code(&member(5, 0, 5), 4, 5), Err(Code::WrongEpoch));
        assert_eq!(code(&member(3, 4, 5), 4, 6), Err(Code::WrongVersion));
        assert_eq!(code(&Replica { partial: true, ..member(3, 4, 5) }, 4, 5), Err(Code::WrongVersion));
    }
}
