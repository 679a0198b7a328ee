//! The write path: a delta is forwarded while it arrives, applied when it is there wholly, and answered when the
//! rest of the chain has the same contents. `Sync` goes the same way without data.

use super::reading::notice;
use super::requests::deadline;
use super::shared::Shared;
use crate::core::delta::{check, verify};
use crate::core::replica::no_chunk;
use crate::store::{DiskStore, Done};
use bytes::Bytes;
use godrive_proto::data::{Applied, Contents, Delta, DeltaRequest, Member, Sync, SyncRequest};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::{Call, Incoming, Payload};
use godrive_proto::{ChunkId, Code, Epoch, Fault, Version};
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

/// Larger payloads are applied so that other tasks go on meanwhile.
const INLINE_BYTES: usize = 128 << 10;
/// What is here already is forwarded in pieces of so many bytes.
const PIECE_BYTES: usize = 256 << 10;

pub async fn serve(shared: Arc<Shared>, mut incoming: Incoming) -> Result<(), Fault> {
    let result = match incoming.decode::<Delta>() {
        Ok(request) => {
            let header = incoming.header.clone();
            let limit = deadline(&header);
            let work = run(&shared, &request, &header, Feed::Arriving(&mut incoming.payload));
            let result = tokio::time::timeout(limit, work).await;
            result.unwrap_or_else(|_| Err(Fault::new(Code::Timeout, "the delta was not done in time")))
        }
        Err(fault) => Err(fault),
    };
    match result {
        Ok(applied) => incoming.reply::<Delta>(ReplyHeader::default(), &applied, &[]).await,
        Err(fault) => incoming.fail(ReplyHeader::default(), fault).await,
    }
}

/// The payload of a delta: it arrives, or it is here already.
pub enum Feed<'a> {
    Arriving(&'a mut Payload),
    Here(Bytes),
}

impl Feed<'_> {
    fn remaining(&self) -> u32 {
        match self {
            Self::Arriving(payload) => payload.remaining(),
            Self::Here(bytes) => bytes.len() as u32,
        }
    }

    async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        match self {
            Self::Arriving(payload) => payload.next().await,
            Self::Here(bytes) if bytes.is_empty() => Ok(None),
            Self::Here(bytes) => Ok(Some(bytes.split_to(bytes.len().min(PIECE_BYTES)))),
        }
    }
}

/// What would be refused with its payload.
pub fn admit(shared: &Shared, request: &DeltaRequest) -> Result<(), Fault> {
    store_for(shared, request)?.admit(request).map(drop)
}

/// Applies a delta here and behind.
pub async fn run(
    shared: &Arc<Shared>,
    request: &DeltaRequest,
    header: &RequestHeader,
    payload: Feed<'_>,
) -> Result<Applied, Fault> {
    let result = delta(shared, request, header, payload).await;
    result.inspect_err(|fault| {
        tracing::info!(chunk = %request.chunk, epoch = %request.epoch, base = %request.base, %fault, "delta refused");
        notice(shared, request.chunk, request.epoch, fault);
    })
}

async fn delta(
    shared: &Arc<Shared>,
    request: &DeltaRequest,
    header: &RequestHeader,
    mut payload: Feed<'_>,
) -> Result<Applied, Fault> {
    let bytes = payload.remaining();
    check(request, bytes as usize)?;
    let store = store_for(shared, request)?;
    store.admit(request)?;
    let mut next = match request.chain.split_first() {
        Some((member, rest)) => Some((*member, forward(shared, request, header, member, rest, bytes).await?)),
        None => None,
    };
    let mut all = Vec::with_capacity(bytes as usize);
    while let Some(piece) = payload.next().await? {
        all.extend_from_slice(&piece);
        if let Some((member, call)) = &mut next {
            call.send(piece).await.map_err(|fault| of_successor(member, fault))?;
        }
    }
    verify(request, &all).map_err(|fault| Fault { node: Some(shared.node), ..fault })?;
    let Some((member, call)) = next else {
        let done = apply(shared, store, request, &all).await?;
        return answer(store, request.chunk, request.epoch, done, None);
    };
    let mut successor = pin!(call.finish());
    // Once before the own work: it says that the payload is complete, so that the successor goes on meanwhile.
    let early = poll_fn(|context| Poll::Ready(successor.as_mut().poll(context))).await;
    // And the connection's task sends it before this thread is busy with the own work.
    tokio::task::yield_now().await;
    let done = apply(shared, store, request, &all).await?;
    let reply = match early {
        Poll::Ready(reply) => reply,
        Poll::Pending => successor.await,
    };
    let reply = reply.map_err(|fault| of_successor(&member, fault))?;
    answer(store, request.chunk, request.epoch, done, Some((member, reply.body)))
}

/// The disk that has the chunk; for a new one the disk that the request names.
fn store_for<'a>(shared: &'a Shared, request: &DeltaRequest) -> Result<&'a Arc<DiskStore>, Fault> {
    if request.base > Version(0) {
        return shared.with_chunk(request.chunk);
    }
    if let [_, _, ..] = shared.stores() {
        for store in shared.usable() {
            if store.floor(request.chunk)? > request.epoch {
                let detail = format!("chunk {} was sealed or deleted here", request.chunk);
                return Err(Fault::new(Code::WrongEpoch, detail));
            }
        }
    }
    shared.find_or_place(request.chunk, request.disk)
}

async fn forward(
    shared: &Shared,
    request: &DeltaRequest,
    header: &RequestHeader,
    member: &Member,
    rest: &[Member],
    bytes: u32,
) -> Result<Call<Delta>, Fault> {
    let limit = successors_deadline(header);
    let forwarded = DeltaRequest { disk: member.disk, chain: rest.to_vec(), ..request.clone() };
    let start = async {
        let connection = shared.peers.connection(member, limit / 2).await?;
        connection.start::<Delta>(forwarded_header(shared, header), &forwarded, bytes, limit).await
    };
    start.await.map_err(|fault| of_successor(member, fault))
}

/// Shorter than the own one, so that the sender learns from us which member it was.
fn successors_deadline(header: &RequestHeader) -> Duration {
    deadline(header) * 4 / 5
}

fn forwarded_header(shared: &Shared, header: &RequestHeader) -> RequestHeader {
    let own = shared.request_header(header.class);
    RequestHeader { session: header.session, sequence: header.sequence, grant: header.grant.clone(), ..own }
}

async fn apply(
    shared: &Shared,
    store: &DiskStore,
    request: &DeltaRequest,
    payload: &[u8],
) -> Result<Done, Fault> {
    let inline = store.is_instant() || payload.len() <= INLINE_BYTES;
    let done = godrive_disk::blocking(inline, || store.delta(request, payload))?;
    tracing::debug!(chunk = %request.chunk, contents = ?done.contents, sync = request.sync, "delta applied");
    if request.sync && !store.is_stable(done.position) {
        store.sync().await?;
    }
    shared.ring_if_due(store);
    Ok(done)
}

/// Compares with the successor and looks once more whether the epoch still goes on.
fn answer(
    store: &DiskStore,
    chunk: ChunkId,
    epoch: Epoch,
    done: Done,
    successor: Option<(Member, Applied)>,
) -> Result<Applied, Fault> {
    let own = done.contents;
    if let Some((member, theirs)) = successor
        && theirs.contents != own
    {
        let detail = format!("chunk {chunk}: {own:?} here, {:?} at slave {}", theirs.contents, member.node);
        return Err(Fault::at(Code::WrongVersion, member.node, detail));
    }
    let row = store.row(chunk)?.ok_or_else(|| no_chunk(chunk))?;
    if row.epoch != epoch || row.sealed > epoch {
        let detail = format!("chunk {chunk} was sealed for epoch {} meanwhile", row.sealed.max(row.epoch));
        return Err(Fault::new(Code::WrongEpoch, detail));
    }
    let stable = store.is_stable(done.position) && successor.is_none_or(|(_, theirs)| theirs.stable);
    Ok(Applied { contents: own, stable, used_bytes: done.used_bytes })
}

/// What a successor's fault means to the sender: who failed.
fn of_successor(member: &Member, fault: Fault) -> Fault {
    let at = fault.node.unwrap_or(member.node);
    let code = match fault.code {
        Code::WrongEpoch | Code::WrongVersion | Code::Corrupt | Code::NoSpace => fault.code,
        _ => Code::MemberFailed,
    };
    Fault::at(code, at, format!("slave {}: {fault}", member.node))
}

pub async fn sync(
    shared: &Arc<Shared>,
    request: SyncRequest,
    header: RequestHeader,
) -> Result<Applied, Fault> {
    let SyncRequest { chunk, epoch, version, .. } = request;
    let store = shared.with_chunk(chunk)?;
    let row = store.row(chunk)?.ok_or_else(|| no_chunk(chunk))?;
    if row.epoch != epoch || row.sealed > epoch || row.partial {
        let detail = format!("chunk {chunk} is at epoch {} here, sealed for {}", row.epoch, row.sealed);
        return Err(Fault::new(Code::WrongEpoch, detail));
    }
    if row.version != version {
        let detail = format!("chunk {chunk} has version {} here, not {version}", row.version);
        return Err(Fault::new(Code::WrongVersion, detail));
    }
    let done = Done {
        contents: Contents { version: row.version, digest: row.digest },
        used_bytes: row.used_bytes,
        position: row.position,
    };
    let own_sync = async {
        if !store.is_stable(done.position) {
            store.sync().await?;
        }
        Ok::<(), Fault>(())
    };
    let Some((member, rest)) = request.chain.split_first() else {
        own_sync.await?;
        return answer(store, chunk, epoch, done, None);
    };
    let limit = successors_deadline(&header);
    let onward = SyncRequest { chain: rest.to_vec(), ..request.clone() };
    let call = async {
        let connection = shared.peers.connection(member, limit / 2).await?;
        connection.call::<Sync>(forwarded_header(shared, &header), &onward, &[], limit).await
    };
    let mut call = pin!(call);
    let early = poll_fn(|context| Poll::Ready(call.as_mut().poll(context))).await;
    own_sync.await?;
    let reply = match early {
        Poll::Ready(reply) => reply,
        Poll::Pending => call.await,
    };
    let reply = reply.map_err(|fault| of_successor(member, fault))?;
    answer(store, chunk, epoch, done, Some((*member, reply.body)))
}
