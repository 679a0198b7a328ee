//! The command line against real daemons.
#![allow(clippy::disallowed_methods, reason = "these tests work on the real machine")]

mod common;

use common::{Cluster, both, cmdline, eventually, noise, program, text};
use std::io::Write;
use std::process::{Command, Stdio};

const NODES: [&str; 4] = ["master-1", "slave-1", "slave-2", "slave-3"];

#[test]
fn files_outlive_down_and_up() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let (source, fetched) = (cluster.path("source"), cluster.path("fetched"));
    let bytes = noise(1, 5_000_000);
    std::fs::write(&source, &bytes).unwrap();

    cluster.must("put", &["-p", text(&source), "/a/b/file"]);
    cluster.must("get", &["/a/b/file", text(&fetched)]);
    assert!(std::fs::read(&fetched).unwrap() == bytes, "the file differs");
    assert_eq!(cluster.must("ls", &["/a"]), "b/\n");
    assert!(cluster.must("ls", &["-l", "/a/b"]).contains("5000000"));
    let stat = cluster.stat("/a/b/file");
    assert_eq!((&stat["size"], &stat["kind"]), (&5_000_000.into(), &"file".into()));

    // The caller's umask counts, as with cp.
    std::fs::set_permissions(&source, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let put = cluster.command("put", &[text(&source), "/a/b/private"]);
    let line: Vec<&str> = put.get_args().map(|word| word.to_str().unwrap()).collect();
    let mut shell = std::process::Command::new("sh");
    shell.args(["-c", "umask 027 && exec \"$0\" \"$@\""]).arg(put.get_program()).args(line);
    assert!(shell.stdin(Stdio::null()).status().unwrap().success());
    assert_eq!(cluster.stat("/a/b/private")["mode"], "0640");
    cluster.must("rm", &["/a/b/private"]);

    let status = cluster.status();
    assert_eq!(status["chunks"]["total"], 5, "{status}");
    assert_eq!(status["chunks"]["healthy"], 5, "{status}");
    assert_eq!(status["parameters"]["replicas"], 3, "{status}");
    assert_eq!(status["nodes"].as_array().unwrap().len(), 3, "{status}");
    assert!(status["capacity"]["total_bytes"].as_u64().unwrap() > 0, "{status}");
    let human = cluster.must("status", &[]);
    assert!(human.contains("healthy") && human.contains("slave-2"), "{human}");
    assert!(human.lines().all(|line| line.chars().count() <= 80), "{human}");

    let pids: Vec<i32> = NODES.iter().map(|node| cluster.pid(node).expect("a pid")).collect();
    cluster.must("down", &[]);
    for (node, pid) in NODES.iter().zip(pids) {
        assert!(cmdline(pid).is_empty(), "{node} still runs");
        assert_eq!(cluster.pid(node), None, "{node} has a pid file");
    }
    let said = cluster.must_fail(1, "status", &[]);
    assert!(said.contains("the master is not running") && said.contains("not running"), "{said}");

    assert!(cluster.must_fail(1, "ls", &[]).contains("godrive up"));

    cluster.must("up", &[]);
    std::fs::remove_file(&fetched).unwrap();
    cluster.must("get", &["/a/b/file", text(&fetched)]);
    assert!(std::fs::read(&fetched).unwrap() == bytes, "the file differs after down and up");
    cluster.must("rm", &["-r", "/a"]);
    assert_eq!(cluster.must("ls", &[]), "");
    assert!(cluster.must_fail(1, "get", &["/a/b/file", "-"]).contains("does not exist"));
}

#[test]
fn streams_and_odd_names() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let bytes = noise(2, 2_500_000);
    let mut put = cluster.command("put", &["-", "/a b\n\"ü\"%"]).stdin(Stdio::piped()).spawn().unwrap();
    put.stdin.take().unwrap().write_all(&bytes).unwrap();
    assert!(put.wait().unwrap().success());
    let got = cluster.run("get", &["/a b\n\"ü\"%", "-"]);
    assert!(got.status.success(), "{}", both(&got));
    assert!(got.stdout == bytes, "the stream differs");
    // A pipe is written to, not replaced; the same would hold for /dev/null.
    let pipe = cluster.path("pipe");
    nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::from_bits_truncate(0o600)).unwrap();
    let reader = std::thread::spawn({
        let pipe = pipe.clone();
        move || std::fs::read(pipe).unwrap()
    });
    cluster.must("get", &["/a b\n\"ü\"%", text(&pipe)]);
    assert!(reader.join().unwrap() == bytes, "the pipe got something else");
    assert!(!std::fs::metadata(&pipe).unwrap().is_file());
    // A terminal gets no control characters.
    assert_eq!(cluster.must("ls", &[]), "a b\\n\"ü\"%\n");

    // Into a directory under its own name; an empty file; replacing.
    let empty = cluster.path("empty");
    std::fs::write(&empty, b"").unwrap();
    cluster.must("put", &["-p", text(&empty), "/d/"]);
    assert_eq!(cluster.run("get", &["/d/empty", "-"]).stdout, b"");
    std::fs::write(&empty, b"more").unwrap();
    cluster.must("put", &[text(&empty), "/d"]);
    assert_eq!(cluster.run("get", &["/d/empty", "-"]).stdout, b"more");

    assert!(cluster.must_fail(1, "rm", &["/d"]).contains("--recursive"));
    assert!(cluster.must_fail(1, "put", &[text(&empty), "/none/x"]).contains("does not exist"));
    assert!(cluster.must_fail(2, "put", &["-", "/d/../x"]).contains("`..`"));
    assert!(cluster.must_fail(2, "put", &["-", "/d/"]).contains("name"));
    assert!(cluster.must_fail(2, "rm", &["/"]).contains("cannot be removed"));
}

#[test]
fn an_interrupted_put_leaves_nothing() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    let mut put =
        cluster.command("put", &["-", "/file"]).stdin(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
    let mut input = put.stdin.take().unwrap();
    input.write_all(&noise(3, 3 << 20)).unwrap();
    eventually("the upload has begun", || cluster.must("ls", &[]).contains(".file.upload-"));
    let pid = nix::unistd::Pid::from_raw(put.id() as i32);
    nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGINT).unwrap();
    assert_eq!(put.wait().unwrap().code(), Some(1));
    assert_eq!(cluster.must("ls", &[]), "");
}

#[test]
fn a_put_without_enough_replicas_fails_and_leaves_nothing() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB", "--replicas", "3", "--min-replicas", "2"]);
    let source = cluster.path("source");
    std::fs::write(&source, noise(4, 1_500_000)).unwrap();
    cluster.kill("slave-1");
    cluster.kill("slave-2");
    let said = cluster.must_fail(1, "put", &["--deadline", "5s", text(&source), "/file"]);
    assert!(said.contains("was not stored"), "{said}");
    assert_eq!(cluster.must("ls", &[]), "", "something was left behind");
    cluster.must("up", &[]);
    cluster.must("put", &[text(&source), "/file"]);
}

#[test]
fn up_again_is_harmless_and_adds_slaves() {
    let cluster = Cluster::start(&["--replicas", "2"]);
    let pids: Vec<_> = NODES.iter().map(|node| cluster.pid(node)).collect();
    cluster.must("up", &["--slaves", "3", "--replicas", "2", "--masters", "1"]);
    assert_eq!(pids, NODES.iter().map(|node| cluster.pid(node)).collect::<Vec<_>>());

    cluster.kill("slave-2");
    // A pid file that names a living stranger must not be believed.
    std::fs::write(cluster.dir().join("slave-2/pid"), format!("{}\n", std::process::id())).unwrap();
    cluster.must("up", &["--slaves", "4"]);
    assert_ne!(cluster.pid("slave-2"), Some(std::process::id() as i32));
    let status = cluster.status();
    let alive = status["nodes"].as_array().unwrap().iter().filter(|node| node["state"] == "alive").count();
    assert_eq!(alive, 4, "{status}");

    for (arguments, said) in [
        (["--replicas", "3"], "replicas 2, not 3"),
        (["--slaves", "2"], "never removes"),
        (["--chunk-size", "1MiB"], "chunk-size"),
        (["--masters", "3"], "not there yet"),
    ] {
        let text = cluster.must_fail(2, "up", &arguments);
        assert!(text.contains(said), "{text}");
    }
    // All of it still runs.
    cluster.status();
}

#[test]
fn what_cannot_work_is_refused_before_anything_is_made() {
    let cluster = Cluster::empty();
    for arguments in
        [["--slaves", "1"], ["--replicas", "0"], ["--min-replicas", "9"], ["--chunk-size", "3MiB"]]
    {
        cluster.must_fail(2, "up", &arguments);
        assert!(!cluster.dir().exists(), "up {arguments:?} made something");
    }
    for subcommand in ["down", "status", "ls"] {
        let said = cluster.must_fail(2, subcommand, &[]);
        assert!(said.contains("there is no cluster"), "{said}");
    }
    let said = cluster.must_fail(2, "umount", &[text(&cluster.path(""))]);
    assert!(said.contains("not a mountpoint"), "{said}");
}

#[test]
fn a_daemon_that_does_not_start_is_shown_with_its_log() {
    let cluster = Cluster::start(&[]);
    cluster.must("down", &[]);
    let config = cluster.dir().join("slave-2/config.toml");
    let good = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{good}nonsense = 1\n")).unwrap();
    let said = cluster.must_fail(1, "up", &[]);
    assert!(said.contains("slave-2 ended") && said.contains("nonsense"), "{said}");
    std::fs::write(&config, good).unwrap();
    cluster.must("up", &[]);
}

#[test]
fn a_master_whose_folder_is_lost_does_not_begin_anew() {
    let cluster = Cluster::start(&[]);
    let (source, bytes) = (cluster.path("source"), noise(1, 100_000));
    std::fs::write(&source, &bytes).unwrap();
    cluster.must("put", &[text(&source), "/file"]);
    cluster.must("down", &[]);
    let (folder, kept) = (cluster.dir().join("master-1"), cluster.path("kept"));
    std::fs::rename(&folder, &kept).unwrap();
    for _ in 0..2 {
        let said = cluster.must_fail(1, "up", &[]);
        assert!(said.contains("there is nothing of cluster") && said.contains("backup"), "{said}");
    }
    std::fs::remove_dir_all(&folder).unwrap();
    std::fs::rename(&kept, &folder).unwrap();
    cluster.must("up", &[]);
    assert_eq!(cluster.run("get", &["/file", "-"]).stdout, bytes);
}

#[test]
fn a_fourth_slave_joins_by_token() {
    let mut cluster = Cluster::start(&[]);
    let output = cluster.run("token", &["--role", "slave", "--valid-for", "5m"]);
    let token = String::from_utf8(output.stdout.clone()).unwrap();
    assert_eq!(token.lines().count(), 1, "{}", both(&output));
    let join = |name: &str, cluster: &Cluster| {
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let address = socket.local_addr().unwrap().to_string();
        drop(socket);
        let mut command = Command::new(program("godrive-slave"));
        command.args(["--join", token.trim(), "--listen", &address, "--dir"]).arg(cluster.path(name));
        command
            .stdout(Stdio::null())
            .stderr(std::fs::File::create(cluster.path(&format!("{name}.log"))).unwrap());
        command.spawn().unwrap()
    };
    let slave = join("joined", &cluster);
    cluster.keep(slave);
    eventually("the fourth slave is alive", || {
        let status = cluster.status();
        status["nodes"].as_array().unwrap().iter().filter(|node| node["state"] == "alive").count() == 4
    });
    // The token worked once.
    let mut again = join("again", &cluster);
    assert!(!again.wait().unwrap().success());
    let log = std::fs::read_to_string(cluster.path("again.log")).unwrap();
    assert!(log.contains("used up"), "{log}");
}

#[test]
fn mounts_come_and_go() {
    let cluster = Cluster::empty();
    let (first, second) = (cluster.path("m1"), cluster.path("m2"));
    cluster.must("up", &["--mount", text(&first)]);
    cluster.must("mount", &[text(&second)]);
    assert!(cluster.must("mount", &[text(&second)]).contains("already mounted"));
    std::fs::write(first.join("file"), b"through the mount").unwrap();
    assert_eq!(std::fs::read(second.join("file")).unwrap(), b"through the mount");
    assert_eq!(cluster.run("get", &["/file", "-"]).stdout, b"through the mount");

    let open = std::fs::File::open(second.join("file")).unwrap();
    let said = cluster.must_fail(1, "umount", &[text(&second)]);
    assert!(said.contains("in use by") && said.contains(&format!("({})", std::process::id())), "{said}");
    drop(open);
    assert!(cluster.must("umount", &[text(&second)]).contains("everything is flushed"));
    assert!(!cluster.dir().join("mount-2").exists(), "the mount would come back");
    assert!(!second.join("file").exists());

    // A mount whose daemon was killed comes back with the next `up`.
    // (Also while the kernel still has the attributes of its root in its cache.)
    std::fs::metadata(&first).unwrap();
    cluster.kill("mount-1");
    cluster.must("up", &["--mount", text(&first)]);
    assert_eq!(std::fs::read(first.join("file")).unwrap(), b"through the mount");
    let status = cluster.status();
    let mount = status["local"].as_array().unwrap().iter().find(|local| local["name"] == "mount-1").unwrap();
    assert_eq!(mount["state"], "mounted", "{status}");

    cluster.must("down", &[]);
    assert!(!first.join("file").exists());
    cluster.must("up", &[]);
    assert_eq!(std::fs::read(first.join("file")).unwrap(), b"through the mount");
}

#[test]
fn what_was_removed_or_replaced_comes_back() {
    let cluster = Cluster::start(&["--chunk-size", "1MiB"]);
    // What lives for less than some seconds is not kept; here it is.
    let config = cluster.dir().join("master-1/config.toml");
    let text_of = std::fs::read_to_string(&config).unwrap();
    std::fs::write(&config, format!("{text_of}\n[trash]\nmin_age_s = 0\n")).unwrap();
    cluster.must("down", &[]);
    cluster.must("up", &[]);
    let (source, fetched) = (cluster.path("source"), cluster.path("fetched"));
    let (one, two) = (noise(7, 2_500_000), noise(8, 10_000));
    for (name, bytes) in [("/a/b/one", &one), ("/a/two", &two), ("/a/two", &one)] {
        std::fs::write(&source, bytes).unwrap();
        cluster.must("put", &["-p", text(&source), name]);
    }
    let same = |name: &str, bytes: &[u8]| {
        cluster.must("get", &[name, text(&fetched)]);
        assert!(std::fs::read(&fetched).unwrap() == bytes, "{name} differs");
    };
    // The first contents of a file that was replaced.
    let listed = |arguments: &[&str]| -> Vec<serde_json::Value> {
        let text = cluster.must("trash", &[&["ls", "--json"], arguments].concat());
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    let replaced = listed(&["/a/two"]);
    assert_eq!((replaced.len(), &replaced[0]["size"]), (1, &10_000.into()), "{replaced:?}");
    let inode = replaced[0]["inode"].to_string();
    assert!(cluster.must_fail(1, "trash", &["restore", "/a/two"]).contains("--to"));
    cluster.must("trash", &["restore", "--inode", &inode, "--to", "/old/two"]);
    same("/old/two", &two);

    // A whole tree.
    cluster.must("rm", &["-r", "/a"]);
    assert_eq!(cluster.must("ls", &[]), "old/\n");
    let paths: Vec<String> = listed(&[]).iter().map(|entry| entry["path"].to_string()).collect();
    for path in ["/a", "/a/b", "/a/b/one", "/a/two"] {
        assert!(paths.contains(&format!("\"{path}\"")), "{path} is not in {paths:?}");
    }
    let shown = cluster.must("trash", &["ls"]);
    assert!(shown.contains("/a/b/") && shown.contains("2.4 MiB"), "{shown}");
    cluster.must("trash", &["restore", "/a/b/one"]);
    same("/a/b/one", &one);
    assert!(cluster.must_fail(1, "get", &["/a/two", "-"]).contains("does not exist"));
    cluster.must("trash", &["restore", "/a"]);
    same("/a/two", &one);
    assert!(cluster.must_fail(1, "trash", &["restore", "/a"]).contains("not in the trash"));
    assert_eq!(cluster.stat("/a/b/one")["nlink"], 1);

    // Whatever has no way back is really gone.
    cluster.must("rm", &["-r", "/a", "/old"]);
    let kept = cluster.status();
    assert!(kept["trash"]["entries"].as_u64().unwrap() >= 5 && kept["trash"]["keep_s"] == 86_400, "{kept}");
    assert_eq!(cluster.must("trash", &["empty", "--older-than", "1h"]), "0 removed for good\n");
    assert!(!cluster.must("trash", &["empty"]).starts_with("0 "));
    assert!(cluster.must("trash", &["ls"]).contains("nothing"));
    eventually("the chunks are deleted everywhere", || {
        let status = cluster.status();
        (status["chunks"]["total"].as_u64(), status["reclaim_queued"].as_u64()) == (Some(0), Some(0))
    });
}
