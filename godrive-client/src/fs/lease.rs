//! Operations under a lease.
//!
//! [`Fs::under`] is the loop all of them share: look at the state; where a lease, a layout or an open chunk is missing, or
//! the gate is closed, get it or wait without holding anything a recall waits for, and look again.

use super::inode::{Inode, State, WINDOW_CHUNKS};
use super::passes::{Pass, Waiting};
use super::types::Invalidation;
use super::{Backend, Fs};
use crate::error::{FsError, Result};
use godrive_proto::Code;
use godrive_proto::lease::{Acquire, AcquireRequest, LayoutRange, Mode, OpenChunks, OpenChunksRequest};
use godrive_proto::meta::Kind;
use std::ops::Range;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;
use tokio::sync::Notify;

/// Attempts that an operation has, however slow each of them is.
const MIN_LOOKS: u32 = 8;
/// The longest between two looks of an operation that waits for something of this mount.
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// What an action under a lease comes to.
pub(super) enum Step<T> {
    Done(T),
    /// The layouts of this window must be known.
    Window(u32),
    /// These chunks must be open for writing: the first so many are needed, the others are asked ahead.
    Open(Vec<u32>, usize),
    /// What lies behind the end must be made zeros.
    Trim,
    /// Something that is under way must end first.
    Wait,
}

/// What is missing.
enum Need {
    Lease,
    Gate,
    Window(u32),
    Open(Vec<u32>, usize),
    Trim,
    Wait,
}

/// An operation that has got a lease and not yet used it; a recall gives it a moment.
pub(super) struct Claim(Arc<Inode>);

impl Claim {
    pub(super) fn new(inode: &Arc<Inode>) -> Self {
        inode.state.lock().claims += 1;
        Self(inode.clone())
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        self.0.state.lock().claims -= 1;
        self.0.changed.notify_waiters();
    }
}

/// Runs a request to the replicas as long as the lease that covers it stands. None: it was lost, and the request is
/// dropped before it can go on to an epoch in which others write.
pub(super) async fn while_held<T>(
    inode: &Arc<Inode>,
    generation: u64,
    request: impl Future<Output = T>,
) -> Option<T> {
    while_so(&inode.changed, || inode.state.lock().generation == generation, request).await
}

/// Runs a request as long as `is_so`, of which `changed` tells when it may have ended. None: it has, and the request is
/// dropped without another step.
pub(super) async fn while_so<T>(
    changed: &Notify,
    is_so: impl Fn() -> bool,
    request: impl Future<Output = T>,
) -> Option<T> {
    let mut request = std::pin::pin!(request);
    loop {
        let mut changed = std::pin::pin!(changed.notified());
        changed.as_mut().enable();
        let next = std::future::poll_fn(|context| {
            if !is_so() {
                return Poll::Ready(Some(None));
            }
            match request.as_mut().poll(context) {
                Poll::Ready(result) => Poll::Ready(Some(Some(result))),
                Poll::Pending => changed.as_mut().poll(context).map(|()| None),
            }
        });
        if let Some(outcome) = next.await {
            return outcome;
        }
    }
}

impl<B: Backend> Fs<B> {
    /// Runs `act` on the state under a lease of at least `mode`; `range` are the pages that the kernel has locked for
    /// this operation. The pass lasts until the kernel has been answered.
    pub(super) async fn under<T>(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        mode: Mode,
        range: Range<u64>,
        mut act: impl FnMut(&mut State) -> Result<Step<T>> + Send,
    ) -> Result<(T, Pass)>
    where
        T: Send,
    {
        let (waiting, recalled) = {
            let waiting = (!range.is_empty()).then(|| Waiting::new(inode, range.clone()));
            (waiting, inode.state.lock().lease.recalled())
        };
        let mut claim = None;
        let started = tokio::time::Instant::now();
        let mut looks = 0;
        loop {
            looks += 1;
            let late = self.limits.deadline.is_some_and(|deadline| started.elapsed() > deadline * 2);
            if late && looks > MIN_LOOKS {
                return Err(FsError::new(
                    libc::EIO,
                    format!("no progress in {looks} attempts on {}", inode.ino),
                ));
            }
            let need = {
                let mut state = inode.state.lock();
                match self.attempt(inode, &mut state, mode, &range, &mut act)? {
                    Ok((value, pass)) => {
                        if let Some(waiting) = &waiting {
                            waiting.end(&mut state);
                        }
                        let overtaken = state.lease.recalled() != recalled;
                        drop(state);
                        if overtaken && mode == Mode::Exclusive && !range.is_empty() {
                            self.invalidate_later(Invalidation::Pages(inode.ino, range));
                        }
                        return Ok((value, pass));
                    }
                    Err(need) => need,
                }
            };
            match need {
                Need::Gate => self.pass_gate(inode).await?,
                Need::Lease => {
                    self.acquire(inode, mode).await?;
                    claim.get_or_insert_with(|| Claim::new(inode));
                }
                Need::Window(window) => self.load_window(inode, window).await?,
                Need::Trim => self.trim(inode).await?,
                Need::Wait => self.wait_for(inode, LOOK_AGAIN, |state| !state.telling_closed).await,
                Need::Open(indexes, needed) => self.open_chunks(inode, indexes, needed).await?,
            }
        }
    }

    /// One look, without waiting: for the `try_*` operations.
    pub(super) fn try_under<T>(
        &self,
        inode: &Arc<Inode>,
        mode: Mode,
        range: Range<u64>,
        mut act: impl FnMut(&mut State) -> Result<Step<T>>,
    ) -> Option<Result<(T, Pass)>> {
        let mut state = inode.state.lock();
        match self.attempt(inode, &mut state, mode, &range, &mut act) {
            Err(error) => Some(Err(error)),
            Ok(Ok(done)) => Some(Ok(done)),
            Ok(Err(_)) => None,
        }
    }

    fn attempt<T>(
        &self,
        inode: &Arc<Inode>,
        state: &mut State,
        mode: Mode,
        range: &Range<u64>,
        act: &mut impl FnMut(&mut State) -> Result<Step<T>>,
    ) -> Result<std::result::Result<(T, Pass), Need>> {
        if state.mode() < Some(mode) || self.backend.lease_remaining().is_none() {
            return Ok(Err(if state.gate.is_closed() { Need::Gate } else { Need::Lease }));
        }
        state.used = true;
        // What the kernel does not cache needs no pass.
        let pass = if state.gate.is_closed() && range.is_empty() {
            None
        } else {
            match state.gate.admit(range.clone()) {
                Some(id) => Some(id),
                None => return Ok(Err(Need::Gate)),
            }
        };
        let step = match self.account(inode, state, act) {
            Ok(Step::Done(value)) => {
                return Ok(Ok((value, pass.map_or_else(Pass::default, |id| Pass::new(inode, id)))));
            }
            step => step,
        };
        if let Some(id) = pass {
            state.gate.leave(id);
        }
        match step? {
            Step::Done(_) => Err(FsError::new(libc::EIO, "unreachable: done was answered above")),
            Step::Window(window) => Ok(Err(Need::Window(window))),
            Step::Trim => Ok(Err(Need::Trim)),
            Step::Wait => Ok(Err(Need::Wait)),
            Step::Open(indexes, needed) => Ok(Err(Need::Open(indexes, needed))),
        }
    }

    /// Waits until no recall is under way.
    async fn pass_gate(&self, inode: &Arc<Inode>) -> Result<()> {
        let wait = async {
            loop {
                let changed = inode.changed.notified();
                tokio::pin!(changed);
                changed.as_mut().enable();
                if !inode.state.lock().gate.is_closed() {
                    return;
                }
                // An invalidation may let this operation in while the gate stays closed.
                if tokio::time::timeout(LOOK_AGAIN, changed).await.is_err() {
                    return;
                }
            }
        };
        self.within("waiting for a recall", wait).await
    }

    /// Asks the master for a lease, with the layouts of the first window.
    pub(super) async fn acquire(&self, inode: &Arc<Inode>, mode: Mode) -> Result<()> {
        let _one = inode.acquiring.lock().await;
        if inode.state.lock().mode() >= Some(mode) {
            // It is held, and covers again when the session is renewed. To ask for it could mean to wait for a recall of it, which may
            // wait for the flush that asks.
            self.backend.admitted().await?;
        }
        let is_file = {
            let state = inode.state.lock();
            if state.mode() >= Some(mode) && self.is_valid(&state) {
                return Ok(());
            }
            state.kind().is_none_or(|kind| kind == Kind::File)
        };
        self.tell_given_up(inode).await?;
        self.stats.meta_misses.add(1);
        let layout = is_file.then_some(LayoutRange { first: 0, count: WINDOW_CHUNKS });
        let request = AcquireRequest { inodes: vec![inode.ino], mode, layout };
        let reply = self.backend.query::<Acquire>(&request).await?;
        self.backend.meet(&reply.layout);
        let Some(view) = reply.views.iter().find(|view| view.attr.ino == inode.ino) else {
            return Err(FsError::new(
                libc::EIO,
                format!("the master granted a lease without inode {}", inode.ino),
            ));
        };
        let mut state = inode.state.lock();
        tracing::debug!(ino = %inode.ino, ?mode, lease = ?view.lease, size = view.attr.size, "a lease is granted");
        state.see(view);
        if state.is_fresh(view) && view.attr.kind == Kind::File && is_file {
            state.place_window(0, reply.layout, || self.new_tag());
        }
        Ok(())
    }

    /// Opens chunks for writing. Those asked ahead are given up where there is no room for all.
    async fn open_chunks(&self, inode: &Arc<Inode>, indexes: Vec<u32>, needed: usize) -> Result<()> {
        let _one = inode.acquiring.lock().await;
        let (generation, cuts) = {
            let state = inode.state.lock();
            let open = |index: &u32| state.slots.get(index).is_some_and(|slot| slot.opened);
            if !state.is_exclusive() || indexes[..needed].iter().all(open) {
                return Ok(());
            }
            (state.generation, state.cuts)
        };
        let ask = |indexes: Vec<u32>| async move {
            self.backend.query::<OpenChunks>(&OpenChunksRequest { ino: inode.ino, indexes }).await
        };
        let first = indexes[..needed].to_vec();
        let reply = match ask(indexes.clone()).await {
            Err(fault) if fault.code == Code::NoSpace && needed < indexes.len() => ask(first).await,
            reply => reply,
        };
        let layouts = match reply {
            Ok(layouts) => layouts,
            Err(fault) if fault.code == Code::NoLease => {
                self.lease_denied(inode, generation);
                return Ok(());
            }
            Err(fault) => return Err(fault.into()),
        };
        if let Some(missing) =
            indexes[..needed].iter().find(|index| !layouts.iter().any(|layout| layout.index == **index))
        {
            return Err(FsError::new(
                libc::EIO,
                format!("the master opened no chunk {missing} of {}", inode.ino),
            ));
        }
        self.backend.meet(&layouts);
        self.change(inode, |state| {
            if state.generation == generation && state.cuts == cuts && state.is_exclusive() {
                for layout in layouts {
                    state.place(layout, true, || self.new_tag());
                }
            }
        });
        Ok(())
    }

    /// The master says that a lease is not held which this mount believed to hold: nothing under it can be trusted.
    pub(super) fn lease_denied(&self, inode: &Arc<Inode>, generation: u64) {
        let lost = self.change(inode, |state| {
            if state.generation != generation {
                return false;
            }
            let dirty = state.is_dirty();
            if dirty {
                state.lose_dirty();
            }
            self.forget(state);
            dirty
        });
        inode.changed.notify_waiters();
        if lost {
            self.tell_later(inode);
            self.note_error(
                inode,
                FsError::new(libc::EIO, "the master did not know the exclusive lease any longer"),
            );
        }
        self.invalidate_later(Invalidation::Pages(inode.ino, crate::core::gate::EVERYTHING));
    }
}
