//! Making stable what is held: for fsync, and before a rename over a name.

use super::flush::Level;
use super::inode::{Inode, State};
use super::lease::{Step, while_held};
use super::losses::check_losses;
use super::{Backend, Fs};
use crate::core::gate::NO_PAGES;
use crate::error::{FsError, Result};
use godrive_proto::Version;
use godrive_proto::data::{Applied, ChunkState, Layout};
use godrive_proto::lease::Mode;
use godrive_proto::meta::Kind;
use std::sync::Arc;
use tokio::task::JoinSet;

/// Tries when the lease is recalled in between.
const MAX_ATTEMPTS: u32 = 16;

impl<B: Backend> Fs<B> {
    /// Makes everything of a file stable, whoever wrote it.
    pub(super) async fn make_stable(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        if inode.state.lock().kind().is_some_and(|kind| kind != Kind::File) {
            return Ok(());
        }
        if let Some(lost) = &inode.state.lock().error {
            return Err(lost.clone());
        }
        self.flush_inode(inode, Level::Stable { datasync: true }, Mode::Exclusive).await?;
        // What the master or the slaves have lost with their power is not there to be named.
        check_losses(inode)
    }

    /// Makes those chunks stable that are held but not known to be stable.
    pub(super) async fn sync_unstable(self: &Arc<Self>, inode: &Arc<Inode>) -> Result<()> {
        for _ in 0..MAX_ATTEMPTS {
            let ((generation, unstable), _) = self
                .under(inode, Mode::Shared, NO_PAGES, |state| {
                    Ok(match unknown_window(state) {
                        Some(window) => Step::Window(window),
                        None => Step::Done((state.generation, unstable(state))),
                    })
                })
                .await?;
            let result = self.sync_chunks(inode, unstable, generation).await;
            // Without the lease a chunk may be gone, or be another version: then its writer is asked first.
            if result.is_ok() || inode.state.lock().generation == generation {
                return result;
            }
        }
        Err(FsError::new(libc::EIO, "the lease was recalled again and again"))
    }

    /// All at once, so that a slave's sync covers many of them.
    async fn sync_chunks(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        indexes: Vec<u32>,
        generation: u64,
    ) -> Result<()> {
        let mut syncs = JoinSet::new();
        for index in indexes {
            let (fs, inode) = (self.clone(), inode.clone());
            syncs.spawn(async move { fs.sync_chunk(&inode, index, generation).await });
        }
        while let Some(ended) = syncs.join_next().await {
            // The first error decides; to wait for the deadlines of all others would take long.
            ended
                .unwrap_or_else(|error| Err(FsError::new(libc::EIO, format!("a sync broke off: {error}"))))?;
        }
        Ok(())
    }

    async fn sync_chunk(&self, inode: &Arc<Inode>, index: u32, generation: u64) -> Result<()> {
        let Some(alone) = inode.alone(index).await else { return Ok(()) };
        let known = inode.state.lock().slot_under(index, &alone).map(|slot| slot.layout.clone());
        let Some(mut layout) = known else { return Ok(()) };
        if layout.stable == layout.held {
            return Ok(());
        }
        let syncing = self.backend.sync(&mut layout);
        let Some(applied) = while_held(inode, generation, syncing).await else {
            return Err(FsError::new(libc::EIO, "the lease was recalled while a chunk was made stable"));
        };
        match applied {
            Ok(applied) => {
                layout.stable = layout.held;
                self.change(inode, |state| self.synced(state, layout, applied));
                Ok(())
            }
            Err(fault) => {
                self.change(inode, |state| self.learned(state, layout));
                Err(fault.into())
            }
        }
    }

    /// What a sync says of the chunk, also one that failed.
    fn learned(&self, state: &mut State, layout: Layout) {
        let Some(slot) =
            state.slots.get_mut(&layout.index).filter(|slot| slot.layout.chunk.id == layout.chunk.id)
        else {
            return;
        };
        if slot.layout.held != layout.held {
            slot.tag = self.new_tag();
        }
        state.renew_layout(layout);
    }

    fn synced(&self, state: &mut State, layout: Layout, applied: Applied) {
        let index = layout.index;
        let Some(slot) = state.slots.get(&index).filter(|slot| slot.layout.chunk.id == layout.chunk.id)
        else {
            return;
        };
        if slot.opened || state.chunks.contains_key(&index) {
            let chunk = ChunkState {
                index,
                chunk: layout.chunk.id,
                epoch: layout.epoch,
                held: layout.held,
                stable: true,
                used_bytes: applied.used_bytes,
            };
            state.chunks.insert(index, chunk);
        }
        self.learned(state, layout);
    }

    /// The master has newer epochs than a commit named: the layouts are renewed, and the commit says it again.
    pub(super) async fn renew_layouts(&self, inode: &Arc<Inode>) {
        let unsure: Vec<u32> = inode.state.lock().chunks.keys().copied().collect();
        for index in unsure {
            let Some(alone) = inode.alone(index).await else { continue };
            let known = {
                let state = inode.state.lock();
                state.slot_under(index, &alone).map(|slot| (slot.layout.clone(), state.generation))
            };
            let Some((mut layout, generation)) = known else { continue };
            // A sync meets the replicas' refusal of the old epoch, and comes back with the new one.
            let syncing = self.backend.sync(&mut layout);
            let Some(synced) = while_held(inode, generation, syncing).await else { return };
            match synced {
                Ok(applied) => {
                    layout.stable = layout.held;
                    self.change(inode, |state| self.synced(state, layout, applied));
                }
                Err(fault) => {
                    self.change(inode, |state| self.learned(state, layout));
                    tracing::warn!(ino = %inode.ino, chunk = index, %fault, "no newer layout; the next flush tries again");
                }
            }
        }
    }
}

fn last_window(state: &State) -> u32 {
    let chunks = state.size().div_ceil(u64::from(state.chunk_bytes().max(1)));
    (chunks.saturating_sub(1) / u64::from(super::inode::WINDOW_CHUNKS)) as u32
}

fn unknown_window(state: &State) -> Option<u32> {
    (0..=last_window(state)).find(|window| !state.windows.contains(window))
}

fn unstable(state: &State) -> Vec<u32> {
    let known = state.slots.iter().filter(|(index, _)| state.unknown_window(**index).is_none());
    let unstable = known
        .filter(|(_, slot)| slot.layout.held.version > Version(0) && slot.layout.held != slot.layout.stable);
    unstable.map(|(index, _)| *index).collect()
}
