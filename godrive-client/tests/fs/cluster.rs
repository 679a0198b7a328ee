//! A cluster in memory: one lock, no failures of its own, every message delayed by a random time, so that replies and
//! recalls overtake each other. What the file system may not do (an old version, a chunk that is not open, a wrong sum)
//! is refused, and the refusal is counted.

use crate::leases::Leases;
use crate::master::{Master, Node};
use bytes::Bytes;
use godrive_client::driver::{Config as DriverConfig, Copy, Delta, Run, Upcalls};
use godrive_client::fs::config::Config;
use godrive_client::fs::{Backend, Fs};
use godrive_proto::data::{Applied, Contents, Extent, Fill, Layout};
use godrive_proto::lease::{ClusterParameters, RecallRequest};
use godrive_proto::limits::LEAF_BYTES;
use godrive_proto::time::Timestamp;
use godrive_proto::{ChunkId, Code, Digest, Epoch, Fault, Operation, Version, sums};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::any::Any;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

pub const CHUNK: u32 = 64 << 10;

pub struct Chunk {
    pub bytes: Vec<u8>,
    pub held: Contents,
    pub stable: Contents,
    pub stable_bytes: Vec<u8>,
    /// What the master was told.
    pub committed: Contents,
    pub open_by: Option<u64>,
}

impl Chunk {
    fn make_stable(&mut self) {
        self.stable = self.held;
        self.stable_bytes.clone_from(&self.bytes);
    }
}

#[derive(Default)]
pub struct World {
    pub master: Master,
    pub leases: Leases,
    pub chunks: BTreeMap<ChunkId, Chunk>,
    pub free_chunks: Option<u64>,
    /// Requests that a correct client never sends.
    pub violations: Vec<String>,
    /// While true, deltas fail.
    pub slaves_down: bool,
    /// Deltas to this chunk fail.
    pub failing: Option<ChunkId>,
    /// While true, deltas are on their way, and so are requests of these operations.
    pub deltas_wait: bool,
    pub waits: BTreeSet<u16>,
    /// How often all slaves were restarted at once.
    pub restarts: u64,
    /// Messages take no time.
    pub at_once: bool,
    /// How often a client said that it gave writes up.
    pub given_up: u64,
    /// Chunks.
    pub largest_commit: usize,
    /// A commit that gave the lease back was not answered, and may come again.
    pub commits_again: bool,
    /// Copies that slaves were asked for.
    pub copies: u64,
}

pub struct Cluster {
    pub world: Mutex<World>,
    clients: Mutex<BTreeMap<u64, Arc<dyn Upcalls>>>,
    random: Mutex<SmallRng>,
    started: tokio::time::Instant,
}

impl Cluster {
    pub fn new(seed: u64) -> Arc<Self> {
        println!("seed {seed}");
        Arc::new(Self {
            world: Mutex::new(World::default()),
            clients: Mutex::default(),
            random: Mutex::new(SmallRng::seed_from_u64(seed)),
            started: tokio::time::Instant::now(),
        })
    }

    pub fn mount(self: &Arc<Self>, id: u64) -> Arc<Fs<Client>> {
        let driver = DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model");
        self.mount_with(id, Config::new(driver))
    }

    pub fn mount_with(self: &Arc<Self>, id: u64, config: Config) -> Arc<Fs<Client>> {
        let fs = Fs::over(Arc::new(Client { cluster: self.clone(), id }), config);
        self.clients.lock().insert(id, fs.clone());
        fs
    }

    pub fn upcalls(&self, id: u64) -> Arc<dyn Upcalls> {
        self.clients.lock()[&id].clone()
    }

    async fn travel(&self) {
        if self.world.lock().at_once {
            return;
        }
        let wait = self.random.lock().random_range(20..2000);
        tokio::time::sleep(Duration::from_micros(wait)).await;
    }

    /// Executes a request when no other client's lease is in the way; recalls those that are.
    async fn execute(self: &Arc<Self>, client: u64, code: u16, request: &(dyn Any + Send + Sync)) -> Answer {
        self.travel().await;
        self.wait_while(|world| world.waits.contains(&code)).await;
        let answer = loop {
            let recalls = {
                let mut world = self.world.lock();
                let needs = world.master.needs(code, request);
                let recalls = world.leases.conflicts(client, &needs, self.now());
                if recalls.is_empty() {
                    let now = Timestamp(self.now().as_nanos() as i64 + 1_000_000_000_000);
                    break crate::master::execute(&mut world, client, code, request, now);
                }
                recalls
            };
            let waits = recalls.into_iter().map(|(holder, recall)| self.recall(holder, recall));
            let waits: Vec<_> = waits.map(tokio::spawn).collect();
            for wait in waits {
                wait.await.unwrap();
            }
        };
        self.travel().await;
        answer
    }

    async fn wait_while(&self, held: impl Fn(&World) -> bool) {
        while held(&self.world.lock()) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    pub fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// One recall, as the master sends it; the same may be under way already.
    fn recall(
        self: &Arc<Self>,
        holder: u64,
        recall: RecallRequest,
    ) -> impl Future<Output = ()> + Send + 'static {
        let cluster = self.clone();
        async move {
            // A lease is not taken back at once: sharing must not thrash.
            tokio::time::sleep(Duration::from_millis(5)).await;
            cluster.travel().await;
            let release = cluster.upcalls(holder).recall(recall).await;
            cluster.travel().await;
            let mut world = cluster.world.lock();
            if world.leases.released(holder, recall.id, release.keeps, release.ino) {
                world.close_chunks(holder, release.ino);
            }
            if release.open {
                world.master.open_elsewhere(release.ino, holder);
            }
        }
    }
}

impl World {
    pub fn close_chunks(&mut self, client: u64, ino: godrive_proto::Ino) {
        let Some(node) = self.master.nodes.get(&ino) else { return };
        for id in node.chunks.values() {
            let chunk = self.chunks.get_mut(id).unwrap();
            if chunk.open_by == Some(client) {
                chunk.open_by = None;
            }
        }
    }

    /// As for a dead writer: the members say what they hold, and what lies behind the end is cut off before the file grows.
    pub fn give_up_chunks(&mut self, client: u64, ino: godrive_proto::Ino) {
        self.given_up += 1;
        let Some(node) = self.master.nodes.get_mut(&ino) else { return };
        let mut open = false;
        for id in node.chunks.values() {
            let chunk = self.chunks.get_mut(id).unwrap();
            if chunk.open_by == Some(client) {
                (chunk.open_by, chunk.committed, open) = (None, chunk.held, true);
            }
        }
        node.attr.trim_pending |= open;
    }

    pub fn epoch(&self) -> Epoch {
        Epoch(self.restarts << 32 | 1)
    }

    /// All slaves are killed, and are back with what they held.
    pub fn restart(&mut self) {
        self.restarts += 1;
    }

    /// All slaves lose what is not stable, and are back.
    pub fn lose_power(&mut self) {
        self.restart();
        for node in self.master.nodes.values_mut() {
            for (index, id) in &node.chunks {
                let chunk = self.chunks.get_mut(id).unwrap();
                let is_older = chunk.stable != chunk.held;
                chunk.held = chunk.stable;
                chunk.bytes.clone_from(&chunk.stable_bytes);
                if chunk.committed.version > chunk.held.version {
                    chunk.committed = chunk.held;
                }
                let end = (u64::from(*index) + 1) * u64::from(CHUNK);
                // What was cut off may be there again.
                node.attr.trim_pending |= is_older && node.attr.size < end;
            }
        }
    }

    /// What a driver learns with a layout of an older epoch.
    fn renew(&self, layout: &mut Layout) -> Result<(), Fault> {
        let Some(chunk) = self.chunks.get(&layout.chunk.id).filter(|_| layout.epoch < self.epoch()) else {
            return Ok(());
        };
        let is_older = chunk.held.version < layout.held.version;
        (layout.epoch, layout.held, layout.stable) = (self.epoch(), chunk.held, chunk.stable);
        if is_older { Err(Fault::new(Code::WrongVersion, "what was held is gone")) } else { Ok(()) }
    }

    pub fn layout(&self, node: &Node, index: u32) -> Option<Layout> {
        let id = *node.chunks.get(&index)?;
        let chunk = &self.chunks[&id];
        Some(Layout {
            index,
            chunk: godrive_proto::data::ChunkRef {
                id,
                layout: godrive_proto::data::LayoutTag::Replicated,
                chunk_bytes: CHUNK,
                birth: 0,
            },
            epoch: self.epoch(),
            members: Vec::new(),
            held: chunk.committed,
            stable: if chunk.stable == chunk.held { chunk.committed } else { chunk.stable },
        })
    }

    pub fn violation(&mut self, what: String) -> Fault {
        println!("VIOLATION: {what}");
        self.violations.push(what.clone());
        Fault::new(Code::Malformed, what)
    }
}

pub type Answer = Result<Box<dyn Any + Send>, Fault>;

pub struct Client {
    pub cluster: Arc<Cluster>,
    pub id: u64,
}

impl Client {
    async fn ask<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        let answer = self.cluster.execute(self.id, O::CODE, request).await?;
        Ok(*answer.downcast::<O::Reply>().expect("the reply of this operation"))
    }
}

impl Backend for Client {
    async fn query<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.ask::<O>(request).await
    }

    async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.ask::<O>(request).await
    }

    async fn admitted(&self) -> Result<(), Fault> {
        Ok(())
    }

    fn parameters(&self) -> ClusterParameters {
        ClusterParameters { chunk_bytes: CHUNK, replicas: 1, min_replicas: 1 }
    }

    fn lease_remaining(&self) -> Option<Duration> {
        Some(Duration::from_secs(6))
    }

    fn wall(&self) -> Timestamp {
        Timestamp(self.cluster.now().as_nanos() as i64 + 1_000_000_000_000)
    }

    async fn write(&self, layout: &mut Layout, delta: Delta) -> Result<Applied, Fault> {
        self.cluster.travel().await;
        self.cluster.wait_while(|world| world.deltas_wait).await;
        let result = self.apply(layout, &delta);
        self.cluster.travel().await;
        result
    }

    async fn copy(&self, layout: &mut Layout, copy: Copy) -> Result<Applied, Fault> {
        self.cluster.travel().await;
        let delta = self.fetch(layout, &copy)?;
        let result = self.apply(layout, &delta);
        self.cluster.travel().await;
        result
    }

    async fn sync(&self, layout: &mut Layout) -> Result<Applied, Fault> {
        self.cluster.travel().await;
        let mut world = self.cluster.world.lock();
        world.renew(layout)?;
        let Some(chunk) = world.chunks.get_mut(&layout.chunk.id) else { return Err(Code::NoChunk.into()) };
        if chunk.held != layout.held {
            return Err(
                world.violation(format!("client {} syncs an old version of {}", self.id, layout.chunk.id))
            );
        }
        chunk.make_stable();
        layout.stable = layout.held;
        Ok(Applied { contents: layout.held, stable: true, used_bytes: CHUNK })
    }

    async fn read(&self, layout: &mut Layout, first_leaf: u32, leaves: u32) -> Result<Vec<Run>, Fault> {
        self.cluster.travel().await;
        let answer = {
            let world = self.cluster.world.lock();
            // What is there instead is read.
            let _ = world.renew(layout);
            let chunk = world.chunks.get(&layout.chunk.id).filter(|chunk| chunk.held == layout.held);
            chunk.map(|chunk| {
                let leaf = |leaf: u32| {
                    let bytes =
                        &chunk.bytes[(leaf * LEAF_BYTES) as usize..((leaf + 1) * LEAF_BYTES) as usize];
                    let bytes = bytes.iter().any(|byte| *byte != 0).then(|| Bytes::copy_from_slice(bytes));
                    Run { first: leaf, leaves: 1, bytes }
                };
                (first_leaf..first_leaf + leaves).map(leaf).collect()
            })
        };
        self.cluster.travel().await;
        match answer {
            Some(answer) => Ok(answer),
            None => {
                // The driver would ask for the layout until the deadline; only who lost the lease meanwhile gets here.
                tokio::time::sleep(Duration::from_secs(30)).await;
                let mut world = self.cluster.world.lock();
                Err(world
                    .violation(format!("client {} reads an old version of {}", self.id, layout.chunk.id)))
            }
        }
    }

    fn meet(&self, _: &[Layout]) {}

    async fn stop(&self) {}
}

impl Client {
    /// The bytes to copy, as they are at this moment; now and then they cannot be had.
    fn fetch(&self, layout: &Layout, copy: &Copy) -> Result<Delta, Fault> {
        let mut world = self.cluster.world.lock();
        world.copies += 1;
        let source = world.chunks.get(&copy.source.chunk);
        let Some(source) = source.filter(|chunk| chunk.held == copy.source.contents) else {
            return Err(Code::NoSource.into());
        };
        if world.copies.is_multiple_of(5) {
            return Err(Code::NoSource.into());
        }
        let from = copy.source.offset as usize..(copy.source.offset + copy.len) as usize;
        let bytes = Bytes::copy_from_slice(&source.bytes[from]);
        let pieces = sums::pieces(copy.offset, copy.len);
        let sums = pieces.map(|(leaf, from, to)| sums::piece(layout.chunk.id, leaf, &bytes[from..to]));
        Ok(Delta {
            extents: vec![Extent { offset: copy.offset, len: copy.len, fill: Fill::Bytes }],
            sums: sums.collect(),
            payload: vec![bytes],
            mtime: copy.mtime,
            sync: false,
        })
    }

    fn apply(&self, layout: &mut Layout, delta: &Delta) -> Result<Applied, Fault> {
        let mut world = self.cluster.world.lock();
        let id = layout.chunk.id;
        if world.slaves_down || world.failing == Some(id) {
            return Err(Fault::new(Code::Unavailable, "the slaves are down"));
        }
        world.renew(layout)?;
        let Some(chunk) = world.chunks.get_mut(&id) else { return Err(Code::NoChunk.into()) };
        if chunk.open_by != Some(self.id) || chunk.held != layout.held {
            let (open_by, held) = (chunk.open_by, chunk.held);
            let what = format!(
                "client {} writes {id}: open by {open_by:?}, {held:?}, not {:?}",
                self.id, layout.held
            );
            return Err(world.violation(what));
        }
        let payload = delta.payload.concat();
        let (mut at, mut sum) = (0, 0);
        for extent in &delta.extents {
            let range = extent.offset as usize..(extent.offset + extent.len) as usize;
            if extent.fill == Fill::Hole {
                chunk.bytes[range].fill(0);
                continue;
            }
            let bytes = &payload[at..at + extent.len as usize];
            for (leaf, from, to) in sums::pieces(extent.offset, extent.len) {
                assert_eq!(delta.sums[sum], sums::piece(id, leaf, &bytes[from..to]));
                sum += 1;
            }
            chunk.bytes[range].copy_from_slice(bytes);
            at += bytes.len();
        }
        assert_eq!((at, sum), (payload.len(), delta.sums.len()));
        let digest = Digest(xxhash_rust::xxh3::xxh3_128(&chunk.bytes));
        chunk.held = Contents { version: Version(chunk.held.version.0 + 1), digest };
        if delta.sync {
            chunk.make_stable();
        }
        layout.held = chunk.held;
        Ok(Applied { contents: chunk.held, stable: delta.sync, used_bytes: CHUNK })
    }
}
