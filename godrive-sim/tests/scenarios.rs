//! Every scenario under a few seeds: with those of `linear.rs` a hundred runs. More with
//! `godrive-sim --scenario all --seed N --runs M`.

use godrive_sim::summary::Summary;
use godrive_sim::{cluster, scenarios};
use std::ops::Range;

/// Runs of the whole suite, those of `linear.rs` included.
const RUNS: u64 = 100;

fn holds(name: &str, seeds: Range<u64>) {
    let scenario = scenarios::named(name).unwrap();
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    for seed in seeds {
        let outcome = cluster::run(&scenario.plan(seed), seed);
        summary.add(&outcome);
        failures.extend(outcome.report(name, seed));
    }
    println!("{name}: {summary}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
}

macro_rules! scenarios {
    ($($test:ident $name:literal $seeds:expr;)+) => {
        $(#[test] fn $test() { holds($name, $seeds); })+

        #[test]
        fn every_scenario_is_tried_and_all_together_a_hundred_times() {
            let tried = [$($name),+];
            let other = scenarios::all().filter(|scenario| !scenarios::LINEAR.iter().any(|l| l.name == scenario.name));
            for scenario in other {
                assert!(tried.contains(&scenario.name), "{} has no test", scenario.name);
            }
            let runs: u64 = [$($seeds),+].into_iter().map(|seeds: Range<u64>| seeds.end - seeds.start).sum();
            assert!(runs + scenarios::LINEAR.len() as u64 >= RUNS, "only {runs} runs and one of each that is linear");
        }
    };
}

scenarios! {
    calm "calm" 1..2;
    loss "loss" 1..2;
    partition_slave "partition-slave" 1..3;
    partition_client "partition-client" 1..3;
    partition_one_way "partition-one-way" 1..3;
    crash_slave "crash-slave" 1..3;
    crash_two "crash-two" 1..3;
    partition_master "partition-master" 1..3;
    crash_master "crash-master" 1..3;
    crash_client "crash-client" 1..3;
    crash_all "crash-all" 1..4;
    restart "restart" 1..4;
    late_datagrams "late-datagrams" 1..3;
    rot "rot" 1..3;
    full "full" 1..3;
    damage "damage" 1..4;
    cut_file "cut-file" 1..3;
    set_back "set-back" 1..3;
    set_back_file "set-back-file" 1..3;
    index "index" 1..3;
    ruin "ruin" 1..5;
    stale_majority "stale-majority" 1..3;
    disk_errors "disk-errors" 1..3;
    slow_disk "slow-disk" 1..2;
    wiped "wiped" 1..3;
    cloned "cloned" 1..4;
    damaged_master "damaged-master" 1..5;
    weather "weather" 1..3;
    bridge "bridge" 1..3;
    flapping "flapping" 1..3;
    standstill "standstill" 1..4;
    standstill_one_way "standstill-one-way" 1..4;
    pauses_slave "pauses-slave" 1..2;
    pauses_master "pauses-master" 1..2;
    pauses_client "pauses-client" 1..2;
    clocks "clocks" 1..2;
    drain "drain" 1..5;
    drain_disk "drain-disk" 1..5;
    balance "balance" 1..3;
    mixed_1 "mixed" 1..9;
    mixed_2 "mixed" 9..17;
    mixed_3 "mixed" 17..25;
    mixed_4 "mixed" 25..33;
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for name in ["calm", "partition-slave", "crash-all", "drain", "drain-disk", "mixed"] {
        let scenario = scenarios::named(name).unwrap();
        let run = |seed| cluster::run(&scenario.plan(seed), seed).trace;
        let first = run(5);
        assert!(first.datagrams > 1000, "{first:?}");
        assert_eq!(first, run(5), "{name} does not repeat under its seed");
        assert_ne!(first.hash, run(6).hash, "{name} does not depend on its seed");
    }
}

#[test]
fn slaves_that_sync_nothing_are_caught() {
    let mut plan = scenarios::named("crash-all").unwrap().plan(1);
    plan.lying_disks = true;
    let outcome = cluster::run(&plan, 1);
    assert!(!outcome.failures.is_empty(), "lost data went unnoticed: {:#?}", outcome.tally);
}

/// With one more slave that is reached, it may go on, and the check of the standstill has to say so.
#[test]
fn an_acknowledgement_during_a_standstill_is_caught() {
    let mut plan = scenarios::named("standstill").unwrap().plan(1);
    plan.slaves = 4;
    let outcome = cluster::run(&plan, 1);
    assert!(outcome.failures.iter().any(|f| f.contains("operations: 0..=0")), "{:#?}", outcome.failures);
}

/// Otherwise the scenario proves nothing.
#[test]
fn where_every_replica_is_bad_reads_fail() {
    let outcome = cluster::run(&scenarios::named("ruin").unwrap().plan(1), 1);
    let reads = outcome.errors.iter().filter(|(text, _)| text.starts_with("read: errno 5"));
    assert!(reads.map(|(_, times)| times).sum::<u64>() > 0, "{:#?}", outcome.errors);
}

/// Nor does one in which nobody who stood still for too long had anything that came too late.
#[test]
fn where_clients_stand_still_for_longer_than_their_lease_they_lose_writes_and_are_told() {
    const TOLD: [&str; 3] = ["write: errno 5", "fsync: errno 5", "close: errno 5"];
    let scenario = scenarios::named("pauses-client").unwrap();
    let somebody = (1..=4).any(|seed| {
        let outcome = cluster::run(&scenario.plan(seed), seed);
        assert!(outcome.tally.lost_writes > 0, "seed {seed}: {:#?}", outcome.tally);
        outcome.errors.keys().any(|text| TOLD.iter().any(|kind| text.starts_with(kind)))
    });
    assert!(somebody, "nobody was told anything");
}

/// The audit sees what the oracle cannot: a run in which nobody looks after a damaged disk, and nothing scrubs it in time.
#[test]
fn a_replica_that_stays_wrong_is_found_by_the_audit() {
    use godrive_sim::cluster::Node;
    use godrive_sim::damage::Damage;
    use godrive_sim::events::Event;
    let mut plan = scenarios::named("calm").unwrap().plan(1);
    let slave = Node::Slave(1);
    let until = plan.workload.until;
    plan.schedule.push((until / 2, Event::Kill(vec![slave])));
    // It stays away, and nobody else is there to take its replicas.
    plan.schedule.push((until / 2, Event::Damage(slave, Damage::FlipAll)));
    plan.slaves = 3;
    let outcome = cluster::run(&plan, 1);
    assert!(
        !outcome.audited && outcome.failures.iter().any(|f| f.contains("did not come to rest")),
        "{outcome:#?}"
    );
}
