//! Programs on a mount: one thread for each kind of object, on objects that all mounts share.
//!
//! What is read at once lies within one page: the kernel copies page by page, and promises nothing about two of them.

use godrive_sim::histories::{Checked, Histories, Kept, Kind, Object, Ticket};
use godrive_sim::linear::Model;
use godrive_sim::linear::log::{self, Contents, Log};
use godrive_sim::linear::names::{self, NAMES, Names};
use godrive_sim::linear::register::{self, Register};
use godrive_sim::sharing::Care;
use godrive_sim::stamp::{self, Found, Stamp};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Result, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt, symlink};
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

const BLOCKS: u64 = 6;
const BLOCK_BYTES: usize = 700;
const PAGE_BYTES: u64 = 4096;
/// Its number and a sum; those of a generation fit into a page.
const RECORD_BYTES: usize = 16;
/// What a symbolic link leads to has at most so many bytes, and their number says which link it is.
const MAX_TARGET_BYTES: u32 = 4000;
/// Operations of a thread before it lets others go on.
const BURST: u32 = 12;
const PAUSE: Duration = Duration::from_millis(3);

/// What the threads of all mounts have in common.
#[derive(Clone)]
pub struct Work {
    care: Care,
    begun: Instant,
    notes: Arc<Mutex<Notes>>,
    links: Arc<AtomicU32>,
    ended: Arc<AtomicBool>,
}

#[derive(Default)]
struct Notes {
    histories: Histories,
    problems: Vec<String>,
    errors: BTreeMap<String, u64>,
    /// When each mount's threads were last answered.
    answered: BTreeMap<(u16, Kind), Instant>,
}

impl Work {
    pub fn new(care: Care) -> Self {
        let begun = Instant::now();
        Self { care, begun, notes: Arc::default(), links: Arc::default(), ended: Arc::default() }
    }

    /// In microseconds, so that a history can be laid beside the logs.
    fn moment(&self) -> u64 {
        self.begun.elapsed().as_micros() as u64
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        self.notes.lock().expect("no thread panics with it")
    }

    /// Waits until every thread was answered after this moment.
    pub fn until_all_progress(&self, mounts: usize, since: Instant, patience: Duration) {
        loop {
            let progress = self.notes().answered.values().filter(|at| **at > since).count();
            if progress == 3 * mounts {
                return;
            }
            let waiting =
                format!("{progress} of {} workers go on {patience:?} after the last fault", 3 * mounts);
            if since.elapsed() > patience {
                self.notes().problems.push(waiting);
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
    }

    pub fn errors(&self) -> BTreeMap<String, u64> {
        self.notes().errors.clone()
    }

    pub fn verdict(&self) -> (Checked, Vec<String>) {
        let mut notes = self.notes();
        let (checked, mut failures) = notes.histories.verdict();
        failures.append(&mut notes.problems);
        (checked, failures)
    }
}

#[derive(Clone)]
pub struct Mount {
    pub client: u16,
    pub path: PathBuf,
    pub work: Work,
}

impl Mount {
    pub fn start(&self, dice: &mut SmallRng) -> Vec<JoinHandle<()>> {
        let start = |kind| {
            let rng = SmallRng::seed_from_u64(dice.random());
            let worker = Worker { mount: self.clone(), kind, rng };
            std::thread::spawn(move || worker.run())
        };
        [Kind::Blocks, Kind::Directory, Kind::Log].map(start).into()
    }
}

struct Worker {
    mount: Mount,
    kind: Kind,
    rng: SmallRng,
}

/// A file or directory of a generation, open.
struct Open {
    object: Object,
    file: File,
}

impl Worker {
    fn run(mut self) {
        let mut held: Option<Open> = None;
        let mut in_doubt = false;
        while !self.mount.work.ended.load(Ordering::Relaxed) {
            if let Err(error) = self.turn(&mut held, &mut in_doubt) {
                *self.mount.work.notes().errors.entry(format!("{:?}: {error}", self.kind)).or_default() += 1;
                (held, in_doubt) = (None, true);
                std::thread::sleep(Duration::from_millis(100));
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn turn(&mut self, held: &mut Option<Open>, in_doubt: &mut bool) -> Result<()> {
        let generation = self.mount.work.notes().histories.generation((self.kind, 0));
        if held.take_if(|open| open.object.generation != generation).is_some() {
            *in_doubt = false;
        }
        let open = match held {
            Some(open) => open,
            None => held.insert(self.open(generation)?),
        };
        if *in_doubt {
            // What this mount still shows of a change that failed, others may never see.
            open.file.sync_all()?;
            *in_doubt = false;
        }
        for _ in 0..self.rng.random_range(1..=BURST) {
            let stepped = match self.kind {
                Kind::Blocks => self.block(open),
                Kind::Directory => self.name(open),
                Kind::Log => self.record(open),
            };
            let mut notes = self.mount.work.notes();
            match &stepped {
                Ok(()) => drop(notes.answered.insert((self.mount.client, self.kind), Instant::now())),
                Err(_) => notes.histories.unknown(open.object),
            }
            drop(notes);
            stepped?;
        }
        Ok(())
    }

    fn open(&self, generation: u32) -> Result<Open> {
        let object = Object { lane: (self.kind, 0), generation, part: 0 };
        let path = self.mount.path.join(object.name());
        let file = match self.kind {
            Kind::Directory => match std::fs::create_dir(&path) {
                Err(error) if error.kind() != ErrorKind::AlreadyExists => return Err(error),
                _ => File::open(&path)?,
            },
            kind => OpenOptions::new()
                .read(true)
                .write(true)
                .append(kind == Kind::Log)
                .create(true)
                .truncate(false)
                .mode(0o644)
                .open(&path)?,
        };
        if self.is_careful() {
            // Its own name may not be lost later.
            File::open(&self.mount.path)?.sync_all()?;
        }
        Ok(Open { object, file })
    }

    fn is_careful(&self) -> bool {
        self.mount.work.care > Care::Plain
    }

    fn begin<M: Kept>(&self, object: Object, call: M::Call) -> Ticket {
        let mut notes = self.mount.work.notes();
        notes.histories.not_before(self.mount.work.moment());
        notes.histories.begin::<M>(self.mount.client, object, call)
    }

    fn end<M: Kept>(&self, ticket: Ticket, answer: <M as Model>::Answer) {
        let mut notes = self.mount.work.notes();
        notes.histories.not_before(self.mount.work.moment());
        let now = notes.histories.tick();
        notes.histories.end::<M>(ticket, answer, now);
    }

    fn value(&self) -> u64 {
        self.mount.work.notes().histories.value()
    }

    fn problem(&self, what: &str, object: Object) {
        let problem = format!("mount {} read {what} in {object}", self.mount.client);
        self.mount.work.notes().problems.push(problem);
    }

    fn settle(&self, open: &Open) -> Result<()> {
        if self.is_careful() { open.file.sync_all() } else { Ok(()) }
    }

    fn block(&mut self, open: &Open) -> Result<()> {
        let block = self.rng.random_range(0..BLOCKS);
        let object = Object { part: block, ..open.object };
        let (place, offset) = ((u64::from(object.generation) << 16) | block, block * 3 * PAGE_BYTES + 100);
        if self.rng.random_bool(0.4) {
            let value = self.value();
            let stamp = Stamp { client: self.mount.client, sequence: value };
            let ticket = self.begin::<Register>(object, register::Call::Write(value));
            open.file.write_all_at(&stamp::block(stamp, place, BLOCK_BYTES), offset)?;
            self.settle(open)?;
            self.end::<Register>(ticket, register::Answer::Written);
            return Ok(());
        }
        let ticket = self.begin::<Register>(object, register::Call::Read);
        let mut bytes = vec![0; BLOCK_BYTES];
        // Behind the end there are zeros here.
        open.file.read_at(&mut bytes, offset)?;
        match stamp::read(&bytes, place) {
            Found::Nothing => self.end::<Register>(ticket, register::Answer::Value(0)),
            Found::Written(stamp) => self.end::<Register>(ticket, register::Answer::Value(stamp.sequence)),
            Found::Torn => self.problem("a mixture", object),
        }
        Ok(())
    }

    fn record(&mut self, open: &Open) -> Result<()> {
        if self.rng.random_bool(0.4) {
            let value = self.value();
            let ticket = self.begin::<Log>(open.object, log::Call::Append(value));
            let mut file = &open.file;
            file.write_all(&record(value))?;
            self.settle(open)?;
            self.end::<Log>(ticket, log::Answer::Appended);
            return Ok(());
        }
        let ticket = self.begin::<Log>(open.object, log::Call::Read);
        let mut bytes = vec![0; PAGE_BYTES as usize];
        let read = open.file.read_at(&mut bytes, 0)?;
        let whole = bytes[..read].chunks(RECORD_BYTES).map(|bytes| {
            let value = u64::from_le_bytes(bytes.get(..8)?.try_into().ok()?);
            (bytes == record(value)).then_some(value)
        });
        match whole.collect::<Option<Contents>>() {
            Some(contents) => self.end::<Log>(ticket, log::Answer::Contents(contents)),
            None => self.problem("a broken record", open.object),
        }
        Ok(())
    }

    fn name(&mut self, open: &Open) -> Result<()> {
        use names::{Answer, Call};
        let one = self.rng.random_range(0..NAMES as u8);
        let other = (one + self.rng.random_range(1..NAMES as u8)) % NAMES as u8;
        let call = match self.rng.random_range(0..100) {
            0..25 => {
                let link = self.mount.work.links.fetch_add(1, Ordering::Relaxed);
                Call::Create(one, link % MAX_TARGET_BYTES + 1)
            }
            25..65 => Call::Look(one),
            65..75 => Call::Rename(one, other),
            75..80 => Call::RenameNoReplace(one, other),
            _ => Call::Remove(one),
        };
        let ticket = self.begin::<Names>(open.object, call.clone());
        let answer = match self.ask(open, call) {
            Ok(answer) => answer,
            Err(error) if error.kind() == ErrorKind::NotFound => Answer::Missing,
            Err(error) if error.kind() == ErrorKind::AlreadyExists => Answer::Exists,
            Err(error) => return Err(error),
        };
        if answer == Answer::Done {
            self.settle(open)?;
        }
        self.end::<Names>(ticket, answer);
        Ok(())
    }

    fn ask(&self, open: &Open, call: names::Call) -> Result<names::Answer> {
        use names::{Answer, Call};
        let directory = self.mount.path.join(open.object.name());
        let path = |name: u8| directory.join(format!("name-{name}"));
        match call {
            Call::Create(name, value) => symlink("x".repeat(value as usize), path(name))?,
            Call::Look(name) => {
                return Ok(Answer::Found(std::fs::symlink_metadata(path(name))?.len() as u32));
            }
            Call::Rename(from, to) => std::fs::rename(path(from), path(to))?,
            Call::RenameNoReplace(from, to) => {
                renameat2(AT_FDCWD, &path(from), AT_FDCWD, &path(to), RenameFlags::RENAME_NOREPLACE)?;
            }
            Call::Remove(name) => std::fs::remove_file(path(name))?,
            // The kernel may make one listing of several moments.
            Call::List => unreachable!("no listing is asked for"),
        }
        Ok(Answer::Done)
    }
}

fn record(value: u64) -> [u8; RECORD_BYTES] {
    let mut bytes = [0; RECORD_BYTES];
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..].copy_from_slice(&(!value).to_le_bytes());
    bytes
}
