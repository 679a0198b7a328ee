//! Asking for layouts: a window of a file; and, where one small file after the other is read, those of its neighbours
//! with it.

use super::inode::{Inode, State, WINDOW_CHUNKS};
use super::{Backend, Fs};
use crate::core::neighbours::Neighbours;
use crate::error::Result;
use godrive_proto::data::Layout;
use godrive_proto::lease::{GetLayout, GetLayouts, LayoutRange, LayoutRequest, LayoutsRequest, Mode};
use godrive_proto::meta::Kind;
use godrive_proto::{Code, Ino};
use parking_lot::Mutex;
use std::sync::Arc;

/// What a file was when its layouts were asked for.
struct Asked {
    inode: Arc<Inode>,
    generation: u64,
    cuts: u64,
}

impl<B: Backend> Fs<B> {
    /// Asks for the layouts of one window.
    pub(super) async fn load_window(&self, inode: &Arc<Inode>, window: u32) -> Result<()> {
        let _one = inode.acquiring.lock().await;
        let (generation, cuts, neighbours) = {
            let state = inode.state.lock();
            if state.windows.contains(&window) || !self.is_valid(&state) {
                return Ok(());
            }
            (state.generation, state.cuts, state.neighbours.clone().filter(|_| window == 0))
        };
        let range = LayoutRange { first: window * WINDOW_CHUNKS, count: WINDOW_CHUNKS };
        let others = neighbours.map_or_else(Vec::new, |neighbours| self.unplaced(inode.ino, &neighbours));
        let reply = if others.is_empty() {
            self.backend.query::<GetLayout>(&LayoutRequest { ino: inode.ino, range }).await
        } else {
            let inodes =
                std::iter::once(inode.ino).chain(others.iter().map(|asked| asked.inode.ino)).collect();
            let reply = self.backend.query::<GetLayouts>(&LayoutsRequest { inodes, range }).await;
            reply.and_then(|all| self.place_all(inode.ino, &others, all).ok_or_else(|| Code::NoLease.into()))
        };
        let layouts = match reply {
            Ok(layouts) => layouts,
            Err(fault) if fault.code == Code::NoLease => {
                self.lease_denied(inode, generation);
                return Ok(());
            }
            Err(fault) => return Err(fault.into()),
        };
        self.backend.meet(&layouts);
        let mut state = inode.state.lock();
        if state.generation == generation && state.cuts == cuts && state.mode().is_some() {
            state.place_window(window, layouts, || self.new_tag());
        }
        Ok(())
    }

    /// The neighbours that are read soon, if this one's reader is going through the directory.
    fn unplaced(&self, own: Ino, neighbours: &Mutex<Neighbours>) -> Vec<Asked> {
        let next = neighbours.lock().take_unplaced();
        let others = next.into_iter().filter(|ino| *ino != own);
        let others = others.filter_map(|ino| self.table.find(ino)).filter_map(|inode| {
            let state = inode.state.lock();
            let wants = self.is_valid(&state) && lacks_layouts(&state);
            let (generation, cuts) = (state.generation, state.cuts);
            drop(state);
            wants.then_some(Asked { inode, generation, cuts })
        });
        others.collect()
    }

    /// Places the neighbours' layouts, and gives out those of `own`; None if the master left them out.
    fn place_all(&self, own: Ino, asked: &[Asked], all: Vec<(Ino, Vec<Layout>)>) -> Option<Vec<Layout>> {
        let mut found = None;
        for (ino, layouts) in all {
            if ino == own {
                found = Some(layouts);
                continue;
            }
            let Some(Asked { inode, generation, cuts }) = asked.iter().find(|asked| asked.inode.ino == ino)
            else {
                continue;
            };
            // Whoever asks for a lease or a layout right now learns something newer.
            let Ok(_one) = inode.acquiring.try_lock() else { continue };
            let mut state = inode.state.lock();
            if (state.generation, state.cuts) == (*generation, *cuts) && lacks_layouts(&state) {
                state.place_window(0, layouts, || self.new_tag());
            }
        }
        found
    }

    /// Files that a page of a directory named: whose layouts may be asked for together.
    pub(super) fn note_neighbours(&self, files: Vec<Ino>) {
        if files.len() < 2 {
            return;
        }
        let inodes: Vec<_> = files.iter().filter_map(|ino| self.table.find(*ino)).collect();
        let neighbours = Arc::new(Mutex::new(Neighbours::new(files)));
        for inode in inodes {
            inode.state.lock().neighbours = Some(neighbours.clone());
        }
    }
}

/// A file with contents that is held shared, and of which it is not known where they are.
fn lacks_layouts(state: &State) -> bool {
    let has_contents = state.kind() == Some(Kind::File) && state.size() > 0;
    has_contents && state.mode() == Some(Mode::Shared) && state.unknown_window(0).is_some()
}
