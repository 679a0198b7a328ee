//! Byte-range locks: asked for, given back, declared. See [`crate::core::locks`].

use super::hub::{Hub, over};
use super::requests::{Attempt, Context, Job};
use crate::core::leases::WaiterId;
use crate::core::locks::{Wanted, Who};
use godrive_proto::lease::ByteRange;
use godrive_proto::limits::{MAX_LOCKS_TOLD, MAX_OWNER_LOCKS};
use godrive_proto::locks::*;
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, Ino, LogIndex, SessionId};
use std::time::Duration;

/// The longest that one request waits; who wants to wait longer asks again.
const LONGEST_WAIT: Duration = Duration::from_secs(60);

/// No answer here shows anything of the log.
const NOTHING: LogIndex = LogIndex(0);

fn check(range: ByteRange) -> Result<(), Fault> {
    match range.start < range.end && range.end <= LOCKS_END {
        true => Ok(()),
        false => Err(Fault::new(Code::Invalid, format!("{range:?} is no range of bytes that can be locked"))),
    }
}

/// The session's connection is newer than this request's: its client has asked again, or is dead.
fn check_link(hub: &Hub, session: SessionId, link: u64) -> Result<(), Fault> {
    match hub.clients.get(&session).is_some_and(|newest| newest.number > link) {
        false => Ok(()),
        true => Err(Fault::new(Code::Unreachable, "the session has a newer connection")),
    }
}

/// Something that depends on the locks of others.
struct Looking<T> {
    wanted: Wanted,
    link: u64,
    waits: bool,
    /// None: others have it.
    look: fn(&mut Hub, Instant, &Wanted) -> Result<Option<T>, Fault>,
}

impl<T: Send + 'static> Job for Looking<T> {
    type Out = Option<T>;

    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> Attempt<Self::Out> {
        let (wanted, session) = (self.wanted, self.wanted.who.session);
        let sound = check_link(hub, session, self.link).and_then(|()| hub.state.inode(wanted.ino).map(drop));
        if let Err(fault) = sound {
            return over(Err(fault), NOTHING);
        }
        let unresumed = hub.leases.unresumed_besides(session);
        if !unresumed.is_empty() {
            hub.leases.wait_for(now, id, session, unresumed, &mut hub.effects);
            return None;
        }
        match (self.look)(hub, now, &wanted) {
            Ok(None) => {}
            found => return over(found, NOTHING),
        }
        // The locks of a dead client go with its lease, as soon as somebody asks.
        if !self.waits && !waits_for_dead(hub, now, &wanted) {
            return over(Ok(None), NOTHING);
        }
        if self.waits
            && let Err(fault) = hub.locks.wait(id, &wanted)
        {
            return over(Err(fault), NOTHING);
        }
        let blockers = hub.locks.blockers(&wanted);
        hub.leases.wait_for(now, id, session, blockers, &mut hub.effects);
        None
    }
}

fn waits_for_dead(hub: &Hub, now: Instant, wanted: &Wanted) -> bool {
    let dead = |other: &SessionId| *other != wanted.who.session && hub.leases.may_be_revoked(now, *other);
    hub.locks.blockers(wanted).iter().any(dead)
}

fn looking<T>(
    context: &Context,
    request: &LockRequest,
    waits: bool,
    look: fn(&mut Hub, Instant, &Wanted) -> Result<Option<T>, Fault>,
) -> Result<Looking<T>, Fault> {
    check(request.lock.range)?;
    let who = Who { session: context.session()?, owner: request.owner };
    let wanted = Wanted { ino: request.ino, who, lock: request.lock };
    Ok(Looking { wanted, link: context.link.number, waits, look })
}

pub async fn set(context: &Context, request: LockRequest) -> Result<Option<Locked>, Fault> {
    let take = |hub: &mut Hub, _: Instant, wanted: &Wanted| hub.locks.lock(wanted, &mut hub.effects);
    context.run(looking(context, &request, false, take)?).await
}

pub async fn wait(context: &Context, request: AwaitRequest) -> Result<(), Fault> {
    let is_free =
        |hub: &mut Hub, _: Instant, wanted: &Wanted| Ok(hub.locks.test(wanted).is_none().then_some(()));
    let waiting = looking(context, &request.request, true, is_free)?;
    let longest = Duration::from_millis(request.wait_ms.into()).min(LONGEST_WAIT);
    match tokio::time::timeout(longest, context.run(waiting)).await {
        Ok(waited) => waited.map(drop),
        // Whoever asked looks for itself.
        Err(_) => Ok(()),
    }
}

pub async fn test(context: &Context, request: LockRequest) -> Result<Option<InTheWay>, Fault> {
    let test = |hub: &mut Hub, now: Instant, wanted: &Wanted| {
        Ok(if waits_for_dead(hub, now, wanted) { None } else { Some(hub.locks.test(wanted)) })
    };
    Ok(context.run(looking(context, &request, false, test)?).await?.flatten())
}

pub async fn unlock(context: &Context, request: UnlockRequest) -> Result<Locked, Fault> {
    check(request.range)?;
    let who = Who { session: context.session()?, owner: request.owner };
    let step = |hub: &mut Hub, _: Instant| {
        check_link(hub, who.session, context.link.number)?;
        Ok((hub.locks.unlock(request.ino, who, request.range, &mut hub.effects)?, NOTHING))
    };
    context.step(step).await
}

pub async fn declare(context: &Context, owners: Vec<OwnerLocks>) -> Result<Vec<(Ino, LockOwner)>, Fault> {
    let session = context.session()?;
    let most = 2 * MAX_LOCKS_TOLD;
    let too_many = owners.len() > most || owners.iter().map(|owner| owner.locks.len()).sum::<usize>() > most;
    if too_many || owners.iter().any(|owner| owner.locks.len() > MAX_OWNER_LOCKS) {
        return Err(Fault::new(Code::Malformed, format!("a page has at most {most} locks")));
    }
    owners.iter().flat_map(|owner| &owner.locks).try_for_each(|lock| check(lock.range))?;
    let step = |hub: &mut Hub, _: Instant| {
        check_link(hub, session, context.link.number)?;
        let mut lost = Vec::new();
        for OwnerLocks { ino, owner, locks } in owners {
            let exists = hub.state.inode(ino).is_ok();
            let locks = if exists { locks } else { Vec::new() };
            let who = Who { session, owner };
            if !hub.locks.declare(ino, who, &locks, &mut hub.effects) {
                lost.push((ino, owner));
            }
        }
        Ok((lost, NOTHING))
    };
    context.step(step).await
}

pub async fn own(context: &Context, after: Option<(Ino, LockOwner)>) -> Result<Vec<OwnerLocks>, Fault> {
    let session = context.session()?;
    context.step(|hub: &mut Hub, _: Instant| Ok((hub.locks.page(session, after), NOTHING))).await
}
