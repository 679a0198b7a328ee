//! What to repair, in which order, and how much at a time.
//!
//! The planner is a function of a view. First come chunks with the fewest living replicas; a chunk whose
//! missing node may only be restarting waits, unless so few replicas are left that the next failure could
//! take the chunk from its users. Limits bound the copies per node and in all. Replicas that nobody needs
//! any more are removed last and in batches, so that deletion never delays repair.

use super::nodes::Health;
use super::placement::{Candidate, NodeSelector, place};
use godrive_proto::{ChunkId, DiskId, Epoch, NodeId};
use std::collections::{BTreeMap, BTreeSet};

/// One member of a chunk as the planner sees it.
#[derive(Clone, Debug)]
pub struct MemberView {
    pub node: NodeId,
    pub disk: DiskId,
    pub domain: String,
    pub health: Health,
}

/// A chunk that may need something.
#[derive(Clone, Debug)]
pub struct ChunkView {
    pub chunk: ChunkId,
    pub bytes: u64,
    pub members: Vec<MemberView>,
    /// Disks that have a replica of an older epoch: only what differs has to be copied there.
    pub leftovers: Vec<(NodeId, DiskId)>,
    /// An epoch change or a repair of it is under way, or it is quarantined.
    pub busy: bool,
}

/// A replica to remove: superseded by a later epoch, or of a deleted chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Unneeded {
    pub node: NodeId,
    pub chunk: ChunkId,
    /// Replicas of later epochs stay.
    pub epoch: Epoch,
}

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub replicas: usize,
    pub min_replicas: usize,
    /// Copies under way in all, and per node (as source or target).
    pub copies: usize,
    pub copies_per_node: usize,
    /// Deletions per node in one command.
    pub deletions: usize,
}

#[derive(Debug, Default)]
pub struct View {
    pub chunks: Vec<ChunkView>,
    pub candidates: Vec<Candidate>,
    pub unneeded: Vec<Unneeded>,
    /// Copies under way by node.
    pub copying: BTreeMap<NodeId, usize>,
    pub copies: usize,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Copy from `source`, then make `target` a member by an epoch change.
    Join {
        chunk: ChunkId,
        source: NodeId,
        target: Candidate,
    },
    Delete {
        node: NodeId,
        chunks: Vec<(ChunkId, Epoch)>,
    },
}

/// Chunks that may need something, the most urgent first. Bounded turns take from its front.
#[derive(Debug, Default)]
pub struct Worklist {
    ranks: BTreeMap<ChunkId, u8>,
    order: BTreeSet<(u8, ChunkId)>,
}

impl Worklist {
    /// Not looked at yet, so before everything else.
    pub const UNKNOWN: u8 = 0;
    /// Nothing can be done for it now.
    pub const HOPELESS: u8 = u8::MAX;

    pub fn put(&mut self, chunk: ChunkId, rank: u8) {
        if let Some(old) = self.ranks.insert(chunk, rank) {
            self.order.remove(&(old, chunk));
        }
        self.order.insert((rank, chunk));
    }

    pub fn remove(&mut self, chunk: ChunkId) {
        if let Some(rank) = self.ranks.remove(&chunk) {
            self.order.remove(&(rank, chunk));
        }
    }

    pub fn first(&self, count: usize) -> Vec<ChunkId> {
        self.order.iter().take(count).map(|(_, chunk)| *chunk).collect()
    }
}

impl ChunkView {
    /// Its place in the [`Worklist`]: living members, if something can be done for it now.
    pub fn rank(&self, limits: &Limits) -> u8 {
        match urgency(self, limits) {
            Some(alive) => u8::try_from(alive).unwrap_or(Worklist::HOPELESS - 1).max(1),
            None => Worklist::HOPELESS,
        }
    }
}

/// How urgent a chunk is: living members, and whether waiting for a restart is out of the question.
fn urgency(chunk: &ChunkView, limits: &Limits) -> Option<usize> {
    let count = |health| chunk.members.iter().filter(|member| member.health == health).count();
    let (alive, suspect) = (count(Health::Alive), count(Health::Suspect));
    let at_risk = alive < limits.min_replicas || (alive <= 1 && limits.replicas > 1);
    let counted = if at_risk { alive } else { alive + suspect };
    // Without a living source nothing can be done.
    (!chunk.busy && alive > 0 && counted < limits.replicas).then_some(alive)
}

/// The next steps, most urgent first. Call again when something has changed or ended.
pub fn plan(view: &View, limits: &Limits, selector: &mut dyn NodeSelector) -> Vec<Step> {
    let mut urgent: Vec<(usize, &ChunkView)> =
        view.chunks.iter().filter_map(|chunk| Some((urgency(chunk, limits)?, chunk))).collect();
    urgent.sort_by_key(|(alive, chunk)| (*alive, chunk.chunk));
    let mut steps = Vec::new();
    let mut copying = view.copying.clone();
    let mut copies = view.copies;
    let mut candidates = view.candidates.clone();
    for (_, chunk) in urgent {
        if copies >= limits.copies {
            break;
        }
        let busy = |node: NodeId| copying.get(&node).copied().unwrap_or(0);
        let idle = |node: NodeId| busy(node) < limits.copies_per_node;
        let living = chunk.members.iter().filter(|member| member.health == Health::Alive);
        let Some(source) = living.filter(|m| idle(m.node)).min_by_key(|m| busy(m.node)).map(|m| m.node)
        else {
            continue;
        };
        let free: Vec<_> = candidates.iter().filter(|c| idle(c.node)).cloned().collect();
        let Some(target) = target(chunk, &free, selector) else { continue };
        for node in [source, target.node] {
            *copying.entry(node).or_default() += 1;
        }
        copies += 1;
        for candidate in candidates.iter_mut().filter(|c| c.disk == target.disk) {
            candidate.free_bytes = candidate.free_bytes.saturating_sub(chunk.bytes);
        }
        steps.push(Step::Join { chunk: chunk.chunk, source, target });
    }
    steps.extend(deletions(view, limits));
    steps
}

/// A disk with a leftover of the chunk, else one that the selector chooses. The node of a member whose replica
/// is lost may get it again.
fn target(chunk: &ChunkView, free: &[Candidate], selector: &mut dyn NodeSelector) -> Option<Candidate> {
    let present = chunk.members.iter().filter(|member| member.health != Health::Dead);
    let members: Vec<_> = present.map(|member| (member.node, member.domain.clone())).collect();
    let leftover = |c: &&Candidate| {
        chunk.leftovers.contains(&(c.node, c.disk)) && members.iter().all(|(node, _)| *node != c.node)
    };
    free.iter().find(leftover).cloned().or_else(|| place(selector, free, &members, 1, chunk.bytes).pop())
}

fn deletions(view: &View, limits: &Limits) -> Vec<Step> {
    let mut by_node: BTreeMap<NodeId, Vec<(ChunkId, Epoch)>> = BTreeMap::new();
    for unneeded in &view.unneeded {
        let chunks = by_node.entry(unneeded.node).or_default();
        if chunks.len() < limits.deletions {
            chunks.push((unneeded.chunk, unneeded.epoch));
        }
    }
    by_node.into_iter().map(|(node, chunks)| Step::Delete { node, chunks }).collect()
}

#[cfg(test)]
mod tests {
    use super::super::placement::RoundRobin;
    use super::*;
    use std::fmt::Write;

    /// Lines: `chunk 7 a1 s2 d3 [left4] [busy]`, `disk 4 [full]`, `copying 1 2`, `unneeded 5 7 e3`.
    fn planned(text: &str) -> String {
        let number = |word: &str| -> u64 { word.trim_start_matches(char::is_alphabetic).parse().unwrap() };
        let node = |word: &str| NodeId(number(word).into());
        let disk = |node: NodeId| DiskId(node.0 * 10);
        let mut view = View::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty()) {
            let words: Vec<&str> = line.split_whitespace().collect();
            match words[0] {
                "chunk" => {
                    let members = words[2..].iter().filter_map(|word| {
                        let health = match word.as_bytes()[0] {
                            b'a' => Health::Alive,
                            b's' => Health::Suspect,
                            b'd' => Health::Dead,
                            _ => return None,
                        };
                        Some(MemberView {
                            node: node(word),
                            disk: disk(node(word)),
                            domain: String::new(),
                            health,
                        })
                    });
                    let left = words[2..].iter().filter(|word| word.starts_with("left"));
                    view.chunks.push(ChunkView {
                        chunk: ChunkId(number(words[1])),
                        bytes: 10,
                        members: members.collect(),
                        leftovers: left.map(|word| (node(word), disk(node(word)))).collect(),
                        busy: words.contains(&"busy"),
                    });
                }
                "disk" => view.candidates.push(Candidate {
                    node: node(words[1]),
                    disk: disk(node(words[1])),
                    domain: String::new(),
                    total_bytes: 100,
                    free_bytes: if words.contains(&"full") { 5 } else { 25 },
                }),
                "copying" => {
                    for word in &words[1..] {
                        *view.copying.entry(node(word)).or_default() += 1;
                    }
                    view.copies += 1;
                }
                "unneeded" => view.unneeded.push(Unneeded {
                    node: node(words[1]),
                    chunk: ChunkId(number(words[2])),
                    epoch: Epoch(number(words[3])),
                }),
                other => panic!("{other}"),
            }
        }
        let limits = Limits { replicas: 3, min_replicas: 2, copies: 3, copies_per_node: 2, deletions: 2 };
        let mut out = String::new();
        for step in plan(&view, &limits, &mut RoundRobin::default()) {
            match step {
                Step::Join { chunk, source, target } => {
                    writeln!(out, "join {chunk}: {} -> {}", source.0, target.node.0).unwrap();
                }
                Step::Delete { node, chunks } => {
                    let list: Vec<_> =
                        chunks.iter().map(|(chunk, epoch)| format!("{chunk}@{epoch}")).collect();
                    writeln!(out, "delete on {}: {}", node.0, list.join(" ")).unwrap();
                }
            }
        }
        out
    }

    #[track_caller]
    fn check(view: &str, expected: &str) {
        let expected: String =
            expected.lines().map(str::trim).filter(|l| !l.is_empty()).flat_map(|l| [l, "\n"]).collect();
        assert_eq!(planned(view), expected);
    }

    #[test]
    fn the_most_endangered_first_and_deletions_last() {
        check(
            "chunk 1 a1 a2 d3
             chunk 2 a1 d2 d3
             chunk 3 a1 a2 a4
             disk 1
             disk 2
             disk 4
             disk 5
             unneeded 2 9 e4
             unneeded 2 8 e4
             unneeded 2 7 e4",
            "join 2: 1 -> 2
             join 1: 1 -> 4
             delete on 2: 9@4 8@4",
        );
    }

    #[test]
    fn a_restarting_node_has_grace_unless_the_chunk_is_at_risk() {
        check(
            "chunk 1 a1 a2 s3
             chunk 2 a1 s2 s3
             disk 4",
            "join 2: 1 -> 4",
        );
    }

    #[test]
    fn limits_hold_per_node_and_in_all() {
        check(
            "chunk 1 a1 a2 d9
             chunk 2 a1 a2 d9
             chunk 3 a1 a2 d9
             chunk 4 a1 a2 d9
             disk 3
             disk 4",
            "join 1: 1 -> 3
             join 2: 2 -> 4
             join 3: 1 -> 3",
        );
        check(
            "chunk 1 a1 a2 d9
             copying 1 3
             copying 1 3
             disk 3
             disk 4",
            "join 1: 2 -> 4",
        );
        check("chunk 1 a1 a2 d9\n copying 5 6\n copying 5 6\n copying 7 8\n disk 3", "");
    }

    #[test]
    fn leftovers_are_preferred_and_space_is_counted() {
        check(
            "chunk 1 a1 a2 left5
             disk 4
             disk 5 full",
            "join 1: 1 -> 5",
        );
        check("chunk 1 a1 a2\n disk 4 full", "");
    }

    #[test]
    fn a_node_that_lost_its_replica_may_get_it_again() {
        check("chunk 1 a1 a2 d3\n disk 3", "join 1: 1 -> 3");
        check("chunk 1 a1 a2 s3\n disk 3", "");
    }

    #[test]
    fn busy_chunks_and_chunks_without_a_source_wait() {
        check("chunk 1 a1 a2 d3 busy\n chunk 2 d1 d2 d3\n chunk 3 s1 s2 s3\n disk 4", "");
    }

    #[test]
    fn the_worklist_gives_the_most_urgent_first_and_new_ones_before() {
        let mut list = Worklist::default();
        for (chunk, rank) in [(1, 3), (2, Worklist::HOPELESS), (3, 1), (4, Worklist::UNKNOWN), (1, 2)] {
            list.put(ChunkId(chunk), rank);
        }
        assert_eq!(list.first(3), [ChunkId(4), ChunkId(3), ChunkId(1)]);
        list.remove(ChunkId(4));
        assert_eq!(list.first(9), [ChunkId(3), ChunkId(1), ChunkId(2)]);
    }
}
