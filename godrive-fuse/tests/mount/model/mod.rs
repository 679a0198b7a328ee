//! Random scripts of everything that programs do with files, by several processes on two mounts, compared call by call with a
//! file system in memory (a tmpfs): the same results, the same errors, the same files in the end.
//!
//! A failure is cut down to a short script. Another run, and a longer one:
//! `GODRIVE_SEED=7 GODRIVE_CASES=1000 cargo nextest run --release --workspace --features "$features" -E 'test(model::)'` with the
//! features that `scripts/test` builds with.

mod calls;
mod process;

use crate::cluster::Cluster;
use calls::{Step, step};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use process::Process;
use proptest::test_runner::{Config, RngAlgorithm, TestCaseError, TestError, TestRng, TestRunner};
use std::cell::Cell;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

/// Which mount each process works on, and whether it is an ordinary user.
const PROCESSES: [(usize, bool); 4] = [(1, false), (1, true), (2, false), (2, true)];
const MAX_STEPS: usize = 60;

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name)
        .ok()
        .map_or(default, |text| text.parse().unwrap_or_else(|_| panic!("{name} is a number")))
}

struct Memory(PathBuf);

impl Memory {
    fn mount() -> Self {
        let folder = tempfile::Builder::new().prefix("godrive-model-").tempdir().unwrap().keep();
        mount(Some("godrive-model"), &folder, Some("tmpfs"), MsFlags::empty(), Some("mode=0755")).unwrap();
        Self(folder)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

#[test]
fn scripts_of_several_processes_behave_as_in_memory() {
    let (seed, cases) = (number("GODRIVE_SEED", 1), number("GODRIVE_CASES", 300));
    let (cluster, memory) = (Cluster::start(2), Memory::mount());
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&seed.to_le_bytes());
    let config = Config {
        cases: u32::try_from(cases).unwrap(),
        max_shrink_iters: 400,
        failure_persistence: None,
        ..Config::default()
    };
    let mut runner = TestRunner::new_with_rng(config, TestRng::from_seed(RngAlgorithm::ChaCha, &bytes));
    let scripts = proptest::collection::vec((0..PROCESSES.len(), step()), 1..MAX_STEPS);
    let case = Cell::new(0);
    let ran = Cell::new(0);
    let outcome = runner.run(&scripts, |script| {
        case.set(case.get() + 1);
        ran.set(ran.get() + script.len());
        run(&cluster, &memory.0, case.get(), &script).map_err(TestCaseError::fail)
    });
    println!("{} scripts, {} steps", case.get(), ran.get());
    if let Err(TestError::Fail(why, script)) = outcome {
        let steps: Vec<String> =
            script.iter().map(|(process, step)| format!("    process {process}: {step:?}")).collect();
        panic!(
            "{why}\nafter\n{}\nagain: GODRIVE_SEED={seed} GODRIVE_CASES={cases} and this test",
            steps.join("\n")
        );
    }
    outcome.unwrap();
}

fn run(cluster: &Cluster, memory: &Path, case: usize, script: &[(usize, Step)]) -> Result<(), String> {
    let name = format!("case-{case}");
    let model = memory.join(&name);
    for folder in [&cluster.mount(1).join(&name), &model] {
        fs::create_dir(folder).unwrap();
        fs::set_permissions(folder, fs::Permissions::from_mode(0o777)).unwrap();
    }
    let mut processes: Vec<Process> = PROCESSES
        .iter()
        .map(|(number, ordinary)| {
            Process::start(cluster.mount(*number).join(&name), model.clone(), *ordinary)
        })
        .collect();
    for (at, (process, step)) in script.iter().enumerate() {
        let [real, expected] = processes[*process].call(step);
        if real != expected {
            return Err(format!(
                "step {at}, {step:?} of process {process}: {real:?}, in memory {expected:?}"
            ));
        }
    }
    processes.iter_mut().for_each(Process::end);
    drop(processes);
    let expected = tree(&model);
    for number in 1..=2 {
        let real = tree(&cluster.mount(number).join(&name));
        if real != expected {
            return Err(format!("in the end mount {number} has\n{real:#?}\nin memory\n{expected:#?}"));
        }
    }
    fs::remove_dir_all(cluster.mount(1).join(&name))
        .map_err(|error| format!("removing the rest: {error}"))?;
    fs::remove_dir_all(&model).unwrap();
    Ok(())
}

/// Everything below a folder, in order.
fn tree(folder: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()).collect();
    names.sort();
    let mut all = Vec::new();
    for path in names {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let what = if kind.is_file() {
            let bytes = fs::read(&path).unwrap();
            format!("{} bytes, {:x}", bytes.len(), calls::sum(&bytes))
        } else if kind.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            String::new()
        };
        all.push(format!(
            "{} {:o} {}:{} {} links, {what}",
            path.file_name().unwrap().display(),
            meta.mode(),
            meta.uid(),
            meta.gid(),
            meta.nlink(),
        ));
        if kind.is_dir() {
            all.extend(tree(&path).into_iter().map(|line| format!("  {line}")));
        }
    }
    all
}
