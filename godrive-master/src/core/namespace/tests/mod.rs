//! One file per operation, against the bench of the state's tests.

mod batch;
mod create;
mod links;
mod rename;
mod set_attr;
mod xattr;
