//! `godrive damaged`: the files behind the chunks that `godrive status` counts as quarantined and unavailable.

use super::status::{Local, locals, name_of_id};
use crate::admin::Admin;
use crate::cli;
use crate::cluster::layout::Home;
use crate::table;
use anyhow::Result;
use godrive_proto::ChunkId;
use godrive_proto::admin::{Damage, DamagedChunk, ListDamagedRequest};
use godrive_proto::limits::MAX_DAMAGED_PAGE;
use serde_json::json;
use std::time::Duration;

pub async fn run(line: &cli::Damaged) -> Result<()> {
    let home = Home::new(line.home.path()?);
    let locals = locals(&home).await?;
    let admin = Admin::connect(&home, Duration::from_secs(30)).await?;
    let result = list(&admin, line.json, &locals).await;
    admin.close().await;
    result
}

async fn list(admin: &Admin, as_json: bool, locals: &[Local]) -> Result<()> {
    let mut rows = vec![["STATE", "FROM", "TO", "CHUNK", "ON", "FILE"].map(String::from).to_vec()];
    let mut request = ListDamagedRequest { after: ChunkId(0), limit: MAX_DAMAGED_PAGE as u32 };
    loop {
        let page = admin.damaged(request).await?;
        for damaged in &page.chunks {
            match as_json {
                true => say!("{}", document(damaged, locals))?,
                false => rows.push(row(damaged, locals)),
            }
        }
        let Some(next) = page.next else { break };
        request.after = next;
    }
    match (as_json, rows.len()) {
        (true, _) => Ok(()),
        (false, 1) => say!("all files can be read and written"),
        (false, _) => table::print(&table::columns(&rows, &[1, 2, 3])),
    }
}

fn word(damage: Damage) -> &'static str {
    match damage {
        Damage::Quarantined => "quarantined",
        Damage::Rotten => "rotten",
        Damage::Unreachable => "unreachable",
        Damage::ReadOnly => "read-only",
    }
}

/// The first byte that it has of its file, and the one behind its last.
fn range(damaged: &DamagedChunk) -> [u64; 2] {
    let from = u64::from(damaged.index) * u64::from(damaged.chunk_bytes);
    [from, from + u64::from(damaged.chunk_bytes)]
}

fn members(damaged: &DamagedChunk, locals: &[Local]) -> Vec<String> {
    damaged.members.iter().map(|node| name_of_id(&node.to_string(), locals)).collect()
}

fn row(damaged: &DamagedChunk, locals: &[Local]) -> Vec<String> {
    let [from, to] = range(damaged).map(|at| at.to_string());
    let file = match &damaged.path {
        Some(path) => {
            format!("/{}{}", table::printable(path), if damaged.trashed { " (in the trash)" } else { "" })
        }
        None => format!("(not found; on a mount: find . -inum {})", damaged.ino),
    };
    let on = members(damaged, locals).join(",");
    vec![word(damaged.damage).to_owned(), from, to, damaged.chunk.to_string(), on, file]
}

fn document(damaged: &DamagedChunk, locals: &[Local]) -> serde_json::Value {
    let [from, to] = range(damaged);
    let path = damaged.path.as_ref().map(|path| format!("/{}", String::from_utf8_lossy(path)));
    json!({
        "state": word(damaged.damage), "path": path, "trashed": damaged.trashed, "inode": damaged.ino.0, "from": from, "to": to,
        "chunk": damaged.chunk.0, "on": members(damaged, locals),
    })
}
