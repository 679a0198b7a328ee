//! Several clients share blocks of files, names of directories and logs, and the history of each object must be
//! linearizable ([`crate::linear`]).
//!
//! What one operation is depends on what the contract promises under the faults of the scenario ([`Care`]). After an
//! error a client may still see in its own cache what nobody else will ever see; so it asks of an object on which an
//! operation of its own failed nothing more until it has opened it anew and an fsync has returned 0.

mod blocks;
mod directory;
mod records;

use crate::histories::{Kept, Kind, Lane, Object, Ticket};
use crate::linear::Model;
use crate::shared::Shared;
use crate::workload::Workload;
use blocks::Blocks;
use directory::Directory;
use godrive_client::fs::{Caller, Handle, Served};
use godrive_client::{Fs, FsError};
use godrive_proto::{Ino, ROOT};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use records::Records;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;
use tokio::task::JoinSet;

/// What ends an operation, so that the contract promises that it stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Care {
    /// The call itself. No client dies or loses its session, and the master keeps its power: then nothing that
    /// returned may be lost, and the caches themselves are checked.
    Plain,
    /// For a change, the fsync behind it (of the file; of the directory for names). Clients die or are cut off past
    /// their leases: what they had not fsynced may be undone.
    Synced,
    /// For a read of a file, too. All slaves lose their power, and with it what was held and not stable, whoever
    /// has seen it. What others see of names is stable as it is.
    Proven,
}

/// Which objects are shared, and how.
#[derive(Clone, Copy, Debug)]
pub struct Sharing {
    pub care: Care,
    /// Of each kind.
    pub lanes: u16,
    /// Of each client on each lane.
    pub workers: u16,
    /// [`godrive_client::Config::removals_in_a_row`].
    pub removals_in_a_row: u32,
}

pub type Outcome<T> = Result<T, FsError>;

/// The most operations in a row on an object, which leases let a client do without asking.
const BURST: usize = 16;
/// Tries of what must work when everything is healed.
const TRIES: usize = 10;
const AFTER_AN_ERROR: Duration = Duration::from_millis(200);

/// A client's file system and what its workers need.
#[derive(Clone)]
pub struct Client {
    pub id: u16,
    pub fs: Arc<Fs>,
    pub shared: Shared,
    pub load: Workload,
    pub sharing: Sharing,
}

/// One task of a client, on one lane.
struct Worker {
    client: Client,
    lane: Lane,
    /// Of the client.
    number: u16,
    rng: SmallRng,
}

/// An object that is open.
trait Shareable: Sized + Send {
    /// Opens it, makes it if it is not there. Its own name may not be lost later.
    fn open(worker: &Worker, generation: u32) -> impl Future<Output = Outcome<Self>> + Send;
    fn object(&self) -> Object;
    /// One operation.
    fn step(&mut self, worker: &mut Worker) -> impl Future<Output = Outcome<()>> + Send;
    /// One that must show what was done before.
    fn look(&mut self, worker: &mut Worker) -> impl Future<Output = Outcome<()>> + Send;
    /// Everything done here is stable, or was lost and its loss was told.
    fn sync(&mut self, worker: &Worker) -> impl Future<Output = Outcome<()>> + Send;
    fn close(self, worker: &Worker) -> impl Future<Output = ()> + Send;
}

impl Client {
    /// Works until the time is over, then looks at everything once more.
    pub async fn run(self, seed: u64) {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut workers = JoinSet::new();
        let mut count = 1;
        for number in 0..self.sharing.lanes {
            for _ in 0..self.sharing.workers {
                for kind in [Kind::Blocks, Kind::Directory, Kind::Log] {
                    let rng = SmallRng::seed_from_u64(rng.random());
                    let worker = Worker { client: self.clone(), lane: (kind, number), number: count, rng };
                    count += 1;
                    match kind {
                        Kind::Blocks => workers.spawn(worker.run::<Blocks>()),
                        Kind::Directory => workers.spawn(worker.run::<Directory>()),
                        Kind::Log => workers.spawn(worker.run::<Records>()),
                    };
                }
            }
        }
        while let Some(ended) = workers.join_next().await {
            if let Err(error) = ended {
                self.shared.problem(format!("a worker of client {} broke off: {error}", self.id));
            }
        }
        self.shared.doing(self.id, "stopping");
        if let Err(unflushed) = self.fs.stop().await {
            match self.sharing.care {
                Care::Plain => self.shared.problem(format!("client {}: {unflushed:?}", self.id)),
                // Of an object that was left after an error.
                _ => unflushed.0.iter().for_each(|(_, why)| self.shared.error("stop", why)),
            }
        }
        self.shared.with(|notes| notes.finished.insert(self.id, true));
    }
}

impl Worker {
    async fn run<T: Shareable>(mut self) {
        let mut held: Option<T> = None;
        let mut in_doubt = false;
        while !self.client.shared.is_over(self.client.load.until) {
            self.awake().await;
            if self.turn(&mut held, &mut in_doubt).await.is_err() {
                in_doubt = true;
                if let Some(object) = held.take() {
                    object.close(&self).await;
                }
                tokio::time::sleep(AFTER_AN_ERROR).await;
            }
            let pause = self.rng.random_range(0..=self.client.load.pause.as_micros() as u64);
            tokio::time::sleep(Duration::from_micros(pause)).await;
        }
        self.look_again(held, in_doubt).await;
        self.doing("nothing any more");
    }

    /// Some operations on the lane's present object.
    async fn turn<T: Shareable>(&mut self, held: &mut Option<T>, in_doubt: &mut bool) -> Outcome<()> {
        let generation = self.client.shared.with(|notes| notes.histories.generation(self.lane));
        let object = self.present(held, in_doubt, generation).await?;
        for _ in 0..self.rng.random_range(1..=BURST) {
            self.awake().await;
            let stepped = object.step(self).await;
            self.told(object.object(), &stepped);
            stepped?;
        }
        Ok(())
    }

    /// The object of this generation, open, and with nothing of this client's in doubt.
    async fn present<'a, T: Shareable>(
        &mut self,
        held: &'a mut Option<T>,
        in_doubt: &mut bool,
        generation: u32,
    ) -> Outcome<&'a mut T> {
        if let Some(old) = held.take_if(|object| object.object().generation != generation) {
            old.close(self).await;
            *in_doubt = false;
        }
        let object = match held {
            Some(object) => object,
            None => {
                self.doing(format!("open {:?} of generation {generation}", self.lane));
                let opened = T::open(self, generation).await;
                held.insert(opened.inspect_err(|error| self.client.shared.error("open", error))?)
            }
        };
        if *in_doubt {
            self.doing("fsync after an error");
            object
                .sync(self)
                .await
                .inspect_err(|error| self.client.shared.error("fsync after an error", error))?;
            *in_doubt = false;
        }
        Ok(object)
    }

    /// With everything healed, the object must be readable within a few tries; what is read joins the history.
    async fn look_again<T: Shareable>(&mut self, mut held: Option<T>, mut in_doubt: bool) {
        let generation = self.client.shared.with(|notes| notes.histories.generation(self.lane));
        let mut last = None;
        for _ in 0..TRIES {
            let looked = match self.present(&mut held, &mut in_doubt, generation).await {
                Ok(object) => object.look(self).await,
                Err(error) => Err(error),
            };
            let Err(error) = looked else {
                last = None;
                break;
            };
            last = Some(error);
            if let Some(object) = held.take() {
                object.close(self).await;
            }
            in_doubt = true;
            tokio::time::sleep(AFTER_AN_ERROR).await;
        }
        if let Some(error) = last {
            let (client, lane) = (self.client.id, self.lane);
            self.client
                .shared
                .problem(format!("client {client} cannot look at {lane:?} at the end: {error}"));
        }
        if let Some(object) = held {
            object.close(self).await;
        }
    }

    async fn awake(&self) {
        self.client.shared.awake(self.client.id).await;
    }

    fn doing(&self, what: impl Into<String>) {
        self.client.shared.worker_doing((self.client.id, self.number), what);
    }

    fn told(&self, object: Object, stepped: &Outcome<()>) {
        match stepped {
            Ok(()) => self.client.shared.acknowledged(self.client.id),
            Err(error) => {
                self.client.shared.error(&format!("{:?}", object.lane.0), error);
                self.client.shared.with(|notes| notes.histories.unknown(object));
            }
        }
    }

    fn care(&self) -> Care {
        self.client.sharing.care
    }

    fn fs(&self) -> &Arc<Fs> {
        &self.client.fs
    }

    fn value(&self) -> u64 {
        self.client.shared.with(|notes| notes.histories.value())
    }

    fn begin<M: Kept>(&self, object: Object, call: M::Call) -> Ticket {
        self.doing(format!("{call:?} on {object}"));
        self.client.shared.with(|notes| notes.histories.begin::<M>(self.client.id, object, call))
    }

    fn now(&self) -> u64 {
        self.client.shared.with(|notes| notes.histories.tick())
    }

    fn end<M: Kept>(&self, ticket: Ticket, answer: <M as Model>::Answer, moment: u64) {
        tracing::debug!(client = self.client.id, object = %ticket.object, ?answer, moment, "answered");
        self.client.shared.with(|notes| notes.histories.end::<M>(ticket, answer, moment));
    }

    /// Opens a file of the root or makes it; when it returns, its name is durable.
    async fn open_file(&self, name: &str, flags: i32) -> Outcome<Handle> {
        let created = self.fs().create(ROOT, name.as_bytes(), 0o644, flags, Caller::default()).await;
        let handle = created?.opened.handle;
        match self.sync_names(ROOT).await {
            Ok(()) => Ok(handle),
            Err(error) => {
                self.close_file(handle).await;
                Err(error)
            }
        }
    }

    async fn sync_names(&self, directory: Ino) -> Outcome<()> {
        if self.care() == Care::Plain {
            return Ok(());
        }
        let handle = self.fs().opendir(directory)?.handle;
        let synced = self.fs().fsyncdir(handle).await;
        self.fs().releasedir(handle);
        synced
    }

    /// What a read gave, with the moment at which it did.
    async fn read_file(&self, handle: Handle, offset: u64, len: usize) -> Outcome<(Vec<u8>, u64)> {
        let Served { value, .. } = self.fs().read(handle, offset, len as u32).await?;
        let moment = self.now();
        if self.care() == Care::Proven {
            // What was read is stable behind this, or the fsync says that it may be lost.
            self.fs().fsync(handle, false).await?;
        }
        Ok((value.concat(), moment))
    }

    /// A change of a file is done when this returns 0.
    async fn settle(&mut self, handle: Handle) -> Outcome<()> {
        // Where the call itself is enough, an fsync now and then makes things different.
        if self.care() > Care::Plain || self.rng.random_bool(0.05) {
            self.fs().fsync(handle, false).await?;
        }
        Ok(())
    }

    async fn close_file(&self, handle: Handle) {
        self.doing("close");
        if let Err(error) = self.fs().flush(handle).await {
            // What was acknowledged was fsynced; or nothing may fail, and then this is told at the end of the run.
            self.client.shared.error("close", &error);
        }
        self.fs().release(handle);
    }
}

// As Linux numbers them; the file system takes them raw.
const O_RDWR: i32 = 2;
const O_APPEND: i32 = 0o2000;
const ENOENT: i32 = 2;
const EEXIST: i32 = 17;
