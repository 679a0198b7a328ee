//! The bytes of every operation, pinned per protocol version.
//!
//! `tests/golden/v1.txt` holds one frame per request and reply, in hex. A difference means that peers of this
//! release no longer understand those of the last one: raise `version::PROTOCOL` (and its ledger) or undo the change.
//! `GODRIVE_GOLDEN=write` writes the file of the current version anew, for whoever changes bytes on purpose.

mod samples;

use godrive_proto::{admin, cluster, data, lease, locks, meta, version};
use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

fn file() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/v{}.txt", version::PROTOCOL))
}

#[test]
#[allow(clippy::disallowed_methods)] // The golden file is read from the source tree.
fn the_bytes_of_every_operation_stay() {
    let mut current = String::new();
    for sample in samples::all() {
        for (direction, bytes) in [("request", &sample.request), ("reply", &sample.reply)] {
            let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
            current += &format!("{:#06x} {} {direction} {hex}\n", sample.code, sample.name);
        }
    }
    let path = file();
    if std::env::var("GODRIVE_GOLDEN").is_ok_and(|value| value == "write") {
        std::fs::write(&path, &current).unwrap();
    }
    let golden = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    let changed: Vec<_> = golden
        .lines()
        .zip(current.lines())
        .filter(|(was, is)| was != is)
        .map(|(was, is)| format!("was {was}\n is {is}"))
        .collect();
    assert!(changed.is_empty(), "the wire format changed:\n{}", changed.join("\n"));
    assert_eq!(
        golden.lines().count(),
        current.lines().count(),
        "{} lacks or has too many frames",
        path.display()
    );
}

#[test]
fn every_operation_has_a_sample() {
    let sampled: BTreeSet<u16> = samples::all().iter().map(|sample| sample.code).collect();
    let missing: Vec<_> = operations().filter(|(code, _)| !sampled.contains(code)).collect();
    assert!(missing.is_empty(), "add samples for {missing:?} to tests/samples/mod.rs");
}

#[test]
fn no_code_is_used_twice() {
    let mut names: BTreeMap<u16, &str> = BTreeMap::new();
    for (code, name) in operations() {
        if let Some(other) = names.insert(code, name) {
            panic!("{code:#06x} is both {other} and {name}");
        }
    }
    assert!(names.len() > 30);
}

#[test]
fn the_handshake_names_the_protocol_version() {
    assert_eq!(version::ALPN, format!("godrive/{}", version::PROTOCOL).as_bytes());
}

fn operations() -> impl Iterator<Item = (u16, &'static str)> {
    [meta::NAMES, lease::NAMES, locks::NAMES, data::NAMES, cluster::NAMES, admin::NAMES].concat().into_iter()
}
