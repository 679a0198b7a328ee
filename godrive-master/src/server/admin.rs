//! Administration: status, tokens, joining.

use super::damaged::damage;
use super::hub::Hub;
use super::repair;
use super::requests::Context;
use crate::core::nodes::{Health, SlowDisk};
use crate::core::record::{Body, Purpose, Reply};
use crate::core::repair::Limits;
use godrive_proto::admin::*;
use godrive_proto::cluster::DiskHealth;
use godrive_proto::net::token::{JoinToken, sha256};
use godrive_proto::time::{Instant, Timestamp};
use godrive_proto::{ChunkId, Code, DiskId, Fault, LogIndex, NodeId, Role};
use rand::Rng;
use std::collections::BTreeMap;

/// Chunks that are looked at under one lock.
const PAGE: usize = 1_000;
const MAX_TOKEN_DAYS: u32 = 366;

pub async fn ping(_context: &Context, (): ()) -> Result<(), Fault> {
    Ok(())
}

pub async fn make_token(context: &Context, request: MakeTokenRequest) -> Result<String, Fault> {
    let Some(authority) = context.shared.authority.clone() else {
        let detail = "this master has no authority.pem: make tokens at the cluster's first master";
        return Err(Fault::new(Code::NotSupported, detail));
    };
    if matches!(request.role, Role::Joiner | Role::Master) {
        return Err(Fault::new(Code::Invalid, format!("no token can be made for the role {}", request.role)));
    }
    if request.uses == 0 || request.valid_for_s == 0 || request.valid_for_s > MAX_TOKEN_DAYS * 86_400 {
        let detail = format!("a token has at least one use and is valid for 1 s to {MAX_TOKEN_DAYS} days");
        return Err(Fault::new(Code::Invalid, detail));
    }
    let master = context.shared.with(|hub, _| hub.config.advertise).unwrap_or(context.shared.address);
    if master.ip().is_unspecified() {
        let detail = format!("nobody can connect to {master}: set `advertise` in the master's configuration");
        return Err(Fault::new(Code::Invalid, detail));
    }
    let secret: [u8; 16] = context.shared.random.lock().random();
    let step = |hub: &mut Hub, _: Instant| {
        let expires = Timestamp(hub.wall().0.saturating_add(i64::from(request.valid_for_s) * 1_000_000_000));
        let body =
            Body::TokenMade { role: request.role, secret_hash: sha256(&secret), expires, uses: request.uses };
        let (answer, durable) = hub.decide(body)?;
        let Reply::Token(id) = answer? else {
            return Err(Fault::new(Code::Internal, "making a token gave no token"));
        };
        Ok((id, durable))
    };
    let id = context.step(step).await?;
    let token = JoinToken { master, ca_hash: sha256(authority.ca()), id, secret };
    tracing::info!(id, role = %request.role, uses = request.uses, valid_for_s = request.valid_for_s, "join token made");
    Ok(token.to_string())
}

pub async fn join(context: &Context, request: JoinRequest) -> Result<Joined, Fault> {
    let Some(authority) = context.shared.authority.clone() else {
        let detail = "this master has no authority.pem: join at the cluster's first master";
        return Err(Fault::new(Code::NotSupported, detail));
    };
    let refused = |why: &str| Fault::new(Code::Forbidden, format!("join token {}: {why}", request.token_id));
    let node = NodeId(context.shared.random.lock().random());
    let wall = context.shared.clock.wall();
    // Signed before the use is counted: a malformed request costs no use; without the record nothing leaves.
    let check = |hub: &mut Hub, _: Instant| {
        let token = hub
            .state
            .token(request.token_id)?
            .ok_or_else(|| refused("unknown or used up: make a new one"))?;
        if !same_hash(&token.secret_hash, &sha256(&request.secret)) {
            return Err(refused("the secret is wrong"));
        }
        if hub.wall() > token.expires {
            return Err(refused("expired: make a new one"));
        }
        if token.role != request.role {
            return Err(refused(&format!("it is for the role {}, not {}", token.role, request.role)));
        }
        Ok(((), LogIndex(0)))
    };
    context.step(check).await?;
    let certificate =
        authority.sign(&request.certificate_request, request.role, node, wall.0 / 1_000_000_000)?;
    let step = |hub: &mut Hub, now: Instant| {
        check(hub, now)?;
        let (answer, durable) = hub.decide(Body::TokenUsed { token: request.token_id, node })?;
        answer?;
        Ok(((), durable))
    };
    context.step(step).await?;
    tracing::info!(%node, role = %request.role, token = request.token_id, "joined the cluster");
    Ok(Joined { cluster: context.shared.cluster, node, certificate, ca: authority.ca().to_vec() })
}

/// Takes the same time wherever they differ.
fn same_hash(one: &[u8; 32], other: &[u8; 32]) -> bool {
    one.iter().zip(other).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

/// What a look at all chunks gives.
#[derive(Default)]
struct Survey {
    health: ChunkHealth,
    replicas: BTreeMap<(NodeId, DiskId), u64>,
    incomplete: u64,
    /// Chunks with living replicas where none should be, and those that balance would move.
    drained: u64,
    uneven: u64,
}

pub async fn status(context: &Context, (): ()) -> Result<Status, Fault> {
    let mut survey = Survey::default();
    let mut after = ChunkId(0);
    loop {
        let next = context.shared.with(|hub, now| look(hub, now, after, &mut survey))?;
        let Some(next) = next else { break };
        after = next;
        tokio::task::yield_now().await;
    }
    let index = context.shared.durability.durable();
    context.shared.with(|hub, now| assemble(hub, now, &survey, index))
}

fn look(hub: &mut Hub, now: Instant, after: ChunkId, survey: &mut Survey) -> Result<Option<ChunkId>, Fault> {
    let limits: Limits = repair::limits(hub)?;
    let page = hub.state.chunks(after, PAGE)?;
    for (chunk, known) in &page {
        let view = repair::view_of(hub, now, *chunk, known);
        let living = view.alive();
        let health = &mut survey.health;
        health.total += 1;
        let of_its_kind = match damage(hub, now, known, &view, &limits)? {
            Some(Damage::Quarantined | Damage::Rotten) => &mut health.quarantined,
            Some(Damage::Unreachable | Damage::ReadOnly) => &mut health.unavailable,
            None if living < limits.replicas => &mut health.under_replicated,
            None => &mut health.healthy,
        };
        *of_its_kind += 1;
        survey.incomplete += u64::from(living < limits.replicas && !known.quarantined);
        let drained = view.members.iter().any(|member| member.draining && member.health == Health::Alive);
        survey.drained += u64::from(drained && living >= limits.replicas);
        survey.uneven += u64::from(hub.repairs.levels.narrowing(&view, &limits).is_some());
        for member in &known.members {
            *survey.replicas.entry((member.node, member.disk)).or_default() += 1;
        }
    }
    Ok(if page.len() < PAGE { None } else { page.last().map(|(id, _)| *id) })
}

fn assemble(hub: &mut Hub, now: Instant, survey: &Survey, index: LogIndex) -> Result<Status, Fault> {
    let sessions = hub.state.sessions()?;
    let show = |(session, known): &(godrive_proto::SessionId, crate::core::state::values::Session)| {
        let (shared, exclusive, renewed) = hub.leases.session(*session).unwrap_or((0, 0, now));
        let said = hub.renewals.get(session).cloned().unwrap_or_default();
        SessionStatus {
            session: *session,
            label: known.label.clone(),
            last_renewed_ms: u64::try_from(now.since(renewed).as_millis()).unwrap_or(u64::MAX),
            shared_leases: shared,
            exclusive_leases: exclusive,
            dirty_bytes: said.dirty_bytes,
            errors_after_close: said.errors_after_close,
        }
    };
    let counts = hub.state.counts();
    let repair = hub.repairs.repair.status(now, survey.incomplete);
    Ok(Status {
        cluster: hub.cluster,
        term: hub.term,
        index,
        parameters: hub.parameters()?,
        nodes: hub.nodes.status(now, &survey.replicas),
        sessions: sessions.iter().map(show).collect(),
        chunks: survey.health,
        inodes: counts.inodes,
        orphans: counts.orphans,
        repair_queued: repair.queued,
        repair_active: repair.active,
        repaired: repair.done,
        reclaim_queued: counts.deleted,
        warnings: warnings(hub, now, survey)?,
        trash: super::trash::status(hub)?,
        repair,
        drain: hub.repairs.drain.status(now, survey.drained),
        rebalance: hub.repairs.rebalance.status(now, survey.uneven),
        retired: hub.nodes.intents.with_purpose(Purpose::Retired).collect(),
    })
}

fn warnings(hub: &Hub, now: Instant, survey: &Survey) -> Result<Vec<String>, Fault> {
    let parameters = hub.parameters()?;
    let mut warnings: Vec<String> = hub.refused.iter().cloned().collect();
    let alive = hub.nodes.iter().filter(|(node, _)| hub.nodes.health(now, *node) == Health::Alive).count();
    if hub.disk_full {
        warnings.push("the master's disk is full: nothing new can be made until it has room".to_owned());
    }
    if alive < usize::from(parameters.min_replicas) {
        warnings.push(format!(
            "{alive} slaves are alive and min_replicas is {}: new data cannot be written",
            parameters.min_replicas
        ));
    } else if alive < usize::from(parameters.replicas) {
        warnings.push(format!(
            "{alive} slaves are alive and replicas is {}: chunks have fewer replicas than they should",
            parameters.replicas
        ));
    }
    for (node, known) in hub.nodes.iter().filter(|(node, _)| hub.nodes.health(now, *node) != Health::Alive) {
        let word = hub.nodes.health(now, node).word();
        warnings.push(format!("slave {node} at {} is {word}", known.address));
    }
    let troubled = |known: &crate::core::nodes::Node| known.errors + known.bad_leaves > 0;
    for (node, known) in hub.nodes.iter().filter(|(_, known)| troubled(known)) {
        warnings.push(format!(
            "slave {node} has met {} disk errors and {} blocks that did not verify",
            known.errors, known.bad_leaves
        ));
    }
    warnings.extend(disk_warnings(hub, now, survey, usize::from(parameters.replicas)));
    if survey.health.quarantined > 0 {
        warnings.push(format!("{} chunks are quarantined: reads of them fail", survey.health.quarantined));
    }
    if hub.regressed > 0 {
        warnings.push(format!("{} chunks lost unsynced writes in a power loss", hub.regressed));
    }
    let errors: u32 = hub.renewals.values().map(|said| said.errors_after_close).sum();
    if errors > 0 {
        warnings.push(format!("mounts have {errors} errors after close that nobody has seen yet"));
    }
    warnings.extend(hub.config_warnings.iter().cloned());
    Ok(warnings)
}

/// Disks that failed, and drains that cannot end.
fn disk_warnings(hub: &Hub, now: Instant, survey: &Survey, replicas: usize) -> Vec<String> {
    let mut warnings = Vec::new();
    for (node, known) in hub.nodes.iter() {
        for state in known.disks.iter().filter(|state| state.health == DiskHealth::Failed) {
            let left = survey.replicas.get(&(node, state.disk)).copied().unwrap_or(0);
            warnings.push(format!(
                "disk {} of slave {node} has failed; {left} of its replicas are still to be made anew on others",
                state.disk
            ));
        }
    }
    for SlowDisk { node, disk, times_ms } in hub.nodes.slow_disks(now) {
        let times = times_ms.map_or(String::new(), |(own, others)| {
            format!(": a sync took {own} ms on it and {others} ms on others")
        });
        warnings.push(format!("disk {disk} of slave {node} is slow, nothing new goes there{times}"));
    }
    let serving = |node: &NodeId| {
        hub.nodes.intents.purpose(*node) == Purpose::Serve && hub.nodes.health(now, *node) != Health::Dead
    };
    let left = hub.nodes.iter().map(|(node, _)| node).filter(serving).count();
    if survey.drained > 0 && left < replicas {
        warnings.push(format!(
            "{left} slaves are left for what lies on drained ones, and replicas is {replicas}: it cannot all move until \
             there is another slave"
        ));
    }
    warnings
}
