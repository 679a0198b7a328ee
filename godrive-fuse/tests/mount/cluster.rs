//! A whole cluster of real processes in a temporary folder, mounted, and taken away again whatever happens.

use nix::sys::signal::Signal;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

/// One master, three slaves and as many mounts as a test asks for.
pub struct Cluster {
    folder: tempfile::TempDir,
    mounts: Vec<PathBuf>,
}

impl Cluster {
    /// Starts the cluster with `mounts` mounts at `<folder>/m1`, `m2`, …
    pub fn start(mounts: usize) -> Self {
        assert!(mounts >= 1);
        let folder =
            tempfile::Builder::new().prefix("godrive-mount-test-").tempdir().expect("a temporary folder");
        let mut cluster = Self { folder, mounts: Vec::new() };
        let first = cluster.path("m1");
        cluster.mounts.push(first.clone());
        cluster.godrive(&["up", "--dir", &cluster.dir(), "--slaves", "3", "--mount", text(&first)]);
        for number in 2..=mounts {
            let path = cluster.path(&format!("m{number}"));
            cluster.mounts.push(path.clone());
            cluster.godrive(&["mount", "--dir", &cluster.dir(), text(&path)]);
        }
        cluster
    }

    pub fn mount(&self, number: usize) -> &Path {
        &self.mounts[number - 1]
    }

    /// What a mount's daemon says that it has done so far.
    pub fn account<const N: usize>(&self, number: usize, fields: [&str; N]) -> [u64; N] {
        let log = self.log(number);
        let read = || std::fs::read_to_string(&log).expect("the mount's log");
        let lines = || read().lines().filter(|line| line.contains("so far")).count();
        let before = lines();
        let daemon = nix::unistd::Pid::from_raw(self.daemon(number));
        nix::sys::signal::kill(daemon, Signal::SIGUSR1).expect("the daemon runs");
        eventually("the mount's account", || lines() > before);
        let text = read();
        let line = text.lines().rfind(|line| line.contains("so far")).expect("it was found");
        fields.map(|name| {
            let value = line.split(&format!(" {name}=")).nth(1);
            let value = value.unwrap_or_else(|| panic!("no {name} in {line}"));
            value.split_whitespace().next().and_then(|text| text.parse().ok()).expect("a number")
        })
    }

    /// `godrive umount`, and the same mount again.
    pub fn remount(&self, number: usize) {
        self.godrive(&["umount", text(self.mount(number))]);
        self.godrive(&["mount", "--dir", &self.dir(), text(self.mount(number))]);
    }

    /// Runs the command line and fails the test with its output.
    pub fn godrive(&self, arguments: &[&str]) -> String {
        let output = run(&program("godrive"), arguments);
        let both =
            format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        if !output.status.success() {
            self.show_logs();
            panic!("godrive {arguments:?}: {}\n{both}", output.status);
        }
        both
    }

    /// Runs the command line, whatever it comes to; what it said.
    pub fn try_godrive(&self, arguments: &[&str]) -> String {
        let output = run(&program("godrive"), arguments);
        format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
    }

    pub fn is_mounted(&self, number: usize) -> bool {
        let table = std::fs::read_to_string("/proc/self/mountinfo").expect("the kernel's table");
        table.lines().any(|line| line.contains(&format!(" {} ", text(self.mount(number)))))
    }

    /// The pid of the daemon that serves a mount.
    pub fn daemon(&self, number: usize) -> i32 {
        let configs = nodes(self.folder.path())
            .into_iter()
            .filter(|node| node.join("mountpoint").exists() || is_mount(node));
        for node in configs {
            let config = std::fs::read_to_string(node.join("config.toml")).unwrap_or_default();
            let here = config.lines().any(|line| {
                line.starts_with("mountpoint") && line.contains(&format!("\"{}\"", text(self.mount(number))))
            });
            if here {
                return pid(&node).expect("a running mount has a pid file");
            }
        }
        panic!("no mount daemon says that it serves {}", self.mount(number).display());
    }

    /// Adds a line to a mount's configuration, and mounts anew.
    pub fn configure(&self, number: usize, line: &str) {
        let folder = self.mount_folder(number);
        let config = folder.join("config.toml");
        let text_of = std::fs::read_to_string(&config).expect("the mount's configuration");
        std::fs::write(&config, format!("{line}\n{text_of}")).expect("the configuration can be written");
        self.godrive(&["down", "--dir", &self.dir()]);
        self.godrive(&["up", "--dir", &self.dir()]);
    }

    fn mount_folder(&self, number: usize) -> PathBuf {
        let pid = self.daemon(number).to_string();
        let mut mounts = nodes(self.folder.path()).into_iter().filter(|node| is_mount(node));
        let serves =
            |node: &PathBuf| std::fs::read_to_string(node.join("pid")).is_ok_and(|text| text.trim() == pid);
        mounts.find(serves).expect("a running mount has a folder")
    }

    pub fn log(&self, number: usize) -> PathBuf {
        self.mount_folder(number).join("log")
    }

    /// SIGKILL to the master and all slaves.
    pub fn kill_nodes(&self) {
        self.signal(Signal::SIGKILL, |node| !is_mount(node));
    }

    /// The same to this node of the cluster's folder.
    pub fn kill_node(&self, name: &str) {
        self.signal_node(Signal::SIGKILL, name);
    }

    pub fn signal_node(&self, signal: Signal, name: &str) {
        self.signal(signal, |node| node.ends_with(name));
    }

    fn signal(&self, signal: Signal, which: impl Fn(&Path) -> bool) {
        for node in nodes(&self.path("cluster")).into_iter().filter(|node| which(node)) {
            let pid = pid(&node).expect("a running node has a pid file");
            nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).expect("it is ours");
        }
    }

    /// What is not running of the cluster runs again.
    pub fn start_nodes(&self) {
        self.godrive(&["up", "--dir", &self.dir()]);
    }

    /// The keepers of a mount: one, but for a moment.
    pub fn keepers(&self, number: usize) -> Vec<i32> {
        let daemon =
            std::fs::read(format!("/proc/{}/cmdline", self.daemon(number))).expect("the daemon runs");
        let arguments = daemon.splitn(2, |byte| *byte == 0).nth(1).expect("it has arguments").to_owned();
        let running = std::fs::read_dir("/proc").expect("the kernel's list").flatten();
        let pids = running.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        let is_keeper = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.strip_prefix(b"godrive-keeper\0").is_some_and(|rest| rest == arguments)
        };
        pids.filter(is_keeper).collect()
    }

    /// SIGKILL to the daemon and its keeper, which each would start the other again, until both are gone.
    pub fn kill_mount(&self, number: usize) {
        let config = self.mount_folder(number).join("config.toml");
        let ours = |pid: &i32| {
            let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
            line.split(|byte| *byte == 0).any(|word| word == text(&config).as_bytes())
        };
        eventually("the mount's processes are gone", || {
            let running = std::fs::read_dir("/proc").expect("the kernel's list").flatten();
            let pids = running.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
            let left: Vec<i32> = pids.filter(ours).collect();
            for pid in &left {
                // It may have ended this very moment.
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(*pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
            left.is_empty()
        });
    }

    pub fn keeper(&self, number: usize) -> i32 {
        let keepers = self.keepers(number);
        assert_eq!(keepers.len(), 1, "the mount has one keeper");
        keepers[0]
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    fn dir(&self) -> String {
        text(&self.path("cluster")).to_owned()
    }

    fn show_logs(&self) {
        for node in nodes(&self.path("cluster")) {
            let log = std::fs::read_to_string(node.join("log")).unwrap_or_default();
            let tail: Vec<_> = log.lines().rev().take(40).collect();
            eprintln!("--- the end of {}/log", node.display());
            for line in tail.iter().rev() {
                eprintln!("{line}");
            }
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        let dir = self.path("cluster");
        let down = run(&program("godrive"), &["down", "--dir", text(&dir)]);
        if !down.status.success() {
            eprintln!("godrive down: {}", String::from_utf8_lossy(&down.stderr));
        }
        for node in nodes(&dir) {
            end(&node);
        }
        for mount in &self.mounts {
            // Not mounted any more is what is wanted.
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Ends what is left of a node, only if the process is really one of this cluster.
fn end(node: &Path) {
    let Some(pid) = pid(node) else { return };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = text(node.parent().expect("a node lies in the cluster's folder")).as_bytes();
    if command.windows(ours.len()).any(|part| part == ours) {
        eprintln!("{} still ran as {pid} and is killed", node.display());
        let _ = nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
    }
}

fn pid(node: &Path) -> Option<i32> {
    std::fs::read_to_string(node.join("pid")).ok()?.trim().parse().ok()
}

fn is_mount(node: &Path) -> bool {
    node.file_name().is_some_and(|name| name.to_string_lossy().starts_with("mount-"))
}

/// The folders of nodes and mounts below a folder or its `cluster`.
fn nodes(folder: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for folder in [folder.to_owned(), folder.join("cluster")] {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        found.extend(entries.map(|entry| entry.path()).filter(|path| path.join("config.toml").exists()));
    }
    found.sort();
    found
}

fn run(program: &Path, arguments: &[&str]) -> Output {
    Command::new(program)
        .args(arguments)
        .output()
        .unwrap_or_else(|error| panic!("{}: {error}", program.display()))
}

/// The binaries lie beside the tests' folder `deps`, as cargo builds them, or where GODRIVE_BIN_DIR says.
fn program(name: &str) -> PathBuf {
    let test = std::env::current_exe().expect("the test has a path");
    let built = test.parent().and_then(Path::parent).expect("target/<profile>/deps");
    let folder = std::env::var_os("GODRIVE_BIN_DIR").map_or_else(|| built.to_owned(), PathBuf::from);
    let program = folder.join(name);
    assert!(
        program.exists(),
        "{} is missing: cargo build --workspace --bins with the same profile",
        program.display()
    );
    program
}

fn text(path: &Path) -> &str {
    path.to_str().expect("temporary paths are text")
}

/// Waits for a condition; says what was waited for.
pub fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(10);
    while !condition() {
        assert!(Instant::now() < deadline, "waited 10 s: {what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}
