//! Runs scenarios of the simulation: `godrive-sim --scenario crash-all --seed 7`.

use clap::Parser;
use godrive_sim::summary::Summary;
use godrive_sim::{cluster, scenarios};
use std::process::ExitCode;

/// Simulates a GoDrive cluster and checks its contract.
#[derive(Parser)]
#[command(
    after_help = "Examples:\n  godrive-sim --scenario calm --seed 1\n  godrive-sim --scenario all --seed 100 --runs 20\n  godrive-sim --list"
)]
struct Arguments {
    /// Which one, or `all`.
    #[arg(long, default_value = "all")]
    scenario: String,
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// So many seeds, one after the other.
    #[arg(long, default_value_t = 1)]
    runs: u64,
    /// What the cluster logs, for example `info` or `godrive_master=debug`.
    #[arg(long, default_value = "off")]
    log: String,
    /// Lists the scenarios.
    #[arg(long)]
    list: bool,
}

fn main() -> anyhow::Result<ExitCode> {
    let arguments = Arguments::parse();
    if arguments.list {
        for scenario in scenarios::all() {
            println!("{:24} {}", scenario.name, scenario.about);
        }
        return Ok(ExitCode::SUCCESS);
    }
    tracing_subscriber::fmt()
        .with_env_filter(tracing_subscriber::EnvFilter::try_new(&arguments.log)?)
        .with_writer(std::io::stderr)
        .with_timer(Virtual)
        .with_ansi(false)
        .init();
    let chosen: Vec<_> = match arguments.scenario.as_str() {
        "all" => scenarios::all().collect(),
        name => {
            vec![scenarios::named(name).ok_or_else(|| anyhow::anyhow!("no scenario {name}; see --list"))?]
        }
    };
    let mut summary = Summary::default();
    for seed in arguments.seed..arguments.seed + arguments.runs {
        for scenario in &chosen {
            let outcome = cluster::run(&scenario.plan(seed), seed);
            summary.add(&outcome);
            println!(
                "{} seed {seed}: {} in {:?}; {}; {} faults; trace {:016x} of {} datagrams",
                scenario.name,
                if outcome.failures.is_empty() { "kept the contract" } else { "FAILED" },
                outcome.virtual_time,
                done(&outcome),
                outcome.faults.values().sum::<u64>(),
                outcome.trace.hash,
                outcome.trace.datagrams,
            );
            for (error, times) in &outcome.errors {
                println!("    {times} x {error}");
            }
            for failure in &outcome.failures {
                println!("  ! {failure}");
            }
            if !outcome.failures.is_empty() {
                println!("  again: godrive-sim --scenario {} --seed {seed} --log info", scenario.name);
            }
        }
    }
    println!("{summary}");
    Ok(if summary.failed > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

/// What was judged: by the oracle, or as histories.
fn done(outcome: &cluster::Outcome) -> String {
    let cluster::Outcome { tally, checked, .. } = outcome;
    match checked.objects {
        0 => format!("{tally:?}"),
        objects => format!(
            "{} operations on {objects} objects checked, {} without an answer",
            checked.operations, checked.unknown
        ),
    }
}

/// Log lines carry the simulation's time.
struct Virtual;

impl tracing_subscriber::fmt::time::FormatTime for Virtual {
    fn format_time(&self, writer: &mut tracing_subscriber::fmt::format::Writer<'_>) -> std::fmt::Result {
        write!(writer, "{:>10.4}", turmoil::sim_elapsed().unwrap_or_default().as_secs_f64())
    }
}
