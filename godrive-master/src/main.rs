//! The master's daemon. The work is in the library; here are the process's own matters: arguments, files, signals.

#![allow(
    clippy::disallowed_methods,
    reason = "the process reads its own configuration and keys, and locks its directory"
)]

use anyhow::{Context, Result};
use clap::Parser;
use godrive_disk::RealDisk;
use godrive_master::config::{Config, DOCUMENTED_DEFAULT};
use godrive_master::{Master, World};
use godrive_proto::net::identity::{Authority, Identity};
use godrive_proto::net::machine::{MachineClock, MachineSockets, daemon_runtime};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::fs::File;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// GoDrive's metadata server: keeps the names and places the chunks.
#[derive(Parser)]
#[command(
    version,
    after_help = "Examples:\n  godrive-master --print-config > master.toml\n  godrive-master --config master.toml\n\n`godrive up --dir DIR` writes a working configuration and starts everything."
)]
struct CommandLine {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", required_unless_present = "print_config")]
    config: Option<PathBuf>,
    /// Print a commented configuration file with all defaults, and exit
    #[arg(long)]
    print_config: bool,
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let Some(file) = line.config.filter(|_| !line.print_config) else {
        print!("{DOCUMENTED_DEFAULT}");
        return ExitCode::SUCCESS;
    };
    match serve(&file) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godrive-master: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    log_to_stderr(&config.log_filter).with_context(|| format!("{}: log_filter", file.display()))?;
    std::fs::create_dir_all(&config.directory).with_context(|| config.directory.display().to_string())?;
    let _lock = lock(&config.directory)?;
    let world = World {
        disk: Arc::new(
            RealDisk::open(&config.directory).with_context(|| config.directory.display().to_string())?,
        ),
        sockets: Arc::new(MachineSockets),
        clock: Arc::new(MachineClock),
        seed: OsRng.try_next_u64().context("the system's randomness")?,
        identity: Identity::from_pem(&secret_file(&config.identity)?)
            .with_context(|| config.identity.display().to_string())?,
        authority: authority(&config.authority)?,
        transport_seed: None,
    };
    let runtime = daemon_runtime("godrive-master").context("starting the runtime")?;
    runtime.block_on(async {
        let stop = stop_signal()?;
        let master = Master::start(config, world).await?;
        // Without systemd there is nobody to notify, which is no error.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        stop.await;
        tracing::info!("stopping");
        master.stop().await
    })
}

/// Two masters on one directory would destroy it.
fn lock(directory: &Path) -> Result<File> {
    let path = directory.join("lock");
    let file = File::create(&path).with_context(|| path.display().to_string())?;
    file.try_lock().with_context(|| format!("{}: another master uses this directory", path.display()))?;
    Ok(file)
}

fn authority(path: &Path) -> Result<Option<Arc<Authority>>> {
    if !path.exists() {
        tracing::info!("{} does not exist: nobody can join through this master", path.display());
        return Ok(None);
    }
    let authority = Authority::from_pem(&secret_file(path)?).with_context(|| path.display().to_string())?;
    Ok(Some(Arc::new(authority)))
}

fn secret_file(path: &Path) -> Result<String> {
    let name = || path.display().to_string();
    let mode = std::fs::metadata(path).with_context(name)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("{}: other users can read this private key: chmod 600 it", name());
    }
    std::fs::read_to_string(path).with_context(name)
}

/// Resolves at SIGTERM or SIGINT.
fn stop_signal() -> Result<impl Future<Output = ()>> {
    let mut terminate = signal(SignalKind::terminate()).context("SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("SIGINT")?;
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
    })
}

fn log_to_stderr(filter: &str) -> Result<()> {
    let filter = EnvFilter::try_new(filter)?;
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
    Ok(())
}
