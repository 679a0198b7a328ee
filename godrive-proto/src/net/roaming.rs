//! Follows the machine when its network address changes.
//!
//! QUIC connections are not bound to addresses: a datagram from a new one makes the peer migrate. But until something
//! is sent the peer does not know where to send, and after some time without an answer little is sent. So an
//! endpoint watches the machine's network; when the way to one of its peers has changed ([`paths`](super::paths) says
//! when), it takes a new socket, and all its connections send at once. Waits between tries of those that failed meanwhile
//! end: whatever failed may work now.

use super::connection::{Connection, WeakConnection};
use super::endpoint::{Changes, KEEP_ALIVE, Sockets};
use super::paths::{Move, Path, decide};
use parking_lot::Mutex;
use quinn::AsyncUdpSocket;
use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until, timeout};

/// Changes come in bursts: an address, then its routes. One look is enough when it has been quiet for so long ...
const QUIET: Duration = Duration::from_millis(30);
/// ... and in a storm that does not end, one so often.
const BURST: Duration = Duration::from_millis(200);
/// A connection on which nothing was heard for so long has lost something: keep-alives are answered sooner.
const SILENT: Duration = Duration::from_millis(KEEP_ALIVE.as_millis() as u64 + 500);
/// Where a move brought no answer, all connections send again after this, doubled each time ...
const FIRST_ECHO: Duration = Duration::from_millis(300);
/// ... up to this, by when the connections' own timers have taken over or ended them.
const LAST_ECHO: Duration = Duration::from_millis(2400);
/// Peers that were not asked for so long, and to whom no connection is open, do not count any more.
const FORGET: Duration = Duration::from_secs(60);

/// What an endpoint knows of the ways to its peers.
pub(super) struct Roaming {
    sockets: Arc<dyn Sockets>,
    quinn: quinn::Endpoint,
    bind: SocketAddr,
    current: Mutex<Arc<dyn AsyncUdpSocket>>,
    peers: Mutex<BTreeMap<SocketAddr, Peer>>,
    moves: watch::Sender<u64>,
    /// The same count, for the congestion control of all connections.
    congestion: Arc<AtomicU64>,
}

/// A peer that this endpoint connects to.
struct Peer {
    used: Option<IpAddr>,
    cut_off: bool,
    connection: Option<WeakConnection>,
    /// Datagrams of the connection that had come when somebody looked last, and since when it is this many.
    heard: u64,
    heard_at: Instant,
    asked: Instant,
}

impl Peer {
    fn open(&self) -> Option<Connection> {
        self.connection.as_ref()?.upgrade().filter(|connection| !connection.is_closed())
    }

    /// Whether nothing was heard since the last look, and notes what was.
    fn listen(&mut self, now: Instant) -> bool {
        let Some(connection) = self.open() else { return false };
        let heard = connection.datagrams_received();
        if heard != self.heard {
            (self.heard, self.heard_at) = (heard, now);
            return false;
        }
        true
    }
}

impl Roaming {
    pub fn new(
        sockets: Arc<dyn Sockets>,
        quinn: quinn::Endpoint,
        bind: SocketAddr,
        socket: Arc<dyn AsyncUdpSocket>,
        congestion: Arc<AtomicU64>,
    ) -> Self {
        let current = Mutex::new(socket);
        let (peers, moves) = (Mutex::default(), watch::Sender::new(0));
        Self { sockets, quinn, bind, current, peers, moves, congestion }
    }

    /// Counts moves.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.moves.subscribe()
    }

    /// This peer is about to be connected to.
    pub fn asking(&self, address: SocketAddr) {
        let source = self.sockets.source(self.bind.ip(), address);
        let now = Instant::now();
        let mut peers = self.peers.lock();
        peers.retain(|_, peer| now < peer.asked + FORGET || peer.open().is_some());
        let peer = peers.entry(address).or_insert_with(|| Peer {
            used: source,
            cut_off: source.is_none(),
            connection: None,
            heard: 0,
            heard_at: now,
            asked: now,
        });
        peer.asked = now;
    }

    pub fn connected(&self, address: SocketAddr, connection: &Connection) {
        if let Some(peer) = self.peers.lock().get_mut(&address) {
            peer.connection = Some(connection.downgrade());
            (peer.heard, peer.heard_at) = (connection.datagrams_received(), Instant::now());
        }
    }

    /// Runs as long as the endpoint.
    pub async fn follow(self: Arc<Self>, mut changes: Box<dyn Changes>) {
        let mut echo: Option<(Instant, Duration)> = None;
        loop {
            let echo_at = echo.map(|(at, _)| at);
            tokio::select! {
                biased;
                () = changes.next() => {
                    settle(changes.as_mut()).await;
                    if let Some(moved) = self.look() {
                        self.take(moved);
                        echo = Some((Instant::now() + FIRST_ECHO, FIRST_ECHO));
                    }
                }
                () = async { sleep_until(echo_at.unwrap_or_else(Instant::now)).await }, if echo_at.is_some() => {
                    echo = echo.and_then(|(_, wait)| self.repeat(wait * 2));
                }
            }
        }
    }

    /// Looks at the ways to all peers. If it says that connections move, these count as the ways that are used.
    fn look(&self) -> Option<Move> {
        let now = Instant::now();
        let mut peers = self.peers.lock();
        let mut seen = Vec::with_capacity(peers.len());
        for (address, peer) in peers.iter_mut() {
            let unheard = peer.listen(now);
            seen.push(Path {
                used: peer.used,
                cut_off: peer.cut_off,
                now: self.sockets.source(self.bind.ip(), *address),
                silent: unheard && now >= peer.heard_at + SILENT,
            });
        }
        let moved = decide(seen.iter().copied());
        for (peer, path) in peers.values_mut().zip(&seen) {
            peer.cut_off = path.now.is_none();
            if moved.is_some() {
                peer.used = path.now.or(peer.used);
                // The new path has its own time to be heard of.
                peer.heard_at = now;
            }
        }
        moved
    }

    fn take(&self, Move { from, to }: Move) {
        self.rebind(self.fresh());
        let was = from.map_or_else(|| "none".to_owned(), |from| from.to_string());
        if from == Some(to) {
            tracing::info!("the network is back at {to}; connections go on");
        } else {
            tracing::info!("the network address changed from {was} to {to}; connections go on");
        }
    }

    /// After a move: where nothing was heard since, everything is sent again. Says when to look the next time.
    fn repeat(&self, wait: Duration) -> Option<(Instant, Duration)> {
        let now = Instant::now();
        let mut unheard = false;
        for peer in self.peers.lock().values_mut().filter(|peer| !peer.cut_off) {
            // All of them take note of what they have heard.
            unheard |= peer.listen(now);
        }
        if !unheard || wait > LAST_ECHO {
            return None;
        }
        tracing::debug!("nothing was heard on the new path yet; sending again");
        let current = self.current.lock().clone();
        self.rebind(current);
        Some((now + wait, wait))
    }

    /// A new socket: its port tells the peer of the move even where the address is the old one. Where others know the
    /// port, the socket stays.
    fn fresh(&self) -> Arc<dyn AsyncUdpSocket> {
        let current = self.current.lock().clone();
        if self.bind.port() != 0 {
            return current;
        }
        self.sockets.bind(self.bind).unwrap_or_else(|error| {
            tracing::warn!(%error, bind = %self.bind, "no new socket; connections go on with the old one");
            current
        })
    }

    fn rebind(&self, socket: Arc<dyn AsyncUdpSocket>) {
        self.congestion.fetch_add(1, Ordering::Relaxed);
        if let Err(error) = self.quinn.rebind_abstract(socket.clone()) {
            tracing::warn!(%error, "connections stay on their old socket");
            return;
        }
        *self.current.lock() = socket;
        self.moves.send_modify(|moves| *moves += 1);
    }
}

/// Waits for the end of a burst of changes.
async fn settle(changes: &mut dyn Changes) {
    let end = Instant::now() + BURST;
    while Instant::now() < end && timeout(QUIET, changes.next()).await.is_ok() {}
}
