//! With every node gone nothing hangs: operations end with EIO within the deadline, or, where somebody asked for
//! it, wait until they are told to give up.

use crate::cluster::{Cluster, eventually};
use std::fs::{self, File, OpenOptions};
use std::io::{Error, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

type Operation<'a> = Box<dyn FnMut() -> Result<(), Error> + 'a>;

fn is_eio(what: &str, result: Result<(), Error>, begun: Instant) {
    let error = result.expect_err(what);
    assert_eq!(error.raw_os_error(), Some(libc::EIO), "{what}: {error}");
    assert!(begun.elapsed() < Duration::from_secs(15), "{what} took {:?}", begun.elapsed());
}

#[test]
fn with_every_node_gone_each_operation_ends_with_eio() {
    let cluster = Cluster::start(1);
    cluster.configure(1, "deadline_s = 3");
    let here = cluster.mount(1);
    fs::create_dir(here.join("folder")).unwrap();
    fs::write(here.join("file"), vec![7; 3_000_000]).unwrap();
    let open = File::open(here.join("file")).unwrap();
    let mut writes = OpenOptions::new().append(true).create(true).open(here.join("log")).unwrap();
    writes.write_all(b"first").unwrap();
    writes.sync_all().unwrap();
    cluster.kill_nodes();
    // What lies in caches is served as long as its lease runs.
    eventually("the leases have run out", || {
        let begun = Instant::now();
        let looked = fs::metadata(here.join("file"));
        assert!(begun.elapsed() < Duration::from_secs(15));
        looked.is_err()
    });
    let mut byte = [0];
    let operations: Vec<(&str, Operation)> = vec![
        ("stat", Box::new(|| fs::metadata(here.join("file")).map(drop))),
        (
            "list",
            Box::new(|| {
                fs::read_dir(here.join("folder"))
                    .and_then(|mut all| all.next().unwrap_or(Err(Error::other("empty"))))
                    .map(drop)
            }),
        ),
        ("open", Box::new(|| File::open(here.join("file")).map(drop))),
        ("create", Box::new(|| File::create(here.join("new")).map(drop))),
        ("mkdir", Box::new(|| fs::create_dir(here.join("made")))),
        ("rename", Box::new(|| fs::rename(here.join("file"), here.join("moved")))),
        ("remove", Box::new(|| fs::remove_file(here.join("file")))),
        ("read", Box::new(|| open.read_exact_at(&mut byte, 2_999_999))),
        ("write and fsync", Box::new(|| writes.write_all(b"second").and_then(|()| writes.sync_all()))),
    ];
    for (what, mut operation) in operations {
        let begun = Instant::now();
        is_eio(what, operation(), begun);
    }
    let begun = Instant::now();
    // It says that something was lost, and takes the mount away all the same.
    let forced = cluster.try_godrive(&["umount", "--force", here.to_str().unwrap()]);
    assert!(forced.contains("flush"), "{forced}");
    assert!(begun.elapsed() < Duration::from_secs(30), "{:?}", begun.elapsed());
    assert!(!cluster.is_mounted(1));
}

#[test]
fn a_hard_mount_waits_until_its_caller_is_killed_or_it_is_unmounted_by_force() {
    let cluster = Cluster::start(1);
    cluster.configure(1, "hard = true\ndeadline_s = 1");
    let here = cluster.mount(1);
    // The kernel lets one program at a time make a name in a directory; whoever waits for its turn there cannot be killed.
    for folder in ["one", "two"] {
        fs::create_dir(here.join(folder)).unwrap();
    }
    cluster.kill_nodes();
    let program = |name: &str| {
        Command::new("touch").arg(here.join(name)).stderr(Stdio::null()).spawn().expect("touch starts")
    };
    let (mut killed, mut freed) = (program("one/new"), program("two/new"));
    // Well past the deadline of a mount that is not hard.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(4) {
        assert!(
            killed.try_wait().unwrap().is_none() && freed.try_wait().unwrap().is_none(),
            "a hard mount waits"
        );
        std::thread::sleep(Duration::from_millis(100));
    }
    killed.kill().unwrap();
    eventually("a killed program ends", || killed.try_wait().unwrap().is_some());
    assert_eq!(killed.wait().unwrap().signal(), Some(libc::SIGKILL));
    assert!(freed.try_wait().unwrap().is_none());
    let begun = Instant::now();
    let forced = cluster.try_godrive(&["umount", "--force", "--patience", "1", here.to_str().unwrap()]);
    assert!(forced.contains("unmounted") || forced.contains("killed"), "{forced}");
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    eventually("the other program ends", || freed.try_wait().unwrap().is_some());
    assert!(!freed.wait().unwrap().success());
    assert!(!cluster.is_mounted(1));
}
