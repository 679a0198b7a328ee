//! A file being stored: under a temporary name until every byte is stable on every replica, then renamed.
//!
//! Whoever looks sees the old file, or none, or the whole new one. A failure removes the temporary name; only the end
//! of this process or of the cluster in the middle can leave it behind, and then its name says what it is.

use super::{FsResult, PIECE_BYTES, Remote, RemotePath};
use bytes::{Bytes, BytesMut};
use godrive_client::FsError;
use godrive_client::fs::Handle;
use godrive_proto::Ino;
use godrive_proto::meta::{Attr, Kind, RenameMode};
use rand::{Rng, SeedableRng, rngs::StdRng};

/// Where the bytes come from; None at the end.
pub trait Source: Send {
    fn next(&mut self) -> impl Future<Output = anyhow::Result<Option<Bytes>>> + Send;
}

/// What to store.
pub struct Upload<'a> {
    pub path: &'a RemotePath,
    pub mode: u16,
    pub make_parents: bool,
    /// Fail if the name exists.
    pub only_new: bool,
}

/// Why an upload failed.
#[derive(Debug, thiserror::Error)]
pub enum UploadError {
    #[error("{}", super::said(.0))]
    Cluster(FsError),
    #[error("reading what is to be stored: {0:#}")]
    Source(anyhow::Error),
}

/// Not as a source: its own words are this error's.
impl From<FsError> for UploadError {
    fn from(error: FsError) -> Self {
        Self::Cluster(error)
    }
}

/// A temporary file while it is written.
struct Temporary {
    folder: Ino,
    name: Vec<u8>,
    handle: Handle,
    ino: Ino,
}

impl Remote {
    /// Stores everything that `source` has. Returns the new file and whether it replaced another.
    pub async fn upload(
        &self,
        upload: Upload<'_>,
        source: &mut impl Source,
    ) -> Result<(Attr, bool), UploadError> {
        if upload.make_parents {
            self.make_parents(upload.path).await?;
        }
        let (folder, name) = self.parent(upload.path).await?;
        let before = self.child(folder, name).await?;
        match &before {
            Some(attr) if attr.kind == Kind::Directory => {
                return Err(FsError::new(libc::EISDIR, format!("{} is a directory", upload.path)).into());
            }
            Some(_) if upload.only_new => {
                return Err(FsError::new(libc::EEXIST, format!("{} exists", upload.path)).into());
            }
            _ => {}
        }
        let temporary = self.temporary(folder, name, upload.mode).await?;
        let mode = if upload.only_new { RenameMode::NoReplace } else { RenameMode::Replace };
        match self.fill(&temporary, source).await {
            Ok(()) => self.fs.release(temporary.handle),
            Err(error) => {
                self.fs.release(temporary.handle);
                self.discard(&temporary).await;
                return Err(error);
            }
        }
        if let Err(error) = self.fs.rename(folder, &temporary.name, folder, name, mode).await {
            self.discard(&temporary).await;
            return Err(error.into());
        }
        self.settle(folder).await?;
        Ok((self.attr(temporary.ino).await?, before.is_some()))
    }

    /// The names in the folder are on the master's stable storage.
    pub async fn settle(&self, folder: Ino) -> FsResult<()> {
        let handle = self.fs.opendir(folder)?.handle;
        let settled = self.fs.fsyncdir(handle).await;
        self.fs.releasedir(handle);
        settled
    }

    async fn temporary(&self, folder: Ino, name: &[u8], mode: u16) -> FsResult<Temporary> {
        let mut random = StdRng::from_os_rng();
        let name = temporary_name(name, random.random());
        let flags = libc::O_WRONLY | libc::O_CREAT | libc::O_EXCL;
        let created = self.fs.create(folder, &name, mode, flags, self.caller).await?;
        Ok(Temporary { folder, name, handle: created.opened.handle, ino: created.entry.attr.ino })
    }

    /// Writes it all and waits until it is stable.
    async fn fill(&self, temporary: &Temporary, source: &mut impl Source) -> Result<(), UploadError> {
        let mut offset = 0;
        let mut gathered = BytesMut::with_capacity(PIECE_BYTES);
        while let Some(bytes) = source.next().await.map_err(UploadError::Source)? {
            gathered.extend_from_slice(&bytes);
            while gathered.len() >= PIECE_BYTES {
                let piece = gathered.split_to(PIECE_BYTES).freeze();
                offset += self.write_all(temporary.handle, offset, piece).await?;
            }
        }
        self.write_all(temporary.handle, offset, gathered.freeze()).await?;
        self.fs.fsync(temporary.handle, false).await?;
        // What a close would report.
        self.fs.flush(temporary.handle).await?;
        Ok(())
    }

    async fn write_all(&self, handle: Handle, offset: u64, mut bytes: Bytes) -> FsResult<u64> {
        let total = bytes.len() as u64;
        let mut offset = offset;
        while !bytes.is_empty() {
            let written = self.fs.write(handle, offset, bytes.clone(), false).await?.value as usize;
            if written == 0 {
                return Err(FsError::new(libc::EIO, "a write took no bytes"));
            }
            offset += written as u64;
            bytes = bytes.split_off(written.min(bytes.len()));
        }
        Ok(total)
    }

    /// Leaves nothing behind, as far as the cluster can be reached.
    async fn discard(&self, temporary: &Temporary) {
        match self.fs.unlink(temporary.folder, &temporary.name).await {
            Ok(()) => {}
            Err(error) if error.errno == libc::ENOENT => {}
            Err(error) => {
                let name = String::from_utf8_lossy(&temporary.name);
                tracing::error!(%name, %error, "an incomplete upload could not be removed; remove it by hand");
                eprintln!(
                    "godrive: the incomplete {name} could not be removed ({error}); remove it with godrive rm"
                );
            }
        }
    }
}

/// `.NAME.upload-0123456789abcdef`, with NAME cut so that it fits.
fn temporary_name(name: &[u8], random: u64) -> Vec<u8> {
    let suffix = format!(".upload-{random:016x}");
    let keep = name.len().min(255 - 1 - suffix.len());
    [b".", &name[..keep], suffix.as_bytes()].concat()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn temporary_names_fit() {
        assert_eq!(temporary_name(b"a", 1), b".a.upload-0000000000000001");
        assert_eq!(temporary_name(&[b'x'; 255], u64::MAX).len(), 255);
    }
}
