//! `godrive mount` and `godrive umount`.

use crate::Usage;
use crate::cli;
use crate::cluster::create::Maker;
use crate::cluster::layout::{Home, Kind, NodeName};
use crate::cluster::mounts::{self, State};
use crate::cluster::plan::next_mount;
use crate::cluster::process::{self, Daemon, Ending};
use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const MOUNT_DEADLINE: Duration = Duration::from_secs(60);
/// How long a daemon may take to flush before it is killed: well above a mount's own deadline.
pub const FLUSH_DEADLINE: Duration = Duration::from_secs(180);

pub async fn mount(line: cli::Mount) -> Result<()> {
    let home = Home::new(line.home.path()?);
    let cluster = home.cluster()?;
    let _lock = home.lock()?;
    let path = mounts::absolute(&line.path)?;
    let known = home.mounts()?;
    let name = match known.iter().find(|(_, mounted)| **mounted == path) {
        Some((&number, _)) => NodeName { kind: Kind::Mount, number },
        None => {
            let name = NodeName { kind: Kind::Mount, number: next_mount(&known) };
            refuse_taken(&path).await?;
            Maker::new(IpAddr::V4(Ipv4Addr::LOCALHOST))?.mount(&home, &cluster, name, &path)?;
            name
        }
    };
    if is_served(&home, name, &path).await? {
        say!("already mounted at {}", path.display())?;
        return Ok(());
    }
    if let Err(error) = start_mount(&home, name).await {
        if !known.contains_key(&name.number) {
            // A mount that never worked must not be tried again by every `up`.
            forget(&home.node(name))?;
        }
        return Err(error);
    }
    say!("mounted at {}", path.display())?;
    Ok(())
}

/// Whether the mount has a daemon that serves it. One that runs without the mount is about to serve it, or to end: that is waited for.
pub async fn is_served(home: &Home, name: NodeName, path: &Path) -> Result<bool> {
    let end = Instant::now() + MOUNT_DEADLINE;
    while let Some(pid) = process::running(home, name)? {
        if mounts::is_mounted(path)? {
            return Ok(true);
        }
        if Instant::now() >= end {
            bail!(
                "the daemon {pid} of the mount at {} runs, but nothing is mounted there: {} says why; \
                 `godrive umount --force {}` ends it",
                path.display(),
                home.node(name).join("log").display(),
                path.display()
            );
        }
        tokio::time::sleep(process::TICK).await;
    }
    Ok(false)
}

/// Another file system, or a mount that lives, at the place of a new one.
async fn refuse_taken(path: &Path) -> Result<()> {
    match mounts::state(path).await? {
        State::NotMounted | State::Dead => Ok(()),
        _ => bail!(
            "something is mounted at {} already: unmount it first, or take another folder",
            path.display()
        ),
    }
}

/// Starts a mount's daemon and waits until the kernel has the mount and it answers.
pub async fn start_mount(home: &Home, name: NodeName) -> Result<()> {
    let path = home.mounts()?.remove(&name.number).context("the mount has no configuration")?;
    refuse_taken(&path).await?;
    if mounts::state(&path).await? == State::Dead {
        eprintln!(
            "note: the last daemon of the mount at {} had died; what it had not flushed is lost",
            path.display()
        );
        mounts::unmount(&path, true)
            .await
            .with_context(|| format!("removing the dead mount at {}", path.display()))?;
    }
    let mut daemon = process::start(home, name)?;
    let end = Instant::now() + MOUNT_DEADLINE;
    loop {
        if let Err(error) = daemon.check() {
            remove(&home.pid(name))?;
            return Err(error.context(format!("mounting at {}", path.display())));
        }
        if mounts::state(&path).await? == State::Alive {
            return Ok(());
        }
        if Instant::now() >= end {
            let words = daemon.last_words();
            let mount = Daemon { pid: daemon.pid(), config: home.config(name) };
            process::kill_all(&mount, Kind::Mount.program()).await?;
            remove(&home.pid(name))?;
            bail!(
                "mounting at {} did not work within {} s. {words}",
                path.display(),
                MOUNT_DEADLINE.as_secs()
            );
        }
        tokio::time::sleep(process::TICK).await;
    }
}

pub async fn umount(line: &cli::Umount) -> Result<()> {
    let path = mounts::absolute(&line.path)?;
    let Some(daemon) = mounts::daemon_of(&path)? else { return unmount_leftover(&path).await };
    let folder = daemon.config.parent().context("a configuration lies in a folder")?.to_owned();
    if line.force {
        return force(&path, &folder, &daemon, Duration::from_secs(line.patience_s)).await;
    }
    // Taking it out of the tree first tells whether somebody uses it, while nothing is lost yet.
    match mounts::unmount(&path, false).await {
        Ok(()) | Err(Errno::EINVAL) => {}
        Err(Errno::EBUSY) => {
            let users = mounts::users(&path);
            let who = if users.is_empty() { "another user's process".into() } else { users.join(", ") };
            bail!("{} is in use by {who}: end that first, or add --force", path.display());
        }
        Err(error) => bail!("{} cannot be unmounted: {error}", path.display()),
    }
    let ending = end_mount(&folder, &daemon, true).await?;
    forget(&folder)?;
    report(&path, &ending)
}

/// Ends a mount in any case: what can be flushed in time is; then whoever waits for an answer gets an error, and the
/// mount's processes are killed. Needs neither the cluster nor a daemon that listens.
async fn force(path: &Path, folder: &Path, daemon: &Daemon, patience: Duration) -> Result<()> {
    let program = Kind::Mount.program();
    let connection = mounts::connection(path)?;
    let start = log_length(folder);
    process::ask_to_end(daemon)?;
    let ending = if process::gone(daemon, program, patience).await? {
        Ending::Clean
    } else {
        if let Some(connection) = &connection {
            connection.abort();
        }
        process::kill_all(daemon, program).await?;
        Ending::Killed
    };
    if mounts::is_mounted(path)? {
        mounts::unmount(path, true).await.with_context(|| format!("detaching {}", path.display()))?;
    }
    let lost = lost_since(folder, start);
    forget(folder)?;
    match ending {
        Ending::Clean => report(path, &MountEnd { ending, lost }),
        Ending::Killed => bail!(
            "the mount at {} did not end within {} s and was killed: what was not flushed is lost",
            path.display(),
            patience.as_secs()
        ),
    }
}

fn log_length(folder: &Path) -> u64 {
    std::fs::metadata(folder.join("log")).map_or(0, |meta| meta.len())
}

/// The daemon's last words, if it ended with an error, name what was lost.
fn lost_since(folder: &Path, start: u64) -> Option<String> {
    let words = process::log_since(&folder.join("log"), start);
    words.lines().find_map(|line| line.strip_prefix("godrive-fuse: ")).map(str::to_owned)
}

/// How a mount ended: what the user must know of it.
pub struct MountEnd {
    pub ending: Ending,
    /// What the daemon could not flush.
    pub lost: Option<String>,
}

/// Waits until a mount's daemon has flushed and ended. `unmounted`: the kernel has told it already.
pub async fn end_mount(folder: &Path, daemon: &Daemon, unmounted: bool) -> Result<MountEnd> {
    let start = log_length(folder);
    let program = Kind::Mount.program();
    let ending = if unmounted && process::gone(daemon, program, FLUSH_DEADLINE).await? {
        Ending::Clean
    } else {
        process::stop(daemon, program, FLUSH_DEADLINE).await?
    };
    remove(&folder.join("pid"))?;
    Ok(MountEnd { ending, lost: lost_since(folder, start) })
}

pub fn report(path: &Path, end: &MountEnd) -> Result<()> {
    match (end.ending, &end.lost) {
        (Ending::Clean, None) => {
            say!("unmounted {}, everything is flushed", path.display())?;
            Ok(())
        }
        (Ending::Clean, Some(lost)) => {
            bail!("unmounted {}, but not everything was flushed: {lost}", path.display())
        }
        (Ending::Killed, _) => bail!(
            "the mount at {} did not end within {} s and was killed: what was not flushed is lost",
            path.display(),
            FLUSH_DEADLINE.as_secs()
        ),
    }
}

/// A mount without a daemon: taken away if it is dead, an error if there is none.
async fn unmount_leftover(path: &Path) -> Result<()> {
    match mounts::state(path).await? {
        State::Dead => {
            mounts::unmount(path, true)
                .await
                .with_context(|| format!("removing the dead mount at {}", path.display()))?;
            bail!(
                "the daemon of the mount at {} had died; the mount is removed, and what it had not flushed is lost",
                path.display()
            )
        }
        State::NotMounted | State::Foreign => {
            Err(Usage(format!("{} is not a mountpoint of GoDrive", path.display())).into())
        }
        State::Alive | State::Silent => bail!(
            "the daemon that serves {} is not visible from here: unmount it as the user who mounted it",
            path.display()
        ),
    }
}

/// Removes what `up` would otherwise mount again. Only a mount's own files, never what else lies there.
fn forget(folder: &Path) -> Result<()> {
    let ours = |name: &str| NodeName::parse(name).is_some_and(|name| name.kind == Kind::Mount);
    if !folder.file_name().and_then(|name| name.to_str()).is_some_and(ours) {
        // The daemon was started by somebody else, with a configuration of their own.
        return Ok(());
    }
    for file in ["config.toml", "identity.pem", "mountpoint", "pid", "log"] {
        remove(&folder.join(file))?;
    }
    match std::fs::remove_dir(folder) {
        Err(error) if error.kind() == std::io::ErrorKind::DirectoryNotEmpty => Ok(()),
        other => other.with_context(|| format!("removing {}", folder.display())),
    }
}

/// Removes a file that may be gone already.
pub fn remove(file: &PathBuf) -> Result<()> {
    match std::fs::remove_file(file) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", file.display()))
        }
        _ => Ok(()),
    }
}
