//! The mountpoint before, during and after the mount: made, freed of a dead predecessor, tuned, released.
//!
//! A daemon that was killed leaves its mount behind; everything under it answers ENOTCONN. Such a mount, and only
//! such a one, is taken away at the next start. The check asks the mount itself, by statfs, which the kernel never
//! answers from a cache, and in a thread of its own, because a mount whose daemon lives but hangs would block the
//! question for ever.

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::MntFlags;
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// One line of /proc/self/mountinfo.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mounted {
    pub device: String,
    pub path: PathBuf,
    pub filesystem: String,
}

/// Makes the mountpoint usable and returns its absolute path: creates what is missing and removes a dead mount.
pub fn prepare(mountpoint: &Path) -> Result<PathBuf> {
    let path = absolute(mountpoint)?;
    if let Some(mounted) = mount_at(&path)?
        && mounted.filesystem.starts_with("fuse")
    {
        match ask(&path)? {
            Answer::Dead => {
                detach(&path).with_context(|| format!("removing the dead mount at {}", path.display()))?;
                tracing::info!(mountpoint = %path.display(), "removed the mount of a daemon that had died");
            }
            Answer::Alive => bail!(
                "{} is already mounted ({}); unmount it first: umount {}",
                path.display(),
                mounted.filesystem,
                path.display()
            ),
            Answer::Silent => bail!(
                "{} is a {} mount whose daemon does not answer; end that daemon, or: umount -l {}",
                path.display(),
                mounted.filesystem,
                path.display()
            ),
        }
    }
    if !Path::new("/dev/fuse").exists() {
        bail!(
            "/dev/fuse does not exist: load the module (modprobe fuse), or start the container with --device /dev/fuse"
        );
    }
    match std::fs::metadata(&path) {
        Ok(meta) if meta.is_dir() => Ok(path),
        Ok(_) => bail!("the mountpoint {} is not a directory", path.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            std::fs::create_dir_all(&path)
                .with_context(|| format!("creating the mountpoint {}", path.display()))?;
            Ok(path)
        }
        Err(error) => Err(error).with_context(|| format!("looking at the mountpoint {}", path.display())),
    }
}

/// The path without symbolic links, as mountinfo shows it. Its last component is never looked at, for it may be a
/// dead mount.
fn absolute(path: &Path) -> Result<PathBuf> {
    let path = std::path::absolute(path).with_context(|| format!("the path {}", path.display()))?;
    let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
        bail!("{} cannot be a mountpoint", path.display());
    };
    if let Ok(target) = std::fs::canonicalize(&path) {
        return Ok(target);
    }
    match std::fs::canonicalize(parent) {
        Ok(parent) => Ok(parent.join(name)),
        Err(_) => {
            std::fs::create_dir_all(parent).with_context(|| format!("creating {}", parent.display()))?;
            Ok(std::fs::canonicalize(parent)?.join(name))
        }
    }
}

/// The topmost mount at exactly this path.
pub fn mount_at(path: &Path) -> Result<Option<Mounted>> {
    #[expect(clippy::disallowed_methods, reason = "the kernel's table of mounts")]
    let table = std::fs::read("/proc/self/mountinfo").context("reading /proc/self/mountinfo")?;
    Ok(table.split(|byte| *byte == b'\n').filter_map(parse).rfind(|mounted| mounted.path == path))
}

/// `36 35 98:0 /root /mount/point rw,noatime master:1 - ext4 /dev/root rw`
fn parse(line: &[u8]) -> Option<Mounted> {
    let mut fields = line.split(|byte| *byte == b' ');
    let device = fields.nth(2)?;
    let path = fields.nth(1)?;
    let mut rest = fields.skip_while(|field| *field != b"-");
    rest.next()?;
    Some(Mounted {
        device: String::from_utf8_lossy(device).into_owned(),
        path: OsString::from_vec(unescape(path)).into(),
        filesystem: String::from_utf8_lossy(rest.next()?).into_owned(),
    })
}

/// Undoes the kernel's `\040`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some((&first, tail)) = rest.split_first() {
        let octal = tail.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(byte) if first == b'\\' => {
                plain.push(byte);
                rest = &tail[3..];
            }
            _ => {
                plain.push(first);
                rest = tail;
            }
        }
    }
    plain
}

enum Answer {
    Alive,
    Dead,
    Silent,
}

#[expect(clippy::disallowed_methods, reason = "a question that may block for ever gets a thread of its own")]
fn ask(path: &Path) -> Result<Answer> {
    let (answered, answer) = mpsc::channel();
    let asked = path.to_owned();
    std::thread::spawn(move || answered.send(nix::sys::statfs::statfs(&asked).map(drop)).is_ok());
    Ok(match answer.recv_timeout(PATIENCE) {
        Err(_) => Answer::Silent,
        Ok(Err(Errno::ENOTCONN | Errno::ECONNABORTED)) => Answer::Dead,
        Ok(_) => Answer::Alive,
    })
}

/// Unmounts; fails with EBUSY while somebody uses the mount.
pub fn unmount(path: &Path) -> Result<(), Errno> {
    match nix::mount::umount(path) {
        Err(Errno::EPERM) => fusermount(path, &["-u"]),
        other => other,
    }
}

/// Takes the mount out of the tree at once; it ends when its last user closes.
pub fn detach(path: &Path) -> Result<(), Errno> {
    match nix::mount::umount2(path, MntFlags::MNT_DETACH) {
        Err(Errno::EPERM) => fusermount(path, &["-u", "-z"]),
        other => other,
    }
}

/// Others than root unmount through the set-uid helper; its exit code says only that it failed.
fn fusermount(path: &Path, arguments: &[&str]) -> Result<(), Errno> {
    let output = Command::new("fusermount3").args(arguments).arg("--").arg(path).output();
    match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) if output.stderr.windows(4).any(|text| text == b"busy") => Err(Errno::EBUSY),
        Ok(output) => {
            tracing::warn!(message = %String::from_utf8_lossy(&output.stderr).trim(), "fusermount3 failed");
            Err(Errno::EPERM)
        }
        Err(error) => {
            tracing::warn!(%error, "fusermount3 cannot be run; install the package fuse3");
            Err(Errno::EPERM)
        }
    }
}

/// Makes the kernel write the dirty pages of mapped files to us. It may take as long as the cluster takes, so it runs
/// in a thread of its own and is waited for only so long.
#[expect(clippy::disallowed_methods, reason = "a call that may block gets a thread of its own")]
pub fn write_mapped_pages(path: &Path, patience: Duration) {
    let (done, result) = mpsc::channel();
    let path = path.to_owned();
    std::thread::spawn(move || {
        let synced = std::fs::File::open(&path)
            .and_then(|root| nix::unistd::syncfs(&root).map_err(std::io::Error::from));
        // Nobody listens any more if the patience ended.
        let _ = done.send(synced);
    });
    match result.recv_timeout(patience) {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(%error, "dirty pages of mapped files could not be collected"),
        Err(_) => tracing::warn!("dirty pages of mapped files could not be collected in time"),
    }
}

/// Read-ahead above the kernel's default is set per mount, after it was mounted. Returns false where that is not
/// permitted (others than root); the default of 128 KiB stays then.
pub fn raise_read_ahead(path: &Path, kib: u32) -> Result<bool> {
    let Some(mounted) = mount_at(path)? else {
        bail!("{} is not mounted", path.display());
    };
    let file = format!("/sys/class/bdi/{}/read_ahead_kb", mounted.device);
    #[expect(clippy::disallowed_methods, reason = "a setting of the kernel")]
    match std::fs::write(&file, kib.to_string()) {
        Ok(()) => Ok(true),
        Err(error) => {
            tracing::debug!(%file, %error, "read-ahead stays at the kernel's default");
            Ok(false)
        }
    }
}

/// For the label of the session: host and mountpoint, at most 255 bytes.
pub fn label(path: &Path) -> String {
    #[expect(clippy::disallowed_methods, reason = "the kernel's name of this machine")]
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_else(|_| "unknown-host".into());
    let label = format!("{}:{}", host.trim(), path.display());
    let mut end = label.len().min(255);
    while !label.is_char_boundary(end) {
        end -= 1;
    }
    label[..end].to_owned()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::disallowed_methods, reason = "tests make their own files")]
    use super::*;

    #[test]
    fn a_line_of_the_table_is_understood() {
        let mounted =
            parse(b"62 28 0:54 / /mnt/two\\040words rw,nosuid shared:1 - fuse.godrive godrive rw,user_id=0")
                .unwrap();
        assert_eq!(mounted.device, "0:54");
        assert_eq!(mounted.path, Path::new("/mnt/two words"));
        assert_eq!(mounted.filesystem, "fuse.godrive");
        assert_eq!(parse(b""), None);
        assert_eq!(parse(b"62 28 0:54 / /mnt rw"), None);
    }

    #[test]
    fn escapes_are_undone_and_other_backslashes_kept() {
        assert_eq!(unescape(b"a\\040b\\134c"), b"a b\\c");
        assert_eq!(unescape(b"end\\04"), b"end\\04");
        assert_eq!(unescape(b"1234"), b"1234");
    }

    #[test]
    fn the_root_is_mounted_and_a_fresh_folder_is_not() {
        assert!(mount_at(Path::new("/")).unwrap().is_some());
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(mount_at(folder.path()).unwrap(), None);
    }

    #[test]
    fn a_missing_mountpoint_is_made_and_a_file_refused() {
        let folder = tempfile::tempdir().unwrap();
        let made = prepare(&folder.path().join("a/b")).unwrap();
        assert!(made.is_dir());
        std::fs::write(folder.path().join("file"), b"").unwrap();
        let error = prepare(&folder.path().join("file")).unwrap_err().to_string();
        assert!(error.contains("is not a directory"), "{error}");
    }

    #[test]
    fn labels_are_bounded() {
        assert!(label(Path::new(&format!("/{}", "ü".repeat(300)))).len() <= 255);
    }
}
