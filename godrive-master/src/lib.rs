//! The master: keeps the names, places the chunks, decides who may cache and who is a replica.
//!
//! [`core`] is pure; [`log`] and [`store`] keep its state on disk; [`server`] is the daemon around them.

pub mod config;
pub mod core;
pub mod log;
pub mod server;
pub mod store;

pub use config::Config;
pub use server::{Master, World, may_begin, run};
