//! A cluster of real processes in a temporary folder, taken away again whatever happens.
#![allow(
    dead_code,
    clippy::disallowed_methods,
    reason = "shared by tests that use parts of it, on the real machine"
)]

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub struct Cluster {
    folder: tempfile::TempDir,
    children: Vec<Child>,
}

impl Cluster {
    /// An empty place for a cluster.
    pub fn empty() -> Self {
        for daemon in ["godrive-master", "godrive-slave", "godrive-fuse"] {
            let path = program(daemon);
            assert!(
                path.exists(),
                "{} is missing: cargo build --workspace --bins with this profile",
                path.display()
            );
        }
        let folder = tempfile::Builder::new().prefix("godrive-test-").tempdir().expect("a temporary folder");
        Self { folder, children: Vec::new() }
    }

    /// A running cluster.
    pub fn start(arguments: &[&str]) -> Self {
        let cluster = Self::empty();
        cluster.must("up", arguments);
        cluster
    }

    pub fn dir(&self) -> PathBuf {
        self.folder.path().canonicalize().expect("the folder exists").join("cluster")
    }

    /// A path beside the cluster.
    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().expect("the folder exists").join(name)
    }

    pub fn command(&self, subcommand: &str, arguments: &[&str]) -> Command {
        let mut command = Command::new(program("godrive"));
        command.arg(subcommand);
        if subcommand != "umount" {
            command.arg("--dir").arg(self.dir());
        }
        command.args(arguments);
        command
    }

    pub fn run(&self, subcommand: &str, arguments: &[&str]) -> Output {
        self.command(subcommand, arguments).stdin(Stdio::null()).output().expect("godrive runs")
    }

    /// Runs and fails the test with everything that is known if that fails. Returns standard output.
    pub fn must(&self, subcommand: &str, arguments: &[&str]) -> String {
        let output = self.run(subcommand, arguments);
        if !output.status.success() {
            self.show_logs();
            panic!("godrive {subcommand} {arguments:?}: {}\n{}", output.status, both(&output));
        }
        String::from_utf8(output.stdout).expect("text")
    }

    /// Runs what must fail with this exit code. Returns what it said.
    pub fn must_fail(&self, code: i32, subcommand: &str, arguments: &[&str]) -> String {
        let output = self.run(subcommand, arguments);
        assert_eq!(output.status.code(), Some(code), "godrive {subcommand} {arguments:?}\n{}", both(&output));
        both(&output)
    }

    pub fn stat(&self, path: &str) -> Value {
        serde_json::from_str(&self.must("stat", &["--json", path])).expect("stat --json is JSON")
    }

    pub fn status(&self) -> Value {
        serde_json::from_str(&self.must("status", &["--json"])).expect("status --json is JSON")
    }

    pub fn pid(&self, node: &str) -> Option<i32> {
        std::fs::read_to_string(self.dir().join(node).join("pid")).ok()?.trim().parse().ok()
    }

    /// SIGKILL to a node, and waits until it is gone.
    pub fn kill(&self, node: &str) {
        let pid = self.pid(node).expect("a running node has a pid file");
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL)
            .expect("ours");
        eventually(&format!("{node} is gone"), || cmdline(pid).is_empty());
    }

    /// A process that ends with the cluster.
    pub fn keep(&mut self, child: Child) {
        self.children.push(child);
    }

    pub fn show_logs(&self) {
        for entry in std::fs::read_dir(self.dir()).into_iter().flatten().flatten() {
            let log = std::fs::read_to_string(entry.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            for line in &lines[lines.len().saturating_sub(30)..] {
                eprintln!("{}: {line}", entry.file_name().to_string_lossy());
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        for child in &mut self.children {
            // It may have ended by itself.
            let _ = child.kill();
            let _ = child.wait();
        }
        if !self.dir().join("cluster.toml").exists() {
            return;
        }
        let down = self.run("down", &[]);
        if !down.status.success() {
            eprintln!("godrive down: {}", both(&down));
        }
    }
}

pub fn both(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// The programs lie beside godrive, as cargo builds them.
pub fn program(name: &str) -> PathBuf {
    Path::new(env!("CARGO_BIN_EXE_godrive")).with_file_name(name)
}

pub fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// The command line of a process; empty when it is gone.
pub fn cmdline(pid: i32) -> Vec<u8> {
    std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default()
}

/// Waits for a condition; says what was waited for.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 30 s: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Bytes that repeat under their seed and do not compress.
pub fn noise(seed: u64, length: usize) -> Vec<u8> {
    use rand::{RngCore, SeedableRng};
    let mut bytes = vec![0; length];
    rand::rngs::StdRng::seed_from_u64(seed).fill_bytes(&mut bytes);
    bytes
}
