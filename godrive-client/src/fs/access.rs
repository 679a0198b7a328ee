//! Access times, as `relatime` keeps them: a read is noted if none was since the last change, or for a day.
//!
//! They are told to the master with the next renewal of the session, need no lease and take none back: what other mounts show
//! may be behind. What the kernel reads from its own pages is not seen here; a file that is opened for reading while it may have
//! some counts as read.

use super::inode::Inode;
use super::{Backend, Fs};
use godrive_proto::Ino;
use godrive_proto::limits::MAX_ACCESSES;
use godrive_proto::meta::Accessed;
use godrive_proto::time::Timestamp;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

const DAY_NS: i64 = 86_400 * 1_000_000_000;
/// Reads that the master was not told of; beyond it they are not noted.
const MAX_NOTED: usize = 65_536;
/// The longest that an unmount waits to tell the last ones.
const FAREWELL: Duration = Duration::from_secs(1);

impl<B: Backend> Fs<B> {
    pub(super) fn accessed(&self, inode: &Arc<Inode>) {
        if !self.limits.access_times {
            return;
        }
        let wall = self.backend.wall();
        let at = {
            let mut state = inode.state.lock();
            let Some(attr) = state.attr.as_mut() else { return };
            let Some(at) = time_of_access([attr.atime, attr.mtime, attr.ctime], wall) else { return };
            attr.atime = at;
            state.accessed = Some(at);
            at
        };
        let mut noted = self.accesses.lock();
        if noted.len() < MAX_NOTED || noted.contains_key(&inode.ino) {
            noted.insert(inode.ino, at);
        }
    }

    /// Somebody sets the time: what was read before does not count any more.
    pub(super) fn forget_access(&self, inode: &Arc<Inode>) {
        inode.state.lock().accessed = None;
        self.accesses.lock().remove(&inode.ino);
    }

    pub(super) fn take_accesses(&self) -> Vec<(Ino, Timestamp)> {
        let mut noted = self.accesses.lock();
        match noted.keys().nth(MAX_ACCESSES).copied() {
            None => std::mem::take(&mut *noted).into_iter().collect(),
            Some(rest) => {
                let rest = noted.split_off(&rest);
                std::mem::replace(&mut *noted, rest).into_iter().collect()
            }
        }
    }

    pub(super) fn put_accesses_back(&self, times: Vec<(Ino, Timestamp)>) {
        let mut noted = self.accesses.lock();
        for (ino, at) in times {
            noted.entry(ino).or_insert(at);
        }
    }

    /// Before the end. What cannot be told is lost, as access times may be.
    pub(super) async fn tell_accesses(&self) {
        let tell = async {
            loop {
                let times = self.take_accesses();
                if times.is_empty() || self.backend.query::<Accessed>(&times).await.is_err() {
                    return;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, tell).await.is_err() {
            tracing::debug!("the last access times were not told");
        }
    }
}

pub(super) type Accesses = BTreeMap<Ino, Timestamp>;

/// What a read makes of the times of access, modification and change; None: it is not noted.
fn time_of_access([atime, mtime, ctime]: [Timestamp; 3], now: Timestamp) -> Option<Timestamp> {
    let is_due = atime <= mtime || atime <= ctime || now.0.saturating_sub(atime.0) >= DAY_NS;
    // The master's clock is known to some milliseconds, and who read what was changed did so after the change.
    is_due.then(|| now.max(Timestamp(ctime.0.saturating_add(1))))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_read_after_a_change_is_noted_behind_it_and_then_one_a_day() {
        let noted =
            |times: [i64; 3], now| time_of_access(times.map(Timestamp), Timestamp(now)).map(|at| at.0);
        assert_eq!(noted([10, 20, 20], 30), Some(30));
        assert_eq!(noted([20, 20, 20], 18), Some(21), "the clock seems to be behind");
        assert_eq!(noted([21, 20, 20], 22), None);
        assert_eq!(noted([21, 20, 20], 21 + DAY_NS), Some(21 + DAY_NS));
        assert_eq!(
            noted([21, 900, 20], 22),
            Some(22),
            "a time that a program set to be in the future stays there"
        );
    }
}
