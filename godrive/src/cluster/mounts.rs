//! Mounts as the kernel shows them, and their daemons.

use super::process::{self, Daemon};
use anyhow::{Context, Result};
use nix::errno::Errno;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

/// How a mountpoint answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    NotMounted,
    /// Another file system.
    Foreign,
    Alive,
    /// Its daemon has died.
    Dead,
    /// It does not answer in time.
    Silent,
}

/// The path as the kernel names it: absolute, without links. The last component is not looked at where a mount of
/// GoDrive is: its daemon may be dead, or hang.
pub fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("the path {}", path.display()))?;
    if is_ours(&path)? {
        return Ok(path);
    }
    let beside = match (path.parent().map(Path::canonicalize), path.file_name()) {
        (Some(Ok(parent)), Some(name)) => parent.join(name),
        _ => path.clone(),
    };
    if is_ours(&beside)? {
        return Ok(beside);
    }
    Ok(path.canonicalize().unwrap_or(beside))
}

/// Such a path is not looked at: the mount may hang.
fn is_ours(path: &Path) -> Result<bool> {
    Ok(mounted_at(path)?.is_some_and(|mounted| mounted.kind == OURS))
}

/// The kernel's name for a mount of GoDrive.
const OURS: &str = "fuse.godrive";

/// A line of the kernel's table of mounts.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    /// `major:minor`
    device: String,
    path: PathBuf,
    kind: String,
}

/// What is mounted exactly at this path. Asks nothing of the mount.
fn mounted_at(path: &Path) -> Result<Option<Mounted>> {
    let table = std::fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    let mut lines = table.split(|byte| *byte == b'\n').filter_map(parse);
    Ok(lines.rfind(|mounted| mounted.path == path))
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw`
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = String::from_utf8_lossy(fields.nth(2)?).into_owned();
    let path = OsString::from_vec(unescape(fields.nth(1)?)).into();
    let mut rest = fields.skip_while(|field| *field != b"-");
    rest.next()?;
    Some(Mounted { device, path, kind: String::from_utf8_lossy(rest.next()?).into_owned() })
}

/// Undoes the kernel's `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        let byte = octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()).filter(|_| first == b'\\');
        plain.push(byte.unwrap_or(first));
        rest = if byte.is_some() { &tail[3..] } else { tail };
    }
    plain
}

/// Whether anything is mounted exactly at this path. Asks nothing of the mount: while the cluster does not run it would not answer.
pub fn is_mounted(path: &Path) -> Result<bool> {
    Ok(mounted_at(path)?.is_some())
}

/// Asks the mount itself, in a thread of its own, for a mount that hangs never answers. By statfs, which always
/// reaches the daemon: a stat may be answered from the kernel's cache after the daemon has died.
pub async fn state(path: &Path) -> Result<State> {
    match mounted_at(path)? {
        None => return Ok(State::NotMounted),
        Some(mounted) if mounted.kind != OURS => return Ok(State::Foreign),
        Some(_) => {}
    }
    let asked = path.to_owned();
    let answer = tokio::task::spawn_blocking(move || nix::sys::statfs::statfs(&asked));
    Ok(match tokio::time::timeout(Duration::from_secs(5), answer).await {
        Err(_) => State::Silent,
        Ok(answer) => match answer.context("asking the mount")? {
            Ok(_) => State::Alive,
            Err(Errno::ENOTCONN | Errno::ECONNABORTED) => State::Dead,
            Err(_) => State::Alive,
        },
    })
}

/// The daemon that serves a mountpoint, by its configuration.
pub fn daemon_of(path: &Path) -> Result<Option<Daemon>> {
    for daemon in process::daemons("godrive-fuse")? {
        // A daemon of another user or container may have a configuration that cannot be read here.
        if let Ok(mountpoint) = super::layout::mountpoint_of(&daemon.config)
            && absolute(&mountpoint)? == path
        {
            return Ok(Some(daemon));
        }
    }
    Ok(None)
}

/// The kernel's connection of a FUSE mount.
pub struct Connection {
    abort: PathBuf,
}

impl Connection {
    /// Whoever waits for the mount gets an error at once, and so does whoever uses it later.
    pub fn abort(&self) {
        if let Err(error) = std::fs::write(&self.abort, "1") {
            // Killing its daemon and keeper does the same, unless they wait in the kernel themselves.
            eprintln!("note: {} cannot be written: {error}", self.abort.display());
        }
    }
}

/// The connection of the mount at exactly this path; None: there is no such mount.
pub fn connection(path: &Path) -> Result<Option<Connection>> {
    let minor = |mounted: Mounted| mounted.device.split(':').nth(1).map(str::to_owned);
    let minor = mounted_at(path)?.and_then(minor);
    Ok(minor
        .map(|minor| Connection { abort: Path::new("/sys/fs/fuse/connections").join(minor).join("abort") }))
}

/// Unmounts; EBUSY while somebody uses the mount.
pub async fn unmount(path: &Path, lazily: bool) -> Result<(), Errno> {
    let path = path.to_owned();
    let work = move || {
        let flags = if lazily { nix::mount::MntFlags::MNT_DETACH } else { nix::mount::MntFlags::empty() };
        match nix::mount::umount2(&path, flags) {
            Err(Errno::EPERM) => fusermount(&path, if lazily { &["-u", "-z"] } else { &["-u"] }),
            other => other,
        }
    };
    tokio::task::spawn_blocking(work).await.unwrap_or(Err(Errno::EIO))
}

/// Others than root unmount through the set-uid helper; its exit code says only that it failed.
fn fusermount(path: &Path, options: &[&str]) -> Result<(), Errno> {
    match Command::new("fusermount3").args(options).arg("--").arg(path).output() {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) if output.stderr.windows(4).any(|text| text == b"busy") => Err(Errno::EBUSY),
        Ok(output) => {
            eprintln!("fusermount3: {}", String::from_utf8_lossy(&output.stderr).trim());
            Err(Errno::EPERM)
        }
        Err(error) => {
            eprintln!("fusermount3 cannot be run ({error}); install the package fuse3");
            Err(Errno::EPERM)
        }
    }
}

/// Who has files open below the mount, as far as /proc shows it: `name (pid)`.
pub fn users(path: &Path) -> Vec<String> {
    let mut users = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let process = entry.path();
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok()) else {
            continue;
        };
        let links = ["cwd", "root", "exe"].map(|link| process.join(link)).into_iter();
        let open =
            std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten().map(|entry| entry.path());
        // Links only: following them could ask the mount.
        if links.chain(open).any(|link| std::fs::read_link(link).is_ok_and(|target| target.starts_with(path)))
        {
            let name = std::fs::read_to_string(process.join("comm")).unwrap_or_default();
            users.push(format!("{} ({pid})", name.trim()));
        }
    }
    users
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let line = b"62 28 0:54 / /mnt/two\\040words rw,nosuid shared:1 - fuse.godrive godrive rw,user_id=0";
        let mounted =
            Mounted { device: "0:54".into(), path: "/mnt/two words".into(), kind: "fuse.godrive".into() };
        assert_eq!(parse(line), Some(mounted));
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"62 28 0:54 / /mnt rw"), None);
        assert_eq!(unescape(b"end\\04"), b"end\\04");
    }

    #[tokio::test]
    async fn a_fresh_folder_is_not_mounted_and_the_root_is_foreign() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(state(folder.path()).await.unwrap(), State::NotMounted);
        assert_eq!([folder.path(), Path::new("/proc")].map(|path| is_mounted(path).unwrap()), [false, true]);
        assert_eq!(state(Path::new("/proc")).await.unwrap(), State::Foreign);
    }

    #[test]
    fn users_of_a_folder_are_found() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap();
        let _open = std::fs::File::create(path.join("file")).unwrap();
        let me = format!("({})", std::process::id());
        assert!(users(&path).iter().any(|user| user.ends_with(&me)));
    }
}
