//! What happens to a disk behind its programs' backs: blocks exchanged or misplaced, files cut, the whole of it set back,
//! copied to another machine or replaced by an empty one. All of it is on the medium at once, as rot is.

use super::image::{Image, PAGE};
use super::{Entry, SimulatedDisk, State};
use std::sync::Arc;

/// A page of a file.
pub type Block<'a> = (&'a str, u64);

impl SimulatedDisk {
    /// Another disk with what programs see on this one now, all of it stable.
    pub fn copy(&self) -> Self {
        let state = self.state.lock();
        let copied = |id: &u64| Some((*id, state.files.get(id)?.settled()));
        let files = super::files_of(&state.live).collect::<Vec<_>>();
        let copy = State {
            files: files.iter().filter_map(copied).collect(),
            next_file: state.next_file,
            live: state.live.clone(),
            durable: state.live.clone(),
            ..State::new(state.capacity)
        };
        Self { state: Arc::new(parking_lot::Mutex::new(copy)) }
    }

    /// Holds what the other one holds, and nothing else. Handles from before fail.
    pub fn set_back(&self, image: &Self) {
        let Some(copy) = Arc::into_inner(image.copy().state).map(parking_lot::Mutex::into_inner) else {
            return;
        };
        let mut state = self.state.lock();
        let State { capacity, sync_takes, incarnation, .. } = *state;
        *state = State { capacity, sync_takes, incarnation: incarnation + 1, ..copy };
    }

    /// One file is as on the other disk, or is not there. False if it is on neither.
    pub fn set_back_file(&self, path: &str, image: &Self) -> bool {
        let old = {
            let image = image.state.lock();
            match image.live.get(path) {
                Some(Entry::File(file)) => image.files.get(file).map(Image::settled),
                _ => None,
            }
        };
        let mut state = self.state.lock();
        match (old, state.live.get(path).copied()) {
            (Some(old), Some(Entry::File(file))) => {
                state.files.insert(file, old);
            }
            (Some(old), None) => {
                let file = state.next_file;
                state.next_file += 1;
                state.files.insert(file, old);
                state.live.insert(path.to_owned(), Entry::File(file));
                state.durable.insert(path.to_owned(), Entry::File(file));
            }
            (None, Some(Entry::File(_))) => {
                state.live.remove(path);
                state.durable.remove(path);
            }
            _ => return false,
        }
        true
    }

    /// An empty disk in its place. Handles from before fail.
    pub fn replace(&self) {
        let capacity = self.state.lock().capacity;
        self.set_back(&Self::new(capacity));
    }

    /// Files with their lengths, by name.
    pub fn files(&self) -> Vec<(String, u64)> {
        let state = self.state.lock();
        let len = |file: &u64| state.files.get(file).map_or(0, |image| image.len);
        let file = |(path, entry): (&String, &Entry)| match entry {
            Entry::File(file) => Some((path.clone(), len(file))),
            Entry::Directory => None,
        };
        state.live.iter().filter_map(file).collect()
    }

    /// The two blocks change places. False if one of them is not there.
    pub fn exchange(&self, one: Block<'_>, other: Block<'_>) -> bool {
        let (Some(first), Some(second)) = (self.block(one), self.block(other)) else { return false };
        self.set_block(one, &second) && self.set_block(other, &first)
    }

    /// What belongs to one place lies (also) in another. False if one of them is not there.
    pub fn misplace(&self, from: Block<'_>, to: Block<'_>) -> bool {
        self.block(from).is_some_and(|bytes| self.block(to).is_some() && self.set_block(to, &bytes))
    }

    /// The file ends here.
    pub fn cut(&self, path: &str, len: u64) -> bool {
        self.with_file(path, |image| {
            image.set_len(len.min(image.len));
            *image = image.settled();
        })
        .is_some()
    }

    /// A block as programs see it, if it was ever written.
    pub fn block(&self, (path, block): Block<'_>) -> Option<Vec<u8>> {
        self.with_file(path, |image| {
            let mut bytes = vec![0; PAGE as usize];
            let whole = image.has_page(block) && (block + 1) * PAGE <= image.len;
            whole.then(|| {
                image.read(&mut bytes, block * PAGE);
                bytes
            })
        })?
    }

    /// The block holds this. False if there is no such file.
    pub fn set_block(&self, (path, block): Block<'_>, bytes: &[u8]) -> bool {
        self.with_file(path, |image| image.put(block, bytes)).is_some()
    }

    pub(super) fn with_file<T>(&self, path: &str, act: impl FnOnce(&mut Image) -> T) -> Option<T> {
        let mut state = self.state.lock();
        let Some(Entry::File(file)) = state.live.get(path).copied() else { return None };
        state.files.get_mut(&file).map(act)
    }
}
