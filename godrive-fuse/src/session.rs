//! A mount from start to end: the client's session with the cluster around the kernel's session with us.
//!
//! The order matters at both ends. The client comes first, so that a cluster that is down is an error message and not
//! a hanging mount. At the end the kernel's caches come back first (unmount), then the client flushes, and only then
//! the cluster's session is closed.

use crate::config::{Close, Config};
use crate::filesystem::Mount;
use crate::keeper::ledger::Mounted;
use crate::keeper::{Kept, Left, takeover};
use crate::mountpoint;
use crate::notify::Notifications;
use crate::operations::{self, Operations};
use crate::options::kernel_option;
use anyhow::{Context, Result, bail};
use fuser::{MountOption, SessionACL};
pub use godrive_client::World;
use godrive_client::fs::{Invalidate, Unflushed};
use godrive_client::ledger::Ledger;
use godrive_client::{Client, CloseMode, Fs};
use godrive_proto::{Code, Fault};
use nix::errno::Errno;
use std::os::fd::AsFd;
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::oneshot;

/// Two readers, so that one waiting to be scheduled does not stop the mount; none of them ever waits for the network.
const READERS: usize = 2;
/// The kernel's read-ahead per open file. The client reads ahead itself; this gives it several requests to work on.
const READ_AHEAD_KIB: u32 = 4096;
/// How long the end waits for the kernel.
const PATIENCE: Duration = Duration::from_secs(10);

/// What ends a mount from inside.
pub type Shutdown = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Mounts and serves until `shutdown` ends or somebody unmounts. An error at the end names what could not be flushed.
///
/// Boxed, so that the mount is compiled here once and not again in every program that starts one.
pub fn run(
    config: Config,
    world: World,
    kept: Option<Kept>,
    left: Option<Left>,
    shutdown: Shutdown,
) -> Pin<Box<dyn Future<Output = Result<()>> + Send>> {
    Box::pin(serve(config, world, kept, left, shutdown))
}

async fn serve(
    config: Config,
    world: World,
    kept: Option<Kept>,
    left: Option<Left>,
    shutdown: Shutdown,
) -> Result<()> {
    if let Some(kept) = &kept {
        tokio::spawn(kept.clone().beat());
    }
    let path = match &left {
        Some(left) => {
            // What other mounts may change as soon as the master lets them, the kernel must ask for again.
            let ahead = left.inheritance.traces.iter().filter(|(_, trace)| trace.unsent || trace.uncommitted);
            takeover::expire(&left.device, ahead.map(|(ino, _)| *ino))
                .context("expiring the kernel's names")?;
            left.mounted.path.clone()
        }
        None => {
            let path = config.mountpoint.clone();
            blocking(move || mountpoint::prepare(&path)).await?
        }
    };
    let operations = Arc::new(Operations::default());
    let notifications = match left {
        Some(_) => Notifications::awaiting(operations.clone()),
        None => Notifications::new(operations.clone()),
    };
    let master = config.master;
    let ledger = kept.as_ref().map(|kept| kept.ledger.clone() as Arc<dyn Ledger>);
    let inheritance = left.as_ref().map(|left| left.inheritance.clone());
    let kernel: Arc<dyn Invalidate> = Arc::new(notifications.clone());
    let fs = Client::start_noted(client_config(&config, &path), world, Some(kernel), ledger, inheritance)
        .await
        .map_err(|fault| explain(&fault, &config))?;

    let runtime = tokio::runtime::Handle::current();
    let mount = Mount::new(fs.clone(), runtime, operations.clone(), notifications.forgetting());
    let stopping = mount.stopping();
    let mut ended = match start(mount, &config, &path, &notifications, kept.as_ref(), left.as_ref()).await {
        Ok(ended) => ended,
        Err(error) => {
            return match flush(&fs).await {
                Ok(()) => Err(error),
                Err(lost) => Err(error.context(lost)),
            };
        }
    };
    if let Some(left) = &left {
        fs.follow_up(&left.inheritance);
    }
    let reporting = tokio::spawn(report_on_signal(fs.clone()));
    let watchdog = tokio::spawn(operations::watch(operations, config.deadline()));
    tracing::info!(mountpoint = %path.display(), %master, read_only = config.read_only, "mounted");
    tell_systemd(sd_notify::NotifyState::Ready);

    let mut result = tokio::select! {
        result = &mut ended => {
            tracing::info!(mountpoint = %path.display(), "unmounted from outside");
            result.unwrap_or_else(|_| Err(std::io::Error::other("the readers of /dev/fuse panicked")))
        }
        () = shutdown => {
            tell_systemd(sd_notify::NotifyState::Stopping);
            if let Some(kept) = &kept {
                kept.stops();
            }
            take_down(&path, ended).await;
            Ok(())
        }
    };
    stopping.store(true, Ordering::SeqCst);
    watchdog.abort();
    reporting.abort();
    if let Err(error) = flush(&fs).await {
        result = Err(std::io::Error::other(error));
    }
    result.with_context(|| format!("the mount at {}", path.display()))
}

/// Mounts, starts the readers and tunes the kernel. The receiver learns how the readers ended.
async fn start(
    mount: Mount,
    config: &Config,
    path: &Path,
    notifications: &Notifications,
    kept: Option<&Kept>,
    left: Option<&Left>,
) -> Result<oneshot::Receiver<std::io::Result<()>>> {
    let options = kernel_config(config)?;
    let kernel = mount.kernel();
    let session = match left {
        Some(left) => takeover::session(mount, &left.mounted, &left.device, options.acl, options)
            .context("taking the kernel's mount over")?,
        None => {
            let target = path.to_owned();
            blocking(move || {
                fuser::Session::new(mount, &target, &options).map_err(|error| mount_failed(error, &target))
            })
            .await?
        }
    };
    let duplicate =
        || session.as_fd().try_clone_to_owned().context("duplicating the descriptor of /dev/fuse");
    let minor = kernel.minor.load(Ordering::SeqCst);
    notifications.attach(session.notifier(), duplicate()?, minor);
    match (left, kept) {
        (Some(left), _) => {
            takeover::resend(&left.device).context("asking the kernel for what was unanswered")?
        }
        (None, Some(kept)) => {
            let capabilities = kernel.capabilities.load(Ordering::SeqCst);
            let mounted = Mounted { minor, capabilities, path: path.to_owned() };
            kept.mounted(&mounted, duplicate()?).context("telling the keeper of the mount")?;
        }
        (None, None) => {}
    }
    let (finished, ended) = oneshot::channel();
    std::thread::Builder::new()
        .name("fuse-session".into())
        .spawn(move || {
            // Nobody listens any more if the daemon is stopping.
            let _ = finished.send(session.run());
        })
        .context("starting the readers")?;
    if left.is_some() {
        return Ok(ended);
    }
    let target = path.to_owned();
    if !blocking(move || mountpoint::raise_read_ahead(&target, READ_AHEAD_KIB)).await? {
        tracing::info!("the kernel's read-ahead stays at its default; root could raise it");
    }
    Ok(ended)
}

fn kernel_config(config: &Config) -> Result<fuser::Config> {
    let root = nix::unistd::geteuid().is_root();
    let mut options = fuser::Config::default();
    options.n_threads = Some(READERS);
    options.acl = if config.allow_other.unwrap_or(root) { SessionACL::All } else { SessionACL::Owner };
    options.mount_options = vec![
        MountOption::FSName("godrive".into()),
        // As a plain option, because fuser passes its own `Subtype` only to fusermount3.
        MountOption::CUSTOM("subtype=godrive".into()),
        MountOption::DefaultPermissions,
    ];
    if config.read_only {
        options.mount_options.push(MountOption::RO);
    }
    for option in &config.mount_options {
        options.mount_options.push(kernel_option(option).map_err(anyhow::Error::msg)?);
    }
    Ok(options)
}

/// Unmounts for a shutdown. A mount in use is detached: programs keep their open files until the daemon has flushed,
/// then they get ENOTCONN.
async fn take_down(path: &Path, ended: oneshot::Receiver<std::io::Result<()>>) {
    let target = path.to_owned();
    let unmounted = blocking(move || {
        match mountpoint::unmount(&target) {
            Err(Errno::EBUSY) => {
                tracing::warn!(mountpoint = %target.display(), "still in use; it is detached and flushed as it is now");
                mountpoint::write_mapped_pages(&target, Duration::from_secs(5));
                mountpoint::detach(&target).map(|()| false)
            }
            other => other.map(|()| true),
        }
        .context("unmounting")
    })
    .await;
    match unmounted {
        Ok(true) if tokio::time::timeout(PATIENCE, ended).await.is_err() => {
            tracing::warn!("the kernel did not end the session; flushing without waiting for it");
        }
        Ok(_) => {}
        Err(error) => {
            tracing::warn!(mountpoint = %path.display(), ?error, "could not be unmounted; flushing anyway")
        }
    }
}

/// Flushes everything and closes the session. The error names what was lost.
async fn flush(fs: &Arc<Fs>) -> Result<(), String> {
    let Err(Unflushed(lost)) = fs.stop().await else {
        tracing::info!("everything is flushed");
        return Ok(());
    };
    for (ino, why) in &lost {
        tracing::error!(%ino, why, "could not be flushed");
    }
    let all: Vec<_> = lost.iter().map(|(ino, why)| format!("inode {ino}: {why}")).collect();
    Err(format!("{} files could not be flushed: {}", lost.len(), all.join("; ")))
}

fn client_config(config: &Config, path: &Path) -> godrive_client::Config {
    let mut driver = godrive_client::driver::Config::new(config.master, mountpoint::label(path));
    driver.deadline = config.deadline();
    driver.hard = config.hard;
    let mut client = godrive_client::Config::new(driver);
    client.cache_bytes = config.cache_bytes;
    client.caller_caches = true;
    client.write_buffer_bytes = config.write_buffer_bytes;
    client.close = match config.close {
        Close::Held => CloseMode::Held,
        Close::Queued => CloseMode::Queued,
    };
    client.access_times = !config.read_only && !config.mount_options.iter().any(|option| option == "noatime");
    client
}

/// What a person can do about a client that does not start.
fn explain(fault: &Fault, config: &Config) -> anyhow::Error {
    let master = config.master;
    let why = if fault.detail.is_empty() { fault.to_string() } else { fault.detail.clone() };
    match fault.code {
        Code::Unreachable | Code::Timeout => anyhow::anyhow!(
            "the master {master} does not answer: {why}. Is it running (`godrive status`, `systemctl status \
             godrive-master`)? Is `master` right in the configuration, and UDP port {} open on the way?",
            master.port()
        ),
        Code::NotReady => {
            anyhow::anyhow!("the master {master} is not ready: {why}. Its log says what it waits for.")
        }
        Code::Forbidden => anyhow::anyhow!(
            "the master {master} and the identity {} do not belong together: {why}. Join the cluster anew: \
             godrive-fuse --join TOKEN --dir DIR",
            config.identity.display()
        ),
        _ => anyhow::anyhow!("the session with the master {master} cannot be opened: {fault}"),
    }
}

fn mount_failed(error: std::io::Error, path: &Path) -> anyhow::Error {
    let hint = match error.kind() {
        std::io::ErrorKind::PermissionDenied => {
            "; others than root need fusermount3 (package fuse3) and write access to the directory, and \
             `allow_other` needs `user_allow_other` in /etc/fuse.conf"
        }
        std::io::ErrorKind::NotFound => {
            "; /dev/fuse or fusermount3 is missing (modprobe fuse; package fuse3)"
        }
        _ => "",
    };
    anyhow::anyhow!("mounting at {}: {error}{hint}", path.display())
}

/// SIGUSR1 asks what the mount has done so far: a line in the log for people and tests.
async fn report_on_signal(fs: Arc<Fs>) {
    let Ok(mut asked) = signal(SignalKind::user_defined1()) else {
        return tracing::warn!("SIGUSR1 cannot be received; the mount does not report on demand");
    };
    while asked.recv().await.is_some() {
        let (counts, stats) = (fs.driver().counts(), fs.stats());
        tracing::info!(
            master_requests = counts.master_requests - counts.renewals,
            slave_requests = counts.slave_requests,
            renewals = counts.renewals,
            payload_bytes_sent = counts.payload_bytes_sent,
            payload_bytes_received = counts.payload_bytes_received,
            recalls = stats.recalls,
            deltas = stats.deltas,
            commits = stats.commits,
            meta_hits = stats.meta_hits,
            meta_misses = stats.meta_misses,
            read_hits = stats.read_hits,
            read_misses = stats.read_misses,
            cache_bytes = stats.cache_bytes,
            dirty_bytes = stats.dirty_bytes,
            "so far"
        );
    }
}

fn tell_systemd(state: sd_notify::NotifyState) {
    // Without systemd there is nobody to tell, and that is no error.
    if let Err(error) = sd_notify::notify(&[state]) {
        tracing::warn!(%error, "systemd could not be told");
    }
}

#[expect(clippy::disallowed_methods, reason = "mounting and unmounting block in the kernel")]
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    match tokio::task::spawn_blocking(work).await {
        Ok(result) => result,
        Err(panic) => bail!("a defect: {panic}"),
    }
}
