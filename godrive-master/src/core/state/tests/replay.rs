//! Random records of every kind, most of them refused: the tables agree after each, and applying the records again,
//! from the beginning or from any point between, gives the same bytes.

use super::*;
use crate::core::record::Placed;
use godrive_proto::data::{ChunkState, Contents};
use godrive_proto::{ChunkId, Digest, Epoch, LogIndex, ROOT, Term, Version};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};

struct Chaos {
    bench: Bench,
    rng: SmallRng,
    sessions: Vec<SessionId>,
}

impl Chaos {
    fn new(seed: u64) -> Self {
        let mut bench = Bench::new();
        let mut sessions = vec![bench.session];
        sessions.extend((0..2).map(|_| bench.open_session()));
        Self { bench, rng: SmallRng::seed_from_u64(seed), sessions }
    }

    fn ino(&mut self) -> Ino {
        Ino(self.rng.random_range(1..12))
    }

    fn name(&mut self) -> Name {
        name(["a", "b", "c"][self.rng.random_range(0..3)])
    }

    fn session(&mut self) -> SessionId {
        self.sessions[self.rng.random_range(0..self.sessions.len())]
    }

    fn chunk_id(&mut self) -> ChunkId {
        let last = self.bench.state.meta.last_chunk.0;
        ChunkId(self.rng.random_range(0..=last))
    }

    fn contents(&mut self) -> Contents {
        let version = self.rng.random_range(0..4);
        Contents { version: Version(version), digest: Digest(version.into()) }
    }

    fn epoch(&mut self, id: ChunkId) -> Epoch {
        let chunk = self.bench.state.chunk(id).unwrap();
        let pending = chunk.map_or(1, |chunk| chunk.pending.unwrap_or(chunk.epoch).0);
        Epoch((pending + self.rng.random_range(0..3u64)).saturating_sub(1))
    }

    fn members(&mut self) -> Vec<Member> {
        let first = self.rng.random_range(1..5);
        (first..first + self.rng.random_range(0..4)).map(member).collect()
    }

    fn commit(&mut self) -> Mutation {
        let ino = self.ino();
        let mut chunks = Vec::new();
        for layout in self
            .bench
            .state
            .layout(ino, godrive_proto::lease::LayoutRange { first: 0, count: 4 })
            .unwrap_or_default()
        {
            let held = self.contents();
            let (stable, used_bytes) = (self.rng.random(), self.rng.random_range(0..9000));
            chunks.push(ChunkState {
                index: layout.index,
                chunk: layout.chunk.id,
                epoch: layout.epoch,
                held,
                stable,
                used_bytes,
            });
        }
        let size = self.rng.random::<bool>().then(|| self.rng.random_range(0..4 * CHUNK));
        let keeps = if self.rng.random() { Mode::Shared } else { Mode::Exclusive };
        let trimmed = self.rng.random();
        Mutation::Commit(CommitRequest { size, chunks, keeps, trimmed, ..nothing(ino) })
    }

    fn taken(&mut self) -> Taken {
        let (parent, text, directory) = (self.ino(), self.name(), self.rng.random());
        let found = self.bench.state.lookup(parent, &text).ok().and_then(|(_, entry)| entry);
        let ino = found.map_or_else(|| self.ino(), |entry| entry.ino);
        let at = Timestamp(self.rng.random_range(0..2 * self.bench.now.0));
        let step = Step::Unlink { request: UnlinkRequest { parent, name: text, directory }, ino, at };
        Taken { step, open_elsewhere: vec![self.session()] }
    }

    fn mutation(&mut self) -> Mutation {
        let (parent, ino, text) = (self.ino(), self.ino(), self.name());
        let (mode, uid, gid) = (NewMode::new(self.rng.random(), self.rng.random()), 1, 2);
        match self.rng.random_range(0..10) {
            0 | 1 => {
                let (exclusive, for_writing) = (self.rng.random(), self.rng.random());
                let request = CreateRequest { parent, name: text, mode, uid, gid, exclusive, for_writing };
                Mutation::Create { request, members: self.members() }
            }
            2 => {
                let node = NewNode::Directory;
                Mutation::MakeNode(MakeNodeRequest { parent, name: text, node, mode, uid, gid })
            }
            3 => Mutation::Link(LinkRequest { ino, parent, name: text }),
            4 => {
                let request = UnlinkRequest { parent, name: text, directory: self.rng.random() };
                Mutation::Unlink { request, open_elsewhere: vec![self.session()] }
            }
            5 => {
                let (new_parent, new_name) = (self.ino(), self.name());
                let request =
                    RenameRequest { parent, name: text, new_parent, new_name, mode: RenameMode::Replace };
                Mutation::Rename { request, open_elsewhere: vec![self.session()] }
            }
            6 => {
                let size = self.rng.random_range(0..4 * CHUNK);
                Mutation::Truncate(TruncateRequest { ino, size, kill_privileges: self.rng.random() })
            }
            7 => Mutation::Batch((0..self.rng.random_range(1..3)).map(|_| self.taken()).collect()),
            _ => self.commit(),
        }
    }

    fn body(&mut self) -> Body {
        let chunk = self.chunk_id();
        match self.rng.random_range(0..30) {
            0 => Body::SessionRevoked { session: self.session() },
            1 => Body::OpenSession { client: NodeId(3), label: "x".to_owned() },
            2 => Body::ChunksClosed { session: self.session(), ino: self.ino() },
            3 => Body::OrphanKept { ino: self.ino(), sessions: vec![self.session()] },
            4 | 5 => Body::OrphansClosed { session: self.session(), inodes: (1..12).map(Ino).collect() },
            6..=8 => Body::EpochPending { chunk, epoch: self.epoch(chunk) },
            9..=11 => {
                let (epoch, members, contents) = (self.epoch(chunk), self.members(), self.contents());
                let (stable, used_bytes) = (self.rng.random(), self.rng.random_range(0..9000));
                Body::EpochInstalled { chunk, epoch, members, contents, stable, used_bytes }
            }
            12 => Body::ChunksStable { chunks: vec![(chunk, self.epoch(chunk), self.contents())] },
            13 => Body::ChunkQuarantined { chunk },
            14 => Body::ChunksForgotten { chunks: vec![chunk] },
            15 => Body::TermStarted { term: Term(self.rng.random_range(0..50)) },
            16..=19 => {
                let indexes: Vec<u32> = (0..self.rng.random_range(1..4)).collect();
                let placed = indexes.iter().map(|index| Placed { index: *index, members: self.members() });
                let placed = placed.collect();
                Body::OpenChunks { ino: self.ino(), indexes, placed }
            }
            _ => Body::Mutation(self.mutation()),
        }
    }

    fn step(&mut self) {
        let body = self.body();
        let origin = match self.rng.random_range(0..10) {
            0 => Origin::MASTER,
            _ => {
                Origin { session: self.session(), sequence: self.rng.random_range(1..40), answered_below: 1 }
            }
        };
        let before = self.bench.kv.0.lock().map.len();
        let outcome = self.bench.apply(origin, body);
        if let Ok(Reply::Session(session)) = outcome.answer {
            self.sessions.push(session);
        } else if outcome.answer.is_err() {
            assert_eq!(outcome.effects, Default::default());
            assert!(self.bench.kv.0.lock().map.len() <= before + 1, "only the answer is kept");
        }
    }
}

fn replay(from: MemoryKv, records: &[Record]) -> MemoryKv {
    let kv = SharedKv(Arc::new(Mutex::new(from)));
    let mut state = State::open(Box::new(kv.clone())).unwrap();
    let applied = state.applied().0 as usize;
    for (record, index) in records[applied..].iter().zip(applied as u64 + 1..) {
        state.apply(LogIndex(index), record).unwrap();
    }
    drop(state);
    Arc::into_inner(kv.0).unwrap().into_inner()
}

#[test]
fn tables_agree_after_any_record_and_replay_gives_the_same_bytes() {
    let mut succeeded = 0;
    for seed in 0..60 {
        println!("seed {seed}");
        let mut chaos = Chaos::new(seed);
        let halfway = chaos.rng.random_range(0..250);
        let mut checkpoint = MemoryKv::default();
        for step in 0..250 {
            chaos.step();
            chaos.bench.check();
            if step == halfway {
                checkpoint = chaos.bench.kv.0.lock().clone();
            }
        }
        let end = chaos.bench.kv.0.lock().clone();
        succeeded += chaos.bench.state.attr(ROOT).unwrap().change;
        assert!(replay(MemoryKv::default(), &chaos.bench.records) == end, "seed {seed}: from the beginning");
        assert!(replay(checkpoint, &chaos.bench.records) == end, "seed {seed}: from step {halfway}");
        // What was written down and read again is the same record.
        for record in &chaos.bench.records {
            assert_eq!(Record::decode(&record.encode().unwrap()).as_ref(), Ok(record));
        }
    }
    assert!(succeeded > 60, "the records did nothing");
}
