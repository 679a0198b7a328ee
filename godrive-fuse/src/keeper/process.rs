//! The keeper: holds what must outlive the daemon, and starts another one when it was killed.

use super::channel::{Message, receive};
use super::{Handed, NAME, TITLE, daemon};
use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal, kill};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::time::{ClockId, clock_gettime};
use nix::unistd::Pid;
use std::ffi::OsString;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::ExitCode;
use std::time::Duration;

/// A daemon whose runtime does not turn for this long is killed and followed by another. Not counted while the machine
/// sleeps.
const HANGS_AFTER: Duration = Duration::from_secs(60);
/// The keeper looks each second.
const FROZEN_AFTER: Duration = Duration::from_secs(5);
/// A life shorter than this is no life: after so many of them in a row something in the mount kills every daemon.
const SHORT_LIFE: Duration = Duration::from_millis(500);
const MAX_SHORT_LIVES: u32 = 20;
/// Tries to start a daemon, a second apart, on a machine that has no memory or no process to spare.
const MAX_STARTS: u32 = 20;

struct Keeper {
    handed: Handed,
    arguments: Vec<OsString>,
    signals: SignalFd,
    daemon: Option<Pid>,
    /// No other daemon is to follow.
    stops: bool,
    begun: Duration,
    silence: Silence,
    short_lives: u32,
}

/// How long nothing was heard of the daemon, as far as the keeper was there to hear.
#[derive(Clone, Copy)]
struct Silence {
    heard: Duration,
    looked: Duration,
}

impl Silence {
    fn since(now: Duration) -> Self {
        Self { heard: now, looked: now }
    }

    /// Who froze the keeper may have frozen the daemon with it.
    fn at(&mut self, now: Duration) -> Duration {
        if now.saturating_sub(self.looked) > FROZEN_AFTER {
            self.heard = now;
        }
        self.looked = now;
        now.saturating_sub(self.heard)
    }
}

/// Runs until the mount has ended; its daemon's exit code.
pub fn run(handed: Handed, arguments: Vec<OsString>) -> io::Result<ExitCode> {
    nix::sys::prctl::set_name(TITLE)?;
    let mut caught = SigSet::empty();
    [Signal::SIGTERM, Signal::SIGINT, Signal::SIGCHLD].into_iter().for_each(|signal| caught.add(signal));
    caught.thread_block()?;
    let signals = SignalFd::with_flags(&caught, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK)?;
    let now = monotonic()?;
    let mut keeper = Keeper {
        handed,
        arguments,
        signals,
        daemon: None,
        stops: false,
        begun: now,
        silence: Silence::since(now),
        short_lives: 0,
    };
    loop {
        if let Some(code) = keeper.turn()? {
            return Ok(ExitCode::from(code));
        }
    }
}

impl Keeper {
    /// Waits for something to happen and follows it. Some: the end.
    fn turn(&mut self) -> io::Result<Option<u8>> {
        let (signalled, spoken) = {
            let mut watched = [
                PollFd::new(self.signals.as_fd(), PollFlags::POLLIN),
                PollFd::new(self.handed.socket.as_fd(), PollFlags::POLLIN),
            ];
            match poll(&mut watched, PollTimeout::from(1000u16)) {
                Ok(_) | Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
            let [signals, socket] = watched;
            (signals.any().unwrap_or(false), socket.any().unwrap_or(false))
        };
        if signalled {
            self.signalled()?;
        }
        if spoken {
            return match receive(&self.handed.socket)? {
                Some(message) => self.told(message),
                None => self.died(),
            };
        }
        if self.daemon.is_some_and(is_dead) {
            return self.died();
        }
        self.look_for_hang()?;
        Ok(None)
    }

    fn told(&mut self, message: Message) -> io::Result<Option<u8>> {
        self.silence = Silence::since(monotonic()?);
        match message {
            Message::Serves(pid) => {
                self.daemon = i32::try_from(pid).ok().map(Pid::from_raw);
                // Asked to stop while it was being started.
                if let (true, Some(daemon)) = (self.stops, self.daemon) {
                    tell(daemon, Signal::SIGTERM);
                }
            }
            Message::Mounted(device) => self.handed.device = Some(device),
            Message::Alive => {}
            Message::Stops => self.stops = true,
            Message::Ends(code) => return Ok(Some(code)),
        }
        Ok(None)
    }

    /// What a service manager sends to the first process of a mount is meant for its daemon.
    fn signalled(&mut self) -> io::Result<()> {
        while let Some(signal) = self.signals.read_signal()? {
            let signal = Signal::try_from(signal.ssi_signo as i32)?;
            if signal == Signal::SIGCHLD {
                continue;
            }
            self.stops = true;
            if let Some(daemon) = self.daemon {
                tell(daemon, signal);
            }
        }
        Ok(())
    }

    fn died(&mut self) -> io::Result<Option<u8>> {
        let how = self.reap();
        let alive = self.handed.device.as_ref().is_some_and(is_mounted);
        let life = monotonic()?.saturating_sub(self.begun);
        self.short_lives = if life < SHORT_LIFE { self.short_lives + 1 } else { 0 };
        if self.stops || !alive {
            say(&format!("the mount's daemon has ended ({how}), and with it the mount"));
            return Ok(Some(1));
        }
        if self.short_lives > MAX_SHORT_LIVES {
            say(&format!(
                "{MAX_SHORT_LIVES} daemons in a row were killed as soon as they served ({how}); the mount is given up"
            ));
            return Ok(Some(1));
        }
        say(&format!("the mount's daemon was killed ({how}); another one goes on"));
        (self.begun, self.daemon) = (monotonic()?, None);
        self.silence = Silence::since(self.begun);
        let mut tries = MAX_STARTS;
        loop {
            match daemon(&self.arguments, &self.handed.ledger, self.handed.device.as_ref()) {
                Ok(socket) => {
                    self.handed.socket = socket;
                    return Ok(None);
                }
                Err(error) if tries == 0 => return Err(error),
                Err(error) => say(&format!("no daemon can be started yet: {error}")),
            }
            tries -= 1;
            poll(&mut [], PollTimeout::from(1000u16))?;
        }
    }

    /// Collects the daemon, whose end of the socket is closed; says how it ended.
    fn reap(&self) -> String {
        // It can be waited for a moment later than its socket closes; never while one of its threads waits in the kernel, nor
        // if a keeper before this one has started it.
        for _ in 0..10 {
            match waitpid(self.daemon, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Signaled(_, signal, _)) => return signal.to_string(),
                Ok(WaitStatus::Exited(_, code)) => return format!("exit code {code}"),
                Ok(WaitStatus::StillAlive) => _ = poll(&mut [], PollTimeout::from(5u8)),
                _ => break,
            }
        }
        "how is not known".into()
    }

    fn look_for_hang(&mut self) -> io::Result<()> {
        let now = monotonic()?;
        let silent = self.silence.at(now);
        if let Some(daemon) = self.daemon
            && silent > HANGS_AFTER
            && !self.stops
        {
            say(&format!("the mount's daemon {daemon} hangs: it is killed"));
            self.silence = Silence::since(now);
            tell(daemon, Signal::SIGKILL);
        }
        Ok(())
    }
}

/// Whether the kernel still has the mount that belongs to the descriptor.
fn is_mounted(device: &OwnedFd) -> bool {
    let mut watched = [PollFd::new(device.as_fd(), PollFlags::POLLIN)];
    let looked = poll(&mut watched, PollTimeout::ZERO);
    looked.is_ok() && !watched[0].revents().is_some_and(|events| events.contains(PollFlags::POLLERR))
}

fn tell(daemon: Pid, signal: Signal) {
    match kill(daemon, signal) {
        // It has just ended: the socket says so next.
        Ok(()) | Err(Errno::ESRCH) => {}
        Err(error) => say(&format!("{signal} could not be sent to the daemon {daemon}: {error}")),
    }
}

fn monotonic() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// Whether the process has ended but for threads that wait in the kernel: such a one keeps its end of the socket open, and
/// may wait for the very daemon that is to follow.
fn is_dead(daemon: Pid) -> bool {
    #[expect(clippy::disallowed_methods, reason = "the kernel's account of a process")]
    let stat = std::fs::read_to_string(format!("/proc/{daemon}/stat"));
    // After the name in brackets, which may have brackets itself.
    let state = stat.ok().and_then(|stat| stat.rsplit(") ").next()?.chars().next());
    matches!(state, Some('Z' | 'X'))
}

/// The keeper has no log of its own; its lines go where the daemon's go. Nobody can be told that there is no room for them.
fn say(line: &str) {
    let _ = writeln!(io::stderr(), "{NAME}: {line}");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_daemon_that_was_frozen_with_its_keeper_does_not_hang() {
        let second = Duration::from_secs;
        let mut silence = Silence::since(second(100));
        assert_eq!(silence.at(second(101)), second(1));
        assert_eq!(silence.at(second(101) + HANGS_AFTER * 2), Duration::ZERO);
        let back = 101 + 2 * HANGS_AFTER.as_secs();
        for after in 1..100 {
            assert_eq!(silence.at(second(back + after)), second(after), "one that hangs is found");
        }
    }
}
