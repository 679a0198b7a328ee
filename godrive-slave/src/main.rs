//! The slave's daemon. The work is in the library; here are the process's own matters: arguments, files, signals.

#![allow(clippy::disallowed_methods, reason = "the process's own files, before there is a disk")]

use anyhow::{Context, Result, bail, ensure};
use clap::{Parser, Subcommand};
use godrive_disk::{Disk, RealDisk, UnusableDisk};
use godrive_proto::Role;
use godrive_proto::net::identity::Identity;
use godrive_proto::net::machine::{self, MachineClock, MachineSockets, daemon_runtime};
use godrive_proto::net::token::{JoinToken, join};
use godrive_proto::time::Clock;
use godrive_slave::config::{COMMENTED, Config};
use godrive_slave::store::{Options, fsck};
use godrive_slave::{Slave, World};
use rand::TryRngCore;
use rand::rngs::OsRng;
use std::future::Future;
use std::io::Write;
use std::net::{SocketAddr, UdpSocket};
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::Arc;
use tokio::runtime::Runtime;
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::EnvFilter;

/// The port that `--join` listens on unless told otherwise.
const PORT: u16 = 7500;

/// GoDrive's storage server: keeps replicas of chunks on the disks of this machine.
#[derive(Parser)]
#[command(
    version,
    args_conflicts_with_subcommands = true,
    after_help = "Examples:\n  godrive-slave --join gd1.… --dir /srv/godrive/slave    join a cluster, then serve\n  \
                  godrive-slave --config /srv/godrive/slave/config.toml  serve\n  \
                  godrive-slave fsck --config slave.toml                 check all data of a stopped slave\n\n\
                  `godrive token --role slave` prints a token."
)]
struct CommandLine {
    /// The configuration file (TOML)
    #[arg(long, value_name = "FILE", conflicts_with_all = ["join", "print_config"])]
    config: Option<PathBuf>,
    /// Join a cluster with this one-time token: writes identity and configuration into --dir, then serves
    #[arg(long, value_name = "TOKEN", requires = "dir")]
    join: Option<String>,
    /// Where --join puts everything
    #[arg(long, value_name = "DIR", requires = "join")]
    dir: Option<PathBuf>,
    /// The address to listen on after --join [default: this machine's address towards the master, port 7500]
    #[arg(long, value_name = "ADDR", requires = "join")]
    listen: Option<SocketAddr>,
    /// Print a commented configuration file with all defaults, and exit
    #[arg(long)]
    print_config: bool,
    #[command(subcommand)]
    command: Option<Command>,
}

#[derive(Subcommand)]
enum Command {
    /// Check every record and leaf of a stopped slave's disks; reports, never writes
    Fsck {
        /// The slave's configuration file
        #[arg(long, value_name = "FILE")]
        config: PathBuf,
    },
}

fn main() -> ExitCode {
    let line = CommandLine::parse();
    let result = match line {
        CommandLine { command: Some(Command::Fsck { config }), .. } => check(&config),
        CommandLine { print_config: true, .. } => {
            print!("{COMMENTED}");
            Ok(())
        }
        CommandLine { config: Some(config), .. } => serve(&config),
        CommandLine { join: Some(token), dir: Some(dir), listen, .. } => {
            join_cluster(&token, &dir, listen).and_then(|config| serve(&config))
        }
        _ => Err(anyhow::anyhow!("say --config FILE, or --join TOKEN --dir DIR; --help shows examples")),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("godrive-slave: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn serve(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    log_to_stderr(&config.log_filter).with_context(|| format!("{}: log_filter", file.display()))?;
    let identity = load_identity(&config.identity)?;
    let disks = open_disks(&config.disks)?;
    let world = World {
        disks,
        sockets: Arc::new(MachineSockets),
        clock: Arc::new(MachineClock),
        seed: OsRng.try_next_u64().context("the system's randomness")?,
        identity,
        transport_seed: None,
    };
    runtime()?.block_on(async {
        let stop = stop_signal()?;
        let slave = Slave::start(config, world).await?;
        // Without systemd there is nobody to notify, which is no error.
        let _ = sd_notify::notify(&[sd_notify::NotifyState::Ready]);
        stop.await;
        tracing::info!("stopping");
        slave.stop().await
    })
}

/// One that cannot be opened is a disk out of service; the slave serves with the others.
fn open_disks(paths: &[PathBuf]) -> Result<Vec<Arc<dyn Disk>>> {
    let (mut disks, mut refused): (Vec<Arc<dyn Disk>>, _) = (Vec::new(), Vec::new());
    for path in paths {
        match RealDisk::open(path) {
            Ok(disk) => disks.push(Arc::new(disk)),
            Err(error) => {
                refused.push(format!("disk {}: {error}", path.display()));
                disks.push(Arc::new(UnusableDisk::new(error)));
            }
        }
    }
    ensure!(refused.len() < disks.len(), "no disk can be used: {}", refused.join("; "));
    Ok(disks)
}

fn runtime() -> Result<Runtime> {
    daemon_runtime("godrive-slave").context("starting the runtime")
}

/// Writes identity, configuration and disk directory of a new slave; the path of the configuration.
fn join_cluster(token: &str, dir: &Path, listen: Option<SocketAddr>) -> Result<PathBuf> {
    let token: JoinToken = token.parse().context("the token")?;
    let (identity_path, config_path) = (dir.join("identity.pem"), dir.join("config.toml"));
    ensure!(
        !identity_path.exists() && !config_path.exists(),
        "{} holds a slave already: start it with `godrive-slave --config {}`",
        dir.display(),
        config_path.display()
    );
    std::fs::create_dir_all(dir.join("disk-1")).with_context(|| dir.display().to_string())?;
    let listen = match listen {
        Some(listen) => listen,
        None => SocketAddr::new(address_towards(token.master)?, PORT),
    };
    let text = format!(
        "listen = \"{listen}\"\nmaster = \"{}\"\nidentity = \"identity.pem\"\ndisks = [\"disk-1\"]\n",
        token.master
    );
    Config::parse(&text, "the configuration to be written")?;
    let identity =
        runtime()?.block_on(join(&machine::sockets(), &token, Role::Slave)).context("joining the cluster")?;
    write_secret(&identity_path, &identity.to_pem())?;
    std::fs::write(&config_path, text).with_context(|| config_path.display().to_string())?;
    println!(
        "joined cluster {} as {}; configuration in {}",
        identity.cluster,
        identity.node,
        config_path.display()
    );
    Ok(config_path)
}

/// The local address from which the master is reached; sends nothing.
fn address_towards(master: SocketAddr) -> Result<std::net::IpAddr> {
    let any = if master.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(any).context("finding the own address")?;
    socket.connect(master).with_context(|| format!("no route to the master {master}"))?;
    Ok(socket.local_addr().context("finding the own address")?.ip())
}

fn write_secret(path: &Path, text: &str) -> Result<()> {
    let create = || {
        let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
        file.write_all(text.as_bytes())?;
        file.sync_all()
    };
    create().with_context(|| path.display().to_string())
}

fn load_identity(path: &Path) -> Result<Identity> {
    let name = || path.display().to_string();
    let mode = std::fs::metadata(path).with_context(name)?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!("{}: other users can read this private key: chmod 600 it", name());
    }
    let identity =
        Identity::from_pem(&std::fs::read_to_string(path).with_context(name)?).with_context(name)?;
    ensure!(
        identity.role == Role::Slave,
        "{}: the certificate is a {}'s, not a slave's",
        name(),
        identity.role
    );
    Ok(identity)
}

fn check(file: &Path) -> Result<()> {
    let config = Config::load(file)?;
    log_to_stderr("warn")?;
    let options = Options::new(load_identity(&config.identity)?.cluster);
    let mut bad = 0;
    for path in &config.disks {
        let checked = RealDisk::open_existing(path)
            .and_then(|disk| fsck::check(Arc::new(disk), options, MachineClock.wall()));
        match checked {
            Ok(report) => {
                println!(
                    "{}: disk {}: {} replicas ({} kept aside, {} unfinished copies), {} leaves verified, {} bad",
                    path.display(),
                    report.disk,
                    report.replicas,
                    report.asides,
                    report.partial,
                    report.leaves,
                    report.bad.len()
                );
                for (key, leaf) in &report.bad {
                    println!("  chunk {}: leaf {leaf} does not match its sum", key.chunk);
                }
                bad += report.bad.len();
            }
            Err(error) => {
                println!("{}: {error}", path.display());
                bad += 1;
            }
        }
    }
    if bad > 0 {
        bail!(
            "{bad} problems; nothing was changed. Once the slave runs, its scrub reports them and the cluster repairs them"
        );
    }
    Ok(())
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
