//! `godrive down`: mounts first, so that they can flush; then the slaves, which sync; then the master.

use super::mount::{end_mount, remove, report};
use crate::cli;
use crate::cluster::layout::{Home, Kind, NodeName};
use crate::cluster::mounts::{self, State};
use crate::cluster::process::{self, Daemon, Ending};
use anyhow::Result;
use std::time::Duration;

const NODE_DEADLINE: Duration = Duration::from_secs(60);

pub async fn run(line: &cli::Home) -> Result<()> {
    let home = Home::new(line.path()?);
    home.cluster()?;
    let _lock = home.lock()?;
    let mut problems = Vec::new();
    let mut stopped = 0;
    for (&number, path) in &home.mounts()? {
        let name = NodeName { kind: Kind::Mount, number };
        if let Some(daemon) = running(&home, name)? {
            stopped += 1;
            let users = mounts::users(path);
            if !users.is_empty() {
                eprintln!(
                    "note: {} is in use by {}; they get errors from now on",
                    path.display(),
                    users.join(", ")
                );
            }
            let ended = end_mount(&home.node(name), &daemon, false).await;
            if let Err(error) = ended.and_then(|ended| report(path, &ended)) {
                problems.push(format!("{error:#}"));
            }
        } else if mounts::state(path).await? == State::Dead {
            eprintln!(
                "note: the daemon of the mount at {} had died; what it had not flushed is lost",
                path.display()
            );
            if let Err(error) = mounts::unmount(path, true).await {
                problems.push(format!("the dead mount at {} cannot be removed: {error}", path.display()));
            }
        }
        remove(&home.pid(name))?;
    }
    for kind in [Kind::Slave, Kind::Master] {
        stopped += stop_all(&home, kind, &mut problems).await?;
    }
    say!("stopped {stopped} processes; the data stays in {}", home.dir.display())?;
    match problems.is_empty() {
        true => Ok(()),
        false => anyhow::bail!("{}", problems.join("\n")),
    }
}

fn running(home: &Home, name: NodeName) -> Result<Option<Daemon>> {
    Ok(process::running(home, name)?.map(|pid| Daemon { pid, config: home.config(name) }))
}

/// Stops all nodes of a kind at one time. Returns how many ran.
async fn stop_all(home: &Home, kind: Kind, problems: &mut Vec<String>) -> Result<usize> {
    let mut stopping = tokio::task::JoinSet::new();
    for name in home.nodes()?.into_iter().filter(|name| name.kind == kind) {
        match running(home, name)? {
            Some(daemon) => {
                stopping.spawn(
                    async move { (name, process::stop(&daemon, kind.program(), NODE_DEADLINE).await) },
                );
            }
            None => remove(&home.pid(name))?,
        }
    }
    let count = stopping.len();
    while let Some(stopped) = stopping.join_next().await {
        let (name, ending) = stopped?;
        match ending {
            Ok(Ending::Clean) => remove(&home.pid(name))?,
            Ok(Ending::Killed) => {
                remove(&home.pid(name))?;
                problems.push(format!(
                    "{name} did not end within {} s and was killed; see {}",
                    NODE_DEADLINE.as_secs(),
                    home.log(name).display()
                ));
            }
            Err(error) => problems.push(format!("{name}: {error:#}")),
        }
    }
    Ok(count)
}
