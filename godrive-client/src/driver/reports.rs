//! Tells the master what is wrong with a chunk's members, and takes over the layout it answers with.

use super::master::Master;
use super::retry::Patience;
use super::stats::Stats;
use crate::core::layout::adopt;
use godrive_proto::data::Layout;
use godrive_proto::lease::{Problem, Report, ReportRequest};
use godrive_proto::{ChunkId, Code, Fault};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

/// Reports under way that nobody waits for.
const BACKGROUND_AT_MOST: usize = 64;

pub struct Reports {
    master: Arc<Master>,
    background: Mutex<BTreeSet<ChunkId>>,
}

impl Reports {
    pub fn new(master: Arc<Master>) -> Self {
        Self { master, background: Mutex::default() }
    }

    /// Answered when the chunk is usable again; `layout` is then what the master knows, or newer.
    pub async fn report(
        &self,
        layout: &mut Layout,
        problem: Problem,
        detail: &str,
        patience: Patience,
    ) -> Result<(), Fault> {
        let request = request(layout, problem, detail);
        Stats::add(&self.master.stats.reports, 1);
        let answer = self.master.query::<Report>(&request, patience).await?;
        if answer.chunk.id != layout.chunk.id {
            let detail =
                format!("asked for chunk {}, the master answered with {}", layout.chunk.id, answer.chunk.id);
            return Err(Fault::new(Code::Internal, detail));
        }
        adopt(layout, answer);
        Ok(())
    }

    /// Reports without waiting; at most one at a time for a chunk.
    pub fn in_background(self: &Arc<Self>, layout: &Layout, problem: Problem, detail: &str) {
        let chunk = layout.chunk.id;
        {
            let mut background = self.background.lock();
            if background.len() >= BACKGROUND_AT_MOST || !background.insert(chunk) {
                return;
            }
        }
        let reports = self.clone();
        let request = request(layout, problem, detail);
        tokio::spawn(async move {
            Stats::add(&reports.master.stats.reports, 1);
            if let Err(fault) = reports.master.query::<Report>(&request, reports.master.patience()).await {
                tracing::warn!(%chunk, ?problem, %fault, "the master could not be told of a bad replica");
            }
            reports.background.lock().remove(&chunk);
        });
    }
}

fn request(layout: &Layout, problem: Problem, detail: &str) -> ReportRequest {
    ReportRequest {
        chunk: layout.chunk.id,
        epoch: layout.epoch,
        problem,
        detail: detail.chars().take(1000).collect(),
    }
}
