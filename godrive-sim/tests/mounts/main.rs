//! Three real mounts of a real cluster: what programs are answered by system calls on them, while daemons are frozen,
//! cut off and killed, is linearizable.
//!
//! Beginnings and ends are noted in microseconds, under one lock, before each call and behind it: that is the order of
//! CLOCK_MONOTONIC, without ties. Another run: `GODRIVE_SEED=7 cargo nextest run --release -p godrive-sim --features mount-tests --test mounts`.
#![allow(clippy::disallowed_methods, reason = "these tests work on the real machine")]

mod client;
mod cluster;
mod helper;
mod relay;

use client::{Mount, Work};
use cluster::Cluster;
use godrive_sim::sharing::Care;
use nix::sys::signal::Signal;
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::time::{Duration, Instant};

const MOUNTS: usize = 3;
/// Behind the end of a run all calls must have returned within this.
const PATIENCE: Duration = Duration::from_secs(40);

fn seed() -> u64 {
    std::env::var("GODRIVE_SEED").ok().map_or(1, |seed| seed.parse().expect("GODRIVE_SEED is a number"))
}

/// Runs the workload on three mounts, with what `faults` does meanwhile, and checks every history.
fn run(care: Care, at_least: usize, faults: impl FnOnce(&Cluster, &mut SmallRng)) {
    let seed = seed();
    let mut dice = SmallRng::seed_from_u64(seed);
    let cluster = Cluster::start(MOUNTS);
    let work = Work::new(care);
    let begun = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("it is past 1970");
    println!("moments are microseconds behind second {:.6} of 1970", begun.as_secs_f64());
    let mut threads = Vec::new();
    for number in 1..=MOUNTS {
        let mount =
            Mount { client: number as u16, path: cluster.mount(number).to_owned(), work: work.clone() };
        threads.extend(mount.start(&mut dice));
    }
    faults(&cluster, &mut dice);
    let healed = Instant::now();
    work.until_all_progress(MOUNTS, healed, PATIENCE);
    work.end();
    let deadline = Instant::now() + PATIENCE;
    while threads.iter().any(|thread| !thread.is_finished()) {
        if Instant::now() > deadline {
            // Their calls return when the daemons are gone.
            (1..=MOUNTS).for_each(|number| cluster.signal(&format!("mount-{number}"), Signal::SIGKILL));
            panic!("calls did not return within {PATIENCE:?} of the end, seed {seed}");
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    threads.into_iter().for_each(|thread| thread.join().expect("a worker ended"));
    let (checked, failures) = work.verdict();
    println!("{checked:?}, errors: {:#?}", work.errors());
    assert!(
        failures.is_empty(),
        "{}\nagain: GODRIVE_SEED={seed} cargo nextest run --release -p godrive-sim --features mount-tests --test mounts",
        failures.join("\n")
    );
    assert!(checked.operations >= at_least, "only {} operations were checked", checked.operations);
}

fn pass(seconds: f64) {
    std::thread::sleep(Duration::from_secs_f64(seconds));
}

#[test]
fn three_mounts_agree() {
    run(Care::Plain, 5000, |_, _| pass(8.0));
}

#[test]
fn three_mounts_agree_while_daemons_are_frozen_and_killed() {
    run(Care::Synced, 5000, |cluster, dice| {
        pass(2.0);
        // Within its lease and past it.
        for (mount, seconds) in [(1, 0.5..5.0), (2, 9.0..11.0)] {
            let frozen = cluster.freeze(mount);
            pass(dice.random_range(seconds));
            drop(frozen);
            pass(dice.random_range(1.0..2.0));
        }
        for node in ["slave-2", "master-1"] {
            cluster.signal(node, Signal::SIGKILL);
            pass(dice.random_range(0.1..2.0));
            cluster.up();
            pass(dice.random_range(3.0..5.0));
        }
    });
}

/// The slaves are still reached: what a mount writes behind the end of its lease must be refused there.
#[test]
fn three_mounts_agree_while_one_is_cut_off_from_the_master() {
    run(Care::Synced, 3000, |cluster, dice| {
        pass(1.0);
        // Within its lease, twice, and past it.
        for seconds in [0.5..2.0, 2.0..5.0, 9.0..12.0] {
            cluster.cut_off(true);
            pass(dice.random_range(seconds));
            cluster.cut_off(false);
            pass(dice.random_range(2.0..4.0));
        }
        assert!(cluster.lost().iter().all(|lost| *lost > 0), "nothing was cut: {:?}", cluster.lost());
        let log = cluster.log("master-1");
        assert!(log.contains("its lease time has passed"), "nobody missed the mount that was cut off");
    });
}
