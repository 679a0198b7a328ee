//! A client that gets another address, on real sockets: the old address carries nothing any more.

mod support;

use bytes::Bytes;
use godrive_proto::data::{Applied, Sync, SyncRequest};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::limits::MAX_PAYLOAD_BYTES;
use godrive_proto::net::machine;
use godrive_proto::net::{Changes, Connection, Endpoint, Options, Sockets};
use godrive_proto::{ChunkId, Epoch, Role, Version};
use quinn::udp::{RecvMeta, Transmit};
use quinn::{AsyncUdpSocket, UdpPoller};
use std::io::{self, IoSliceMut};
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll};
use support::{SHORT, any, authority, endpoint, identity};
use tokio::sync::watch;
use tokio::time::timeout;

static SYNC: SyncRequest =
    SyncRequest { chunk: ChunkId(1), epoch: Epoch(1), version: Version(1), chain: Vec::new() };

/// A machine whose address is 127.0.0.n and that believes it to be 198.51.100.n, as loopback would never move.
struct Machine {
    host: watch::Sender<u8>,
    bound: AtomicUsize,
    /// Nothing gets out, whatever the address.
    mute: Arc<AtomicBool>,
}

impl Machine {
    fn bound(&self) -> usize {
        self.bound.load(Ordering::SeqCst)
    }
}

impl Sockets for Machine {
    fn bind(&self, _: SocketAddr) -> io::Result<Arc<dyn AsyncUdpSocket>> {
        self.bound.fetch_add(1, Ordering::SeqCst);
        let host = self.host.subscribe();
        let own = *host.borrow();
        let inner = machine::sockets().bind(SocketAddr::from(([127, 0, 0, own], 0)))?;
        Ok(Arc::new(Socket { inner, own, host, mute: self.mute.clone() }))
    }

    fn watch(&self) -> Box<dyn Changes> {
        Box::new(Told(self.host.subscribe()))
    }

    fn source(&self, _: IpAddr, _: SocketAddr) -> Option<IpAddr> {
        Some(IpAddr::from([198, 51, 100, *self.host.borrow()]))
    }
}

struct Told(watch::Receiver<u8>);

impl Changes for Told {
    fn next(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>> {
        Box::pin(async { self.0.changed().await.unwrap() })
    }
}

/// Carries nothing once the machine has another address.
#[derive(Debug)]
struct Socket {
    inner: Arc<dyn AsyncUdpSocket>,
    own: u8,
    host: watch::Receiver<u8>,
    mute: Arc<AtomicBool>,
}

impl AsyncUdpSocket for Socket {
    fn create_io_poller(self: Arc<Self>) -> Pin<Box<dyn UdpPoller>> {
        self.inner.clone().create_io_poller()
    }

    fn try_send(&self, transmit: &Transmit) -> io::Result<()> {
        let carries = *self.host.borrow() == self.own && !self.mute.load(Ordering::SeqCst);
        if carries { self.inner.try_send(transmit) } else { Ok(()) }
    }

    fn poll_recv(
        &self,
        context: &mut Context,
        buffers: &mut [IoSliceMut<'_>],
        meta: &mut [RecvMeta],
    ) -> Poll<io::Result<usize>> {
        loop {
            let received = std::task::ready!(self.inner.poll_recv(context, buffers, meta));
            if *self.host.borrow() == self.own || received.is_err() {
                return Poll::Ready(received);
            }
        }
    }

    fn local_addr(&self) -> io::Result<SocketAddr> {
        self.inner.local_addr()
    }

    fn max_transmit_segments(&self) -> usize {
        self.inner.max_transmit_segments()
    }

    fn max_receive_segments(&self) -> usize {
        self.inner.max_receive_segments()
    }

    fn may_fragment(&self) -> bool {
        self.inner.may_fragment()
    }
}

/// A client on that machine and what it is connected to.
struct Roamer {
    machine: Arc<Machine>,
    endpoint: Endpoint,
    client: Connection,
    server: Endpoint,
}

async fn roamer(bind: &str) -> Roamer {
    let authority = authority(1);
    let server = endpoint(&identity(&authority, Role::Slave, 2));
    let machine = Machine { host: watch::Sender::new(2), bound: AtomicUsize::new(0), mute: Arc::default() };
    let machine = Arc::new(machine);
    let sockets: Arc<dyn Sockets> = machine.clone();
    let identity = identity(&authority, Role::Client, 3);
    let endpoint = Endpoint::new(&sockets, bind.parse().unwrap(), &identity, &Options::default()).unwrap();
    let connecting = endpoint.connect(server.local_address(), any(Role::Slave));
    let (client, slave) = tokio::join!(connecting, server.accept());
    tokio::spawn(echo(slave.unwrap()));
    Roamer { machine, endpoint, client: client.unwrap(), server }
}

async fn echo(slave: Connection) {
    while let Some(mut incoming) = slave.accept().await {
        tokio::spawn(async move {
            let payload = incoming.payload.collect(MAX_PAYLOAD_BYTES).await.unwrap();
            let applied = Applied { contents: Default::default(), stable: true, used_bytes: 7 };
            incoming.reply::<Sync>(ReplyHeader::default(), &applied, &payload).await.unwrap();
        });
    }
}

async fn call(client: &Connection) {
    let payload = [Bytes::from(vec![5; 4 << 20])];
    let reply = client.call::<Sync>(RequestHeader::default(), &SYNC, &payload, SHORT).await.unwrap();
    assert_eq!(reply.payload.concat(), payload[0]);
}

impl Roamer {
    /// The machine gets another address; waits until the endpoint has followed.
    async fn move_to(&self, host: u8) {
        let mut moves = self.endpoint.moves();
        moves.mark_unchanged();
        self.machine.host.send_replace(host);
        timeout(SHORT, moves.changed()).await.unwrap().unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_under_way_complete_over_changes_of_address() {
    let roamer = roamer("0.0.0.0:0").await;
    let (done, mut progress) = watch::channel(0);
    let client = roamer.client.clone();
    let calls = tokio::spawn(async move {
        while *done.borrow() < 40 {
            call(&client).await;
            done.send_modify(|done| *done += 1);
        }
    });
    for host in 3..6 {
        let before = *progress.borrow();
        timeout(SHORT, progress.wait_for(|done| *done > before)).await.unwrap().unwrap();
        roamer.move_to(host).await;
    }
    timeout(SHORT * 3, calls).await.unwrap().unwrap();
    assert!(*progress.borrow() == 40 && !roamer.client.is_closed());
    assert_eq!(roamer.machine.bound(), 4);
    roamer.server.close().await;
}

/// Others know the port of a slave, so it keeps its socket. Here the address comes back.
#[tokio::test(flavor = "multi_thread")]
async fn a_socket_with_a_port_of_its_own_stays_and_sends_at_once() {
    let roamer = roamer("0.0.0.0:7500").await;
    roamer.move_to(3).await;
    roamer.move_to(2).await;
    call(&roamer.client).await;
    assert_eq!(roamer.machine.bound(), 1);
    roamer.server.close().await;
}

/// A route may be there before it carries anything.
#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_answered_on_the_new_path_is_sent_again() {
    let roamer = roamer("0.0.0.0:0").await;
    roamer.machine.mute.store(true, Ordering::SeqCst);
    roamer.move_to(3).await;
    let mut moves = roamer.endpoint.moves();
    timeout(SHORT, moves.wait_for(|moves| *moves == 3)).await.unwrap().unwrap();
    roamer.machine.mute.store(false, Ordering::SeqCst);
    call(&roamer.client).await;
    assert_eq!(roamer.machine.bound(), 2, "the same socket sends again");
    roamer.server.close().await;
}
