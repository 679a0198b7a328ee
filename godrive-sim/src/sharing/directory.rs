//! A directory of a few names. What a name leads to is told by its owner, who is another for each file.

use super::{Care, EEXIST, ENOENT, Outcome, Shareable, Worker};
use crate::histories::Object;
use crate::linear::names::{Answer, Call, Listed, NAMES, Name, Names};
use godrive_client::FsError;
use godrive_client::fs::{Caller, DirEntry, Found, Handle};
use godrive_proto::meta::{NewNode, RenameMode};
use godrive_proto::{Ino, ROOT};
use rand::Rng;
use std::collections::VecDeque;

/// The names that clients quarrel about most.
const FEW: u8 = 3;

pub(super) struct Directory {
    object: Object,
    ino: Ino,
    handle: Handle,
    /// What this client is about to do, one after the other.
    next: VecDeque<Call>,
}

impl Directory {
    /// One call, or all names made or removed in a row: enough removals for the last ones to be made ahead of the
    /// master.
    fn plan(&mut self, worker: &mut Worker) -> Call {
        if let Some(call) = self.next.pop_front() {
            return call;
        }
        let names = 0..NAMES as Name;
        let rng = &mut worker.rng;
        let (one, step) = match rng.random_bool(0.7) {
            true => (rng.random_range(0..FEW), rng.random_range(1..FEW)),
            false => (rng.random_range(names.clone()), rng.random_range(1..NAMES as Name)),
        };
        let other = (one + step) % NAMES as Name;
        match rng.random_range(0..100) {
            0..20 => Call::Create(one, worker.value() as u32),
            20..50 => Call::Look(one),
            50..60 => Call::Rename(one, other),
            60..66 => Call::RenameNoReplace(one, other),
            66..80 => Call::Remove(one),
            80..95 => Call::List,
            95..97 => {
                self.next.extend(names.map(|name| Call::Create(name, worker.value() as u32)));
                Call::List
            }
            _ => {
                self.next.extend(names.map(Call::Remove));
                Call::List
            }
        }
    }

    async fn perform(&self, worker: &Worker, call: Call) -> Outcome<()> {
        let ticket = worker.begin::<Names>(self.object, call.clone());
        let answer = match self.ask(worker, call).await {
            Ok(answer) => answer,
            Err(FsError { errno: ENOENT, .. }) => Answer::Missing,
            Err(FsError { errno: EEXIST, .. }) => Answer::Exists,
            Err(error) => return Err(error),
        };
        if answer == Answer::Done && worker.care() > Care::Plain {
            worker.fs().fsyncdir(self.handle).await?;
        }
        worker.end::<Names>(ticket, answer, worker.now());
        Ok(())
    }

    async fn ask(&self, worker: &Worker, call: Call) -> Outcome<Answer> {
        let (fs, directory) = (worker.fs(), self.ino);
        match call {
            Call::Create(name, value) => {
                let caller = Caller { uid: value, gid: 0, umask: 0 };
                fs.make(directory, &text(name), NewNode::File, 0o644, caller).await?;
            }
            Call::Look(name) => {
                return Ok(match &fs.lookup(directory, &text(name)).await?.value {
                    Found::Entry(entry) => Answer::Found(entry.attr.uid),
                    Found::Missing(_) => Answer::Missing,
                });
            }
            Call::Rename(from, to) => {
                fs.rename(directory, &text(from), directory, &text(to), RenameMode::Replace).await?;
            }
            Call::RenameNoReplace(from, to) => {
                fs.rename(directory, &text(from), directory, &text(to), RenameMode::NoReplace).await?;
            }
            Call::Remove(name) => match fs.try_unlink(directory, &text(name)) {
                Some(removed) => removed?,
                None => fs.unlink(directory, &text(name)).await?,
            },
            Call::List => return self.list(worker).await,
        }
        Ok(Answer::Done)
    }

    /// One page, which is one moment's, holds all of it.
    async fn list(&self, worker: &Worker) -> Outcome<Answer> {
        let most = 4 * NAMES;
        let listed = match worker.fs().try_readdir(self.handle, 0, most, true) {
            Some(listed) => listed?,
            None => worker.fs().readdir(self.handle, 0, most, true).await?,
        };
        let mut names = [Listed::Absent; NAMES];
        for DirEntry { name, entry, .. } in &*listed {
            if [b".".as_slice(), b".."].contains(&name.as_slice()) {
                continue;
            }
            let place = (0..NAMES as Name).find(|known| *name == text(*known));
            let Some(place) = place.filter(|place| names[usize::from(*place)] == Listed::Absent) else {
                let (client, object) = (worker.client.id, self.object);
                worker.client.shared.problem(format!("client {client} listed {name:?} in {object}"));
                continue;
            };
            names[usize::from(place)] =
                entry.as_ref().map_or(Listed::Present, |entry| Listed::Leads(entry.attr.uid));
        }
        Ok(Answer::Listing(names))
    }
}

fn text(name: Name) -> [u8; 2] {
    [b'n', b'a' + name]
}

impl Shareable for Directory {
    async fn open(worker: &Worker, generation: u32) -> Outcome<Self> {
        let object = Object { lane: worker.lane, generation, part: 0 };
        let name = object.name();
        let made =
            worker.fs().make(ROOT, name.as_bytes(), NewNode::Directory, 0o777, Caller::default()).await;
        let ino = match made {
            Ok(made) => made.attr.ino,
            Err(FsError { errno: EEXIST, .. }) => {
                match &worker.fs().lookup(ROOT, name.as_bytes()).await?.value {
                    Found::Entry(entry) => entry.attr.ino,
                    Found::Missing(_) => {
                        return Err(FsError::new(ENOENT, "a folder that existed is missing"));
                    }
                }
            }
            Err(error) => return Err(error),
        };
        worker.sync_names(ROOT).await?;
        let handle = worker.fs().opendir(ino)?.handle;
        Ok(Self { object, ino, handle, next: VecDeque::new() })
    }

    fn object(&self) -> Object {
        self.object
    }

    async fn step(&mut self, worker: &mut Worker) -> Outcome<()> {
        let call = self.plan(worker);
        self.perform(worker, call).await
    }

    async fn look(&mut self, worker: &mut Worker) -> Outcome<()> {
        self.perform(worker, Call::List).await?;
        for name in 0..NAMES as Name {
            self.perform(worker, Call::Look(name)).await?;
        }
        Ok(())
    }

    async fn sync(&mut self, worker: &Worker) -> Outcome<()> {
        worker.fs().fsyncdir(self.handle).await
    }

    async fn close(self, worker: &Worker) {
        worker.fs().releasedir(self.handle);
    }
}
