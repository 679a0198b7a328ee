//! Names removed under exclusive leases, ahead of the master.

use crate::cluster::{Client, Cluster};
use crate::kernel::Kernel;
use godrive_client::driver::{Config as DriverConfig, Declared};
use godrive_client::fs::config::Config;
use godrive_client::fs::{Caller, Found, Fs};
use godrive_proto::lease::{Own, Releases};
use godrive_proto::meta::{Attr, Batch, NewNode, RenameMode, Unlink};
use godrive_proto::{Ino, Operation, ROOT};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

const OWNER: Caller = Caller { uid: 0, gid: 0, umask: 0 };

fn requests(cluster: &Cluster, code: u16) -> u64 {
    cluster.world.lock().master.requests.get(&code).copied().unwrap_or(0)
}

/// A mount that removes under leases from the first name on.
fn eager(cluster: &Arc<Cluster>, id: u64) -> Arc<Fs<Client>> {
    let driver = DriverConfig::new("127.0.0.1:1".parse().unwrap(), "model");
    cluster.mount_with(id, Config { removals_in_a_row: 0, ..Config::new(driver) })
}

fn numbered(number: usize) -> Vec<u8> {
    format!("{number:03}").into_bytes()
}

async fn directory(fs: &Arc<Fs<Client>>, parent: Ino, name: &[u8], files: usize) -> Ino {
    let ino = fs.make(parent, name, NewNode::Directory, 0o755, OWNER).await.unwrap().attr.ino;
    for number in 0..files {
        fs.make(ino, &numbered(number), NewNode::File, 0o644, OWNER).await.unwrap();
    }
    ino
}

async fn unlink(fs: &Arc<Fs<Client>>, parent: Ino, name: &[u8]) {
    match fs.try_unlink(parent, name) {
        Some(removed) => removed.unwrap(),
        None => fs.unlink(parent, name).await.unwrap(),
    }
}

async fn exists(fs: &Arc<Fs<Client>>, parent: Ino, name: &[u8]) -> bool {
    matches!(fs.lookup(parent, name).await.unwrap().value, Found::Entry(_))
}

async fn attr(fs: &Arc<Fs<Client>>, ino: Ino) -> Attr {
    fs.getattr(ino).await.unwrap().value.attr.clone()
}

/// What the master has in the directory.
fn at_master(cluster: &Cluster, directory: Ino) -> usize {
    cluster.world.lock().master.nodes.get(&directory).map_or(0, |node| node.entries.len())
}

fn sound(cluster: &Cluster) {
    assert_eq!(cluster.world.lock().violations, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn many_removals_cost_few_messages() {
    let cluster = Cluster::new(1);
    let fs = cluster.mount(1);
    let top = directory(&fs, ROOT, b"top", 0).await;
    let inner = directory(&fs, top, b"inner", 200).await;
    for number in 0..200 {
        unlink(&fs, inner, &numbered(number)).await;
        assert!(!exists(&fs, inner, &numbered(number)).await);
    }
    assert!(fs.try_rmdir(top, b"inner").is_none(), "the outer directory is not owned yet");
    fs.rmdir(top, b"inner").await.unwrap();
    let told = (requests(&cluster, Unlink::CODE), requests(&cluster, Own::CODE));
    assert_eq!(told, (4, 2), "four in a row, then one request for each directory");
    let handle = fs.opendir(top).unwrap().handle;
    fs.fsyncdir(handle).await.unwrap();
    assert_eq!((at_master(&cluster, top), at_master(&cluster, inner)), (0, 0));
    assert!(requests(&cluster, Batch::CODE) <= 4, "{}", requests(&cluster, Batch::CODE));
    fs.releasedir(handle);
    tokio::time::sleep(Duration::from_secs(3)).await;
    let left: Vec<_> = cluster.world.lock().master.nodes.keys().copied().collect();
    assert_eq!(left, [ROOT, top], "every inode was let go");
    fs.stop().await.unwrap();
    sound(&cluster);
}

#[tokio::test(start_paused = true)]
async fn a_few_removals_are_the_masters() {
    let cluster = Cluster::new(2);
    let fs = cluster.mount(1);
    let within = directory(&fs, ROOT, b"d", 12).await;
    for number in 0..12 {
        unlink(&fs, within, &numbered(number)).await;
        if number % 3 == 2 {
            fs.make(within, b"between", NewNode::File, 0o644, OWNER).await.unwrap();
            unlink(&fs, within, b"between").await;
        }
    }
    assert_eq!((requests(&cluster, Unlink::CODE), requests(&cluster, Own::CODE)), (16, 0));
}

#[tokio::test(start_paused = true)]
async fn attributes_are_those_that_the_master_will_tell() {
    let cluster = Cluster::new(3);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 3).await;
    fs.make(within, b"sub", NewNode::Directory, 0o755, OWNER).await.unwrap();
    let linked = fs.make(within, b"one", NewNode::File, 0o644, OWNER).await.unwrap().attr.ino;
    fs.link(linked, within, b"two").await.unwrap();
    unlink(&fs, within, b"000").await;
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert_eq!(fs.try_unlink(within, b"one").map(|removed| removed.is_ok()), Some(true));
    assert_eq!(fs.try_rmdir(within, b"sub").map(|removed| removed.is_ok()), Some(true));
    let ahead = (attr(&fs, within).await, attr(&fs, linked).await);
    assert_eq!((ahead.0.size, ahead.0.nlink, ahead.1.nlink), (3, 2, 1));
    assert_eq!(requests(&cluster, Batch::CODE), 1, "the master knows of the first only");
    let handle = fs.opendir(within).unwrap().handle;
    fs.fsyncdir(handle).await.unwrap();
    let same = |a: &Attr, b: &Attr| Attr { change: 0, ..a.clone() } == Attr { change: 0, ..b.clone() };
    let followed = (attr(&fs, within).await, attr(&fs, linked).await);
    assert!(same(&ahead.0, &followed.0), "{ahead:?} {followed:?}");
    assert!(same(&ahead.1, &followed.1), "{ahead:?} {followed:?}");
    let other = cluster.mount(2);
    assert!(same(&followed.0, &attr(&other, within).await));
    assert!(same(&followed.1, &attr(&other, linked).await));
    sound(&cluster);
}

#[tokio::test(start_paused = true)]
async fn other_changes_come_behind_them() {
    let cluster = Cluster::new(4);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 4).await;
    let moved = fs.make(ROOT, b"moved", NewNode::File, 0o644, OWNER).await.unwrap().attr.ino;
    for number in 0..4 {
        unlink(&fs, within, &numbered(number)).await;
    }
    fs.rename(ROOT, b"moved", within, &numbered(3), RenameMode::NoReplace).await.unwrap();
    assert_eq!(at_master(&cluster, within), 1, "the name was free when the rename came");
    let made = fs.create(within, &numbered(0), 0o644, libc::O_RDWR | libc::O_EXCL, OWNER).await.unwrap();
    fs.release(made.opened.handle);
    drop(made);
    unlink(&fs, within, &numbered(3)).await;
    unlink(&fs, within, &numbered(0)).await;
    fs.rmdir(ROOT, b"d").await.unwrap();
    fs.stop().await.unwrap();
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(at_master(&cluster, ROOT), 0);
    assert!(!cluster.world.lock().master.nodes[&ROOT].entries.values().any(|(_, ino)| *ino == moved));
    sound(&cluster);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_removed_here_is_refused_as_ever() {
    let cluster = Cluster::new(5);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 3).await;
    let full = directory(&fs, within, b"full", 1).await;
    unlink(&fs, within, b"000").await;
    assert_eq!(fs.rmdir(within, b"full").await.unwrap_err().errno, libc::ENOTEMPTY);
    assert_eq!(fs.rmdir(within, b"001").await.unwrap_err().errno, libc::ENOTDIR);
    assert_eq!(fs.unlink(within, b"full").await.unwrap_err().errno, libc::EISDIR);
    assert_eq!(fs.unlink(within, b"000").await.unwrap_err().errno, libc::ENOENT);
    assert_eq!(fs.try_unlink(within, b".").unwrap().unwrap_err().errno, libc::EINVAL);
    unlink(&fs, full, b"000").await;
    fs.rmdir(within, b"full").await.unwrap();
    assert_eq!(attr(&fs, within).await.size, 2);
    // What is open lives on without its name.
    let ino = fs.lookup(within, b"001").await.unwrap();
    let Found::Entry(entry) = &ino.value else { panic!("it exists") };
    let ino = entry.attr.ino;
    let handle = fs.open(ino, libc::O_RDWR).await.unwrap().value.handle;
    fs.write(handle, 0, vec![7; 100].into(), false).await.unwrap();
    unlink(&fs, within, b"001").await;
    assert_eq!(fs.read(handle, 0, 100).await.unwrap().value.concat(), [7; 100]);
    fs.release(handle);
    sound(&cluster);
}

#[tokio::test(start_paused = true)]
async fn an_unmount_waits_for_them() {
    let cluster = Cluster::new(6);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 100).await;
    for number in 0..100 {
        unlink(&fs, within, &numbered(number)).await;
    }
    fs.stop().await.unwrap();
    assert_eq!(at_master(&cluster, within), 0);
    sound(&cluster);
}

#[tokio::test(start_paused = true)]
async fn leases_of_what_is_not_removed_go_back_by_themselves() {
    let cluster = Cluster::new(7);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 40).await;
    unlink(&fs, within, b"000").await;
    tokio::time::sleep(Duration::from_secs(5)).await;
    assert!(requests(&cluster, Releases::CODE) > 0);
    let other = cluster.mount(2);
    for number in 1..40 {
        assert!(exists(&other, within, &numbered(number)).await);
    }
    assert_eq!(cluster.world.lock().leases.recalls, 0, "nothing had to be asked back");
}

/// One mount removes the files of a directory, the others look for them through their kernels: what was removed is gone
/// for all of them.
#[tokio::test(start_paused = true)]
async fn what_was_removed_here_is_gone_everywhere() {
    const FILES: usize = 120;
    let mut ahead = 0;
    for seed in 0..12 {
        let cluster = Cluster::new(seed);
        let kernels: Vec<Kernel> = (0..3).map(|id| Kernel::over(eager(&cluster, id))).collect();
        let within = directory(&kernels[0].fs, ROOT, b"d", FILES).await;
        // A file goes when `begun` passes it, and is gone when `ended` does.
        let (begun, ended) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let mut tasks = Vec::new();
        {
            let (kernel, begun, ended) = (kernels[0].clone(), begun.clone(), ended.clone());
            tasks.push(tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed);
                for number in 0..FILES {
                    let lock = kernel.directory(within);
                    {
                        let _alone = lock.write().await;
                        begun.store(number + 1, Ordering::SeqCst);
                        unlink(&kernel.fs, within, &numbered(number)).await;
                        kernel.forget_name(within, &numbered(number));
                        kernel.forget_attr(within);
                        ended.store(number + 1, Ordering::SeqCst);
                    }
                    if random.random_bool(0.1) {
                        tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
                    }
                }
            }));
        }
        for (id, kernel) in kernels.iter().cloned().enumerate() {
            let (begun, ended) = (begun.clone(), ended.clone());
            tasks.push(tokio::spawn(async move {
                let mut random = SmallRng::seed_from_u64(seed * 10 + id as u64);
                while ended.load(Ordering::SeqCst) < FILES {
                    let number = random.random_range(0..FILES);
                    let before = ended.load(Ordering::SeqCst);
                    let seen = kernel.lookup(within, &numbered(number)).await.unwrap().is_some();
                    let after = begun.load(Ordering::SeqCst);
                    assert!(seen || number < after, "mount {id} misses {number}, seed {seed}");
                    assert!(!seen || number >= before, "mount {id} still sees {number}, seed {seed}");
                    let most = FILES - ended.load(Ordering::SeqCst);
                    let size = kernel.stat(within).await.unwrap().size as usize;
                    let least = FILES - begun.load(Ordering::SeqCst);
                    assert!((least..=most).contains(&size), "mount {id} counts {size}, seed {seed}");
                    tokio::time::sleep(Duration::from_millis(random.random_range(0..300))).await;
                }
            }));
        }
        for task in tasks {
            task.await.unwrap();
        }
        ahead += requests(&cluster, Batch::CODE);
        sound(&cluster);
        assert_eq!(kernels[1].stat(within).await.unwrap().size, 0);
    }
    assert!(ahead > 20, "{ahead} batches");
}

/// A master that lost its power may have lost what it had answered last: a mount that goes on removing names learns it.
#[tokio::test(start_paused = true)]
async fn a_name_that_a_restarted_master_still_has_is_seen_again() {
    let cluster = Cluster::new(8);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 3).await;
    let idle = directory(&fs, ROOT, b"idle", 2).await;
    let linked = fs.make(within, b"one", NewNode::File, 0o644, OWNER).await.unwrap().attr.ino;
    fs.link(linked, within, b"two").await.unwrap();
    unlink(&fs, idle, b"000").await;
    unlink(&fs, within, b"000").await;
    unlink(&fs, within, b"one").await;
    let handle = fs.opendir(within).unwrap().handle;
    fs.fsyncdir(handle).await.unwrap();
    assert!(fs.try_unlink(within, b"001").is_some());
    cluster.world.lock().master.remember_name(within, b"one", linked);
    let Declared { exclusive, .. } = cluster.upcalls(1).resume().await;
    let exclusive: Vec<_> = exclusive.into_iter().map(|(ino, _)| ino).collect();
    assert!(exclusive.contains(&within), "its removals are not followed yet");
    assert!(!exclusive.contains(&idle) && !exclusive.contains(&linked), "{exclusive:?}");
    fs.fsyncdir(handle).await.unwrap();
    assert!(exists(&fs, within, b"one").await && !exists(&fs, within, b"001").await);
    assert_eq!((attr(&fs, within).await.size, attr(&fs, linked).await.nlink), (3, 2));
    unlink(&fs, within, b"one").await;
    fs.fsyncdir(handle).await.unwrap();
    assert_eq!(at_master(&cluster, within), 2);
    sound(&cluster);
}

/// What the leases of a session allowed is not done in the next: meanwhile others may have written to the file.
#[tokio::test(start_paused = true)]
async fn an_ended_session_takes_its_removals_along() {
    let mut executed = 0;
    for seed in 0..40 {
        let cluster = Cluster::new(seed);
        let fs = eager(&cluster, 1);
        let within = directory(&fs, ROOT, b"d", 4).await;
        let handle = fs.opendir(within).unwrap().handle;
        unlink(&fs, within, b"000").await;
        fs.fsyncdir(handle).await.unwrap();
        assert!(fs.try_unlink(within, b"001").is_some());
        // Before the batch leaves, on its way, and when it was executed.
        tokio::time::sleep(Duration::from_micros(100 * seed)).await;
        assert!(fs.try_unlink(within, b"002").is_some());
        let before = (at_master(&cluster, within), requests(&cluster, Batch::CODE));
        cluster.upcalls(1).session_lost().await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!((at_master(&cluster, within), requests(&cluster, Batch::CODE)), before, "seed {seed}");
        executed += 3 - before.0;
        assert_eq!(fs.fsyncdir(handle).await.unwrap_err().errno, libc::EIO);
        fs.fsyncdir(handle).await.unwrap();
        assert_eq!(exists(&fs, within, b"001").await, before.0 == 3, "seed {seed}");
        assert!(exists(&fs, within, b"002").await);
        for name in [b"002", b"003"] {
            unlink(&fs, within, name).await;
        }
        fs.fsyncdir(handle).await.unwrap();
        assert_eq!(at_master(&cluster, within), before.0 - 2);
        sound(&cluster);
    }
    assert!((1..40).contains(&executed), "{executed}");
}

/// A name that is open or being written here cannot be removed here: nobody is asked for leases that would not help.
#[tokio::test(start_paused = true)]
async fn nothing_is_owned_for_what_is_in_use() {
    let cluster = Cluster::new(9);
    let fs = eager(&cluster, 1);
    let within = directory(&fs, ROOT, b"d", 0).await;
    let made = fs.create(within, b"open", 0o644, libc::O_RDONLY, OWNER).await.unwrap();
    unlink(&fs, within, b"open").await;
    assert_eq!((requests(&cluster, Own::CODE), requests(&cluster, Unlink::CODE)), (0, 1));
    fs.release(made.opened.handle);
    sound(&cluster);
}
