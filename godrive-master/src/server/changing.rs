//! Requests that change the namespace, and what the owner of a file asks under its exclusive lease.

use super::hub::{Hub, over};
use super::reading::no_lease;
use super::requests::{Attempt, Context, Job};
use crate::core::leases::{Need, Turn, WaiterId};
use crate::core::record::{Body, Mutation, Origin, Placed, Reply, Taken};
use crate::core::state::Closing;
use godrive_proto::data::Layout;
use godrive_proto::lease::*;
use godrive_proto::limits::{MAX_ACCESSES, MAX_STEPS};
use godrive_proto::meta::*;
use godrive_proto::time::{Instant, Timestamp};
use godrive_proto::{Code, Fault, Ino, LogIndex, SessionId};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

/// Most indexes in an [`OpenChunksRequest`].
const MAX_LIST: usize = 1024;

/// A kept answer may have been on its way to wait for its own record: whoever's changes there are, they are waited for.
const EVERYBODY: SessionId = SessionId(0);

/// A change of the namespace: recalls what others hold of the inodes it changes, then is logged and applied.
struct Change {
    session: SessionId,
    origin: Origin,
    mutation: Mutation,
}

impl Job for Change {
    type Out = Reply;

    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> Attempt<Reply> {
        match self.try_now(hub, now, id) {
            Ok(Some((reply, durable))) => over(Ok(reply), durable),
            Ok(None) => None,
            Err(fault) => over(Err(fault), hub.must_be_durable(self.session)),
        }
    }
}

impl Change {
    fn try_now(
        &mut self,
        hub: &mut Hub,
        now: Instant,
        id: WaiterId,
    ) -> Result<Option<(Reply, LogIndex)>, Fault> {
        let owns = matches!(&self.mutation, Mutation::Create { request, .. } if request.for_writing);
        if let Some(reply) = repeated(hub, now, self.origin, owns)? {
            return Ok(Some((reply, hub.must_be_durable(EVERYBODY))));
        }
        let touched = match hub.state.check(self.session, hub.wall(), &self.mutation) {
            Ok(touched) => touched,
            Err(fault) => return self.refuse(hub, now, id, fault),
        };
        let changed: BTreeSet<Ino> =
            [&touched.changed, &touched.orphaned, &touched.removed].into_iter().flatten().copied().collect();
        let mut wants: Vec<(Ino, Need)> = changed.iter().map(|ino| (*ino, Need::Change)).collect();
        if let Mutation::Create { request, members } = &mut self.mutation {
            if touched.created.is_empty() {
                let (_, entry) = hub.state.lookup(request.parent, &request.name)?;
                let existing = [Some(request.parent), entry.map(|attr| attr.ino)];
                wants.extend(existing.into_iter().flatten().map(|ino| (ino, Need::Read)));
            } else if request.for_writing && members.is_empty() {
                // Without room the file is made all the same; its first write will say why it fails.
                let bytes = hub.parameters()?.chunk_bytes;
                *members = hub.place(now, bytes, &[]).unwrap_or_default();
            }
        }
        let Turn::Go { without_grant } = hub.leases.ask(now, id, self.session, &wants, &mut hub.effects)
        else {
            if let Mutation::Create { members, .. } = &mut self.mutation {
                members.clear();
            }
            return Ok(None);
        };
        if let Mutation::Unlink { open_elsewhere, .. } | Mutation::Rename { open_elsewhere, .. } =
            &mut self.mutation
        {
            let removed = touched.orphaned.iter().chain(&touched.removed);
            let open: BTreeSet<_> =
                removed.flat_map(|ino| hub.leases.open_elsewhere(self.session, *ino)).collect();
            *open_elsewhere = open.into_iter().collect();
        }
        let (answer, durable) = hub.propose(self.origin, Body::Mutation(self.mutation.clone()))?;
        let mut reply = answer?;
        dress_reply(hub, now, self.session, &mut reply, &without_grant, owns);
        // The reply shows more than this change: that a name exists already, what else is in the directory.
        Ok(Some((reply, durable.max(hub.must_be_durable(self.session)))))
    }

    /// Whoever owns a directory may have removed names that the master does not know to be gone: a refusal because of
    /// names waits until what they are in is owned by nobody else.
    fn refuse(
        &self,
        hub: &mut Hub,
        now: Instant,
        id: WaiterId,
        fault: Fault,
    ) -> Result<Option<(Reply, LogIndex)>, Fault> {
        // Of the named inode, too, or only of the directory that it is in.
        let of_entries = match fault.code {
            Code::Exists => false,
            Code::NotEmpty | Code::TooManyLinks | Code::IsDirectory | Code::NotDirectory => true,
            _ => return Err(fault),
        };
        let mut wants: BTreeSet<Ino> = BTreeSet::new();
        for (parent, name) in self.mutation.names() {
            wants.insert(parent);
            if of_entries && let Ok((_, Some(entry))) = hub.state.lookup(parent, name) {
                wants.insert(entry.ino);
            }
        }
        if of_entries && let Mutation::Link(request) = &self.mutation {
            wants.insert(request.ino);
        }
        let wants: Vec<_> = wants.into_iter().map(|ino| (ino, Need::Read)).collect();
        match hub.leases.ask(now, id, self.session, &wants, &mut hub.effects) {
            Turn::Go { .. } => Err(fault),
            Turn::Wait => Ok(None),
        }
    }
}

/// The views of a reply get their leases.
fn dress_reply(
    hub: &mut Hub,
    now: Instant,
    session: SessionId,
    reply: &mut Reply,
    without: &[Ino],
    owns: bool,
) {
    let shared = |hub: &mut Hub, view: &mut InodeView| hub.dress(now, session, view, Mode::Shared, without);
    match reply {
        Reply::Created(created) => {
            shared(hub, &mut created.parent);
            let mode = if owns && !created.existed { Mode::Exclusive } else { Mode::Shared };
            hub.dress(now, session, &mut created.entry, mode, without);
            if let Some(layout) = &mut created.layout {
                hub.reserve(layout);
                hub.localize(now, layout);
            }
        }
        Reply::Linked(linked) => {
            shared(hub, &mut linked.parent);
            shared(hub, &mut linked.entry);
        }
        Reply::Unlinked(unlinked) => {
            shared(hub, &mut unlinked.parent);
            if hub.state.inode(unlinked.entry.attr.ino).is_ok() {
                shared(hub, &mut unlinked.entry);
            }
        }
        Reply::Renamed(renamed) => {
            shared(hub, &mut renamed.parent);
            shared(hub, &mut renamed.new_parent);
            shared(hub, &mut renamed.entry);
            if let Some(other) = &mut renamed.other
                && hub.state.inode(other.attr.ino).is_ok()
            {
                shared(hub, other);
            }
        }
        Reply::View(view) => shared(hub, view),
        Reply::Batched(batched) => {
            for view in &mut batched.views {
                view.lease = hub.leases.current(session, view.attr.ino);
            }
        }
        // A writer's own requests leave its lease as it is.
        Reply::Truncated(truncated) => {
            truncated.view.lease = hub.leases.current(session, truncated.view.attr.ino);
            if let Some(trim) = &mut truncated.trim {
                hub.localize(now, trim);
            }
        }
        Reply::Committed(committed) => {
            committed.view.lease = hub.leases.current(session, committed.view.attr.ino)
        }
        Reply::Layouts(layouts) => {
            for layout in layouts {
                hub.reserve(layout);
                hub.localize(now, layout);
            }
        }
        Reply::Done | Reply::Session(_) | Reply::Token(_) => {}
    }
}

/// The kept answer to a mutation that was executed before, with what leases can be had now.
fn repeated(hub: &mut Hub, now: Instant, origin: Origin, owns: bool) -> Result<Option<Reply>, Fault> {
    if origin.sequence == 0 {
        return Ok(None);
    }
    let Some(answer) = hub.state.kept(origin.session, origin.sequence)? else { return Ok(None) };
    let mut reply = answer?;
    let views = match &mut reply {
        Reply::Created(created) => vec![&mut created.parent, &mut created.entry],
        Reply::Linked(linked) => vec![&mut linked.parent, &mut linked.entry],
        Reply::Unlinked(unlinked) => vec![&mut unlinked.parent, &mut unlinked.entry],
        Reply::Renamed(renamed) => {
            let other = renamed.other.as_mut();
            [&mut renamed.parent, &mut renamed.new_parent, &mut renamed.entry]
                .into_iter()
                .chain(other)
                .collect()
        }
        Reply::View(view) => vec![view],
        Reply::Truncated(truncated) => vec![&mut truncated.view],
        Reply::Committed(committed) => vec![&mut committed.view],
        Reply::Batched(_) | Reply::Done | Reply::Session(_) | Reply::Layouts(_) | Reply::Token(_) => vec![],
    };
    for view in views {
        hub.dress_again(now, origin.session, view, false);
    }
    if let Reply::Created(created) = &mut reply
        && owns
        && !created.existed
    {
        hub.dress_again(now, origin.session, &mut created.entry, true);
    }
    // After a restart a chunk that nobody claimed was closed: whoever made the file opens it before it writes.
    if let Reply::Created(created) = &mut reply
        && let Some(layout) = &created.layout
        && hub.state.chunk(layout.chunk.id)?.is_none_or(|chunk| chunk.open_by != Some(origin.session))
    {
        created.layout = None;
    }
    match &mut reply {
        Reply::Created(Created { layout: Some(layout), .. }) => hub.layout_again(now, layout),
        Reply::Truncated(Truncated { trim: Some(layout), .. }) => hub.layout_again(now, layout),
        Reply::Layouts(layouts) => layouts.iter_mut().for_each(|layout| hub.layout_again(now, layout)),
        _ => {}
    }
    Ok(Some(reply))
}

async fn change(context: &Context, mutation: Mutation) -> Result<Reply, Fault> {
    let session = context.session()?;
    let reply = context.run(Change { session, origin: context.origin, mutation }).await;
    context.shared.sync_soon.notify_one();
    reply
}

/// The requests that only turn into a [`Mutation`], and what they answer.
macro_rules! changes {
    ($($name:ident($request:ty) -> $reply:ident($out:ty) = $mutation:expr;)+) => {$(
        pub async fn $name(context: &Context, request: $request) -> Result<$out, Fault> {
            match change(context, $mutation(request)).await? {
                Reply::$reply(reply) => Ok(reply),
                other => Err(unexpected(&other)),
            }
        }
    )+};
}

changes! {
    create(CreateRequest) -> Created(Created) = |request| Mutation::Create { request, members: Vec::new() };
    make_node(MakeNodeRequest) -> Linked(Linked) = Mutation::MakeNode;
    link(LinkRequest) -> Linked(Linked) = Mutation::Link;
    restore(RestoreRequest) -> Linked(Linked) = Mutation::Restore;
    unlink(UnlinkRequest) -> Unlinked(Unlinked) = |request| Mutation::Unlink { request, open_elsewhere: Vec::new() };
    rename(RenameRequest) -> Renamed(Renamed) = |request| Mutation::Rename { request, open_elsewhere: Vec::new() };
    set_attr(SetAttrRequest) -> View(InodeView) = Mutation::SetAttr;
    set_xattr(SetXattrRequest) -> View(InodeView) = Mutation::SetXattr;
    remove_xattr(RemoveXattrRequest) -> View(InodeView) = Mutation::RemoveXattr;
}

/// Waits for those from before a restart: which files they have open, this master learns when they resume.
struct AllResumed(SessionId);

impl Job for AllResumed {
    type Out = ();

    fn attempt(&mut self, hub: &mut Hub, now: Instant, id: WaiterId) -> Attempt<()> {
        let unresumed = hub.leases.unresumed_besides(self.0);
        if unresumed.is_empty() {
            return over(Ok(()), LogIndex(0));
        }
        hub.leases.wait_for(now, id, self.0, unresumed, &mut hub.effects);
        None
    }
}

pub async fn batch(context: &Context, request: BatchRequest) -> Result<Batched, Fault> {
    if request.steps.is_empty() || request.steps.len() > MAX_STEPS {
        return Err(Fault::new(Code::Malformed, format!("a batch has 1 to {MAX_STEPS} steps")));
    }
    let session = context.session()?;
    let named = |Step::Unlink { request, ino, .. }: &Step| [request.parent, *ino];
    let inodes: BTreeSet<Ino> = request.steps.iter().flat_map(named).collect();
    let body = |hub: &mut Hub, _: Instant| {
        let taken = |step| Taken { step, open_elsewhere: Vec::new() };
        let mut steps: Vec<Taken> = request.steps.into_iter().map(taken).collect();
        // A step that removes the last name of an inode is the last that names it.
        let mut named = BTreeSet::new();
        for Taken { step: Step::Unlink { ino, .. }, open_elsewhere } in steps.iter_mut().rev() {
            if named.insert(*ino) {
                *open_elsewhere = hub.leases.open_elsewhere(session, *ino);
            }
        }
        Ok(Body::Mutation(Mutation::Batch(steps)))
    };
    context.run(AllResumed(session)).await?;
    let reply = as_owner(context, &inodes, body, |_, _| {}).await;
    context.shared.sync_soon.notify_one();
    match reply? {
        Reply::Batched(reply) => Ok(reply),
        other => Err(unexpected(&other)),
    }
}

pub async fn accessed(context: &Context, times: Vec<(Ino, Timestamp)>) -> Result<(), Fault> {
    if times.len() > MAX_ACCESSES {
        return Err(Fault::new(Code::Malformed, format!("a request has at most {MAX_ACCESSES} inodes")));
    }
    context.session()?;
    let step = |hub: &mut Hub, _: Instant| {
        // Nobody's clock sets a time that has not come.
        let latest = hub.wall();
        let times = times.into_iter().map(|(ino, at)| (ino, at.min(latest)));
        let says_something = |(ino, at): &(Ino, Timestamp)| {
            hub.state.attr(*ino).is_ok_and(|attr| *at > attr.atime && *at >= attr.ctime)
        };
        let times: Vec<_> = times.filter(says_something).collect();
        if !times.is_empty() {
            hub.decide(Body::Accessed { times })?.0?;
        }
        Ok(((), LogIndex(0)))
    };
    context.step(step).await
}

/// What only the owner of inodes may ask; it never waits for leases. What others had changed of them was waited for
/// by the answer that granted the leases, so these show nothing new but what they change.
async fn as_owner(
    context: &Context,
    inodes: &BTreeSet<Ino>,
    body: impl FnOnce(&mut Hub, Instant) -> Result<Body, Fault>,
    then: impl FnOnce(&mut Hub, Instant),
) -> Result<Reply, Fault> {
    let (session, origin) = (context.session()?, context.origin);
    let step = |hub: &mut Hub, now: Instant| {
        if let Some(mut reply) = repeated(hub, now, origin, false)? {
            if let Reply::Batched(batched) = &mut reply {
                let left = inodes.iter().filter_map(|ino| hub.state.attr(*ino).ok());
                batched.views = left.map(|attr| InodeView { attr, lease: None }).collect();
                dress_reply(hub, now, session, &mut reply, &[], false);
            }
            return Ok((reply, hub.must_be_durable(EVERYBODY)));
        }
        let owned = |ino: &Ino| hub.leases.mode(session, *ino) == Some(Mode::Exclusive);
        if let Some(ino) = inodes.iter().find(|ino| !owned(ino)) {
            return Err(no_lease(*ino, "the exclusive"));
        }
        let body = body(hub, now)?;
        let (answer, durable) = hub.propose(origin, body)?;
        let mut reply = answer?;
        then(hub, now);
        dress_reply(hub, now, session, &mut reply, &[], false);
        Ok((reply, durable))
    };
    context.step(step).await
}

pub async fn truncate(context: &Context, request: TruncateRequest) -> Result<Truncated, Fault> {
    let ino = request.ino;
    let body = |_: &mut Hub, _: Instant| Ok(Body::Mutation(Mutation::Truncate(request)));
    match as_owner(context, &BTreeSet::from([ino]), body, |_, _| {}).await? {
        Reply::Truncated(truncated) => Ok(truncated),
        other => Err(unexpected(&other)),
    }
}

pub async fn commit(context: &Context, mut request: CommitRequest) -> Result<Committed, Fault> {
    let (ino, keeps, session) = (request.ino, request.keeps, context.session()?);
    let chunks: Vec<_> = request.chunks.iter().map(|state| state.chunk).collect();
    let in_doubt = AtomicBool::new(false);
    let body = |hub: &mut Hub, _: Instant| {
        // It does not name what an earlier one did, which was lost with the power of the master of then.
        if keeps == Mode::Shared && hub.has_chunks_in_doubt(session, ino, &chunks)? {
            in_doubt.store(true, Ordering::Relaxed);
            request.keeps = Mode::Exclusive;
        }
        Ok(Body::Mutation(Mutation::Commit(request)))
    };
    let then = |hub: &mut Hub, now: Instant| {
        for chunk in &chunks {
            hub.reserved.release(*chunk);
        }
        if in_doubt.load(Ordering::Relaxed)
            && let Err(fault) = hub.close_chunks(session, ino, Closing::GivenBack)
        {
            tracing::error!(%session, %ino, "its chunks cannot be closed: {fault}");
        }
        if keeps == Mode::Shared {
            hub.leases.downgrade(now, session, ino, &mut hub.effects);
        }
    };
    let reply = as_owner(context, &BTreeSet::from([ino]), body, then).await;
    context.shared.sync_soon.notify_one();
    match reply? {
        Reply::Committed(committed) => Ok(committed),
        other => Err(unexpected(&other)),
    }
}

/// Executed once, so that a late copy closes nothing that was opened since.
pub async fn give_up(context: &Context, ino: Ino) -> Result<Option<Lease>, Fault> {
    let (session, origin) = (context.session()?, context.origin);
    let step = |hub: &mut Hub, now: Instant| {
        let durable = match repeated(hub, now, origin, false)? {
            Some(_) => hub.must_be_durable(EVERYBODY),
            None => {
                let (answer, durable) = hub.propose(origin, Body::ChunksGivenUp { session, ino })?;
                answer?;
                hub.leases.downgrade(now, session, ino, &mut hub.effects);
                durable
            }
        };
        Ok((hub.leases.current(session, ino), durable))
    };
    context.step(step).await
}

pub async fn open_chunks(context: &Context, request: OpenChunksRequest) -> Result<Vec<Layout>, Fault> {
    if request.indexes.is_empty() || request.indexes.len() > MAX_LIST {
        return Err(Fault::new(Code::Malformed, format!("1 to {MAX_LIST} chunks can be opened at once")));
    }
    let ino = request.ino;
    let body = |hub: &mut Hub, now: Instant| {
        let bytes = hub.state.inode(ino)?.chunk_bytes;
        let mut placed: Vec<Placed> = Vec::new();
        for index in hub.state.unplaced(ino, &request.indexes)? {
            match hub.place(now, bytes, &placed) {
                Ok(members) => placed.push(Placed { index, members }),
                // Asked ahead: what there is room for is placed, from the front.
                Err(_) if !placed.is_empty() => break,
                Err(fault) => return Err(fault),
            }
        }
        let cut = |index: &u32| placed.iter().any(|p| p.index == *index);
        let missing = hub.state.unplaced(ino, &request.indexes)?;
        let indexes = request.indexes.iter().filter(|index| cut(index) || !missing.contains(index)).copied();
        Ok(Body::OpenChunks { ino, indexes: indexes.collect(), placed })
    };
    match as_owner(context, &BTreeSet::from([ino]), body, |_, _| {}).await? {
        Reply::Layouts(layouts) => Ok(layouts),
        other => Err(unexpected(&other)),
    }
}

fn unexpected(reply: &Reply) -> Fault {
    tracing::error!(?reply, "the state answered with a reply of another operation");
    Fault::new(Code::Internal, "the answer does not fit the request; the master logged it")
}
