//! The nodes of a cluster that run on this machine: where their files lie, what `up` has to do, their processes.

pub mod create;
pub mod layout;
pub mod mounts;
pub mod plan;
pub mod process;
