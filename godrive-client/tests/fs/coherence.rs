//! What one mount was answered, every mount sees: through the kernel's caches too, under contention.

use crate::cluster::{Client, Cluster};
use crate::kernel::Kernel;
use godrive_client::driver::BoxFuture;
use godrive_client::fs::{Caller, Fs, Handle, Invalidate, Invalidation, SetAttr};
use godrive_proto::meta::{NewNode, SetTime};
use godrive_proto::time::Timestamp;
use godrive_proto::{Ino, ROOT};
use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const OWNER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

async fn create(kernel: &Kernel, name: &[u8]) -> (Ino, Handle) {
    let lock = kernel.directory(ROOT);
    let _alone = lock.write().await;
    let created = kernel.fs.create(ROOT, name, 0o644, libc::O_RDWR, OWNER).await.unwrap();
    kernel.forget_name(ROOT, name);
    (created.entry.attr.ino, created.opened.handle)
}

fn stamp(value: u64) -> Vec<u8> {
    value.to_le_bytes().repeat(1024)
}

fn value(bytes: &[u8]) -> u64 {
    let first = u64::from_le_bytes(bytes[..8].try_into().unwrap());
    assert!(bytes.chunks(8).all(|chunk| chunk == first.to_le_bytes()), "a torn read");
    first
}

/// Writers on several mounts raise a number in turn; readers on all never see it fall behind.
async fn numbers(seed: u64, writers: usize, readers: usize) {
    let cluster = Cluster::new(seed);
    let kernels: Vec<Kernel> =
        (0..writers.max(readers)).map(|id| Kernel::mount(&cluster, id as u64)).collect();
    let (ino, first) = create(&kernels[0], b"number").await;
    kernels[0].write(first, ino, 0, &stamp(0)).await.unwrap();
    let written = Arc::new(AtomicU64::new(0));
    let started = Arc::new(AtomicU64::new(0));
    let turn = Arc::new(tokio::sync::Mutex::new(0u64));
    let mut tasks = Vec::new();
    for (id, kernel) in kernels.iter().take(writers).cloned().enumerate() {
        let (written, started, turn) = (written.clone(), started.clone(), turn.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed * 100 + id as u64);
            let handle = kernel.fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
            for _ in 0..30 {
                let mut number = turn.lock().await;
                *number += 1;
                started.store(*number, Ordering::SeqCst);
                kernel.write(handle, ino, 0, &stamp(*number)).await.unwrap();
                written.store(*number, Ordering::SeqCst);
                if random.random_bool(0.2) {
                    kernel.fs.fsync(handle, true).await.unwrap();
                }
                drop(number);
                tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
            }
            kernel.fs.flush(handle).await.unwrap();
            kernel.fs.release(handle);
        }));
    }
    for (id, kernel) in kernels.iter().take(readers).cloned().enumerate() {
        let (written, started) = (written.clone(), started.clone());
        tasks.push(tokio::spawn(async move {
            let mut random = SmallRng::seed_from_u64(seed * 1000 + id as u64);
            let handle = kernel.fs.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
            for _ in 0..120 {
                let before = written.load(Ordering::SeqCst);
                let seen = value(&kernel.read(handle, ino, 0, 8192).await.unwrap());
                let after = started.load(Ordering::SeqCst);
                assert!(before <= seen && seen <= after, "mount {id} saw {seen}, not {before}..={after}");
                tokio::time::sleep(Duration::from_micros(random.random_range(0..8_000))).await;
            }
            kernel.fs.release(handle);
        }));
    }
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
    assert!(cluster.world.lock().leases.recalls > 10, "the mounts contended");
}

#[tokio::test(start_paused = true)]
async fn readers_never_see_an_old_number() {
    for seed in 0..12 {
        numbers(seed, 1, 3).await;
    }
}

#[tokio::test(start_paused = true)]
async fn writers_on_several_mounts_take_turns() {
    for seed in 100..108 {
        numbers(seed, 3, 3).await;
    }
}

/// Appends from several mounts: each arrives whole and once, none over another.
#[tokio::test(start_paused = true)]
async fn appends_are_atomic() {
    for seed in 0..8 {
        let cluster = Cluster::new(seed);
        let kernels: Vec<Kernel> = (0..3).map(|id| Kernel::mount(&cluster, id)).collect();
        let (ino, _) = create(&kernels[0], b"log").await;
        let mut tasks = Vec::new();
        for (id, kernel) in kernels.iter().cloned().enumerate() {
            tasks.push(tokio::spawn(async move {
                let flags = libc::O_WRONLY | libc::O_APPEND;
                let handle = kernel.fs.open(ino, flags).await.unwrap().value.handle;
                for i in 0..40u8 {
                    let record = vec![id as u8 * 40 + i + 1; 1000];
                    kernel.fs.write(handle, 0, record.into(), false).await.unwrap();
                }
                kernel.fs.flush(handle).await.unwrap();
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        let handle = kernels[1].fs.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
        let all = kernels[1].fs.read(handle, 0, 1 << 20).await.unwrap().value.concat();
        assert_eq!(all.len(), 120 * 1000);
        let mut records: Vec<u8> = all
            .chunks(1000)
            .map(|record| {
                assert!(record.iter().all(|byte| *byte == record[0]), "a torn record");
                record[0]
            })
            .collect();
        for id in 0..3u8 {
            let own: Vec<u8> = records.iter().copied().filter(|record| (record - 1) / 40 == id).collect();
            assert!(own.is_sorted(), "the records of mount {id} are in its order");
        }
        records.sort();
        assert_eq!(records, (1..=120).collect::<Vec<u8>>());
        assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
    }
}

/// A name is made, moved and removed by one mount while others look it up through their kernels.
#[tokio::test(start_paused = true)]
async fn names_are_seen_everywhere() {
    for seed in 0..10 {
        let cluster = Cluster::new(seed);
        let kernels: Vec<Kernel> = (0..3).map(|id| Kernel::mount(&cluster, id)).collect();
        let directory =
            kernels[0].fs.make(ROOT, b"d", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
        // Even: the name exists. What lookups may see lies between these two.
        let (begun, ended) = (Arc::new(AtomicU64::new(1)), Arc::new(AtomicU64::new(1)));
        let writer = {
            let (kernel, begun, ended) = (kernels[0].clone(), begun.clone(), ended.clone());
            tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed);
                for _ in 0..40 {
                    let lock = kernel.directory(directory);
                    {
                        let _alone = lock.write().await;
                        let step = begun.fetch_add(1, Ordering::SeqCst) + 1;
                        if step.is_multiple_of(2) {
                            kernel.fs.make(directory, b"x", NewNode::File, 0o644, OWNER).await.unwrap();
                        } else {
                            kernel.fs.unlink(directory, b"x").await.unwrap();
                        }
                        kernel.forget_name(directory, b"x");
                        ended.store(step, Ordering::SeqCst);
                    }
                    tokio::time::sleep(Duration::from_micros(random.random_range(0..60_000))).await;
                }
            })
        };
        let mut tasks = vec![writer];
        for (id, kernel) in kernels.iter().cloned().enumerate() {
            let (begun, ended) = (begun.clone(), ended.clone());
            tasks.push(tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed * 10 + id as u64);
                for _ in 0..150 {
                    let before = ended.load(Ordering::SeqCst);
                    let exists = kernel.lookup(directory, b"x").await.unwrap().is_some();
                    let after = begun.load(Ordering::SeqCst);
                    let possible = (before..=after).any(|step| step.is_multiple_of(2) == exists);
                    assert!(possible, "mount {id} sees {exists} between {before} and {after}");
                    tokio::time::sleep(Duration::from_micros(random.random_range(0..20_000))).await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
    }
}

/// A name that is missing because all names of the directory are known: the kernel keeps that answer, too, until a
/// recall takes it back.
#[tokio::test(start_paused = true)]
async fn a_missing_name_of_a_wholly_known_directory_is_taken_back() {
    let cluster = Cluster::new(7);
    let (maker, other) = (Kernel::mount(&cluster, 1), Kernel::mount(&cluster, 2));
    let directory = maker.fs.make(ROOT, b"d", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    for round in 0..20u8 {
        let name = [b'a' + round];
        assert_eq!(maker.lookup(directory, &name).await.unwrap(), None);
        let made = other.fs.create(directory, &name, 0o644, libc::O_RDWR, OWNER).await.unwrap();
        other.fs.release(made.opened.handle);
        assert_eq!(maker.lookup(directory, &name).await.unwrap(), Some(made.entry.attr.ino), "{round}");
    }
}

/// Through a handle that appends, too, a page that the kernel writes back goes where it was read from.
#[tokio::test(start_paused = true)]
async fn what_is_written_back_is_not_appended() {
    let cluster = Cluster::new(8);
    let kernel = Kernel::mount(&cluster, 1);
    let (ino, handle) = create(&kernel, b"mapped").await;
    kernel.write(handle, ino, 0, &[1; 6000]).await.unwrap();
    let appending = kernel.fs.open(ino, libc::O_RDWR | libc::O_APPEND).await.unwrap().value.handle;
    kernel.fs.write_back(appending, 4096, vec![2; 1904].into()).await.unwrap();
    assert!(kernel.fs.try_write_back(appending, 0, &vec![3; 96].into()).is_some());
    kernel.fs.write(appending, 0, vec![4; 10].into(), false).await.unwrap();
    let expected = [vec![3; 96], vec![1; 4000], vec![2; 1904], vec![4; 10]].concat();
    assert_eq!(kernel.fs.read(handle, 0, 10_000).await.unwrap().value.concat(), expected);
}

/// A kernel in which a program has stored into a shared mapping of a page.
struct Mapping {
    fs: Arc<Fs<Client>>,
    handle: Handle,
    dirty: Arc<Mutex<Option<Vec<u8>>>>,
}

impl Invalidate for Mapping {
    fn invalidate(&self, what: Vec<Invalidation>) -> BoxFuture<'static, ()> {
        let (fs, handle, dirty) = (self.fs.clone(), self.handle, self.dirty.clone());
        Box::pin(async move {
            let stored = dirty.lock().take_if(|_| matches!(what[..], [Invalidation::Pages(..)]));
            if let Some(page) = stored {
                fs.write_back(handle, 0, page.into()).await.map(drop).unwrap();
            }
        })
    }
}

/// What is mapped on another mount, which no close has told of.
#[tokio::test(start_paused = true)]
async fn what_was_stored_into_a_mapping_comes_before_what_is_read_and_written_elsewhere() {
    let cluster = Cluster::new(9);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let created = one.create(ROOT, b"mapped", 0o644, libc::O_RDWR, OWNER).await.unwrap().value;
    let (ino, handle) = (created.entry.attr.ino, created.opened.handle);
    one.write(handle, 0, vec![1; 4096].into(), false).await.map(drop).unwrap();
    one.fsync(handle, false).await.unwrap();
    let dirty = Arc::new(Mutex::new(Some(vec![2; 4096])));
    let fs = one.clone();
    one.set_invalidate(Arc::new(Mapping { fs, handle, dirty: dirty.clone() }));
    let read = async |fs: &Arc<Fs<Client>>, handle| fs.read(handle, 0, 4096).await.unwrap().value.concat();
    let theirs = two.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    assert_eq!(read(&two, theirs).await, [2; 4096]);
    let theirs = two.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    two.write(theirs, 0, vec![3; 4096].into(), false).await.map(drop).unwrap();
    two.fsync(theirs, false).await.unwrap();
    assert_eq!(read(&one, handle).await, [3; 4096]);
    assert_eq!(*dirty.lock(), None);
}

/// A change of the times while a recall flushes the file goes behind what was written before.
#[tokio::test(start_paused = true)]
async fn times_set_during_a_recall_are_kept() {
    for seed in 0..8 {
        let cluster = Cluster::new(seed);
        let (owner, other) = (Kernel::mount(&cluster, 1), Kernel::mount(&cluster, 2));
        let (ino, handle) = create(&owner, b"file").await;
        owner.write(handle, ino, 0, &[1; 100]).await.unwrap();
        let recalling = tokio::spawn({
            let other = other.clone();
            async move { other.lookup(ROOT, b"file").await }
        });
        while owner.fs.stats().recalls == 0 {
            tokio::time::sleep(Duration::from_micros(20)).await;
        }
        let (mode, mtime) = (Some(0o600), Some(SetTime::At(Timestamp(7))));
        let set = SetAttr { mode, mtime, ..SetAttr::default() };
        owner.fs.setattr(ino, Some(handle), set).await.unwrap();
        recalling.await.unwrap().unwrap();
        for fs in [&owner.fs, &other.fs] {
            let attr = fs.getattr(ino).await.unwrap().value.attr;
            assert_eq!((attr.mode, attr.mtime), (0o600, Timestamp(7)));
        }
        assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
    }
}

/// A listing that is answered from memory gives names to the kernel like one that the master answers.
#[tokio::test(start_paused = true)]
async fn a_name_that_came_with_a_known_listing_is_taken_back() {
    let cluster = Cluster::new(9);
    let (maker, other) = (Kernel::mount(&cluster, 1), Kernel::mount(&cluster, 2));
    let directory = maker.fs.make(ROOT, b"d", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    let ino = maker.fs.make(directory, b"x", NewNode::File, 0o644, OWNER).await.unwrap().attr.ino;
    other.list(directory, false).await.unwrap();
    other.stat(ino).await.unwrap();
    other.list(directory, true).await.unwrap();
    let misses = other.fs.stats().meta_misses;
    assert_eq!(other.lookup(directory, b"x").await.unwrap(), Some(ino));
    assert_eq!(other.fs.stats().meta_misses, misses, "the kernel keeps it, or this mount knows it");
    maker.fs.unlink(directory, b"x").await.unwrap();
    assert_eq!(other.lookup(directory, b"x").await.unwrap(), None);
}

/// A name that is moved into a contended directory keeps the time to live that the kernel was given for it elsewhere.
#[tokio::test(start_paused = true)]
async fn a_name_that_moved_into_a_contended_directory_is_taken_back() {
    let cluster = Cluster::new(10);
    let (mover, other) = (Kernel::mount(&cluster, 1), Kernel::mount(&cluster, 2));
    let quiet = mover.fs.make(ROOT, b"quiet", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    let contended = mover.fs.make(ROOT, b"both", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    let ino = mover.fs.make(quiet, b"x", NewNode::File, 0o644, OWNER).await.unwrap().attr.ino;
    for name in [b"1", b"2", b"3"] {
        other.fs.make(contended, name, NewNode::File, 0o644, OWNER).await.unwrap();
        assert!(mover.lookup(contended, name).await.unwrap().is_some());
    }
    assert_eq!(mover.lookup(quiet, b"x").await.unwrap(), Some(ino));
    mover.rename((quiet, b"x"), (contended, b"x")).await.unwrap();
    assert_eq!(mover.lookup(contended, b"x").await.unwrap(), Some(ino));
    other.fs.unlink(contended, b"x").await.unwrap();
    assert_eq!(mover.lookup(contended, b"x").await.unwrap(), None);
}

/// An append that waits for its lease has no page locked: the others are taken back from the kernel meanwhile.
#[tokio::test(start_paused = true)]
async fn a_waiting_append_keeps_no_old_pages() {
    let mut overtaken = 0;
    for seed in 0..24 {
        let cluster = Cluster::new(seed);
        let [kernel, other, third] = [1, 2, 3].map(|id| Kernel::mount(&cluster, id));
        let (ino, handle) = create(&kernel, b"log").await;
        let writer = other.fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
        kernel.write(handle, ino, 0, &[1; 4096]).await.unwrap();
        let appending = kernel.fs.open(ino, libc::O_WRONLY | libc::O_APPEND).await.unwrap().value.handle;
        let reader = third.fs.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
        assert!(kernel.read(handle, ino, 0, 4096).await.unwrap() == [1; 4096]);
        // The append and the write both wait for this answer to be given; then one of them is first.
        let answer = third.fs.read(reader, 0, 4096).await.unwrap();
        let append = tokio::spawn({
            let fs = kernel.fs.clone();
            async move { fs.write(appending, 0, vec![3; 10].into(), false).await.map(|served| served.value) }
        });
        let write = tokio::spawn({
            let other = other.clone();
            async move { other.write(writer, ino, 0, &[2; 4096]).await }
        });
        while cluster.world.lock().leases.recalls < 5 {
            tokio::time::sleep(Duration::from_micros(100)).await;
        }
        drop(answer);
        write.await.unwrap().unwrap();
        overtaken += u32::from(!append.is_finished());
        let seen = kernel.read(handle, ino, 0, 4096).await.unwrap();
        assert!(seen == [2; 4096], "{} is old, seed {seed}", seen[0]);
        assert_eq!(append.await.unwrap().unwrap(), 10);
        let expected = [vec![2; 4096], vec![3; 10]].concat();
        assert!(other.fs.read(writer, 0, 10_000).await.unwrap().value.concat() == expected);
        assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
    }
    assert!(overtaken > 0, "the write was first at least once");
}

/// The last byte that a file can have lies in the chunk with the highest number; behind it nothing is written.
#[tokio::test(start_paused = true)]
async fn a_file_ends_where_chunks_have_no_numbers_any_more() {
    let cluster = Cluster::new(11);
    let kernel = Kernel::mount(&cluster, 1);
    let (_, handle) = create(&kernel, b"large").await;
    let end = u64::from(crate::cluster::CHUNK) << 32;
    let write = |offset: u64, len: usize| kernel.fs.write(handle, offset, vec![1; len].into(), false);
    for offset in [end, end + 1, u64::MAX] {
        assert_eq!(write(offset, 1).await.unwrap_err().errno, libc::EFBIG, "{offset}");
        assert_eq!(write(offset, 0).await.unwrap().value, 0, "nothing is written anywhere");
    }
    for index in (0..6).rev() {
        assert_eq!(write(end - (index + 1) * u64::from(crate::cluster::CHUNK), 1).await.unwrap().value, 1);
    }
    assert_eq!(write(end - 1, 2).await.unwrap().value, 1);
    assert_eq!(write(end, 1).await.unwrap_err().errno, libc::EFBIG);
}
