//! What makes a mount outlive its daemon.
//!
//! `godrive-fuse` starts two processes: the daemon, which does all the work, and its *keeper*, which holds a second
//! descriptor of /dev/fuse and the [`ledger`]. As long as one of them has the descriptor, the kernel keeps the mount, and
//! callers wait instead of failing. When the daemon is killed the keeper starts another one, which goes on with the
//! kernel's mount ([`takeover`]) and with the master's session (`godrive_client::ledger`). When the keeper is killed the
//! daemon starts another keeper. Only if both are killed at one time is the mount lost.
//!
//! The keeper is the first process, so that a service manager sees one that lives as long as the mount. It is the same
//! program under the name `godrive-keeper`.

mod channel;
pub mod ledger;
mod process;
pub mod takeover;

use channel::{Message, pair, receive, send};
use ledger::{Mounted, SharedLedger};
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::sys::signal::SigSet;
use parking_lot::Mutex;
use std::ffi::{CStr, OsStr, OsString};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The names of the two processes, and how the kernel shows them.
pub const NAME: &str = "godrive-keeper";
const TITLE: &CStr = c"godrive-keeper";
const DAEMON_NAME: &str = "godrive-fuse";
const DAEMON_TITLE: &CStr = c"godrive-fuse";
/// Set for both: the descriptors of the socket, the ledger and, when there is a mount, of /dev/fuse.
const HANDED: &str = "GODRIVE_HANDED";
const PROGRAM: &str = "/proc/self/exe";
/// How often the daemon tells the keeper that its runtime turns.
const ALIVE_EVERY: Duration = Duration::from_secs(5);

/// What is handed from one process to the next.
pub struct Handed {
    socket: OwnedFd,
    ledger: OwnedFd,
    device: Option<OwnedFd>,
}

/// What this process is.
pub enum Part {
    /// Started by a person or a service manager.
    First,
    Daemon(Handed),
    Keeper(Handed),
}

/// By its name and what it was handed. An error: something else set our variable.
pub fn part() -> io::Result<Part> {
    let Some(handed) = std::env::var_os(HANDED) else { return Ok(Part::First) };
    let handed = Handed::parse(&handed)?;
    let name = std::env::args_os().next().unwrap_or_default();
    match Path::new(&name).file_name() == Some(OsStr::new(NAME)) {
        true => Ok(Part::Keeper(handed)),
        false => Ok(Part::Daemon(handed)),
    }
}

/// Starts the daemon with these arguments and becomes its keeper. Returns only if that cannot be done.
pub fn begin(arguments: &[OsString]) -> io::Error {
    let begun = || {
        let ledger = SharedLedger::create()?.descriptor()?;
        Ok((daemon(arguments, &ledger, None)?, ledger))
    };
    match begun() {
        Ok((socket, ledger)) => command(NAME, arguments, &socket, &ledger, None).exec(),
        Err(error) => error,
    }
}

pub fn keep(handed: Handed, arguments: Vec<OsString>) -> io::Result<ExitCode> {
    process::run(handed, arguments)
}

/// Starts a daemon; gives the keeper's end of the socket to it.
fn daemon(arguments: &[OsString], ledger: &OwnedFd, device: Option<&OwnedFd>) -> io::Result<OwnedFd> {
    let (ours, its) = pair()?;
    command(DAEMON_NAME, arguments, &its, ledger, device).spawn()?;
    Ok(ours)
}

fn command(
    name: &str,
    arguments: &[OsString],
    socket: &OwnedFd,
    ledger: &OwnedFd,
    device: Option<&OwnedFd>,
) -> Command {
    let descriptors: Vec<RawFd> =
        [Some(socket), Some(ledger), device].into_iter().flatten().map(AsRawFd::as_raw_fd).collect();
    let words: Vec<String> = descriptors.iter().map(ToString::to_string).collect();
    let mut command = Command::new(PROGRAM);
    command.arg0(name).args(arguments).env(HANDED, words.join(","));
    // SAFETY: between fork and exec only pthread_sigmask and fcntl are called, which are async-signal-safe and touch no
    // memory.
    unsafe {
        command.pre_exec(move || {
            // The keeper reads its signals from a descriptor; the others take them as they come.
            SigSet::empty().thread_set_mask()?;
            descriptors.iter().try_for_each(|descriptor| inherit(*descriptor))
        });
    }
    command
}

fn inherit(descriptor: RawFd) -> io::Result<()> {
    // SAFETY: the descriptor is open: whoever made the command still has it.
    let descriptor = unsafe { BorrowedFd::borrow_raw(descriptor) };
    fcntl(descriptor, FcntlArg::F_SETFD(FdFlag::empty()))?;
    Ok(())
}

impl Handed {
    fn parse(words: &OsStr) -> io::Result<Self> {
        let strange = || io::Error::other(format!("{HANDED} is for {DAEMON_NAME}'s own use; unset it"));
        let numbers = words.to_str().map(|words| words.split(',').map(str::parse::<RawFd>));
        let numbers: Vec<RawFd> =
            numbers.ok_or_else(strange)?.collect::<Result<_, _>>().map_err(|_| strange())?;
        let mut taken = Vec::new();
        for number in numbers {
            // SAFETY: only looked at; the kernel says whether it is open.
            let open =
                fcntl(unsafe { BorrowedFd::borrow_raw(number) }, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC));
            open.map_err(|_| strange())?;
            // SAFETY: it is open, and whoever started this process left it to us.
            taken.push(unsafe { OwnedFd::from_raw_fd(number) });
        }
        let mut taken = taken.into_iter();
        match (taken.next(), taken.next()) {
            (Some(socket), Some(ledger)) => Ok(Self { socket, ledger, device: taken.next() }),
            _ => Err(strange()),
        }
    }
}

/// What a daemon knows of its keeper. Clones share it.
#[derive(Clone)]
pub struct Kept {
    pub ledger: Arc<SharedLedger>,
    channel: Arc<Channel>,
}

/// What a daemon that was killed has left: a mount that goes on.
pub struct Left {
    pub mounted: Mounted,
    pub inheritance: godrive_client::ledger::Inheritance,
    pub device: OwnedFd,
}

struct Channel {
    socket: Mutex<Arc<OwnedFd>>,
    arguments: Vec<OsString>,
    ledger: Arc<SharedLedger>,
    device: Mutex<Option<OwnedFd>>,
    stops: AtomicBool,
    ends: AtomicBool,
}

impl Kept {
    /// Takes over what was handed to this daemon. The kernel's mount cannot go on without complete notes: then it is gone.
    pub fn new(handed: Handed, arguments: Vec<OsString>) -> io::Result<(Self, Option<Left>)> {
        nix::sys::prctl::set_name(DAEMON_TITLE)?;
        let Handed { socket, ledger, device } = handed;
        let (ledger, inherited) = SharedLedger::open(ledger)?;
        let mut left = None;
        if let Some(device) = device {
            let Some((mounted, mut inheritance)) = inherited else {
                return Err(io::Error::other(
                    "the dead daemon's notes are not complete, so nobody can go on after it",
                ));
            };
            if mounted.minor < takeover::MINOR_NEEDED {
                return Err(io::Error::other(
                    "this kernel cannot hand a mount to another daemon (Linux 6.16 can)",
                ));
            }
            inheritance.life = inheritance.life.wrapping_add(1);
            ledger.begin_life(inheritance.life)?;
            left = Some(Left { mounted, inheritance, device });
        }
        let ledger = Arc::new(ledger);
        let device = left.as_ref().map(|left| left.device.try_clone()).transpose()?;
        let socket = Mutex::new(Arc::new(socket));
        let channel = Arc::new(Channel {
            socket,
            arguments,
            ledger: ledger.clone(),
            device: Mutex::new(device),
            stops: AtomicBool::new(false),
            ends: AtomicBool::new(false),
        });
        channel.tell(&Message::Serves(std::process::id()));
        let watched = channel.clone();
        std::thread::Builder::new().name("keeper-watch".into()).spawn(move || watched.watch())?;
        Ok((Self { ledger, channel }, left))
    }

    /// The mount exists: from now on it outlives this daemon.
    pub fn mounted(&self, mounted: &Mounted, device: OwnedFd) -> io::Result<()> {
        self.ledger.mounted(mounted)?;
        *self.channel.device.lock() = Some(device.try_clone()?);
        self.channel.tell(&Message::Mounted(device));
        Ok(())
    }

    /// Nobody is to go on after this daemon.
    pub fn stops(&self) {
        self.channel.stops.store(true, Ordering::SeqCst);
        self.channel.tell(&Message::Stops);
    }

    /// The daemon ends in order.
    pub fn ends(&self, code: u8) {
        // The keeper ends first: no other one is needed.
        self.channel.ends.store(true, Ordering::SeqCst);
        self.channel.tell(&Message::Ends(code));
    }

    /// Tells the keeper again and again that this runtime turns.
    pub async fn beat(self) {
        loop {
            self.channel.tell(&Message::Alive);
            tokio::time::sleep(ALIVE_EVERY).await;
        }
    }
}

impl Channel {
    fn tell(&self, message: &Message) {
        let socket = self.socket.lock().clone();
        if let Err(error) = send(&socket, message) {
            // The watch finds it gone and starts another.
            tracing::debug!(%error, ?message, "the keeper was not told");
        }
    }

    /// Starts another keeper when this one is gone. Runs as long as the daemon.
    fn watch(&self) {
        loop {
            let socket = self.socket.lock().clone();
            let received = receive(&socket);
            if self.ends.load(Ordering::SeqCst) {
                return;
            }
            match received {
                Ok(Some(message)) => tracing::warn!(?message, "the keeper has nothing to say"),
                Ok(None) => tracing::warn!("the mount's keeper has ended; another one is started"),
                Err(error) => tracing::error!(%error, "the keeper cannot be watched"),
            }
            if let Err(error) = self.replace() {
                return tracing::error!(%error, "no keeper can be started: a crash of this daemon will end the mount");
            }
        }
    }

    fn replace(&self) -> io::Result<()> {
        let (ours, its) = pair()?;
        command(NAME, &self.arguments, &its, &self.ledger.descriptor()?, None).spawn()?;
        *self.socket.lock() = Arc::new(ours);
        self.tell(&Message::Serves(std::process::id()));
        let device = self.device.lock().as_ref().map(OwnedFd::try_clone).transpose()?;
        if let Some(device) = device {
            self.tell(&Message::Mounted(device));
        }
        if self.stops.load(Ordering::SeqCst) {
            self.tell(&Message::Stops);
        }
        Ok(())
    }
}
