//! Requests that look at inodes under shared leases, and the acquisition of leases itself.

use super::hub::{Hub, over};
use super::requests::{Attempt, Context, Job};
use crate::core::leases::{Need, Turn, WaiterId};
use godrive_proto::data::Layout;
use godrive_proto::frame::RequestHeader;
use godrive_proto::lease::*;
use godrive_proto::limits::MAX_FILE_BYTES;
use godrive_proto::meta::*;
use godrive_proto::time::Instant;
use godrive_proto::{Code, Fault, Ino, SessionId};
use std::time::Duration;

/// Most inodes in one [`AcquireRequest`], and most indexes in a layout's range.
const MAX_LIST: usize = 1024;
const MAX_ENTRIES: u32 = 2048;
/// What a directory page's serialised entries may take, well below a frame's body.
const MAX_PAGE_BYTES: usize = 512 << 10;

/// A request that looks at some inodes under shared leases: which ones, and what it then answers.
struct Look<Q, W, A> {
    session: SessionId,
    request: Q,
    wants: W,
    answer: A,
}

impl<Q, W, A, T> Job for Look<Q, W, A>
where
    Q: Send + 'static,
    T: Send + 'static,
    W: Fn(&Hub, &Q) -> Result<Vec<(Ino, Need)>, Fault> + Send + 'static,
    A: Fn(&mut Hub, Instant, SessionId, &Q, &[Ino]) -> Result<T, Fault> + Send + 'static,
{
    type Out = T;

    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> Attempt<T> {
        let wants = match (self.wants)(hub, &self.request) {
            Ok(wants) => wants,
            Err(fault) => return over(Err(fault), hub.must_be_durable(self.session)),
        };
        match hub.leases.ask(now, id, self.session, &wants, &mut hub.effects) {
            Turn::Wait => None,
            Turn::Go { without_grant } => {
                let answer = (self.answer)(hub, now, self.session, &self.request, &without_grant);
                over(answer, hub.must_be_durable(self.session))
            }
        }
    }
}

pub async fn lookup(context: &Context, request: LookupRequest) -> Result<LookedUp, Fault> {
    request.name.check().map_err(bad_name)?;
    let (mut found, owner) = look_up(context, request.clone(), true).await?;
    if let (Some(view), Some(owner)) = (&mut found.entry, owner) {
        match ask(context, owner, view.attr.ino).await {
            Some(attr) => ahead(&mut view.attr, &attr),
            None => return Ok(look_up(context, request, false).await?.0),
        }
    }
    Ok(found)
}

/// `past_owner`: a file that another session owns is not waited for. Its view is as last committed and has no lease then, and
/// the owner comes with it.
async fn look_up(
    context: &Context,
    request: LookupRequest,
    past_owner: bool,
) -> Result<(LookedUp, Option<SessionId>), Fault> {
    let session = context.session()?;
    let wants = move |hub: &Hub, request: &LookupRequest| {
        let (_, entry) = hub.state.lookup(request.parent, &request.name)?;
        let entry = entry.filter(|attr| !past_owner || owner(hub, session, attr).is_none());
        let entry = entry.map(|attr| (attr.ino, Need::Read));
        Ok([(request.parent, Need::Read)].into_iter().chain(entry).collect())
    };
    let answer =
        move |hub: &mut Hub, now: Instant, session: SessionId, request: &LookupRequest, without: &[Ino]| {
            let (parent, entry) = hub.state.lookup(request.parent, &request.name)?;
            let mut parent = bare(parent);
            hub.dress(now, session, &mut parent, Mode::Shared, without);
            let owner = entry.as_ref().and_then(|attr| owner(hub, session, attr));
            let mut entry = entry.map(bare);
            if let (Some(view), None) = (&mut entry, owner) {
                hub.dress(now, session, view, Mode::Shared, without);
            }
            Ok((LookedUp { parent, entry }, owner))
        };
    context.run(Look { session, request, wants, answer }).await
}

pub async fn get_attr(context: &Context, ino: Ino) -> Result<InodeView, Fault> {
    let (mut view, owner) = see(context, ino, true).await?;
    if let Some(owner) = owner {
        match ask(context, owner, ino).await {
            Some(attr) => ahead(&mut view.attr, &attr),
            None => return Ok(see(context, ino, false).await?.0),
        }
    }
    Ok(view)
}

/// As [`look_up`], of an inode.
async fn see(context: &Context, ino: Ino, past_owner: bool) -> Result<(InodeView, Option<SessionId>), Fault> {
    let session = context.session()?;
    let wants = move |hub: &Hub, ino: &Ino| {
        let owned = past_owner && owner(hub, session, &hub.state.attr(*ino)?).is_some();
        Ok(if owned { Vec::new() } else { vec![(*ino, Need::Read)] })
    };
    let answer = move |hub: &mut Hub, now: Instant, session: SessionId, ino: &Ino, without: &[Ino]| {
        let mut view = bare(hub.state.attr(*ino)?);
        let owner = owner(hub, session, &view.attr);
        if owner.is_none() {
            hub.dress(now, session, &mut view, Mode::Shared, without);
        }
        Ok((view, owner))
    };
    context.run(Look { session, request: ino, wants, answer }).await
}

/// The session that may be ahead of the master in a file's attributes.
fn owner(hub: &Hub, session: SessionId, attr: &Attr) -> Option<SessionId> {
    if attr.kind == Kind::File { hub.leases.owner_besides(session, attr.ino) } else { None }
}

/// Takes over what an owner of a file may be ahead in; all else the master knows itself.
fn ahead(attr: &mut Attr, owner: &Attr) {
    attr.size = owner.size;
    attr.mode = owner.mode & 0o7777;
    (attr.uid, attr.gid) = (owner.uid, owner.gid);
    (attr.atime, attr.mtime, attr.ctime) = (owner.atime, owner.mtime, owner.ctime);
}

/// An owner that does not answer within this is recalled instead, or found to be dead.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

async fn ask(context: &Context, owner: SessionId, ino: Ino) -> Option<Attr> {
    let link = context.shared.with(|hub, _| hub.clients.get(&owner).cloned())?;
    let header = RequestHeader { session: owner, term: context.shared.term, ..Default::default() };
    match link.connection.call::<Ask>(header, &ino, &[], ANSWER_WITHIN).await {
        Ok(reply) => reply.body.filter(|attr| attr.ino == ino && attr.size <= MAX_FILE_BYTES),
        Err(fault) => {
            tracing::debug!(session = %owner, %ino, "the owner was not asked: {fault}");
            None
        }
    }
}

pub async fn read_directory(
    context: &Context,
    request: ReadDirectoryRequest,
) -> Result<DirectoryPage, Fault> {
    if request.max_entries == 0 || request.max_entries > MAX_ENTRIES {
        return Err(Fault::new(Code::Malformed, format!("a directory page has 1 to {MAX_ENTRIES} entries")));
    }
    let wants = |_: &Hub, request: &ReadDirectoryRequest| Ok(vec![(request.directory, Need::Read)]);
    context.run(Look { session: context.session()?, request, wants, answer: directory_page }).await
}

fn directory_page(
    hub: &mut Hub,
    now: Instant,
    session: SessionId,
    request: &ReadDirectoryRequest,
    without: &[Ino],
) -> Result<DirectoryPage, Fault> {
    let found = hub.state.read_directory(request.directory, request.after, request.max_entries as usize)?;
    let mut directory = bare(found.attr);
    hub.dress(now, session, &mut directory, Mode::Shared, without);
    let mut page = DirectoryPage { directory, parent: found.parent, entries: Vec::new(), end: found.end };
    let mut bytes = 0;
    for (position, entry) in found.entries {
        // Names and views are bounded, so this estimate from above is safe.
        bytes += entry.name.0.len() + 256;
        if bytes > MAX_PAGE_BYTES {
            page.end = false;
            break;
        }
        let mut view = None;
        if request.views && hub.leases.free_now(session, entry.ino, Need::Read) {
            let mut dressed = bare(hub.state.attr(entry.ino)?);
            hub.dress(now, session, &mut dressed, Mode::Shared, &[]);
            view = Some(dressed);
        }
        page.entries.push(DirectoryEntry {
            position,
            name: entry.name,
            ino: entry.ino,
            kind: entry.kind,
            view,
        });
    }
    Ok(page)
}

pub async fn read_symlink(context: &Context, ino: Ino) -> Result<Target, Fault> {
    let wants = |_: &Hub, ino: &Ino| Ok(vec![(*ino, Need::Read)]);
    let answer = |hub: &mut Hub, now: Instant, session: SessionId, ino: &Ino, without: &[Ino]| {
        let (attr, target) = hub.state.target(*ino)?;
        let mut view = bare(attr);
        hub.dress(now, session, &mut view, Mode::Shared, without);
        Ok(Target { view, target: target.to_vec() })
    };
    context.run(Look { session: context.session()?, request: ino, wants, answer }).await
}

/// The owner of a file tells the master of every change of them, so that its lease is left alone.
pub async fn read_xattrs(context: &Context, ino: Ino) -> Result<Xattrs, Fault> {
    let session = context.session()?;
    let wants = move |hub: &Hub, ino: &Ino| {
        let owned = owner(hub, session, &hub.state.attr(*ino)?).is_some();
        Ok(if owned { Vec::new() } else { vec![(*ino, Need::Read)] })
    };
    let answer = |hub: &mut Hub, now: Instant, session: SessionId, ino: &Ino, without: &[Ino]| {
        let (attr, all) = hub.state.xattrs(*ino)?;
        let mut view = bare(attr);
        if owner(hub, session, &view.attr).is_none() {
            hub.dress(now, session, &mut view, Mode::Shared, without);
        }
        Ok(Xattrs { view, all })
    };
    context.run(Look { session, request: ino, wants, answer }).await
}

pub async fn acquire(context: &Context, request: AcquireRequest) -> Result<Acquired, Fault> {
    if request.inodes.is_empty() || request.inodes.len() > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("1 to {MAX_LIST} inodes can be acquired at once")));
    }
    if let Some(range) = request.layout {
        check_range(range)?;
    }
    let session = context.session()?;
    let wants = move |hub: &Hub, request: &AcquireRequest| {
        let need = if request.mode == Mode::Exclusive { Need::Own } else { Need::Share };
        for ino in &request.inodes {
            let attr = hub.state.attr(*ino)?;
            if !hub.state.is_open_to(session, &attr)? {
                let detail = format!("inode {ino} has no name any longer, and only others had it open");
                return Err(Fault::new(Code::Stale, detail));
            }
            if need == Need::Own && attr.kind != Kind::File {
                return Err(Fault::new(
                    Code::Invalid,
                    format!("inode {ino} is not a file: it cannot be owned"),
                ));
            }
        }
        Ok(request.inodes.iter().map(|ino| (*ino, need)).collect())
    };
    let answer =
        |hub: &mut Hub, now: Instant, session: SessionId, request: &AcquireRequest, without: &[Ino]| {
            let mut acquired = Acquired { views: Vec::new(), layout: Vec::new() };
            for ino in &request.inodes {
                let mut view = bare(hub.state.attr(*ino)?);
                hub.dress(now, session, &mut view, request.mode, without);
                acquired.views.push(view);
            }
            if let (Some(range), Some(ino)) = (request.layout, request.inodes.first()) {
                acquired.layout = localized(hub, now, hub.state.layout(*ino, range)?);
            }
            Ok(acquired)
        };
    context.run(Look { session, request, wants, answer }).await
}

pub async fn own(context: &Context, request: OwnRequest) -> Result<Owned, Fault> {
    if request.also.len() > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("at most {MAX_LIST} inodes can be owned besides")));
    }
    let wants = |hub: &Hub, request: &OwnRequest| {
        if hub.state.inode(request.directory)?.kind != Kind::Directory {
            return Err(Fault::bare(Code::NotDirectory));
        }
        Ok(vec![(request.directory, Need::Own)])
    };
    let answer = |hub: &mut Hub, now: Instant, session: SessionId, request: &OwnRequest, without: &[Ino]| {
        let mut directory = bare(hub.state.attr(request.directory)?);
        hub.dress(now, session, &mut directory, Mode::Exclusive, without);
        let mut also = Vec::new();
        for ino in &request.also {
            let mut view = match hub.state.attr(*ino) {
                Ok(attr) => bare(attr),
                Err(fault) if fault.code == Code::Stale => continue,
                Err(fault) => return Err(fault),
            };
            if hub.leases.free_now(session, *ino, Need::Own) {
                hub.dress(now, session, &mut view, Mode::Exclusive, &[]);
            }
            also.push(view);
        }
        Ok(Owned { directory, also })
    };
    context.run(Look { session: context.session()?, request, wants, answer }).await
}

pub async fn layout(context: &Context, request: LayoutRequest) -> Result<Vec<Layout>, Fault> {
    check_range(request.range)?;
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        if hub.leases.mode(session, request.ino).is_none() {
            return Err(no_lease(request.ino, "any"));
        }
        let layouts = localized(hub, now, hub.state.layout(request.ino, request.range)?);
        Ok((layouts, hub.must_be_durable(session)))
    };
    context.step(step).await
}

pub async fn layouts(context: &Context, request: LayoutsRequest) -> Result<Vec<(Ino, Vec<Layout>)>, Fault> {
    check_range(request.range)?;
    if request.inodes.is_empty() || request.inodes.len() > MAX_LIST {
        return Err(Fault::new(
            Code::Malformed,
            format!("layouts of 1 to {MAX_LIST} inodes can be asked at once"),
        ));
    }
    let session = context.session()?;
    let step = |hub: &mut Hub, now: Instant| {
        let (mut all, mut room) = (Vec::new(), MAX_LIST);
        for ino in request.inodes {
            if hub.leases.mode(session, ino).is_none() {
                continue;
            }
            let layouts = localized(hub, now, hub.state.layout(ino, request.range)?);
            let Some(left) = room.checked_sub(layouts.len()) else { break };
            room = left;
            all.push((ino, layouts));
        }
        Ok((all, hub.must_be_durable(session)))
    };
    context.step(step).await
}

pub async fn stat_fs(context: &Context, (): ()) -> Result<FsStat, Fault> {
    let session = context.session;
    let step = |hub: &mut Hub, now: Instant| {
        let replicas = u64::from(hub.parameters()?.replicas);
        let candidates = hub.nodes.candidates(now, &hub.reserved);
        let disks = hub.nodes.iter().flat_map(|(_, node)| node.disks.iter());
        let total: u64 = disks.map(|disk| disk.total_bytes).sum();
        let free: u64 = candidates.iter().map(|candidate| candidate.free_bytes).sum();
        let counts = hub.state.counts();
        let stat =
            FsStat { total_bytes: total / replicas, free_bytes: free / replicas, inodes: counts.inodes };
        Ok((stat, hub.must_be_durable(session)))
    };
    context.step(step).await
}

pub async fn barrier(context: &Context, (): ()) -> Result<(), Fault> {
    context.step(|hub, _| Ok(((), hub.journal.last()))).await
}

fn localized(hub: &Hub, now: Instant, mut layouts: Vec<Layout>) -> Vec<Layout> {
    for layout in &mut layouts {
        hub.localize(now, layout);
    }
    layouts
}

fn bare(attr: Attr) -> InodeView {
    InodeView { attr, lease: None }
}

fn check_range(range: LayoutRange) -> Result<(), Fault> {
    if range.count == 0 || range.count as usize > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("a layout's range has 1 to {MAX_LIST} indexes")));
    }
    Ok(())
}

fn bad_name(error: NameError) -> Fault {
    let code = if error == NameError::TooLong { Code::NameTooLong } else { Code::Invalid };
    Fault::new(code, error.to_string())
}

pub fn no_lease(ino: Ino, which: &str) -> Fault {
    Fault::new(
        Code::NoLease,
        format!("this needs {which} lease on inode {ino}, which the session does not hold"),
    )
}
