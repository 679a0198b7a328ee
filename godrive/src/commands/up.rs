//! `godrive up`: does what the plan says, step by step, and waits until each step has worked.

use super::mount::{is_served, start_mount};
use crate::admin::Admin;
use crate::cli;
use crate::cluster::create::Maker;
use crate::cluster::layout::{Cluster, Home, Kind, NodeName};
use crate::cluster::mounts;
use crate::cluster::plan::{self, Existing, Plan, Step, Wanted};
use crate::cluster::process::{self, Started};
use crate::remote::{Remote, explained};
use anyhow::{Context, Result, bail};
use godrive_proto::admin::Status;
use std::time::{Duration, Instant};

/// A master that replays a long log needs a while.
const MASTER_DEADLINE: Duration = Duration::from_secs(60);
const SLAVES_DEADLINE: Duration = Duration::from_secs(60);

pub async fn run(line: cli::Up) -> Result<()> {
    let home = Home::new(line.home.path()?);
    let mut wanted = Wanted {
        masters: line.masters,
        slaves: line.slaves,
        replicas: line.replicas,
        min_replicas: line.min_replicas,
        chunk_bytes: line.chunk_size,
        mount: None,
    };
    // What cannot work is refused before anything is made, the folder included.
    let first = plan::plan(&existing(&home)?, &wanted)?;
    let mount = line.mount.is_some().then_some(Kind::Mount);
    for kind in first.starts().map(|name| name.kind).chain(mount) {
        process::program(kind)?;
    }
    std::fs::create_dir_all(&home.dir).with_context(|| format!("creating {}", home.dir.display()))?;
    let home = Home::new(home.dir);
    let _lock = home.lock()?;
    wanted.mount = line.mount.as_deref().map(mounts::absolute).transpose()?;
    let plan = plan::plan(&existing(&home)?, &wanted)?;
    for note in &plan.notes {
        eprintln!("note: {note}");
    }
    perform(&home, &plan, &mut Maker::new(line.address)?).await?;
    summary(&home, &plan)
}

fn existing(home: &Home) -> Result<Existing> {
    let mut existing = Existing {
        cluster: home.read()?,
        nodes: home.nodes()?.into_iter().collect(),
        mounts: home.mounts()?,
        ..Existing::default()
    };
    for &name in &existing.nodes {
        let runs = match existing.mounts.get(&name.number).filter(|_| name.kind == Kind::Mount) {
            // One that runs without its mount may be waiting for the cluster, or ending: it is looked at again when its turn comes.
            Some(path) => mounts::is_mounted(path)?,
            None => true,
        };
        let runs = runs && process::running(home, name)?.is_some();
        if runs {
            existing.running.insert(name);
        }
    }
    Ok(existing)
}

async fn perform(home: &Home, plan: &Plan, maker: &mut Maker) -> Result<()> {
    let mut cluster = home.read()?;
    let made = |cluster: &Option<Cluster>| cluster.clone().context("the plan makes the cluster first");
    let mut started = Vec::new();
    if cluster.is_some() {
        let stopped: Vec<_> = plan.starts().filter(|name| home.config(*name).exists()).collect();
        maker.renew(home, &stopped)?;
    }
    for step in &plan.steps {
        match step {
            Step::CreateCluster(parameters) => cluster = Some(maker.cluster(home, *parameters)?),
            Step::CreateNode(name) => maker.node(home, &made(&cluster)?, *name)?,
            Step::CreateMount(number, path) => {
                let name = NodeName { kind: Kind::Mount, number: *number };
                maker.mount(home, &made(&cluster)?, name, path)?;
            }
            Step::Start(name) if name.kind == Kind::Mount => {
                let path = home.mounts()?.remove(&name.number).context("the mount has no configuration")?;
                if !is_served(home, *name, &path).await? {
                    start_mount(home, *name).await?;
                }
            }
            Step::Start(name) => {
                let mut node = process::start(home, *name)?;
                if name.kind == Kind::Master {
                    await_master(home, &mut node).await?;
                }
                started.push(node);
            }
            Step::AwaitSlaves(count) => {
                let inodes = await_slaves(home, *count, &mut started).await?;
                if inodes == 1 && !nix::unistd::geteuid().is_root() {
                    own_root(home).await?;
                }
            }
        }
    }
    Ok(())
}

/// Waits until the master answers questions.
async fn await_master(home: &Home, master: &mut Started) -> Result<()> {
    let end = Instant::now() + MASTER_DEADLINE;
    loop {
        master.check()?;
        let error = match Admin::connect(home, Duration::from_secs(2)).await {
            Ok(admin) => match admin.status().await {
                Ok(_) => {
                    admin.close().await;
                    return Ok(());
                }
                Err(error) => error,
            },
            Err(error) => error,
        };
        if Instant::now() >= end {
            bail!(
                "the master runs but did not answer within {} s ({error:#}). {}",
                MASTER_DEADLINE.as_secs(),
                master.last_words()
            );
        }
        tokio::time::sleep(process::TICK).await;
    }
}

/// An empty cluster belongs to whoever made it: else only root could write to it through a mount.
async fn own_root(home: &Home) -> Result<()> {
    let remote = Remote::connect(home, "up", Duration::from_secs(30)).await?;
    let owned = remote.own_root().await.map_err(explained);
    remote.stop().await?;
    owned.context("making the root directory this user's own")
}

/// Waits until so many slaves are registered and alive. Returns the number of inodes.
async fn await_slaves(home: &Home, count: u32, started: &mut [Started]) -> Result<u64> {
    let admin = Admin::connect(home, Duration::from_secs(10)).await?;
    let end = Instant::now() + SLAVES_DEADLINE;
    loop {
        for node in started.iter_mut() {
            node.check()?;
        }
        let status = admin.status().await?;
        let retired = retired(home, &status)?;
        let alive = status.nodes.iter().filter(|node| node.state == "alive").count();
        if alive + retired.len() >= count as usize {
            for name in retired {
                eprintln!(
                    "note: {name} was decommissioned and is refused: stop it and remove {}, or take it back with \
                     `godrive recommission {name}`",
                    home.node(name).display()
                );
            }
            admin.close().await;
            return Ok(status.inodes);
        }
        if Instant::now() >= end {
            let words: Vec<String> = started.iter().map(Started::last_words).collect();
            bail!(
                "{alive} of {count} slaves registered within {} s; `godrive status` shows which. {}",
                SLAVES_DEADLINE.as_secs(),
                words.join("\n")
            );
        }
        tokio::time::sleep(process::TICK).await;
    }
}

/// Slaves of this folder that were decommissioned.
fn retired(home: &Home, status: &Status) -> Result<Vec<NodeName>> {
    let mut retired = Vec::new();
    for name in home.nodes()?.into_iter().filter(|name| name.kind == Kind::Slave) {
        let identity = crate::admin::load_identity(&home.node(name).join("identity.pem"))?;
        if status.retired.contains(&identity.node) {
            retired.push(name);
        }
    }
    Ok(retired)
}

fn summary(home: &Home, plan: &Plan) -> Result<()> {
    let cluster = home.cluster()?;
    let nodes = home.nodes()?;
    let slaves = nodes.iter().filter(|name| name.kind == Kind::Slave).count();
    let started = plan.starts().count();
    let dir = home.dir.display();
    say!(
        "{} 1 master, {slaves} slaves, {} replicas (at least {}), {started} started",
        if plan.steps.iter().any(|step| matches!(step, Step::CreateCluster(_))) {
            "new cluster:"
        } else {
            "cluster:"
        },
        cluster.replicas,
        cluster.min_replicas
    )?;
    for path in home.mounts()?.values() {
        say!("mounted at {}", path.display())?;
    }
    say!("look:  godrive status --dir {dir}\nstop:  godrive down --dir {dir}")?;
    Ok(())
}
