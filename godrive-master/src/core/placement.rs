//! Where new replicas go.
//!
//! A [`NodeSelector`] decides the order in which disks are tried; [`place`] makes sure, whatever the selector,
//! that no two replicas of a chunk lie on one node and that failure domains are shared as little as possible.
//! A chunk that was just placed takes no space yet, so its size is *reserved* on its members until its first
//! commit: otherwise a burst of new files would be promised the same bytes.

use godrive_proto::{ChunkId, DiskId, NodeId};
use std::collections::BTreeMap;

/// A disk on which a replica may be put: its node is alive and it is healthy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    pub node: NodeId,
    pub disk: DiskId,
    /// `rack1/host7`; empty if none was configured.
    pub domain: String,
    pub total_bytes: u64,
    /// After reservations.
    pub free_bytes: u64,
}

/// In which order disks are preferred. Implement it to place by other rules.
pub trait NodeSelector: Send {
    /// Indexes into `candidates` (ascending by node and disk), most preferred first. Those left out are not used.
    fn order(&mut self, candidates: &[Candidate]) -> Vec<usize>;
    /// What was chosen in the end, for selectors that remember.
    fn chosen(&mut self, _chosen: &[Candidate]) {}
}

/// One disk after the other.
#[derive(Debug, Default)]
pub struct RoundRobin {
    last: Option<(NodeId, DiskId)>,
}

impl NodeSelector for RoundRobin {
    fn order(&mut self, candidates: &[Candidate]) -> Vec<usize> {
        let first = candidates.iter().position(|c| Some((c.node, c.disk)) > self.last).unwrap_or(0);
        (first..candidates.len()).chain(0..first).collect()
    }

    fn chosen(&mut self, chosen: &[Candidate]) {
        if let Some(first) = chosen.first() {
            self.last = Some((first.node, first.disk));
        }
    }
}

/// The emptiest disk first, by the share that is free. Reservations make a burst spread by itself;
/// among disks that are equally full it goes round.
#[derive(Debug, Default)]
pub struct CapacityWeighted {
    round: RoundRobin,
}

impl NodeSelector for CapacityWeighted {
    fn order(&mut self, candidates: &[Candidate]) -> Vec<usize> {
        let mut order = self.round.order(candidates);
        // In 1/256 of the disk, so that a few bytes of difference do not make one disk the favourite.
        order.sort_by_key(|at| {
            let disk = &candidates[*at];
            std::cmp::Reverse(u128::from(disk.free_bytes) * 256 / u128::from(disk.total_bytes.max(1)))
        });
        order
    }

    fn chosen(&mut self, chosen: &[Candidate]) {
        self.round.chosen(chosen);
    }
}

/// Chooses up to `count` disks with room for `bytes`, on nodes other than those of `members` and of each other,
/// in domains as far from all of them as possible. `members` are (node, domain) of replicas that exist already.
pub fn place(
    selector: &mut dyn NodeSelector,
    candidates: &[Candidate],
    members: &[(NodeId, String)],
    count: usize,
    bytes: u64,
) -> Vec<Candidate> {
    let mut fitting: Vec<Candidate> = candidates
        .iter()
        .filter(|c| c.free_bytes >= bytes && members.iter().all(|(node, _)| *node != c.node))
        .cloned()
        .collect();
    fitting.sort_by_key(|c| (c.node, c.disk));
    let order = selector.order(&fitting);
    let mut chosen: Vec<Candidate> = Vec::with_capacity(count);
    while chosen.len() < count {
        let closeness = |candidate: &Candidate| {
            let existing = members.iter().map(|(_, domain)| domain);
            let domains = existing.chain(chosen.iter().map(|c| &c.domain));
            domains.map(|domain| shared_levels(domain, &candidate.domain)).max().unwrap_or(0)
        };
        let free = order
            .iter()
            .filter_map(|at| fitting.get(*at))
            .filter(|candidate| chosen.iter().all(|c| c.node != candidate.node));
        // The first of the least close: `min_by_key` keeps the selector's order among equals.
        let Some(next) = free.min_by_key(|candidate| closeness(candidate)).cloned() else { break };
        chosen.push(next);
    }
    selector.chosen(&chosen);
    chosen
}

/// How many leading levels two domains have in common.
pub fn shared_levels(one: &str, other: &str) -> usize {
    if one.is_empty() || other.is_empty() {
        return 0;
    }
    one.split('/').zip(other.split('/')).take_while(|(a, b)| a == b).count()
}

/// Space promised to chunks that have not been committed yet.
#[derive(Debug, Default)]
pub struct Reservations {
    chunks: BTreeMap<ChunkId, (u64, Vec<DiskId>)>,
    disks: BTreeMap<DiskId, u64>,
}

impl Reservations {
    pub fn reserve(&mut self, chunk: ChunkId, bytes: u64, disks: Vec<DiskId>) {
        self.release(chunk);
        for disk in &disks {
            *self.disks.entry(*disk).or_default() += bytes;
        }
        self.chunks.insert(chunk, (bytes, disks));
    }

    /// The chunk was committed (its bytes show in the disks' free space), or it is gone.
    pub fn release(&mut self, chunk: ChunkId) {
        let Some((bytes, disks)) = self.chunks.remove(&chunk) else { return };
        for disk in disks {
            if let Some(reserved) = self.disks.get_mut(&disk) {
                *reserved = reserved.saturating_sub(bytes);
                if *reserved == 0 {
                    self.disks.remove(&disk);
                }
            }
        }
    }

    pub fn on(&self, disk: DiskId) -> u64 {
        self.disks.get(&disk).copied().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn disk(node: u128, domain: &str, free: u64) -> Candidate {
        Candidate {
            node: NodeId(node),
            disk: DiskId(node * 10),
            domain: domain.into(),
            total_bytes: 1000,
            free_bytes: free,
        }
    }

    fn nodes(chosen: &[Candidate]) -> Vec<u128> {
        chosen.iter().map(|c| c.node.0).collect()
    }

    #[test]
    fn round_robin_begins_with_the_next_each_time() {
        let disks: Vec<_> = (1..=4).map(|n| disk(n, "", 1000)).collect();
        let mut selector = RoundRobin::default();
        let placed: Vec<_> = (0..5).map(|_| nodes(&place(&mut selector, &disks, &[], 2, 1))).collect();
        assert_eq!(placed, [[1, 2], [2, 3], [3, 4], [4, 1], [1, 2]]);
    }

    #[test]
    fn capacity_prefers_the_emptiest() {
        let disks = [disk(1, "", 100), disk(2, "", 900), disk(3, "", 500)];
        assert_eq!(nodes(&place(&mut CapacityWeighted::default(), &disks, &[], 2, 1)), [2, 3]);
    }

    #[test]
    fn never_two_on_one_node() {
        let mut second = disk(1, "", 1000);
        second.disk = DiskId(11);
        let disks = [disk(1, "", 1000), second, disk(2, "", 1000)];
        for selector in
            [&mut RoundRobin::default() as &mut dyn NodeSelector, &mut CapacityWeighted::default()]
        {
            assert_eq!(nodes(&place(selector, &disks, &[], 3, 1)), [1, 2]);
            assert_eq!(nodes(&place(selector, &disks, &[(NodeId(1), String::new())], 3, 1)), [2]);
        }
    }

    #[test]
    fn other_racks_first_then_other_hosts() {
        let disks = [disk(1, "a/1", 1), disk(2, "a/2", 1), disk(3, "b/1", 1), disk(4, "b/2", 1)];
        assert_eq!(nodes(&place(&mut RoundRobin::default(), &disks, &[], 2, 1)), [1, 3]);
        assert_eq!(nodes(&place(&mut RoundRobin::default(), &disks, &[], 3, 1)), [1, 3, 2]);
        let member = [(NodeId(9), "a/9".to_string())];
        assert_eq!(nodes(&place(&mut RoundRobin::default(), &disks, &member, 1, 1)), [3]);
    }

    #[test]
    fn full_disks_are_left_out_and_reservations_count() {
        let disks = [disk(1, "", 9), disk(2, "", 10)];
        assert_eq!(nodes(&place(&mut RoundRobin::default(), &disks, &[], 2, 10)), [2]);
        let mut reserved = Reservations::default();
        reserved.reserve(ChunkId(1), 10, vec![DiskId(1), DiskId(2)]);
        reserved.reserve(ChunkId(2), 10, vec![DiskId(2)]);
        assert_eq!((reserved.on(DiskId(1)), reserved.on(DiskId(2))), (10, 20));
        reserved.release(ChunkId(1));
        reserved.release(ChunkId(1));
        assert_eq!((reserved.on(DiskId(1)), reserved.on(DiskId(2))), (0, 10));
    }
}
