//! What `up` has to do, as a pure function of what is there and what was asked for.

use super::layout::{Cluster, Kind, NodeName};
use crate::Usage;
use godrive_proto::limits::{DEFAULT_CHUNK_BYTES, MAX_CHUNK_BYTES, MAX_MEMBERS, MIN_CHUNK_BYTES};
use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::path::PathBuf;

const MOST_SLAVES: u32 = 1000;

/// What was asked for; None leaves it to the cluster, or to the default of a new one.
#[derive(Clone, Debug, Default)]
pub struct Wanted {
    pub masters: Option<u32>,
    pub slaves: Option<u32>,
    pub replicas: Option<u8>,
    pub min_replicas: Option<u8>,
    pub chunk_bytes: Option<u64>,
    pub mount: Option<PathBuf>,
}

/// What is there.
#[derive(Clone, Debug, Default)]
pub struct Existing {
    pub cluster: Option<Cluster>,
    pub nodes: BTreeSet<NodeName>,
    pub mounts: BTreeMap<u32, PathBuf>,
    pub running: BTreeSet<NodeName>,
}

/// The parameters of a cluster.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Parameters {
    pub replicas: u8,
    pub min_replicas: u8,
    pub chunk_bytes: u32,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    CreateCluster(Parameters),
    CreateNode(NodeName),
    CreateMount(u32, PathBuf),
    Start(NodeName),
    /// Wait until so many slaves are registered.
    AwaitSlaves(u32),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Plan {
    pub steps: Vec<Step>,
    /// For people, before anything is done.
    pub notes: Vec<String>,
}

impl Plan {
    pub fn starts(&self) -> impl Iterator<Item = NodeName> {
        self.steps.iter().filter_map(|step| match step {
            Step::Start(name) => Some(*name),
            _ => None,
        })
    }
}

/// One step per line, for the tests and for reading.
impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for note in &self.notes {
            writeln!(f, "note: {note}")?;
        }
        for step in &self.steps {
            match step {
                Step::CreateCluster(p) => writeln!(
                    f,
                    "create cluster: replicas {}, min_replicas {}, chunk_bytes {}",
                    p.replicas, p.min_replicas, p.chunk_bytes
                )?,
                Step::CreateNode(name) => writeln!(f, "create {name}")?,
                Step::CreateMount(number, path) => {
                    writeln!(f, "create mount-{number} at {}", path.display())?
                }
                Step::Start(name) => writeln!(f, "start {name}")?,
                Step::AwaitSlaves(count) => writeln!(f, "await {count} slaves")?,
            }
        }
        Ok(())
    }
}

fn usage<T>(text: String) -> Result<T, Usage> {
    Err(Usage(text))
}

/// The steps from `existing` to `wanted`, in order.
pub fn plan(existing: &Existing, wanted: &Wanted) -> Result<Plan, Usage> {
    if wanted.masters.is_some_and(|masters| masters != 1) {
        return usage("several masters are not there yet: use --masters 1 (or leave it out)".into());
    }
    let is = |kind: Kind| existing.nodes.iter().filter(move |name| name.kind == kind).map(|name| name.number);
    let have: BTreeSet<u32> = is(Kind::Slave).collect();
    let mut steps = Vec::new();
    let parameters = match &existing.cluster {
        Some(cluster) => agreed(cluster, wanted)?,
        None if !existing.nodes.is_empty() => {
            return usage(
                "there are nodes but no cluster.toml: restore that file, or use another folder".into(),
            );
        }
        None => {
            let parameters = chosen(wanted)?;
            steps.push(Step::CreateCluster(parameters));
            parameters
        }
    };
    let slaves = slaves(&have, wanted, parameters, existing.cluster.is_none())?;
    let mut notes = Vec::new();
    if slaves < u32::from(parameters.replicas) {
        notes.push(format!(
            "{slaves} slaves cannot hold {} replicas; chunks will have {slaves} until there are more slaves",
            parameters.replicas
        ));
    }
    let master = NodeName { kind: Kind::Master, number: 1 };
    if !existing.nodes.contains(&master) {
        steps.push(Step::CreateNode(master));
    }
    let mut all = have.clone();
    for number in (1..).filter(|number| !have.contains(number)).take(slaves as usize - have.len()) {
        steps.push(Step::CreateNode(NodeName { kind: Kind::Slave, number }));
        all.insert(number);
    }
    let slave_nodes = all.iter().map(|&number| NodeName { kind: Kind::Slave, number });
    let start = std::iter::once(master).chain(slave_nodes).filter(|name| !existing.running.contains(name));
    steps.extend(start.map(Step::Start));
    steps.push(Step::AwaitSlaves(slaves));
    mounts(existing, wanted, &mut steps);
    Ok(Plan { steps, notes })
}

/// Every mount that was not unmounted comes back, and the one asked for.
fn mounts(existing: &Existing, wanted: &Wanted, steps: &mut Vec<Step>) {
    for &number in existing.mounts.keys() {
        let name = NodeName { kind: Kind::Mount, number };
        if !existing.running.contains(&name) {
            steps.push(Step::Start(name));
        }
    }
    if let Some(path) = &wanted.mount
        && !existing.mounts.values().any(|mounted| mounted == path)
    {
        let number = next_mount(&existing.mounts);
        steps.push(Step::CreateMount(number, path.clone()));
        steps.push(Step::Start(NodeName { kind: Kind::Mount, number }));
    }
}

/// The lowest number that is free.
pub fn next_mount(mounts: &BTreeMap<u32, PathBuf>) -> u32 {
    (1..).find(|number| !mounts.contains_key(number)).unwrap_or(u32::MAX)
}

/// The parameters of a new cluster.
fn chosen(wanted: &Wanted) -> Result<Parameters, Usage> {
    let replicas = wanted.replicas.unwrap_or(3);
    if replicas == 0 || usize::from(replicas) > MAX_MEMBERS {
        return usage(format!("--replicas {replicas} is not possible: 1 to {MAX_MEMBERS}"));
    }
    let min_replicas = wanted.min_replicas.unwrap_or(if replicas <= 2 { replicas } else { replicas - 1 });
    if min_replicas == 0 || min_replicas > replicas {
        return usage(format!(
            "--min-replicas {min_replicas} is not possible: 1 to the number of replicas, {replicas}"
        ));
    }
    let chunk_bytes = wanted.chunk_bytes.unwrap_or(u64::from(DEFAULT_CHUNK_BYTES));
    match u32::try_from(chunk_bytes) {
        Ok(bytes) if bytes.is_power_of_two() && (MIN_CHUNK_BYTES..=MAX_CHUNK_BYTES).contains(&bytes) => {
            Ok(Parameters { replicas, min_replicas, chunk_bytes: bytes })
        }
        _ => usage(format!(
            "--chunk-size {chunk_bytes} is not possible: a power of two from {MIN_CHUNK_BYTES} (1MiB) to \
             {MAX_CHUNK_BYTES} (64MiB)"
        )),
    }
}

/// The parameters of a cluster that exists; what was asked for must not contradict them.
fn agreed(cluster: &Cluster, wanted: &Wanted) -> Result<Parameters, Usage> {
    let differ = |what: &str, has: u64, asked: Option<u64>| match asked {
        Some(asked) if asked != has => usage(format!(
            "this cluster has {what} {has}, not {asked}: that is fixed when a cluster is made. \
             Leave --{what} out, or use another --dir for a new cluster"
        )),
        _ => Ok(()),
    };
    differ("replicas", cluster.replicas.into(), wanted.replicas.map(u64::from))?;
    differ("min-replicas", cluster.min_replicas.into(), wanted.min_replicas.map(u64::from))?;
    differ("chunk-size", cluster.chunk_bytes.into(), wanted.chunk_bytes)?;
    Ok(Parameters {
        replicas: cluster.replicas,
        min_replicas: cluster.min_replicas,
        chunk_bytes: cluster.chunk_bytes,
    })
}

/// How many slaves there will be.
fn slaves(have: &BTreeSet<u32>, wanted: &Wanted, parameters: Parameters, new: bool) -> Result<u32, Usage> {
    let has = have.len() as u32;
    let least = u32::from(parameters.min_replicas);
    // A creation that was interrupted is completed.
    let default = if new || has < least { has.max(3).max(parameters.replicas.into()) } else { has };
    let slaves = wanted.slaves.unwrap_or(default);
    if slaves < least {
        return usage(format!(
            "--slaves {slaves} is fewer than the {least} replicas (min-replicas) that every write needs: use --slaves \
             {least} or more{}",
            if new { format!(", or --replicas {slaves} for fewer copies") } else { String::new() }
        ));
    }
    if slaves > MOST_SLAVES {
        return usage(format!("--slaves {slaves} is too many for one machine: at most {MOST_SLAVES}"));
    }
    if slaves < has {
        return usage(format!(
            "this cluster has {has} slaves here, not {slaves}: `up` adds slaves and never removes any. Leave --slaves out"
        ));
    }
    Ok(slaves)
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
