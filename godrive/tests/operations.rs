//! Draining, replacing and retiring slaves and disks, with real daemons.
#![allow(clippy::disallowed_methods, reason = "these tests work on the real machine")]

mod common;

use common::{Cluster, eventually, noise, text};
use serde_json::Value;
use std::collections::BTreeSet;
use std::time::{Duration, Instant};

struct Files {
    names: Vec<String>,
    bytes: Vec<Vec<u8>>,
}

impl Files {
    fn put(cluster: &Cluster, stem: &str, count: u64) -> Self {
        let mut files = Self { names: Vec::new(), bytes: Vec::new() };
        let source = cluster.path("source");
        for at in 0..count {
            let (name, bytes) = (format!("/{stem}{at}"), noise(at + 1, 2_500_000));
            std::fs::write(&source, &bytes).unwrap();
            cluster.must("put", &[text(&source), &name]);
            files.names.push(name);
            files.bytes.push(bytes);
        }
        files
    }

    fn check(&self, cluster: &Cluster) {
        for (name, bytes) in self.names.iter().zip(&self.bytes) {
            let got = cluster.run("get", &[name, "-"]);
            assert!(got.status.success() && got.stdout == *bytes, "{name}: {}", common::both(&got));
        }
    }
}

fn node<'a>(status: &'a Value, name: &str) -> Option<&'a Value> {
    status["nodes"].as_array().unwrap().iter().find(|node| node["name"] == name)
}

fn count(value: &Value) -> u64 {
    value.as_u64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// As the slave counts them: what was deleted there is gone.
fn chunks_on_disks(status: &Value, name: &str) -> u64 {
    node(status, name).unwrap()["disks"].as_array().unwrap().iter().map(|disk| count(&disk["chunks"])).sum()
}

fn alive(status: &Value) -> usize {
    status["nodes"].as_array().unwrap().iter().filter(|node| node["state"] == "alive").count()
}

#[test]
fn a_slave_is_drained_decommissioned_refused_and_taken_back() {
    let cluster = Cluster::start(&["--slaves", "4", "--replicas", "2", "--chunk-size", "1MiB"]);
    let files = Files::put(&cluster, "file", 6);
    assert!(
        count(&node(&cluster.status(), "slave-1").unwrap()["replicas"]) > 0,
        "there is something to move"
    );

    let said = cluster.must("drain", &["slave-1", "--wait"]);
    assert!(said.contains("nothing is left on slave-1"), "{said}");
    let status = cluster.status();
    let drained = node(&status, "slave-1").unwrap();
    assert_eq!((&drained["replicas"], &drained["to_move"]), (&0.into(), &0.into()), "{status}");
    assert_eq!((&drained["intent"], &drained["state"]), (&"draining".into(), &"alive".into()), "{status}");
    assert!(count(&status["drain"]["done"]) > 0 && count(&status["drain"]["bytes"]) > 0, "{status}");
    assert_eq!(status["chunks"]["healthy"], status["chunks"]["total"], "{status}");
    eventually("its replicas are deleted", || chunks_on_disks(&cluster.status(), "slave-1") == 0);
    // Without it nothing is missing, and it gets nothing new.
    cluster.kill("slave-1");
    files.check(&cluster);
    let more = Files::put(&cluster, "more", 2);
    assert_eq!(cluster.status()["chunks"]["under_replicated"], 0);
    cluster.must("up", &[]);
    assert_eq!(count(&node(&cluster.status(), "slave-1").unwrap()["replicas"]), 0, "the drain was forgotten");
    cluster.must("undrain", &["slave-1"]);
    assert_eq!(node(&cluster.status(), "slave-1").unwrap()["intent"], "");

    let id = node(&cluster.status(), "slave-1").unwrap()["node"].as_str().unwrap().to_owned();
    let third = Files::put(&cluster, "third", 4);
    let said = cluster.must("decommission", &["slave-1", "--wait"]);
    assert!(said.contains("nothing is left on slave-1"), "{said}");
    let status = cluster.status();
    assert_eq!(status["retired"][0], id.as_str(), "{status}");
    assert!(node(&status, "slave-1").is_none(), "{status}");
    assert!(cluster.must("status", &[]).contains("retired   slave-1"));
    cluster.kill("slave-1");
    for files in [&files, &more, &third] {
        files.check(&cluster);
    }
    // It does not come back by itself, and `up` says what is the matter.
    let up = cluster.run("up", &[]);
    let said = common::both(&up);
    assert!(up.status.success() && said.contains("slave-1 was decommissioned and is refused"), "{said}");
    let log = cluster.dir().join("slave-1/log");
    let refused =
        || std::fs::read_to_string(&log).unwrap().contains("was decommissioned. To take it back: godrive");
    eventually("the slave says why it is refused", refused);
    assert_eq!(alive(&cluster.status()), 3);
    let said = cluster.must_fail(1, "drain", &["slave-1"]);
    assert!(said.contains("godrive recommission"), "{said}");

    cluster.must("recommission", &[&id[..12]]);
    eventually("it serves again", || alive(&cluster.status()) == 4);
    for files in [&files, &more, &third] {
        files.check(&cluster);
    }
    for (target, why) in [
        ("slave", "neither a slave"),
        ("00", "neither a slave"),
        ("0123456789abcdef", "no slave and no disk"),
    ] {
        let said = cluster.must_fail(2, "drain", &[target]);
        assert!(said.contains(why), "{said}");
    }
}

#[test]
fn what_cannot_be_read_or_written_is_named() {
    let cluster = Cluster::start(&["--slaves", "2", "--replicas", "2", "--chunk-size", "1MiB"]);
    let files = Files::put(&cluster, "file", 2);
    let made = Instant::now();
    assert!(cluster.must("damaged", &[]).contains("all files can be read and written"));
    let told = || -> BTreeSet<String> {
        let shown = |line| {
            let part: Value = serde_json::from_str(line).unwrap();
            let mut on: Vec<&str> =
                part["on"].as_array().unwrap().iter().map(|on| on.as_str().unwrap()).collect();
            on.sort_unstable();
            let (path, state) = (part["path"].as_str().unwrap(), part["state"].as_str().unwrap());
            format!("{path} {} {} {state} {}", part["from"], part["to"], on.join(","))
        };
        cluster.must("damaged", &["--json"]).lines().map(shown).collect()
    };
    for (slave, state) in [("slave-1", "read-only"), ("slave-2", "unreachable")] {
        cluster.kill(slave);
        let parts = ["/file0", "/file1"].iter().flat_map(|path| [0, 1, 2].map(|at| (*path, at << 20)));
        let expected: BTreeSet<String> = parts
            .map(|(path, from)| format!("{path} {from} {} {state} slave-1,slave-2", from + (1 << 20)))
            .collect();
        eventually("its loss is noticed", || told() == expected);
        eventually("people are told", || {
            let table = cluster.must("damaged", &[]);
            table.contains(state) && table.contains("1048576") && table.contains("/file1")
        });
        eventually("the status tells more", || cluster.must("status", &[]).contains("godrive damaged"));
    }
    // What was made less than 10 s ago does not go to the trash.
    eventually("they are old enough", || made.elapsed() > Duration::from_secs(11));
    cluster.must("rm", &["/file1"]);
    let table = cluster.must("damaged", &[]);
    assert!(table.contains("/file1 (in the trash)") && !table.contains("/file0 (in"), "{table}");
    cluster.must("up", &[]);
    eventually("all is well", || told().is_empty());
    cluster.must("trash", &["restore", "/file1"]);
    files.check(&cluster);
}

#[test]
fn a_disk_is_replaced_though_every_slave_has_a_replica_of_everything() {
    let cluster = Cluster::start(&["--replicas", "3", "--chunk-size", "1MiB"]);
    let files = Files::put(&cluster, "file", 5);
    let config = cluster.dir().join("slave-2/config.toml");
    let one_disk = std::fs::read_to_string(&config).unwrap();
    let disks = |list: &str| {
        let lines = one_disk.lines().filter(|line| !line.starts_with("disks"));
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        std::fs::write(&config, format!("disks = {list}\n{text}")).unwrap();
        cluster.kill("slave-2");
        cluster.must("up", &[]);
    };
    disks("[\"disk-1\", \"disk-2\"]");
    let find = |status: &Value, replicas: fn(u64) -> bool| {
        let disks = node(status, "slave-2").unwrap()["disks"].as_array().unwrap();
        let found = disks.iter().find(|disk| replicas(count(&disk["replicas"])));
        found.map(|disk| disk["disk"].as_str().unwrap().to_owned())
    };
    let old = find(&cluster.status(), |replicas| replicas > 0).unwrap();
    // There is no other slave to go to, but a disk beside it.
    cluster.must("drain", &[&old, "--wait"]);
    let status = cluster.status();
    assert_eq!(status["chunks"]["healthy"], status["chunks"]["total"], "{status}");
    let moved =
        |disk: &Value| (disk["disk"] == old.as_str(), disk["draining"] == true, count(&disk["chunks"]));
    eventually("the slave has moved them", || {
        let status = cluster.status();
        let mut disks: Vec<_> =
            node(&status, "slave-2").unwrap()["disks"].as_array().unwrap().iter().map(moved).collect();
        disks.sort();
        disks == [(false, false, 15), (true, true, 0)]
    });
    files.check(&cluster);
    disks("[\"disk-2\"]");
    eventually("everything is there without the old disk", || {
        let status = cluster.status();
        status["chunks"]["healthy"] == 15 && alive(&status) == 3
    });
    assert_eq!(cluster.status()["repair"]["done"], 0, "nothing had to be copied for it");
    // Also when nothing else is left.
    cluster.kill("slave-1");
    cluster.kill("slave-3");
    files.check(&cluster);
}
