#![deny(clippy::unwrap_used, clippy::expect_used)]
//! The pure part: no disks, sockets, clocks or randomness.
//!
//! [`record`] is the log record, its bytes on disk; [`leaves`] knows where each leaf of a chunk lies and its sum; [`replica`] adds epoch, version and the rules of
//! who may change what; [`delta`] checks a delta and turns it into changes of leaves; [`scrub`] decides what to
//! verify next; [`findings`] keeps what is bad until the master has heard of it; [`aging`] says what has been of no use for long.

pub mod aging;
pub mod delta;
pub mod findings;
pub mod leaves;
pub mod range;
pub mod record;
pub mod replica;
pub mod scrub;
