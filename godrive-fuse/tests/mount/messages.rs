//! What is warm costs no message: the mount's own account of its requests does not move.

use crate::cluster::Cluster;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

/// Requests to the master (renewals aside) and to slaves since the mount began.
fn requests(cluster: &Cluster) -> (u64, u64) {
    let [master, slaves] = cluster.account(1, ["master_requests", "slave_requests"]);
    (master, slaves)
}

fn program(folder: &Path, words: &[&str]) {
    let mut command = Command::new(words[0]);
    command.args(&words[1..]).current_dir(folder).env("GIT_OPTIONAL_LOCKS", "0");
    let output = command.output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
    assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn what_is_warm_asks_nobody() {
    let cluster = Cluster::start(1);
    let tree = cluster.mount(1).join("tree");
    for folder in 0..10 {
        let folder = tree.join(format!("folder-{folder}"));
        fs::create_dir_all(&folder).unwrap();
        for file in 0..20 {
            fs::write(folder.join(format!("file-{file}")), vec![file as u8; 3000]).unwrap();
        }
    }
    program(&tree, &["git", "init", "-q"]);
    program(&tree, &["git", "add", "-A"]);
    program(&tree, &["git", "-c", "user.name=t", "-c", "user.email=t@localhost", "commit", "-qm", "tree"]);
    // What follows the writing by itself: commits, leases that go back when they were not used for a while.
    let mut last = requests(&cluster);
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        std::thread::sleep(Duration::from_secs(3));
        let now = requests(&cluster);
        if std::mem::replace(&mut last, now) == now {
            break;
        }
        assert!(Instant::now() < deadline, "the mount never comes to rest: {last:?}");
    }
    let warm: &[&[&str]] = &[
        &["stat", "folder-3/file-7"],
        &["stat", "--format=%s", "folder-3/missing", "-L", "folder-3/file-7"],
        &["ls", "-l", "folder-5"],
        &["ls", "-lR"],
        &["find", ".", "-name", "file-1*"],
        &["git", "status", "--porcelain"],
        &["cat", "folder-1/file-1", "folder-9/file-19"],
        &["grep", "-rc", "x", "folder-0"],
    ];
    for (number, words) in warm.iter().enumerate() {
        let run = || {
            let mut command = Command::new(words[0]);
            command.args(&words[1..]).current_dir(&tree).env("GIT_OPTIONAL_LOCKS", "0");
            // Some of them find nothing, and say so by their exit code.
            command.output().unwrap_or_else(|error| panic!("{words:?}: {error}"));
        };
        run();
        run();
        let before = requests(&cluster);
        for _ in 0..5 {
            run();
        }
        let after = requests(&cluster);
        assert_eq!(after, before, "command {number}, {words:?}: requests to the master, to slaves");
    }
    // The account does move when something is asked.
    let before = requests(&cluster);
    fs::write(tree.join("more"), b"x").unwrap();
    let after = requests(&cluster);
    assert!(after.0 > before.0 && after.1 > before.1, "{before:?} {after:?}");
}
