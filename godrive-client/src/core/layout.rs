//! What a newer layout of a chunk says of an older one.

use godrive_proto::data::Layout;

/// A higher epoch's `held` was elected and counts. Within an epoch the master knows only what was committed, so
/// the higher version counts.
pub fn adopt(layout: &mut Layout, answer: Layout) {
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

/// What was held may be so no longer: only a power loss of all members takes it, and only if it was not stable. Where
/// others have written since, nobody can tell any more, and it is taken for lost.
pub fn is_regression(known: &Layout, now: &Layout) -> bool {
    let restarted = known.chunk.id == now.chunk.id && known.epoch.restarts() < now.epoch.restarts();
    restarted && known.held != known.stable && known.held != now.held
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use godrive_proto::data::{ChunkRef, Contents, LayoutTag};
    use godrive_proto::{ChunkId, Digest, Epoch, Version};

    pub(crate) fn layout(epoch: u64, held: u64, stable: u64) -> Layout {
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
