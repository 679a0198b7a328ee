//! The daemon: recovers the state, listens, and keeps everything running until it is told to stop.
//!
//! ```text
//!   connection -> requests -> namespace | sessions | slaves | epoch | admin     one task per request
//!                                |
//!                               hub        one lock: state, log, leases, nodes; never waits
//!                                |
//!                  recalls, epoch changes, repair, checkpoints                  tasks of their own
//! ```

mod admin;
mod checkpoint;
mod epoch;
mod hub;
mod inventory;
mod journal;
mod namespace;
mod repair;
mod requests;
mod sessions;
mod slaves;
mod start;

pub use start::{Master, World, run};
