//! A directory of the machine as a [`Disk`]. The directory is locked (flock on the directory itself, so nothing
//! is written) for as long as the value or a file of it lives: a second process is refused.

#![allow(clippy::disallowed_methods, reason = "the adapter to the machine's files")]

use crate::{Disk, DiskFile, Space, check_directory, check_path, check_rename};
use std::ffi::CString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// Pieces per pwritev (IOV_MAX on Linux).
const MAX_PIECES: usize = 1024;

pub struct RealDisk {
    root: PathBuf,
    /// Holds the lock.
    _directory: Arc<File>,
}

impl RealDisk {
    /// Opens a directory, making it if it does not exist, and locks it against other processes.
    pub fn open(root: impl AsRef<Path>) -> io::Result<Self> {
        std::fs::create_dir_all(root.as_ref())?;
        Self::open_existing(root)
    }

    /// As [`Self::open`] for a directory that must exist; writes nothing.
    pub fn open_existing(root: impl AsRef<Path>) -> io::Result<Self> {
        let root = root.as_ref().canonicalize()?;
        let directory = File::open(&root)?;
        // SAFETY: the descriptor is open for the length of the call.
        if unsafe { libc::flock(directory.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } != 0 {
            let error = io::Error::last_os_error();
            if error.kind() == io::ErrorKind::WouldBlock {
                let text = format!("{} is in use by another process", root.display());
                return Err(io::Error::new(io::ErrorKind::WouldBlock, text));
            }
            return Err(error);
        }
        Ok(Self { root, _directory: Arc::new(directory) })
    }

    pub fn root(&self) -> &Path {
        &self.root
    }

    fn path(&self, path: &str) -> io::Result<PathBuf> {
        check_path(path)?;
        Ok(self.root.join(path))
    }

    fn directory(&self, path: &str) -> io::Result<PathBuf> {
        check_directory(path)?;
        Ok(if path.is_empty() { self.root.clone() } else { self.root.join(path) })
    }
}

impl Disk for RealDisk {
    fn open(&self, path: &str, create: bool) -> io::Result<Arc<dyn DiskFile>> {
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(create)
            .truncate(false)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC)
            .open(self.path(path)?)?;
        Ok(Arc::new(RealFile { file, _directory: self._directory.clone() }))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match std::fs::symlink_metadata(self.path(path)?) {
            Ok(_) => Ok(true),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn list(&self, directory: &str) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(self.directory(directory)?)? {
            names.push(entry?.file_name().to_string_lossy().into_owned());
        }
        names.sort();
        Ok(names)
    }

    fn create_directory(&self, path: &str) -> io::Result<()> {
        match std::fs::create_dir(self.path(path)?) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            other => other,
        }
    }

    fn remove(&self, path: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(path)?)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        check_rename(from, to)?;
        std::fs::rename(self.path(from)?, self.path(to)?)
    }

    fn sync_directory(&self, directory: &str) -> io::Result<()> {
        File::open(self.directory(directory)?)?.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        let root = CString::new(self.root.as_os_str().as_bytes())?;
        // SAFETY: zeroed is a valid value of this plain struct.
        let mut stat: libc::statvfs = unsafe { std::mem::zeroed() };
        // SAFETY: both pointers are valid for the length of the call.
        if unsafe { libc::statvfs(root.as_ptr(), &mut stat) } != 0 {
            return Err(io::Error::last_os_error());
        }
        let block = stat.f_frsize;
        Ok(Space { total_bytes: stat.f_blocks * block, free_bytes: stat.f_bavail * block })
    }

    fn is_instant(&self) -> bool {
        false
    }
}

struct RealFile {
    file: File,
    _directory: Arc<File>,
}

impl RealFile {
    fn offsets(offset: u64, len: u64) -> io::Result<(libc::off_t, libc::off_t)> {
        let offset = libc::off_t::try_from(offset).map_err(io::Error::other)?;
        Ok((offset, libc::off_t::try_from(len).map_err(io::Error::other)?))
    }

    /// One pwritev of at most [`MAX_PIECES`] pieces; how much it wrote.
    fn write_some(&self, pieces: &[&[u8]], offset: u64) -> io::Result<usize> {
        let vectors: Vec<libc::iovec> = pieces
            .iter()
            .take(MAX_PIECES)
            .map(|piece| libc::iovec { iov_base: piece.as_ptr().cast_mut().cast(), iov_len: piece.len() })
            .collect();
        let (offset, _) = Self::offsets(offset, 0)?;
        let count = libc::c_int::try_from(vectors.len()).map_err(io::Error::other)?;
        loop {
            // SAFETY: the vectors point at live slices, which pwritev only reads.
            let written = unsafe { libc::pwritev(self.file.as_raw_fd(), vectors.as_ptr(), count, offset) };
            match usize::try_from(written) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => return Ok(written),
                Err(_) => {
                    let error = io::Error::last_os_error();
                    if error.kind() != io::ErrorKind::Interrupted {
                        return Err(error);
                    }
                }
            }
        }
    }
}

impl DiskFile for RealFile {
    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    fn set_len(&self, len: u64) -> io::Result<()> {
        self.file.set_len(len)
    }

    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<()> {
        self.file.read_exact_at(buf, offset)
    }

    fn write_at(&self, pieces: &[&[u8]], mut offset: u64) -> io::Result<()> {
        let mut rest: Vec<&[u8]> = pieces.iter().copied().filter(|piece| !piece.is_empty()).collect();
        let mut first = 0;
        while first < rest.len() {
            let mut written = self.write_some(&rest[first..], offset)?;
            offset += written as u64;
            while written > 0 {
                let take = written.min(rest[first].len());
                rest[first] = &rest[first][take..];
                written -= take;
                if rest[first].is_empty() {
                    first += 1;
                }
            }
        }
        Ok(())
    }

    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        let (at, longer) = Self::offsets(offset, len)?;
        // SAFETY: plain system call on an open descriptor.
        while unsafe { libc::fallocate(self.file.as_raw_fd(), 0, at, longer) } != 0 {
            let error = io::Error::last_os_error();
            match error.raw_os_error() {
                Some(libc::EINTR) => {}
                Some(libc::EOPNOTSUPP | libc::ENOSYS) => return crate::write_zeros(self, offset, len),
                _ => return Err(error),
            }
        }
        Ok(())
    }

    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = Self::offsets(offset, len)?;
        let mode = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
        // SAFETY: plain system call on an open descriptor.
        if unsafe { libc::fallocate(self.file.as_raw_fd(), mode, offset, len) } != 0 {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        let (offset, len) = Self::offsets(offset, len)?;
        // SAFETY: plain system call on an open descriptor.
        if unsafe { libc::sync_file_range(self.file.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) }
            != 0
        {
            return Err(io::Error::last_os_error());
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        self.file.sync_data()
    }

    fn drop_cache(&self) -> io::Result<()> {
        // The system keeps what is not yet written.
        self.sync()?;
        // SAFETY: plain system call on an open descriptor.
        match unsafe { libc::posix_fadvise(self.file.as_raw_fd(), 0, 0, libc::POSIX_FADV_DONTNEED) } {
            0 => Ok(()),
            error => Err(io::Error::from_raw_os_error(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::MetadataExt;

    #[test]
    fn files_are_written_read_punched_and_replaced() {
        let root = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(root.path().join("d")).unwrap();
        disk.create_directory("s").unwrap();
        disk.create_directory("s").unwrap();
        assert!(disk.open("s/a", false).is_err());
        let file = disk.open("s/a", true).unwrap();
        let many: Vec<Vec<u8>> = (0..3000u32).map(|i| i.to_le_bytes().to_vec()).collect();
        let pieces: Vec<&[u8]> = many.iter().map(Vec::as_slice).collect();
        file.write_at(&pieces, 5).unwrap();
        let mut back = vec![0; 12_000];
        file.read_at(&mut back, 5).unwrap();
        assert_eq!(back, many.concat());
        file.start_writeback(0, 4096).unwrap();
        file.sync().unwrap();
        file.punch(4096, 4096).unwrap();
        assert_eq!(file.len().unwrap(), 12_005);
        file.read_at(&mut back[..4096], 4096).unwrap();
        assert!(back[..4096].iter().all(|byte| *byte == 0));
        assert_eq!(file.read_at(&mut back, 6).unwrap_err().kind(), io::ErrorKind::UnexpectedEof);
        let blocks = || std::fs::metadata(root.path().join("d/s/a")).unwrap().blocks();
        let before = blocks();
        file.allocate(12_288, 1 << 20).unwrap();
        assert_eq!(file.len().unwrap(), 12_288 + (1 << 20));
        assert!(blocks() >= before + (1 << 20) / 512, "the blocks are there before anything is written");
        crate::write_small(&disk, "s/b", b"hello").unwrap();
        assert_eq!(crate::read_small(&disk, "s/b", 100).unwrap(), b"hello");
        assert!(crate::read_small(&disk, "s/b", 4).is_err());
        assert_eq!(disk.list("s").unwrap(), ["a", "b"]);
        disk.rename("s/a", "s/b").unwrap();
        disk.remove("s/b").unwrap();
        disk.sync_directory("s").unwrap();
        assert!(!disk.exists("s/b").unwrap());
        assert!(disk.space().unwrap().free_bytes > 0);
    }

    /// Whether the system has all of the file in memory.
    fn is_cached(path: &Path) -> bool {
        let file = File::open(path).unwrap();
        let len = file.metadata().unwrap().len() as usize;
        let mut pages = vec![0u8; len.div_ceil(4096)];
        // SAFETY: the mapping is of this length, is only asked about, and goes before the file does.
        unsafe {
            let map =
                libc::mmap(std::ptr::null_mut(), len, libc::PROT_READ, libc::MAP_SHARED, file.as_raw_fd(), 0);
            assert_ne!(map, libc::MAP_FAILED);
            assert_eq!(libc::mincore(map, len, pages.as_mut_ptr()), 0);
            assert_eq!(libc::munmap(map, len), 0);
        }
        pages.iter().all(|page| page & 1 == 1)
    }

    #[test]
    fn a_dropped_cache_is_read_again() {
        // Not in /tmp, which may lie in memory itself.
        let root = tempfile::tempdir_in(std::env::current_exe().unwrap().parent().unwrap()).unwrap();
        let disk = RealDisk::open(root.path()).unwrap();
        let file = disk.open("a", true).unwrap();
        let bytes = vec![7; 1 << 20];
        file.write_at(&[&bytes], 0).unwrap();
        assert!(is_cached(&root.path().join("a")));
        file.drop_cache().unwrap();
        assert!(!is_cached(&root.path().join("a")));
        let mut back = vec![0; bytes.len()];
        file.read_at(&mut back, 0).unwrap();
        assert_eq!(back, bytes);
    }

    /// Files that cannot be synced say so: each call reaches the system.
    #[test]
    fn a_sync_asks_the_system() {
        let root = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(root.path()).unwrap();
        let pipe = CString::new(root.path().join("pipe").as_os_str().as_bytes()).unwrap();
        // SAFETY: the path is a valid string for the length of the call.
        assert_eq!(unsafe { libc::mkfifo(pipe.as_ptr(), 0o600) }, 0);
        let error = disk.open("pipe", false).unwrap().sync().unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
        let proc = RealDisk::open_existing("/proc/self/fdinfo").unwrap();
        assert_eq!(proc.sync_directory("").unwrap_err().raw_os_error(), Some(libc::EINVAL));
    }

    #[test]
    fn a_second_opener_and_an_escape_are_refused() {
        let root = tempfile::tempdir().unwrap();
        let disk = RealDisk::open(root.path()).unwrap();
        assert!(RealDisk::open(root.path()).err().unwrap().to_string().contains("in use"));
        std::os::unix::fs::symlink("/etc/passwd", root.path().join("link")).unwrap();
        assert!(disk.open("link", false).is_err());
        assert!(disk.open("../x", true).is_err());
        let file = disk.open("a", true).unwrap();
        drop(disk);
        assert!(RealDisk::open(root.path()).is_err(), "an open file keeps the lock");
        drop(file);
        RealDisk::open(root.path()).unwrap();
    }
}
