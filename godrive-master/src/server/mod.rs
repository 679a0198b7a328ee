//! The daemon: recovers the state, listens, and keeps everything running until it is told to stop.
//!
//! ```text
//!   connection -> requests -> reading | changing | locking | sessions | slaves | epoch | admin     one task per request
//!                                |
//!                               hub        one lock: state, log, leases, locks, nodes; never waits
//!                                |
//!                  recalls, epoch changes, repair, checkpoints, trash                 tasks of their own
//! ```

mod admin;
mod changing;
mod checkpoint;
mod damaged;
mod epoch;
mod hub;
mod intents;
mod inventory;
mod journal;
mod locking;
mod members;
mod paths;
mod reading;
mod repair;
mod requests;
mod room;
mod sessions;
mod shared;
mod slaves;
mod start;
#[cfg(test)]
mod tests;
mod trash;

pub use start::{Master, World, may_begin, run};
