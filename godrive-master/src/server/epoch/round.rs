//! One round of an epoch change: seal, elect, level, install. A round ends with the members that did not take up
//! the new epoch; the next one leaves those out that refused it. Or a commit overtook it; the next one elects with what that said.

use super::{Cause, DAMAGED_FOR, Ended, command, damage_fault, is_silence, quarantine_fault};
use crate::core::nodes::Health;
use crate::core::placement::place;
use crate::core::record::Body;
use crate::core::state::values::Chunk;
use crate::core::vote::{Known, Verdict, Voice, elect};
use crate::server::hub::Hub;
use crate::server::shared::Shared;
use godrive_proto::cluster::{Copy, CopyRequest, Install, InstallRequest, ReplicaState, Seal, SealRequest};
use godrive_proto::data::{Contents, Member};
use godrive_proto::frame::Class;
use godrive_proto::lease::Problem;
use godrive_proto::net::Connection;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, Epoch, Fault, LogIndex, NodeId};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// A member copies what it lacks within this; during a write everyone waits for it.
const COPY_DEADLINE: Duration = Duration::from_secs(1);
/// A joiner that is needed to have enough members copies the whole chunk; one without which the chunk can be used has most of it.
const JOIN_DEADLINE: Duration = Duration::from_secs(30);
const SPARE_DEADLINE: Duration = Duration::from_secs(5);
/// So many times the deadline of a seal a member is waited for if nobody has answered yet.
const PATIENCE: u32 = 5;

/// What a round begins with.
struct Round {
    chunk: ChunkId,
    /// What the members are sealed for.
    epoch: Epoch,
    known: Chunk,
    min_replicas: usize,
    replicas: usize,
    seal_deadline: Duration,
    /// A member that has no voice, because it was found corrupt. It counts as silent: where the others have less than
    /// was held, it may be the only one that has the rest.
    corrupt: Option<NodeId>,
    /// A member that answers the master, but not those that write to the chunk. It was asked like the others, and leaves if enough stay.
    unreached: Option<NodeId>,
    /// They have a voice, but did not take up the last epoch that was made, so they are in none now.
    unfit: BTreeSet<NodeId>,
    links: Vec<(Member, Option<Connection>)>,
}

/// A member's answer to the seal. None in `state`: it has no replica.
struct Answered {
    member: Member,
    connection: Connection,
    state: Option<ReplicaState>,
    /// It has a disk that cannot be asked.
    lacks_disk: bool,
}

impl Answered {
    /// The member with the disk that its replica lies on: a slave whose disk was replaced keeps its name, and a move to another
    /// disk may have been cut off.
    fn place(&self) -> Member {
        Member { disk: self.state.map_or(self.member.disk, |state| state.disk), ..self.member }
    }
}

pub async fn one_round(
    shared: &Arc<Shared>,
    chunk: ChunkId,
    cause: &Cause,
    unfit: &BTreeSet<NodeId>,
) -> Result<Ended, Fault> {
    let (round, durable) = shared.with(|hub, now| begin(hub, now, chunk, cause, unfit))?;
    shared.durable(durable).await?;
    let (answers, mut silent) = seal(shared, &round).await;
    shared.with(|hub, now| silent.iter().for_each(|node| hub.nodes.suspect(now, *node)));
    let (answers, voices) = shared.with(|hub, _| {
        let (unknown, answers): (Vec<_>, Vec<_>) =
            answers.into_iter().partition(|answer| is_unknown(hub, &round, answer));
        silent.extend(unknown.iter().map(|answer| answer.member.node));
        let voices: Vec<Voice> = answers.iter().map(|answer| voice(hub, &round, answer)).collect();
        (answers, voices)
    });
    let record = Known {
        epoch: round.known.epoch,
        held: round.known.held,
        stable: round.known.stable,
        members: round.known.members.len(),
        lost: shared.with(|hub, _| silent.iter().filter(|node| hub.nodes.is_lost(**node)).count()),
    };
    let (contents, winners, regressed, restarted) = match elect(&record, &voices) {
        Verdict::Elected { contents, winners, regressed, restarted } => {
            (contents, winners, regressed, restarted)
        }
        Verdict::Wait(why) => {
            let excluded = round.corrupt.map_or(String::new(), |node| {
                format!("; node {node} was reported as corrupt and is asked when this is tried again")
            });
            let detail = format!(
                "chunk {chunk}: {why}; {} of its members do not answer: start them, or, when they are dead and \
                 their disks are lost, `godrive decommission` them{excluded}",
                silent.len()
            );
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
    // Those who knew of what a restart of all may have taken see it by this number.
    let epoch = if restarted { round.epoch.after_restarts() } else { round.epoch };
    let mut made =
        shared.with(|hub, now| Made { contents, epoch, ..gather(hub, now, &round, &answers, &winners) });
    level(shared, &round, &answers, &winners, &mut made).await;
    enlarge(shared, &round, cause, &mut made).await;
    release(&round, cause, &mut made);
    if made.members.len() < round.min_replicas {
        let members = &round.known.members;
        if shared.with(|hub, now| hub.is_damaged(now, chunk, members, Some(DAMAGED_FOR)))? {
            tracing::error!(%chunk, "every member was found corrupt, nothing is overwritten");
            return Err(damage_fault(chunk));
        }
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
fn begin(
    hub: &mut Hub,
    now: Instant,
    chunk: ChunkId,
    cause: &Cause,
    unfit: &BTreeSet<NodeId>,
) -> Result<(Round, LogIndex), Fault> {
    let Some(known) = hub.state.chunk(chunk)? else {
        return Err(Fault::new(Code::NoChunk, format!("chunk {chunk} does not exist (any longer)")));
    };
    let damaged = hub.is_damaged(now, chunk, &known.members, Some(DAMAGED_FOR))?;
    let corrupt = match cause {
        Cause::Reported(Problem::Corrupt(node)) if known.members.len() > 1 && !damaged => {
            Some(*node).filter(|node| known.members.iter().any(|member| member.node == *node))
        }
        _ => None,
    };
    let unreached = match cause {
        Cause::Reported(Problem::Failed(node)) => {
            Some(*node).filter(|n| hub.slaves.was_spared(now, chunk, *n))
        }
        _ => None,
    };
    let link = |member: &Member| hub.slaves.links.get(&member.node).map(|link| link.connection.clone());
    let links: Vec<_> = known.members.iter().map(|member| (*member, link(member))).collect();
    let parameters = hub.parameters()?;
    let min_replicas = usize::from(parameters.min_replicas);
    let voiced = |member: &Member| Some(member.node) != corrupt && !unfit.contains(&member.node);
    let reachable: Vec<NodeId> =
        links.iter().filter(|(m, link)| link.is_some() && voiced(m)).map(|(m, _)| m.node).collect();
    let joiners = hub.nodes.candidates(now, &hub.reserved);
    let mut others: Vec<NodeId> = joiners
        .iter()
        .map(|c| c.node)
        .filter(|node| !reachable.contains(node) && !unfit.contains(node))
        .collect();
    // With the corrupt one, which is mended if nobody else can take its place.
    others.dedup();
    // A seal ends the reads of the old epoch, too: not before a new one is possible.
    if reachable.is_empty() || reachable.len() + others.len() < min_replicas {
        let detail = format!(
            "chunk {chunk} has {} reachable members and needs {min_replicas} (min_replicas): start the missing slaves",
            reachable.len()
        );
        return Err(Fault::new(Code::Unavailable, detail));
    }
    let last = known.pending.unwrap_or(known.epoch).max(known.epoch);
    let epoch = last.next();
    let (answer, durable) = hub.decide(Body::EpochPending { chunk, epoch })?;
    answer?;
    let seal_deadline = Duration::from_millis(hub.config.nodes.seal_deadline_ms.into());
    let replicas = usize::from(parameters.replicas);
    let unfit = unfit.clone();
    let round = Round {
        chunk,
        epoch,
        known,
        min_replicas,
        replicas,
        seal_deadline,
        corrupt,
        unreached,
        unfit,
        links,
    };
    Ok((round, durable))
}

/// Asks all members at once; those that do not answer are named.
async fn seal(shared: &Arc<Shared>, round: &Round) -> (Vec<Answered>, Vec<NodeId>) {
    let request = SealRequest { chunk: round.chunk, epoch: round.epoch };
    let (mut asked, mut calls) = (Vec::new(), Vec::new());
    let (mut answers, mut silent) = (Vec::new(), Vec::new());
    for (member, connection) in &round.links {
        if round.corrupt == Some(member.node) {
            continue;
        }
        match connection.clone() {
            Some(connection) => {
                let deadline = round.seal_deadline * PATIENCE;
                let call = command::<Seal>(shared, connection.clone(), request, Class::Foreground, deadline);
                asked.push((*member, connection));
                calls.push(call);
            }
            None => {
                tracing::info!(chunk = %round.chunk, node = %member.node, "not asked for a seal: it is not connected");
                silent.push(member.node);
            }
        }
    }
    for ((member, connection), answer) in asked.into_iter().zip(in_time(calls, round.seal_deadline).await) {
        match answer {
            Ok(state) => {
                answers.push(Answered { member, connection, state: Some(state), lacks_disk: false });
            }
            Err(fault) if matches!(fault.code, Code::NoChunk | Code::Disk) => {
                let lacks_disk = fault.code == Code::Disk;
                answers.push(Answered { member, connection, state: None, lacks_disk });
            }
            Err(fault) => {
                tracing::info!(chunk = %round.chunk, node = %member.node, "no answer to the seal: {fault}");
                silent.push(member.node);
            }
        }
    }
    (answers, silent)
}

/// The answers in the order of the calls. Who has not answered so long after the first that did is waited for no longer; where all are
/// slow, that is better than to begin again and again.
async fn in_time<T: Send + 'static>(
    calls: Vec<impl Future<Output = Result<T, Fault>> + Send + 'static>,
    deadline: Duration,
) -> Vec<Result<T, Fault>> {
    let mut until = tokio::time::Instant::now() + deadline * PATIENCE;
    let late = || Err(Fault::new(Code::Timeout, "it did not answer in time"));
    let mut answers: Vec<_> = calls.iter().map(|_| late()).collect();
    let mut tasks = JoinSet::new();
    for (at, call) in calls.into_iter().enumerate() {
        tasks.spawn(async move { (at, call.await) });
    }
    let mut somebody = false;
    while let Ok(Some(ended)) = tokio::time::timeout_at(until, tasks.join_next()).await {
        let Ok((at, answer)) = ended else { continue };
        let silent = answer.as_ref().is_err_and(|fault: &Fault| is_silence(fault.code));
        if !silent && !somebody {
            somebody = true;
            until = until.min(tokio::time::Instant::now() + deadline);
        }
        if let Some(place) = answers.get_mut(at) {
            *place = answer;
        }
    }
    answers
}

/// Its replica lies on a disk that failed, and may be had again: that is no word about what was acknowledged.
fn is_unknown(hub: &Hub, round: &Round, answer: &Answered) -> bool {
    let Member { node, disk, .. } = answer.member;
    let failed = answer.lacks_disk || hub.nodes.has_failed(node, disk);
    answer.state.is_none() && round.known.held.version.0 > 0 && failed
}

/// A chunk that was never written needs no replica: its absence is its contents. What was a member on another disk than the
/// record's speaks as long as that one is in service: the move from one to the other was cut off, and the slave, which looks
/// everywhere, found nothing newer. On a disk that is gone more may have been acknowledged than anybody knows. Of a chunk of which
/// nothing was ever stable a loss of power may leave no replica, which is the state before its first write.
fn voice(hub: &Hub, round: &Round, answer: &Answered) -> Voice {
    let known = &round.known;
    let Member { node, disk, .. } = answer.member;
    let looked_at = !answer.lacks_disk && hub.nodes.is_in_service(node, disk);
    let logged = hub.state.node(node);
    let rebooted = logged.is_ok_and(|node| node.is_some_and(|node| node.booted_at > known.held_at));
    match &answer.state {
        Some(state) if state.disk == disk || (looked_at && state.epoch.0 > 0) => {
            Voice { epoch: state.epoch, contents: state.contents, rebooted }
        }
        _ if known.held.version.0 == 0 => {
            Voice { epoch: Epoch(0), contents: known.held, rebooted: rebooted || !looked_at }
        }
        None if looked_at && rebooted && known.stable.version.0 == 0 => {
            Voice { epoch: known.epoch, contents: known.stable, rebooted }
        }
        _ => Voice { epoch: Epoch(0), contents: Contents::default(), rebooted: true },
    }
}

/// The epoch in the making.
#[derive(Default)]
struct Made {
    epoch: Epoch,
    contents: Contents,
    members: Vec<Member>,
    connections: Vec<Connection>,
    stable: bool,
    used_bytes: u32,
}

/// Those that were elected. Of a chunk that was never written a member needs no replica, but a disk for one.
fn gather(hub: &Hub, now: Instant, round: &Round, answers: &[Answered], winners: &[usize]) -> Made {
    let mut made = Made { stable: true, ..Made::default() };
    let has_a_place = |answer: &&Answered| {
        let Member { node, disk, .. } = answer.member;
        let disk_is_there = hub.nodes.replica_health(now, node, disk) != Health::Dead;
        !round.unfit.contains(&node) && (answer.state.is_some() || disk_is_there)
    };
    let mut chosen: Vec<_> = winners.iter().filter_map(|at| answers.get(*at)).filter(has_a_place).collect();
    // Others copy from the first.
    chosen.sort_by_key(|answer| Some(answer.member.node) == round.unreached);
    for answer in chosen {
        made.members.push(answer.place());
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
    let lags = |(at, answer): &(usize, &Answered)| {
        !winners.contains(at) && !round.unfit.contains(&answer.member.node)
    };
    let mut lagging: Vec<&Answered> =
        answers.iter().enumerate().filter(lags).map(|(_, answer)| answer).collect();
    // First without the room that disks keep in reserve, then, for as few as are needed, with it.
    for into_reserve in [false, true] {
        let needed =
            if into_reserve { round.min_replicas.saturating_sub(made.members.len()) } else { usize::MAX };
        lagging.truncate(needed);
        let mut copies = Vec::new();
        for answer in std::mem::take(&mut lagging) {
            let theirs = answer.state.map_or(Contents::default(), |state| state.contents);
            // What diverged may be the truth after all: people can still find it.
            let keep_aside = theirs.version >= made.contents.version && theirs != made.contents;
            let request = copy(round, answer.place(), source, made.contents, keep_aside);
            let request = CopyRequest { into_reserve, ..request };
            let connection = answer.connection.clone();
            copies.push((
                answer,
                command::<Copy>(shared, connection, request, Class::Foreground, COPY_DEADLINE),
            ));
        }
        for (answer, call) in copies {
            let node = answer.member.node;
            match call.await {
                Ok(contents) if contents == made.contents => {
                    made.members.push(answer.place());
                    made.connections.push(answer.connection.clone());
                }
                Ok(_) => tracing::warn!(chunk = %round.chunk, %node, "it copied something else and leaves"),
                Err(fault) => {
                    tracing::info!(chunk = %round.chunk, %node, "it lags behind and leaves: {fault}");
                    if fault.code == Code::NoSpace {
                        lagging.push(answer);
                    }
                }
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
    let staying = made.members.iter().filter(|member| Some(member.node) != round.unreached).count();
    let missing = round.min_replicas.saturating_sub(staying + joiners.len());
    if missing > 0 {
        let bytes = u64::from(round.known.chunk_bytes);
        joiners.extend(shared.with(|hub, now| {
            let domain = |member: &Member| {
                hub.nodes.get(member.node).map_or(String::new(), |node| node.domain.clone())
            };
            let present: Vec<_> = made.members.iter().map(|member| (member.node, domain(member))).collect();
            let free: Vec<_> = hub.nodes.candidates(now, &hub.reserved);
            let (mut ill, mut fit) = (Vec::new(), Vec::new());
            for candidate in free.into_iter().filter(|c| !round.unfit.contains(&c.node)) {
                if Some(candidate.node) == round.corrupt { ill.push(candidate) } else { fit.push(candidate) }
            }
            let mut placed = place(&mut *hub.selector, &fit, &present, missing, bytes);
            // A corrupt replica is mended where it lies: what does not verify there is copied, and nothing else.
            ill.retain(|c| round.known.members.iter().any(|m| (m.node, m.disk) == (c.node, c.disk)));
            placed.extend(ill.into_iter().take(missing.saturating_sub(placed.len())));
            placed
        }));
    }
    for candidate in joiners {
        // A member moves to another disk of its node.
        let moves = made.members.iter().position(|member| member.node == candidate.node);
        if moves.is_some_and(|at| made.members[at].disk == candidate.disk) {
            continue;
        }
        let found = shared.with(|hub, _| {
            let link = hub.slaves.links.get(&candidate.node).map(|link| link.connection.clone());
            Some((hub.member(&candidate)?, link?))
        });
        // From another member, if there is one.
        let mut sources = made.members.iter();
        let source = sources.clone().find(|member| member.node != candidate.node).or(sources.next()).copied();
        let Some((member, connection)) = found else { continue };
        // A chunk that was never written is created by its installation.
        if made.contents.version.0 > 0 {
            let Some(source) = source else { continue };
            let request = copy(round, member, source, made.contents, false);
            let spare = made.members.len() >= round.min_replicas;
            let deadline = if spare { SPARE_DEADLINE } else { JOIN_DEADLINE };
            let call = command::<Copy>(shared, connection.clone(), request, Class::Foreground, deadline);
            let copied = call.await;
            let noted = shared.with(|hub, now| match &copied {
                // This round may come to nothing.
                Ok(_) => hub.was_copied(round.chunk, member),
                Err(fault) => {
                    if fault.code == Code::Corrupt && fault.node == Some(source.node) {
                        hub.slaves.reported_corrupt(now, round.chunk, source.node);
                    }
                    hub.may_have_copied(round.chunk, source, member, fault)
                }
            });
            if let Err(fault) = noted {
                tracing::error!(chunk = %round.chunk, "what a copy left is not noted: {fault}");
            }
            match copied {
                Ok(contents) if contents == made.contents => {
                    shared.with(|hub, _| hub.slaves.mended(round.chunk, member.node));
                }
                Ok(_) => continue,
                Err(fault) => {
                    tracing::warn!(chunk = %round.chunk, node = %member.node, "it cannot join: {fault}");
                    continue;
                }
            }
        }
        match moves {
            Some(at) => made.members[at] = member,
            None => {
                made.members.push(member);
                made.connections.push(connection);
            }
        }
    }
}

/// Lets the member go that is to leave. It was asked like the others, so that what only it has is not lost.
fn release(round: &Round, cause: &Cause, made: &mut Made) {
    let (node, enough) = match (cause, round.unreached) {
        (Cause::Leave(node), _) => (*node, round.replicas),
        (_, Some(node)) => (node, round.min_replicas),
        _ => return,
    };
    if made.members.len() > enough
        && let Some(at) = made.members.iter().position(|member| member.node == node)
    {
        made.members.remove(at);
        made.connections.remove(at);
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
        into_reserve: false,
    }
}

/// Logs the new epoch, then tells the members.
async fn install(shared: &Arc<Shared>, round: &Round, made: &Made) -> Result<Ended, Fault> {
    let (chunk, epoch) = (round.chunk, made.epoch);
    let installed = shared.with(|hub, _| {
        // The election knew the record as it was at the beginning.
        let overtaken = |known: Chunk| {
            known.held != round.known.held
                && known.held != made.contents
                && known.held.version >= made.contents.version
        };
        if hub.state.chunk(chunk)?.is_some_and(overtaken) {
            return Ok(None);
        }
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
        Ok::<_, Fault>(Some((hub.state.chunk(chunk)?.is_some(), durable)))
    })?;
    let Some((alive, durable)) = installed else { return Ok(Ended::Overtaken) };
    shared.durable(durable).await?;
    if !alive {
        return Ok(Ended::Installed { missing: Vec::new() });
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
            command::<Install>(
                shared,
                connection.clone(),
                request,
                Class::Foreground,
                round.seal_deadline * PATIENCE,
            )
        })
        .collect();
    let mut missing = Vec::new();
    for (member, answer) in made.members.iter().zip(in_time(calls, round.seal_deadline).await) {
        if let Err(fault) = answer {
            tracing::info!(%chunk, node = %member.node, "not installed: {fault}");
            missing.push((member.node, fault.code));
        }
    }
    let members: Vec<_> = made.members.iter().map(|member| member.node).collect();
    tracing::info!(%chunk, %epoch, ?members, version = %made.contents.version, "epoch installed");
    Ok(Ended::Installed { missing })
}
