//! The namespace's operations, one file per group, as they follow from a record.
//!
//! Permissions are not decided here: the client's kernel has checked them against attributes held under a lease.
//! What POSIX says of existence, kinds, link counts and times is decided here, in the order in which Linux
//! checks it. An operation may fail half way: its transaction is then thrown away.

mod acl;
mod batch;
mod commit;
mod create;
mod link;
mod names;
mod orphans;
mod rename;
mod set_attr;
mod times;
mod trash;
mod truncate;
mod unlink;
mod xattr;

#[cfg(test)]
mod tests;

pub use batch::batch;
pub use commit::commit;
pub use create::{create, make_node};
pub use link::link;
pub use rename::rename;
pub use set_attr::{accessed, set_attr};
pub use trash::restore;
pub use truncate::truncate;
pub use unlink::unlink;
pub use xattr::{MAX_XATTR_BYTES, remove_xattr, set_xattr};
