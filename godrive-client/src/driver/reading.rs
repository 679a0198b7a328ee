//! Reads: from the nearest member, from the next when one is late or wrong, verified against the digest.

use super::health::Wait;
use super::latency::Size;
use super::master::Master;
use super::reports::Reports;
use super::retry::{Backoff, Patience};
use super::slaves::Slaves;
use super::stats::Stats;
use super::upcalls::BoxFuture;
use godrive_proto::data::{Layout, Member, Read, ReadRequest};
use godrive_proto::lease::Problem;
use godrive_proto::limits::{LEAF_BYTES, MAX_READ_BYTES};
use godrive_proto::proof::{self, Run, Wanted};
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, NodeId, Version, sums};
use std::future::poll_fn;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::runtime::{Handle, RuntimeFlavor};
use tokio::time::timeout;

/// More leaves take so long to verify that other tasks go on meanwhile.
const INLINE_LEAVES: u32 = 32;

/// Leaves in one request.
const PART: u32 = MAX_READ_BYTES as u32 / LEAF_BYTES;

/// A member that was asked.
type Asked<'a> = (Question, BoxFuture<'a, Result<Vec<Run>, Fault>>);

/// Who was asked, when, and how long it is waited for before another one is asked.
#[derive(Clone, Copy)]
struct Question {
    node: NodeId,
    since: Instant,
    hedge: Option<Duration>,
}

impl Question {
    fn until(&self, now: Instant, size: Size) -> Wait {
        Wait { node: self.node, size, took: now.since(self.since), patience: self.hedge }
    }
}

/// A member that did not answer well, and how.
type Failure = (NodeId, Fault);

/// Reads chunks.
pub struct Reader {
    master: Arc<Master>,
    slaves: Arc<Slaves>,
    reports: Arc<Reports>,
    /// Lets different mounts prefer different members.
    seed: u64,
}

impl Reader {
    pub fn new(master: Arc<Master>, slaves: Arc<Slaves>, reports: Arc<Reports>, seed: u64) -> Self {
        Self { master, slaves, reports, seed }
    }

    pub async fn read(&self, layout: &mut Layout, first_leaf: u32, leaves: u32) -> Result<Vec<Run>, Fault> {
        let in_chunk = sums::leaves_in(layout.chunk.chunk_bytes);
        let Some(end) = first_leaf.checked_add(leaves).filter(|end| *end <= in_chunk) else {
            let detail = format!("leaves {first_leaf}+{leaves} are not within a chunk of {in_chunk}");
            return Err(Fault::new(Code::Malformed, detail));
        };
        let patience = self.master.patience();
        'again: loop {
            let mut all = Vec::new();
            let mut at = first_leaf;
            while at < end {
                let held = layout.held;
                if held.version == Version(0) {
                    // Nothing was ever written, and there need not be a replica.
                    return Ok(vec![Run { first: first_leaf, leaves, bytes: None }]);
                }
                let count = PART.min(end - at);
                all.extend(self.part(layout, at, count, patience).await?);
                if layout.held != held && at > first_leaf {
                    // A recovery came between the parts, which must all be of one version.
                    continue 'again;
                }
                at += count;
            }
            return Ok(all);
        }
    }

    async fn part(
        &self,
        layout: &mut Layout,
        first: u32,
        count: u32,
        patience: Patience,
    ) -> Result<Vec<Run>, Fault> {
        let mut backoff = Backoff::default();
        let mut diverged = false;
        loop {
            let (leaves, failures) = self.race(layout, first, count, patience).await;
            for (node, fault) in &failures {
                tracing::warn!(chunk = %layout.chunk.id, epoch = %layout.epoch, slave = %node, %fault, "a read failed at this member");
            }
            if let Some(leaves) = leaves {
                if let Some((problem, fault)) = heals(&failures) {
                    self.reports.in_background(layout, problem, &fault.to_string());
                }
                return Ok(leaves);
            }
            let fault = failures.first().map_or_else(
                || Fault::new(Code::Unavailable, format!("chunk {} has no members", layout.chunk.id)),
                |(_, fault)| fault.clone(),
            );
            let before = (layout.epoch, layout.held);
            self.reports.report(layout, asks(&failures, diverged), &fault.to_string(), patience).await?;
            Stats::add(&self.master.stats.retries, 1);
            let unchanged = (layout.epoch, layout.held) == before;
            diverged = unchanged && fault.code == Code::WrongVersion;
            if unchanged {
                let wait = backoff.next(self.master.jitter());
                match patience.remaining(self.master.timing.now()) {
                    Some(remaining) if remaining > wait => self.master.endpoint.pause(wait).await,
                    _ => return Err(fault),
                }
            }
        }
    }

    /// Asks one member after the other, the next also when one is late, until one proves its answer.
    async fn race(
        &self,
        layout: &Layout,
        first: u32,
        count: u32,
        patience: Patience,
    ) -> (Option<Vec<Run>>, Vec<Failure>) {
        let spread = (self.seed ^ layout.chunk.id.0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32;
        let order = self.slaves.order(&layout.members, spread);
        let size = Size::of(count);
        let mut waiting = order.iter().peekable();
        let mut running: Vec<Asked<'_>> = Vec::new();
        let mut failures = Vec::new();
        loop {
            if let Some(member) = waiting.next() {
                let hedge = waiting.peek().map(|next| self.slaves.hedge(next, size));
                let question = Question { node: member.node, since: self.master.timing.now(), hedge };
                running.push((question, Box::pin(self.ask(member, layout, first, count, patience))));
            }
            let Some(hedge) = running.last().map(|(question, _)| question.hedge) else {
                return (None, failures);
            };
            let hedge = hedge.filter(|_| waiting.peek().is_some());
            let done = first_done(&mut running);
            let outcome = match hedge {
                Some(hedge) => timeout(hedge, done).await,
                None => Ok(done.await),
            };
            match outcome {
                Ok((answered, Ok(leaves))) => {
                    let now = self.master.timing.now();
                    let others = running
                        .iter()
                        .map(|(question, _)| (question.until(now, size), question.since < answered.since));
                    self.slaves.answered(answered.until(now, size), others);
                    return (Some(leaves), failures);
                }
                Ok((answered, Err(fault))) => failures.push((answered.node, fault)),
                Err(_) => self.slaves.hedged(),
            }
        }
    }

    async fn ask(
        &self,
        member: &Member,
        layout: &Layout,
        first_leaf: u32,
        leaves: u32,
        patience: Patience,
    ) -> Result<Vec<Run>, Fault> {
        let Layout { chunk, epoch, held, .. } = layout;
        let request =
            ReadRequest { chunk: chunk.id, epoch: *epoch, version: held.version, first_leaf, leaves };
        let timeouts = &self.master.config.timeouts;
        let remaining = patience.remaining(self.master.timing.now()).unwrap_or_default();
        let deadline = (timeouts.delta + transfer(leaves, timeouts.slowest_bytes_per_s)).min(remaining);
        let reply = self.slaves.call::<Read>(member, &request, &[], deadline).await?;
        let wanted = Wanted {
            chunk: chunk.id,
            chunk_bytes: chunk.chunk_bytes,
            digest: held.digest,
            first_leaf,
            leaves,
        };
        let verify = || proof::verify(&wanted, &reply.body, &reply.payload);
        let verified = if leaves > INLINE_LEAVES { beside_other_tasks(verify) } else { verify() };
        verified.map_err(|error| {
            let detail = format!("slave {} answered chunk {} wrongly: {error}", member.node, chunk.id);
            Fault::at(Code::Corrupt, member.node, detail)
        })
    }
}

/// Computes something that takes a while. A runtime with one thread, like a simulation's, has no others to go on.
fn beside_other_tasks<T>(work: impl FnOnce() -> T) -> T {
    match Handle::current().runtime_flavor() {
        RuntimeFlavor::CurrentThread => work(),
        _ => tokio::task::block_in_place(work),
    }
}

/// How long so many leaves take at this rate.
fn transfer(leaves: u32, bytes_per_s: u64) -> Duration {
    let bytes = u64::from(leaves) * u64::from(LEAF_BYTES);
    Duration::from_millis(bytes.saturating_mul(1000) / bytes_per_s.max(1))
}

/// The first of `running` that ends, taken out of it. Cancelled, it has taken nothing out.
async fn first_done<K: Copy, T>(running: &mut Vec<(K, BoxFuture<'_, T>)>) -> (K, T) {
    poll_fn(|context| {
        for at in 0..running.len() {
            let (key, future) = &mut running[at];
            if let Poll::Ready(value) = future.as_mut().poll(context) {
                let key = *key;
                drop(running.remove(at));
                return Poll::Ready((key, value));
            }
        }
        Poll::Pending
    })
    .await
}

/// What the master should heal although another member answered. A member that is merely silent is the master's own
/// business: it misses its heartbeats.
fn heals(failures: &[Failure]) -> Option<(Problem, &Fault)> {
    let rank = |problem: &Problem| match problem {
        Problem::Corrupt(_) => 0,
        Problem::Failed(_) => 1,
        Problem::Diverged => 2,
        Problem::StaleLayout => 3,
    };
    let problem = |(node, fault): &Failure| match fault.code {
        Code::Corrupt => Some(Problem::Corrupt(*node)),
        Code::NoChunk | Code::Disk => Some(Problem::Failed(*node)),
        Code::WrongVersion => Some(Problem::Diverged),
        _ => None,
    };
    let all = failures.iter().filter_map(|failure| Some((problem(failure)?, &failure.1)));
    all.min_by_key(|(problem, _)| rank(problem))
}

/// What to report when no member answered well. `diverged`: the layout was asked for already and did not change.
fn asks(failures: &[Failure], diverged: bool) -> Problem {
    let has = |code| failures.iter().find(|(_, fault)| fault.code == code);
    if let Some((node, _)) = has(Code::Corrupt) {
        return Problem::Corrupt(*node);
    }
    if has(Code::WrongVersion).is_some() && diverged {
        return Problem::Diverged;
    }
    if has(Code::WrongEpoch).or(has(Code::WrongVersion)).is_some() {
        return Problem::StaleLayout;
    }
    failures.first().map_or(Problem::StaleLayout, |(node, _)| Problem::Failed(*node))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(node: u128, code: Code) -> Failure {
        (NodeId(node), code.into())
    }

    #[test]
    fn a_wrong_replica_is_reported_before_a_silent_one() {
        let silent = failure(1, Code::Timeout);
        assert_eq!(heals(std::slice::from_ref(&silent)), None);
        let failures = [silent.clone(), failure(2, Code::WrongVersion), failure(3, Code::Corrupt)];
        assert_eq!(heals(&failures).map(|(problem, _)| problem), Some(Problem::Corrupt(NodeId(3))));
        assert_eq!(asks(&failures, false), Problem::Corrupt(NodeId(3)));
        assert_eq!(asks(&failures[..2], false), Problem::StaleLayout);
        assert_eq!(asks(&failures[..2], true), Problem::Diverged);
        assert_eq!(asks(&[silent], false), Problem::Failed(NodeId(1)));
        assert_eq!(asks(&[], false), Problem::StaleLayout);
    }
}
