//! The master's pure core: what the cluster is and what follows from an event.
//!
//! Nothing here touches tokio, sockets, files, clocks or randomness; time and ids are passed in, and nothing
//! depends on the order of a hash table. The state machine's two halves are the *logged* state, changed only
//! by applying a record, and the *volatile* tables, rebuilt after a restart from what peers say again:
//! leases, locks and nodes. Placement, election and repair planning are functions of a view.
#![deny(clippy::unwrap_used, clippy::expect_used)]

pub mod intents;
pub mod kv;
pub mod leases;
pub mod locks;
pub mod namespace;
pub mod nodes;
pub mod placement;
pub mod rate;
pub mod record;
pub mod repair;
pub mod slowness;
pub mod standstill;
pub mod state;
pub mod trash;
pub mod vote;
