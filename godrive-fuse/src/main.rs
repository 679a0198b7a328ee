//! The mount's daemon. The work is in the library; here are the process's own matters: arguments, log, signals.

use anyhow::{Context, Result};
use clap::Parser;
use godrive_fuse::config::{Config, DOCUMENTED_DEFAULT};
use godrive_fuse::options::CommandLine;
use godrive_fuse::{World, join};
use godrive_proto::net::Sockets;
use godrive_proto::net::machine::{self, MachineClock, daemon_runtime};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let line = CommandLine::parse();
    if line.print_config {
        print!("{DOCUMENTED_DEFAULT}");
        return ExitCode::SUCCESS;
    }
    match serve(&line) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godrive-fuse: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(line: &CommandLine) -> Result<()> {
    let runtime = daemon_runtime("godrive-fuse").context("starting the runtime")?;
    let result = runtime.block_on(async {
        let sockets = machine::sockets();
        let (file, config) = configuration(line, &sockets).await?;
        log_to_stderr(&config.log_filter).with_context(|| format!("{}: `log_filter`", file.display()))?;
        if line.join.is_some() {
            tracing::info!(config = %file.display(), master = %config.master, "joined; from now on mount with --config");
        }
        let world = World {
            sockets,
            clock: Arc::new(MachineClock),
            identity: join::load_identity(&config.identity)?,
            seed: OsRng.try_next_u64().context("the system's randomness")?,
        };
        godrive_fuse::run(config, world, Box::pin(stopped())).await
    });
    // Operations that still wait for a cluster that is gone must not keep the process.
    runtime.shutdown_background();
    result
}

async fn configuration(line: &CommandLine, sockets: &Arc<dyn Sockets>) -> Result<(PathBuf, Config)> {
    let file = match (&line.config, &line.join, &line.dir) {
        (Some(file), _, _) => file.clone(),
        (None, Some(token), Some(dir)) => join::join(sockets, token, dir, line.mountpoint.as_deref()).await?,
        _ => anyhow::bail!("either --config FILE or --join TOKEN --dir DIR is needed"),
    };
    let mut config = Config::load(&file)?;
    line.override_config(&mut config).map_err(anyhow::Error::msg)?;
    Ok((file, config))
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
