//! Whether what several clients were answered could have come from one object that does one thing at a time.
//!
//! A history has for each operation its beginning, its end and its answer. It is linearizable (Herlihy and Wing,
//! *Linearizability: a correctness condition for concurrent objects*, 1990) if every operation can be given a moment
//! between its beginning and its end so that, done in the order of these moments, each gives the answer that it gave.
//! [`check`] searches such an order as Wing and Gong do (*Testing and verifying concurrent objects*, 1993), with the
//! memory of Lowe (*Testing for linearizability*, 2017): what was done, as a set, and the state that it led to are
//! never tried twice. A history of several objects is linearizable if that of each object is, so each block of a file,
//! each directory and each log has a history of its own.
//!
//! An operation whose answer never came (it failed with EIO, or its client died) may take effect at any moment after
//! its beginning, or never. Each of them makes the search harder; so those who make histories turn to new objects often, and
//! a search that exceeds its budget is a failure, never a pass.
//!
//! The module is pure: clocks, clients and files belong to those who make the histories.

pub mod check;
pub mod history;
pub mod log;
pub mod names;
pub mod register;
pub mod report;

#[cfg(test)]
mod tests;

pub use check::{BUDGET, Verdict, check};
pub use history::{History, Model, Operation};
pub use report::explain;
