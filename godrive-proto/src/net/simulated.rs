//! The simulated network: quinn over turmoil's UDP, whose clock is tokio's virtual one.

use super::endpoint::{Changes, Sockets};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::fmt;
use std::future::Future;
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use tokio::sync::watch;

/// Sees every datagram that a simulated socket sends: (from, to, bytes), and says what becomes of it.
pub trait Watcher: Send + Sync + 'static {
    fn sent(&self, from: SocketAddr, to: SocketAddr, contents: &[u8]) -> Passage;
}

/// What the network does to a datagram, beside what turmoil does to those that it gets.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Passage {
    Whole,
    Twice,
    /// Other bytes arrive.
    Altered(Vec<u8>),
    Lost,
}

/// UDP sockets of the turmoil host that binds them. Must be used inside a turmoil simulation.
#[derive(Clone, Default)]
pub struct SimulatedSockets {
    watcher: Option<Arc<dyn Watcher>>,
    network: Option<SimulatedNetwork>,
}

impl SimulatedSockets {
    pub fn watched(watcher: Arc<dyn Watcher>) -> Self {
        Self { watcher: Some(watcher), network: None }
    }

    /// Of a host whose address changes.
    pub fn on(self, network: SimulatedNetwork) -> Self {
        Self { network: Some(network), ..self }
    }
}

/// The address that a host believes to have. turmoil's hosts keep theirs, so what peers see of a move is another port.
#[derive(Clone)]
pub struct SimulatedNetwork {
    address: watch::Sender<Option<IpAddr>>,
}

impl SimulatedNetwork {
    pub fn new(address: IpAddr) -> Self {
        Self { address: watch::Sender::new(Some(address)) }
    }

    /// None: there is no route to anywhere.
    pub fn set(&self, address: Option<IpAddr>) {
        self.address.send_replace(address);
    }
}

struct SimulatedChanges(Option<watch::Receiver<Option<IpAddr>>>);

impl Changes for SimulatedChanges {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async move {
            let told = match &mut self.0 {
                Some(address) => address.changed().await.is_ok(),
                None => false,
            };
            if !told {
                std::future::pending().await
            }
        })
    }
}

impl Sockets for SimulatedSockets {
    fn bind(&self, address: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        // turmoil's bind is asynchronous in name only.
        let binding = pin!(turmoil::net::UdpSocket::bind(address));
        match binding.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(socket) => Ok(Arc::new(SimulatedSocket {
                inner: Arc::new(socket?),
                watcher: self.watcher.clone(),
                receiving: parking_lot::Mutex::new(None),
            })),
            Poll::Pending => Err(io::Error::other("turmoil's bind waits for something")),
        }
    }

    fn watch(&self) -> Box<dyn Changes> {
        Box::new(SimulatedChanges(self.network.as_ref().map(|network| network.address.subscribe())))
    }

    fn source(&self, bind: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        self.network.as_ref().map_or(Some(bind), |network| *network.address.borrow())
    }
}

type Readable = Pin<Box<dyn Future<Output = io::Result<()>> + Send>>;

struct SimulatedSocket {
    inner: Arc<turmoil::net::UdpSocket>,
    watcher: Option<Arc<dyn Watcher>>,
    /// The wait for the next datagram, kept from poll to poll.
    receiving: parking_lot::Mutex<Option<Readable>>,
}

impl fmt::Debug for SimulatedSocket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl AsyncUdpSocket for SimulatedSocket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        Box::pin(AlwaysWritable)
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let passage = match &self.watcher {
            Some(watcher) => watcher.sent(self.inner.local_addr()?, transmit.destination, transmit.contents),
            None => Passage::Whole,
        };
        let send = |bytes: &[u8]| self.inner.try_send_to(bytes, transmit.destination).map(drop);
        match passage {
            Passage::Whole => send(transmit.contents),
            Passage::Twice => send(transmit.contents).and_then(|()| send(transmit.contents)),
            Passage::Altered(bytes) => send(&bytes),
            Passage::Lost => Ok(()),
        }
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        let (Some(buffer), Some(meta)) = (buffers.first_mut(), meta.first_mut()) else {
            return Poll::Ready(Ok(0));
        };
        let mut receiving = self.receiving.lock();
        loop {
            let wait = receiving.get_or_insert_with(|| {
                let socket = self.inner.clone();
                Box::pin(async move { socket.readable().await })
            });
            std::task::ready!(wait.as_mut().poll(context))?;
            *receiving = None;
            match self.inner.try_recv_from(buffer) {
                Ok((len, addr)) => {
                    *meta = RecvMeta { addr, len, stride: len, ecn: None, dst_ip: None };
                    return Poll::Ready(Ok(1));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn may_fragment(&self) -> bool {
        false
    }
}

#[derive(Debug)]
struct AlwaysWritable;

impl UdpPoller for AlwaysWritable {
    fn poll_writable(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}
