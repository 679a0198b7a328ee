//! One promise each.

use crate::cluster::{CHUNK, Client, Cluster};
use crate::kernel::Kernel;
use bytes::Bytes;
use godrive_client::CloseMode;
use godrive_client::driver::{BoxFuture, Config as DriverConfig, Declared};
use godrive_client::fs::config::Config;
use godrive_client::fs::{Backend, Caller, Found, Fs, Handle, Invalidate, Invalidation, SetAttr, Whence};
use godrive_proto::lease::{GetLayout, GetLayouts, OpenChunks, RecallRequest};
use godrive_proto::meta::{Barrier, Commit, Create, Lookup, NewNode, RenameMode, SetTime, Truncate};
use godrive_proto::time::Timestamp;
use godrive_proto::{Ino, LeaseId, LogIndex, Operation, ROOT};
use std::sync::Arc;
use std::time::Duration;

const OWNER: Caller = Caller { uid: 1000, gid: 1000, umask: 0 };

async fn create<B: Backend>(fs: &Arc<Fs<B>>, name: &[u8]) -> (Ino, Handle) {
    let created = fs.create(ROOT, name, 0o644, libc::O_RDWR, OWNER).await.unwrap();
    (created.entry.attr.ino, created.opened.handle)
}

async fn write<B: Backend>(fs: &Arc<Fs<B>>, handle: Handle, offset: u64, bytes: &[u8]) {
    let written = fs.write(handle, offset, Bytes::copy_from_slice(bytes), false).await.unwrap();
    assert_eq!(written.value as usize, bytes.len());
}

async fn read<B: Backend>(fs: &Arc<Fs<B>>, handle: Handle, offset: u64, len: u32) -> Vec<u8> {
    fs.read(handle, offset, len).await.unwrap().value.concat()
}

fn requests(cluster: &Cluster, code: u16) -> u64 {
    cluster.world.lock().master.requests.get(&code).copied().unwrap_or(0)
}

fn config() -> Config {
    Config::new(DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model"))
}

/// What the cluster itself holds, as if all clients died now.
fn durable(cluster: &Cluster, ino: Ino) -> Vec<u8> {
    let world = cluster.world.lock();
    let node = &world.master.nodes[&ino];
    let mut bytes = vec![0; node.attr.size as usize];
    for (index, id) in &node.chunks {
        let from = *index as usize * CHUNK as usize;
        let to = bytes.len().min(from + CHUNK as usize);
        if from < to {
            bytes[from..to].copy_from_slice(&world.chunks[id].bytes[..to - from]);
        }
    }
    bytes
}

#[tokio::test(start_paused = true)]
async fn a_small_file_costs_one_create_one_delta_one_commit() {
    let cluster = Cluster::new(1);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    assert!(fs.try_write(handle, 0, &Bytes::from_static(b"hello"), false).is_some(), "no message is needed");
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    assert_eq!(durable(&cluster, ino), b"hello");
    assert_eq!((requests(&cluster, Create::CODE), requests(&cluster, OpenChunks::CODE)), (1, 0));
    assert_eq!((fs.stats().deltas, fs.stats().commits, requests(&cluster, Commit::CODE)), (1, 1, 1));
    let other = cluster.mount(2);
    let found = other.lookup(ROOT, b"a").await.unwrap();
    let godrive_client::fs::Found::Entry(entry) = &found.value else { panic!("it exists") };
    assert_eq!(entry.attr.size, 5);
    assert_eq!(fs.stats().recalls, 0, "closing has made the lease a shared one");
}

#[tokio::test(start_paused = true)]
async fn an_exclusive_lease_that_nobody_writes_under_goes_back_by_itself() {
    let cluster = Cluster::new(1);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"hello").await;
    // Flushed and committed while it is open: the lease stays.
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.world.lock().leases.is_exclusive(1, ino));
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    let again = fs.open(ino, libc::O_WRONLY).await.unwrap().value.handle;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(cluster.world.lock().leases.is_exclusive(1, ino), "it may be written again");
    fs.flush(again).await.unwrap();
    fs.release(again);
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(!cluster.world.lock().leases.is_exclusive(1, ino));
    assert!(cluster.world.lock().leases.holds(1, ino));
    let again = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&fs, again, 5, b" again").await;
    fs.flush(again).await.unwrap();
    assert_eq!(durable(&cluster, ino), b"hello again");
    assert_eq!(fs.stats().recalls, 0);
}

#[tokio::test(start_paused = true)]
async fn under_a_lease_nothing_is_asked_twice() {
    let cluster = Cluster::new(2);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[7; 9000]).await;
    fs.flush(handle).await.unwrap();
    let other = cluster.mount(2);
    other.lookup(ROOT, b"a").await.unwrap();
    other.lookup(ROOT, b"missing").await.unwrap();
    let reader = other.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    assert_eq!(read(&other, reader, 0, 9000).await, vec![7; 9000]);
    let before = cluster.world.lock().master.requests.clone();
    for _ in 0..3 {
        assert!(other.try_lookup(ROOT, b"a").is_some());
        assert!(other.try_lookup(ROOT, b"missing").is_some());
        assert!(other.try_getattr(ino).is_some());
        assert!(other.try_getxattr(ino, b"security.capability").unwrap().is_err());
        assert_eq!(other.try_read(reader, 0, 9000).unwrap().unwrap().value.concat(), vec![7; 9000]);
        assert!(other.try_open(ino, libc::O_RDONLY).is_some());
    }
    assert_eq!(cluster.world.lock().master.requests, before);
}

/// A kernel that has not dropped the pages of one inode yet.
struct Slow(Ino);

impl Invalidate for Slow {
    fn invalidate(&self, _: Vec<Invalidation>) -> BoxFuture<'static, ()> {
        Box::pin(async {})
    }

    fn is_forgetting(&self, ino: Ino) -> bool {
        ino == self.0
    }
}

#[tokio::test(start_paused = true)]
async fn attributes_may_not_be_kept_where_pages_are_still_to_be_dropped() {
    let cluster = Cluster::new(1);
    let fs = cluster.mount(1);
    let ((slow, _), (other, _)) = (create(&fs, b"slow").await, create(&fs, b"other").await);
    fs.set_invalidate(Arc::new(Slow(slow)));
    assert!(fs.getattr(slow).await.unwrap().value.ttl.is_zero());
    assert!(!fs.getattr(other).await.unwrap().value.ttl.is_zero());
    for (name, kept) in [(&b"slow"[..], false), (b"other", true)] {
        let Found::Entry(entry) = fs.lookup(ROOT, name).await.unwrap().value else { panic!("it exists") };
        assert_eq!(!entry.attr_ttl.is_zero(), kept);
    }
}

#[tokio::test(start_paused = true)]
async fn everything_is_held_within_a_second_without_being_asked() {
    let cluster = Cluster::new(3);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 10, b"later").await;
    assert_eq!(durable(&cluster, ino), b"");
    tokio::time::sleep(Duration::from_millis(1100)).await;
    assert_eq!(durable(&cluster, ino), b"\0\0\0\0\0\0\0\0\0\0later");
    assert_eq!(fs.stats().dirty_bytes, 0);
}

#[tokio::test(start_paused = true)]
async fn an_overwrite_with_fsync_needs_no_master() {
    let cluster = Cluster::new(4);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[1; 4096]).await;
    fs.fsync(handle, false).await.unwrap();
    let before = requests(&cluster, Commit::CODE);
    assert_eq!(before, 1, "the length");
    for i in 0..5 {
        write(&fs, handle, 0, &[i; 4096]).await;
        fs.fsync(handle, false).await.unwrap();
        let world = cluster.world.lock();
        let chunk = world.chunks.values().next().unwrap();
        assert_eq!((chunk.stable, &chunk.bytes[..4096]), (chunk.held, &[i; 4096][..]));
    }
    assert_eq!(requests(&cluster, Commit::CODE), before);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(requests(&cluster, Commit::CODE), before + 1, "version and times follow");
    let world = cluster.world.lock();
    assert!(world.chunks.values().all(|chunk| chunk.committed == chunk.held));
    assert!(world.master.nodes[&ino].attr.mtime.0 > 0);
}

#[tokio::test(start_paused = true)]
async fn shortened_and_extended_again_there_are_zeros() {
    let cluster = Cluster::new(5);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    let size = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    write(&fs, handle, 0, &vec![9; 3 * CHUNK as usize]).await;
    fs.flush(handle).await.unwrap();
    fs.setattr(ino, None, size(100)).await.unwrap();
    fs.setattr(ino, None, size(200_000)).await.unwrap();
    write(&fs, handle, 150_000, b"x").await;
    fs.flush(handle).await.unwrap();
    let mut expected = vec![0; 200_000];
    expected[..100].fill(9);
    expected[150_000] = b'x';
    assert_eq!(read(&fs, handle, 0, 300_000).await, expected);
    assert_eq!(durable(&cluster, ino), expected);
    let other = cluster.mount(2);
    let reader = other.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    assert_eq!(read(&other, reader, 0, 300_000).await, expected);
    assert!(!cluster.world.lock().master.nodes[&ino].attr.trim_pending);
}

#[tokio::test(start_paused = true)]
async fn what_a_dead_writer_left_behind_the_end_is_trimmed_before_the_file_grows() {
    let cluster = Cluster::new(6);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[5; 1000]).await;
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    {
        // Bytes that were held and never committed.
        let mut world = cluster.world.lock();
        world.master.nodes.get_mut(&ino).unwrap().attr.trim_pending = true;
        let chunk = world.chunks.values_mut().next().unwrap();
        chunk.bytes[1000..2000].fill(0xee);
    }
    let other = cluster.mount(2);
    let writer = other.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&other, writer, 3000, b"end").await;
    other.flush(writer).await.unwrap();
    let mut expected = vec![0; 3003];
    expected[..1000].fill(5);
    expected[3000..].copy_from_slice(b"end");
    assert_eq!(read(&other, writer, 0, 4000).await, expected);
    assert_eq!(durable(&cluster, ino), expected);
}

#[tokio::test(start_paused = true)]
async fn a_rename_over_a_name_makes_the_source_stable_first() {
    let cluster = Cluster::new(7);
    let (fs, writer) = (cluster.mount(1), cluster.mount(2));
    create(&fs, b"name").await;
    let (ino, handle) = create(&writer, b"new").await;
    write(&writer, handle, 0, &vec![4; 100_000]).await;
    // The other mount still has it open and dirty.
    fs.rename(ROOT, b"new", ROOT, b"name", RenameMode::Replace).await.unwrap();
    assert_eq!(durable(&cluster, ino), vec![4; 100_000]);
    let world = cluster.world.lock();
    let node = &world.master.nodes[&ino];
    assert!(node.chunks.values().all(|id| world.chunks[id].stable == world.chunks[id].held));
}

#[tokio::test(start_paused = true)]
async fn an_unlinked_file_lives_until_its_last_handle_closes() {
    let cluster = Cluster::new(8);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"still here").await;
    other.unlink(ROOT, b"a").await.unwrap();
    assert_eq!(read(&fs, handle, 0, 100).await, b"still here");
    write(&fs, handle, 6, b"HERE").await;
    assert_eq!(read(&fs, handle, 0, 100).await, b"still HERE");
    fs.flush(handle).await.unwrap();
    assert!(cluster.world.lock().master.nodes.contains_key(&ino));
    fs.release(handle);
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(!cluster.world.lock().master.nodes.contains_key(&ino), "both mounts have let it go");
}

#[tokio::test(start_paused = true)]
async fn no_space_is_told_at_the_write_that_needs_the_chunk() {
    let cluster = Cluster::new(9);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    cluster.world.lock().free_chunks = Some(2);
    let chunk = vec![1; CHUNK as usize];
    for i in 0..3 {
        write(&fs, handle, i * u64::from(CHUNK), &chunk).await;
    }
    let error = fs.write(handle, 3 * u64::from(CHUNK), Bytes::from(chunk), false).await.unwrap_err();
    assert_eq!(error.errno, libc::ENOSPC);
    fs.flush(handle).await.unwrap();
    assert_eq!(durable(&cluster, ino), vec![1; 3 * CHUNK as usize], "nothing acknowledged is lost");
}

#[tokio::test(start_paused = true)]
async fn close_reports_what_could_not_be_held_and_a_later_one_succeeds() {
    let cluster = Cluster::new(10);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"precious").await;
    cluster.world.lock().slaves_down = true;
    assert_eq!(fs.flush(handle).await.unwrap_err().errno, libc::EIO);
    assert_eq!(read(&fs, handle, 0, 100).await, b"precious");
    cluster.world.lock().slaves_down = false;
    fs.flush(handle).await.unwrap();
    assert_eq!(durable(&cluster, ino), b"precious");
}

#[tokio::test(start_paused = true)]
async fn an_error_after_close_is_told_by_the_next_fsync() {
    let cluster = Cluster::new(11);
    let fs = cluster.mount_with(1, Config { close: CloseMode::Queued, ..config() });
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"doomed").await;
    cluster.world.lock().slaves_down = true;
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.upcalls(1).renewal().errors_after_close, 1);
    assert_eq!(fs.stats().dirty_bytes, 0, "it is not kept for ever");
    cluster.world.lock().slaves_down = false;
    let again = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    assert_eq!(fs.fsync(again, false).await.unwrap_err().errno, libc::EIO);
    fs.fsync(again, false).await.unwrap();
    assert_eq!(cluster.upcalls(1).renewal().errors_after_close, 0);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_the_master_knows_before_another_mount_gets_the_file() {
    let cluster = Cluster::new(12);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&one, b"a").await;
    write(&one, handle, 0, b"held").await;
    one.fsync(handle, false).await.unwrap();
    write(&one, handle, 0, b"lost").await;
    cluster.world.lock().slaves_down = true;
    let theirs = two.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    assert_eq!(read(&two, theirs, 0, 100).await, b"held");
    assert_eq!(cluster.world.lock().given_up, 1);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
    assert_eq!(one.fsync(handle, false).await.unwrap_err().errno, libc::EIO);
}

/// Ten bytes, and behind them what the slaves took of a write that fails in the next chunk.
async fn half_written(cluster: &Cluster, fs: &Arc<Fs<Client>>) -> (Ino, Handle) {
    let (ino, handle) = create(fs, b"a").await;
    write(fs, handle, 0, &[1; 10]).await;
    fs.fsync(handle, false).await.unwrap();
    write(fs, handle, 10, &[2; CHUNK as usize]).await;
    let mut world = cluster.world.lock();
    world.failing = Some(world.master.nodes[&ino].chunks[&1]);
    (ino, handle)
}

/// Longer than it ever was, and zeros where nobody has written.
async fn grows_with_zeros(cluster: &Cluster, fs: &Arc<Fs<Client>>, ino: Ino) {
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    cluster.world.lock().failing = None;
    let at = u64::from(CHUNK) - 100;
    write(fs, handle, at, b"end").await;
    let mut expected = vec![0; at as usize];
    expected[..10].fill(1);
    expected.extend_from_slice(b"end");
    assert_eq!(read(fs, handle, 0, 2 * CHUNK).await, expected);
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(durable(cluster, ino), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_another_mount_gave_up_behind_the_end_does_not_come_back() {
    let cluster = Cluster::new(13);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = half_written(&cluster, &one).await;
    grows_with_zeros(&cluster, &two, ino).await;
    assert_eq!(one.fsync(handle, false).await.unwrap_err().errno, libc::EIO);
}

#[tokio::test(start_paused = true)]
async fn what_was_given_up_behind_the_end_after_the_close_does_not_come_back() {
    let cluster = Cluster::new(13);
    let one = cluster.mount_with(1, Config { close: CloseMode::Queued, ..config() });
    let (ino, handle) = half_written(&cluster, &one).await;
    one.flush(handle).await.unwrap();
    one.release(handle);
    tokio::time::sleep(Duration::from_secs(10)).await;
    assert_eq!(cluster.upcalls(1).renewal().errors_after_close, 1);
    let again = one.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    assert_eq!(one.fsync(again, false).await.unwrap_err().errno, libc::EIO);
    grows_with_zeros(&cluster, &one, ino).await;
}

#[tokio::test(start_paused = true)]
async fn what_a_session_loss_takes_during_a_flush_is_told_by_that_flush() {
    for seed in 0..20 {
        let cluster = Cluster::new(seed);
        let fs = cluster.mount(1);
        let (_, handle) = create(&fs, b"a").await;
        write(&fs, handle, 0, b"doomed").await;
        let lose = async {
            tokio::time::sleep(Duration::from_micros(10)).await;
            cluster.upcalls(1).session_lost().await;
        };
        let (outcome, ()) = match seed % 2 {
            0 => tokio::join!(fs.fsync(handle, false), lose),
            _ => tokio::join!(fs.flush(handle), lose),
        };
        assert_eq!(outcome.unwrap_err().errno, libc::EIO);
    }
}

#[tokio::test(start_paused = true)]
async fn a_file_that_lost_data_does_not_replace_another() {
    let cluster = Cluster::new(13);
    let fs = cluster.mount_with(1, Config { close: CloseMode::Queued, ..config() });
    let (_, good) = create(&fs, b"target").await;
    write(&fs, good, 0, b"good").await;
    fs.fsync(good, false).await.unwrap();
    let (_, handle) = create(&fs, b"new").await;
    write(&fs, handle, 0, b"doomed").await;
    cluster.world.lock().slaves_down = true;
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    tokio::time::sleep(Duration::from_secs(10)).await;
    cluster.world.lock().slaves_down = false;
    let renamed = fs.rename(ROOT, b"new", ROOT, b"target", RenameMode::Replace).await;
    assert_eq!(renamed.unwrap_err().errno, libc::EIO);
    assert_eq!(read(&fs, good, 0, 100).await, b"good");
}

#[tokio::test(start_paused = true)]
async fn an_fsync_waits_for_a_change_that_came_while_another_fsync_was_under_way() {
    let mut overlapped = 0;
    for seed in 0..40 {
        let cluster = Cluster::new(seed);
        let fs = cluster.mount(1);
        let (_, handle) = create(&fs, b"a").await;
        write(&fs, handle, 0, b"bytes").await;
        let rename = async {
            tokio::time::sleep(Duration::from_micros(100 * seed)).await;
            let renamed = fs.rename(ROOT, b"a", ROOT, b"b", RenameMode::Replace).await;
            renamed.map(|()| tokio::time::Instant::now())
        };
        let sync = async {
            fs.fsync(handle, false).await.unwrap();
            (tokio::time::Instant::now(), requests(&cluster, Barrier::CODE))
        };
        let ((synced_at, barriers), renamed_at) = tokio::join!(sync, rename);
        // The commit takes a message each way: a rename answered this late came after the commit was sent.
        let late = renamed_at.unwrap() + Duration::from_micros(40) > synced_at;
        fs.fsync(handle, false).await.unwrap();
        if late {
            overlapped += 1;
            assert_eq!(requests(&cluster, Barrier::CODE), barriers + 1, "seed {seed}");
        }
    }
    assert!(overlapped > 0);
}

#[tokio::test(start_paused = true)]
async fn a_caller_that_goes_away_breaks_no_delta_off() {
    for micros in (0..6000).step_by(150) {
        let cluster = Cluster::new(14);
        let fs = cluster.mount(1);
        let (ino, handle) = create(&fs, b"a").await;
        write(&fs, handle, 0, b"precious and superfluous").await;
        let shorter = SetAttr { size: Some(8), ..SetAttr::default() };
        // Whether it was done in time does not matter.
        let _ = tokio::time::timeout(Duration::from_micros(micros), fs.setattr(ino, None, shorter)).await;
        fs.fsync(handle, false).await.unwrap();
        let kept = durable(&cluster, ino);
        assert!(kept.starts_with(b"precious"), "{micros}: {}", String::from_utf8_lossy(&kept));
    }
}

#[tokio::test(start_paused = true)]
async fn writers_wait_for_room_in_the_buffer() {
    let cluster = Cluster::new(12);
    let limit = 1 << 20;
    let fs = cluster.mount_with(1, Config { write_buffer_bytes: limit, ..config() });
    let (ino, handle) = create(&fs, b"a").await;
    let piece = vec![6; 128 << 10];
    for i in 0..64 {
        write(&fs, handle, i * (128 << 10), &piece).await;
        assert!(fs.stats().dirty_bytes <= limit + (160 << 10), "{}", fs.stats().dirty_bytes);
    }
    fs.flush(handle).await.unwrap();
    assert_eq!(durable(&cluster, ino), vec![6; 8 << 20]);
}

#[tokio::test(start_paused = true)]
async fn a_lost_session_poisons_what_was_dirty_and_nothing_else() {
    let cluster = Cluster::new(13);
    let fs = cluster.mount(1);
    let (_, dirty) = create(&fs, b"dirty").await;
    let (clean_ino, clean) = create(&fs, b"clean").await;
    write(&fs, clean, 0, b"safe").await;
    fs.flush(clean).await.unwrap();
    write(&fs, dirty, 0, b"lost").await;
    cluster.upcalls(1).session_lost().await;
    for result in [fs.flush(dirty).await, fs.fsync(dirty, true).await] {
        assert_eq!(result.unwrap_err().errno, libc::EIO);
    }
    assert_eq!(fs.read(dirty, 0, 10).await.unwrap_err().errno, libc::EIO);
    assert!(fs.try_getattr(clean_ino).is_none(), "nothing of the old session is served");
    assert_eq!(read(&fs, clean, 0, 10).await, b"safe");
    fs.release(dirty);
    assert_eq!(cluster.upcalls(1).renewal().errors_after_close, 1);
}

#[tokio::test(start_paused = true)]
async fn a_restarted_master_is_told_what_is_owned_and_what_is_open() {
    let cluster = Cluster::new(14);
    let fs = cluster.mount(1);
    let (owned, writer) = create(&fs, b"owned").await;
    let (shared, reader) = create(&fs, b"shared").await;
    write(&fs, reader, 0, b"x").await;
    fs.flush(reader).await.unwrap();
    write(&fs, writer, 0, b"dirty").await;
    let Declared { exclusive, open, .. } = cluster.upcalls(1).resume().await;
    assert_eq!(exclusive.iter().map(|(ino, _)| *ino).collect::<Vec<_>>(), [owned]);
    assert_eq!(open, [owned, shared]);
    assert!(fs.try_getattr(shared).is_none() && fs.try_lookup(ROOT, b"owned").is_none());
    fs.flush(writer).await.unwrap();
    assert_eq!(durable(&cluster, owned), b"dirty");
}

/// The master answers changes of names before they are on stable storage. Where its power took some, fsync says so, once.
#[tokio::test(start_paused = true)]
async fn what_the_master_lost_with_its_power_is_told_by_the_next_fsync() {
    let cluster = Cluster::new(14);
    let fs = cluster.mount(1);
    let kept = fs.make(ROOT, b"kept", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    let (file, handle) = create(&fs, b"file").await;
    write(&fs, handle, 0, b"x").await;
    fs.flush(handle).await.unwrap();
    let last = cluster.world.lock().master.nodes[&file].attr.change;
    let below = fs.make(kept, b"below", NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    let set = SetAttr { mode: Some(0o600), ..SetAttr::default() };
    let (root, kept, below) =
        (fs.opendir(ROOT).unwrap(), fs.opendir(kept).unwrap(), fs.opendir(below).unwrap());
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    for lost in [kept.handle, below.handle] {
        assert_eq!(fs.fsyncdir(lost).await.unwrap_err().errno, libc::EIO);
        fs.fsyncdir(lost).await.expect("it is told once");
    }
    fs.fsyncdir(root.handle).await.expect("its changes were kept");
    fs.fsync(handle, false).await.expect("so were the file's");
    // An owner's own changes are told to the master again.
    write(&fs, handle, 1, b"y").await;
    fs.setattr(file, None, set).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let commits = requests(&cluster, Commit::CODE);
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!(requests(&cluster, Commit::CODE), commits + 1);
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO);
    assert_eq!(read(&fs, handle, 0, 10).await, b"xy");
}

/// Its length may be lost: nobody may see the new name with less than was written.
#[tokio::test(start_paused = true)]
async fn a_rename_over_a_name_tells_of_what_a_power_loss_took_and_leaves_it_to_the_writer_too() {
    for open in [true, false] {
        let cluster = Cluster::new(14);
        let fs = cluster.mount(1);
        let (target, other) = create(&fs, b"to").await;
        fs.release(other);
        let (_, handle) = create(&fs, b"from").await;
        write(&fs, handle, 0, b"x").await;
        fs.flush(handle).await.unwrap();
        if !open {
            fs.release(handle);
        }
        let before = cluster.world.lock().master.nodes[&target].attr.change;
        cluster.upcalls(1).log_ended(LogIndex(before)).await;
        cluster.upcalls(1).resume().await;
        let rename = || fs.rename(ROOT, b"from", ROOT, b"to", RenameMode::Replace);
        assert_eq!(rename().await.unwrap_err().errno, libc::EIO);
        if open {
            assert_eq!(rename().await.unwrap_err().errno, libc::EIO, "its writer is not told yet");
            assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO);
        }
        rename().await.expect("who is to know of it was told");
    }
}

#[tokio::test(start_paused = true)]
async fn a_recall_of_what_is_not_held_is_answered_at_once() {
    let cluster = Cluster::new(15);
    let fs = cluster.mount(1);
    let recall = RecallRequest { ino: Ino(99), id: LeaseId(7), may_keep: None };
    let release = cluster.upcalls(1).recall(recall).await;
    assert_eq!((release.ino, release.id, release.keeps, release.open), (Ino(99), LeaseId(7), None, false));
    drop(fs);
}

#[tokio::test(start_paused = true)]
async fn holes_are_found_and_punched() {
    let cluster = Cluster::new(16);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    let chunk = u64::from(CHUNK);
    write(&fs, handle, 5 * chunk, &[3; 5000]).await;
    assert_eq!(fs.lseek(handle, 0, Whence::Data).await.unwrap(), 5 * chunk);
    assert_eq!(fs.lseek(handle, 5 * chunk, Whence::Hole).await.unwrap(), 5 * chunk + 5000);
    assert_eq!(fs.lseek(handle, 6 * chunk, Whence::Data).await.unwrap_err().errno, libc::ENXIO);
    fs.flush(handle).await.unwrap();
    let punch = libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE;
    fs.fallocate(handle, punch, 5 * chunk + 100, 4096, false).await.unwrap();
    let mut expected = vec![3; 5000];
    expected[100..4196].fill(0);
    assert_eq!(read(&fs, handle, 5 * chunk, 5000).await, expected);
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(durable(&cluster, ino)[5 * chunk as usize..], expected);
    fs.fallocate(handle, 0, 0, 10 * chunk, false).await.unwrap();
    assert_eq!(fs.getattr(ino).await.unwrap().attr.size, 10 * chunk);
}

#[tokio::test(start_paused = true)]
async fn local_attributes_are_seen_by_others_and_survive() {
    let cluster = Cluster::new(17);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"#!").await;
    fs.setattr(ino, None, SetAttr { mode: Some(0o4755), ..SetAttr::default() }).await.unwrap();
    fs.setattr(ino, None, SetAttr { uid: Some(5), ..SetAttr::default() }).await.unwrap();
    let attr = other.getattr(ino).await.unwrap().attr.clone();
    assert_eq!((attr.mode, attr.uid, attr.size), (0o755, 5, 2), "a change of owner takes set-uid away");
    fs.setattr(ino, None, SetAttr { mode: Some(0o6775), ..SetAttr::default() }).await.unwrap();
    fs.write(handle, 0, Bytes::from_static(b"x"), true).await.unwrap();
    assert_eq!(other.getattr(ino).await.unwrap().attr.mode, 0o775);
}

#[tokio::test(start_paused = true)]
async fn a_directory_is_listed_in_pages_and_from_memory() {
    let cluster = Cluster::new(18);
    let fs = cluster.mount(1);
    for i in 0..50 {
        fs.make(ROOT, format!("f{i:02}").as_bytes(), NewNode::File, 0o644, OWNER).await.unwrap();
    }
    let directory = fs.opendir(ROOT).unwrap().handle;
    for round in 0..2 {
        let before = cluster.world.lock().master.requests.values().sum::<u64>();
        let (mut offset, mut names) = (0, Vec::new());
        loop {
            let page = fs.readdir(directory, offset, 7, true).await.unwrap().value;
            let Some(last) = page.last() else { break };
            offset = last.offset;
            names.extend(page.into_iter().map(|entry| (entry.name, entry.entry.is_some())));
        }
        assert_eq!(names.len(), 52);
        assert_eq!(
            (&names[0].0[..], &names[1].0[..], &names[51].0[..]),
            (&b"."[..], &b".."[..], &b"f49"[..])
        );
        assert!(names[2..].iter().all(|(_, seen)| *seen));
        let asked = cluster.world.lock().master.requests.values().sum::<u64>() - before;
        assert_eq!(asked > 0, round == 0, "the second time from memory");
    }
    let lookups = requests(&cluster, Lookup::CODE);
    assert!(fs.try_lookup(ROOT, b"f07").is_some());
    assert_eq!(requests(&cluster, Lookup::CODE), lookups);
}

/// Also where another mount changes one of them in between.
#[tokio::test(start_paused = true)]
async fn layouts_of_files_that_were_listed_together_are_asked_for_together() {
    let cluster = Cluster::new(23);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let mut files = Vec::new();
    for i in 0..10u8 {
        let (ino, handle) = create(&fs, &[b'a' + i]).await;
        write(&fs, handle, 0, &[i; 5000]).await;
        fs.flush(handle).await.unwrap();
        fs.release(handle);
        files.push(ino);
    }
    let directory = other.opendir(ROOT).unwrap().handle;
    while other.readdir(directory, 0, 100, true).await.unwrap().value.len() < 12 {}
    for (i, ino) in files.iter().enumerate() {
        let handle = other.open(*ino, libc::O_RDONLY).await.unwrap().value.handle;
        let mut expected = vec![i as u8; 5000];
        if i == 7 {
            expected[4990..].fill(77);
        }
        assert_eq!(read(&other, handle, 0, 8192).await, expected, "file {i}");
        other.release(handle);
        if i == 4 {
            let handle = fs.open(files[7], libc::O_WRONLY).await.unwrap().value.handle;
            write(&fs, handle, 4990, &[77; 10]).await;
            fs.flush(handle).await.unwrap();
            fs.release(handle);
        }
    }
    assert_eq!((requests(&cluster, GetLayouts::CODE), requests(&cluster, GetLayout::CODE)), (1, 0));
}

/// Not before some of them were read, and not what is large.
#[tokio::test(start_paused = true)]
async fn small_files_that_were_listed_together_are_read_ahead() {
    let cluster = Cluster::new(24);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let mut files = Vec::new();
    for i in 0..20u8 {
        let (ino, handle) = create(&fs, &[b'a' + i]).await;
        let bytes = vec![i; if i == 9 { 70_000 } else { 5000 }];
        write(&fs, handle, 0, &bytes).await;
        fs.flush(handle).await.unwrap();
        fs.release(handle);
        files.push(ino);
    }
    let directory = other.opendir(ROOT).unwrap().handle;
    while other.readdir(directory, 0, 100, true).await.unwrap().value.len() < 22 {}
    let mut misses = Vec::new();
    for (i, ino) in files.iter().enumerate() {
        let handle = other.open(*ino, libc::O_RDONLY).await.unwrap().value.handle;
        let before = other.stats().read_misses;
        assert_eq!(read(&other, handle, 0, 4096).await, vec![i as u8; 4096], "file {i}");
        if other.stats().read_misses > before {
            misses.push(i);
        }
        other.release(handle);
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert_eq!(misses, [0, 1, 2, 9]);
}

#[tokio::test(start_paused = true)]
async fn what_is_forgotten_is_asked_for_again() {
    let cluster = Cluster::new(19);
    let kernel = Kernel::over(cluster.mount_with(1, Config { max_inodes: 20, max_names: 30, ..config() }));
    for i in 0..200 {
        kernel.fs.make(ROOT, format!("f{i}").as_bytes(), NewNode::File, 0o644, OWNER).await.unwrap();
    }
    for _ in 0..20 {
        // The background looks when it is woken.
        let (_, handle) = create(&kernel.fs, b"x").await;
        kernel.fs.release(handle);
        kernel.fs.unlink(ROOT, b"x").await.unwrap();
        tokio::time::sleep(Duration::from_millis(300)).await;
    }
    assert!(kernel.fs.stats().inodes <= 60, "{}", kernel.fs.stats().inodes);
    for i in [0, 77, 199] {
        assert!(kernel.lookup(ROOT, format!("f{i}").as_bytes()).await.unwrap().is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn stopping_flushes_and_says_what_it_could_not() {
    let cluster = Cluster::new(20);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"kept").await;
    fs.stop().await.unwrap();
    assert_eq!(durable(&cluster, ino), b"kept");
    let fs = cluster.mount(2);
    let (ino, handle) = create(&fs, b"b").await;
    write(&fs, handle, 0, b"not kept").await;
    cluster.world.lock().slaves_down = true;
    let unflushed = fs.stop().await.unwrap_err();
    assert_eq!(unflushed.0.iter().map(|(ino, _)| *ino).collect::<Vec<_>>(), [ino]);
}

#[tokio::test(start_paused = true)]
async fn what_one_mount_wrote_into_an_unlinked_file_another_reads_on() {
    let cluster = Cluster::new(21);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&fs, b"a").await;
    let reader = other.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    write(&fs, handle, 0, b"for both").await;
    fs.unlink(ROOT, b"a").await.unwrap();
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    assert_eq!(read(&other, reader, 0, 100).await, b"for both");
    // A file that no other mount has ever seen costs nothing when it goes.
    let (_, temporary) = create(&fs, b"t").await;
    fs.unlink(ROOT, b"t").await.unwrap();
    let deltas = fs.stats().deltas;
    write(&fs, temporary, 0, b"scratch").await;
    fs.flush(temporary).await.unwrap();
    fs.release(temporary);
    tokio::time::sleep(Duration::from_secs(2)).await;
    assert_eq!((fs.stats().deltas, fs.stats().dirty_bytes), (deltas, 0));
}

/// The chunk is new to the master: of one that it knows no version of, it thinks that there is nothing.
#[tokio::test(start_paused = true)]
async fn an_fsync_of_the_first_bytes_of_a_hole_waits_for_the_master() {
    let cluster = Cluster::new(14);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    let length = SetAttr { size: Some(4 * u64::from(CHUNK)), ..SetAttr::default() };
    fs.setattr(ino, None, length).await.unwrap();
    fs.fsync(handle, false).await.unwrap();
    let asked = || (requests(&cluster, Commit::CODE), requests(&cluster, Barrier::CODE));
    let (commits, barriers) = asked();
    write(&fs, handle, CHUNK.into(), b"first").await;
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(asked(), (commits + 1, barriers));
    write(&fs, handle, CHUNK.into(), b"second").await;
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(asked(), (commits + 1, barriers), "its version follows");
    // The master was told already, and may have it in its memory only.
    tokio::time::sleep(Duration::from_secs(2)).await;
    write(&fs, handle, 2 * u64::from(CHUNK), b"third").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let (commits, barriers) = asked();
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(asked(), (commits + 1, barriers), "of what is stable now");
}

#[tokio::test(start_paused = true)]
async fn of_a_chunk_of_which_the_master_lost_the_first_version_it_is_told_again() {
    let cluster = Cluster::new(14);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"a").await;
    fs.fsync(handle, false).await.unwrap();
    let last = cluster.world.lock().master.nodes[&ino].attr.change;
    write(&fs, handle, CHUNK.into(), b"b").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    {
        let world = &mut *cluster.world.lock();
        let chunk = world.chunks.get_mut(&world.master.nodes[&ino].chunks[&1]).unwrap();
        assert_eq!(std::mem::take(&mut chunk.committed), chunk.held);
    }
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let world = cluster.world.lock();
    assert!(world.chunks.values().all(|chunk| chunk.committed == chunk.held));
}

/// A commit is one message, and one record of the master's log.
#[tokio::test(start_paused = true)]
async fn of_many_chunks_that_the_master_lost_it_is_told_in_several_commits() {
    const CHUNKS: u64 = 9000;
    let cluster = Cluster::new(18);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    let last = cluster.world.lock().master.nodes[&ino].attr.change;
    for index in 0..CHUNKS {
        write(&fs, handle, index * u64::from(CHUNK), b"a").await;
    }
    tokio::time::sleep(Duration::from_secs(5)).await;
    {
        let world = &mut *cluster.world.lock();
        for chunk in world.chunks.values_mut() {
            assert_eq!(std::mem::take(&mut chunk.committed), chunk.held);
        }
        world.master.nodes.get_mut(&ino).unwrap().attr.size = 0;
        world.largest_commit = 0;
    }
    let commits = requests(&cluster, Commit::CODE);
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let world = cluster.world.lock();
    assert!(world.chunks.values().all(|chunk| chunk.committed == chunk.held));
    assert_eq!(world.master.nodes[&ino].attr.size, (CHUNKS - 1) * u64::from(CHUNK) + 1);
    assert!(world.largest_commit <= 4096, "{} chunks", world.largest_commit);
    drop(world);
    assert_eq!(requests(&cluster, Commit::CODE), commits + 3);
}

/// What a copy that failed may have left behind is no matter while somebody writes on.
#[tokio::test(start_paused = true)]
async fn an_idle_lease_is_not_given_up_under_a_writer() {
    let cluster = Cluster::new(15);
    let fs = cluster.mount_with(1, Config { min_slave_copy_bytes: 0, ..config() });
    let (_, from) = create(&fs, b"from").await;
    write(&fs, from, 0, &[3; 4 * CHUNK as usize]).await;
    fs.fsync(from, false).await.unwrap();
    let (ino, handle) = create(&fs, b"to").await;
    fs.release(handle);
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    // The model's slaves refuse one copy in five.
    for at in (0..4 * u64::from(CHUNK)).step_by(CHUNK as usize / 2) {
        let copied = fs.copy_file_range(from, at, handle, at, u64::from(CHUNK) / 2).await.unwrap();
        assert!(copied > 0);
    }
    for at in 0..8 {
        tokio::time::sleep(Duration::from_millis(500)).await;
        write(&fs, handle, 4 * u64::from(CHUNK) + at, b"x").await;
    }
    fs.fsync(handle, false).await.unwrap();
    fs.release(handle);
    assert_eq!(durable(&cluster, ino)[4 * CHUNK as usize..], *b"xxxxxxxx");
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert_eq!(cluster.world.lock().given_up, 1, "when nobody writes any longer");
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

/// What cut the rest of the last chunk off is known to nobody but this mount then.
#[tokio::test(start_paused = true)]
async fn a_trim_of_which_the_master_lost_the_commit_is_told_again() {
    let cluster = Cluster::new(16);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[1; 5000]).await;
    fs.fsync(handle, false).await.unwrap();
    let length = SetAttr { size: Some(1000), ..SetAttr::default() };
    fs.setattr(ino, None, length).await.unwrap();
    let last = cluster.world.lock().master.nodes[&ino].attr.change;
    write(&fs, handle, 2000, b"end").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    {
        let world = &mut *cluster.world.lock();
        let attr = &mut world.master.nodes.get_mut(&ino).unwrap().attr;
        assert_eq!((attr.size, attr.trim_pending), (2003, false));
        (attr.size, attr.trim_pending) = (1000, true);
    }
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let attr = cluster.world.lock().master.nodes[&ino].attr.clone();
    assert_eq!((attr.size, attr.trim_pending), (2003, false));
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "the loss is told");
    fs.fsync(handle, false).await.unwrap();
}

/// Its chunk was closed when the lease was lowered for a reader, and is not open when both lose their power.
#[tokio::test(start_paused = true)]
async fn a_hole_that_was_lost_with_a_chunk_that_is_closed_is_made_again() {
    let cluster = Cluster::new(28);
    let (fs, reader) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[1; 5000]).await;
    fs.fsync(handle, false).await.unwrap();
    let length = |size| SetAttr { size: Some(size), ..SetAttr::default() };
    fs.setattr(ino, None, length(1000)).await.unwrap();
    let last = cluster.world.lock().master.nodes[&ino].attr.change;
    fs.flush(handle).await.unwrap();
    let reading = reader.open(ino, libc::O_RDONLY).await.unwrap().value.handle;
    assert_eq!(runs(&read(&reader, reading, 0, 5000).await), [(1, 1000)]);
    fs.setattr(ino, None, length(1500)).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    {
        let world = &mut *cluster.world.lock();
        assert_eq!(world.master.nodes[&ino].attr.size, 1500);
        world.master.nodes.get_mut(&ino).unwrap().attr.size = 1000;
        world.lose_power();
        assert!(world.master.nodes[&ino].attr.trim_pending);
    }
    cluster.upcalls(1).log_ended(LogIndex(last)).await;
    cluster.upcalls(1).resume().await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let expected = [(1, 1000), (0, 500)];
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    for what in ["the master's loss is told", "and that of the chunk"] {
        assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "{what}");
    }
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(runs(&read(&fs, handle, 0, 5000).await), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn a_lease_that_was_taken_to_cut_a_file_by_its_path_goes_back_by_itself() {
    let cluster = Cluster::new(17);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[1; 5000]).await;
    fs.flush(handle).await.unwrap();
    fs.release(handle);
    tokio::time::sleep(Duration::from_secs(5)).await;
    let length = SetAttr { size: Some(1000), ..SetAttr::default() };
    fs.setattr(ino, None, length).await.unwrap();
    assert!(cluster.world.lock().leases.is_exclusive(1, ino));
    tokio::time::sleep(Duration::from_secs(6)).await;
    assert!(!cluster.world.lock().leases.is_exclusive(1, ino));
}

/// A flush that waited for a chunk which a truncation dropped meets the next one at the same place.
#[tokio::test(start_paused = true)]
async fn a_flush_that_waited_for_a_dropped_chunk_takes_nothing_of_the_next_one_from_an_fsync() {
    let cluster = Cluster::new(18);
    let (fs, other) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&other, b"a").await;
    write(&other, handle, 0, &[1; CHUNK as usize]).await;
    other.flush(handle).await.unwrap();
    other.release(handle);
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&fs, handle, 0, b"x").await;
    fs.fsync(handle, false).await.unwrap();
    {
        let world = &mut *cluster.world.lock();
        world.at_once = true;
        world.waits.insert(Truncate::CODE);
    }
    let deltas = fs.stats().deltas;
    let writing = tokio::spawn({
        let (cluster, fs) = (cluster.clone(), fs.clone());
        async move {
            // The stream has left the chunk: the background begins to flush it, behind the truncation and a read.
            write(&fs, handle, u64::from(CHUNK) - 10, &[2; 10]).await;
            let empty = SetAttr { size: Some(0), ..SetAttr::default() };
            let reading = fs.clone();
            let read = async {
                tokio::spawn(async move { reading.read(handle, 8192, 4096).await.map(drop) });
            };
            let (cut, ()) = tokio::join!(fs.setattr(ino, None, empty), read);
            cut.map(drop).unwrap();
            write(&fs, handle, 0, &[3; 100]).await;
            fs.fsync(handle, false).await.unwrap();
            durable(&cluster, ino)
        }
    });
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!(fs.stats().deltas, deltas, "all of them wait");
    {
        let world = &mut *cluster.world.lock();
        world.deltas_wait = true;
        world.waits.clear();
    }
    tokio::time::sleep(Duration::from_secs(1)).await;
    cluster.world.lock().deltas_wait = false;
    assert_eq!(writing.await.unwrap(), [3; 100]);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn who_writes_on_and_on_keeps_no_flush_from_its_end() {
    let cluster = Cluster::new(19);
    let fs = cluster.mount(1);
    let (ino, steady) = create(&fs, b"a").await;
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    let writing = tokio::spawn({
        let fs = fs.clone();
        async move {
            loop {
                write(&fs, steady, 0, &[1; 4096]).await;
                tokio::time::sleep(Duration::from_micros(10)).await;
            }
        }
    });
    write(&fs, handle, 20_000, b"end").await;
    let flushed = tokio::time::timeout(Duration::from_secs(60), fs.flush(handle)).await;
    flushed.expect("it ends").unwrap();
    assert_eq!(durable(&cluster, ino)[20_000..], *b"end");
    assert!(requests(&cluster, Commit::CODE) > 0);
    writing.abort();
}

#[tokio::test(start_paused = true)]
async fn an_fsync_waits_for_a_time_that_was_set() {
    let cluster = Cluster::new(20);
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, b"a").await;
    fs.fsync(handle, false).await.unwrap();
    let commits = requests(&cluster, Commit::CODE);
    let set = SetAttr { mtime: Some(SetTime::At(Timestamp(77))), ..SetAttr::default() };
    fs.setattr(ino, None, set).await.unwrap();
    fs.fsync(handle, true).await.unwrap();
    assert_eq!(requests(&cluster, Commit::CODE), commits, "fdatasync needs no time");
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(cluster.world.lock().master.nodes[&ino].attr.mtime, Timestamp(77));
    // The background may have told the master, which has it in its memory only.
    let set = SetAttr { mtime: Some(SetTime::At(Timestamp(78))), ..SetAttr::default() };
    fs.setattr(ino, None, set).await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;
    let barriers = requests(&cluster, Barrier::CODE);
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(requests(&cluster, Barrier::CODE), barriers + 1);
}

/// Each byte and how often it comes.
fn runs(bytes: &[u8]) -> Vec<(u8, usize)> {
    bytes.chunk_by(|a, b| a == b).map(|run| (run[0], run.len())).collect()
}

/// 1000 bytes that were cut off from 5000 and, where it is `told`, are followed by zeros and the end at 3000.
async fn cut_and_extended(cluster: &Arc<Cluster>, told: bool) -> (Arc<Fs<Client>>, Ino, Handle) {
    let fs = cluster.mount(1);
    let (ino, handle) = create(&fs, b"a").await;
    write(&fs, handle, 0, &[1; 5000]).await;
    fs.fsync(handle, false).await.unwrap();
    let length = SetAttr { size: Some(1000), ..SetAttr::default() };
    fs.setattr(ino, None, length).await.unwrap();
    write(&fs, handle, 3000, b"end").await;
    if !told {
        cluster.world.lock().waits.insert(Commit::CODE);
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    {
        let world = &mut *cluster.world.lock();
        assert_eq!(world.master.nodes[&ino].attr.size, if told { 3003 } else { 1000 });
        world.lose_power();
        assert!(world.master.nodes[&ino].attr.trim_pending);
        world.waits.clear();
    }
    (fs, ino, handle)
}

#[tokio::test(start_paused = true)]
async fn a_hole_that_was_lost_before_the_master_heard_of_it_is_made_again() {
    let cluster = Cluster::new(21);
    let (fs, ino, handle) = cut_and_extended(&cluster, false).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    let expected = [(1, 1000), (0, 2003)];
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "the end is lost");
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(runs(&read(&fs, handle, 0, 5000).await), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn what_a_loss_of_power_brought_back_behind_the_end_is_cut_off_before_the_file_grows() {
    for at in [10_000, u64::from(CHUNK) + 5] {
        let cluster = Cluster::new(22);
        let (fs, ino, handle) = cut_and_extended(&cluster, true).await;
        write(&fs, handle, at, &[5; 3]).await;
        // Whoever writes into the older chunk is told by the delta, others by the next fsync.
        let flushed = fs.flush(handle).await.map_err(|error| error.errno);
        let synced = fs.fsync(handle, false).await.map_err(|error| error.errno);
        assert!(flushed == Err(libc::EIO) || synced == Err(libc::EIO), "{flushed:?} {synced:?}");
        fs.fsync(handle, false).await.unwrap();
        // Up to the length it is older, as was told.
        let expected = [(1, 3003), (0, at as usize - 3003), (5, 3)];
        assert_eq!(runs(&durable(&cluster, ino)), expected);
        assert_eq!(runs(&read(&fs, handle, 0, 2 * CHUNK).await), expected);
        let world = cluster.world.lock();
        assert!(!world.master.nodes[&ino].attr.trim_pending);
        assert!(world.chunks.values().all(|chunk| chunk.stable == chunk.held));
        assert_eq!(world.violations, [""; 0]);
    }
}

#[tokio::test(start_paused = true)]
async fn who_grows_a_file_of_whose_loss_of_power_it_knows_nothing_cuts_it_off_first() {
    let cluster = Cluster::new(23);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&one, b"a").await;
    write(&one, handle, 0, &[1; 5000]).await;
    one.fsync(handle, false).await.unwrap();
    let length = SetAttr { size: Some(1000), ..SetAttr::default() };
    one.setattr(ino, None, length).await.unwrap();
    one.flush(handle).await.unwrap();
    one.release(handle);
    let handle = two.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    cluster.world.lock().lose_power();
    let at = u64::from(CHUNK) + 5;
    write(&two, handle, at, &[5; 3]).await;
    two.flush(handle).await.unwrap();
    let expected = [(1, 1000), (0, at as usize - 1000), (5, 3)];
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(two.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "a chunk of it is older");
    two.fsync(handle, false).await.unwrap();
    assert_eq!(runs(&read(&two, handle, 0, 2 * CHUNK).await), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

/// The election keeps all of it.
#[tokio::test(start_paused = true)]
async fn what_was_written_behind_the_end_that_the_master_knows_outlives_a_restart_of_all_slaves() {
    for copied in [false, true] {
        let cluster = Cluster::new(24);
        let fs = cluster.mount_with(1, Config { min_slave_copy_bytes: 0, ..config() });
        let (_, from) = create(&fs, b"from").await;
        write(&fs, from, 0, &[7; 5000]).await;
        fs.fsync(from, false).await.unwrap();
        let (ino, handle) = create(&fs, b"a").await;
        write(&fs, handle, 0, &[1; 100]).await;
        fs.fsync(handle, false).await.unwrap();
        write(&fs, handle, 100, &[2; 30_000]).await;
        let deltas = fs.stats().deltas;
        let at = u64::from(CHUNK) - 5000;
        if copied {
            for at in [at - 5000, at] {
                assert_eq!(fs.copy_file_range(from, 0, handle, at, 5000).await.unwrap(), 5000);
                cluster.world.lock().restart();
            }
        } else {
            cluster.world.lock().waits.insert(Commit::CODE);
            tokio::time::sleep(Duration::from_secs(2)).await;
            assert_eq!(fs.stats().deltas, deltas + 1);
            cluster.world.lock().restart();
            // The stream has left the chunk: its delta waits for no commit.
            write(&fs, handle, at, &[7; 5000]).await;
            tokio::time::sleep(Duration::from_millis(100)).await;
            assert_eq!(fs.stats().deltas, deltas + 2);
        }
        assert_eq!(cluster.world.lock().master.nodes[&ino].attr.size, 100);
        cluster.world.lock().waits.clear();
        fs.fsync(handle, false).await.expect("nothing was lost");
        let sevens = if copied { 10_000 } else { 5000 };
        let expected = [(1, 100), (2, 30_000), (0, CHUNK as usize - 30_100 - sevens), (7, sevens)];
        assert_eq!(runs(&durable(&cluster, ino)), expected);
        assert_eq!(runs(&read(&fs, handle, 0, CHUNK).await), expected);
        assert_eq!(cluster.world.lock().violations, [""; 0]);
    }
}

/// The flush before a trim may end its reason.
#[tokio::test(start_paused = true)]
async fn nobody_makes_a_file_longer_while_it_is_trimmed() {
    let cluster = Cluster::new(25);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&one, b"a").await;
    write(&one, handle, 0, &[1; 1000]).await;
    one.flush(handle).await.unwrap();
    one.release(handle);
    let trim_pending = |pending| {
        let world = &mut *cluster.world.lock();
        world.master.nodes.get_mut(&ino).unwrap().attr.trim_pending = pending;
    };
    trim_pending(true);
    let handle = two.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&two, handle, 0, &[2; 10]).await;
    trim_pending(false);
    cluster.world.lock().waits.insert(Truncate::CODE);
    let grow = |at: u64| {
        let fs = two.clone();
        tokio::spawn(async move { write(&fs, handle, at, &[3; 1000]).await })
    };
    let first = grow(2000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    assert_eq!(requests(&cluster, Commit::CODE), 2, "what was dirty is flushed");
    let second = grow(3000);
    tokio::time::sleep(Duration::from_millis(100)).await;
    cluster.world.lock().waits.clear();
    first.await.unwrap();
    second.await.unwrap();
    let expected = [(2, 10), (1, 990), (0, 1000), (3, 2000)];
    assert_eq!(runs(&read(&two, handle, 0, CHUNK).await), expected);
    two.fsync(handle, false).await.unwrap();
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

/// The request may be late, and come when another mount has written and this one has the lease again.
#[tokio::test(start_paused = true)]
async fn who_trims_a_file_keeps_its_lease_until_that_is_done() {
    let cluster = Cluster::new(29);
    let (one, two) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&one, b"a").await;
    write(&one, handle, 0, &[1; 1000]).await;
    one.flush(handle).await.unwrap();
    one.release(handle);
    cluster.world.lock().master.nodes.get_mut(&ino).unwrap().attr.trim_pending = true;
    let handle = two.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&two, handle, 0, &[2; 10]).await;
    two.flush(handle).await.unwrap();
    cluster.world.lock().waits.insert(Truncate::CODE);
    let growing = {
        let two = two.clone();
        tokio::spawn(async move { write(&two, handle, 2000, &[3; 1000]).await })
    };
    tokio::time::sleep(Duration::from_millis(100)).await;
    let appended = {
        let one = one.clone();
        tokio::spawn(async move {
            let handle = one.open(ino, libc::O_RDWR).await.unwrap().value.handle;
            write(&one, handle, 5000, &[4; 10]).await;
            one.fsync(handle, false).await.unwrap();
        })
    };
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert!(cluster.world.lock().leases.is_exclusive(2, ino));
    assert!(!appended.is_finished());
    cluster.world.lock().waits.clear();
    growing.await.unwrap();
    appended.await.unwrap();
    two.fsync(handle, false).await.unwrap();
    let expected = [(2, 10), (1, 990), (0, 1000), (3, 1000), (0, 2000), (4, 10)];
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}

/// Of the chunk behind it the master knew before it knew the length.
#[tokio::test(start_paused = true)]
async fn a_file_that_ends_with_a_chunk_grows_after_a_loss_of_power_behind_its_end() {
    for chunks in [0, 1] {
        let cluster = Cluster::new(26);
        let fs = cluster.mount(1);
        let (ino, handle) = create(&fs, b"a").await;
        let size = chunks * CHUNK as usize;
        write(&fs, handle, 0, &[1; CHUNK as usize][..size.max(1)]).await;
        fs.fsync(handle, false).await.unwrap();
        let length = SetAttr { size: Some(size as u64), ..SetAttr::default() };
        fs.setattr(ino, None, length).await.unwrap();
        cluster.world.lock().waits.insert(Commit::CODE);
        write(&fs, handle, size as u64, &[2; 100]).await;
        tokio::time::sleep(Duration::from_secs(2)).await;
        {
            let world = &mut *cluster.world.lock();
            assert_eq!(world.master.nodes[&ino].attr.size, size as u64);
            world.lose_power();
            assert!(world.master.nodes[&ino].attr.trim_pending);
            world.waits.clear();
        }
        tokio::time::sleep(Duration::from_secs(2)).await;
        write(&fs, handle, size as u64 + 5000, b"end").await;
        assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "the loss is told");
        fs.fsync(handle, false).await.expect("once");
        let read = read(&fs, handle, 0, 2 * CHUNK).await;
        assert_eq!(read.len(), size + 5003);
        assert_eq!((runs(&read[..size]), &read[size + 5000..]), (runs(&vec![1; size]), &b"end"[..]));
        assert_eq!(runs(&durable(&cluster, ino)), runs(&read));
        assert!(!cluster.world.lock().master.nodes[&ino].attr.trim_pending);
        assert_eq!(cluster.world.lock().violations, [""; 0]);
    }
}

/// Also where a reader hears of the loss of power, and the master does not.
#[tokio::test(start_paused = true)]
async fn what_is_cut_off_again_during_a_flush_is_held_before_the_master_knows_a_new_length() {
    let cluster = Cluster::new(27);
    let (other, fs) = (cluster.mount(1), cluster.mount(2));
    let (ino, handle) = create(&other, b"a").await;
    write(&other, handle, 0, &[1; 5000]).await;
    other.fsync(handle, false).await.unwrap();
    let length = SetAttr { size: Some(1000), ..SetAttr::default() };
    other.setattr(ino, None, length).await.unwrap();
    other.flush(handle).await.unwrap();
    other.release(handle);
    // In this mount's cache is no more than it writes.
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    write(&fs, handle, 3000, b"end").await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    {
        let world = &mut *cluster.world.lock();
        world.lose_power();
        world.master.nodes.get_mut(&ino).unwrap().attr.trim_pending = false;
        world.deltas_wait = true;
    }
    let at = u64::from(CHUNK) + 5;
    write(&fs, handle, at, &[5; 3]).await;
    let flush = tokio::spawn({
        let fs = fs.clone();
        async move { fs.flush(handle).await }
    });
    tokio::time::sleep(Duration::from_millis(10)).await;
    read(&fs, handle, 8192, 4096).await;
    cluster.world.lock().deltas_wait = false;
    flush.await.unwrap().unwrap();
    let expected = [(1, 3003), (0, at as usize - 3003), (5, 3)];
    assert_eq!(runs(&durable(&cluster, ino)), expected);
    assert_eq!(fs.fsync(handle, false).await.unwrap_err().errno, libc::EIO, "a chunk of it is older");
    fs.fsync(handle, false).await.unwrap();
    assert_eq!(runs(&read(&fs, handle, 0, 2 * CHUNK).await), expected);
    assert_eq!(cluster.world.lock().violations, [""; 0]);
}
