//! A whole cluster in one process, under one seed.
//!
//! [`cluster`] puts the real master, slaves and clients on turmoil's simulated network, with virtual time, clocks that
//! drift and disks that lose what was not synced. [`workload`] keeps the clients busy with blocks that say whose they
//! are ([`stamp`]); [`oracle`] judges every read by the contract; [`scenarios`] says what goes wrong meanwhile ([`events`],
//! [`damage`], [`weather`]) and what an [`operator`] wants; [`audit`] looks at what all disks hold in the end, and [`walker`] at what clients see. Equal
//! seeds give equal runs, down to the last datagram ([`trace`]): a failure is one scenario and one number.

pub mod audit;
pub mod clock;
pub mod cluster;
pub mod crypto;
pub mod damage;
mod drive;
pub mod events;
pub mod folder;
pub mod histories;
pub mod linear;
pub mod lying;
pub mod operator;
pub mod oracle;
pub mod scenarios;
pub mod shared;
pub mod sharing;
pub mod stamp;
pub mod summary;
pub mod trace;
pub mod walker;
pub mod weather;
pub mod workload;
