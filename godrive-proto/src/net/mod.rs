//! QUIC with mutual TLS between all peers: a stream per request, in both directions of a connection.

mod connection;
mod endpoint;
pub mod identity;
pub mod token;

pub use connection::{Call, Connection, Incoming, Payload, Peer, Reply};
pub use endpoint::{Endpoint, Expect, Options, Sockets};
