//! Histories of objects that three clients share are linearizable, whatever goes wrong. More with
//! `godrive-sim --scenario linear-kills --seed N --runs M`.

use godrive_sim::summary::Summary;
use godrive_sim::{cluster, scenarios};
use std::ops::Range;

/// A scenario, its seeds, and the operations that they check at least.
type Row = (&'static str, Range<u64>, usize);

const TRIED: &[Row] = &[
    ("linear-calm", 1..2, 8_000),
    ("linear-crowd", 1..2, 10_000),
    ("linear-loss", 1..2, 8_000),
    ("linear-weather", 1..2, 5_000),
    ("linear-slaves", 1..2, 12_000),
    ("linear-master", 1..2, 12_000),
    ("linear-partitions", 1..2, 10_000),
    ("linear-pauses", 1..2, 10_000),
    ("linear-sleep", 1..2, 10_000),
    ("linear-kills", 1..2, 10_000),
    ("linear-power", 1..2, 6_000),
    ("linear-chaos", 1..2, 10_000),
];

fn holds(name: &str) {
    let (_, seeds, at_least) = TRIED.iter().find(|(tried, ..)| *tried == name).unwrap();
    let scenario = scenarios::named(name).unwrap();
    let mut summary = Summary::default();
    let mut failures = Vec::new();
    let mut operations = 0;
    for seed in seeds.clone() {
        let outcome = cluster::run(&scenario.plan(seed), seed);
        summary.add(&outcome);
        failures.extend(outcome.report(name, seed));
        operations += outcome.checked.operations;
    }
    println!("{name}: {operations} operations checked; {summary}");
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(operations >= *at_least, "{name}: only {operations} operations were checked, not {at_least}");
}

macro_rules! scenarios {
    ($($test:ident $name:literal;)+) => {
        $(#[test] fn $test() { holds($name); })+

        #[test]
        fn every_scenario_is_tried() {
            let tests = [$($name),+];
            for scenario in scenarios::LINEAR {
                assert!(tests.contains(&scenario.name), "{} has no test", scenario.name);
                assert!(TRIED.iter().any(|(name, ..)| *name == scenario.name), "{} has no row", scenario.name);
            }
        }
    };
}

scenarios! {
    calm "linear-calm";
    crowd "linear-crowd";
    loss "linear-loss";
    weather "linear-weather";
    slaves "linear-slaves";
    master "linear-master";
    partitions "linear-partitions";
    pauses "linear-pauses";
    sleep "linear-sleep";
    kills "linear-kills";
    power "linear-power";
    chaos "linear-chaos";
}

#[test]
fn a_run_of_the_suite_checks_a_hundred_thousand_operations() {
    let least: usize = TRIED.iter().map(|(.., at_least)| at_least).sum();
    assert!(least >= 100_000, "{least}");
}
