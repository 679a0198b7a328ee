//! Real mounts of a real cluster: what programs see. Built only with the feature `mount-tests`, because it needs
//! root, /dev/fuse and the binaries of the whole workspace.
#![allow(clippy::disallowed_methods, reason = "these tests are programs that use files")]

mod acls;
mod cluster;
mod copying;
mod hang;
mod kernel;
mod locks;
mod messages;
mod model;
mod one_mount;
mod pages;
mod refusals;
mod sizes;
mod survival;
mod times;
mod two_mounts;
