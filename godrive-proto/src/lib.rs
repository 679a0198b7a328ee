//! The language GoDrive's peers speak: ids, messages, limits, the codec and its versions.
//!
//! Everything outside [`net`] is pure: no sockets, files, clocks or randomness. [`net`] is the one
//! adapter: QUIC with mutual TLS, the cluster's identities, and the simulated twin of the network.

pub mod admin;
pub mod cluster;
pub mod data;
pub mod error;
pub mod frame;
pub mod ids;
pub mod lease;
pub mod limits;
pub mod locks;
pub mod meta;
pub mod net;
pub mod operation;
pub mod proof;
pub mod sums;
pub mod time;
pub mod version;

pub use error::{Code, Fault};
pub use ids::*;
pub use operation::{Operation, Role};
