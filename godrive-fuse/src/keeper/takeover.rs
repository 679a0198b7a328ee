//! Going on with a mount that the kernel has already: the descriptor of /dev/fuse outlived the daemon that served it.
//!
//! fuser begins each session with a handshake that the kernel had with the first daemon and will not repeat. So it is
//! given one end of a pair of sockets, gets a handshake of ours through it, and when it is done the real descriptor is
//! put in that end's place. Then the kernel is asked for the requests that the dead daemon had read and not answered
//! (FUSE_NOTIFY_RESEND, Linux 6.9). Names that it was told may be kept are expired all at once (FUSE_NOTIFY_INC_EPOCH,
//! Linux 6.16): nobody knows which they were.

use super::ledger::Mounted;
use crate::filesystem::Mount;
use crate::notify::{NOTIFY_INC_EPOCH, NOTIFY_INVAL_INODE, header};
use fuser::{Session, SessionACL};
use godrive_proto::Ino;
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socketpair};
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};

/// Kernels whose interface has this minor version can do all that a take-over needs.
pub const MINOR_NEEDED: u32 = 44;

const NOTIFY_RESEND: i32 = 7;
const OPCODE_INIT: u32 = 26;
const KERNEL_VERSION: u32 = 7;
/// FUSE_INIT_EXT: there are more than 32 of them.
const FLAGS_GO_ON: u32 = 1 << 30;
const HEADER_BYTES: u32 = 40;
const INIT_BYTES: u32 = 64;

/// A session of fuser's on the mount that `device` is the descriptor of. Nothing is read before it is run.
pub fn session(
    mount: Mount,
    mounted: &Mounted,
    device: &OwnedFd,
    acl: SessionACL,
    config: fuser::Config,
) -> io::Result<Session<Mount>> {
    let (ours, its) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    let mut ours = File::from(ours);
    ours.write_all(&init(mounted))?;
    let session = Session::from_fd(mount, its, acl, config)?;
    // What it answered to the handshake has been agreed long ago.
    let mut answer = [0; 256];
    let _ = ours.read(&mut answer)?;
    // SAFETY: both descriptors are open, and the session's goes on under its number; only what it leads to changes.
    let replaced = unsafe { libc::dup3(device.as_raw_fd(), session.as_fd().as_raw_fd(), libc::O_CLOEXEC) };
    if replaced < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(session)
}

/// The kernel's first request of a mount, as the first daemon had got it.
fn init(mounted: &Mounted) -> Vec<u8> {
    let mut request = Vec::with_capacity((HEADER_BYTES + INIT_BYTES) as usize);
    for word in [HEADER_BYTES + INIT_BYTES, OPCODE_INIT, 1, 0] {
        request.extend(word.to_ne_bytes());
    }
    request.resize(HEADER_BYTES as usize, 0);
    let (low, high) = (mounted.capabilities as u32 | FLAGS_GO_ON, (mounted.capabilities >> 32) as u32);
    for word in [KERNEL_VERSION, mounted.minor, 1 << 20, low, high] {
        request.extend(word.to_ne_bytes());
    }
    request.resize((HEADER_BYTES + INIT_BYTES) as usize, 0);
    request
}

/// Expires what the kernel keeps of names, and of the attributes of these inodes. Waits for nothing.
pub fn expire(device: &OwnedFd, inodes: impl Iterator<Item = Ino>) -> io::Result<()> {
    let mut device = File::from(device.try_clone()?);
    device.write_all(&header(NOTIFY_INC_EPOCH, 0)?)?;
    for ino in inodes {
        // A negative offset: the attributes alone.
        let body = [ino.0.to_ne_bytes(), (-1i64).to_ne_bytes(), 0i64.to_ne_bytes()].concat();
        let message = [&header(NOTIFY_INVAL_INODE, body.len())?[..], &body[..]].concat();
        match device.write_all(&message) {
            // The kernel does not know it.
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {}
            other => other?,
        }
    }
    Ok(())
}

/// Asks for the requests that were read and never answered.
pub fn resend(device: &OwnedFd) -> io::Result<()> {
    File::from(device.try_clone()?).write_all(&header(NOTIFY_RESEND, 0)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_handshake_has_the_kernels_format() {
        let mounted = Mounted { minor: 45, capabilities: 0x0102_0304_0506_0708, path: "/".into() };
        let request = init(&mounted);
        assert_eq!(request.len(), 104);
        assert_eq!(request[..16], [104, 0, 0, 0, 26, 0, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(request[40..60], [7, 0, 0, 0, 45, 0, 0, 0, 0, 0, 16, 0, 8, 7, 6, 0x45, 4, 3, 2, 1]);
        assert!(request[16..40].iter().chain(&request[60..]).all(|byte| *byte == 0));
    }
}
