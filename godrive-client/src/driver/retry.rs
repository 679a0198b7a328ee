//! When to try again, how long to wait before it, and when to give up. Pure.

use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, NodeId};
use std::time::Duration;

/// What a fault of the master means for the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MasterFault {
    /// No answer, or a master that is not serving: the same request again, with the same sequence.
    Again,
    /// An answer, but one that may change by itself; a mutation needs a new sequence.
    Later,
    /// The session ended.
    SessionLost,
    /// The caller's business.
    Final,
}

pub fn master_fault(fault: &Fault, hard: bool) -> MasterFault {
    match fault.code {
        Code::Unreachable | Code::NotReady | Code::WrongTerm => MasterFault::Again,
        Code::Timeout if hard => MasterFault::Again,
        Code::Unavailable => MasterFault::Later,
        Code::SessionLost => MasterFault::SessionLost,
        _ => MasterFault::Final,
    }
}

/// What a delta or sync that failed calls for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChainFault {
    /// This member failed or fell silent.
    Failed(NodeId),
    /// The bytes did not verify there: on their way, or at rest beneath them.
    Corrupt(NodeId),
    /// The layout is old.
    Stale,
    /// The members have different versions.
    Diverged,
    /// The caller's business.
    Final,
}

/// `first` is the member that was asked.
pub fn chain_fault(fault: &Fault, first: NodeId) -> ChainFault {
    let at = fault.node.unwrap_or(first);
    match fault.code {
        Code::WrongEpoch => ChainFault::Stale,
        Code::WrongVersion => ChainFault::Diverged,
        Code::Corrupt => ChainFault::Corrupt(at),
        Code::NoSpace
        | Code::Malformed
        | Code::Forbidden
        | Code::SessionLost
        | Code::Quarantined
        | Code::NoSource => ChainFault::Final,
        _ => ChainFault::Failed(at),
    }
}

/// Waits between tries: doubling, with the jitter that the caller's generator gives.
#[derive(Debug, Default)]
pub struct Backoff {
    tries: u32,
}

impl Backoff {
    pub const FIRST: Duration = Duration::from_millis(20);
    pub const LAST: Duration = Duration::from_secs(1);

    /// `jitter` in 0..=255 takes up to half off.
    pub fn next(&mut self, jitter: u8) -> Duration {
        let whole = Self::FIRST.saturating_mul(1 << self.tries.min(10)).min(Self::LAST);
        self.tries = self.tries.saturating_add(1);
        whole - whole / 2 * u32::from(jitter) / 255
    }
}

/// How long an operation may still take.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// None: for ever.
    until: Option<Instant>,
    /// The longest that one try may take where there is no end.
    per_try: Duration,
}

impl Patience {
    pub fn new(now: Instant, deadline: Duration, hard: bool) -> Self {
        Self { until: (!hard).then(|| now.after(deadline)), per_try: deadline }
    }

    /// What remains for the next try or wait; None when the deadline has passed.
    pub fn remaining(&self, now: Instant) -> Option<Duration> {
        match self.until {
            None => Some(self.per_try),
            Some(until) if now < until => Some(until.since(now)),
            Some(_) => None,
        }
    }

    /// Time that was not the operation's.
    pub fn extend(&mut self, by: Duration) {
        self.until = self.until.map(|until| until.after(by));
    }

    pub fn is_hard(&self) -> bool {
        self.until.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn backoff_doubles_up_to_its_limit_and_jitters_downwards() {
        let mut backoff = Backoff::default();
        assert_eq!(backoff.next(0), Duration::from_millis(20));
        assert_eq!(backoff.next(0), Duration::from_millis(40));
        assert_eq!(backoff.next(255), Duration::from_millis(40));
        for _ in 0..40 {
            backoff.next(0);
        }
        assert_eq!(backoff.next(0), Backoff::LAST);
        assert_eq!(backoff.next(255), Backoff::LAST / 2);
    }

    #[test]
    fn patience_ends_unless_hard() {
        let start = Instant(5);
        let deadline = Duration::from_secs(1);
        let soft = Patience::new(start, deadline, false);
        assert_eq!(soft.remaining(start), Some(deadline));
        assert_eq!(soft.remaining(start.after(deadline)), None);
        let mut waited = soft;
        waited.extend(deadline);
        assert_eq!(waited.remaining(start.after(deadline)), Some(deadline));
        let hard = Patience::new(start, deadline, true);
        assert_eq!(hard.remaining(start.after(deadline * 100)), Some(deadline));
    }

    #[test]
    fn a_chain_fault_names_the_member_that_failed() {
        let (first, third) = (NodeId(1), NodeId(3));
        assert_eq!(chain_fault(&Fault::at(Code::MemberFailed, third, ""), first), ChainFault::Failed(third));
        assert_eq!(chain_fault(&Code::Unreachable.into(), first), ChainFault::Failed(first));
        assert_eq!(chain_fault(&Code::Timeout.into(), first), ChainFault::Failed(first));
        assert_eq!(chain_fault(&Code::NoChunk.into(), first), ChainFault::Failed(first));
        assert_eq!(chain_fault(&Fault::at(Code::Corrupt, third, ""), first), ChainFault::Corrupt(third));
        assert_eq!(chain_fault(&Code::NoSpace.into(), first), ChainFault::Final);
    }

    #[test]
    fn a_mutation_is_repeated_only_where_no_answer_came() {
        assert_eq!(master_fault(&Code::Unreachable.into(), false), MasterFault::Again);
        assert_eq!(master_fault(&Code::Timeout.into(), false), MasterFault::Final);
        assert_eq!(master_fault(&Code::Timeout.into(), true), MasterFault::Again);
        assert_eq!(master_fault(&Code::Unavailable.into(), false), MasterFault::Later);
        assert_eq!(master_fault(&Code::Exists.into(), true), MasterFault::Final);
    }
}
