//! The real machine: its UDP sockets and its clock.

use super::endpoint::{Changes, Sockets};
use super::netlink::{self, MachineChanges};
use crate::time::{Clock, Instant, Timestamp};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, Runtime, TokioRuntime, UdpPoller};
use socket2::{Domain, Protocol, Socket, Type};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::{Context, Poll};

/// A connection's window and some more: what a receiver has promised to take fits its socket.
const SOCKET_BUFFER_BYTES: usize = 8 << 20;
/// The largest payload that one sendmsg carries, however many datagrams it is cut into.
const MAX_SEND_BYTES: usize = 65_507;

/// UDP sockets of this machine.
pub fn sockets() -> Arc<dyn Sockets> {
    Arc::new(MachineSockets)
}

/// UDP sockets of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineSockets;

impl Sockets for MachineSockets {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        let socket = Socket::new(Domain::for_address(address), Type::DGRAM, Some(Protocol::UDP))?;
        grow(&socket, libc::SO_RCVBUFFORCE, libc::SO_RCVBUF);
        grow(&socket, libc::SO_SNDBUFFORCE, libc::SO_SNDBUF);
        socket.bind(&address.into())?;
        let inner = TokioRuntime.wrap_udp_socket(socket.into())?;
        Ok(Arc::new(CappedSocket { inner, largest: AtomicUsize::new(0), sends: AtomicUsize::new(0) }))
    }

    fn watch(&self) -> Box<dyn Changes> {
        Box::new(MachineChanges::watch())
    }

    fn source(&self, bind: IpAddr, peer: SocketAddr) -> Option<IpAddr> {
        netlink::source(bind, peer)
    }
}

/// Root may exceed the system's limit; others get what it allows, which costs speed under load and nothing else.
fn grow(socket: &Socket, forced: libc::c_int, asked: libc::c_int) {
    let bytes = SOCKET_BUFFER_BYTES as libc::c_int;
    for option in [forced, asked] {
        // SAFETY: the descriptor is open, and the value is a c_int whose size is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_SOCKET,
                option,
                (&raw const bytes).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result == 0 {
            return;
        }
    }
    tracing::warn!(error = %io::Error::last_os_error(), "the UDP socket's buffer keeps its default size");
}

/// Keeps segmentation offload within what one sendmsg carries.
///
/// quinn hands over up to ten datagrams at once. With jumbo datagrams these exceed the limit, sendmsg fails with
/// EMSGSIZE, quinn-udp swallows that, and the path looks like a black hole. So what is too long goes in several
/// calls, and the number of segments asked for follows the largest datagram seen of late.
#[derive(Debug)]
struct CappedSocket {
    inner: Arc<dyn AsyncUdpSocket>,
    largest: AtomicUsize,
    sends: AtomicUsize,
}

impl CappedSocket {
    fn saw(&self, segment_bytes: usize) {
        // A heuristic: a lost update between threads only costs a split.
        let forget = self.sends.fetch_add(1, Ordering::Relaxed).is_multiple_of(4096);
        if forget || segment_bytes > self.largest.load(Ordering::Relaxed) {
            self.largest.store(segment_bytes, Ordering::Relaxed);
        }
    }
}

impl AsyncUdpSocket for CappedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let segment = transmit.segment_size.unwrap_or(transmit.contents.len());
        self.saw(segment);
        if transmit.contents.len() <= MAX_SEND_BYTES || segment == 0 {
            return self.inner.try_send(transmit);
        }
        // If a later part would block, quinn repeats the whole; receivers drop the datagrams they have already.
        for contents in transmit.contents.chunks((MAX_SEND_BYTES / segment).max(1) * segment) {
            let segment_size = transmit.segment_size.filter(|size| *size < contents.len());
            self.inner.try_send(&Transmit {
                destination: transmit.destination,
                ecn: transmit.ecn,
                contents,
                segment_size,
                src_ip: transmit.src_ip,
            })?;
        }
        Ok(())
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        self.inner.poll_recv(context, buffers, meta)
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        let fitting = MAX_SEND_BYTES / self.largest.load(Ordering::Relaxed).max(1);
        self.inner.max_transmit_segments().min(fitting).max(1)
    }

    /// One jumbo datagram fills the buffer that quinn sizes by this; coalesced smaller ones fit it as well.
    fn max_receive_segments(&self) -> usize {
        1
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// CLOCK_BOOTTIME, which goes on while the machine sleeps, and the wall clock.
#[derive(Clone, Copy, Debug, Default)]
pub struct MachineClock;

impl Clock for MachineClock {
    fn now(&self) -> Instant {
        let time = read(libc::CLOCK_BOOTTIME);
        // Time since boot is never negative.
        Instant(time.tv_sec.unsigned_abs() * 1_000_000_000 + time.tv_nsec.unsigned_abs())
    }

    fn wall(&self) -> Timestamp {
        let time = read(libc::CLOCK_REALTIME);
        Timestamp(time.tv_sec.saturating_mul(1_000_000_000).saturating_add(time.tv_nsec))
    }
}

fn read(clock: libc::clockid_t) -> libc::timespec {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a timespec of ours. The call cannot fail: Linux has had both clocks since 2.6.39.
    unsafe { libc::clock_gettime(clock, &raw mut time) };
    time
}

/// A daemon's runtime. Its threads: half of the processors, at most four. A request passes through several tasks; the
/// fewer threads they are spread over, the less time goes into waking them.
pub fn daemon_runtime(name: &str) -> std::io::Result<tokio::runtime::Runtime> {
    keep_freed_memory();
    let threads =
        std::thread::available_parallelism().map_or(1, |processors| (processors.get() / 2).clamp(1, 4));
    tokio::runtime::Builder::new_multi_thread().worker_threads(threads).thread_name(name).enable_all().build()
}

/// Payloads of up to 4 MiB come and go all the time. By default glibc maps each anew and unmaps it again, and the page
/// faults cost more than the copies.
fn keep_freed_memory() {
    #[cfg(target_env = "gnu")]
    {
        const LARGEST_REUSED: libc::c_int = 32 << 20;
        const KEPT: libc::c_int = 64 << 20;
        // SAFETY: sets two numbers of the allocator, before there are other threads. What it refuses stays as it was.
        unsafe {
            libc::mallopt(libc::M_MMAP_THRESHOLD, LARGEST_REUSED);
            libc::mallopt(libc::M_TRIM_THRESHOLD, KEPT);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_clocks_run() {
        let first = MachineClock.now();
        while MachineClock.now() <= first {}
        assert!(MachineClock.wall().0 > 1_700_000_000_000_000_000);
    }
}
