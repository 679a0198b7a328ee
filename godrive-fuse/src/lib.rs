//! The mount: a thin conversion between FUSE and the client's file system.
//!
//! Nothing here holds a policy. What is cached, for how long, and what must be where before a call returns is decided
//! by [`godrive_client::Fs`]; this crate turns the kernel's requests into its operations ([`filesystem`], `ops_*`,
//! [`convert`]), answers them without ever blocking a reader ([`answer`], [`operations`]), carries invalidations back
//! ([`notify`]), and knows how a mount begins and ends ([`session`], [`mountpoint`], [`join`]).

pub mod answer;
pub mod config;
pub mod convert;
pub mod filesystem;
pub mod join;
pub mod keeper;
pub mod mountpoint;
pub mod notify;
pub mod operations;
mod ops_attrs;
mod ops_data;
mod ops_dirs;
mod ops_locks;
mod ops_names;
pub mod options;
pub mod renames;
pub mod session;

pub use session::{World, run};
