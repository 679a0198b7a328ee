//! The file system as a library, without a mount.
//!
//! [`Fs`] offers POSIX-like operations on inodes and handles, for a FUSE driver, a gateway or a test. It is built of
//! three rooms: [`core`] decides (pure data structures: what is dirty, what is cached, which leases are held),
//! [`fs`] keeps the contract (who may see what, and when bytes must be where), [`driver`] talks to the master and
//! the slaves. A write goes from `fs/write.rs` into `core/write_buffer`, from there through `fs/flush.rs` to the driver.

pub mod core;
pub mod driver;
pub mod error;
pub mod fs;
pub mod ledger;

pub use driver::World;
pub use error::FsError;
pub use fs::config::{CloseMode, Config};
pub use fs::{Client, Fs};
