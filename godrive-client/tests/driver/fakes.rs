//! A fake master and fake slaves behind real QUIC on loopback. They do what the protocol says until a test tells
//! them otherwise.

use crate::replicas::{CHUNK_BYTES, Replicas};
use bytes::Bytes;
use godrive_proto::data::*;
use godrive_proto::frame::ReplyHeader;
use godrive_proto::lease::*;
use godrive_proto::meta::{Barrier, FsStat, StatFs};
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine::{self, MachineClock};
use godrive_proto::net::{Connection, Endpoint, Incoming, Options};
use godrive_proto::time::{Clock, Timestamp};
use godrive_proto::*;
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

pub const ANY: &str = "127.0.0.1:0";

/// Makes another answer of what was done.
pub type Lie = fn(Applied) -> Applied;

#[derive(Default)]
pub struct State {
    pub replicas: Replicas,
    // The master's.
    pub term: u64,
    pub last_session: u64,
    pub sessions: BTreeSet<SessionId>,
    pub must_resume: BTreeSet<SessionId>,
    pub resumes: Vec<ResumeRequest>,
    pub lost_by_resume: Vec<Ino>,
    /// Where the log of the last term ended.
    pub last_record: Option<LogIndex>,
    /// (session, sequence) of every mutation, once.
    pub executed: BTreeSet<(SessionId, u64)>,
    pub answered_below: u64,
    pub renewals: u64,
    pub closed: u64,
    pub layouts: BTreeMap<ChunkId, Layout>,
    pub reports: Vec<Problem>,
    /// Chunks whose elections do not end, and how many were asked for.
    pub unelected: BTreeSet<ChunkId>,
    pub waiting: u32,
    /// All slaves have restarted since the last election.
    pub restarted: bool,
    /// Answers that are lost together with their connection, after the work was done.
    pub lose_master_answers: u32,
    /// Faults with which the master answers everything but sessions' requests.
    pub master_faults: Vec<Fault>,
    pub deaf_to_renewals: bool,
    /// The next Acquire waits for this recall to be answered.
    pub recall_first: Option<RecallRequest>,
    pub released: Vec<Release>,
    // The slaves'.
    pub lose_slave_answers: BTreeMap<NodeId, u32>,
    /// Flips a bit in what it reads.
    pub liars: BTreeSet<NodeId>,
    pub slow_reads: BTreeMap<NodeId, Duration>,
    pub slave_faults: BTreeMap<NodeId, Vec<Fault>>,
    /// What a slave answers in place of what it did, the last first.
    pub slave_answers: BTreeMap<NodeId, Vec<Lie>>,
    pub deltas: u64,
    /// Deltas to these chunks are not answered.
    pub deaf: BTreeSet<ChunkId>,
    pub unanswered: u32,
    pub reads: BTreeMap<NodeId, u64>,
}

pub struct Cluster {
    pub state: Arc<Mutex<State>>,
    pub authority: Authority,
    pub master_address: SocketAddr,
    master: Mutex<Option<Endpoint>>,
    pub slaves: Vec<Slave>,
}

pub struct Slave {
    pub member: Member,
    endpoint: Endpoint,
}

impl Cluster {
    pub fn start(slaves: u128) -> Self {
        let now_s = MachineClock.wall().0 / 1_000_000_000;
        let authority = Authority::create(ClusterId(7), now_s).expect("authority");
        let state = Arc::new(Mutex::new(State { term: 1, ..State::default() }));
        let any: SocketAddr = ANY.parse().expect("address");
        let slaves = (1..=slaves)
            .map(|n| {
                let identity = identity(&authority, Role::Slave, n);
                let endpoint = endpoint(any, &identity);
                let member = Member { node: NodeId(n), disk: DiskId(n), address: endpoint.local_address() };
                tokio::spawn(accept(endpoint.clone(), state.clone(), Some(member.node)));
                Slave { member, endpoint }
            })
            .collect();
        let master = endpoint(any, &identity(&authority, Role::Master, 100));
        let master_address = master.local_address();
        tokio::spawn(accept(master.clone(), state.clone(), None));
        Self { state, authority, master_address, master: Mutex::new(Some(master)), slaves }
    }

    pub fn client_identity(&self) -> Identity {
        identity(&self.authority, Role::Client, 200)
    }

    /// A chunk that is placed on all slaves and was never written.
    pub fn place(&self, chunk: u64) -> Layout {
        let id = ChunkId(chunk);
        let empty = Contents { version: Version(0), digest: sums::empty_digest(id, CHUNK_BYTES) };
        let layout = Layout {
            index: 0,
            chunk: ChunkRef { id, layout: LayoutTag::Replicated, chunk_bytes: CHUNK_BYTES, birth: 1 },
            epoch: Epoch(1),
            members: self.slaves.iter().map(|slave| slave.member).collect(),
            held: empty,
            stable: empty,
        };
        self.state.lock().layouts.insert(id, layout.clone());
        layout
    }

    pub async fn kill_slave(&self, at: usize) {
        self.state.lock().replicas.dead.insert(self.slaves[at].member.node);
        self.slaves[at].endpoint.close().await;
    }

    pub async fn kill_master(&self) {
        let master = self.master.lock().take();
        if let Some(master) = master {
            master.close().await;
        }
    }

    /// A master in the next term, at the same address, to whom the sessions must be declared again.
    pub async fn restart_master(&self) {
        self.kill_master().await;
        {
            let mut state = self.state.lock();
            state.term += 1;
            state.must_resume = state.sessions.clone();
        }
        let identity = identity(&self.authority, Role::Master, 100);
        // The old socket is closed when its last user is gone.
        let bind = || Endpoint::new(&machine::sockets(), self.master_address, &identity, &Options::default());
        let rebound = async {
            loop {
                match bind() {
                    Ok(master) => break master,
                    Err(_) => tokio::time::sleep(Duration::from_millis(5)).await,
                }
            }
        };
        let master =
            tokio::time::timeout(Duration::from_secs(10), rebound).await.expect("the address is free");
        tokio::spawn(accept(master.clone(), self.state.clone(), None));
        *self.master.lock() = Some(master);
    }
}

fn identity(authority: &Authority, role: Role, node: u128) -> Identity {
    authority.issue(role, NodeId(node), MachineClock.wall().0 / 1_000_000_000).expect("identity")
}

fn endpoint(address: SocketAddr, identity: &Identity) -> Endpoint {
    Endpoint::new(&machine::sockets(), address, identity, &Options::default()).expect("endpoint")
}

async fn accept(endpoint: Endpoint, state: Arc<Mutex<State>>, slave: Option<NodeId>) {
    while let Some(connection) = endpoint.accept().await {
        let state = state.clone();
        tokio::spawn(async move {
            while let Some(incoming) = connection.accept().await {
                let (state, connection) = (state.clone(), connection.clone());
                tokio::spawn(async move {
                    match slave {
                        Some(node) => serve_slave(node, &state, &connection, incoming).await,
                        None => serve_master(&state, &connection, incoming).await,
                    }
                });
            }
        });
    }
}

/// Answers, unless the connection was ended in place of an answer.
async fn answer<O: Operation>(
    incoming: Incoming,
    term: u64,
    result: Result<O::Reply, Fault>,
    payload: &[Bytes],
) {
    let header = ReplyHeader { term: Term(term), index: LogIndex(1), ..ReplyHeader::default() };
    // The driver may have gone away, or have asked somebody else.
    let _ = match result {
        Ok(reply) => incoming.reply::<O>(header, &reply, payload).await,
        Err(fault) => incoming.fail(header, fault).await,
    };
}

async fn serve_master(state: &Mutex<State>, connection: &Connection, incoming: Incoming) {
    let header = incoming.header.clone();
    let term = state.lock().term;
    let known = state.lock().sessions.contains(&header.session);
    if header.code != OpenSession::CODE && !known {
        return answer::<StatFs>(incoming, term, Err(Code::SessionLost.into()), &[]).await;
    }
    if header.code >= Acquire::CODE {
        let fault = state.lock().master_faults.pop();
        if let Some(fault) = fault {
            return answer::<StatFs>(incoming, term, Err(fault), &[]).await;
        }
        assert!(
            !state.lock().must_resume.contains(&header.session),
            "{:#06x} before the resume",
            header.code
        );
    }
    match header.code {
        // Whom they need they are told with each layout.
        Slaves::CODE => answer::<Slaves>(incoming, term, Ok(Vec::new()), &[]).await,
        OpenSession::CODE => answer::<OpenSession>(incoming, term, Ok(open_session(state)), &[]).await,
        Renew::CODE => {
            if state.lock().deaf_to_renewals {
                return std::future::pending().await;
            }
            let renewed = {
                let mut state = state.lock();
                state.renewals += 1;
                let must_resume = state.must_resume.contains(&header.session);
                Renewed { now: Timestamp(5_000_000_000), must_resume, errors_pending: 0 }
            };
            answer::<Renew>(incoming, term, Ok(renewed), &[]).await;
        }
        Ended::CODE => {
            assert_eq!(incoming.decode::<Ended>().expect("a term"), Term(term - 1));
            let last = state.lock().last_record;
            answer::<Ended>(incoming, term, Ok(last), &[]).await;
        }
        Resume::CODE => {
            let request = incoming.decode::<Resume>().expect("resume");
            let lost = {
                let mut state = state.lock();
                state.must_resume.remove(&header.session);
                state.resumes.push(request);
                state.lost_by_resume.clone()
            };
            answer::<Resume>(incoming, term, Ok(Resumed { lost }), &[]).await;
        }
        CloseSession::CODE => {
            state.lock().closed += 1;
            answer::<CloseSession>(incoming, term, Ok(()), &[]).await;
        }
        Acquire::CODE => {
            let recall = state.lock().recall_first.take();
            if let Some(recall) = recall {
                let deadline = Duration::from_secs(5);
                let reply = connection.call::<Recall>(Default::default(), &recall, &[], deadline).await;
                state.lock().released.push(reply.expect("release").body);
            }
            answer::<Acquire>(incoming, term, Ok(Acquired { views: vec![], layout: vec![] }), &[]).await;
        }
        Report::CODE => {
            let request = incoming.decode::<Report>().expect("report");
            if state.lock().unelected.contains(&request.chunk) {
                state.lock().waiting += 1;
                std::future::pending::<()>().await;
            }
            let layout = report(&mut state.lock(), &request);
            answer::<Report>(incoming, term, layout, &[]).await;
        }
        StatFs::CODE => answer::<StatFs>(incoming, term, Ok(FsStat::default()), &[]).await,
        Barrier::CODE => barrier(state, connection, incoming).await,
        code => panic!("the fake master does not know {code:#06x}"),
    }
}

fn open_session(state: &Mutex<State>) -> OpenedSession {
    let mut state = state.lock();
    state.last_session += 1;
    let session = SessionId(state.last_session);
    state.sessions.insert(session);
    OpenedSession {
        session,
        timing: LeaseTiming { renew_every_ms: 50, holder_stops_after_ms: 600, revoked_after_ms: 800 },
        parameters: ClusterParameters { chunk_bytes: CHUNK_BYTES, replicas: 3, min_replicas: 2 },
        now: Timestamp(5_000_000_000),
    }
}

/// The mutation of these tests: executed once for each sequence.
async fn barrier(state: &Mutex<State>, connection: &Connection, incoming: Incoming) {
    let (term, lose) = {
        let mut state = state.lock();
        let key = (incoming.header.session, incoming.header.sequence);
        assert_ne!(key.1, 0, "a mutation without a sequence");
        state.answered_below = state.answered_below.max(incoming.header.answered_below);
        state.executed.insert(key);
        let lose = state.lose_master_answers > 0;
        state.lose_master_answers = state.lose_master_answers.saturating_sub(1);
        (state.term, lose)
    };
    if lose {
        return connection.close("the answer is lost");
    }
    answer::<Barrier>(incoming, term, Ok(()), &[]).await;
}

/// The epoch procedure in short: drops whom it must, elects the highest version, makes all equal.
fn report(state: &mut State, request: &ReportRequest) -> Result<Layout, Fault> {
    state.reports.push(request.problem);
    let mut layout = state.layouts.get(&request.chunk).cloned().ok_or(Code::NotFound)?;
    let bad = match request.problem {
        Problem::StaleLayout => return Ok(layout),
        _ if request.epoch < layout.epoch => return Ok(layout),
        Problem::Corrupt(node) => Some(node),
        Problem::Failed(_) | Problem::Diverged => None,
    };
    let dead = state.replicas.dead.clone();
    layout.members.retain(|member| !dead.contains(&member.node) && Some(member.node) != bad);
    if layout.members.is_empty() {
        return Err(Code::Unavailable.into());
    }
    let restarted = std::mem::take(&mut state.restarted);
    layout.epoch = if restarted { layout.epoch.after_restarts() } else { layout.epoch.next() };
    let replica = |node: NodeId| state.replicas.all.get(&(node, request.chunk));
    let winner =
        layout.members.iter().filter_map(|member| replica(member.node)).max_by_key(|replica| replica.version);
    let mut winner = winner.cloned().unwrap_or_default();
    winner.epoch = layout.epoch;
    layout.held = winner.contents(request.chunk);
    for member in &layout.members {
        state.replicas.all.insert((member.node, request.chunk), winner.clone());
    }
    state.layouts.insert(request.chunk, layout.clone());
    Ok(layout)
}

async fn serve_slave(node: NodeId, state: &Mutex<State>, connection: &Connection, mut incoming: Incoming) {
    let fault = state.lock().slave_faults.get_mut(&node).and_then(Vec::pop);
    if let Some(fault) = fault {
        return answer::<Sync>(incoming, 0, Err(fault), &[]).await;
    }
    match incoming.header.code {
        Delta::CODE => {
            let request = incoming.decode::<Delta>().expect("delta");
            if state.lock().deaf.contains(&request.chunk) {
                state.lock().unanswered += 1;
                std::future::pending::<()>().await;
            }
            let payload = incoming.payload.collect(limits::MAX_DELTA_BYTES).await.expect("payload").concat();
            let (applied, lose) = {
                let mut state = state.lock();
                state.deltas += 1;
                let applied = state.replicas.apply(node, &request, &payload);
                let applied = said(&mut state, node, applied);
                let lose = state.lose_slave_answers.get_mut(&node).filter(|left| **left > 0);
                (applied, lose.map(|left| *left -= 1).is_some())
            };
            if lose {
                return connection.close("the answer is lost");
            }
            answer::<Delta>(incoming, 0, applied, &[]).await;
        }
        Sync::CODE => {
            let request = incoming.decode::<Sync>().expect("sync");
            let applied = {
                let mut state = state.lock();
                let applied = sync(&mut state, node, &request);
                said(&mut state, node, applied)
            };
            answer::<Sync>(incoming, 0, applied, &[]).await;
        }
        Read::CODE => {
            let request = incoming.decode::<Read>().expect("read");
            let (proved, lies, wait) = {
                let mut state = state.lock();
                *state.reads.entry(node).or_default() += 1;
                let wait = state.slow_reads.get(&node).copied();
                (state.replicas.prove(node, &request), state.liars.contains(&node), wait)
            };
            if let Some(wait) = wait {
                tokio::time::sleep(wait).await;
            }
            let (proof, mut payload) = match proved {
                Ok(proved) => proved,
                Err(fault) => return answer::<Read>(incoming, 0, Err(fault), &[]).await,
            };
            if lies && let Some(first) = payload.first_mut() {
                let mut bytes = first.to_vec();
                bytes[17] ^= 4;
                *first = bytes.into();
            }
            answer::<Read>(incoming, 0, Ok(proof), &payload).await;
        }
        code => panic!("the fake slave does not know {code:#06x}"),
    }
}

fn said(state: &mut State, node: NodeId, applied: Result<Applied, Fault>) -> Result<Applied, Fault> {
    let change = state.slave_answers.get_mut(&node).and_then(Vec::pop);
    applied.map(|applied| change.map_or(applied, |change| change(applied)))
}

fn sync(state: &mut State, node: NodeId, request: &SyncRequest) -> Result<Applied, Fault> {
    let mut applied = None;
    for node in std::iter::once(node).chain(request.chain.iter().map(|member| member.node)) {
        if state.replicas.dead.contains(&node) {
            return Err(Fault::at(Code::MemberFailed, node, "dead"));
        }
        let replica = state.replicas.all.get_mut(&(node, request.chunk)).ok_or(Code::NoChunk)?;
        if replica.epoch != request.epoch {
            return Err(Code::WrongEpoch.into());
        }
        if replica.version != request.version {
            return Err(Code::WrongVersion.into());
        }
        replica.stable = true;
        let used_bytes = replica.leaves.len() as u32 * limits::LEAF_BYTES;
        applied = Some(Applied { contents: replica.contents(request.chunk), stable: true, used_bytes });
    }
    applied.ok_or_else(|| Code::Internal.into())
}
