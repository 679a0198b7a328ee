//! Passes: operations that have been admitted to an inode and not yet answered to the kernel.

/// Given back when dropped.
#[derive(Debug, Default)]
#[must_use = "keep it until the kernel has been answered"]
pub struct Pass {}
