//! What a driver is told, and the world it lives in.

use godrive_proto::net::Sockets;
use godrive_proto::net::identity::Identity;
use godrive_proto::time::Clock;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::ops::RangeInclusive;
use std::sync::Arc;
use std::time::Duration;

/// How a mount reaches its cluster and how long it waits. [`Config::new`] has the defaults.
#[derive(Clone, Debug)]
pub struct Config {
    pub master: SocketAddr,
    /// The local UDP address; port 0 lets the system choose.
    pub bind: SocketAddr,
    /// For people: host and mountpoint, at most 255 bytes.
    pub label: String,
    /// An operation that made no progress for this long fails.
    pub deadline: Duration,
    /// Operations wait for ever instead.
    pub hard: bool,
    pub timeouts: Timeouts,
}

/// Shorter waits inside an operation's deadline.
#[derive(Clone, Debug)]
pub struct Timeouts {
    /// One attempt to connect.
    pub connect: Duration,
    /// A renewal that is not answered within this ends the connection to the master.
    pub renewal: Duration,
    /// A delta or sync, beside the time its payload may take.
    pub delta: Duration,
    /// The slowest transfer that counts as progress, bytes per second.
    pub slowest_bytes_per_s: u64,
    /// A read is asked of the next member as well when that would have answered twice by now, within these bounds; at the
    /// upper one, and what the bytes may take, if that member was never asked before.
    pub hedge: RangeInclusive<Duration>,
}

impl Default for Timeouts {
    fn default() -> Self {
        Self {
            connect: Duration::from_millis(1500),
            renewal: Duration::from_secs(4),
            delta: Duration::from_secs(3),
            slowest_bytes_per_s: 512 << 10,
            hedge: Duration::from_millis(30)..=Duration::from_millis(500),
        }
    }
}

impl Config {
    pub fn new(master: SocketAddr, label: impl Into<String>) -> Self {
        let any = match master.ip() {
            IpAddr::V4(ip) if ip.is_loopback() => IpAddr::V4(Ipv4Addr::LOCALHOST),
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(std::net::Ipv6Addr::UNSPECIFIED),
        };
        Self {
            master,
            bind: SocketAddr::new(any, 0),
            label: label.into(),
            deadline: Duration::from_secs(30),
            hard: false,
            timeouts: Timeouts::default(),
        }
    }
}

/// Sockets, time, randomness and the certificate: the machine's in production, simulated in tests.
#[derive(Clone)]
pub struct World {
    pub sockets: Arc<dyn Sockets>,
    pub clock: Arc<dyn Clock>,
    pub identity: Identity,
    pub seed: u64,
}
