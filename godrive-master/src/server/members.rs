//! Who has a chunk: members for new ones, where they are, and what became of copies.

use super::hub::Hub;
use crate::core::placement::{Candidate, place};
use crate::core::record::Placed;
use godrive_proto::data::{Layout, Member};
use godrive_proto::time::Instant;
use godrive_proto::{ChunkId, Code, Fault, NodeId};
use std::collections::BTreeSet;
use std::time::Duration;

impl Hub {
    /// Members for a new chunk, beside those `placed` in the same request. Space is kept by [`Self::reserve`].
    pub fn place(&mut self, now: Instant, bytes: u32, placed: &[Placed]) -> Result<Vec<Member>, Fault> {
        let parameters = self.parameters()?;
        let mut candidates = self.nodes.candidates(now, &self.reserved);
        for candidate in &mut candidates {
            let taken =
                placed.iter().flat_map(|placed| &placed.members).filter(|m| m.disk == candidate.disk).count();
            candidate.free_bytes = candidate.free_bytes.saturating_sub(u64::from(bytes) * taken as u64);
        }
        let wanted = usize::from(parameters.replicas);
        let chosen = place(&mut *self.selector, &candidates, &[], wanted, u64::from(bytes));
        if chosen.len() >= usize::from(parameters.min_replicas) {
            return Ok(chosen.iter().filter_map(|candidate| self.member(candidate)).collect());
        }
        let usable: BTreeSet<NodeId> = candidates.iter().map(|candidate| candidate.node).collect();
        let (known, least) = (self.nodes.iter().count(), usize::from(parameters.min_replicas));
        if usable.len() < least {
            let detail = format!(
                "a new chunk needs {least} usable slaves (min_replicas), and there are {} of {known} known: \
                 start more slaves, or look at `godrive status` for why they are not used",
                usable.len()
            );
            return Err(Fault::new(Code::Unavailable, detail));
        }
        let detail = format!(
            "fewer than {least} slaves (min_replicas) have {bytes} bytes free for a chunk: \
             add a slave or a disk, or delete something"
        );
        Err(Fault::new(Code::NoSpace, detail))
    }

    pub fn member(&self, candidate: &Candidate) -> Option<Member> {
        let address = self.nodes.get(candidate.node)?.address;
        Some(Member { node: candidate.node, disk: candidate.disk, address })
    }

    /// Keeps room for chunks that were just placed.
    pub fn reserve(&mut self, layout: &Layout) {
        if layout.held.version.0 == 0 {
            let disks = layout.members.iter().map(|member| member.disk).collect();
            self.reserved.reserve(layout.chunk.id, u64::from(layout.chunk.chunk_bytes), disks);
        }
    }

    /// A layout of a repeated answer, as it is now; as it was then if the chunk is gone.
    pub fn layout_again(&self, now: Instant, layout: &mut Layout) {
        if let Ok(present) = self.state.chunk_layout(layout.chunk.id) {
            *layout = present;
        }
        self.localize(now, layout);
    }

    /// Addresses as the nodes announced them; living members first, so that readers meet them first.
    pub fn localize(&self, now: Instant, layout: &mut Layout) {
        for member in &mut layout.members {
            if let Some(node) = self.nodes.get(member.node) {
                member.address = node.address;
            }
        }
        layout.members.sort_by_key(|member| self.nodes.replica_health(now, member.node, member.disk));
    }

    /// Every member was reported as corrupt, within this time if one is given, and none can be spared to be made anew from
    /// the others. What verifies is still read where it is; nothing is elected against it and nothing overwritten.
    pub fn is_damaged(
        &self,
        now: Instant,
        chunk: ChunkId,
        members: &[Member],
        within: Option<Duration>,
    ) -> Result<bool, Fault> {
        let Some(corrupt) = self.slaves.corrupt.get(&chunk) else { return Ok(false) };
        let counts = |at: &Instant| within.is_none_or(|within| now.since(*at) <= within);
        let all = members.iter().all(|member| corrupt.get(&member.node).is_some_and(counts));
        Ok(all && members.len() <= usize::from(self.parameters()?.min_replicas))
    }

    /// Whether a copy to this place was made is not known: what is there is removed if nobody needs it. One that was refused,
    /// or could not be fetched from its source, left nothing; noted all the same, it would be tried there again and again.
    pub fn may_have_copied(
        &mut self,
        chunk: ChunkId,
        from: Member,
        to: Member,
        fault: &Fault,
    ) -> Result<(), Fault> {
        let is_unknown =
            matches!(fault.code, Code::Timeout | Code::Unreachable) && fault.node != Some(from.node);
        if is_unknown { self.was_copied(chunk, to) } else { Ok(()) }
    }

    /// A copy lies there, of a chunk that may not need it.
    pub fn was_copied(&mut self, chunk: ChunkId, to: Member) -> Result<(), Fault> {
        let is_of_use = match self.state.chunk(chunk)? {
            Some(known) => known.members.iter().any(|member| member.node == to.node),
            None => self.state.deleted_chunk(chunk)?.is_none(),
        };
        if !is_of_use {
            self.slaves.copied(chunk, to);
        }
        Ok(())
    }
}
