//! Requests to the master: sent when the session is known to be good, repeated while no answer comes.
//!
//! [`Link`] is the one piece of shared state: the connection, the session and whether requests may be sent. The
//! keeper (`keeper.rs`) moves it along; requests wait for its gate to open. A request may stay unanswered for long
//! while the master recalls leases for it, so a try ends only with its answer, its connection or its deadline.

use super::config::{Config, World};
use super::opening::{Begun, Succession, begin};
use super::retry::{Backoff, MasterFault, Patience, master_fault};
use super::sequence::Window;
use super::stats::Stats;
use super::timing::Timing;
use super::tries::{Ticket, Tries};
use super::upcalls::BoxFuture;
use crate::ledger::{Inheritance, Ledger};
use bytes::Bytes;
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::lease::{ClusterParameters, LeaseTiming};
use godrive_proto::net::{Connection, Endpoint, Message, Options, Reply};
use godrive_proto::version::FEATURE_LEVEL;
use godrive_proto::{Code, Fault, LogIndex, Operation, SessionId, Term};
use parking_lot::Mutex;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Notify, watch};

/// One session as the master allotted it.
pub struct Session {
    pub id: SessionId,
    pub timing: LeaseTiming,
    pub parameters: ClusterParameters,
    pub window: Mutex<Window>,
    /// A sequence was settled.
    pub settled: Notify,
    /// Sequences below this are in the ledger.
    pub noted: Mutex<u64>,
}

/// Whether requests may be sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The next answered renewal opens it.
    Unconfirmed,
    /// The master restarted: caches are dropped and leases declared first.
    Resuming,
    /// The master does not know the session any more: a new one must be opened.
    Lost,
    /// In a new session, while the caches of the old one are dropped.
    Dropping,
    Open,
    /// The driver was stopped.
    Stopped,
}

#[derive(Clone)]
pub struct Link {
    pub connection: Connection,
    pub session: Arc<Session>,
    pub gate: Gate,
    /// Counts connections: what began on an older one must not decide about this one.
    pub generation: u64,
}

/// Sequences are noted in blocks, so that most requests need no note.
const SEQUENCES_NOTED: u64 = 1024;

/// How far the master's log has come, as its replies said.
struct Progress {
    term: Term,
    /// The last record known to be on stable storage.
    seen: LogIndex,
    ended: Option<(Term, LogIndex)>,
}

impl Progress {
    fn new(header: &ReplyHeader) -> Self {
        Self { term: header.term, seen: header.index, ended: None }
    }

    fn notice(&mut self, header: &ReplyHeader) -> Result<(), Fault> {
        if header.term < self.term && header.term.0 != 0 {
            let detail = format!("the answer is of term {}, but term {} has begun", header.term, self.term);
            return Err(Fault::new(Code::WrongTerm, detail));
        }
        if header.term > self.term {
            // Nothing is changed between two terms before the file system was told of the end of the first.
            self.ended.get_or_insert((self.term, self.seen));
            self.term = header.term;
        }
        self.seen = self.seen.max(header.index);
        Ok(())
    }
}

pub struct Master {
    pub config: Config,
    pub endpoint: Endpoint,
    pub timing: Timing,
    pub stats: Arc<Stats>,
    pub link: watch::Sender<Link>,
    /// Asks the keeper for a renewal at once.
    pub renew_now: Notify,
    /// The term in which the session was opened or resumed.
    pub resumed_term: AtomicU64,
    progress: Mutex<Progress>,
    dice: Mutex<StdRng>,
    ledger: Option<Arc<dyn Ledger>>,
}

impl Master {
    /// Connects and opens a session, or goes on with that of a dead daemon; again and again until the deadline.
    pub async fn start(
        config: Config,
        world: World,
        stats: Arc<Stats>,
        ledger: Option<Arc<dyn Ledger>>,
        inherited: Option<&Inheritance>,
    ) -> Result<(Self, Succession), Fault> {
        let mut dice = StdRng::seed_from_u64(world.seed);
        let options = Options { rng_seed: Some(dice.random()), ..Options::default() };
        let endpoint = Endpoint::new(&world.sockets, config.bind, &world.identity, &options)?;
        let timing = Timing::new(world.clock);
        let patience = Patience::new(timing.now(), config.deadline, config.hard);
        let mut backoff = Backoff::default();
        loop {
            let fault = match begin(&endpoint, &config, &timing, &stats, inherited).await {
                Ok(Begun { connection, session, header, gate, succession }) => {
                    let id = session.id;
                    let link = Link { connection, session, gate, generation: 1 };
                    let master = Self {
                        config,
                        endpoint,
                        timing,
                        stats,
                        link: watch::Sender::new(link),
                        renew_now: Notify::new(),
                        resumed_term: AtomicU64::new(header.term.0),
                        progress: Mutex::new(Progress::new(&header)),
                        dice: Mutex::new(dice),
                        ledger,
                    };
                    match (&succession, inherited) {
                        // No two daemons may begin with the same sequence: the master would take the second
                        // take-over for a copy of the first.
                        (Succession::Taken(_), Some(inherited)) => master.note_sequences(inherited.from + 2),
                        _ => master.note_session(id),
                    }
                    return Ok((master, succession));
                }
                Err(fault) => fault,
            };
            let wait = backoff.next(dice.random());
            let hopeless = matches!(fault.code, Code::Forbidden | Code::Malformed);
            if hopeless || patience.remaining(timing.now()).is_none_or(|remaining| remaining < wait) {
                endpoint.close().await;
                return Err(fault);
            }
            tracing::debug!(%fault, master = %config.master, ?wait, "cannot open a session yet");
            endpoint.pause(wait).await;
        }
    }

    pub fn note_session(&self, session: SessionId) {
        if let Some(ledger) = &self.ledger {
            ledger.session(session);
        }
        self.note_sequences(1);
    }

    fn note_sequences(&self, below: u64) {
        let session = self.session();
        let mut noted = session.noted.lock();
        if let Some(ledger) = &self.ledger
            && below > *noted
        {
            *noted = below;
            ledger.sequences(below);
        }
    }

    /// Before a sequence is used for the first time, whoever takes the session over must know that it was.
    pub fn note_sequence(&self, sequence: u64, session: &Session) {
        let Some(ledger) = &self.ledger else { return };
        let mut noted = session.noted.lock();
        if sequence >= *noted {
            *noted = sequence + SEQUENCES_NOTED;
            ledger.sequences(*noted);
        }
    }

    pub fn patience(&self) -> Patience {
        Patience::new(self.timing.now(), self.config.deadline, self.config.hard)
    }

    pub fn session(&self) -> Arc<Session> {
        self.link.borrow().session.clone()
    }

    pub fn jitter(&self) -> u8 {
        self.dice.lock().random()
    }

    /// The header of a request in this session.
    pub fn header(&self, session: &Session, sequence: u64) -> RequestHeader {
        let Progress { term, seen, .. } = *self.progress.lock();
        RequestHeader {
            feature_level: FEATURE_LEVEL,
            session: session.id,
            sequence,
            answered_below: session.window.lock().answered_below(),
            term,
            seen,
            ..RequestHeader::default()
        }
    }

    pub fn term(&self) -> Term {
        self.progress.lock().term
    }

    /// The term that ended while this mount had a session, and the last record that it knew to be on stable storage then.
    pub fn ended(&self) -> Option<(Term, LogIndex)> {
        self.progress.lock().ended
    }

    /// The file system was told what that term's end has taken.
    pub fn told_end(&self) {
        self.progress.lock().ended = None;
    }

    /// What a reply's header says of the log. Refused: an earlier term's.
    pub fn notice(&self, header: &ReplyHeader) -> Result<(), Fault> {
        self.progress.lock().notice(header)
    }

    /// One try, with the connection as it is.
    pub async fn send<O: Operation>(
        &self,
        connection: &Connection,
        header: RequestHeader,
        request: &O::Request,
        deadline: Duration,
    ) -> Result<Reply<O::Reply>, Fault> {
        let message = Message::new::<O>(request)?;
        self.send_message(connection, header, &message, deadline).await?.decode::<O>()
    }

    async fn send_message(
        &self,
        connection: &Connection,
        header: RequestHeader,
        message: &Message,
        deadline: Duration,
    ) -> Result<Reply<Bytes>, Fault> {
        let reply = send(&self.stats, connection, header, message, deadline).await?;
        self.notice(&reply.header)?;
        Ok(reply)
    }

    pub async fn admitted(&self, patience: Patience) -> Result<(), Fault> {
        Tries::new(self, patience).admitted().await.map(drop)
    }

    /// A request that may be executed more than once.
    pub async fn query<O: Operation>(
        &self,
        request: &O::Request,
        patience: Patience,
    ) -> Result<O::Reply, Fault> {
        let message = Message::new::<O>(request)?;
        Ok(self.query_message(&message, patience).await?.decode::<O>()?.body)
    }

    /// A request that is executed at most once.
    pub async fn mutate<O: Operation>(
        &self,
        request: &O::Request,
        patience: Patience,
    ) -> Result<O::Reply, Fault> {
        let message = Message::new::<O>(request)?;
        Ok(self.mutate_message(&message, patience).await?.decode::<O>()?.body)
    }

    fn query_message<'a>(
        &'a self,
        message: &'a Message,
        patience: Patience,
    ) -> BoxFuture<'a, Result<Reply<Bytes>, Fault>> {
        Box::pin(async move {
            let mut tries = Tries::new(self, patience);
            loop {
                let link = tries.admitted().await?;
                let header = self.header(&link.session, 0);
                match self.send_message(&link.connection, header, message, tries.remaining()?).await {
                    Ok(reply) if self.session().id == link.session.id => return Ok(reply),
                    // Its leases were given to a session that has ended.
                    Ok(_) => {}
                    Err(fault) => match master_fault(&fault, patience.is_hard()) {
                        MasterFault::Final => return Err(fault),
                        MasterFault::SessionLost => self.lose_session(link.session.id),
                        MasterFault::Again | MasterFault::Later => tries.failed(fault),
                    },
                }
                tries.pause(message.name).await?;
            }
        })
    }

    fn mutate_message<'a>(
        &'a self,
        message: &'a Message,
        patience: Patience,
    ) -> BoxFuture<'a, Result<Reply<Bytes>, Fault>> {
        Box::pin(async move {
            let mut tries = Tries::new(self, patience);
            loop {
                let session = tries.admitted().await?.session;
                let ticket = tries.ticket(&session).await?;
                match self.execute(message, &mut tries, &ticket).await {
                    Err(fault) if master_fault(&fault, true) == MasterFault::Later => tries.failed(fault),
                    outcome => return outcome,
                }
                drop(ticket);
                tries.pause(message.name).await?;
            }
        })
    }

    /// Sends one sequence until it is answered.
    async fn execute(
        &self,
        message: &Message,
        tries: &mut Tries<'_>,
        ticket: &Ticket<'_>,
    ) -> Result<Reply<Bytes>, Fault> {
        let lost = || {
            let name = message.name;
            let detail = format!("the session ended before {name} was answered; its outcome is unknown");
            Fault::new(Code::SessionLost, detail)
        };
        loop {
            let link = tries.admitted().await?;
            if link.session.id != ticket.session.id {
                return Err(lost());
            }
            let header = self.header(&link.session, ticket.sequence);
            tries.outcome_unknown = true;
            match self.send_message(&link.connection, header, message, tries.remaining()?).await {
                Ok(reply) if self.session().id == link.session.id => return Ok(reply),
                Ok(_) => return Err(lost()),
                Err(fault) => match master_fault(&fault, tries.patience.is_hard()) {
                    MasterFault::Again => tries.failed(fault),
                    MasterFault::SessionLost => {
                        self.lose_session(link.session.id);
                        return Err(lost());
                    }
                    MasterFault::Later => {
                        tries.outcome_unknown = false;
                        return Err(fault);
                    }
                    MasterFault::Final => return Err(fault),
                },
            }
            tries.pause(message.name).await?;
        }
    }

    /// The master said that it does not know this session.
    pub fn lose_session(&self, session: SessionId) {
        let lost = self.link.send_if_modified(|link| {
            let known = link.session.id != session || matches!(link.gate, Gate::Lost | Gate::Stopped);
            if !known {
                link.gate = Gate::Lost;
                self.timing.lapse();
            }
            !known
        });
        if lost {
            tracing::warn!(%session, "the master has revoked this mount's session; opening a new one");
            self.renew_now.notify_one();
        }
    }
}

impl Session {
    pub fn new(id: SessionId, timing: LeaseTiming, parameters: ClusterParameters) -> Self {
        Self {
            id,
            timing,
            parameters,
            window: Mutex::default(),
            settled: Notify::new(),
            noted: Mutex::default(),
        }
    }

    pub fn holder_stops_after(&self) -> Duration {
        Duration::from_millis(u64::from(self.timing.holder_stops_after_ms))
    }

    pub fn renew_every(&self) -> Duration {
        Duration::from_millis(u64::from(self.timing.renew_every_ms.max(10)))
    }
}

pub(super) async fn send(
    stats: &Stats,
    connection: &Connection,
    header: RequestHeader,
    message: &Message,
    deadline: Duration,
) -> Result<Reply<Bytes>, Fault> {
    Stats::add(&stats.master_requests, 1);
    stats.sent(&header, message, 0);
    let reply = connection.exchange(header, message, &[], deadline).await?;
    stats.received(&reply);
    Ok(reply)
}
