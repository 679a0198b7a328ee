//! Sessions: opened, renewed, resumed after a restart, closed; and the recalls sent to them.

use super::hub::Hub;
use super::requests::Context;
use super::shared::Shared;
use crate::core::nodes::Health;
use crate::core::record::{Body, Reply};
use crate::core::state::Closing;
use godrive_proto::frame::RequestHeader;
use godrive_proto::lease::*;
use godrive_proto::limits::{MAX_ORPHANS_TOLD, MAX_SLAVES_TOLD};
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, LogIndex, SessionId, Term};
use std::sync::Arc;
use std::time::Duration;

/// How long a holder may take to flush and answer before it is asked again.
const RECALL_DEADLINE: Duration = Duration::from_secs(30);
/// Leases, inodes or handles in one request.
const MAX_LIST: usize = 16_384;

pub async fn open(context: &Context, request: OpenSessionRequest) -> Result<OpenedSession, Fault> {
    let step = |hub: &mut Hub, now: Instant| {
        let body = Body::OpenSession { client: context.peer.node, label: request.label.clone() };
        let (answer, durable) = hub.decide(body)?;
        let Reply::Session(session) = answer? else {
            return Err(Fault::new(Code::Internal, "opening a session gave no session"));
        };
        hub.leases.opened(now, session);
        hub.owners.insert(session, context.peer.node);
        hub.clients.insert(session, context.link.clone());
        let timing = hub.config.leases.timing();
        let opened = OpenedSession { session, timing, parameters: hub.parameters()?, now: hub.wall() };
        Ok((opened, durable))
    };
    let mut opened = context.step(step).await?;
    // Read after the log's sync: the client takes half of the way there and back for the time that has passed since.
    opened.now = context.shared.clock.wall();
    tracing::info!(session = %opened.session, client = %context.peer.node, label = request.label, "session opened");
    Ok(opened)
}

pub async fn renew(context: &Context, request: RenewRequest) -> Result<Renewed, Fault> {
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        hub.leases.renewed(now, session);
        let errors_pending = request.errors_after_close;
        hub.renewals.insert(session, request);
        let must_resume = hub.leases.must_resume(session);
        Ok((Renewed { now: hub.wall(), must_resume, errors_pending }, LogIndex(0)))
    };
    context.step(step).await
}

pub async fn take_over(context: &Context, request: TakeOverRequest) -> Result<TakenOver, Fault> {
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        // A late copy of the request must not take away what was granted since.
        let repeated = hub.state.session(session)?.is_some_and(|known| known.kept_from == request.from);
        let mut durable = LogIndex(0);
        if !repeated {
            let (answer, logged) = hub.decide(Body::SessionTakenOver { session, from: request.from })?;
            answer?;
            durable = logged;
            hub.drop_parked(session);
            hub.leases.taken_over(now, session, &mut hub.effects);
        }
        let mut orphans = hub.state.orphans_of(session)?;
        orphans.truncate(MAX_ORPHANS_TOLD);
        let timing = hub.config.leases.timing();
        let taken = TakenOver { timing, parameters: hub.parameters()?, now: hub.wall(), orphans };
        Ok((taken, durable.max(hub.must_be_durable(session))))
    };
    let mut taken = context.step(step).await?;
    taken.now = context.shared.clock.wall();
    tracing::info!(%session, client = %context.peer.node, orphans = taken.orphans.len(), "session taken over");
    Ok(taken)
}

pub async fn ended(context: &Context, term: Term) -> Result<Option<LogIndex>, Fault> {
    let step = |hub: &mut Hub, _: Instant| {
        let known = hub.term.0.checked_sub(1) == Some(term.0);
        Ok((known.then_some(hub.began_at), LogIndex(0)))
    };
    context.step(step).await
}

/// Beginning somewhere else for each session, so that no slave is everybody's first.
pub async fn slaves(context: &Context, (): ()) -> Result<Vec<Slave>, Fault> {
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        let alive = hub.nodes.iter().filter(|(id, _)| hub.nodes.health(now, *id) == Health::Alive);
        let mut slaves: Vec<_> = alive.map(|(node, known)| Slave { node, address: known.address }).collect();
        if !slaves.is_empty() {
            let first = session.0 % slaves.len() as u64;
            slaves.rotate_left(first as usize);
        }
        slaves.truncate(MAX_SLAVES_TOLD);
        Ok((slaves, LogIndex(0)))
    };
    context.step(step).await
}

pub async fn resume(context: &Context, request: ResumeRequest) -> Result<Resumed, Fault> {
    if request.exclusive.len() > MAX_LIST || request.open.len() > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("a page has at most {MAX_LIST} entries")));
    }
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        let (mut exclusive, mut lost) = (Vec::new(), Vec::new());
        for (ino, id) in request.exclusive {
            match hub.state.inode(ino) {
                Ok(_) => exclusive.push((ino, id)),
                Err(_) => lost.push(ino),
            }
        }
        for ino in &request.open {
            if hub.state.inode(*ino).is_ok_and(|inode| inode.nlink == 0) {
                hub.decide(Body::OrphanKept { ino: *ino, sessions: vec![session] })?.0?;
            }
        }
        let Hub { leases, effects, .. } = hub;
        lost.extend(leases.resumed(now, session, &exclusive, &request.open, request.last, effects));
        // A lease that it gave up while no master was there is not claimed, nor is one whose grant it never saw.
        if request.last {
            for ino in hub.state.open_inodes(session)? {
                if !hub.owns(session, ino) {
                    hub.close_chunks(session, ino, Closing::Revoked)?;
                }
            }
        }
        Ok((Resumed { lost }, hub.must_be_durable(session)))
    };
    let resumed = context.step(step).await?;
    tracing::info!(%session, lost = resumed.lost.len(), "session resumed");
    Ok(resumed)
}

pub async fn close(context: &Context, (): ()) -> Result<(), Fault> {
    let (session, mut origin) = (context.session()?, context.origin);
    // The session ends with it: no answer is kept.
    origin.sequence = 0;
    let step = |hub: &mut Hub, now: Instant| {
        let (answer, durable) = hub.propose(origin, Body::CloseSession)?;
        answer?;
        hub.forget_session(now, session);
        Ok(((), durable))
    };
    context.step(step).await?;
    tracing::info!(%session, "session closed");
    Ok(())
}

pub async fn release(context: &Context, request: ReleaseRequest) -> Result<(), Fault> {
    if request.leases.len() > MAX_LIST || request.closed_orphans.len() > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("a request has at most {MAX_LIST} entries")));
    }
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        for release in &request.leases {
            hub.released(now, session, release)?;
        }
        for ino in &request.closed_orphans {
            hub.leases.closed(session, *ino);
        }
        if !request.closed_orphans.is_empty() {
            hub.decide(Body::OrphansClosed { session, inodes: request.closed_orphans })?.0?;
        }
        Ok(((), LogIndex(0)))
    };
    context.step(step).await
}

/// Asks a holder for a lease and takes its answer to the table.
pub async fn recall(shared: &Arc<Shared>, session: SessionId, request: RecallRequest) {
    let link = shared.with(|hub, _| hub.clients.get(&session).cloned());
    let answer = match &link {
        Some(link) => {
            let header = RequestHeader { session, term: shared.term, ..Default::default() };
            link.connection
                .call::<Recall>(header, &request, &[], RECALL_DEADLINE)
                .await
                .map(|reply| reply.body)
        }
        None => Err(Fault::new(Code::Unreachable, "it has no connection")),
    };
    shared.with(|hub, now| match answer {
        Ok(release) if release.ino == request.ino && release.id >= request.id => {
            if let Err(fault) = hub.released(now, session, &release) {
                tracing::error!(%session, ino = %request.ino, "a returned lease could not be logged: {fault}");
            }
        }
        Ok(release) => {
            let link = link.as_ref().map(|link| link.number);
            tracing::warn!(%session, ?link, ?release, ?request, "the answer to a recall is about another lease");
            hub.leases.recall_failed(now, session, request.ino, request.id, &mut hub.effects);
        }
        Err(fault) => {
            tracing::debug!(%session, ino = %request.ino, "recall failed, it is repeated: {fault}");
            hub.leases.recall_failed(now, session, request.ino, request.id, &mut hub.effects);
        }
    });
}

/// Ends sessions that nobody wants but that were silent for very long: their orphans take space.
pub async fn forget_silent(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_secs(10)).await;
        shared.with(|hub, now| {
            let patience = Duration::from_millis(hub.config.leases.forgotten_after_ms.into());
            for session in hub.leases.idle(now, patience) {
                hub.revoke(now, session, "it has been silent for very long");
            }
        });
    }
}
