//! Epoch changes: who the members of a chunk are and what they hold, when that is in question.
//!
//! A member failed, a writer was revoked, a replica joins, replicas disagree: always the same procedure, run by one
//! task per chunk. Log that the epoch is pending; seal the members, which stop working for the old epoch and say
//! what they have; elect; bring laggards and joiners level; log the new epoch; install it. Whoever needs
//! the chunk meanwhile waits for the end of the same task.

use super::hub::{Hub, Shared};
use super::requests::Context;
use crate::core::placement::{Candidate, place};
use crate::core::record::Body;
use crate::core::state::values::Chunk;
use crate::core::vote::{Known, Verdict, Voice, elect};
use godrive_proto::cluster::{Copy, CopyRequest, Install, InstallRequest, ReplicaState, Seal, SealRequest};
use godrive_proto::data::{Contents, Layout, Member};
use godrive_proto::frame::{Class, RequestHeader};
use godrive_proto::lease::{Problem, ReportRequest};
use godrive_proto::net::Connection;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, Epoch, Fault, LogIndex, NodeId, Operation, Role};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// Why an epoch changes.
#[derive(Clone, Debug)]
pub enum Cause {
    /// A writer died, or the last change was cut off.
    Unsettled,
    /// A client or slave met a problem.
    Reported(Problem),
    /// A replica was copied to this disk and becomes a member.
    Join(Candidate),
}

/// A member copies what it lacks within this; during a write everyone waits for it.
const COPY_DEADLINE: Duration = Duration::from_secs(1);
/// A joiner that is needed to have enough members copies the whole chunk.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
/// A change that failed is tried again after this, or when a slave comes back; so many at one time.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 64;
/// Members that fail while they are installed cost another round.
const ROUNDS: usize = 3;

/// Answers when the chunk is usable again, with its layout.
pub async fn report(context: &Context, request: ReportRequest) -> Result<Layout, Fault> {
    let chunk = request.chunk;
    let from_client = context.peer.role == Role::Client;
    if from_client {
        context.session()?;
    }
    let needed = context.shared.with(|hub, _| {
        let Some(known) = hub.state.chunk(chunk)? else {
            return Err(Fault::new(Code::NoChunk, format!("chunk {chunk} does not exist (any longer)")));
        };
        let outdated = request.epoch < known.epoch;
        let only_asks = matches!(request.problem, Problem::StaleLayout);
        let unfinished = known.pending.is_some() || known.unsettled || hub.epochs.contains_key(&chunk);
        Ok(unfinished || !(outdated || only_asks))
    })?;
    if needed {
        tracing::info!(%chunk, epoch = %request.epoch, problem = ?request.problem, peer = %context.peer.node,
            detail = request.detail, "reported");
        change(&context.shared, chunk, Cause::Reported(request.problem)).await?;
    }
    let layout = context.shared.with(|hub, now| {
        let quarantined = hub.state.chunk(chunk)?.is_some_and(|known| known.quarantined);
        if quarantined {
            return Err(quarantine_fault(chunk));
        }
        let mut layout = hub.state.chunk_layout(chunk)?;
        hub.localize(now, &mut layout);
        Ok((layout, hub.must_be_durable))
    });
    let (layout, durable) = layout?;
    context.shared.durable(durable).await?;
    Ok(layout)
}

/// Runs an epoch change of the chunk, or joins the one that runs, and waits for its end.
pub async fn change(shared: &Arc<Shared>, chunk: ChunkId, cause: Cause) -> Result<(), Fault> {
    let (ended, end) = oneshot::channel();
    let begin = shared.with(|hub, _| match hub.epochs.get_mut(&chunk) {
        Some(waiting) => {
            waiting.push(ended);
            false
        }
        None => {
            hub.epochs.insert(chunk, vec![ended]);
            true
        }
    });
    if begin {
        let shared = shared.clone();
        tokio::spawn(async move {
            let result = run(&shared, chunk, &cause).await;
            finish(&shared, chunk, &result);
        });
    }
    match end.await {
        Ok(result) => result,
        Err(_) => Err(Fault::new(Code::Internal, format!("the epoch change of chunk {chunk} was cut off"))),
    }
}

fn finish(shared: &Arc<Shared>, chunk: ChunkId, result: &Result<(), Fault>) {
    shared.with(|hub, now| {
        for waiting in hub.epochs.remove(&chunk).unwrap_or_default() {
            // Its requester may have given up.
            let _ = waiting.send(result.clone());
        }
        let known = hub.state.chunk(chunk).ok().flatten();
        let still_open = known.as_ref().is_some_and(|known| known.pending.is_some() || known.unsettled);
        let given_up = known.as_ref().is_some_and(|known| known.quarantined);
        if still_open && !given_up {
            hub.unfinished.insert(chunk, now.after(TRY_AGAIN_AFTER));
        } else {
            hub.unfinished.remove(&chunk);
        }
        if let Some(known) = known {
            hub.unfence(now, known.ino);
        }
        hub.slaves.reclaim = true;
    });
}

/// Rounds until one ends with all members installed.
async fn run(shared: &Arc<Shared>, chunk: ChunkId, cause: &Cause) -> Result<(), Fault> {
    for round in 1..=ROUNDS {
        let missing = one_round(shared, chunk, cause).await?;
        if missing.is_empty() {
            return Ok(());
        }
        tracing::warn!(%chunk, round, ?missing, "members did not take up the new epoch");
        shared.with(|hub, now| missing.iter().for_each(|node| hub.nodes.suspect(now, *node)));
    }
    Err(Fault::new(
        Code::Unavailable,
        format!("chunk {chunk}: its members fail faster than its epochs change"),
    ))
}

/// What a round begins with.
struct Round {
    chunk: ChunkId,
    epoch: Epoch,
    known: Chunk,
    min_replicas: usize,
    seal_deadline: Duration,
    /// A member that must not have a voice: it was found corrupt.
    corrupt: Option<NodeId>,
    links: Vec<(Member, Option<Connection>)>,
}

/// A member's answer to the seal. None in `state`: it has no replica.
struct Answered {
    member: Member,
    connection: Connection,
    state: Option<ReplicaState>,
}

async fn one_round(shared: &Arc<Shared>, chunk: ChunkId, cause: &Cause) -> Result<Vec<NodeId>, Fault> {
    let (round, durable) = shared.with(|hub, now| begin(hub, now, chunk, cause))?;
    shared.durable(durable).await?;
    let (answers, silent) = seal(shared, &round).await;
    shared.with(|hub, now| silent.iter().for_each(|node| hub.nodes.suspect(now, *node)));
    let voices: Vec<Voice> =
        shared.with(|hub, _| answers.iter().map(|answer| voice(hub, &round, answer)).collect());
    let record = Known {
        epoch: round.known.epoch,
        held: round.known.held,
        stable: round.known.stable,
        members: round.known.members.len() - usize::from(round.corrupt.is_some()),
    };
    let (contents, winners, regressed) = match elect(&record, &voices) {
        Verdict::Elected { contents, winners, regressed } => (contents, winners, regressed),
        Verdict::Wait(why) => {
            let detail =
                format!("chunk {chunk}: {why}; {} of its members do not answer: start them", silent.len());
            return Err(Fault::new(Code::Unavailable, detail));
        }
        Verdict::Quarantine(why) => {
            tracing::error!(%chunk, why, ?voices, ?record, "no safe winner among the replicas: quarantined");
            shared.with(|hub, _| hub.decide(Body::ChunkQuarantined { chunk })?.0)?;
            return Err(quarantine_fault(chunk));
        }
    };
    if regressed {
        tracing::error!(%chunk, held = ?record.held, now = ?contents, "after a power loss the chunk is older than it was held");
        shared.with(|hub, _| hub.regressed += 1);
    }
    let mut made = Made { contents, ..gather(&answers, &winners) };
    level(shared, &round, &answers, &winners, &mut made).await;
    enlarge(shared, &round, cause, &mut made).await;
    if made.members.len() < round.min_replicas {
        let detail = format!(
            "chunk {chunk} has {} reachable correct replicas and needs {} (min_replicas): start the missing slaves",
            made.members.len(),
            round.min_replicas
        );
        return Err(Fault::new(Code::Unavailable, detail));
    }
    install(shared, &round, &made).await
}

/// Checks that a change can succeed before anything is sealed, and logs that it begins.
fn begin(hub: &mut Hub, now: Instant, chunk: ChunkId, cause: &Cause) -> Result<(Round, LogIndex), Fault> {
    let Some(known) = hub.state.chunk(chunk)? else {
        return Err(Fault::new(Code::NoChunk, format!("chunk {chunk} does not exist (any longer)")));
    };
    let corrupt = match cause {
        Cause::Reported(Problem::Corrupt(node)) if known.members.len() > 1 => {
            Some(*node).filter(|node| known.members.iter().any(|member| member.node == *node))
        }
        _ => None,
    };
    let link = |member: &Member| hub.slaves.links.get(&member.node).map(|link| link.connection.clone());
    let links: Vec<_> = known.members.iter().map(|member| (*member, link(member))).collect();
    let min_replicas = usize::from(hub.parameters()?.min_replicas);
    let voiced = |member: &Member| Some(member.node) != corrupt;
    let reachable: Vec<NodeId> =
        links.iter().filter(|(m, link)| link.is_some() && voiced(m)).map(|(m, _)| m.node).collect();
    let joiners = hub.nodes.candidates(now, &hub.reserved);
    let mut others: Vec<NodeId> =
        joiners.iter().map(|c| c.node).filter(|node| !reachable.contains(node)).collect();
    others.dedup();
    // A seal ends the reads of the old epoch, too: not before a new one is possible.
    if reachable.is_empty() || reachable.len() + others.len() < min_replicas {
        let detail = format!(
            "chunk {chunk} has {} reachable members and needs {min_replicas} (min_replicas): start the missing slaves",
            reachable.len()
        );
        return Err(Fault::new(Code::Unavailable, detail));
    }
    let epoch = known.pending.unwrap_or(known.epoch).max(known.epoch).next();
    let (answer, durable) = hub.decide(Body::EpochPending { chunk, epoch })?;
    answer?;
    let seal_deadline = Duration::from_millis(hub.config.nodes.seal_deadline_ms.into());
    Ok((Round { chunk, epoch, known, min_replicas, seal_deadline, corrupt, links }, durable))
}

/// Asks all members at once; those that do not answer are named.
async fn seal(shared: &Arc<Shared>, round: &Round) -> (Vec<Answered>, Vec<NodeId>) {
    let request = SealRequest { chunk: round.chunk, epoch: round.epoch };
    let mut calls = Vec::new();
    for (member, connection) in &round.links {
        if round.corrupt == Some(member.node) {
            continue;
        }
        let call = connection.clone().map(|connection| {
            let deadline = round.seal_deadline;
            command::<Seal>(shared, connection, request, Class::Foreground, deadline)
        });
        calls.push((*member, connection.clone(), call));
    }
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (member, connection, call) in calls {
        let answer = match call {
            Some(call) => call.await,
            None => Err(Fault::new(Code::Unreachable, "it is not connected")),
        };
        match (answer, connection) {
            (Ok(state), Some(connection)) => {
                answers.push(Answered { member, connection, state: Some(state) })
            }
            (Err(fault), Some(connection)) if fault.code == Code::NoChunk => {
                answers.push(Answered { member, connection, state: None });
            }
            (Err(fault), _) => {
                tracing::info!(chunk = %round.chunk, node = %member.node, "no answer to the seal: {fault}");
                silent.push(member.node);
            }
            (Ok(_), None) => silent.push(member.node),
        }
    }
    (answers, silent)
}

/// A chunk that was never written needs no replica: its absence is its contents.
fn voice(hub: &Hub, round: &Round, answer: &Answered) -> Voice {
    let known = &round.known;
    match &answer.state {
        Some(state) if state.disk == answer.member.disk || state.epoch.0 == 0 => Voice {
            epoch: state.epoch,
            contents: state.contents,
            rebooted: hub
                .state
                .node(answer.member.node)
                .is_ok_and(|node| node.is_some_and(|node| node.booted_at > known.held_at)),
        },
        _ if known.held.version.0 == 0 => Voice { epoch: Epoch(0), contents: known.held, rebooted: false },
        _ => Voice { epoch: Epoch(0), contents: Contents::default(), rebooted: true },
    }
}

/// The epoch in the making.
#[derive(Default)]
struct Made {
    contents: Contents,
    members: Vec<Member>,
    connections: Vec<Connection>,
    stable: bool,
    used_bytes: u32,
}

fn gather(answers: &[Answered], winners: &[usize]) -> Made {
    let mut made = Made { stable: true, ..Made::default() };
    for answer in winners.iter().filter_map(|at| answers.get(*at)) {
        made.members.push(answer.member);
        made.connections.push(answer.connection.clone());
        made.stable &= answer.state.is_none_or(|state| state.stable);
        made.used_bytes = made.used_bytes.max(answer.state.map_or(0, |state| state.used_bytes));
    }
    made
}

/// Members that answered with something else get the leaves that differ; those that cannot in time leave.
async fn level(
    shared: &Arc<Shared>,
    round: &Round,
    answers: &[Answered],
    winners: &[usize],
    made: &mut Made,
) {
    let Some(source) = made.members.first().copied() else { return };
    let mut copies = Vec::new();
    for (at, answer) in answers.iter().enumerate().filter(|(at, _)| !winners.contains(at)) {
        let theirs = answer.state.map_or(Contents::default(), |state| state.contents);
        // What diverged may be the truth after all: people can still find it.
        let keep_aside = theirs.version >= made.contents.version && answer.state.is_some();
        let request = copy(round, answer.member, source, made.contents, keep_aside);
        let call =
            command::<Copy>(shared, answer.connection.clone(), request, Class::Foreground, COPY_DEADLINE);
        copies.push((at, call));
    }
    for (at, call) in copies {
        let answer = &answers[at];
        match call.await {
            Ok(contents) if contents == made.contents => {
                made.members.push(answer.member);
                made.connections.push(answer.connection.clone());
            }
            Ok(_) => {
                tracing::warn!(chunk = %round.chunk, node = %answer.member.node, "it copied something else and leaves")
            }
            Err(fault) => {
                tracing::info!(chunk = %round.chunk, node = %answer.member.node, "it lags behind and leaves: {fault}");
            }
        }
    }
}

/// Takes in the replica that is to join, and others only if there would be too few members.
async fn enlarge(shared: &Arc<Shared>, round: &Round, cause: &Cause, made: &mut Made) {
    let mut joiners = Vec::new();
    if let Cause::Join(candidate) = cause {
        joiners.push(candidate.clone());
    }
    let missing = round.min_replicas.saturating_sub(made.members.len() + joiners.len());
    if missing > 0 {
        let bytes = u64::from(round.known.chunk_bytes);
        joiners.extend(shared.with(|hub, now| {
            let domain = |member: &Member| {
                hub.nodes.get(member.node).map_or(String::new(), |node| node.domain.clone())
            };
            let present: Vec<_> = made.members.iter().map(|member| (member.node, domain(member))).collect();
            let free: Vec<_> = hub.nodes.candidates(now, &hub.reserved);
            let free: Vec<_> = free.into_iter().filter(|c| Some(c.node) != round.corrupt).collect();
            place(&mut *hub.selector, &free, &present, missing, bytes)
        }));
    }
    for candidate in joiners {
        if made.members.iter().any(|member| member.node == candidate.node) {
            continue;
        }
        let found = shared.with(|hub, _| {
            let link = hub.slaves.links.get(&candidate.node).map(|link| link.connection.clone());
            Some((hub.member(&candidate)?, link?))
        });
        let (Some((member, connection)), Some(source)) = (found, made.members.first().copied()) else {
            continue;
        };
        // A chunk that was never written is created by its installation.
        if made.contents.version.0 > 0 {
            let request = copy(round, member, source, made.contents, false);
            let call = command::<Copy>(shared, connection.clone(), request, Class::Foreground, JOIN_DEADLINE);
            match call.await {
                Ok(contents) if contents == made.contents => {}
                Ok(_) => continue,
                Err(fault) => {
                    tracing::warn!(chunk = %round.chunk, node = %member.node, "it cannot join: {fault}");
                    continue;
                }
            }
        }
        made.members.push(member);
        made.connections.push(connection);
    }
}

fn copy(round: &Round, member: Member, source: Member, expect: Contents, keep_aside: bool) -> CopyRequest {
    CopyRequest {
        chunk: round.chunk,
        chunk_bytes: round.known.chunk_bytes,
        disk: member.disk,
        source,
        expect: Some(expect),
        epoch: round.epoch,
        keep_aside,
    }
}

/// Logs the new epoch, then tells the members. Returns those that did not hear it.
async fn install(shared: &Arc<Shared>, round: &Round, made: &Made) -> Result<Vec<NodeId>, Fault> {
    let Round { chunk, epoch, .. } = *round;
    let (alive, durable) = shared.with(|hub, _| {
        let body = Body::EpochInstalled {
            chunk,
            epoch,
            members: made.members.clone(),
            contents: made.contents,
            stable: made.stable,
            used_bytes: made.used_bytes,
        };
        let (answer, durable) = hub.decide(body)?;
        answer?;
        hub.slaves.members_changed(chunk, &round.known.members, &made.members, epoch);
        Ok::<_, Fault>((hub.state.chunk(chunk)?.is_some(), durable))
    })?;
    shared.durable(durable).await?;
    if !alive {
        return Ok(Vec::new());
    }
    let calls: Vec<_> = made
        .members
        .iter()
        .zip(&made.connections)
        .map(|(member, connection)| {
            let request = InstallRequest {
                chunk,
                chunk_bytes: round.known.chunk_bytes,
                disk: member.disk,
                epoch,
                contents: made.contents,
            };
            let call = command::<Install>(
                shared,
                connection.clone(),
                request,
                Class::Foreground,
                round.seal_deadline,
            );
            (member.node, call)
        })
        .collect();
    let mut missing = Vec::new();
    for (node, call) in calls {
        if let Err(fault) = call.await {
            tracing::info!(%chunk, %node, "not installed: {fault}");
            missing.push(node);
        }
    }
    let members: Vec<_> = made.members.iter().map(|member| member.node).collect();
    tracing::info!(%chunk, %epoch, ?members, version = %made.contents.version, "epoch installed");
    Ok(missing)
}

/// A command to a slave, sent at once; await what is returned for the answer.
pub fn command<O: Operation>(
    shared: &Shared,
    connection: Connection,
    request: O::Request,
    class: Class,
    deadline: Duration,
) -> impl Future<Output = Result<O::Reply, Fault>> + use<O> {
    let header = RequestHeader { term: shared.term, class, ..Default::default() };
    let task = tokio::spawn(async move {
        connection.call::<O>(header, &request, &[], deadline).await.map(|reply| reply.body)
    });
    async move { task.await.unwrap_or_else(|error| Err(Fault::new(Code::Internal, error.to_string()))) }
}

fn quarantine_fault(chunk: ChunkId) -> Fault {
    let detail =
        format!("chunk {chunk}: its replicas contradict each other or the record; nothing was overwritten");
    Fault::new(Code::Quarantined, detail)
}

/// Epoch changes that were cut off or found too few members: tried again when it may help, some at a time.
pub async fn retry_unfinished(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let due: Vec<ChunkId> = shared.with(|hub, now| {
            let room = AT_ONCE.saturating_sub(hub.epochs.len());
            let due = hub
                .unfinished
                .iter_mut()
                .filter(|(chunk, when)| **when <= now && !hub.epochs.contains_key(chunk));
            let due = due.take(room).map(|(chunk, when)| {
                *when = now.after(TRY_AGAIN_AFTER);
                *chunk
            });
            due.collect()
        });
        for chunk in due {
            let shared = shared.clone();
            tokio::spawn(async move {
                if let Err(fault) = change(&shared, chunk, Cause::Unsettled).await {
                    tracing::debug!(%chunk, "still not usable: {fault}");
                }
            });
        }
    }
}
