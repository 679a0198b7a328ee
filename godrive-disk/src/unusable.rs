//! A disk that could not be opened: it answers each call with why.

use crate::{Disk, DiskFile, Space};
use std::io;
use std::sync::Arc;

pub struct UnusableDisk(io::Error);

impl UnusableDisk {
    pub fn new(error: io::Error) -> Self {
        Self(error)
    }

    fn refuse<T>(&self) -> io::Result<T> {
        Err(io::Error::new(self.0.kind(), self.0.to_string()))
    }
}

impl Disk for UnusableDisk {
    fn open(&self, _path: &str, _create: bool) -> io::Result<Arc<dyn DiskFile>> {
        self.refuse()
    }
    fn exists(&self, _path: &str) -> io::Result<bool> {
        self.refuse()
    }
    fn list(&self, _directory: &str) -> io::Result<Vec<String>> {
        self.refuse()
    }
    fn create_directory(&self, _path: &str) -> io::Result<()> {
        self.refuse()
    }
    fn remove(&self, _path: &str) -> io::Result<()> {
        self.refuse()
    }
    fn rename(&self, _from: &str, _to: &str) -> io::Result<()> {
        self.refuse()
    }
    fn sync_directory(&self, _directory: &str) -> io::Result<()> {
        self.refuse()
    }
    fn space(&self) -> io::Result<Space> {
        self.refuse()
    }
    fn is_instant(&self) -> bool {
        true
    }
}
