//! Keeps the session alive: renews it, reconnects, resumes after the master's restart, opens a new one when it is lost,
//! and serves the master's recalls.
//!
//! One task renews and reconnects and never waits for the file system. What the file system must do first (drop
//! caches, declare leases) runs in a task of its own while renewals go on; the [`Gate`] holds requests back until it
//! is done. The lease time is not extended meanwhile, so that nothing is served from caches that ought to be gone.

use super::master::{Gate, Link, Master, Session};
use super::opening::{connect, open_session};
use super::retry::Backoff;
use super::stats::Stats;
use super::upcalls::{Declared, Upcalls};
use godrive_proto::frame::ReplyHeader;
use godrive_proto::lease::{Ask, Ended, Recall, Renew, Resume, ResumeRequest};
use godrive_proto::limits::MAX_LOCKS_TOLD;
use godrive_proto::locks::{DeclareLocks, OwnerLocks};
use godrive_proto::meta::Accessed;
use godrive_proto::net::{Connection, Incoming};
use godrive_proto::{Code, Fault, Ino, LeaseId, Operation};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::time::{Instant, sleep_until};

/// Inodes in one page of a resume.
const PAGE: usize = 4096;
/// Renewals that were asked for come no faster than this.
const RENEW_AT_MOST_EVERY: Duration = Duration::from_millis(50);

#[derive(Clone)]
pub struct Keeper {
    master: Arc<Master>,
    up: Arc<dyn Upcalls>,
    /// One upcall about the session as a whole at a time, in order.
    turn: Arc<tokio::sync::Mutex<()>>,
}

/// Runs until the driver is stopped.
pub async fn run(master: Arc<Master>, up: Arc<dyn Upcalls>) {
    let keeper = Keeper { master, up, turn: Arc::default() };
    let mut stopped = keeper.master.link.subscribe();
    tokio::select! {
            biased;
        _ = stopped.wait_for(|link| link.gate == Gate::Stopped) => {}
        () = keeper.keep() => {}
    }
}

impl Keeper {
    async fn keep(&self) {
        let mut backoff = Backoff::default();
        let mut last_renewal = Instant::now();
        tokio::spawn(self.clone().accept(self.link().connection));
        loop {
            let link = self.link();
            let outcome = if link.connection.is_closed() {
                self.reconnect().await
            } else if link.gate == Gate::Lost {
                self.reopen(&link).await
            } else {
                if link.gate != Gate::Unconfirmed {
                    self.wait(&link, last_renewal).await;
                }
                last_renewal = Instant::now();
                match self.link() {
                    link if link.connection.is_closed() || link.gate == Gate::Lost => continue,
                    link => self.renew(&link).await,
                }
            };
            match outcome {
                Ok(()) => backoff = Backoff::default(),
                Err(fault) => {
                    let wait = backoff.next(self.master.jitter());
                    tracing::warn!(%fault, master = %self.master.config.master, ?wait, "the session waits for the master");
                    self.master.endpoint.pause(wait).await;
                }
            }
        }
    }

    fn link(&self) -> Link {
        self.master.link.borrow().clone()
    }

    /// Until the next renewal is due or asked for, or the connection ends.
    async fn wait(&self, link: &Link, last_renewal: Instant) {
        tokio::select! {
            biased;
            () = sleep_until(last_renewal + link.session.renew_every()) => {}
            _ = link.connection.closed() => {}
            () = async {
                self.master.renew_now.notified().await;
                sleep_until(last_renewal + RENEW_AT_MOST_EVERY).await;
            } => {}
        }
    }

    async fn reconnect(&self) -> Result<(), Fault> {
        let connection = connect(&self.master.endpoint, &self.master.config).await?;
        tracing::info!(master = %self.master.config.master, "connected to the master again");
        tokio::spawn(self.clone().accept(connection.clone()));
        self.master.link.send_modify(|link| {
            link.connection = connection;
            link.generation += 1;
            if matches!(link.gate, Gate::Open | Gate::Resuming) {
                link.gate = Gate::Unconfirmed;
            }
        });
        Ok(())
    }

    async fn renew(&self, link: &Link) -> Result<(), Fault> {
        let header = self.master.header(&link.session, 0);
        let request = self.up.renewal();
        let sent = self.master.timing.now();
        let timeout = self.master.config.timeouts.renewal;
        Stats::add(&self.master.stats.renewals, 1);
        let reply = match self.master.send::<Renew>(&link.connection, header, &request, timeout).await {
            Ok(reply) => reply,
            Err(fault) => {
                match fault.code {
                    Code::SessionLost => {
                        self.master.lose_session(link.session.id);
                        return Ok(());
                    }
                    Code::Timeout | Code::Unreachable => link.connection.close("a renewal was not answered"),
                    _ => {}
                }
                return Err(fault);
            }
        };
        self.master.timing.set_wall(reply.body.now, sent);
        let resumed = self.master.resumed_term.load(Ordering::SeqCst);
        if reply.body.must_resume || reply.header.term.0 > resumed {
            self.begin_resume(link);
        } else {
            self.confirm(link, sent);
            tokio::spawn(self.clone().tell_accesses(link.clone()));
        }
        Ok(())
    }

    /// They go with the renewals, and count as such.
    async fn tell_accesses(self, link: Link) {
        loop {
            let times = self.up.accesses();
            if times.is_empty() {
                return;
            }
            let header = self.master.header(&link.session, 0);
            let timeout = self.master.config.timeouts.renewal;
            Stats::add(&self.master.stats.renewals, 1);
            if let Err(fault) = self.master.send::<Accessed>(&link.connection, header, &times, timeout).await
            {
                tracing::debug!(%fault, inodes = times.len(), "access times are not told yet");
                return self.up.accesses_not_told(times);
            }
        }
    }

    /// An answered renewal extends the lease time and lets requests pass, unless something else must be done first.
    fn confirm(&self, renewed: &Link, sent: godrive_proto::time::Instant) {
        self.master.link.send_if_modified(|link| {
            let same = link.session.id == renewed.session.id;
            let opens = same && matches!(link.gate, Gate::Unconfirmed | Gate::Open);
            if opens {
                self.master.timing.renewed(sent, link.session.holder_stops_after());
                link.gate = Gate::Open;
            }
            opens
        });
    }

    fn begin_resume(&self, renewed: &Link) {
        let begun = self.master.link.send_if_modified(|link| {
            let due =
                link.generation == renewed.generation && matches!(link.gate, Gate::Unconfirmed | Gate::Open);
            if due {
                link.gate = Gate::Resuming;
            }
            due
        });
        if begun {
            tracing::warn!("the master has restarted; declaring this mount's leases again");
            tokio::spawn(self.clone().resume(renewed.clone()));
        }
    }

    async fn resume(self, begun: Link) {
        let _turn = self.turn.lock().await;
        let current = |link: &Link| link.gate == Gate::Resuming && link.generation == begun.generation;
        if !current(&self.master.link.borrow()) {
            return;
        }
        let outcome = match self.tell_end(&begun).await {
            Ok(()) => {
                let declared = self.up.clone().resume().await;
                self.declare(&begun, declared).await
            }
            Err(fault) => Err(fault),
        };
        let sent = match outcome {
            Ok(sent) => Some(sent),
            Err(fault) if fault.code == Code::SessionLost => {
                return self.master.lose_session(begun.session.id);
            }
            Err(fault) => {
                tracing::warn!(%fault, "the session could not be resumed; trying again");
                self.master.endpoint.pause(Backoff::FIRST * 10).await;
                None
            }
        };
        self.master.link.send_if_modified(|link| {
            let current = current(link);
            if current {
                match sent {
                    Some(sent) => {
                        self.master.timing.renewed(sent, link.session.holder_stops_after());
                        link.gate = Gate::Open;
                    }
                    // The next renewal says again that the session must resume.
                    None => link.gate = Gate::Unconfirmed,
                }
            }
            current
        });
        self.master.renew_now.notify_one();
    }

    /// Asks how much of the ended term's log is left, and tells the file system.
    async fn tell_end(&self, link: &Link) -> Result<(), Fault> {
        let Some((term, seen)) = self.master.ended() else { return Ok(()) };
        let header = self.master.header(&link.session, 0);
        let timeout = self.master.config.timeouts.renewal;
        let reply = self.master.send::<Ended>(&link.connection, header, &term, timeout).await?;
        self.up.clone().log_ended(reply.body.unwrap_or_default().max(seen)).await;
        self.master.told_end();
        Ok(())
    }

    /// Sends the pages, and tells the file system what was lost. Returns when the last page was sent.
    async fn declare(&self, begun: &Link, declared: Declared) -> Result<godrive_proto::time::Instant, Fault> {
        let Declared { exclusive, open, locks } = declared;
        self.declare_locks(begun, locks).await?;
        let mut lost = Vec::new();
        let pages = resume_pages(exclusive, open);
        let mut sent = self.master.timing.now();
        let mut term = self.master.term();
        for page in pages {
            let header = self.master.header(&begun.session, 0);
            sent = self.master.timing.now();
            let timeout = self.master.config.timeouts.renewal;
            let reply = self.master.send::<Resume>(&begun.connection, header, &page, timeout).await?;
            term = term.max(reply.header.term);
            lost.extend(reply.body.lost);
        }
        if !lost.is_empty() {
            tracing::warn!(count = lost.len(), "exclusive leases were lost in the master's restart");
            self.up.clone().lost_leases(lost).await;
        }
        self.master.resumed_term.fetch_max(term.0, Ordering::SeqCst);
        Ok(sent)
    }

    /// Before the session resumes: until then nobody gets new ones.
    async fn declare_locks(&self, begun: &Link, locks: Vec<OwnerLocks>) -> Result<(), Fault> {
        let mut lost = Vec::new();
        let mut left = locks.as_slice();
        while !left.is_empty() {
            let page = locks_page(left);
            left = &left[page.len()..];
            let header = self.master.header(&begun.session, 0);
            let timeout = self.master.config.timeouts.renewal;
            let reply = self.master.send::<DeclareLocks>(&begun.connection, header, &page, timeout).await?;
            lost.extend(reply.body);
        }
        if !lost.is_empty() {
            tracing::warn!(count = lost.len(), "locks were lost in the master's restart");
            self.up.clone().lost_locks(lost).await;
        }
        Ok(())
    }

    async fn reopen(&self, lost: &Link) -> Result<(), Fault> {
        let master = &self.master;
        let header =
            master.header(&Session::new(Default::default(), lost.session.timing, lost.session.parameters), 0);
        let (session, header) = open_session(
            &lost.connection,
            header,
            &master.config,
            &master.timing,
            &master.stats,
            |_, _, _| {},
        )
        .await?;
        master.notice(&header)?;
        let id = session.id;
        master.note_session(id);
        master.link.send_modify(|link| {
            link.session = session;
            link.gate = Gate::Dropping;
        });
        let (keeper, link) = (self.clone(), self.link());
        tokio::spawn(async move {
            let _turn = keeper.turn.lock().await;
            match keeper.tell_end(&link).await {
                Ok(()) => _ = keeper.master.resumed_term.fetch_max(header.term.0, Ordering::SeqCst),
                // The next renewal finds that the term was not resumed.
                Err(fault) => tracing::warn!(%fault, "how the last term ended is not known yet"),
            }
            keeper.up.clone().session_lost().await;
            keeper.master.link.send_if_modified(|link| {
                let current = link.session.id == id && link.gate == Gate::Dropping;
                if current {
                    link.gate = Gate::Unconfirmed;
                }
                current
            });
            keeper.master.renew_now.notify_one();
        });
        Ok(())
    }

    /// Serves the master's requests on one connection until it ends.
    async fn accept(self, connection: Connection) {
        while let Some(incoming) = connection.accept().await {
            tokio::spawn(self.clone().serve(incoming));
        }
        self.master.renew_now.notify_one();
    }

    async fn serve(self, incoming: Incoming) {
        let (term, code, seen) = (incoming.header.term, incoming.header.code, self.master.term());
        let answered = match code {
            _ if term < seen && term.0 != 0 => {
                let detail = format!("the request is of term {term}, but term {seen} has begun");
                refuse(incoming, Fault::new(Code::WrongTerm, detail)).await
            }
            Recall::CODE => match incoming.decode::<Recall>() {
                Ok(recall) => {
                    let release = self.up.clone().recall(recall).await;
                    incoming.reply::<Recall>(ReplyHeader::default(), &release, &[]).await
                }
                Err(fault) => refuse(incoming, fault).await,
            },
            Ask::CODE => match incoming.decode::<Ask>() {
                Ok(ino) => {
                    let attr = self.up.attributes(ino);
                    incoming.reply::<Ask>(ReplyHeader::default(), &attr, &[]).await
                }
                Err(fault) => refuse(incoming, fault).await,
            },
            _ => {
                let detail = format!("clients do not serve requests of code {code:#06x}");
                refuse(incoming, Fault::new(Code::Malformed, detail)).await
            }
        };
        if let Err(fault) = answered {
            tracing::warn!(%fault, code, "the answer to the master was lost; it will ask again");
        }
    }
}

async fn refuse(incoming: Incoming, fault: Fault) -> Result<(), Fault> {
    tracing::warn!(%fault, "refused a request of the master");
    incoming.fail(ReplyHeader::default(), fault).await
}

/// As many owners as one request may have, and at least one.
pub fn locks_page(owners: &[OwnerLocks]) -> Vec<OwnerLocks> {
    let mut locks = 0;
    let fits = |owner: &&OwnerLocks| {
        locks += owner.locks.len().max(1);
        locks <= MAX_LOCKS_TOLD
    };
    let page = owners.iter().take_while(fits).count().max(1).min(owners.len());
    owners[..page].to_vec()
}

/// At least one page; only the last says so.
fn resume_pages(exclusive: Vec<(Ino, LeaseId)>, open: Vec<Ino>) -> Vec<ResumeRequest> {
    let count = exclusive.len().div_ceil(PAGE).max(open.len().div_ceil(PAGE)).max(1);
    let mut exclusive = exclusive.into_iter();
    let mut open = open.into_iter();
    (1..=count)
        .map(|page| ResumeRequest {
            exclusive: exclusive.by_ref().take(PAGE).collect(),
            open: open.by_ref().take(PAGE).collect(),
            last: page == count,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_resume_is_paged_and_only_the_last_page_says_so() {
        assert_eq!(
            resume_pages(vec![], vec![]),
            [ResumeRequest { exclusive: vec![], open: vec![], last: true }]
        );
        let exclusive: Vec<_> = (0..PAGE as u64 + 1).map(|n| (Ino(n), LeaseId(n))).collect();
        let open: Vec<_> = (0..2 * PAGE as u64 + 5).map(Ino).collect();
        let pages = resume_pages(exclusive.clone(), open.clone());
        assert_eq!(pages.iter().map(|page| page.last).collect::<Vec<_>>(), [false, false, true]);
        assert_eq!(pages.iter().flat_map(|page| page.exclusive.clone()).collect::<Vec<_>>(), exclusive);
        assert_eq!(pages.iter().flat_map(|page| page.open.clone()).collect::<Vec<_>>(), open);
    }
}
