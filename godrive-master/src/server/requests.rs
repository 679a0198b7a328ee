//! From an incoming request to its reply.
//!
//! A request that may have to wait for leases is a [`Job`]: it is attempted under the lock; if leases stand in its
//! way it is parked there and attempted again when the table says so. Its task then waits for the outcome, and
//! for the group of records that its reply depends on to be on stable storage.

use super::hub::{Hub, Link};
use super::shared::Shared;
use super::{admin, changing, damaged, epoch, intents, inventory, locking, reading, sessions, slaves, trash};
use crate::core::leases::WaiterId;
use crate::core::record::Origin;
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::{Connection, Incoming, Peer};
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, LogIndex, Operation, Role, SessionId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::sync::oneshot;
use tokio::task::JoinSet;

/// A result and the record that must be durable before it is told.
pub type Outcome<T> = (Result<T, Fault>, LogIndex);

/// None: it waits.
pub type Attempt<T> = Option<Outcome<T>>;

/// A request that may have to wait for leases.
pub trait Job: Send + 'static {
    type Out: Send + 'static;
    /// Runs under the lock, perhaps several times under the same number.
    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> Attempt<Self::Out>;
}

/// A waiting job, whatever it answers.
pub trait Parked: Send {
    /// True if it is over.
    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> bool;
}

struct Waiting<J: Job> {
    job: J,
    reply: Option<oneshot::Sender<Outcome<J::Out>>>,
}

impl<J: Job> Parked for Waiting<J> {
    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> bool {
        // Nobody waits for it any more: executing it would only surprise.
        if self.reply.as_ref().is_none_or(oneshot::Sender::is_closed) {
            return true;
        }
        let Some(outcome) = self.job.attempt(hub, now, id) else { return false };
        if let Some(reply) = self.reply.take() {
            // The task may have given up this very moment; then it never learns the outcome and says so.
            let _ = reply.send(outcome);
        }
        true
    }
}

/// What a handler knows of the request beside its body.
#[derive(Clone)]
pub struct Context {
    pub shared: Arc<Shared>,
    pub link: Link,
    pub peer: Peer,
    pub session: SessionId,
    pub origin: Origin,
    pub deadline: Duration,
}

/// Requests without a deadline get this one.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Serves one connection until it ends; each request in a task of its own.
pub async fn serve(shared: Arc<Shared>, connection: Connection) {
    let number = shared.links.fetch_add(1, Ordering::Relaxed) + 1;
    let link = Link { number, connection: connection.clone() };
    // Requests end with their connection: nobody could be answered, and what waits makes way.
    let mut requests = JoinSet::new();
    while let Some(incoming) = connection.accept().await {
        while requests.try_join_next().is_some() {}
        let (shared, link) = (shared.clone(), link.clone());
        requests.spawn(async move {
            let (code, session, begun) = (incoming.header.code, incoming.header.session, shared.clock.now());
            if let Err(fault) = handle(shared.clone(), link, incoming).await {
                tracing::debug!(code, "the peer did not get its answer: {fault}");
            }
            let micros = shared.clock.now().since(begun).as_micros();
            tracing::trace!(code = format_args!("{code:#06x}"), %session, micros, "served");
        });
    }
    if connection.peer().role == Role::Slave {
        slaves::disconnected(&shared, connection.peer().node, number);
    }
}

/// A place in the queue, given up when the request ends, however it ends.
struct Place<'a> {
    shared: &'a Arc<Shared>,
    id: WaiterId,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.shared.with(|hub, now| hub.abandon(now, self.id));
    }
}

impl Context {
    fn new(shared: Arc<Shared>, link: Link, peer: Peer, header: &RequestHeader) -> Self {
        let deadline = match header.deadline_ms {
            0 => DEFAULT_DEADLINE,
            ms => Duration::from_millis(ms.into()),
        };
        let origin = Origin {
            session: header.session,
            sequence: header.sequence,
            answered_below: header.answered_below,
        };
        Self { shared, link, peer, session: header.session, origin, deadline }
    }

    /// Runs a job to its end, waiting as long as the requester does, and for what it depends on to be durable.
    pub async fn run<J: Job>(&self, mut job: J) -> Result<J::Out, Fault> {
        enum Begun<T> {
            Over(Result<T, Fault>, LogIndex),
            Waits(WaiterId, oneshot::Receiver<Outcome<T>>),
        }
        let begun = self.shared.with(|hub, now| {
            let id = hub.next_waiter();
            match job.attempt(hub, now, id) {
                Some((result, durable)) => {
                    hub.waits_no_longer(now, id);
                    Begun::Over(result, durable)
                }
                None => {
                    let (reply, outcome) = oneshot::channel();
                    hub.park(id, self.session, Box::new(Waiting { job, reply: Some(reply) }));
                    Begun::Waits(id, outcome)
                }
            }
        });
        let (result, durable) = match begun {
            Begun::Over(result, durable) => (result, durable),
            Begun::Waits(id, outcome) => {
                let _place = Place { shared: &self.shared, id };
                match tokio::time::timeout(self.deadline, outcome).await {
                    Ok(Ok(outcome)) => outcome,
                    Ok(Err(_)) => {
                        let detail = "the session ended, or was taken over, while the request waited";
                        return Err(Fault::new(Code::SessionLost, detail));
                    }
                    Err(_) => {
                        let detail = "another mount holds what this needs and did not give it back in time";
                        return Err(Fault::new(Code::Timeout, detail));
                    }
                }
            }
        };
        self.shared.durable(durable).await?;
        result
    }

    /// A step that needs no leases of others.
    pub async fn step<T>(
        &self,
        step: impl FnOnce(&mut Hub, Instant) -> Result<(T, LogIndex), Fault>,
    ) -> Result<T, Fault> {
        let (result, durable) = self.shared.with(step)?;
        self.shared.durable(durable).await?;
        Ok(result)
    }
}

/// Answers one operation with what the handler gives.
macro_rules! answer {
    ($context:expr, $incoming:expr, $operation:ty, $handler:expr) => {{
        let result = match $incoming.decode::<$operation>() {
            Ok(request) => $handler(&$context, request).await,
            Err(fault) => Err(fault),
        };
        let shared = $context.shared.clone();
        match result {
            Ok(reply) => $incoming.reply::<$operation>(header(&shared), &reply, &[]).await,
            Err(fault) => {
                if matches!(fault.code, Code::Internal | Code::Disk) {
                    tracing::error!(operation = <$operation as Operation>::NAME, "failed: {fault}");
                }
                $incoming.fail(header(&shared), fault).await
            }
        }
    }};
}

fn header(shared: &Shared) -> ReplyHeader {
    ReplyHeader { fault: None, term: shared.term, index: shared.durability.durable(), payload_bytes: 0 }
}

async fn handle(shared: Arc<Shared>, link: Link, incoming: Incoming) -> Result<(), Fault> {
    use godrive_proto::{admin as a, cluster as c, lease as l, locks as k, meta as m};
    let context = Context::new(shared.clone(), link, *incoming.peer(), &incoming.header);
    if let Err(fault) = shared.with(|hub, now| admit(hub, now, &context, &incoming.header)) {
        return incoming.fail(header(&shared), fault).await;
    }
    match incoming.header.code {
        l::OpenSession::CODE => answer!(context, incoming, l::OpenSession, sessions::open),
        l::Renew::CODE => answer!(context, incoming, l::Renew, sessions::renew),
        l::Resume::CODE => answer!(context, incoming, l::Resume, sessions::resume),
        l::CloseSession::CODE => answer!(context, incoming, l::CloseSession, sessions::close),
        l::Releases::CODE => answer!(context, incoming, l::Releases, sessions::release),
        l::GiveUp::CODE => answer!(context, incoming, l::GiveUp, changing::give_up),
        l::Ended::CODE => answer!(context, incoming, l::Ended, sessions::ended),
        l::TakeOver::CODE => answer!(context, incoming, l::TakeOver, sessions::take_over),
        l::Slaves::CODE => answer!(context, incoming, l::Slaves, sessions::slaves),
        l::Acquire::CODE => answer!(context, incoming, l::Acquire, reading::acquire),
        l::Own::CODE => answer!(context, incoming, l::Own, reading::own),
        l::GetLayout::CODE => answer!(context, incoming, l::GetLayout, reading::layout),
        l::GetLayouts::CODE => answer!(context, incoming, l::GetLayouts, reading::layouts),
        l::OpenChunks::CODE => answer!(context, incoming, l::OpenChunks, changing::open_chunks),
        l::Report::CODE => answer!(context, incoming, l::Report, epoch::report),
        k::SetLock::CODE => answer!(context, incoming, k::SetLock, locking::set),
        k::Unlock::CODE => answer!(context, incoming, k::Unlock, locking::unlock),
        k::TestLock::CODE => answer!(context, incoming, k::TestLock, locking::test),
        k::AwaitLock::CODE => answer!(context, incoming, k::AwaitLock, locking::wait),
        k::DeclareLocks::CODE => answer!(context, incoming, k::DeclareLocks, locking::declare),
        k::OwnLocks::CODE => answer!(context, incoming, k::OwnLocks, locking::own),
        m::Lookup::CODE => answer!(context, incoming, m::Lookup, reading::lookup),
        m::ReadDirectory::CODE => answer!(context, incoming, m::ReadDirectory, reading::read_directory),
        m::ReadSymlink::CODE => answer!(context, incoming, m::ReadSymlink, reading::read_symlink),
        m::ReadXattrs::CODE => answer!(context, incoming, m::ReadXattrs, reading::read_xattrs),
        m::StatFs::CODE => answer!(context, incoming, m::StatFs, reading::stat_fs),
        m::GetAttr::CODE => answer!(context, incoming, m::GetAttr, reading::get_attr),
        m::Create::CODE => answer!(context, incoming, m::Create, changing::create),
        m::MakeNode::CODE => answer!(context, incoming, m::MakeNode, changing::make_node),
        m::Link::CODE => answer!(context, incoming, m::Link, changing::link),
        m::Unlink::CODE => answer!(context, incoming, m::Unlink, changing::unlink),
        m::Rename::CODE => answer!(context, incoming, m::Rename, changing::rename),
        m::SetAttr::CODE => answer!(context, incoming, m::SetAttr, changing::set_attr),
        m::Truncate::CODE => answer!(context, incoming, m::Truncate, changing::truncate),
        m::Commit::CODE => answer!(context, incoming, m::Commit, changing::commit),
        m::SetXattr::CODE => answer!(context, incoming, m::SetXattr, changing::set_xattr),
        m::RemoveXattr::CODE => answer!(context, incoming, m::RemoveXattr, changing::remove_xattr),
        m::Restore::CODE => answer!(context, incoming, m::Restore, changing::restore),
        m::Batch::CODE => answer!(context, incoming, m::Batch, changing::batch),
        m::Accessed::CODE => answer!(context, incoming, m::Accessed, changing::accessed),
        m::Barrier::CODE => answer!(context, incoming, m::Barrier, reading::barrier),
        c::Register::CODE => answer!(context, incoming, c::Register, slaves::register),
        c::Inventory::CODE => answer!(context, incoming, c::Inventory, inventory::page),
        c::Heartbeat::CODE => answer!(context, incoming, c::Heartbeat, slaves::heartbeat),
        a::Join::CODE => answer!(context, incoming, a::Join, admin::join),
        a::MakeToken::CODE => answer!(context, incoming, a::MakeToken, admin::make_token),
        a::GetStatus::CODE => answer!(context, incoming, a::GetStatus, admin::status),
        a::Intend::CODE => answer!(context, incoming, a::Intend, intents::intend),
        a::Ping::CODE => answer!(context, incoming, a::Ping, admin::ping),
        a::ListTrash::CODE => answer!(context, incoming, a::ListTrash, trash::list),
        a::ListDamaged::CODE => answer!(context, incoming, a::ListDamaged, damaged::list),
        a::EmptyTrash::CODE => answer!(context, incoming, a::EmptyTrash, trash::empty),
        code => {
            let detail = format!("a master does not answer operation {code:#06x}");
            incoming.fail(header(&shared), Fault::new(Code::Malformed, detail)).await
        }
    }
}

/// What every request must pass: the master has all the history its peer has seen, and the session is its own.
fn admit(hub: &mut Hub, _now: Instant, context: &Context, header: &RequestHeader) -> Result<(), Fault> {
    use godrive_proto::{admin, lease, locks};
    let last = hub.journal.last();
    // A term is on stable storage before it serves, and so is every index that an answer names.
    let lost = header.term > hub.term
        || header.seen > last
        || (0 < header.term.0 && header.term < hub.term && header.seen > hub.began_at);
    if lost && context.peer.role != Role::Joiner {
        hub.refuse(format!(
            "{} {} has seen record {} of term {}, but this master's log ended at {} when it started term {}: history is \
             missing. Restore its directory to the newest copy there is and restart it; to go on without the missing \
             history, start a new cluster and copy the files",
            context.peer.role, context.peer.node, header.seen, header.term, hub.began_at.min(last), hub.term
        ));
    }
    if !matches!(header.code, admin::GetStatus::CODE | admin::Ping::CODE) {
        hub.serving()?;
    }
    if context.peer.role != Role::Client || header.session.0 == 0 {
        return Ok(());
    }
    let Some(owner) = hub.owners.get(&header.session) else {
        return Err(Fault::new(
            Code::SessionLost,
            format!("session {} is unknown or was revoked", header.session),
        ));
    };
    if *owner != context.peer.node {
        return Err(Fault::new(
            Code::Forbidden,
            format!("session {} belongs to another client", header.session),
        ));
    }
    if hub.clients.get(&header.session).is_none_or(|known| known.number < context.link.number) {
        hub.clients.insert(header.session, context.link.clone());
    }
    let may_come_first = [
        lease::OpenSession::CODE,
        lease::Renew::CODE,
        lease::Ended::CODE,
        lease::Resume::CODE,
        locks::DeclareLocks::CODE,
        lease::TakeOver::CODE,
        lease::CloseSession::CODE,
    ];
    if hub.leases.must_resume(header.session) && !may_come_first.contains(&header.code) {
        return Err(Fault::new(Code::NotReady, "the master restarted: send Resume first"));
    }
    Ok(())
}

impl Context {
    /// The request's session, which [`admit`] has checked if there is one.
    pub fn session(&self) -> Result<SessionId, Fault> {
        match self.session.0 {
            0 => Err(Fault::new(Code::Malformed, "this operation needs a session")),
            _ => Ok(self.session),
        }
    }
}
