//! The folder of its own that a client fills and empties, and what it sees of those of others.

use super::{Outcome, Worker, now};
use crate::folder::{self, Change};
use crate::oracle::Safety;
use crate::shared::{Folder, Kind};
use crate::stamp::{Found, Stamp};
use godrive_client::fs::Caller;
use godrive_proto::meta::NewNode;
use godrive_proto::{Ino, ROOT};
use rand::Rng;
use std::collections::VecDeque;

/// Folders have numbers from here on, as files of the oracle.
const FOLDERS: u32 = 1000;
/// The most changes of a folder in a row.
const BURST: usize = 6;

/// The folder that a client works in, and what is left to do of its present round.
pub(super) struct OwnFolder {
    known: Folder,
    /// Its own, and those of the files that were made there.
    inodes: Vec<Ino>,
    base: u64,
    round: VecDeque<(u64, Change)>,
    /// That the mount had met when it was made.
    errors: u64,
}

impl Worker {
    /// Some changes of the own folder, one after the other.
    pub(super) async fn change_folder(&mut self) {
        for _ in 0..self.rng.random_range(1..=BURST) {
            self.awake().await;
            self.give_up_folder();
            let mut own = match self.folder.take() {
                Some(own) => own,
                None => match self.make_folder().await {
                    Ok(own) => own,
                    Err(error) => return self.shared.error("make a folder", &error),
                },
            };
            if own.round.is_empty() {
                let before = std::mem::replace(&mut own.base, self.sequence);
                self.sequence = folder::after(self.sequence);
                own.round = folder::round(own.base, (before > 0).then(|| folder::left(before))).into();
            }
            let Some((sequence, change)) = own.round.pop_front() else { return };
            let (file, stamp) = (own.known.file, Stamp { client: self.id, sequence });
            self.shared.doing(self.id, format!("{change:?} in folder {file}"));
            let began = now();
            self.shared.with(|notes| notes.oracle.write_begins((file, 0), stamp));
            let removes = matches!(change, Change::Remove { .. });
            match self.change(own.known.ino, change).await {
                Ok(made) => own.inodes.extend(made),
                Err(error) => {
                    self.given_up.extend(own.inodes);
                    self.shared.with(|notes| notes.oracle.failed(self.id, file));
                    return self.shared.error("change a folder", &error);
                }
            }
            self.shared.with(|notes| {
                notes.oracle.write_ends((file, 0), stamp);
                if !removes {
                    // The master has answered it, and what came before it.
                    notes.oracle.safe(self.id, file, sequence + 1, Safety::Held);
                }
            });
            self.shared.acknowledged(self.id);
            if removes {
                self.shared.done(Kind::Removal, self.id, began);
            }
            if self.rng.random_bool(0.1) {
                match self.sync_directory(own.known.ino).await {
                    Ok(()) => self
                        .shared
                        .with(|notes| notes.oracle.safe(self.id, file, sequence + 1, Safety::Stable)),
                    Err(error) => {
                        self.given_up.extend(own.inodes);
                        self.shared.with(|notes| notes.oracle.failed(self.id, file));
                        return self.shared.error("fsync of a folder", &error);
                    }
                }
            }
            self.folder = Some(own);
        }
    }

    /// What was changed there ahead of the master may be undone, or the mount could not carry it out: what is changed behind
    /// that would leave a gap. Nobody asks again, so it is told at the end.
    pub(super) fn give_up_folder(&mut self) {
        let disturbances = self.shared.with(|notes| notes.oracle.disturbances);
        let errors = self.fs.stats().errors_after_close;
        let is_unsound = |own: &mut OwnFolder| own.known.disturbances != disturbances || own.errors != errors;
        self.given_up.extend(self.folder.take_if(is_unsound).into_iter().flat_map(|own| own.inodes));
    }

    async fn make_folder(&mut self) -> Outcome<OwnFolder> {
        let disturbances = self.shared.with(|notes| notes.oracle.disturbances);
        self.sequence += 1;
        let name = format!("folder-{}-{}", self.id, self.sequence);
        self.shared.doing(self.id, "make a folder");
        let made = self.fs.make(ROOT, name.as_bytes(), NewNode::Directory, 0o755, Caller::default()).await?;
        let ino = made.value.attr.ino;
        let known = self.shared.with(|notes| {
            let known = Folder { ino, file: FOLDERS + notes.made_folders, disturbances };
            notes.made_folders += 1;
            notes.folders.insert(self.id, known);
            known
        });
        let errors = self.fs.stats().errors_after_close;
        Ok(OwnFolder { known, inodes: vec![ino], base: 0, round: VecDeque::new(), errors })
    }

    /// Returns the inode that it made.
    async fn change(&self, folder: Ino, change: Change) -> Outcome<Option<Ino>> {
        match change {
            Change::Make { name } => {
                let name = name.to_string();
                let made =
                    self.fs.make(folder, name.as_bytes(), NewNode::File, 0o644, Caller::default()).await;
                made.map(|made| Some(made.value.attr.ino))
            }
            Change::Remove { name } => {
                let name = name.to_string();
                let removed = match self.fs.try_unlink(folder, name.as_bytes()) {
                    Some(removed) => removed,
                    None => self.fs.unlink(folder, name.as_bytes()).await,
                };
                removed.map(|()| None)
            }
        }
    }

    pub(super) async fn list_folder(&mut self, other: u16) {
        let Some(folder) = self.shared.with(|notes| notes.folders.get(&other).copied()) else { return };
        self.shared.doing(self.id, format!("list folder {}", folder.file));
        let reading = self.shared.with(|notes| notes.oracle.read_begins((folder.file, 0)));
        match self.list(folder.ino).await {
            Ok(names) => {
                let found = folder::read(other, &names);
                self.shared.with(|notes| {
                    let disturbed = notes.oracle.disturbances != folder.disturbances;
                    // What was lost in the middle of a change leaves a gap; and its own client may see what the master
                    // has lost until it has been told.
                    if !disturbed || (found != Found::Torn && other != self.id) {
                        notes.oracle.read_ends(self.id, reading, found);
                    }
                });
                self.shared.acknowledged(self.id);
            }
            Err(error) => self.shared.error("list a folder", &error),
        }
    }

    /// One page, which is one moment's, holds all of it.
    async fn list(&self, folder: Ino) -> Outcome<Vec<Vec<u8>>> {
        self.awake().await;
        let handle = self.fs.opendir(folder)?.handle;
        let most = 4 * folder::FILES as usize;
        let listed = match self.fs.try_readdir(handle, 0, most, true) {
            Some(listed) => listed,
            None => self.fs.readdir(handle, 0, most, true).await,
        };
        self.fs.releasedir(handle);
        let names = listed?.value.into_iter().map(|entry| entry.name);
        Ok(names.filter(|name| ![b".".as_slice(), b".."].contains(&name.as_slice())).collect())
    }
}
