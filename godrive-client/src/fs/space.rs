//! fallocate and lseek.

use super::inode::Inode;
use super::lease::Step;
use super::types::{Handle, Whence};
use super::{Backend, Fs};
use crate::core::gate::{NO_LOCKED_PAGES, NO_PAGES};
use crate::core::read_plan::spans;
use crate::error::{FsError, Result};
use godrive_proto::Version;
use godrive_proto::lease::Mode;
use godrive_proto::limits::MAX_FILE_BYTES;
use std::sync::Arc;

impl<B: Backend> Fs<B> {
    /// Preallocation reserves nothing: a file's holes take no space and the cluster promises none ahead. Punching and
    /// zeroing make holes. All of them count as changes of the contents, as on ext4.
    /// `kill_privileges`: also clear the set-id bits.
    pub async fn fallocate(
        self: &Arc<Self>,
        handle: Handle,
        mode: i32,
        offset: u64,
        len: u64,
        kill_privileges: bool,
    ) -> Result<()> {
        let file = self.sound(handle)?;
        if !file.writable {
            return Err(FsError::bare(libc::EBADF));
        }
        if len == 0 {
            return Err(FsError::bare(libc::EINVAL));
        }
        let Some(end) = offset.checked_add(len).filter(|end| *end <= MAX_FILE_BYTES) else {
            return Err(FsError::bare(libc::EFBIG));
        };
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => {}
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => self.zero(&file.inode, offset..end).await?,
            libc::FALLOC_FL_ZERO_RANGE => self.zero(&file.inode, offset..end).await?,
            _ => return Err(FsError::bare(libc::EOPNOTSUPP)),
        }
        self.reach(&file.inode, if keep_size { 0 } else { end }, kill_privileges).await
    }

    /// The contents have changed, and reach at least up to `end`.
    pub(super) async fn reach(
        self: &Arc<Self>,
        inode: &Arc<Inode>,
        end: u64,
        kill_privileges: bool,
    ) -> Result<()> {
        let _content = self.within("waiting for a truncation", inode.content.read()).await?;
        // It waits at a closed gate, or a recall would not end while this is done again and again.
        self.under(inode, Mode::Exclusive, NO_LOCKED_PAGES, |state| {
            if end > state.max_bytes() {
                return Err(FsError::bare(libc::EFBIG));
            }
            if end > state.size() && state.must_trim() {
                return Ok(Step::Trim);
            }
            let wall = self.backend.wall();
            self.written(state, end, wall, kill_privileges);
            Ok(Step::Done(()))
        })
        .await?;
        Ok(())
    }

    /// Whole chunks: one that was ever written counts as data, one that was not as a hole.
    pub async fn lseek(self: &Arc<Self>, handle: Handle, offset: u64, whence: Whence) -> Result<u64> {
        let file = self.sound(handle)?;
        let (found, _pass) = self
            .under(&file.inode, Mode::Shared, NO_PAGES, |state| {
                let size = state.size();
                if offset >= size {
                    return Err(FsError::bare(libc::ENXIO));
                }
                let chunk_bytes = state.chunk_bytes();
                for span in spans(offset..size, chunk_bytes) {
                    if let Some(window) = state.unknown_window(span.index) {
                        return Ok(Step::Window(window));
                    }
                    let written = state
                        .slots
                        .get(&span.index)
                        .is_some_and(|slot| slot.layout.held.version > Version(0));
                    let is_data = written || state.buffer.has(span.index);
                    if is_data == (whence == Whence::Data) {
                        let at = u64::from(span.index) * u64::from(chunk_bytes) + u64::from(span.start);
                        return Ok(Step::Done(Ok(at)));
                    }
                }
                // Every file ends with a hole.
                Ok(Step::Done(if whence == Whence::Hole {
                    Ok(size)
                } else {
                    Err(FsError::bare(libc::ENXIO))
                }))
            })
            .await?;
        found
    }
}
