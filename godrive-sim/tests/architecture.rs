//! The house's walls: which crate may know which, and what a pure core may never touch.
#![allow(clippy::disallowed_methods)] // This test reads the source tree.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// What each crate of ours may depend on. A crate that is missing here fails the test: decide where it belongs.
const MAY_KNOW: &[(&str, &[&str])] = &[
    ("godrive-proto", &[]),
    ("godrive-disk", &["godrive-proto"]),
    ("godrive-client", &["godrive-proto"]),
    ("godrive-fuse", &["godrive-proto", "godrive-client"]),
    ("godrive", &["godrive-proto", "godrive-client"]),
    ("godrive-master", &["godrive-proto", "godrive-disk"]),
    ("godrive-slave", &["godrive-proto", "godrive-disk"]),
    ("godrive-sim", &["godrive-proto", "godrive-disk", "godrive-client", "godrive-master", "godrive-slave"]),
];

/// What a `core/` folder may not name: I/O, time, threads and randomness are passed in.
const NOT_IN_CORE: &[&str] = &[
    "tokio",
    "quinn",
    "redb",
    "godrive_disk",
    "std::fs",
    "std::net::UdpSocket",
    "std::net::TcpStream",
    "std::thread",
    "std::process",
    "std::time::Instant",
    "SystemTime",
    "rand::rng",
    "thread_rng",
    "OsRng",
    "HashMap",
    "HashSet",
];

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap().to_owned()
}

fn read(path: &Path) -> String {
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Crates of the workspace with the crates of ours that they depend on, tests' dependencies included.
fn dependencies() -> BTreeMap<String, BTreeSet<String>> {
    let workspace: toml::Table = read(&root().join("Cargo.toml")).parse().unwrap();
    let members: Vec<&str> = workspace["workspace"]["members"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|member| member.as_str())
        .collect();
    let known: BTreeSet<&str> = members.iter().copied().collect();
    let mut found = BTreeMap::new();
    for member in &members {
        let manifest: toml::Table = read(&root().join(member).join("Cargo.toml")).parse().unwrap();
        let mut ours = BTreeSet::new();
        for section in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let Some(table) = manifest.get(section).and_then(|section| section.as_table()) else { continue };
            ours.extend(table.keys().filter(|name| known.contains(name.as_str())).cloned());
        }
        found.insert((*member).to_owned(), ours);
    }
    found
}

#[test]
fn imports_run_one_way() {
    let allowed: BTreeMap<&str, &[&str]> = MAY_KNOW.iter().copied().collect();
    let mut wrong = Vec::new();
    for (name, knows) in dependencies() {
        let Some(allowed) = allowed.get(name.as_str()) else {
            wrong.push(format!("{name} is not in this test's list"));
            continue;
        };
        wrong.extend(
            knows
                .iter()
                .filter(|other| !allowed.contains(&other.as_str()))
                .map(|other| format!("{name} -> {other}")),
        );
    }
    assert!(wrong.is_empty(), "imports that the architecture forbids: {wrong:?}");
}

#[test]
fn pure_cores_touch_nothing_outside() {
    let mut cores = 0;
    let mut wrong = Vec::new();
    for (member, _) in dependencies() {
        let core = root().join(&member).join("src/core");
        for file in sources(&core) {
            cores += 1;
            let text = read(&file);
            for (number, line) in code_lines(&text) {
                for word in NOT_IN_CORE.iter().filter(|word| names(line, word)) {
                    wrong.push(format!("{}:{number}: {word}", file.strip_prefix(root()).unwrap().display()));
                }
            }
        }
    }
    assert!(cores >= 5, "found only {cores} files of pure cores: did the folders move?");
    assert!(wrong.is_empty(), "a pure core names what must be passed in:\n{}", wrong.join("\n"));
}

/// Lines of product code: no comments, and nothing behind the tests' module.
fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    text.lines()
        .take_while(|line| !line.trim_start().starts_with("#[cfg(test)]"))
        .enumerate()
        .map(|(number, line)| (number + 1, line.split("//").next().unwrap_or(line)))
}

/// Whether the line has `word` as a whole word.
fn names(line: &str, word: &str) -> bool {
    let part = |character: char| character.is_alphanumeric() || character == '_';
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(part) && !line[at + word.len()..].starts_with(part))
}

fn sources(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    let Ok(entries) = std::fs::read_dir(folder) else { return found };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            found.extend(sources(&path));
        } else if name.ends_with(".rs") && !name.starts_with("test") && !name.ends_with("_tests.rs") {
            found.push(path);
        }
    }
    found.sort();
    found
}

#[test]
fn the_checks_see_what_they_look_for() {
    assert!(names("use tokio::sync;", "tokio"));
    assert!(!names("use tokio_like::x;", "tokio"));
    let code: Vec<_> = code_lines("a // tokio\n#[cfg(test)]\nmod tests { use tokio; }").collect();
    assert_eq!(code, [(1, "a ")]);
}
