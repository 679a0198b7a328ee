//! Every scenario under a few seeds. More with `godrive-sim --scenario all --seed N --runs M`.

use godrive_sim::{cluster, scenarios};

fn holds(name: &str, seeds: std::ops::Range<u64>) {
    let scenario = scenarios::named(name).unwrap();
    for seed in seeds {
        let outcome = cluster::run(&scenario.plan(seed), seed);
        assert!(
            outcome.failures.is_empty(),
            "{:#?}\n{:#?}\nagain: cargo run -p godrive-sim -- --scenario {name} --seed {seed} --log info",
            outcome.failures,
            outcome.errors
        );
    }
}

macro_rules! scenarios {
    ($($test:ident $name:literal $seeds:expr;)+) => {
        $(#[test] fn $test() { holds($name, $seeds); })+

        #[test]
        fn every_scenario_is_tried() {
            let tried = [$($name),+];
            assert!(scenarios::ALL.iter().all(|scenario| tried.contains(&scenario.name)));
        }
    };
}

scenarios! {
    calm "calm" 1..3;
    loss "loss" 1..3;
    partition_slave "partition-slave" 1..4;
    partition_client "partition-client" 1..4;
    partition_one_way "partition-one-way" 1..3;
    crash_slave "crash-slave" 1..4;
    crash_master "crash-master" 1..4;
    crash_client "crash-client" 1..3;
    crash_all "crash-all" 1..4;
    late_datagrams "late-datagrams" 1..3;
    rot "rot" 1..3;
    full "full" 1..3;
    chaos "chaos" 1..4;
}

#[test]
fn the_same_seed_gives_the_same_run() {
    for name in ["calm", "partition-slave", "crash-all"] {
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
