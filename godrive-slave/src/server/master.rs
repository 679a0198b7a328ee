//! The connection to the master: register, say what is here, then a heartbeat every second. The master's
//! commands come on the same connection. Lost, it is made again, for ever.

use super::requests;
use super::shared::Shared;
use crate::core::replica::Key;
use crate::store::DiskStore;
use crate::store::table::Row;
use godrive_proto::cluster::{
    Heartbeat, HeartbeatRequest, Inventory, InventoryPage, Register, RegisterRequest, ReplicaState,
};
use godrive_proto::data::Contents;
use godrive_proto::frame::Class;
use godrive_proto::net::{Connection, Endpoint, Expect};
use godrive_proto::{ChunkId, DiskId, Epoch, Fault, Operation, Role};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LAST_BACKOFF: Duration = Duration::from_secs(2);
const CALL: Duration = Duration::from_secs(5);
/// An inventory page may meet a busy master.
const INVENTORY: Duration = Duration::from_secs(30);
const PAGE: usize = 2048;
const MAX_STABLE: usize = 4096;

pub async fn keep_connected(shared: Arc<Shared>, endpoint: Endpoint) {
    let mut backoff = FIRST_BACKOFF;
    let mut told = String::new();
    loop {
        match session(&shared, &endpoint, &mut backoff).await {
            Ok(never) => match never {},
            Err(fault) => {
                shared.set_master(None);
                let fault = fault.to_string();
                // The same reason again is no news.
                if fault != told {
                    tracing::warn!(master = %shared.config.master, fault, "not connected to the master; trying on");
                    told = fault;
                }
            }
        }
        let jitter = shared.jitter(backoff.as_millis() as u64 / 2 + 1);
        endpoint.pause(backoff / 2 + Duration::from_millis(jitter)).await;
        backoff = (backoff * 2).min(LAST_BACKOFF);
    }
}

/// One connection from its making to its end.
async fn session(
    shared: &Arc<Shared>,
    endpoint: &Endpoint,
    backoff: &mut Duration,
) -> Result<std::convert::Infallible, Fault> {
    let expect = Expect { role: Role::Master, node: None };
    let connecting = tokio::time::timeout(CALL, endpoint.connect(shared.config.master, expect));
    let connection = connecting.await.unwrap_or_else(|_| Err(godrive_proto::Code::Timeout.into()))?;
    let request = RegisterRequest {
        cluster: shared.cluster,
        boot: shared.boot,
        address: shared.advertise,
        domain: shared.config.domain.clone(),
        disks: shared.disk_states(),
    };
    let begun = godrive_disk::blocking(shared.is_instant(), || {
        let _nobody_adopts = shared.adopting.try_write_for(CALL)?;
        Some(shared.registrations.fetch_add(1, Ordering::SeqCst))
    });
    if begun.is_none() {
        let detail = format!("a disk has been writing a copy for {} s: it is waited for", CALL.as_secs());
        return Err(Fault::new(godrive_proto::Code::Busy, detail));
    }
    let registered = call::<Register>(shared, &connection, &request, CALL).await?;
    *backoff = FIRST_BACKOFF;
    shared.set_master(Some(connection.clone()));
    tracing::info!(master = %shared.config.master, "registered with the master");
    let every = Duration::from_millis(registered.heartbeat_every_ms.clamp(10, 10_000).into());
    let commands = requests::serve(shared.clone(), connection.clone());
    let fault = tokio::select! {
        fault = report(shared, &connection, every) => fault,
        () = commands => Fault::new(godrive_proto::Code::Unreachable, connection.closed().await),
    };
    connection.close("registering again");
    Err(fault)
}

/// The inventory, with heartbeats meanwhile and afterwards; returns why it could not go on.
async fn report(shared: &Arc<Shared>, connection: &Connection, every: Duration) -> Fault {
    let inventory = async {
        match inventory(shared, connection).await {
            Ok(()) => std::future::pending().await,
            Err(fault) => fault,
        }
    };
    tokio::select! {
        fault = inventory => fault,
        fault = heartbeats(shared, connection, every) => fault,
    }
}

async fn call<O: Operation>(
    shared: &Shared,
    connection: &Connection,
    request: &O::Request,
    deadline: Duration,
) -> Result<O::Reply, Fault> {
    let reply =
        connection.call::<O>(shared.request_header(Class::Foreground), request, &[], deadline).await?;
    shared.heard(&reply.header);
    Ok(reply.body)
}

/// All replicas that are served, ascending by chunk over all disks.
async fn inventory(shared: &Arc<Shared>, connection: &Connection) -> Result<(), Fault> {
    let mut disks: Vec<Listing> = shared.usable().map(Listing::new).collect();
    loop {
        let page = next_page(shared, &mut disks)?;
        let last = page.len() < PAGE;
        call::<Inventory>(shared, connection, &InventoryPage { replicas: page, last }, INVENTORY).await?;
        if last {
            return Ok(());
        }
    }
}

pub(super) fn next_page(shared: &Shared, disks: &mut [Listing]) -> Result<Vec<ReplicaState>, Fault> {
    let mut page: Vec<ReplicaState> = Vec::with_capacity(PAGE);
    while page.len() < PAGE {
        let mut lowest: Option<ChunkId> = None;
        for disk in disks.iter_mut() {
            lowest = lowest.into_iter().chain(disk.peek()?).min();
        }
        let Some(chunk) = lowest else { break };
        let listed: Vec<_> = disks.iter_mut().filter_map(|disk| disk.take(chunk)).collect();
        let counts = match listed.as_slice() {
            [(store, row)] => Some((store, *row)),
            _ => shared.keep_one(chunk)?,
        };
        if let Some((store, row)) = counts.filter(|(_, row)| !row.partial) {
            page.push(shared.replica_state(store, chunk, &row));
        }
    }
    Ok(page)
}

/// The replicas of one disk, page by page.
pub(super) struct Listing {
    store: Arc<DiskStore>,
    after: Option<Key>,
    page: VecDeque<(Key, Row)>,
    ended: bool,
}

impl Listing {
    pub(super) fn new(store: &Arc<DiskStore>) -> Self {
        Self { store: store.clone(), after: None, page: VecDeque::new(), ended: false }
    }

    fn peek(&mut self) -> Result<Option<ChunkId>, Fault> {
        if self.page.is_empty() && !self.ended {
            let mut page =
                godrive_disk::blocking(self.store.is_instant(), || self.store.page(self.after, PAGE))?;
            // Those kept aside come last, and are nobody's.
            self.ended = page.is_empty() || page.iter().any(|(key, _)| key.aside != 0);
            page.retain(|(key, _)| key.aside == 0);
            self.after = page.last().map(|(key, _)| *key);
            self.page = page.into();
        }
        Ok(self.page.front().map(|(key, _)| key.chunk))
    }

    /// The first replica, if it is of this chunk.
    fn take(&mut self, chunk: ChunkId) -> Option<(Arc<DiskStore>, Row)> {
        let (_, row) = self.page.pop_front_if(|(key, _)| key.chunk == chunk)?;
        Some((self.store.clone(), row))
    }
}

fn slowest_sync(store: &DiskStore) -> (DiskId, u32) {
    let ms = store.take_slowest_sync().as_nanos().div_ceil(1_000_000);
    (store.id(), u32::try_from(ms).unwrap_or(u32::MAX))
}

async fn heartbeats(shared: &Arc<Shared>, connection: &Connection, every: Duration) -> Fault {
    loop {
        tokio::time::sleep(every).await;
        let mut stable: Vec<(ChunkId, Epoch, Contents)> = Vec::new();
        let mut taken = Vec::new();
        for store in shared.usable() {
            let some = store.take_stable(MAX_STABLE - stable.len());
            taken.push((store.clone(), some.len()));
            stable.extend(some);
        }
        let request = HeartbeatRequest {
            disks: shared.disk_states(),
            scrubbed_leaves: shared.scrubbed_leaves.load(Ordering::Relaxed),
            bad_leaves: shared.stores().iter().map(|store| store.bad_leaves()).sum(),
            errors: shared.errors.load(Ordering::Relaxed),
            stable,
            scrub: shared.scrub.lock().values().copied().collect(),
            slowest_sync_ms: shared.usable().map(|store| slowest_sync(store)).collect(),
        };
        if let Err(fault) = call::<Heartbeat>(shared, connection, &request, CALL).await {
            let mut chunks = request.stable.iter().map(|(chunk, _, _)| *chunk);
            for (store, count) in taken {
                store.untake_stable(chunks.by_ref().take(count));
            }
            return fault;
        }
        shared.tell_waiting();
    }
}
