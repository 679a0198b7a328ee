//! The mount's daemon. The work is in the library; here are the process's own matters: arguments, log, signals.

use anyhow::{Context, Result};
use clap::Parser;
use godrive_fuse::config::{Config, DOCUMENTED_DEFAULT};
use godrive_fuse::keeper::{self, Handed, Kept, Left, Part};
use godrive_fuse::options::CommandLine;
use godrive_fuse::{World, join};
use godrive_proto::net::machine::{self, MachineClock, daemon_runtime};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let outcome = match keeper::part() {
        Ok(Part::First) => begin(&CommandLine::parse()),
        Ok(Part::Daemon(handed)) => serve(&CommandLine::parse(), handed),
        Ok(Part::Keeper(handed)) => {
            keeper::keep(handed, std::env::args_os().skip(1).collect()).context("the keeper cannot go on")
        }
        Err(error) => Err(error.into()),
    };
    outcome.unwrap_or_else(|error| {
        eprintln!("godrive-fuse: {error:#}");
        ExitCode::FAILURE
    })
}

/// Joins if that was asked for, finds mistakes in the configuration, and starts the mount's two processes.
fn begin(line: &CommandLine) -> Result<ExitCode> {
    if line.print_config {
        print!("{DOCUMENTED_DEFAULT}");
        return Ok(ExitCode::SUCCESS);
    }
    let file = match (&line.config, &line.join, &line.dir) {
        (Some(file), _, _) => file.clone(),
        (None, Some(token), Some(dir)) => {
            let runtime = daemon_runtime("godrive-fuse").context("starting the runtime")?;
            let file =
                runtime.block_on(join::join(&machine::sockets(), token, dir, line.mountpoint.as_deref()))?;
            eprintln!("joined; from now on mount with --config {}", file.display());
            file
        }
        _ => anyhow::bail!("either --config FILE or --join TOKEN --dir DIR is needed"),
    };
    configuration(line, &file)?;
    Err(keeper::begin(&line.daemon_arguments(&file))).context("starting the mount's daemon and its keeper")
}

fn serve(line: &CommandLine, handed: Handed) -> Result<ExitCode> {
    let (kept, left) = Kept::new(handed, std::env::args_os().skip(1).collect())?;
    let result = run(line, &kept, left);
    if let Err(error) = &result {
        eprintln!("godrive-fuse: {error:#}");
    }
    let code = u8::from(result.is_err());
    kept.ends(code);
    Ok(ExitCode::from(code))
}

fn run(line: &CommandLine, kept: &Kept, left: Option<Left>) -> Result<()> {
    let file = line.config.clone().context("the daemon is started with --config")?;
    let runtime = daemon_runtime("godrive-fuse").context("starting the runtime")?;
    let result = runtime.block_on(async {
        let sockets = machine::sockets();
        let config = configuration(line, &file)?;
        log_to_stderr(&config.log_filter).with_context(|| format!("{}: `log_filter`", file.display()))?;
        note_pid(&file);
        let world = World {
            sockets,
            clock: Arc::new(MachineClock),
            identity: join::load_identity(&config.identity)?,
            seed: OsRng.try_next_u64().context("the system's randomness")?,
        };
        godrive_fuse::run(config, world, Some(kept.clone()), left, Box::pin(stopped())).await
    });
    // Operations that still wait for a cluster that is gone must not keep the process.
    runtime.shutdown_background();
    result
}

fn configuration(line: &CommandLine, file: &Path) -> Result<Config> {
    let mut config = Config::load(file)?;
    line.override_config(&mut config).map_err(anyhow::Error::msg)?;
    Ok(config)
}

/// Where `godrive` has noted a pid beside the configuration, it is that of the daemon that serves now.
#[expect(clippy::disallowed_methods, reason = "a file of this process's own")]
fn note_pid(config: &Path) {
    let (file, new) = (config.with_file_name("pid"), config.with_file_name("pid.new"));
    if !file.exists() {
        return;
    }
    let noted =
        std::fs::write(&new, format!("{}\n", std::process::id())).and_then(|()| std::fs::rename(&new, &file));
    if let Err(error) = noted {
        tracing::warn!(file = %file.display(), %error, "the pid of this daemon is not noted");
    }
}

/// Logs to standard error, panics too; whoever starts the daemon redirects it. RUST_LOG overrides the file.
fn log_to_stderr(filter: &str) -> Result<()> {
    let filter = match std::env::var("RUST_LOG") {
        Ok(filter) => EnvFilter::try_new(filter).context("RUST_LOG")?,
        Err(_) => EnvFilter::try_new(filter)?,
    };
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    std::panic::set_hook(Box::new(|panic| {
        let trace = std::backtrace::Backtrace::capture();
        tracing::error!(%panic, %trace, "a defect; please report it");
    }));
    Ok(())
}

/// Ends with the first SIGTERM or SIGINT; the second ends the process at once.
async fn stopped() {
    let (Ok(mut terminate), Ok(mut interrupt)) =
        (signal(SignalKind::terminate()), signal(SignalKind::interrupt()))
    else {
        tracing::error!("signals cannot be received; unmount to stop");
        return std::future::pending().await;
    };
    let mut next = async move || {
        tokio::select! { _ = terminate.recv() => "SIGTERM", _ = interrupt.recv() => "SIGINT" }
    };
    let signal = next().await;
    tracing::info!(signal, "stopping; a second signal stops without flushing");
    tokio::spawn(async move {
        let signal = next().await;
        tracing::error!(signal, "stopped by a second signal; what was not flushed is lost");
        std::process::exit(1);
    });
}
