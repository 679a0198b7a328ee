//! One file per operation, against the bench of the state's tests.

mod acl;
mod batch;
mod create;
mod links;
mod rename;
mod set_attr;
mod trash;
mod xattr;
