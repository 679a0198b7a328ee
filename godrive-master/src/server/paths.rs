//! Where inodes are. Names are found by their directory, not by what they lead to.

use super::shared::Shared;
use godrive_proto::{Fault, Ino, ROOT};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

/// Entries of a directory in which names are looked for under one lock.
const SEARCHED: usize = 1_000;
/// Directories above each other that a path is made of, and its bytes; the paths that programs can use have fewer.
const DEPTH: usize = 4_096;
const BYTES: usize = 64 << 10;

/// The paths of inodes, in the tree or in the trash.
pub struct Paths<'a> {
    shared: &'a Arc<Shared>,
    /// The directory and the name of each that was looked for; of a file with several names, where it got the last one.
    places: BTreeMap<Ino, Option<(Ino, Vec<u8>)>>,
    /// Entries of directories that may still be looked at.
    searches: usize,
}

impl<'a> Paths<'a> {
    pub fn new(shared: &'a Arc<Shared>, searches: usize) -> Self {
        Self { shared, places: BTreeMap::new(), searches }
    }

    pub async fn below(&mut self, parent: Ino, name: &[u8]) -> Result<Option<Vec<u8>>, Fault> {
        let above = self.of(parent).await?;
        Ok(above.map(|above| if above.is_empty() { name.to_vec() } else { [&above, name].join(&b'/') }))
    }

    /// None: it has no name any more, one above it is gone, or there was too much to search.
    pub async fn of(&mut self, ino: Ino) -> Result<Option<Vec<u8>>, Fault> {
        let (mut at, mut names, mut bytes) = (ino, Vec::new(), 0);
        while at != ROOT {
            if !self.places.contains_key(&at) {
                self.find([at]).await?;
            }
            let Some(Some((above, name))) = self.places.get(&at) else { return Ok(None) };
            bytes += name.len() + 1;
            if names.len() == DEPTH || bytes > BYTES {
                return Ok(None);
            }
            names.push(name.clone());
            at = *above;
        }
        names.reverse();
        Ok(Some(names.join(&b'/')))
    }

    /// Looks for these at once: a directory that several are in is read once.
    pub async fn find(&mut self, inodes: impl IntoIterator<Item = Ino>) -> Result<(), Fault> {
        let mut wanted: BTreeMap<Ino, BTreeSet<Ino>> = BTreeMap::new();
        for ino in inodes.into_iter().filter(|ino| *ino != ROOT) {
            if self.places.contains_key(&ino) {
                continue;
            }
            let (trashed, parent) = self.shared.with(|hub, _| {
                let parent = hub.state.existing(ino)?.map(|inode| inode.parent);
                Ok::<_, Fault>((hub.state.trashed_name(ino)?, parent))
            })?;
            let place = trashed.map(|trashed| (trashed.parent, trashed.name.0));
            if let (None, Some(parent)) = (&place, parent) {
                wanted.entry(parent).or_default().insert(ino);
            }
            self.places.insert(ino, place);
        }
        for (directory, inodes) in wanted {
            self.search(directory, inodes).await?;
        }
        Ok(())
    }

    async fn search(&mut self, directory: Ino, mut inodes: BTreeSet<Ino>) -> Result<(), Fault> {
        let mut after = 0;
        while !inodes.is_empty() && self.searches > 0 {
            let page = self.shared.with(|hub, _| match hub.state.existing(directory)? {
                Some(_) => hub.state.read_directory(directory, after, SEARCHED).map(Some),
                None => Ok(None),
            })?;
            let Some(page) = page else { break };
            self.searches = self.searches.saturating_sub(page.entries.len());
            for (position, entry) in &page.entries {
                if inodes.remove(&entry.ino) {
                    self.places.insert(entry.ino, Some((directory, entry.name.0.clone())));
                }
                after = *position;
            }
            if page.end || page.entries.is_empty() {
                break;
            }
            tokio::task::yield_now().await;
        }
        Ok(())
    }
}
