//! Times that the master sets. They never run backwards, except that an explicit utimensat may have set an
//! mtime in the future: the next change brings it back to now, as POSIX wants it.

use crate::core::state::values::Inode;
use godrive_proto::time::Timestamp;

impl Inode {
    /// The inode changed, its contents did not.
    pub fn touch_status(&mut self, now: Timestamp) {
        self.ctime = self.ctime.max(now);
    }

    /// The contents changed: the bytes of a file, the names in a directory.
    pub fn touch_contents(&mut self, now: Timestamp) {
        // An mtime not above the ctime came from a clock and must not run backwards; one above was set by a user.
        self.mtime = if self.mtime <= self.ctime { self.mtime.max(now) } else { now.max(self.ctime) };
        self.touch_status(now);
    }
}
