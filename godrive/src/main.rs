//! The command people type: it makes, starts, shows and stops clusters, moves files without a mount, and serves
//! them over HTTPS. What the daemons do is theirs; this crate only starts them, asks them and uses the client library.
#![allow(
    clippy::disallowed_methods,
    reason = "the command line is an adapter: it works on the machine's own files, processes and clock"
)]

/// A line to standard output. A reader that has enough, for instance `head`, is no error.
macro_rules! say {
    ($($text:tt)*) => { crate::table::print(&format!("{}\n", format_args!($($text)*))) };
}

mod admin;
mod cli;
mod cluster;
mod commands;
mod gateway;
mod remote;
mod table;

use clap::Parser;
use std::process::ExitCode;

/// A mistake in what was asked for: nothing was done, and the exit code is 2 as for a wrong option.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Usage(pub String);

fn main() -> ExitCode {
    let line = cli::Line::parse();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(4).enable_all().build();
    let result = match runtime {
        Ok(runtime) => {
            let result = runtime.block_on(commands::run(line.command));
            // A question to a hanging mount must not keep the process.
            runtime.shutdown_background();
            result
        }
        Err(error) => Err(anyhow::Error::from(error).context("starting the runtime")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godrive: {error:#}");
            ExitCode::from(if error.is::<Usage>() { 2 } else { 1 })
        }
    }
}
