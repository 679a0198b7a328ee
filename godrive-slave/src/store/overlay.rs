//! A disk that is only read: what is written stays in memory and is forgotten. The offline check opens a store on
//! it, so that recovery itself is checked and nothing is ever changed.

use godrive_disk::{Disk, DiskFile, Space};
use parking_lot::Mutex;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

const PAGE: u64 = 4096;

pub struct Overlay {
    beneath: Arc<dyn Disk>,
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    files: BTreeMap<String, Arc<OverlayFile>>,
    directories: BTreeSet<String>,
    removed: BTreeSet<String>,
}

impl Overlay {
    pub fn new(beneath: Arc<dyn Disk>) -> Self {
        Self { beneath, state: Mutex::default() }
    }
}

impl Disk for Overlay {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let mut state = self.state.lock();
        if let Some(file) = state.files.get(path) {
            return Ok(file.clone());
        }
        let beneath = match state.removed.contains(path) {
            true => None,
            false => match self.beneath.open(path, false) {
                Ok(file) => Some(file),
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                Err(error) => return Err(error),
            },
        };
        if beneath.is_none() && !create {
            return Err(io::Error::new(io::ErrorKind::NotFound, format!("no file `{path}`")));
        }
        let len = beneath.as_ref().map_or(Ok(0), |file| file.len())?;
        let pages = Mutex::new((len, BTreeMap::new()));
        let file = Arc::new(OverlayFile { beneath_len: len, beneath, pages });
        state.files.insert(path.to_owned(), file.clone());
        state.removed.remove(path);
        Ok(file)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        let state = self.state.lock();
        if state.files.contains_key(path) || state.directories.contains(path) {
            return Ok(true);
        }
        Ok(!state.removed.contains(path) && self.beneath.exists(path)?)
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let state = self.state.lock();
        let prefix = if directory.is_empty() { String::new() } else { format!("{directory}/") };
        let inside = |path: &&String| path.strip_prefix(&prefix).is_some_and(|name| !name.contains('/'));
        let mut names: BTreeSet<String> = self.beneath.list(directory)?.into_iter().collect();
        names.retain(|name| !state.removed.contains(&format!("{prefix}{name}")));
        names.extend(state.files.keys().filter(inside).map(|path| path[prefix.len()..].to_owned()));
        Ok(names.into_iter().collect())
    }

    fn create_directory(&self, path: &str) -> io::Result<()> {
        self.state.lock().directories.insert(path.to_owned());
        Ok(())
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        if !self.exists(path)? {
            return Err(io::ErrorKind::NotFound.into());
        }
        let mut state = self.state.lock();
        state.files.remove(path);
        state.removed.insert(path.to_owned());
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.open(from, false)?;
        let mut state = self.state.lock();
        let file = state.files.remove(from).ok_or(io::ErrorKind::NotFound)?;
        state.removed.insert(from.to_owned());
        state.removed.remove(to);
        state.files.insert(to.to_owned(), file);
        Ok(())
    }

    fn sync_directory(&self, _directory: &str) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space { total_bytes: u64::MAX / 2, free_bytes: u64::MAX / 2 })
    }

    fn is_instant(&self) -> bool {
        true
    }
}

struct OverlayFile {
    beneath: Option<Arc<dyn DiskFile>>,
    /// Bytes of the file beneath that may still be seen.
    beneath_len: u64,
    pages: Mutex<(u64, BTreeMap<u64, Vec<u8>>)>,
}

impl OverlayFile {
    fn beneath_page(&self, page: u64) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; PAGE as usize];
        let at = page * PAGE;
        let len = self.beneath_len.saturating_sub(at).min(PAGE) as usize;
        match &self.beneath {
            Some(file) if len > 0 => file.read_at(&mut bytes[..len], at)?,
            _ => {}
        }
        Ok(bytes)
    }

    fn edit(&self, offset: u64, len: u64, edit: impl Fn(usize, &mut [u8])) -> io::Result<()> {
        let mut pages = self.pages.lock();
        let mut at = offset;
        while at < offset + len {
            let page = at / PAGE;
            let end = ((page + 1) * PAGE).min(offset + len);
            let bytes = match pages.1.entry(page) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(new) => new.insert(self.beneath_page(page)?),
            };
            edit((at - offset) as usize, &mut bytes[(at % PAGE) as usize..(end - page * PAGE) as usize]);
            at = end;
        }
        Ok(())
    }
}

impl DiskFile for OverlayFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.pages.lock().0)
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        let old = self.len()?;
        if len < old {
            self.edit(len, old - len, |_, bytes| bytes.fill(0))?;
        }
        self.pages.lock().0 = len;
        Ok(())
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        let pages = self.pages.lock();
        let end = offset.checked_add(buf.len() as u64).filter(|end| *end <= pages.0);
        let end = end.ok_or(io::ErrorKind::UnexpectedEof)?;
        let mut at = offset;
        while at < end {
            let page = at / PAGE;
            let stop = ((page + 1) * PAGE).min(end);
            let target = &mut buf[(at - offset) as usize..(stop - offset) as usize];
            let range = (at % PAGE) as usize..(stop - page * PAGE) as usize;
            match pages.1.get(&page) {
                Some(bytes) => target.copy_from_slice(&bytes[range]),
                None => target.copy_from_slice(&self.beneath_page(page)?[range]),
            }
            at = stop;
        }
        Ok(())
    }

    fn write_at(&self, pieces: &[&[u8]], offset: u64) -> io::Result<()> {
        let all = pieces.concat();
        self.edit(offset, all.len() as u64, |from, bytes| {
            bytes.copy_from_slice(&all[from..from + bytes.len()])
        })?;
        let mut pages = self.pages.lock();
        pages.0 = pages.0.max(offset + all.len() as u64);
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        godrive_disk::write_zeros(self, offset, len)
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let end = (offset + len).min(self.len()?);
        self.edit(offset, end.saturating_sub(offset), |_, bytes| bytes.fill(0))
    }

    fn start_writeback(&self, _offset: u64, _len: u64) -> io::Result<()> {
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn drop_cache(&self) -> io::Result<()> {
        Ok(())
    }
}
