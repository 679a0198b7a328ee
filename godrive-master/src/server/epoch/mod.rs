//! Epoch changes: who the members of a chunk are and what they hold, when that is in question.
//!
//! A member failed, a writer was revoked, a replica joins, replicas disagree: always the same procedure, run by one
//! task per chunk. Log that the epoch is pending; seal the members, which stop working for the old epoch and say
//! what they have; elect; bring laggards and joiners level; log the new epoch; install it. Whoever needs
//! the chunk meanwhile waits for the end of the same task. Members that are awaited after a restart or standstill of the master are
//! waited for before it begins, or each chunk in use would lose them and be copied to them again.

mod round;

use super::hub::Hub;
use super::requests::Context;
use super::shared::Shared;
use crate::core::nodes::Health;
use crate::core::placement::Candidate;
use godrive_proto::data::Layout;
use godrive_proto::frame::{Class, RequestHeader};
use godrive_proto::lease::{Problem, ReportRequest};
use godrive_proto::net::Connection;
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, Fault, NodeId, Operation, Role, SessionId};
use std::collections::{BTreeMap, BTreeSet};
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
    /// A replica was copied to this disk and becomes a member, perhaps in place of the one on another disk of its node.
    Join(Candidate),
    /// This member leaves, if as many as there should be are left without it.
    Leave(NodeId),
}

/// A change that failed is tried again after this, or when a slave comes back; so many at one time.
const TRY_AGAIN_AFTER: Duration = Duration::from_secs(5);
const AT_ONCE: usize = 64;
/// The longest that an epoch change waits for members that have not come back since the master started or stood still: well below the
/// deadline of a mount, which may need the chunk.
const AWAIT_MEMBERS: Duration = Duration::from_secs(5);
const LOOK_FOR_MEMBERS_EVERY: Duration = Duration::from_millis(50);
/// A member that was reported as corrupt this long ago is looked at anew.
const DAMAGED_FOR: Duration = Duration::from_secs(600);
/// Members that fail while they are installed cost another round, and so does a commit during the election.
const ROUNDS: usize = 3;

/// Answers when the chunk is usable again, with its layout.
pub async fn report(context: &Context, request: ReportRequest) -> Result<Layout, Fault> {
    let chunk = request.chunk;
    let from_client = context.peer.role == Role::Client;
    if from_client {
        context.session()?;
    }
    let needed = context.shared.with(|hub, now| {
        let Some(known) = hub.state.chunk(chunk)? else {
            return Err(Fault::new(Code::NoChunk, format!("chunk {chunk} does not exist (any longer)")));
        };
        let outdated = request.epoch < known.epoch;
        let only_asks = matches!(request.problem, Problem::StaleLayout);
        let unfinished = known.pending.is_some() || known.unsettled || hub.epochs.contains_key(&chunk);
        let needed = unfinished || !(outdated || only_asks);
        if let Problem::Corrupt(node) = request.problem
            && needed
            && !outdated
            && known.members.iter().any(|member| member.node == node)
        {
            hub.slaves.reported_corrupt(now, chunk, node);
        }
        Ok(needed)
    })?;
    if needed {
        tracing::info!(%chunk, epoch = %request.epoch, problem = ?request.problem, peer = %context.peer.node,
            detail = request.detail, "reported");
        for _ in 0..ROUNDS {
            if matches!(request.problem, Problem::Corrupt(_)) {
                context.shared.with(|hub, now| refuse_damaged(hub, now, chunk))?;
            }
            let (own, result) = begin_or_join(&context.shared, chunk, Cause::Reported(request.problem)).await;
            result?;
            // A change that was under way for another reason knew nothing of a corrupt member, and may have kept it.
            if own || !matches!(request.problem, Problem::Corrupt(_)) {
                break;
            }
        }
    }
    let layout = context.shared.with(|hub, now| {
        let quarantined = hub.state.chunk(chunk)?.is_some_and(|known| known.quarantined);
        if quarantined {
            return Err(quarantine_fault(chunk));
        }
        let mut layout = hub.state.chunk_layout(chunk)?;
        hub.localize(now, &mut layout);
        Ok((layout, hub.must_be_durable(SessionId(0))))
    });
    let (layout, durable) = layout?;
    context.shared.durable(durable).await?;
    Ok(layout)
}

/// Runs an epoch change of the chunk, or joins the one that runs, and waits for its end.
pub async fn change(shared: &Arc<Shared>, chunk: ChunkId, cause: Cause) -> Result<(), Fault> {
    begin_or_join(shared, chunk, cause).await.1
}

/// The same, and whether it was run for this cause.
async fn begin_or_join(shared: &Arc<Shared>, chunk: ChunkId, cause: Cause) -> (bool, Result<(), Fault>) {
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
    let cut_off = || Fault::new(Code::Internal, format!("the epoch change of chunk {chunk} was cut off"));
    (begin, end.await.unwrap_or_else(|_| Err(cut_off())))
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
        // Whoever wants an epoch change gets it, though nothing in the record asks for it.
        let still_wanted = result.is_err() && known.is_some() && hub.unfinished.contains_key(&chunk);
        if (still_open || still_wanted) && !given_up {
            // Reports that fail must not put off the change that may succeed.
            let when = now.after(TRY_AGAIN_AFTER);
            hub.unfinished.entry(chunk).and_modify(|planned| *planned = when.min(*planned)).or_insert(when);
        } else {
            hub.unfinished.remove(&chunk);
        }
        if let Some(known) = known {
            hub.unfence(now, known.ino);
        }
        hub.slaves.reclaim = true;
    });
}

/// How a round ended.
enum Ended {
    /// These members did not take up the new epoch, and why.
    Installed { missing: Vec<(NodeId, Code)> },
    /// While the members were being asked, more became held than they were elected to have.
    Overtaken,
}

/// Rounds until one ends with all members installed.
async fn run(shared: &Arc<Shared>, chunk: ChunkId, cause: &Cause) -> Result<(), Fault> {
    let until = shared.clock.now().after(AWAIT_MEMBERS);
    while shared.with(|hub, now| Ok::<_, Fault>(now < until && awaits_members(hub, now, chunk)?))? {
        tokio::time::sleep(LOOK_FOR_MEMBERS_EVERY).await;
    }
    let mut unfit = BTreeSet::new();
    for round in 1..=ROUNDS {
        let Ended::Installed { missing } = round::one_round(shared, chunk, cause, &unfit).await? else {
            tracing::info!(%chunk, round, "a commit came during the election: it is held again");
            continue;
        };
        if missing.is_empty() {
            shared.with(|hub, now| spare_or_avoid(hub, now, chunk, cause));
            return Ok(());
        }
        tracing::warn!(%chunk, round, ?missing, "members did not take up the new epoch");
        let (silent, refusing): (Vec<_>, Vec<_>) =
            missing.into_iter().partition(|(_, code)| is_silence(*code));
        shared.with(|hub, now| silent.iter().for_each(|(node, _)| hub.nodes.suspect(now, *node)));
        unfit.extend(refusing.into_iter().map(|(node, _)| node));
    }
    Err(Fault::new(
        Code::Unavailable,
        format!("chunk {chunk}: its members fail faster than its epochs change"),
    ))
}

/// The master reaches a member that was reported as failed, so it stays at first. Where that does not help, others do not reach it.
fn spare_or_avoid(hub: &mut Hub, now: Instant, chunk: ChunkId, cause: &Cause) {
    let Cause::Reported(Problem::Failed(node)) = cause else { return };
    let Ok(Some(known)) = hub.state.chunk(chunk) else { return };
    if known.members.iter().any(|member| member.node == *node) {
        hub.slaves.spare(now, chunk, *node);
    } else if hub.slaves.was_spared(now, chunk, *node) {
        tracing::warn!(%chunk, %node, "it answers the master, but not others: it leaves the chunk, and nothing new goes there for a minute");
        hub.nodes.unreached(now, *node);
    }
}

fn is_silence(code: Code) -> bool {
    matches!(code, Code::Timeout | Code::Unreachable)
}

fn awaits_members(hub: &Hub, now: Instant, chunk: ChunkId) -> Result<bool, Fault> {
    let members = hub.state.chunk(chunk)?.map_or(Vec::new(), |known| known.members);
    Ok(members.iter().any(|member| hub.nodes.health(now, member.node) == Health::Awaited))
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

/// Another election would have the same outcome. One that is under way, or has sealed the members, is ended first.
fn refuse_damaged(hub: &Hub, now: Instant, chunk: ChunkId) -> Result<(), Fault> {
    let Some(known) = hub.state.chunk(chunk)? else { return Ok(()) };
    let unfinished = known.pending.is_some() || known.unsettled || hub.epochs.contains_key(&chunk);
    if !unfinished && hub.is_damaged(now, chunk, &known.members, Some(DAMAGED_FOR))? {
        return Err(damage_fault(chunk));
    }
    Ok(())
}

fn damage_fault(chunk: ChunkId) -> Fault {
    let detail =
        format!("chunk {chunk}: every member has blocks that do not verify; what they have is kept as it is");
    Fault::new(Code::Quarantined, detail)
}

fn quarantine_fault(chunk: ChunkId) -> Fault {
    let detail =
        format!("chunk {chunk}: its replicas contradict each other or the record; nothing was overwritten");
    Fault::new(Code::Quarantined, detail)
}

/// Those that have waited longest: where many cannot be changed for a long time, the others have their turn all the same.
fn first_due(
    unfinished: &BTreeMap<ChunkId, Instant>,
    now: Instant,
    room: usize,
    is_under_way: impl Fn(ChunkId) -> bool,
) -> Vec<ChunkId> {
    let due = unfinished.iter().filter(|(chunk, when)| **when <= now && !is_under_way(**chunk));
    let mut due: Vec<(Instant, ChunkId)> = due.map(|(chunk, when)| (*when, *chunk)).collect();
    if due.len() > room {
        due.select_nth_unstable(room);
        due.truncate(room);
    }
    due.into_iter().map(|(_, chunk)| chunk).collect()
}

/// Epoch changes that were cut off or found too few members: tried again when it may help, some at a time.
pub async fn retry_unfinished(shared: Arc<Shared>) {
    loop {
        tokio::time::sleep(Duration::from_millis(250)).await;
        let due: Vec<ChunkId> = shared.with(|hub, now| {
            hub.close_unclosed();
            let room = AT_ONCE.saturating_sub(hub.epochs.len());
            let due = first_due(&hub.unfinished, now, room, |chunk| hub.epochs.contains_key(&chunk));
            hub.unfinished.extend(due.iter().map(|chunk| (*chunk, now.after(TRY_AGAIN_AFTER))));
            due
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_that_fail_again_and_again_leave_the_others_their_turn() {
        let second = |s| Instant::default().after(Duration::from_secs(s));
        let mut unfinished: BTreeMap<_, _> = (0..10).map(|chunk| (ChunkId(chunk), second(0))).collect();
        let mut tried = BTreeSet::new();
        for round in 1..6 {
            let now = second(round);
            let due = first_due(&unfinished, now, 2, |chunk| chunk == ChunkId(0));
            assert_eq!(due.len(), 2);
            unfinished.extend(due.iter().map(|chunk| (*chunk, now)));
            tried.extend(due);
        }
        assert_eq!(tried, (1..10).map(ChunkId).collect());
        assert_eq!(first_due(&unfinished, second(9), 0, |_| false), []);
        unfinished.values_mut().for_each(|when| *when = second(20));
        assert_eq!(first_due(&unfinished, second(19), 9, |_| false), []);
    }
}
