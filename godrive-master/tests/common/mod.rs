//! A master in this process over loopback QUIC, with hand-written clients and slaves.
#![allow(dead_code, clippy::unwrap_used)]
#![allow(clippy::disallowed_methods, reason = "tests on the real machine take its time")]

pub mod chunks;
pub mod gate;
pub mod slave;

use gate::{Gate, GatedDisk};
use godrive_disk::{Disk, SimulatedDisk};
use godrive_master::{Config, Master, World, config, may_begin};
use godrive_proto::admin::{DamagedChunk, GetStatus, ListDamaged, ListDamagedRequest, Status};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::lease::*;
use godrive_proto::meta::*;
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine::{self, MachineClock, MachineSockets};
use godrive_proto::net::{Connection, Endpoint, Expect, Options, Reply};
use godrive_proto::*;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

pub const DEADLINE: Duration = Duration::from_secs(10);
const LOOPBACK: ([u8; 4], u16) = ([127, 0, 0, 1], 0);

pub fn now_s() -> i64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs() as i64
}

/// Quick times, so that tests need not wait long.
pub fn quick(replicas: u8) -> Config {
    Config {
        listen: SocketAddr::from(LOOPBACK),
        replicas,
        chunk_bytes: 1 << 20,
        leases: config::Leases {
            renew_every_ms: 100,
            holder_stops_after_ms: 500,
            revoked_after_ms: 700,
            ..config::Leases::default()
        },
        nodes: config::Nodes {
            heartbeat_every_ms: 50,
            suspect_after_ms: 400,
            dead_after_ms: 900,
            seal_deadline_ms: 300,
            ..config::Nodes::default()
        },
        ..Config::default()
    }
}

pub struct Cluster {
    pub authority: Arc<Authority>,
    pub id: ClusterId,
    pub stores: slave::Stores,
    pub config: Config,
    identity: Identity,
    directory: tempfile::TempDir,
    master: Option<Master>,
    pub address: SocketAddr,
    /// Closed, no sync of the master ends.
    pub gate: Arc<Gate>,
    /// In place of the directory.
    pub simulated: Option<SimulatedDisk>,
    begun: bool,
    next_node: AtomicU64,
}

impl Drop for Cluster {
    /// A test that fails with the gate closed ends all the same.
    fn drop(&mut self) {
        self.gate.set_closed(false);
    }
}

impl Cluster {
    pub async fn start(config: Config) -> Self {
        let mut cluster = Self::new(config);
        cluster.boot().await.unwrap();
        cluster
    }

    /// Its master is not started yet.
    pub fn new(config: Config) -> Self {
        // The machine's time and process id make clusters differ; nothing here depends on which.
        let id = ClusterId(u128::from(std::process::id()) << 64 | now_s() as u128);
        let authority = Arc::new(Authority::create(id, now_s()).unwrap());
        let identity = authority.issue(Role::Master, NodeId(1), now_s()).unwrap();
        Self {
            authority,
            id,
            config,
            identity,
            directory: tempfile::tempdir().unwrap(),
            master: None,
            address: SocketAddr::from(LOOPBACK),
            gate: Arc::default(),
            simulated: None,
            begun: false,
            next_node: AtomicU64::new(100),
            stores: slave::Stores::default(),
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    pub async fn boot(&mut self) -> anyhow::Result<()> {
        if !std::mem::replace(&mut self.begun, true) {
            may_begin(&*self.world().disk)?;
        }
        let until = tokio::time::Instant::now() + DEADLINE;
        let master = loop {
            match Master::start(self.config.clone(), self.world()).await {
                // The last master's socket goes with the last of its connections' tasks.
                Err(error)
                    if format!("{error:#}").contains("in use") && tokio::time::Instant::now() < until =>
                {
                    tokio::time::sleep(Duration::from_millis(10)).await;
                }
                result => break result?,
            }
        };
        self.address = master.address();
        // The same port after a restart, as a configuration would have it.
        self.config.listen = self.address;
        self.master = Some(master);
        Ok(())
    }

    fn world(&self) -> World {
        let disk: Arc<dyn Disk> = match &self.simulated {
            Some(disk) => Arc::new(disk.clone()),
            None => Arc::new(GatedDisk::open(self.directory.path(), self.gate.clone())),
        };
        World {
            disk,
            sockets: Arc::new(MachineSockets),
            clock: Arc::new(MachineClock),
            seed: 7,
            identity: self.identity.clone(),
            authority: Some(self.authority.clone()),
            transport_seed: None,
        }
    }

    pub async fn stop(&mut self) {
        self.try_stop().await.unwrap();
    }

    pub async fn try_stop(&mut self) -> anyhow::Result<()> {
        self.master.take().unwrap().stop().await
    }

    pub async fn restart(&mut self) {
        self.stop().await;
        self.boot().await.unwrap();
    }

    pub fn issue(&self, role: Role) -> Identity {
        let node = NodeId(self.next_node.fetch_add(1, Ordering::SeqCst).into());
        self.authority.issue(role, node, now_s()).unwrap()
    }

    pub async fn connect(&self, identity: &Identity) -> (Endpoint, Connection) {
        let endpoint =
            Endpoint::new(&machine::sockets(), LOOPBACK.into(), identity, &Options::default()).unwrap();
        let connection =
            endpoint.connect(self.address, Expect { role: Role::Master, node: None }).await.unwrap();
        (endpoint, connection)
    }

    pub async fn client(&self, label: &str) -> Client {
        let mut client = self.client_without_session().await;
        client.open(label).await;
        client.keep_renewing();
        client
    }

    pub async fn client_without_session(&self) -> Client {
        let identity = self.issue(Role::Client);
        let (endpoint, connection) = self.connect(&identity).await;
        Client::new(identity, endpoint, connection)
    }

    pub async fn admin(&self) -> Client {
        let identity = self.issue(Role::Admin);
        let (endpoint, connection) = self.connect(&identity).await;
        Client::new(identity, endpoint, connection)
    }

    pub async fn status(&self) -> Status {
        self.admin().await.call::<GetStatus>(&()).await.unwrap()
    }

    pub async fn damaged(&self) -> Vec<DamagedChunk> {
        let request = ListDamagedRequest { after: ChunkId(0), limit: 100 };
        let page = self.admin().await.call::<ListDamaged>(&request).await.unwrap();
        assert_eq!(page.next, None);
        page.chunks
    }
}

/// How a client answers a recall.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Gives back what it must.
    Obey { open: bool },
    /// Never answers.
    Silent,
}

/// A client that keeps nothing: it asks, and answers recalls as it is told.
pub struct Client {
    pub identity: Identity,
    _endpoint: Endpoint,
    pub connection: Connection,
    pub session: SessionId,
    pub term: Mutex<Term>,
    pub seen: Mutex<LogIndex>,
    sequence: AtomicU64,
    recalls: Arc<Mutex<Vec<RecallRequest>>>,
    answer: Arc<Mutex<Answer>>,
    /// What it says of a file that it owns.
    pub owned: Arc<Mutex<Option<Attr>>>,
    renewing: Option<AbortHandle>,
}

impl Client {
    fn new(identity: Identity, endpoint: Endpoint, connection: Connection) -> Self {
        let client = Self {
            identity,
            _endpoint: endpoint,
            connection,
            session: SessionId(0),
            term: Mutex::new(Term(0)),
            seen: Mutex::new(LogIndex(0)),
            sequence: AtomicU64::new(0),
            recalls: Arc::default(),
            answer: Arc::new(Mutex::new(Answer::Obey { open: false })),
            owned: Arc::default(),
            renewing: None,
        };
        client.serve();
        client
    }

    fn serve(&self) {
        let (connection, recalls, answer, owned) =
            (self.connection.clone(), self.recalls.clone(), self.answer.clone(), self.owned.clone());
        tokio::spawn(async move {
            let mut unanswered = Vec::new();
            while let Some(incoming) = connection.accept().await {
                if incoming.header.code == Ask::CODE {
                    let ino = incoming.decode::<Ask>().unwrap();
                    let known = owned.lock().unwrap().clone().filter(|attr| attr.ino == ino);
                    let _ = incoming.reply::<Ask>(ReplyHeader::default(), &known, &[]).await;
                    continue;
                }
                let recall = incoming.decode::<Recall>().unwrap();
                recalls.lock().unwrap().push(recall);
                let policy = *answer.lock().unwrap();
                match policy {
                    Answer::Obey { open } => {
                        let release =
                            Release { ino: recall.ino, id: recall.id, keeps: recall.may_keep, open };
                        let _ = incoming.reply::<Recall>(ReplyHeader::default(), &release, &[]).await;
                    }
                    Answer::Silent => unanswered.push(incoming),
                }
            }
        });
    }

    /// The same client and session on a new connection.
    pub async fn reconnect(&mut self, cluster: &Cluster) {
        let (endpoint, connection) = cluster.connect(&self.identity).await;
        (self._endpoint, self.connection) = (endpoint, connection);
        self.serve();
        self.keep_renewing();
    }

    /// Renews as a mount would, until the connection ends.
    fn keep_renewing(&mut self) {
        let (connection, session) = (self.connection.clone(), self.session);
        let renewing = tokio::spawn(async move {
            let header = || RequestHeader { session, ..RequestHeader::default() };
            while connection.call::<Renew>(header(), &RenewRequest::default(), &[], DEADLINE).await.is_ok() {
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        });
        self.renewing = Some(renewing.abort_handle());
    }

    /// As if it were frozen.
    pub fn stop_renewing(&mut self) {
        self.renewing.take().unwrap().abort();
    }

    pub fn answers(&self, answer: Answer) {
        *self.answer.lock().unwrap() = answer;
    }

    pub fn recalled(&self) -> Vec<(Ino, Option<Mode>)> {
        self.recalls.lock().unwrap().iter().map(|recall| (recall.ino, recall.may_keep)).collect()
    }

    pub async fn open(&mut self, label: &str) {
        let opened = self.call::<OpenSession>(&OpenSessionRequest { label: label.into() }).await.unwrap();
        self.session = opened.session;
    }

    pub fn header(&self) -> RequestHeader {
        RequestHeader {
            session: self.session,
            term: *self.term.lock().unwrap(),
            seen: *self.seen.lock().unwrap(),
            deadline_ms: DEADLINE.as_millis() as u32,
            ..RequestHeader::default()
        }
    }

    pub async fn call<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        self.call_with::<O>(self.header(), request).await.map(|reply| reply.body)
    }

    pub async fn call_with<O: Operation>(
        &self,
        header: RequestHeader,
        request: &O::Request,
    ) -> Result<Reply<O::Reply>, Fault> {
        let deadline = Duration::from_millis(header.deadline_ms.into());
        let reply = self.connection.call::<O>(header, request, &[], deadline).await?;
        *self.term.lock().unwrap() = reply.header.term;
        let mut seen = self.seen.lock().unwrap();
        *seen = (*seen).max(reply.header.index);
        drop(seen);
        Ok(reply)
    }

    pub fn next_sequence(&self) -> u64 {
        self.sequence.fetch_add(1, Ordering::SeqCst) + 1
    }

    pub async fn mutate<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        let header = RequestHeader { sequence: self.next_sequence(), ..self.header() };
        self.call_with::<O>(header, request).await.map(|reply| reply.body)
    }

    pub async fn create(&self, name: &str) -> Result<Created, Fault> {
        self.mutate::<Create>(&create(name)).await
    }

    pub async fn make_directory(&self, name: &str) -> Result<Linked, Fault> {
        let node = NewNode::Directory;
        self.mutate::<MakeNode>(&MakeNodeRequest {
            parent: ROOT,
            name: self::name(name),
            node,
            mode: 0o755.into(),
            uid: 0,
            gid: 0,
        })
        .await
    }

    pub async fn lookup(&self, name: &str) -> Result<LookedUp, Fault> {
        self.call::<Lookup>(&LookupRequest { parent: ROOT, name: self::name(name) }).await
    }

    pub async fn unlink(&self, name: &str) -> Result<Unlinked, Fault> {
        self.mutate::<Unlink>(&UnlinkRequest { parent: ROOT, name: self::name(name), directory: false }).await
    }

    pub async fn acquire(&self, ino: Ino, mode: Mode) -> Result<Acquired, Fault> {
        let layout = Some(LayoutRange { first: 0, count: 16 });
        self.call::<Acquire>(&AcquireRequest { inodes: vec![ino], mode, layout }).await
    }

    pub async fn renew(&self) -> Result<Renewed, Fault> {
        self.call::<Renew>(&RenewRequest::default()).await
    }
}

pub fn name(text: &str) -> Name {
    Name::new(text).unwrap()
}

pub fn create(name: &str) -> CreateRequest {
    CreateRequest {
        parent: ROOT,
        name: self::name(name),
        mode: 0o644.into(),
        uid: 1000,
        gid: 1000,
        exclusive: true,
        for_writing: true,
    }
}

/// Waits for something to become true.
#[track_caller]
pub fn eventually<F, T>(what: &str, mut check: F) -> impl Future<Output = T>
where
    F: AsyncFnMut() -> Option<T>,
{
    let what = what.to_owned();
    let caller = std::panic::Location::caller();
    async move {
        let until = tokio::time::Instant::now() + DEADLINE;
        loop {
            if let Some(found) = check().await {
                return found;
            }
            assert!(tokio::time::Instant::now() < until, "{caller}: waited in vain until {what}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}
