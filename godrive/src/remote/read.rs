//! A file being read from one end of a range to the other.

use super::{FsResult, PIECE_BYTES, Remote, RemotePath};
use bytes::Bytes;
use godrive_client::fs::Handle;
use godrive_client::{Fs, FsError};
use godrive_proto::meta::{Attr, Kind};
use std::collections::VecDeque;
use std::sync::Arc;

/// An open file; closed when dropped.
pub struct Reader {
    fs: Arc<Fs>,
    handle: Handle,
    pub attr: Attr,
    position: u64,
    end: u64,
    pieces: VecDeque<Bytes>,
}

impl Remote {
    /// Opens a regular file for reading, from its start to its end.
    pub async fn open(&self, path: &RemotePath) -> FsResult<Reader> {
        let attr = self.resolve(path, true).await?;
        match attr.kind {
            Kind::File => {}
            Kind::Directory => return Err(FsError::new(libc::EISDIR, format!("{path} is a directory"))),
            _ => return Err(FsError::new(libc::EINVAL, format!("{path} is not a regular file"))),
        }
        let handle = self.fs.open(attr.ino, libc::O_RDONLY).await?.handle;
        let mut reader =
            Reader { fs: self.fs.clone(), handle, attr, position: 0, end: 0, pieces: VecDeque::new() };
        // Size and times as they are now that the file is open.
        reader.attr = self.attr(reader.attr.ino).await?;
        reader.end = reader.attr.size;
        Ok(reader)
    }
}

impl Reader {
    /// Reads only these bytes.
    pub fn limit(&mut self, range: std::ops::Range<u64>) {
        (self.position, self.end) = (range.start, range.end.min(self.attr.size));
    }

    /// The next bytes; None at the end. A file that became shorter meanwhile is an error, never silence.
    pub async fn next(&mut self) -> FsResult<Option<Bytes>> {
        loop {
            if let Some(piece) = self.pieces.pop_front() {
                if piece.is_empty() {
                    continue;
                }
                self.position += piece.len() as u64;
                return Ok(Some(piece));
            }
            if self.position >= self.end {
                return Ok(None);
            }
            let size = (self.end - self.position).min(PIECE_BYTES as u64) as u32;
            let pieces = self.fs.read(self.handle, self.position, size).await?.value;
            if pieces.iter().all(Bytes::is_empty) {
                return Err(FsError::new(
                    libc::EIO,
                    format!("the file was truncated to {} bytes while it was read", self.position),
                ));
            }
            self.pieces.extend(pieces);
        }
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        self.fs.release(self.handle);
    }
}
