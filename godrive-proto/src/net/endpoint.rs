//! One UDP socket that connects and accepts, and the way from a datagram to an authenticated [`Connection`].

use super::congestion;
use super::connection::{Connection, FORBIDDEN, Peer, fault_of};
use super::identity::{Identity, subject};
use super::roaming::Roaming;
use super::tls;
use crate::{ClusterId, Code, Fault, NodeId, Role};
use quinn::congestion::CubicConfig;
use quinn::crypto::rustls::QuicClientConfig;
use quinn::{
    ConnectionError, ConnectionId, ConnectionIdGenerator, EndpointConfig, MtuDiscoveryConfig, TokioRuntime,
    TransportConfig, VarInt,
};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use rustls_pki_types::CertificateDer;
use std::future::Future;
use std::net::{IpAddr, SocketAddr};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;
use tokio::sync::{Mutex, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::AbortHandle;
use tokio::time::{sleep, timeout};

/// From the first packet to an authenticated connection.
const CONNECT_WITHIN: Duration = Duration::from_secs(5);
/// Handshakes under way; more are refused, and from half of it on an address must prove that it receives.
const MAX_HANDSHAKES: usize = 128;
const IDLE: Duration = Duration::from_secs(5);
pub(super) const KEEP_ALIVE: Duration = Duration::from_secs(1);
/// Requests that one peer may have open at a time.
const MAX_STREAMS: u32 = 1024;
const MAX_JOINER_STREAMS: u32 = 2;
const STREAM_WINDOW: u32 = 4 << 20;
const CONNECTION_WINDOW: u32 = 8 << 20;
/// The largest payload of a datagram over IPv4 is 65,507; discovery climbs to what the path carries.
const LARGEST_MTU: u16 = 65_500;
/// What Linux's loopback interface carries, 65,536 bytes, less the headers of IPv6 and UDP.
const LOOPBACK_MTU: u16 = 65_488;
/// Discovery ends when the next step would gain less. Each step is a datagram of the size that is tried.
const MTU_STEP: u16 = 1024;

const INITIAL_WINDOW: u64 = 512 << 10;

/// Where UDP sockets come from: the machine, or the simulated network.
pub trait Sockets: Send + Sync + 'static {
    /// Binds and returns quinn's abstract socket.
    fn bind(&self, address: SocketAddr) -> std::io::Result<Arc<dyn quinn::AsyncUdpSocket>>;

    /// Begins to watch addresses, links and routes.
    fn watch(&self) -> Box<dyn Changes>;

    /// The address from which a socket bound to `bind` would send to `peer` now; None: there is no way.
    fn source(&self, bind: IpAddr, peer: SocketAddr) -> Option<IpAddr>;
}

/// Changes of the network as they happen.
pub trait Changes: Send {
    /// Waits until something may have changed since the last call. Given up halfway, it has missed nothing.
    fn next(&mut self) -> Pin<Box<dyn Future<Output = ()> + Send + '_>>;
}

/// How an endpoint behaves.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Seeds quinn's randomness; only the simulation sets it.
    pub rng_seed: Option<[u8; 32]>,
    /// Accept peers without a certificate as [`Role::Joiner`] (masters only).
    pub accept_joiners: bool,
}

/// Whom a connection must lead to.
#[derive(Clone, Copy, Debug)]
pub struct Expect {
    pub role: Role,
    /// None: any of that role in the own cluster.
    pub node: Option<NodeId>,
}

/// One UDP socket that connects and accepts. Clones share it.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<Shared>,
}

struct Shared {
    quinn: quinn::Endpoint,
    client: quinn::ClientConfig,
    /// None for a joiner, whose token pins the CA instead.
    cluster: Option<ClusterId>,
    local: SocketAddr,
    accepted: Mutex<mpsc::Receiver<Connection>>,
    roaming: Arc<Roaming>,
    moves: Arc<AtomicU64>,
    tasks: Vec<AbortHandle>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        for task in &self.tasks {
            task.abort();
        }
    }
}

impl Endpoint {
    /// Binds, and follows the machine's changes of address. Masters and slaves accept connections, the other roles only
    /// connect. Must run inside a tokio runtime.
    pub fn new(
        sockets: &Arc<dyn Sockets>,
        bind: SocketAddr,
        identity: &Identity,
        options: &Options,
    ) -> Result<Self, Fault> {
        let moves = Arc::default();
        let server = match identity.role {
            Role::Master | Role::Slave => {
                let crypto = tls::server(identity, options.accept_joiners)?;
                let mut config = quinn::ServerConfig::with_crypto(Arc::new(crypto));
                // Clients have no use for address tokens: a handshake is rare and retry is the exception.
                config.validation_token_config(quinn::ValidationTokenConfig::default().sent(0).clone());
                config.transport_config(Arc::new(transport(Side::Accepting, Path::Network, &moves)));
                Some(config)
            }
            Role::Client | Role::Admin | Role::Joiner => None,
        };
        let admission = Admission { cluster: identity.cluster, joiners: options.accept_joiners };
        let config = restartable(&identity.key, options.rng_seed);
        let server = server.map(|config| (config, admission));
        let client = tls::client(identity)?;
        Self::assemble(sockets, bind, moves, config, (client, Some(identity.cluster)), server, options)
    }

    /// An endpoint without an identity, which trusts the CA of this hash.
    pub(super) fn joiner(
        sockets: &Arc<dyn Sockets>,
        bind: SocketAddr,
        ca_hash: [u8; 32],
    ) -> Result<Self, Fault> {
        let config = EndpointConfig::default();
        let client = tls::joiner(ca_hash)?;
        Self::assemble(sockets, bind, Arc::default(), config, (client, None), None, &Options::default())
    }

    fn assemble(
        sockets: &Arc<dyn Sockets>,
        bind: SocketAddr,
        moves: Arc<AtomicU64>,
        mut config: EndpointConfig,
        (client, cluster): (QuicClientConfig, Option<ClusterId>),
        server: Option<(quinn::ServerConfig, Admission)>,
        options: &Options,
    ) -> Result<Self, Fault> {
        let cannot = |error: std::io::Error| {
            Fault::new(Code::Unreachable, format!("cannot listen on {bind}: {error}"))
        };
        config.rng_seed(options.rng_seed);
        config
            .max_udp_payload_size(LARGEST_MTU)
            .map_err(|error| Fault::new(Code::Internal, error.to_string()))?;
        let socket = sockets.bind(bind).map_err(cannot)?;
        let (server, admission) = server.unzip();
        let local_server = server.clone().map(|mut server: quinn::ServerConfig| {
            server.transport_config(Arc::new(transport(Side::Accepting, Path::Loopback, &moves)));
            Arc::new(server)
        });
        let quinn =
            quinn::Endpoint::new_with_abstract_socket(config, server, socket.clone(), Arc::new(TokioRuntime))
                .map_err(cannot)?;
        let local = quinn.local_addr().map_err(cannot)?;
        let mut client = quinn::ClientConfig::new(Arc::new(client));
        if let Some(seed) = options.rng_seed {
            // Other numbers than the ids of the own side.
            let random = parking_lot::Mutex::new(StdRng::from_seed(seed.map(|byte| !byte)));
            let id = move || ConnectionId::new(&random.lock().random::<[u8; 20]>());
            client.initial_dst_cid_provider(Arc::new(id));
        }
        client.transport_config(Arc::new(transport(Side::Connecting, Path::Network, &moves)));
        let (connections, accepted) = mpsc::channel(MAX_HANDSHAKES);
        let mut tasks = Vec::new();
        if let Some((admission, local)) = admission.zip(local_server) {
            tasks.push(tokio::spawn(accept_all(quinn.clone(), local, admission, connections)).abort_handle());
        }
        let roaming = Roaming::new(sockets.clone(), quinn.clone(), bind, socket, moves.clone());
        let roaming = Arc::new(roaming);
        tasks.push(tokio::spawn(roaming.clone().follow(sockets.watch())).abort_handle());
        Ok(Self {
            shared: Arc::new(Shared {
                quinn,
                client,
                cluster,
                local,
                accepted: Mutex::new(accepted),
                roaming,
                moves,
                tasks,
            }),
        })
    }

    /// Where it was bound. A move takes another port, unless one was asked for.
    pub fn local_address(&self) -> SocketAddr {
        self.shared.local
    }

    /// Rises whenever the machine's network has changed so that connections had to move.
    pub fn moves(&self) -> watch::Receiver<u64> {
        self.shared.roaming.moves()
    }

    /// The wait before a next try. It ends when the network has changed: what failed may work now.
    pub async fn pause(&self, wait: Duration) {
        let mut moves = self.moves();
        tokio::select! {
            biased;
            () = sleep(wait) => {}
            _ = moves.changed() => {}
        }
    }

    /// Connects and verifies cluster, role and id of the peer. If the network changes meanwhile it begins anew.
    pub async fn connect(&self, address: SocketAddr, expect: Expect) -> Result<Connection, Fault> {
        let mut moves = self.moves();
        let attempts = async {
            loop {
                tokio::select! {
                    biased;
                    outcome = self.attempt(address, expect) => return outcome,
                    _ = moves.changed() => {}
                }
            }
        };
        let outcome = timeout(CONNECT_WITHIN, attempts).await.unwrap_or_else(|_| {
            Err(Fault::new(Code::Unreachable, format!("no answer within {} s", CONNECT_WITHIN.as_secs())))
        });
        outcome.map_err(|fault| {
            Fault::new(
                fault.code,
                format!("connecting to the {} at {address}: {}", expect.role, fault.detail),
            )
        })
    }

    async fn attempt(&self, address: SocketAddr, expect: Expect) -> Result<Connection, Fault> {
        self.shared.roaming.asking(address);
        let name = tls::server_name(expect.role);
        let mut client = self.shared.client.clone();
        if address.ip().is_loopback() {
            client.transport_config(Arc::new(transport(
                Side::Connecting,
                Path::Loopback,
                &self.shared.moves,
            )));
        }
        let connecting = self
            .shared
            .quinn
            .connect_with(client, address, &name)
            .map_err(|error| Fault::new(Code::Unreachable, error.to_string()))?;
        let quinn = connecting.await.map_err(|error| fault_of(&error))?;
        let identity =
            certificate(&quinn).ok_or_else(|| Fault::new(Code::Forbidden, "it has no certificate"))?;
        let peer = self.check(&identity, address, expect).inspect_err(|fault| {
            quinn.close(FORBIDDEN, fault.detail.as_bytes());
        })?;
        // A client's handshake is over before the server has looked at its certificate: wait for the verdict.
        quinn.accept_uni().await.map_err(|error| fault_of(&error))?;
        quinn.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
        let connection = Connection::new(quinn, peer);
        self.shared.roaming.connected(address, &connection);
        Ok(connection)
    }

    fn check(&self, certificate: &[u8], address: SocketAddr, expect: Expect) -> Result<Peer, Fault> {
        let (cluster, role, node) = subject(certificate)?;
        let own = self.shared.cluster.unwrap_or(cluster);
        if cluster != own {
            return Err(Fault::new(
                Code::Forbidden,
                format!("it belongs to cluster {cluster}, not to {own}"),
            ));
        }
        if role != expect.role {
            return Err(Fault::new(Code::Forbidden, format!("it is a {role}, not a {}", expect.role)));
        }
        match expect.node {
            Some(wanted) if wanted != node => {
                Err(Fault::new(Code::Forbidden, format!("it is the {role} {node}, not {wanted}")))
            }
            _ => Ok(Peer { role, node, address }),
        }
    }

    /// The next authenticated peer; None after [`Self::close`]. Failed handshakes are logged with their reason and skipped.
    pub async fn accept(&self) -> Option<Connection> {
        self.shared.accepted.lock().await.recv().await
    }

    /// Closes every connection with a reason and waits until the peers were told (bounded).
    pub async fn close(&self) {
        self.shared.quinn.close(VarInt::from_u32(0), b"shutting down");
        let _ = timeout(Duration::from_millis(500), self.shared.quinn.wait_idle()).await;
    }
}

/// A node that was restarted tells its peers with their next packet that their connections are lost, instead of leaving
/// them to their idle timeouts: the reset tokens that peers were given follow from the node's private key.
fn restartable(key: &[u8], seed: Option<[u8; 32]>) -> EndpointConfig {
    let derived = super::token::sha256(&[b"godrive stateless reset", key].concat());
    let resets = ring::hmac::Key::new(ring::hmac::HMAC_SHA256, &derived);
    let mut config = EndpointConfig::new(Arc::new(resets));
    config
        .cid_generator(move || Box::new(RandomIds(seed.map_or_else(StdRng::from_os_rng, StdRng::from_seed))));
    config
}

/// Connection ids of 8 random bytes. quinn's own, which recognise themselves by a key drawn at the start, would
/// take a predecessor's for noise and leave it unanswered.
struct RandomIds(StdRng);

impl ConnectionIdGenerator for RandomIds {
    fn generate_cid(&mut self) -> ConnectionId {
        ConnectionId::new(&self.0.random::<[u8; 8]>())
    }

    fn cid_len(&self) -> usize {
        8
    }

    fn cid_lifetime(&self) -> Option<Duration> {
        None
    }
}

/// Whom to let in.
#[derive(Clone, Copy)]
struct Admission {
    cluster: ClusterId,
    joiners: bool,
}

async fn accept_all(
    quinn: quinn::Endpoint,
    local: Arc<quinn::ServerConfig>,
    admission: Admission,
    connections: mpsc::Sender<Connection>,
) {
    let handshakes = Arc::new(Semaphore::new(MAX_HANDSHAKES));
    while let Some(incoming) = quinn.accept().await {
        let address = incoming.remote_address();
        let Ok(permit) = handshakes.clone().try_acquire_owned() else {
            tracing::warn!(%address, "refused a connection: {MAX_HANDSHAKES} handshakes are under way");
            incoming.refuse();
            continue;
        };
        if handshakes.available_permits() < MAX_HANDSHAKES / 2 && !incoming.remote_address_validated() {
            if let Err(error) = incoming.retry() {
                tracing::debug!(%address, %error, "could not ask for a proof of address");
            }
            continue;
        }
        let local = address.ip().is_loopback().then(|| local.clone());
        tokio::spawn(admit(incoming, local, admission, connections.clone(), permit));
    }
}

async fn admit(
    incoming: quinn::Incoming,
    local: Option<Arc<quinn::ServerConfig>>,
    admission: Admission,
    connections: mpsc::Sender<Connection>,
    permit: OwnedSemaphorePermit,
) {
    let address = incoming.remote_address();
    let fault = match timeout(CONNECT_WITHIN, authenticate(incoming, local, admission)).await {
        Ok(Ok(connection)) => {
            // Fails only when the endpoint is being closed.
            let _ = connections.send(connection).await;
            return;
        }
        Ok(Err(fault)) => fault,
        Err(_) => Fault::new(Code::Timeout, "it was not finished in time"),
    };
    drop(permit);
    tracing::warn!(%address, code = ?fault.code, "handshake failed: {}", fault.detail);
}

async fn authenticate(
    incoming: quinn::Incoming,
    local: Option<Arc<quinn::ServerConfig>>,
    admission: Admission,
) -> Result<Connection, Fault> {
    let address = incoming.remote_address();
    let accepted = match local {
        Some(config) => incoming.accept_with(config),
        None => incoming.accept(),
    };
    let connecting = accepted.map_err(|error| fault_of(&error))?;
    let quinn = connecting.await.map_err(|error: ConnectionError| fault_of(&error))?;
    let peer = match admitted(certificate(&quinn).as_deref(), address, admission) {
        Ok(peer) => peer,
        Err(fault) => {
            quinn.close(FORBIDDEN, fault.detail.as_bytes());
            return Err(fault);
        }
    };
    if peer.role != Role::Joiner {
        quinn.set_max_concurrent_bi_streams(VarInt::from_u32(MAX_STREAMS));
    }
    let mut verdict = quinn.open_uni().await.map_err(|error| fault_of(&error))?;
    verdict.write_all(&[1]).await.map_err(|error| Fault::new(Code::Unreachable, error.to_string()))?;
    Ok(Connection::new(quinn, peer))
}

fn admitted(certificate: Option<&[u8]>, address: SocketAddr, admission: Admission) -> Result<Peer, Fault> {
    let Some(certificate) = certificate else {
        if admission.joiners {
            return Ok(Peer { role: Role::Joiner, node: NodeId(0), address });
        }
        return Err(Fault::new(Code::Forbidden, "a certificate of this cluster is required"));
    };
    let (cluster, role, node) = subject(certificate)?;
    if cluster != admission.cluster {
        let own = admission.cluster;
        return Err(Fault::new(
            Code::Forbidden,
            format!("the peer belongs to cluster {cluster}, not to {own}"),
        ));
    }
    Ok(Peer { role, node, address })
}

/// The peer's own certificate, DER.
fn certificate(quinn: &quinn::Connection) -> Option<Vec<u8>> {
    let chain = quinn.peer_identity()?.downcast::<Vec<CertificateDer<'static>>>().ok()?;
    chain.first().map(|certificate| certificate.to_vec())
}

enum Side {
    Accepting,
    Connecting,
}

/// Where the datagrams go.
enum Path {
    Network,
    /// Known to carry the largest datagrams, so nothing is found out: the first bytes are as fast as the later ones.
    /// Were it not so, the detection of black holes would lower the size.
    Loopback,
}

fn transport(side: Side, path: Path, moves: &Arc<AtomicU64>) -> TransportConfig {
    let mut discovery = MtuDiscoveryConfig::default();
    discovery.upper_bound(LARGEST_MTU).minimum_change(MTU_STEP);
    let initial_mtu = match path {
        Path::Network => 1452,
        Path::Loopback => LOOPBACK_MTU,
    };
    let mut config = TransportConfig::default();
    // Whatever exceeds the congestion window waits for it, a close included. A probe for a larger MTU counts as in
    // flight, so the window must be well above the largest from the start.
    let mut cubic = CubicConfig::default();
    cubic.initial_window(INITIAL_WINDOW);
    let congestion = congestion::Roaming { cubic: Arc::new(cubic), moves: moves.clone() };
    config.congestion_controller_factory(Arc::new(congestion));
    config.initial_mtu(initial_mtu).mtu_discovery_config(Some(discovery));
    config.max_idle_timeout(Some(VarInt::from_u32(IDLE.as_millis() as u32).into()));
    config.keep_alive_interval(Some(KEEP_ALIVE));
    config.stream_receive_window(VarInt::from_u32(STREAM_WINDOW));
    config.receive_window(VarInt::from_u32(CONNECTION_WINDOW));
    config.send_window(u64::from(CONNECTION_WINDOW));
    config.initial_rtt(Duration::from_millis(100));
    config.datagram_receive_buffer_size(None);
    // Until a peer is authenticated it may open few streams; the one-way stream carries the server's verdict.
    config.max_concurrent_bidi_streams(VarInt::from_u32(MAX_JOINER_STREAMS));
    config.max_concurrent_uni_streams(VarInt::from_u32(match side {
        Side::Accepting => 0,
        Side::Connecting => 1,
    }));
    config
}
