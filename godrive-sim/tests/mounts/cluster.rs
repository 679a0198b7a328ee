//! A cluster of real processes with some mounts, taken away again whatever happens.

use crate::helper::Helper;
use crate::relay::Relay;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

pub struct Cluster {
    folder: tempfile::TempDir,
    helper: Helper,
    mounts: Vec<PathBuf>,
    /// Between the last mount and the master.
    relay: Relay,
}

/// A frozen daemon; dropped, it goes on.
pub struct Frozen<'a> {
    cluster: &'a Cluster,
    node: String,
}

impl Drop for Frozen<'_> {
    fn drop(&mut self) {
        self.cluster.signal(&self.node, Signal::SIGCONT);
    }
}

impl Cluster {
    /// One master, three slaves, and mounts at `<folder>/m1`, `m2`, …
    pub fn start(mounts: usize) -> Self {
        let folder =
            tempfile::Builder::new().prefix("godrive-linear-").tempdir().expect("a temporary folder");
        let path = folder.path().canonicalize().expect("the folder exists");
        let mounts = (1..=mounts).map(|number| path.join(format!("m{number}"))).collect();
        let nowhere = SocketAddr::from(([127, 0, 0, 1], 9));
        let helper = Helper::start(&path);
        let mut cluster = Self { folder, helper, mounts, relay: Relay::to(nowhere) };
        cluster.godrive(&["up", "--slaves", "3", "--mount", text(cluster.mount(1)), "--dir"]);
        for mount in &cluster.mounts[1..] {
            cluster.godrive(&["mount", text(mount), "--dir"]);
        }
        cluster.put_last_behind_relay();
        cluster
    }

    fn put_last_behind_relay(&mut self) {
        self.godrive(&["down", "--dir"]);
        let config = self.dir().join(format!("mount-{}/config.toml", self.mounts.len()));
        let before = std::fs::read_to_string(&config).expect("the mount's configuration");
        let line = before.lines().find(|line| line.starts_with("master")).expect("it names the master");
        let address = line.split('"').nth(1).and_then(|address| address.parse().ok()).expect("an address");
        self.relay = Relay::to(address);
        let after = before.replace(line, &format!("master = \"{}\"", self.relay.address));
        std::fs::write(&config, after).expect("the configuration can be written");
        self.up();
    }

    /// The last mount does not reach the master, nor the master it.
    pub fn cut_off(&self, cut: bool) {
        self.relay.cut(cut);
    }

    /// Datagrams of the last mount and of the master that did not arrive.
    pub fn lost(&self) -> [u64; 2] {
        self.relay.dropped()
    }

    pub fn log(&self, node: &str) -> String {
        std::fs::read_to_string(self.dir().join(node).join("log")).expect("the node's log")
    }

    pub fn mount(&self, number: usize) -> &Path {
        &self.mounts[number - 1]
    }

    /// Starts what does not run.
    pub fn up(&self) {
        self.godrive(&["up", "--dir"]);
    }

    /// SIGSTOP to the daemon of a mount.
    pub fn freeze(&self, mount: usize) -> Frozen<'_> {
        let node = format!("mount-{mount}");
        self.signal(&node, Signal::SIGSTOP);
        Frozen { cluster: self, node }
    }

    pub fn signal(&self, node: &str, signal: Signal) {
        let pid = pid(&self.dir().join(node)).unwrap_or_else(|| panic!("{node} has no pid file"));
        kill(Pid::from_raw(pid), signal).unwrap_or_else(|error| panic!("{signal} to {node}: {error}"));
    }

    fn dir(&self) -> PathBuf {
        self.folder.path().join("cluster")
    }

    /// Runs the command, whose last argument is the cluster's folder.
    fn godrive(&self, arguments: &[&str]) {
        if let Err(failure) = self.run(arguments) {
            panic!("godrive {arguments:?}: {failure}");
        }
    }

    fn run(&self, arguments: &[&str]) -> Result<(), String> {
        let (program, dir) = (program("godrive"), self.dir());
        let line: Vec<&str> = [text(&program)].iter().chain(arguments).copied().chain([text(&dir)]).collect();
        self.helper.run(&line)
    }

    fn nodes(&self) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(self.dir()).into_iter().flatten().flatten();
        entries.map(|entry| entry.path()).filter(|path| path.join("config.toml").exists()).collect()
    }

    /// Their ends; whole they are copied to the folder that GODRIVE_LOGS names.
    fn show_logs(&self) {
        let keep = std::env::var_os("GODRIVE_LOGS").map(PathBuf::from);
        for node in self.nodes() {
            let log = std::fs::read_to_string(node.join("log")).unwrap_or_default();
            if let Some(keep) = &keep {
                let name = format!("{}.log", text(Path::new(node.file_name().expect("a node has a name"))));
                let kept = std::fs::create_dir_all(keep).and_then(|()| std::fs::write(keep.join(name), &log));
                kept.unwrap_or_else(|error| eprintln!("{}: {error}", keep.display()));
            }
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- the end of {}/log", node.display());
            lines[lines.len().saturating_sub(30)..].iter().for_each(|line| eprintln!("{line}"));
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if std::thread::panicking() {
            self.show_logs();
        }
        if !self.dir().join("cluster.toml").exists() {
            return;
        }
        if let Err(failure) = self.run(&["down", "--dir"]) {
            eprintln!("godrive down: {failure}");
        }
        self.nodes().iter().for_each(|node| end(node));
        for mount in &self.mounts {
            // Not mounted any more is what is wanted.
            let _ = nix::mount::umount2(mount, nix::mount::MntFlags::MNT_DETACH);
        }
    }
}

/// Kills what is left of a node, only if the process is really one of this cluster.
fn end(node: &Path) {
    let Some(pid) = pid(node) else { return };
    let command = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let ours = text(node.parent().expect("a node lies in the cluster's folder")).as_bytes();
    if command.windows(ours.len()).any(|part| part == ours) {
        eprintln!("{} still ran as {pid} and is killed", node.display());
        // It may end by itself at this moment.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
}

fn pid(node: &Path) -> Option<i32> {
    std::fs::read_to_string(node.join("pid")).ok()?.trim().parse().ok()
}

/// The programs lie beside the tests' folder `deps`, as cargo builds them, or where GODRIVE_BIN_DIR says.
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
