//! A client that came only to look: it walks the whole tree and reads every file.

use crate::shared::Shared;
use godrive_client::{Fs, FsError};
use godrive_proto::meta::Kind;
use godrive_proto::{Ino, ROOT};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use xxhash_rust::xxh3::Xxh3;

/// By path: kind, length, and a hash of the bytes.
pub type Seen = BTreeMap<String, (Kind, u64, u64)>;

const PIECE: u32 = 1 << 20;
const PAGE: usize = 1000;
const O_RDONLY: i32 = 0;

/// Walks until it has seen everything, and tells.
pub async fn walk(number: u16, fs: Arc<Fs>, shared: Shared) {
    loop {
        shared.doing(number, "walk the tree");
        match once(&fs).await {
            Ok(seen) => {
                if let Err(unflushed) = fs.stop().await {
                    shared.problem(format!("client {number} only read, and could not flush: {unflushed:?}"));
                }
                shared.doing(number, "nothing any more");
                shared.with(|notes| notes.seen.insert(number, seen));
                return;
            }
            Err(error) => {
                shared.error("walk the tree", &error);
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
        }
    }
}

async fn once(fs: &Arc<Fs>) -> Result<Seen, FsError> {
    let mut seen = Seen::new();
    let mut left = vec![(ROOT, String::new())];
    while let Some((directory, path)) = left.pop() {
        for (name, ino, kind) in list(fs, directory).await? {
            let path = format!("{path}/{}", String::from_utf8_lossy(&name));
            let (size, hash) = match kind {
                Kind::File => read(fs, ino).await?,
                _ => (0, 0),
            };
            if kind == Kind::Directory {
                left.push((ino, path.clone()));
            }
            seen.insert(path, (kind, size, hash));
        }
    }
    Ok(seen)
}

async fn list(fs: &Arc<Fs>, directory: Ino) -> Result<Vec<(Vec<u8>, Ino, Kind)>, FsError> {
    let handle = fs.opendir(directory)?.handle;
    let (mut all, mut offset) = (Vec::new(), 0);
    let listed = loop {
        let page = match fs.try_readdir(handle, offset, PAGE, false) {
            Some(page) => page,
            None => fs.readdir(handle, offset, PAGE, false).await,
        };
        match page {
            Ok(page) => {
                let Some(last) = page.value.last() else { break Ok(all) };
                offset = last.offset;
                let real =
                    page.value.into_iter().filter(|e| ![b".".as_slice(), b".."].contains(&e.name.as_slice()));
                all.extend(real.map(|entry| (entry.name, entry.ino, entry.kind)));
            }
            Err(error) => break Err(error),
        }
    };
    fs.releasedir(handle);
    listed
}

/// Length and hash of a file's bytes.
async fn read(fs: &Arc<Fs>, ino: Ino) -> Result<(u64, u64), FsError> {
    let size = fs.getattr(ino).await?.attr.size;
    let handle = fs.open(ino, O_RDONLY).await?.handle;
    let (mut hash, mut at) = (Xxh3::new(), 0);
    let read = loop {
        match fs.read(handle, at, PIECE).await {
            Ok(pieces) => {
                let len: usize = pieces.iter().map(|piece| piece.len()).sum();
                pieces.iter().for_each(|piece| hash.update(piece));
                at += len as u64;
                if len == 0 {
                    break Ok(());
                }
            }
            Err(error) => break Err(error),
        }
    };
    fs.release(handle);
    read?;
    if at != size {
        // A problem of its own, which the comparison shows: the length is what was read.
        tracing::error!(%ino, size, at, "a file has another length than its attributes say");
    }
    Ok((at, hash.digest()))
}
