//! One request to the master from its first try to its answer or its deadline: waiting for the gate, for a place in
//! the window of unanswered mutations, and between tries.

use super::master::{Gate, Link, Master, Session};
use super::retry::{Backoff, Patience};
use super::stats::Stats;
use godrive_proto::{Code, Fault};
use std::time::Duration;
use tokio::time::timeout;

/// A sequence of the session. Dropped, it counts as answered: nobody will ask for its result again.
pub struct Ticket<'a> {
    pub session: &'a Session,
    pub sequence: u64,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.session.window.lock().settle(self.sequence);
        self.session.settled.notify_waiters();
    }
}

/// The tries of one request.
pub struct Tries<'a> {
    master: &'a Master,
    pub patience: Patience,
    backoff: Backoff,
    last: Option<Fault>,
    /// A mutation was sent and not answered.
    pub outcome_unknown: bool,
}

impl<'a> Tries<'a> {
    pub fn new(master: &'a Master, patience: Patience) -> Self {
        Self { master, patience, backoff: Backoff::default(), last: None, outcome_unknown: false }
    }

    pub fn failed(&mut self, fault: Fault) {
        self.last = Some(fault);
    }

    pub fn remaining(&self) -> Result<Duration, Fault> {
        self.patience.remaining(self.master.timing.now()).ok_or_else(|| self.expired())
    }

    fn expired(&self) -> Fault {
        let master = self.master.config.master;
        match &self.last {
            Some(last) if self.outcome_unknown => Fault::new(
                Code::Timeout,
                format!("no answer of the master at {master} before the deadline: {last}"),
            ),
            Some(last) => last.clone(),
            None => Fault::new(
                Code::Unreachable,
                format!("no connection to the master at {master} before the deadline"),
            ),
        }
    }

    /// Waits until requests may be sent.
    pub async fn admitted(&self) -> Result<Link, Fault> {
        let mut watcher = self.master.link.subscribe();
        loop {
            {
                let link = watcher.borrow_and_update();
                let usable = link.gate == Gate::Open && !link.connection.is_closed();
                if usable && self.master.timing.lease_remaining().is_some() {
                    return Ok(link.clone());
                }
                if link.gate == Gate::Stopped {
                    return Err(Fault::new(Code::Unreachable, "the mount is being stopped"));
                }
            }
            self.master.renew_now.notify_one();
            let wait = self.remaining()?.min(Duration::from_secs(1));
            // Neither a change nor its absence matters: the loop looks again.
            let _ = timeout(wait, watcher.changed()).await;
        }
    }

    pub async fn ticket<'s>(&self, session: &'s Session) -> Result<Ticket<'s>, Fault> {
        loop {
            let mut settled = std::pin::pin!(session.settled.notified());
            settled.as_mut().enable();
            let allotted = session.window.lock().allot();
            if let Some(sequence) = allotted {
                self.master.note_sequence(sequence, session);
                return Ok(Ticket { session, sequence });
            }
            let _ = timeout(self.remaining()?, settled).await;
        }
    }

    pub async fn pause(&mut self, operation: &str) -> Result<(), Fault> {
        let wait = self.backoff.next(self.master.jitter());
        if self.remaining()? <= wait {
            return Err(self.expired());
        }
        tracing::debug!(operation, fault = ?self.last, ?wait, "asking the master again");
        Stats::add(&self.master.stats.retries, 1);
        self.master.endpoint.pause(wait).await;
        Ok(())
    }
}
