//! What all of the daemon's tasks share: the disks, the peers, and what is known of the master.

use super::World;
use super::peers::Peers;
use crate::Config;
use crate::core::findings::{Finding, Findings};
use crate::store::table::Row;
use crate::store::{DiskStore, NewDisk, Options, Secret};
use godrive_proto::cluster::{DiskHealth, DiskState, ReplicaState, ScrubState};
use godrive_proto::frame::{Class, ReplyHeader, RequestHeader};
use godrive_proto::lease::{Problem, Report, ReportRequest};
use godrive_proto::net::{Connection, Endpoint};
use godrive_proto::time::Clock;
use godrive_proto::{BootId, ChunkId, ClusterId, Code, DiskId, Epoch, Fault, LogIndex, NodeId, Term};
use parking_lot::{Mutex, RwLock};
use rand::rngs::{SmallRng, StdRng};
use rand::{Rng, SeedableRng};
use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{Notify, Semaphore};

/// Copies that run at one time; each may hold a whole chunk in memory.
const COPIES: usize = 4;
/// Ranges that are copied at the same time: each holds as much memory as three deltas.
const RANGES: usize = 16;
const REPORT_DEADLINE: Duration = Duration::from_secs(30);

pub struct Shared {
    pub config: Config,
    pub cluster: ClusterId,
    pub node: NodeId,
    pub boot: BootId,
    pub advertise: std::net::SocketAddr,
    pub clock: Arc<dyn Clock>,
    pub peers: Peers,
    pub copies: Semaphore,
    /// Ranges that are being fetched for a delta.
    pub ranges: Semaphore,
    /// Chunks that are being copied here, and below which epoch they were deleted meanwhile.
    pub copying: Mutex<BTreeMap<ChunkId, Epoch>>,
    /// Begun: each lists anew what is here.
    pub registrations: AtomicU64,
    /// Held while a copy is written: no registration begins meanwhile.
    pub adopting: RwLock<()>,
    /// Rings when a checkpoint is due.
    pub checkpoint_due: Notify,
    pub errors: AtomicU64,
    pub scrubbed_leaves: AtomicU64,
    /// How far the scrub is, by disk.
    pub scrub: Mutex<BTreeMap<DiskId, ScrubState>>,
    rng: Mutex<SmallRng>,
    stores: Vec<Arc<DiskStore>>,
    /// Disks that could not be opened, as far as it is known which they are, and why each could not.
    dead: Vec<DiskState>,
    unopened: Vec<String>,
    master: Mutex<Option<Connection>>,
    term: AtomicU64,
    seen: AtomicU64,
    findings: Mutex<Findings>,
}

impl Shared {
    pub fn open(config: Config, world: &World, endpoint: &Endpoint) -> anyhow::Result<Arc<Self>> {
        anyhow::ensure!(!world.disks.is_empty(), "a slave needs at least one disk");
        let mut rng = SmallRng::seed_from_u64(world.seed);
        // What the other one gives is known to others, and can be calculated back.
        let mut secrets = world
            .transport_seed
            .map_or_else(StdRng::from_os_rng, |seed| StdRng::from_seed(seed.map(|byte| !byte)));
        let options = Options {
            reserve_bytes: config.reserve_bytes,
            index_bytes: usize::try_from(config.index_bytes)?,
            ..Options::new(world.identity.cluster)
        };
        let (mut stores, mut dead, mut reasons) = (Vec::new(), Vec::new(), Vec::new());
        for (at, disk) in world.disks.iter().enumerate() {
            let name =
                config.disks.get(at).map_or_else(|| format!("disk {at}"), |path| path.display().to_string());
            let fresh = NewDisk { id: DiskId(rng.random()), secret: Secret(secrets.random()) };
            let opened = godrive_disk::blocking(disk.is_instant(), || {
                DiskStore::open(disk.clone(), options, fresh, world.clock.wall())
            });
            match opened {
                Ok(store) => stores.push(Arc::new(store)),
                Err(error) => {
                    tracing::error!(disk = name, %error, "the disk cannot be used; the others go on");
                    reasons.push(format!("{name}: {error}"));
                    // The master should know which of its disks is gone.
                    if let Some(disk) = crate::store::disk_id(&**disk, options) {
                        let health = DiskHealth::Failed;
                        dead.push(DiskState { disk, total_bytes: 0, free_bytes: 0, chunks: 0, health });
                    }
                }
            }
        }
        anyhow::ensure!(!stores.is_empty(), "no disk can be used: {}", reasons.join("; "));
        let ids: BTreeSet<DiskId> = stores.iter().map(|store| store.id()).collect();
        anyhow::ensure!(
            ids.len() == stores.len(),
            "two directories hold the same disk: one is a copy of the other"
        );
        let (term, seen) = stores.iter().map(|store| store.remembered()).max().unwrap_or_default();
        let address = config.advertise.unwrap_or_else(|| {
            let mut address = config.listen;
            address.set_port(endpoint.local_address().port());
            address
        });
        Ok(Arc::new(Self {
            config,
            cluster: world.identity.cluster,
            node: world.identity.node,
            // The time makes it new at each start also where the seed is not.
            boot: BootId(rng.random::<u64>() ^ world.clock.wall().0 as u64),
            advertise: address,
            clock: world.clock.clone(),
            peers: Peers::new(endpoint.clone()),
            copies: Semaphore::new(COPIES),
            ranges: Semaphore::new(RANGES),
            copying: Mutex::default(),
            registrations: AtomicU64::new(0),
            adopting: RwLock::new(()),
            checkpoint_due: Notify::new(),
            errors: AtomicU64::new(reasons.len() as u64),
            scrubbed_leaves: AtomicU64::new(0),
            scrub: Mutex::default(),
            rng: Mutex::new(rng),
            stores,
            dead,
            unopened: reasons,
            master: Mutex::new(None),
            term: AtomicU64::new(term.0),
            seen: AtomicU64::new(seen.0),
            findings: Mutex::default(),
        }))
    }

    /// The disks are simulated: nothing blocks.
    pub fn is_instant(&self) -> bool {
        self.stores.iter().all(|store| store.is_instant())
    }

    pub fn stores(&self) -> &[Arc<DiskStore>] {
        &self.stores
    }

    pub fn ring_if_due(&self, store: &DiskStore) {
        if store.checkpoint_is_due() {
            self.checkpoint_due.notify_waiters();
        }
    }

    pub fn usable(&self) -> impl Iterator<Item = &Arc<DiskStore>> {
        self.stores.iter().filter(|store| store.failure().is_none())
    }

    pub fn disk_states(&self) -> Vec<DiskState> {
        self.stores.iter().map(|store| store.state()).chain(self.dead.iter().copied()).collect()
    }

    /// A random number below `below`, for jitter.
    pub fn jitter(&self, below: u64) -> u64 {
        self.rng.lock().random_range(0..below.max(1))
    }

    /// The disk that has the chunk, if one has it. A disk that was out of service comes back with a restart and with
    /// replicas that were made anew on another one meanwhile: the one of the highest epoch counts.
    pub fn find(&self, chunk: ChunkId) -> Result<Option<(&Arc<DiskStore>, Row)>, Fault> {
        Ok(self.rows(chunk)?.into_iter().next())
    }

    /// The disks that have the chunk; the one that counts comes first.
    pub fn rows(&self, chunk: ChunkId) -> Result<Vec<(&Arc<DiskStore>, Row)>, Fault> {
        let mut rows = Vec::new();
        for store in self.usable() {
            rows.extend(store.row(chunk)?.map(|row| (store, row)));
        }
        rows.sort_by_key(|(_, row)| Reverse(row.rank()));
        Ok(rows)
    }

    /// As [`Self::find`], and the chunk's replicas on other disks are put aside.
    pub fn keep_one(&self, chunk: ChunkId) -> Result<Option<(&Arc<DiskStore>, Row)>, Fault> {
        let mut rows = self.rows(chunk)?.into_iter();
        let best = rows.next();
        for (store, row) in rows {
            let why = "another disk has a newer one";
            if let Err(fault) = store.quarantine(chunk, &row, why, self.clock.wall()) {
                self.count_error();
                tracing::error!(%chunk, disk = %store.id(), %fault, "an old replica could not be put aside; the next inventory tries again");
            }
        }
        Ok(best)
    }

    /// The disk that has the chunk. With one working disk nothing is looked up: the store says whether it is there.
    pub fn with_chunk(&self, chunk: ChunkId) -> Result<&Arc<DiskStore>, Fault> {
        if let [only] = self.stores.as_slice() {
            only.check_usable()?;
            return Ok(only);
        }
        if let Some((store, _)) = self.find(chunk)? {
            return Ok(store);
        }
        Err(self.out_of_service().unwrap_or_else(|| crate::core::replica::no_chunk(chunk)))
    }

    /// Why some disk of this slave cannot be asked, if there is one.
    pub fn out_of_service(&self) -> Option<Fault> {
        let unopened = self.unopened.first().map(|why| Fault::new(Code::Disk, why.clone()));
        self.stores.iter().find_map(|store| store.check_usable().err()).or(unopened)
    }

    /// Where a new replica goes: the disk that was asked for; if it names none, the one with the most room.
    pub fn place(&self, disk: DiskId) -> Result<&Arc<DiskStore>, Fault> {
        let store = match disk {
            DiskId(0) => self.usable().max_by_key(|store| store.state().free_bytes),
            id => self.stores.iter().find(|store| store.id() == id),
        };
        let store =
            store.ok_or_else(|| Fault::new(Code::Disk, format!("disk {disk} is not on this slave")))?;
        store.check_usable()?;
        Ok(store)
    }

    /// Where the replica is, or is to be made.
    pub fn find_or_place(&self, chunk: ChunkId, disk: DiskId) -> Result<&Arc<DiskStore>, Fault> {
        match self.find(chunk)? {
            Some((store, _)) => Ok(store),
            None => self.place(disk),
        }
    }

    pub fn replica_state(&self, store: &DiskStore, chunk: ChunkId, row: &Row) -> ReplicaState {
        ReplicaState {
            chunk,
            disk: store.id(),
            epoch: row.epoch,
            sealed: row.sealed,
            contents: row.contents(),
            stable: store.is_stable(row.position),
            boot: self.boot,
            last_op: row.last_op,
            used_bytes: row.used_bytes,
        }
    }

    pub fn request_header(&self, class: Class) -> RequestHeader {
        RequestHeader {
            feature_level: godrive_proto::version::FEATURE_LEVEL,
            term: Term(self.term.load(Ordering::Relaxed)),
            seen: LogIndex(self.seen.load(Ordering::Relaxed)),
            class,
            ..RequestHeader::default()
        }
    }

    /// Remembers what a reply of the master says of its term and log.
    pub fn heard(&self, header: &ReplyHeader) {
        self.term.fetch_max(header.term.0, Ordering::Relaxed);
        self.seen.fetch_max(header.index.0, Ordering::Relaxed);
        let (term, seen) = (header.term, header.index);
        self.stores.iter().for_each(|store| store.remember(term, seen));
    }

    /// Refuses commands of a master that is not the one any more.
    pub fn check_term(&self, term: Term) -> Result<(), Fault> {
        let highest = self.term.fetch_max(term.0, Ordering::Relaxed).max(term.0);
        if term.0 < highest {
            let detail = format!("a command of term {term}; this slave has seen term {highest}");
            return Err(Fault::new(Code::WrongTerm, detail));
        }
        self.stores.iter().for_each(|store| store.remember(term, LogIndex(0)));
        Ok(())
    }

    pub fn set_master(&self, connection: Option<Connection>) {
        *self.master.lock() = connection;
    }

    pub fn count_error(&self) {
        self.errors.fetch_add(1, Ordering::Relaxed);
    }

    /// The replica was made anew: what is found bad from now on is news.
    pub fn healed(&self, chunk: ChunkId) {
        self.findings.lock().forget(chunk);
    }

    /// Tells the master that the own replica is bad, once in a while.
    pub fn report_corrupt(self: &Arc<Self>, chunk: ChunkId, epoch: Epoch, detail: String) {
        if self.findings.lock().found(chunk, self.clock.now()) {
            self.tell(chunk, Finding { epoch, detail });
        }
    }

    /// Tells a master that answers what could not be told before.
    pub fn tell_waiting(self: &Arc<Self>) {
        let waiting = self.findings.lock().take_waiting();
        waiting.into_iter().for_each(|(chunk, finding)| self.tell(chunk, finding));
    }

    fn tell(self: &Arc<Self>, chunk: ChunkId, finding: Finding) {
        let shared = self.clone();
        tokio::spawn(async move {
            let Err(fault) = shared.report(chunk, &finding).await else { return };
            let unheard =
                matches!(fault.code, Code::Unreachable | Code::Timeout | Code::NotReady | Code::WrongTerm);
            let mut findings = shared.findings.lock();
            if unheard && findings.keep(chunk, finding) {
                tracing::warn!(%chunk, %fault, "the bad replica could not be reported; it is when the master is back");
            } else {
                findings.forget(chunk);
                tracing::warn!(%chunk, %fault, "the bad replica could not be reported; the next scrub tries again");
            }
        });
    }

    async fn report(&self, chunk: ChunkId, finding: &Finding) -> Result<(), Fault> {
        let master = self.master.lock().clone();
        let master = master.ok_or_else(|| Fault::new(Code::Unreachable, "not connected to the master"))?;
        let Finding { epoch, detail } = finding.clone();
        let request = ReportRequest { chunk, epoch, problem: Problem::Corrupt(self.node), detail };
        let header = self.request_header(Class::Scrub);
        let reply = master.call::<Report>(header, &request, &[], REPORT_DEADLINE).await?;
        self.heard(&reply.header);
        Ok(())
    }
}
