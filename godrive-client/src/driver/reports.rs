//! Tells the master what is wrong with a chunk's members, and takes over the layout it answers with.

use super::master::Master;
use super::retry::Patience;
use super::stats::Stats;
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

/// A higher epoch's `held` was elected and counts. Within an epoch the master knows only what was committed, so
/// the higher version counts.
fn adopt(layout: &mut Layout, answer: Layout) {
    if answer.epoch > layout.epoch {
        *layout = Layout { index: layout.index, ..answer };
    } else if answer.epoch == layout.epoch {
        layout.members = answer.members;
        if answer.held.version > layout.held.version {
            layout.held = answer.held;
        }
        if answer.stable.version > layout.stable.version {
            layout.stable = answer.stable;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use godrive_proto::data::{ChunkRef, Contents, LayoutTag};
    use godrive_proto::{Digest, Epoch, Version};

    fn layout(epoch: u64, held: u64, stable: u64) -> Layout {
        let contents = |version| Contents { version: Version(version), digest: Digest(u128::from(version)) };
        Layout {
            index: 3,
            chunk: ChunkRef { id: ChunkId(1), layout: LayoutTag::Replicated, chunk_bytes: 1 << 20, birth: 1 },
            epoch: Epoch(epoch),
            members: Vec::new(),
            held: contents(held),
            stable: contents(stable),
        }
    }

    #[test]
    fn an_elected_version_counts_and_a_committed_one_only_if_it_is_newer() {
        for (answer, expected) in [
            (layout(2, 4, 4), layout(2, 4, 4)),
            (layout(1, 4, 2), layout(1, 5, 3)),
            (layout(1, 6, 6), layout(1, 6, 6)),
            (layout(0, 9, 9), layout(1, 5, 3)),
        ] {
            let mut ours = layout(1, 5, 3);
            adopt(&mut ours, answer);
            assert_eq!(ours, expected);
        }
    }
}
