//! The pure part of the client: what is dirty, what is cached, which leases are held, what to read next.
//! No I/O, no clock, no randomness: everything is passed in.
#![deny(clippy::unwrap_used, clippy::expect_used)]

pub mod attrs;
pub mod directory;
pub mod gate;
pub mod layout;
pub mod lease;
pub mod neighbours;
pub mod page_cache;
pub mod read_plan;
pub mod steps;
pub mod write_buffer;
