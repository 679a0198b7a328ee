//! The pure part of the client: no I/O, no clock, no randomness.
#![deny(clippy::unwrap_used, clippy::expect_used)]
