//! The slave: keeps replicas of chunks on its disks and forwards deltas along their chains.
//!
//! [`core`] is pure (what a replica is, which delta it accepts, in which order the scrub goes), [`store`] keeps
//! replicas on one disk so that a delta is there wholly or not at all, [`server`] is the daemon around them:
//! clients and other slaves connect to it, it connects to the master.

pub mod config;
pub mod core;
pub mod server;
pub mod store;

pub use config::Config;
pub use server::{Slave, World, run};
