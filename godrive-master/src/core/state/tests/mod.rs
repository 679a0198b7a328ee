//! Tests of the state, and the bench they share with the namespace's: a state over a map that tests can look into.

mod chunks;
mod invariants;
mod model;
mod nodes;
mod random;
mod replay;
mod sessions;

use super::{Outcome, State};
use crate::core::kv::{Batch, Kv, MemoryKv, StoreError, Visit};
use crate::core::record::{Answer, Body, Mutation, Origin, Record, Reply, Taken};
use bytes::Bytes;
use godrive_proto::data::Member;
use godrive_proto::lease::{ClusterParameters, Mode};
use godrive_proto::meta::*;
use godrive_proto::time::Timestamp;
use godrive_proto::{ClusterId, Code, DiskId, Ino, NodeId, SessionId};
use parking_lot::Mutex;
use std::sync::Arc;

pub const CHUNK: u64 = 1 << 20;

/// A map that outlives the state over it.
#[derive(Clone, Default)]
pub struct SharedKv(pub Arc<Mutex<MemoryKv>>);

impl Kv for SharedKv {
    fn read(&self, key: &[u8]) -> Result<Option<Bytes>, StoreError> {
        self.0.lock().read(key)
    }

    fn scan(&self, from: &[u8], to: &[u8], visit: Visit<'_>) -> Result<(), StoreError> {
        self.0.lock().scan(from, to, visit)
    }

    fn write(&mut self, batch: Batch) -> Result<(), StoreError> {
        self.0.lock().write(batch)
    }
}

/// A bootstrapped state with one session, and every record that made it.
pub struct Bench {
    pub kv: SharedKv,
    pub state: State,
    pub records: Vec<Record>,
    pub session: SessionId,
    pub now: Timestamp,
    sequence: u64,
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn member(node: u128) -> Member {
    Member { node: NodeId(node), disk: DiskId(node + 100), address: ([10, 0, 0, node as u8], 7000).into() }
}

pub fn parameters() -> ClusterParameters {
    ClusterParameters { chunk_bytes: CHUNK as u32, replicas: 3, min_replicas: 2 }
}

impl Default for Bench {
    fn default() -> Self {
        Self::new()
    }
}

impl Bench {
    pub fn new() -> Self {
        let kv = SharedKv::default();
        let state = State::open(Box::new(kv.clone())).unwrap();
        let (session, now) = (SessionId(0), Timestamp(1_000));
        let mut bench = Self { kv, state, records: Vec::new(), session, now, sequence: 0 };
        let cluster = ClusterId(7);
        bench.own(Body::Bootstrap { cluster, parameters: parameters(), feature_level: 1 }).unwrap();
        bench.session = bench.open_session();
        bench
    }

    pub fn open_session(&mut self) -> SessionId {
        match self.own(Body::OpenSession { client: NodeId(1), label: "here".to_owned() }) {
            Ok(Reply::Session(session)) => session,
            other => panic!("{other:?}"),
        }
    }

    /// Applies at a time of its own, later than all before.
    pub fn apply(&mut self, origin: Origin, body: Body) -> Outcome {
        self.now.0 += 10;
        let record = Record { time: self.now, origin, body };
        self.apply_record(record)
    }

    pub fn apply_record(&mut self, record: Record) -> Outcome {
        let index = self.state.applied().next();
        let outcome = self.state.apply(index, &record).unwrap();
        self.records.push(record);
        outcome
    }

    pub fn own(&mut self, body: Body) -> Answer {
        self.apply(Origin::MASTER, body).answer
    }

    pub fn origin(&mut self) -> Origin {
        self.sequence += 1;
        let answered_below = self.sequence.saturating_sub(8);
        Origin { session: self.session, sequence: self.sequence, answered_below }
    }

    pub fn outcome(&mut self, body: Body) -> Outcome {
        let origin = self.origin();
        self.apply(origin, body)
    }

    pub fn ask(&mut self, body: Body) -> Answer {
        self.outcome(body).answer
    }

    /// Runs a mutation and checks that its rehearsal foretold the result.
    pub fn mutate(&mut self, mutation: Mutation) -> Result<Reply, Code> {
        let foretold = self.state.check(self.session, self.now, &mutation);
        let outcome = self.outcome(Body::Mutation(mutation));
        match (&foretold, &outcome.answer) {
            (Ok(foretold), Ok(_)) => assert_eq!(*foretold, outcome.effects),
            (Err(foretold), Err(fault)) => assert_eq!(foretold, fault),
            other => panic!("rehearsed and applied differ: {other:?}"),
        }
        outcome.answer.map_err(|fault| fault.code)
    }

    pub fn create(&mut self, parent: Ino, text: &str) -> Result<Ino, Code> {
        match self.mutate(create(parent, text, false))? {
            Reply::Created(created) => Ok(created.entry.attr.ino),
            other => panic!("{other:?}"),
        }
    }

    pub fn create_for_writing(&mut self, parent: Ino, text: &str) -> Created {
        match self.mutate(create(parent, text, true)).unwrap() {
            Reply::Created(created) => created,
            other => panic!("{other:?}"),
        }
    }

    pub fn make(&mut self, parent: Ino, text: &str, node: NewNode) -> Result<Ino, Code> {
        let (mode, uid, gid) = (NewMode::from(0o755), 10, 20);
        let request = MakeNodeRequest { parent, name: Name(text.into()), node, mode, uid, gid };
        match self.mutate(Mutation::MakeNode(request))? {
            Reply::Linked(linked) => Ok(linked.entry.attr.ino),
            other => panic!("{other:?}"),
        }
    }

    pub fn mkdir(&mut self, parent: Ino, text: &str) -> Result<Ino, Code> {
        self.make(parent, text, NewNode::Directory)
    }

    pub fn restore(&mut self, ino: Ino, parent: Ino, text: &str) -> Result<Linked, Code> {
        match self.mutate(Mutation::Restore(RestoreRequest { ino, parent, name: name(text) }))? {
            Reply::Linked(linked) => Ok(linked),
            other => panic!("{other:?}"),
        }
    }

    pub fn link(&mut self, ino: Ino, parent: Ino, text: &str) -> Result<Reply, Code> {
        self.mutate(Mutation::Link(LinkRequest { ino, parent, name: name(text) }))
    }

    pub fn remove(&mut self, parent: Ino, text: &str, directory: bool) -> Result<Unlinked, Code> {
        let request = UnlinkRequest { parent, name: name(text), directory };
        match self.mutate(Mutation::Unlink { request, open_elsewhere: Vec::new() })? {
            Reply::Unlinked(unlinked) => Ok(unlinked),
            other => panic!("{other:?}"),
        }
    }

    pub fn rename(&mut self, from: (Ino, &str), to: (Ino, &str), mode: RenameMode) -> Result<Renamed, Code> {
        let (name, new_name) = (name(from.1), name(to.1));
        let request = RenameRequest { parent: from.0, name, new_parent: to.0, new_name, mode };
        match self.mutate(Mutation::Rename { request, open_elsewhere: Vec::new() })? {
            Reply::Renamed(renamed) => Ok(renamed),
            other => panic!("{other:?}"),
        }
    }

    pub fn truncate(&mut self, ino: Ino, size: u64) -> Result<Truncated, Code> {
        match self.mutate(Mutation::Truncate(TruncateRequest { ino, size, kill_privileges: false }))? {
            Reply::Truncated(truncated) => Ok(truncated),
            other => panic!("{other:?}"),
        }
    }

    pub fn set_attr(&mut self, ino: Ino, changes: AttrChanges) -> Result<Attr, Code> {
        match self.mutate(Mutation::SetAttr(SetAttrRequest { ino, changes }))? {
            Reply::View(view) => Ok(view.attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn commit(&mut self, request: CommitRequest) -> Result<Attr, Code> {
        match self.mutate(Mutation::Commit(request))? {
            Reply::Committed(committed) => Ok(committed.view.attr),
            other => panic!("{other:?}"),
        }
    }

    pub fn attr(&self, ino: Ino) -> Attr {
        self.state.attr(ino).unwrap()
    }

    pub fn find(&self, parent: Ino, text: &str) -> Option<Attr> {
        self.state.lookup(parent, &name(text)).unwrap().1
    }

    pub fn names(&self, directory: Ino) -> Vec<String> {
        let read = self.state.read_directory(directory, 0, 1000).unwrap();
        read.entries.iter().map(|(_, entry)| String::from_utf8(entry.name.0.clone()).unwrap()).collect()
    }

    /// Every table agrees with every other.
    pub fn check(&self) {
        invariants::check(&self.state, &self.kv.0.lock());
    }
}

pub fn create(parent: Ino, text: &str, for_writing: bool) -> Mutation {
    let (mode, uid, gid, exclusive) = (NewMode::from(0o644), 10, 20, true);
    let request = CreateRequest { parent, name: Name(text.into()), mode, uid, gid, exclusive, for_writing };
    Mutation::Create { request, members: vec![member(1), member(2), member(3)] }
}

/// A step of a batch, dated as late as the record is.
pub fn taken(parent: Ino, text: &str, directory: bool, ino: Ino) -> Taken {
    taken_at(parent, text, directory, ino, Timestamp(i64::MAX))
}

pub fn taken_at(parent: Ino, text: &str, directory: bool, ino: Ino, at: Timestamp) -> Taken {
    let request = UnlinkRequest { parent, name: name(text), directory };
    Taken { step: Step::Unlink { request, ino, at }, open_elsewhere: Vec::new() }
}

/// A commit that says nothing.
pub fn nothing(ino: Ino) -> CommitRequest {
    let changes = AttrChanges::default();
    CommitRequest {
        ino,
        size: None,
        changes,
        chunks: Vec::new(),
        trimmed: false,
        sync: true,
        keeps: Mode::Exclusive,
    }
}
