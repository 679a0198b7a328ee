//! Extended attributes, cached whole under the lease.

use super::flush::Level;
use super::names::Busy;
use super::{Backend, Fs};
use crate::error::{FsError, Result};
use bytes::Bytes;
use godrive_proto::lease::Mode;
use godrive_proto::limits::{MAX_XATTR_NAME_BYTES, MAX_XATTR_VALUE_BYTES};
use godrive_proto::meta::{
    ReadXattrs, RemoveXattr, RemoveXattrRequest, SetXattr, SetXattrMode, SetXattrRequest,
};
use godrive_proto::{Ino, meta::InodeView};
use std::sync::Arc;

type All = Vec<(Vec<u8>, Vec<u8>)>;

impl<B: Backend> Fs<B> {
    pub fn try_getxattr(&self, ino: Ino, name: &[u8]) -> Option<Result<Bytes>> {
        self.cached_xattrs(ino, |all| one(all, name))
    }

    pub async fn getxattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<Bytes> {
        match self.try_getxattr(ino, name) {
            Some(answer) => answer,
            None => one(&self.read_xattrs(ino).await?, name),
        }
    }

    pub fn try_listxattr(&self, ino: Ino) -> Option<Result<Vec<Vec<u8>>>> {
        self.cached_xattrs(ino, |all| Ok(names(all)))
    }

    pub async fn listxattr(self: &Arc<Self>, ino: Ino) -> Result<Vec<Vec<u8>>> {
        match self.try_listxattr(ino) {
            Some(answer) => answer,
            None => Ok(names(&self.read_xattrs(ino).await?)),
        }
    }

    pub async fn setxattr(
        self: &Arc<Self>,
        ino: Ino,
        name: &[u8],
        value: &[u8],
        mode: SetXattrMode,
    ) -> Result<()> {
        if name.is_empty() || name.len() > MAX_XATTR_NAME_BYTES {
            return Err(FsError::bare(libc::ERANGE));
        }
        if value.len() > MAX_XATTR_VALUE_BYTES {
            return Err(FsError::bare(libc::E2BIG));
        }
        let request = SetXattrRequest { ino, name: name.to_vec(), value: value.to_vec(), mode };
        let inode = self.table.get(ino);
        // An ACL changes the mode: a commit of one that was set here before must not come later.
        if name.starts_with(b"system.") && inode.state.lock().is_dirty() {
            self.flush_inode(&inode, Level::Held, Mode::Exclusive).await?;
        }
        let _busy = Busy::new(&inode);
        let view = self.mutate::<SetXattr>(&request, || self.distrust(&inode)).await?;
        self.xattrs_changed(&view);
        Ok(())
    }

    pub async fn removexattr(self: &Arc<Self>, ino: Ino, name: &[u8]) -> Result<()> {
        let request = RemoveXattrRequest { ino, name: name.to_vec() };
        let inode = self.table.get(ino);
        let _busy = Busy::new(&inode);
        let view = self.mutate::<RemoveXattr>(&request, || self.distrust(&inode)).await?;
        self.xattrs_changed(&view);
        Ok(())
    }

    fn xattrs_changed(&self, view: &InodeView) {
        self.not_durable_yet(view);
        let inode = self.table.get(view.attr.ino);
        let mut state = inode.state.lock();
        state.see(view);
        state.xattrs = None;
    }

    fn cached_xattrs<T>(&self, ino: Ino, answer: impl FnOnce(&All) -> Result<T>) -> Option<Result<T>> {
        let inode = self.table.find(ino)?;
        let state = inode.state.lock();
        if !self.is_valid(&state) || state.is_being_changed() {
            return None;
        }
        match &state.xattrs {
            Some(all) => Some(answer(all)),
            None => (!state.attr.as_ref()?.xattrs).then(|| answer(&All::new())),
        }
    }

    async fn read_xattrs(&self, ino: Ino) -> Result<All> {
        self.stats.meta_misses.add(1);
        let reply = self.backend.query::<ReadXattrs>(&ino).await?;
        let inode = self.table.get(ino);
        let mut state = inode.state.lock();
        state.see(&reply.view);
        if state.is_fresh(&reply.view) {
            state.xattrs = Some(reply.all.clone());
        }
        Ok(reply.all)
    }
}

fn one(all: &All, name: &[u8]) -> Result<Bytes> {
    let found = all.iter().find(|(key, _)| key == name);
    found.map(|(_, value)| Bytes::copy_from_slice(value)).ok_or_else(|| FsError::bare(libc::ENODATA))
}

fn names(all: &All) -> Vec<Vec<u8>> {
    all.iter().map(|(name, _)| name.clone()).collect()
}
