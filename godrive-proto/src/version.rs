//! The ledger of protocol versions, one sentence each. A peer speaks exactly one; the handshake's
//! ALPN carries it, so peers of different versions part with a clear error before any message.

/// 1: the first: namespace, leases, deltas, epochs, repair, join.
pub const PROTOCOL: u16 = 1;

/// What the TLS handshake negotiates; ends in [`PROTOCOL`].
pub const ALPN: &[u8] = b"godrive/1";

/// The feature level of a new cluster, kept in the master's log and raised only on purpose.
pub const FEATURE_LEVEL: u16 = 1;
