//! The offline check of a disk: opens it as a start would, on an overlay so that nothing is written, then verifies
//! every leaf of every replica.

use super::overlay::Overlay;
use super::{DiskStore, NewDisk, Options, Secret};
use crate::core::replica::Key;
use godrive_disk::Disk;
use godrive_proto::time::Timestamp;
use godrive_proto::{DiskId, Version};
use std::io;
use std::sync::Arc;

const PAGE: usize = 1024;
const BATCH: u32 = 1024;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub disk: DiskId,
    pub replicas: u64,
    /// Of these: kept aside, and unfinished copies.
    pub asides: u64,
    pub partial: u64,
    pub leaves: u64,
    /// Replica and leaf of everything that does not verify.
    pub bad: Vec<(Key, u32)>,
}

/// Checks everything. An error means that the disk cannot be opened at all, as its text says.
pub fn check(disk: Arc<dyn Disk>, options: Options, now: Timestamp) -> io::Result<Report> {
    if super::identity::load(&*disk, options.cluster)?.is_none() {
        return Err(io::Error::new(io::ErrorKind::NotFound, "the directory holds no disk of a slave"));
    }
    // A disk of format 1 gets a secret, which stays in memory.
    let fresh = NewDisk { id: DiskId(0), secret: Secret(0) };
    let store = DiskStore::open(Arc::new(Overlay::new(disk)), options, fresh, now)?;
    let other = |fault: godrive_proto::Fault| io::Error::other(fault.to_string());
    let mut report = Report { disk: store.id(), ..Report::default() };
    let mut after = None;
    loop {
        let page = store.page(after, PAGE).map_err(other)?;
        let Some((last, _)) = page.last() else { return Ok(report) };
        after = Some(*last);
        for (key, row) in page {
            report.replicas += 1;
            report.asides += u64::from(key.aside != 0);
            report.partial += u64::from(row.partial || row.version == Version(0) && row.used_bytes > 0);
            let mut first = 0;
            while let Some(verified) = store.verify(key, first, BATCH).map_err(other)? {
                report.leaves += u64::from(verified.read);
                report.bad.extend(verified.bad.iter().map(|leaf| (key, *leaf)));
                first += BATCH;
                if first >= verified.leaves {
                    break;
                }
            }
        }
    }
}
