//! `godrive status`: what the master knows, beside what this machine sees of its own processes and mounts.
//!
//! The JSON form carries the fields of the master's status under their own names and adds `local`.

use crate::admin::Admin;
use crate::cli;
use crate::cluster::layout::{Home, Kind, NodeName};
use crate::cluster::mounts::{self, State};
use crate::cluster::process;
use crate::table::{columns, cut, print, size, time, wrap};
use anyhow::Result;
use godrive_proto::admin::{Movement, Status};
use godrive_proto::cluster::{DiskHealth, NodeStatus};
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

/// A process of this folder.
pub(super) struct Local {
    name: NodeName,
    pid: Option<i32>,
    /// Of mounts: where, and how it answers.
    mount: Option<(String, State)>,
    /// The id in the node's certificate.
    id: Option<String>,
}

pub async fn run(line: &cli::Status) -> Result<()> {
    let home = Home::new(line.home.path()?);
    home.cluster()?;
    let locals = locals(&home).await?;
    let status = match Admin::connect(&home, Duration::from_secs(5)).await {
        Ok(admin) => {
            let status = admin.status().await;
            admin.close().await;
            status
        }
        Err(error) => Err(error),
    };
    match (&status, line.json) {
        (Ok(status), true) => say!("{:#}", document(status, &locals))?,
        (Err(error), true) => {
            say!("{:#}", json!({ "error": format!("{error:#}"), "local": local_json(&locals) }))?
        }
        (Ok(status), false) => print(&human(status, &locals))?,
        (Err(_), false) => print(&local_table(&locals))?,
    }
    status.map(drop)
}

pub(super) async fn locals(home: &Home) -> Result<Vec<Local>> {
    // All at once, for one that does not answer is waited for.
    let ask = |path: PathBuf| async move {
        mounts::state(&path).await.map(|state| (path.display().to_string(), state))
    };
    let asked = home.mounts()?.into_iter().map(|(number, path)| (number, tokio::spawn(ask(path))));
    let mut asked: BTreeMap<u32, _> = asked.collect();
    let mut locals = Vec::new();
    for name in home.nodes()? {
        let mount = match asked.get_mut(&name.number).filter(|_| name.kind == Kind::Mount) {
            Some(answer) => Some(answer.await??),
            None => None,
        };
        let identity = crate::admin::load_identity(&home.node(name).join("identity.pem"));
        let id = identity.ok().map(|identity| identity.node.to_string());
        locals.push(Local { name, pid: process::running(home, name)?, mount, id });
    }
    Ok(locals)
}

/// The name a node has in this folder, else the start of its id.
fn name_of(node: &NodeStatus, locals: &[Local]) -> String {
    name_of_id(&node.node.to_string(), locals)
}

pub(super) fn name_of_id(id: &str, locals: &[Local]) -> String {
    match locals.iter().find(|local| local.id.as_deref() == Some(id)) {
        Some(local) => local.name.to_string(),
        None => id[..8].to_owned(),
    }
}

fn health(health: DiskHealth) -> &'static str {
    match health {
        DiskHealth::Healthy => "healthy",
        DiskHealth::Full => "full",
        DiskHealth::Failed => "failed",
        DiskHealth::Slow => "slow",
    }
}

fn mount_word(state: State) -> &'static str {
    match state {
        State::Alive => "mounted",
        State::NotMounted => "not mounted",
        State::Foreign => "covered by another file system",
        State::Dead => "dead",
        State::Silent => "does not answer",
    }
}

fn document(status: &Status, locals: &[Local]) -> Value {
    let nodes: Vec<Value> = status.nodes.iter().map(|node| node_json(node, locals)).collect();
    let sessions: Vec<Value> = status
        .sessions
        .iter()
        .map(|session| {
            json!({
                "session": session.session.0, "label": session.label, "last_renewed_ms": session.last_renewed_ms,
                "shared_leases": session.shared_leases, "exclusive_leases": session.exclusive_leases,
                "dirty_bytes": session.dirty_bytes, "errors_after_close": session.errors_after_close,
            })
        })
        .collect();
    let disks = || status.nodes.iter().flat_map(|node| &node.disks);
    json!({
        "cluster": status.cluster.to_string(),
        "term": status.term.0,
        "index": status.index.0,
        "parameters": {
            "chunk_bytes": status.parameters.chunk_bytes,
            "replicas": status.parameters.replicas,
            "min_replicas": status.parameters.min_replicas,
        },
        "capacity": {
            "total_bytes": disks().map(|disk| disk.total_bytes).sum::<u64>(),
            "free_bytes": disks().map(|disk| disk.free_bytes).sum::<u64>(),
        },
        "nodes": nodes,
        "sessions": sessions,
        "leases": {
            "shared": status.sessions.iter().map(|session| session.shared_leases).sum::<u64>(),
            "exclusive": status.sessions.iter().map(|session| session.exclusive_leases).sum::<u64>(),
        },
        "chunks": {
            "total": status.chunks.total, "healthy": status.chunks.healthy,
            "under_replicated": status.chunks.under_replicated, "unavailable": status.chunks.unavailable,
            "quarantined": status.chunks.quarantined,
        },
        "inodes": status.inodes,
        "orphans": status.orphans,
        "repair_queued": status.repair_queued,
        "repair_active": status.repair_active,
        "repaired": status.repaired,
        "repair": movement_json(&status.repair),
        "drain": movement_json(&status.drain),
        "rebalance": movement_json(&status.rebalance),
        "retired": status.retired.iter().map(ToString::to_string).collect::<Vec<_>>(),
        "reclaim_queued": status.reclaim_queued,
        "trash": {
            "keep_s": status.trash.keep_s, "entries": status.trash.entries, "bytes": status.trash.bytes,
            "oldest": status.trash.oldest.map(|oldest| time(oldest.0)),
        },
        "scrub": {
            "scrubbed_leaves": status.nodes.iter().map(|node| node.scrubbed_leaves).sum::<u64>(),
            "bad_leaves": status.nodes.iter().map(|node| node.bad_leaves).sum::<u64>(),
        },
        "errors_after_close": status.sessions.iter().map(|session| u64::from(session.errors_after_close)).sum::<u64>(),
        "warnings": status.warnings,
        "local": local_json(locals),
    })
}

fn node_json(node: &NodeStatus, locals: &[Local]) -> Value {
    let disks: Vec<Value> = node
        .disks
        .iter()
        .map(|disk| {
            let place = node.places.iter().find(|place| place.disk == disk.disk);
            let scrub = node.scrub.iter().find(|scrub| scrub.disk == disk.disk).map(|scrub| {
                json!({ "pass": scrub.pass, "percent": scrub.percent, "bad_leaves": scrub.bad_leaves })
            });
            json!({
                "disk": disk.disk.to_string(), "total_bytes": disk.total_bytes, "free_bytes": disk.free_bytes,
                "chunks": disk.chunks, "health": health(disk.health), "scrub": scrub,
                "replicas": place.map_or(0, |place| place.replicas),
                "draining": place.is_some_and(|place| place.draining),
            })
        })
        .collect();
    json!({
        "node": node.node.to_string(), "name": name_of(node, locals), "address": node.address.to_string(),
        "domain": node.domain, "state": node.state, "last_heard_ms": node.last_heard_ms, "disks": disks,
        "replicas": node.replicas, "errors": node.errors, "bad_leaves": node.bad_leaves,
        "scrubbed_leaves": node.scrubbed_leaves, "intent": node.intent, "to_move": node.to_move,
    })
}

fn movement_json(movement: &Movement) -> Value {
    json!({
        "queued": movement.queued, "active": movement.active, "done": movement.done, "bytes": movement.bytes,
        "bytes_per_s": movement.bytes_per_s,
    })
}

fn local_json(locals: &[Local]) -> Value {
    locals
        .iter()
        .map(|local| {
            let mut value =
                json!({ "name": local.name.to_string(), "pid": local.pid, "running": local.pid.is_some() });
            if let Some((path, state)) = &local.mount {
                value["mountpoint"] = json!(path);
                value["state"] = json!(mount_word(*state));
            }
            value
        })
        .collect()
}

fn human(status: &Status, locals: &[Local]) -> String {
    let chunks = &status.chunks;
    let alive = status.nodes.iter().filter(|node| node.state == "alive").count();
    let verdict = if chunks.unavailable + chunks.quarantined > 0 {
        "DATA NOT AVAILABLE"
    } else if alive < usize::from(status.parameters.min_replicas) {
        "TOO FEW SLAVES"
    } else if chunks.under_replicated > 0 {
        "repairing"
    } else if alive < status.nodes.len() {
        "a slave is missing"
    } else {
        "healthy"
    };
    let mut text = format!(
        "cluster {}: {verdict}\n{} replicas (at least {}), chunks of {}\n\n",
        status.cluster,
        status.parameters.replicas,
        status.parameters.min_replicas,
        size(u64::from(status.parameters.chunk_bytes))
    );
    text += &node_table(status, locals);
    text += &disk_table(status, locals);
    text += &format!(
        "\nchunks    {} in all: {} healthy, {} under-replicated, {} unavailable, {} quarantined\n",
        chunks.total, chunks.healthy, chunks.under_replicated, chunks.unavailable, chunks.quarantined
    );
    if chunks.unavailable + chunks.quarantined > 0 {
        text += "          which files that concerns: godrive damaged\n";
    }
    for (what, movement) in
        [("repair", &status.repair), ("drain", &status.drain), ("rebalance", &status.rebalance)]
    {
        text += &format!(
            "{what:<9} {} queued, {} active, {} done ({}, {}/s)\n",
            movement.queued,
            movement.active,
            movement.done,
            size(movement.bytes),
            size(movement.bytes_per_s)
        );
    }
    for node in status.nodes.iter().filter(|node| node.to_move > 0 || !node.intent.is_empty()) {
        let what = if node.intent.is_empty() { "draining a disk" } else { &node.intent };
        text += &format!("leaving   {}: {what}, {} replicas to move\n", name_of(node, locals), node.to_move);
    }
    for node in &status.retired {
        text += &format!("retired   {}\n", name_of_id(&node.to_string(), locals));
    }
    let scrubbed: u64 = status.nodes.iter().map(|node| node.scrubbed_leaves).sum();
    let bad: u64 = status.nodes.iter().map(|node| node.bad_leaves).sum();
    text += &format!("scrub     {} verified, {bad} bad blocks\n", size(scrubbed.saturating_mul(4096)));
    text += &format!(
        "names     {} inodes, {} orphans, {} chunks to reclaim\n",
        status.inodes, status.orphans, status.reclaim_queued
    );
    text += &trash_line(status);
    text += &session_table(status);
    text += &local_table(locals);
    for warning in &status.warnings {
        text += &format!("\n{}\n", wrap(&format!("warning: {warning}"), 80, "    "));
    }
    text
}

fn trash_line(status: &Status) -> String {
    let trash = &status.trash;
    let since =
        trash.oldest.map_or(String::new(), |oldest| format!(", removed since {} UTC", time(oldest.0)));
    match trash.keep_s {
        0 => "trash     off\n".to_owned(),
        _ => format!("trash     {} entries, {}{since}\n", trash.entries, size(trash.bytes)),
    }
}

fn node_table(status: &Status, locals: &[Local]) -> String {
    let mut rows =
        vec![["NODE", "STATE", "ADDRESS", "USED", "SIZE", "REPLICAS", "ERRORS"].map(String::from).to_vec()];
    for node in &status.nodes {
        let total: u64 = node.disks.iter().map(|disk| disk.total_bytes).sum();
        let free: u64 = node.disks.iter().map(|disk| disk.free_bytes).sum();
        rows.push(vec![
            name_of(node, locals),
            match (node.state.as_str(), node.intent.as_str()) {
                ("alive", "draining") => "draining".into(),
                ("alive", "decommissioning") => "retiring".into(),
                (state, _) => state.into(),
            },
            cut(&node.address.to_string(), 21),
            size(total.saturating_sub(free)),
            size(total),
            node.replicas.to_string(),
            (node.errors + node.bad_leaves).to_string(),
        ]);
    }
    columns(&rows, &[3, 4, 5, 6])
}

fn disk_table(status: &Status, locals: &[Local]) -> String {
    let mut rows = vec![
        ["DISK", "NODE", "STATE", "USED", "SIZE", "REPLICAS", "SCRUB", "BAD"].map(String::from).to_vec(),
    ];
    for node in &status.nodes {
        for disk in &node.disks {
            let place = node.places.iter().find(|place| place.disk == disk.disk);
            let scrub = node.scrub.iter().find(|scrub| scrub.disk == disk.disk);
            let state = match place {
                Some(place) if place.draining && disk.health != DiskHealth::Failed => "draining",
                _ => health(disk.health),
            };
            rows.push(vec![
                disk.disk.to_string()[..8].to_owned(),
                name_of(node, locals),
                state.into(),
                size(disk.total_bytes.saturating_sub(disk.free_bytes)),
                size(disk.total_bytes),
                place.map_or(0, |place| place.replicas).to_string(),
                scrub.map_or("-".into(), |scrub| format!("pass {}, {} %", scrub.pass, scrub.percent)),
                scrub.map_or("-".into(), |scrub| scrub.bad_leaves.to_string()),
            ]);
        }
    }
    if rows.len() == 1 { String::new() } else { format!("\n{}", columns(&rows, &[3, 4, 5, 7])) }
}

fn session_table(status: &Status) -> String {
    if status.sessions.is_empty() {
        return "\nno sessions\n".into();
    }
    let mut rows = vec![["SESSION", "CLIENT", "LEASES", "DIRTY", "LOST WRITES"].map(String::from).to_vec()];
    for session in &status.sessions {
        rows.push(vec![
            session.session.to_string(),
            cut(&crate::table::printable(session.label.as_bytes()), 36),
            (session.shared_leases + session.exclusive_leases).to_string(),
            size(session.dirty_bytes),
            session.errors_after_close.to_string(),
        ]);
    }
    format!("\n{}", columns(&rows, &[2, 3, 4]))
}

fn local_table(locals: &[Local]) -> String {
    let mut rows = vec![["HERE", "PID", ""].map(String::from).to_vec()];
    for local in locals {
        let mount = local.mount.as_ref().map(|(path, state)| format!("{path}: {}", mount_word(*state)));
        let pid = local.pid.map_or("not running".into(), |pid| pid.to_string());
        rows.push(vec![local.name.to_string(), pid, cut(&mount.unwrap_or_default(), 56)]);
    }
    format!("\n{}", columns(&rows, &[]))
}

#[cfg(test)]
#[path = "status_tests.rs"]
pub mod tests;
