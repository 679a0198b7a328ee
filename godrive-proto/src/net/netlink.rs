//! The machine's network as Linux tells of it: something about addresses, links or routes has changed.
//!
//! What has changed is not read from the messages: whoever hears of it asks the kernel for the address from which it
//! would send now. So a message that is lost in a storm costs nothing, as long as the storm itself is noticed.

use super::endpoint::Changes;
use socket2::{Domain, Protocol, Socket, Type};
use std::future::Future;
use std::io::{self, Read};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::time::Duration;
use tokio::io::unix::AsyncFd;
use tokio::time::sleep;

const GROUPS: libc::c_int = libc::RTMGRP_LINK
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE;
/// More are left for the next call, so that a storm does not hold a thread.
const MESSAGES_AT_ONCE: usize = 1024;
/// Where the kernel tells nothing (some containers), it is asked this often.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// Changes of this machine's network, in the network namespace of the caller.
pub(super) enum MachineChanges {
    Told(AsyncFd<Socket>),
    Untold,
}

impl MachineChanges {
    pub fn watch() -> Self {
        match subscribe() {
            Ok(told) => Self::Told(told),
            Err(error) => {
                tracing::warn!(%error, "the kernel does not tell of changes of the network; looking every second");
                Self::Untold
            }
        }
    }
}

impl Changes for MachineChanges {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            if let Self::Told(socket) = self {
                match told(socket).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(%error, "the kernel stopped telling of changes of the network; looking every second");
                        *self = Self::Untold;
                    }
                }
            }
            sleep(LOOK_EVERY).await;
        })
    }
}

fn subscribe() -> io::Result<AsyncFd<Socket>> {
    let kind = Type::RAW.nonblocking().cloexec();
    let socket =
        Socket::new(Domain::from(libc::AF_NETLINK), kind, Some(Protocol::from(libc::NETLINK_ROUTE)))?;
    // SAFETY: all zeros is a valid sockaddr_nl, which consists of integers.
    let mut address: libc::sockaddr_nl = unsafe { std::mem::zeroed() };
    address.nl_family = libc::AF_NETLINK as libc::sa_family_t;
    address.nl_groups = GROUPS as u32;
    // SAFETY: the descriptor is open, and the address is a sockaddr_nl whose size is given.
    let bound = unsafe {
        libc::bind(
            socket.as_raw_fd(),
            (&raw const address).cast(),
            size_of::<libc::sockaddr_nl>() as libc::socklen_t,
        )
    };
    if bound != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: a Socket owns one descriptor, always the same, and closes it only when it is dropped itself.
    Ok(unsafe { AsyncFd::register(socket) }?)
}

/// Waits for a message and takes all that are there.
async fn told(socket: &mut AsyncFd<Socket>) -> io::Result<()> {
    loop {
        let mut ready = socket.readable_mut().await?;
        match ready.try_io(|socket| drain(socket.get_mut())) {
            Ok(outcome) => return outcome,
            Err(_would_block) => {}
        }
    }
}

fn drain(socket: &mut Socket) -> io::Result<()> {
    // What does not fit is cut off, which does not matter.
    let mut message = [0; 64];
    let mut any = false;
    for _ in 0..MESSAGES_AT_ONCE {
        match socket.read(&mut message) {
            Ok(_) => any = true,
            // Messages were lost because nobody took them in time: something has changed.
            Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => any = true,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock && any => return Ok(()),
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// The address from which the kernel would send from a socket bound to `bind`. Nothing is sent.
pub(super) fn source(bind: IpAddr, peer: SocketAddr) -> Option<IpAddr> {
    let probe = Socket::new(Domain::for_address(peer), Type::DGRAM, Some(Protocol::UDP)).ok()?;
    if !bind.is_unspecified() {
        probe.bind(&SocketAddr::new(bind, 0).into()).ok()?;
    }
    probe.connect(&peer.into()).ok()?;
    Some(probe.local_addr().ok()?.as_socket()?.ip())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_reached_from_loopback_and_no_address_from_one_that_is_not_here() {
        let peer = "127.0.0.1:9".parse().unwrap();
        let any = IpAddr::from([0, 0, 0, 0]);
        assert_eq!(source(any, peer), Some(IpAddr::from([127, 0, 0, 1])));
        assert_eq!(source(IpAddr::from([127, 0, 0, 5]), peer), Some(IpAddr::from([127, 0, 0, 5])));
        // TEST-NET-1 is nobody's address.
        assert_eq!(source(IpAddr::from([192, 0, 2, 1]), peer), None);
    }
}
