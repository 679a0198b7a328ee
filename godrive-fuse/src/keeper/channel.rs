//! What a daemon tells its keeper: datagrams on a pair of sockets, of which one carries a descriptor.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

/// One message. The end of the connection without [`Message::Ends`] before it: the daemon was killed.
#[derive(Debug)]
pub enum Message {
    /// This process serves from now on.
    Serves(u32),
    /// The mount exists, and this is its descriptor of /dev/fuse.
    Mounted(OwnedFd),
    /// The runtime turns.
    Alive,
    /// Nobody must go on after this daemon, however it ends.
    Stops,
    /// It ends in order, with this exit code.
    Ends(u8),
}

pub fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?)
}

/// Waits for nothing; an error if there is no room or nobody.
pub fn send(socket: &OwnedFd, message: &Message) -> io::Result<()> {
    let mut bytes = vec![match message {
        Message::Serves(_) => b'P',
        Message::Mounted(_) => b'M',
        Message::Alive => b'A',
        Message::Stops => b'S',
        Message::Ends(_) => b'E',
    }];
    let mut descriptors: Vec<RawFd> = Vec::new();
    match message {
        Message::Serves(pid) => bytes.extend(pid.to_le_bytes()),
        Message::Mounted(device) => descriptors.push(device.as_raw_fd()),
        Message::Ends(code) => bytes.push(*code),
        Message::Alive | Message::Stops => {}
    }
    let rights = [ControlMessage::ScmRights(&descriptors)];
    let control = if descriptors.is_empty() { &[][..] } else { &rights[..] };
    // A keeper that is frozen takes nothing: its daemon must go on.
    let flags = MsgFlags::MSG_NOSIGNAL | MsgFlags::MSG_DONTWAIT;
    sendmsg::<UnixAddr>(socket.as_raw_fd(), &[IoSlice::new(&bytes)], control, flags, None)?;
    Ok(())
}

/// The next message; None: the other side is gone. Waits.
pub fn receive(socket: &OwnedFd) -> io::Result<Option<Message>> {
    let mut bytes = [0; 16];
    let mut space = nix::cmsg_space!(RawFd);
    loop {
        let mut buffers = [IoSliceMut::new(&mut bytes)];
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let received = match recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags) {
            Ok(received) => received,
            Err(Errno::EINTR) => continue,
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let len = received.bytes;
        let mut device = None;
        for control in received.cmsgs()? {
            if let ControlMessageOwned::ScmRights(descriptors) = control {
                for descriptor in descriptors {
                    // SAFETY: the kernel has just made this descriptor for us; nobody else knows it.
                    device = Some(unsafe { OwnedFd::from_raw_fd(descriptor) });
                }
            }
        }
        let strange = || io::Error::new(io::ErrorKind::InvalidData, "no message of a mount's daemon");
        let words = bytes.get(..len).ok_or_else(strange)?;
        return match (words, device) {
            ([], _) => Ok(None),
            ([b'P', pid @ ..], _) => {
                let pid = pid.first_chunk().ok_or_else(strange)?;
                Ok(Some(Message::Serves(u32::from_le_bytes(*pid))))
            }
            ([b'M'], Some(device)) => Ok(Some(Message::Mounted(device))),
            ([b'A'], _) => Ok(Some(Message::Alive)),
            ([b'S'], _) => Ok(Some(Message::Stops)),
            ([b'E', code], _) => Ok(Some(Message::Ends(*code))),
            _ => Err(strange()),
        };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_keeper_that_takes_nothing_is_not_waited_for() {
        let (daemon, _keeper) = pair().unwrap();
        let full = (0..100_000).find_map(|_| send(&daemon, &Message::Alive).err()).unwrap();
        assert_eq!(full.kind(), io::ErrorKind::WouldBlock);
    }

    #[test]
    fn messages_arrive_with_their_descriptor() {
        let (one, other) = pair().unwrap();
        let (device, mirror) = pair().unwrap();
        for message in [Message::Serves(300), Message::Mounted(device), Message::Stops, Message::Ends(1)] {
            send(&one, &message).unwrap();
        }
        assert!(matches!(receive(&other).unwrap(), Some(Message::Serves(300))));
        let Some(Message::Mounted(device)) = receive(&other).unwrap() else { panic!("no descriptor") };
        send(&device, &Message::Alive).unwrap();
        assert!(matches!(receive(&mirror).unwrap(), Some(Message::Alive)), "it leads to the same socket");
        assert!(matches!(receive(&other).unwrap(), Some(Message::Stops)));
        assert!(matches!(receive(&other).unwrap(), Some(Message::Ends(1))));
        drop(one);
        assert!(receive(&other).unwrap().is_none());
    }
}
