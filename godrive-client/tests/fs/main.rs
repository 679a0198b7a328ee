//! The file system over a model of a cluster: several mounts, each with a model of a kernel, in virtual time.

mod cluster;
mod coherence;
mod directed;
mod kernel;
mod leases;
mod master;
mod posix;
mod removals;
mod unknown;
