//! The daemons as processes: found, started in the background, asked to end.
//!
//! A number in a pid file proves nothing after a reboot. A process is ours when its command line is the daemon's
//! program with exactly the node's configuration; where the file is missing or wrong, /proc is searched for that.

use super::layout::{Home, Kind, NodeName};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::{OsStr, OsString};
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const MOUNT: &str = "godrive-fuse";
const KEEPER: &str = "godrive-keeper";

/// How often conditions are looked at while waiting.
pub const TICK: Duration = Duration::from_millis(20);

/// A daemon that runs: its pid and its configuration file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    pub pid: i32,
    pub config: PathBuf,
}

/// The arguments of a process that may be a daemon; empty if it is gone (or dead and not yet collected).
///
/// The kernel shows them only while it holds the process's memory map. A program that waits for a file of a mount may hold that for as
/// long as it waits, so that nobody's are read but those of programs with our names.
fn arguments(pid: i32) -> Vec<OsString> {
    let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
    // A daemon that has just been started by its keeper has not named itself yet.
    if !name.starts_with("godrive-") && name.trim_end() != "exe" {
        return Vec::new();
    }
    let bytes = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut parts: Vec<OsString> =
        bytes.split(|byte| *byte == 0).map(|part| OsString::from_vec(part.to_vec())).collect();
    // The last argument ends in a NUL too.
    parts.pop();
    parts
}

/// The configuration with which `program` was started, if these are its arguments.
fn config_of(arguments: &[OsString], program: &str) -> Option<PathBuf> {
    let name = Path::new(arguments.first()?).file_name()?;
    // A mount's keeper starts another daemon when the first is killed: it is a process of the mount as well.
    let keeps = program == MOUNT && name == OsStr::new(KEEPER);
    if name != OsStr::new(program) && !keeps {
        return None;
    }
    // As `start` and the services write it; `godrive-slave fsck --config FILE` is no daemon.
    let config = arguments.get(2).filter(|_| arguments[1] == "--config")?;
    Some(PathBuf::from(config))
}

/// Every process of this program that this user may see.
pub fn daemons(program: &str) -> Result<Vec<Daemon>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").context("reading /proc")? {
        let entry = entry.context("reading /proc")?;
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        if let Some(config) = config_of(&arguments(pid), program) {
            found.push(Daemon { pid, config });
        }
    }
    Ok(found)
}

/// The pid of a node, if it runs.
pub fn running(home: &Home, name: NodeName) -> Result<Option<i32>> {
    let config = home.config(name);
    let ours =
        |pid: i32| config_of(&arguments(pid), name.kind.program()).is_some_and(|other| other == config);
    let noted = std::fs::read_to_string(home.pid(name)).ok().and_then(|text| text.trim().parse().ok());
    if let Some(pid) = noted
        && ours(pid)
    {
        return Ok(Some(pid));
    }
    let daemons = daemons(name.kind.program())?;
    Ok(daemons.into_iter().find(|daemon| daemon.config == config).map(|daemon| daemon.pid))
}

/// The daemon's program: beside this one, or in GODRIVE_BIN_DIR.
pub fn program(kind: Kind) -> Result<PathBuf> {
    let word = kind.program();
    let folder = match std::env::var_os("GODRIVE_BIN_DIR") {
        Some(folder) => PathBuf::from(folder),
        None => {
            std::env::current_exe().context("finding this program")?.parent().context("no folder")?.to_owned()
        }
    };
    let path = folder.join(word);
    if !path.is_file() {
        bail!(
            "{} is missing: build it (cargo build --release), install it beside godrive, or set GODRIVE_BIN_DIR to \
             the folder that has it",
            path.display()
        );
    }
    Ok(path)
}

/// A daemon that was just started, and where its part of the log begins.
pub struct Started {
    pub name: NodeName,
    child: Child,
    log: PathBuf,
    log_start: u64,
}

/// Starts a node in a session of its own, with its log appended to and nothing on its standard input.
pub fn start(home: &Home, name: NodeName) -> Result<Started> {
    let program = program(name.kind)?;
    let log = home.log(name);
    let open = || std::fs::File::options().create(true).append(true).open(&log);
    let output = open().with_context(|| format!("opening {}", log.display()))?;
    let log_start = output.metadata().with_context(|| format!("looking at {}", log.display()))?.len();
    let mut command = Command::new(&program);
    command.arg("--config").arg(home.config(name)).current_dir("/").stdin(Stdio::null());
    // The machine's own service manager must not take the node's signals for those of this program.
    command.env_remove("NOTIFY_SOCKET").env("NO_COLOR", "1").stdout(output.try_clone()?).stderr(output);
    // SAFETY: between fork and exec only setsid is called, which is async-signal-safe and touches no memory.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let note = |text: &str| super::create::write(&home.pid(name), text, super::create::PUBLIC);
    // The first process of a mount becomes its keeper; the daemon itself notes its pid where there is a file for it.
    let notes_itself = name.kind == Kind::Mount;
    if notes_itself {
        note("")?;
    }
    let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
    if !notes_itself {
        note(&format!("{}\n", child.id()))?;
    }
    Ok(Started { name, child, log, log_start })
}

impl Started {
    /// An error with the end of its log, if it has ended.
    pub fn check(&mut self) -> Result<()> {
        let status = self.child.try_wait().with_context(|| format!("looking after {}", self.name))?;
        match status {
            Some(status) => bail!("{} ended ({status}). {}", self.name, self.last_words()),
            None => Ok(()),
        }
    }

    /// The last lines that it logged since it was started.
    pub fn last_words(&self) -> String {
        let text = log_since(&self.log, self.log_start);
        let lines: Vec<&str> = text.lines().collect();
        if lines.is_empty() {
            return format!("It logged nothing to {}", self.log.display());
        }
        let last = &lines[lines.len().saturating_sub(12)..];
        format!("The end of {}:\n    {}", self.log.display(), last.join("\n    "))
    }

    pub fn pid(&self) -> i32 {
        self.child.id().cast_signed()
    }
}

/// What a log got since it was `start` bytes long; at most the last 64 KiB of that.
pub fn log_since(log: &Path, start: u64) -> String {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut file = std::fs::File::open(log)?;
        let length = file.metadata()?.len();
        file.seek(SeekFrom::Start(start.max(length.saturating_sub(64 << 10))))?;
        let mut bytes = Vec::new();
        file.take(64 << 10).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    // A log that cannot be read is a log without lines: it is only shown to people.
    String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
}

/// How a daemon ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    Clean,
    /// It did not end by itself within the deadline.
    Killed,
}

/// SIGTERM: end in order.
pub fn ask_to_end(daemon: &Daemon) -> Result<()> {
    signal(daemon.pid, Signal::SIGTERM)
}

/// SIGTERM, and SIGKILL after the deadline. Waits until the process is gone.
pub async fn stop(daemon: &Daemon, program: &str, deadline: Duration) -> Result<Ending> {
    ask_to_end(daemon)?;
    if gone(daemon, program, deadline).await? {
        return Ok(Ending::Clean);
    }
    kill_all(daemon, program).await?;
    Ok(Ending::Killed)
}

/// SIGKILL to every process of the node, until there is none: a mount has two, of which each would replace the other.
pub async fn kill_all(daemon: &Daemon, program: &str) -> Result<()> {
    let end = Instant::now() + Duration::from_secs(10);
    loop {
        let left: Vec<Daemon> =
            daemons(program)?.into_iter().filter(|other| other.config == daemon.config).collect();
        for process in &left {
            signal(process.pid, Signal::SIGKILL)?;
        }
        let Some(process) = left.first() else { return Ok(()) };
        if Instant::now() >= end {
            bail!("process {} does not end, not even by SIGKILL; it waits in the kernel", process.pid);
        }
        tokio::time::sleep(TICK).await;
    }
}

/// Waits until every process of the node is gone, for a mount has two; false at the deadline.
pub async fn gone(daemon: &Daemon, program: &str, deadline: Duration) -> Result<bool> {
    let end = Instant::now() + deadline;
    while daemons(program)?.iter().any(|other| other.config == daemon.config) {
        if Instant::now() >= end {
            return Ok(false);
        }
        tokio::time::sleep(TICK).await;
    }
    Ok(true)
}

fn signal(pid: i32, signal: Signal) -> Result<()> {
    match kill(Pid::from_raw(pid), signal) {
        Ok(()) | Err(Errno::ESRCH) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("sending {signal} to process {pid}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<OsString> {
        text.split_whitespace().map(OsString::from).collect()
    }

    #[test]
    fn a_daemon_is_known_by_program_and_configuration() {
        let line = words("/usr/bin/godrive-slave --config /srv/gd/slave-1/config.toml");
        assert_eq!(config_of(&line, "godrive-slave"), Some("/srv/gd/slave-1/config.toml".into()));
        assert_eq!(config_of(&line, "godrive-master"), None);
        let keeper = words("godrive-keeper --config /srv/gd/mount-1/config.toml");
        assert_eq!(config_of(&keeper, "godrive-fuse"), Some("/srv/gd/mount-1/config.toml".into()));
        assert_eq!(config_of(&keeper, "godrive-slave"), None);
        assert_eq!(config_of(&words("vi /usr/bin/godrive-slave --config x"), "godrive-slave"), None);
        assert_eq!(config_of(&words("godrive-slave --config"), "godrive-slave"), None);
        assert_eq!(config_of(&words("godrive-slave"), "godrive-slave"), None);
        assert_eq!(config_of(&words("godrive-slave fsck --config x"), "godrive-slave"), None);
        assert_eq!(config_of(&[], "godrive-slave"), None);
    }

    #[test]
    fn a_pid_file_that_names_another_process_is_not_believed() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().into());
        let name = NodeName::parse("slave-1").unwrap();
        std::fs::create_dir(home.node(name)).unwrap();
        std::fs::write(home.pid(name), std::process::id().to_string()).unwrap();
        assert_eq!(running(&home, name).unwrap(), None);
    }

    #[test]
    fn a_mount_is_known_by_the_pid_that_its_daemon_notes() {
        let folder = tempfile::tempdir().unwrap();
        let programs = folder.path().join("bin");
        std::fs::create_dir(&programs).unwrap();
        let script = programs.join("godrive-fuse");
        super::super::create::write(&script, "#!/bin/sh\n", 0o755).unwrap();
        // SAFETY: each test has a process of its own, and this one no other thread that reads the environment.
        unsafe { std::env::set_var("GODRIVE_BIN_DIR", &programs) };
        let home = Home::new(folder.path().join("home"));
        let name = NodeName::parse("mount-1").unwrap();
        std::fs::create_dir_all(home.node(name)).unwrap();
        let mut started = start(&home, name).unwrap();
        started.child.wait().unwrap();
        assert_eq!(std::fs::read_to_string(home.pid(name)).unwrap(), "", "left for the daemon");
    }

    #[test]
    fn the_new_part_of_a_log() {
        let folder = tempfile::tempdir().unwrap();
        let log = folder.path().join("log");
        std::fs::write(&log, "old\nnew\n").unwrap();
        assert_eq!(log_since(&log, 4), "new\n");
        assert_eq!(log_since(&folder.path().join("none"), 0), "");
    }
}
