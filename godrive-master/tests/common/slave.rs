//! A slave that keeps its replicas' states in memory and has no bytes.

use super::Cluster;
use godrive_proto::cluster::*;
use godrive_proto::data::{Contents, Layout};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::identity::Identity;
use godrive_proto::net::{Connection, Endpoint, Incoming};
use godrive_proto::*;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::task::AbortHandle;

/// What all fake slaves of a cluster hold, so that one can copy from another.
pub type Stores = Arc<Mutex<BTreeMap<NodeId, Arc<Store>>>>;

#[derive(Default)]
pub struct Store {
    pub replicas: Mutex<BTreeMap<ChunkId, ReplicaState>>,
    pub quarantined: Mutex<Vec<ChunkId>>,
    /// Commands are taken and not answered.
    pub silent: Mutex<bool>,
    pub log: Mutex<Vec<String>>,
    /// As announced and told with each heartbeat.
    pub disks: Mutex<Vec<DiskState>>,
    /// Copies come out as this, whatever their source has.
    pub copies: Mutex<Option<Contents>>,
    /// Blocks of it do not verify where others would copy them.
    pub rotten: Mutex<bool>,
    /// Copies are made and not answered while this is held.
    pub copying: tokio::sync::Mutex<()>,
    /// A disk on which a replica may lie cannot be asked.
    pub lacks_disk: Mutex<bool>,
    /// So long a seal takes.
    pub seals_take: Mutex<Duration>,
    /// Before a seal is answered.
    pub on_seal: Mutex<Option<Box<dyn Fn() + Send>>>,
    all: Stores,
}

pub struct Slave {
    pub node: NodeId,
    pub disk: DiskId,
    pub boot: BootId,
    pub store: Arc<Store>,
    identity: Identity,
    endpoint: Option<Endpoint>,
    pub connection: Option<Connection>,
    tasks: Vec<AbortHandle>,
}

pub fn contents(version: u64, digest: u128) -> Contents {
    Contents { version: Version(version), digest: Digest(digest) }
}

impl Slave {
    pub async fn start(cluster: &Cluster) -> Self {
        let mut slave = Self::prepare(cluster);
        slave.connect(cluster).await.unwrap();
        slave
    }

    /// One that has not announced itself.
    pub fn prepare(cluster: &Cluster) -> Self {
        let identity = cluster.issue(Role::Slave);
        let store = Arc::new(Store { all: cluster.stores.clone(), ..Store::default() });
        cluster.stores.lock().unwrap().insert(identity.node, store.clone());
        let disk = DiskId(identity.node.0 * 10);
        *store.disks.lock().unwrap() = vec![disk_state(disk)];
        Self {
            node: identity.node,
            disk,
            boot: BootId(1),
            store,
            identity,
            endpoint: None,
            connection: None,
            tasks: Vec::new(),
        }
    }

    pub fn announcement(&self, cluster: &Cluster) -> RegisterRequest {
        RegisterRequest {
            cluster: cluster.id,
            boot: self.boot,
            address: SocketAddr::from(([127, 0, 0, 1], 9)),
            domain: String::new(),
            disks: self.store.disks.lock().unwrap().clone(),
        }
    }

    pub async fn connect(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        self.register(cluster).await?;
        self.go_on().await
    }

    /// The first part of that: what it has is not told yet.
    pub async fn register(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        let (endpoint, connection) = cluster.connect(&self.identity).await;
        let commands = connection.clone();
        let (store, disk, boot) = (self.store.clone(), self.disk, self.boot);
        let serving = tokio::spawn(async move {
            while let Some(incoming) = commands.accept().await {
                tokio::spawn(answer(store.clone(), disk, boot, incoming));
            }
        });
        (self.endpoint, self.connection) = (Some(endpoint), Some(connection));
        self.tasks.push(serving.abort_handle());
        self.call::<Register>(&self.announcement(cluster)).await?;
        Ok(())
    }

    pub async fn go_on(&mut self) -> Result<(), Fault> {
        let replicas = self.store.replicas.lock().unwrap().values().copied().collect();
        self.call::<Inventory>(&InventoryPage { replicas, last: true }).await?;
        let (pulse, disk, store) = (self.connection.clone().unwrap(), self.disk, self.store.clone());
        let beating = tokio::spawn(async move {
            loop {
                let disks = store.disks.lock().unwrap().clone();
                let beat = HeartbeatRequest { disks, ..heartbeat(disk, Vec::new()) };
                let _ = pulse.call::<Heartbeat>(RequestHeader::default(), &beat, &[], super::DEADLINE).await;
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        });
        self.tasks.push(beating.abort_handle());
        Ok(())
    }

    pub async fn call<O: Operation>(&self, request: &O::Request) -> Result<O::Reply, Fault> {
        let connection = self.connection.as_ref().unwrap();
        let reply = connection.call::<O>(RequestHeader::default(), request, &[], super::DEADLINE).await?;
        Ok(reply.body)
    }

    /// As if killed: the connection ends, what is held stays.
    pub async fn kill(&mut self) {
        for task in self.tasks.drain(..) {
            task.abort();
        }
        self.connection.take().unwrap().close("killed");
        self.endpoint.take().unwrap().close().await;
    }

    /// Stops the pulse only.
    pub fn hush(&mut self) {
        if let Some(beating) = self.tasks.pop() {
            beating.abort();
        }
    }

    pub fn has(&self, chunk: ChunkId) -> Option<ReplicaState> {
        self.store.replicas.lock().unwrap().get(&chunk).copied()
    }

    pub fn silent(&self, silent: bool) {
        *self.store.silent.lock().unwrap() = silent;
    }

    /// As if a client's deltas had brought the replica to these contents.
    pub fn hold(&self, layout: &Layout, contents: Contents, stable: bool) {
        let own = layout.members.iter().find(|member| member.node == self.node);
        let replica = ReplicaState {
            chunk: layout.chunk.id,
            disk: own.map_or(self.disk, |member| member.disk),
            epoch: layout.epoch,
            sealed: Epoch(0),
            contents,
            stable,
            boot: self.boot,
            last_op: OpId::default(),
            used_bytes: 4096,
        };
        self.store.replicas.lock().unwrap().insert(layout.chunk.id, replica);
    }
}

pub fn heartbeat(disk: DiskId, stable: Vec<(ChunkId, Epoch, Contents)>) -> HeartbeatRequest {
    let disks = vec![disk_state(disk)];
    let (scrub, slowest_sync_ms) = (Vec::new(), Vec::new());
    HeartbeatRequest { disks, scrubbed_leaves: 0, bad_leaves: 0, errors: 0, stable, scrub, slowest_sync_ms }
}

pub fn disk_state(disk: DiskId) -> DiskState {
    DiskState { disk, total_bytes: 1 << 40, free_bytes: 1 << 39, chunks: 0, health: DiskHealth::Healthy }
}

async fn answer(store: Arc<Store>, disk: DiskId, boot: BootId, incoming: Incoming) {
    if *store.silent.lock().unwrap() {
        // Longer than anyone waits.
        tokio::time::sleep(super::DEADLINE).await;
        return;
    }
    let header = ReplyHeader::default();
    let sent = match incoming.header.code {
        Seal::CODE => {
            let takes = *store.seals_take.lock().unwrap();
            tokio::time::sleep(takes).await;
            let request = incoming.decode::<Seal>().unwrap();
            let lacks_disk = *store.lacks_disk.lock().unwrap();
            match seal(&store, request).filter(|_| !lacks_disk) {
                Some(state) => incoming.reply::<Seal>(header, &state, &[]).await,
                None if lacks_disk => incoming.fail(header, Code::Disk.into()).await,
                None => incoming.fail(header, Code::NoChunk.into()).await,
            }
        }
        Install::CODE => {
            let request = incoming.decode::<Install>().unwrap();
            match install(&store, boot, &request) {
                Ok(()) => incoming.reply::<Install>(header, &(), &[]).await,
                Err(fault) => incoming.fail(header, fault).await,
            }
        }
        Copy::CODE => {
            let request = incoming.decode::<Copy>().unwrap();
            let copied = copy(&store, boot, &request);
            let _may_answer = store.copying.lock().await;
            match copied {
                Ok(contents) => incoming.reply::<Copy>(header, &contents, &[]).await,
                Err(fault) => incoming.fail(header, fault).await,
            }
        }
        Delete::CODE
            if store.disks.lock().unwrap().iter().all(|state| state.health == DiskHealth::Failed) =>
        {
            incoming.fail(header, Fault::new(Code::Disk, "the disk is out of service")).await
        }
        Delete::CODE => {
            let request = incoming.decode::<Delete>().unwrap();
            for (chunk, epoch) in request.chunks {
                store.log.lock().unwrap().push(format!("delete {chunk}"));
                let mut replicas = store.replicas.lock().unwrap();
                if replicas.get(&chunk).is_some_and(|replica| replica.epoch <= epoch) {
                    replicas.remove(&chunk);
                }
            }
            incoming.reply::<Delete>(header, &(), &[]).await
        }
        Quarantine::CODE => {
            let request = incoming.decode::<Quarantine>().unwrap();
            store.quarantined.lock().unwrap().extend(request.chunks);
            incoming.reply::<Quarantine>(header, &(), &[]).await
        }
        code => panic!("a slave was asked {code:#x} on disk {disk}"),
    };
    // The master may have given up.
    let _ = sent;
}

fn seal(store: &Store, request: SealRequest) -> Option<ReplicaState> {
    store.log.lock().unwrap().push(format!("seal {} {}", request.chunk, request.epoch));
    if let Some(act) = &*store.on_seal.lock().unwrap() {
        act();
    }
    let mut replicas = store.replicas.lock().unwrap();
    let replica = replicas.get_mut(&request.chunk)?;
    replica.sealed = request.epoch;
    Some(*replica)
}

fn install(store: &Store, boot: BootId, request: &InstallRequest) -> Result<(), Fault> {
    store.log.lock().unwrap().push(format!("install {} {}", request.chunk, request.epoch));
    let mut replicas = store.replicas.lock().unwrap();
    if request.contents.version.0 == 0 {
        replicas.entry(request.chunk).or_insert(ReplicaState {
            chunk: request.chunk,
            disk: request.disk,
            epoch: request.epoch,
            sealed: Epoch(0),
            contents: request.contents,
            stable: true,
            boot,
            last_op: OpId::default(),
            used_bytes: 0,
        });
    }
    let replica = replicas.get_mut(&request.chunk).ok_or(Code::NoChunk)?;
    if replica.contents != request.contents {
        return Err(Fault::new(Code::WrongVersion, "it has other contents"));
    }
    (replica.epoch, replica.sealed) = (request.epoch, Epoch(0));
    Ok(())
}

fn copy(store: &Store, boot: BootId, request: &CopyRequest) -> Result<Contents, Fault> {
    let aside = if request.keep_aside { ", the old kept aside" } else { "" };
    store.log.lock().unwrap().push(format!("copy {} from {}{aside}", request.chunk, request.source.node));
    let failed = |state: &DiskState| state.disk == request.disk && state.health == DiskHealth::Failed;
    if store.disks.lock().unwrap().iter().any(failed) {
        return Err(Fault::new(Code::Disk, "the disk is out of service"));
    }
    let source = store.all.lock().unwrap().get(&request.source.node).cloned().unwrap();
    let theirs = source.replicas.lock().unwrap().get(&request.chunk).copied().ok_or(Code::NoChunk)?;
    if request.expect.is_some_and(|expected| expected != theirs.contents) {
        return Err(Fault::new(Code::WrongVersion, "the source has other contents"));
    }
    if *source.rotten.lock().unwrap() {
        return Err(Fault::at(Code::Corrupt, request.source.node, "a leaf came with another sum"));
    }
    let mut replicas = store.replicas.lock().unwrap();
    let before = replicas.get(&request.chunk).copied();
    let copied = ReplicaState {
        disk: request.disk,
        boot,
        stable: true,
        epoch: before.map_or(Epoch(0), |before| before.epoch),
        sealed: before.map_or(Epoch(0), |before| before.sealed),
        contents: store.copies.lock().unwrap().unwrap_or(theirs.contents),
        ..theirs
    };
    replicas.insert(request.chunk, copied);
    Ok(copied.contents)
}
