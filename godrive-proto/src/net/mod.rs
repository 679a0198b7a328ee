//! QUIC with mutual TLS between all peers: a stream per request, in both directions of a connection.
//!
//! [`Endpoint`] owns a UDP socket that comes from [`Sockets`]: the machine's ([`machine`]) or the simulated
//! network's ([`simulated`](self), behind the feature of that name). It connects and accepts; both lead to a
//! [`Connection`] whose [`Peer`] was read from a certificate of the own cluster. `tls` decides whom to trust,
//! `stream` moves frames, `connection` asks and `incoming` answers. `roaming` follows the machine when its address changes. Every wait here has a deadline, every length
//! is checked before anything is allocated for it, and a peer that breaks the rules loses its connection only.

mod congestion;
mod connection;
mod endpoint;
pub mod identity;
mod incoming;
pub mod machine;
mod netlink;
mod paths;
mod roaming;
#[cfg(feature = "simulated")]
pub mod simulated;
mod stream;
mod tls;
pub mod token;

pub use connection::{Call, Connection, Message, Peer, Reply};
pub use endpoint::{Changes, Endpoint, Expect, Options, Sockets};
pub use incoming::{Incoming, Payload};
