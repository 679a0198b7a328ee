//! In which order a chunk's members pass a delta on, where some do not reach each other, and who is to blame where no order will do.
//!
//! The mount sends to the first member, each member to the next: an order is good if it passes no link that broke lately. A broken
//! link says little about which of its ends failed; the member with most of them is the likeliest. Pure.

use godrive_proto::NodeId;
use godrive_proto::time::Instant;
use std::collections::BTreeMap;
use std::time::Duration;

/// How long a link is avoided. To try it again costs a delta its deadline.
const AVOIDED_FOR: Duration = Duration::from_secs(60);
const MAX_LINKS: usize = 4096;
/// Steps of the search for an order; more members than that takes are not searched through.
const MAX_STEPS: u32 = 1000;

#[derive(Debug, Default)]
pub struct Routes {
    /// Links between two slaves, in either direction, and until when they are avoided.
    broken: BTreeMap<(NodeId, NodeId), Instant>,
}

fn link(one: NodeId, other: NodeId) -> (NodeId, NodeId) {
    (one.min(other), one.max(other))
}

impl Routes {
    pub fn broke(&mut self, one: NodeId, other: NodeId, now: Instant) {
        if self.broken.len() >= MAX_LINKS {
            self.broken.retain(|_, until| now < *until);
        }
        if self.broken.len() < MAX_LINKS {
            self.broken.insert(link(one, other), now.after(AVOIDED_FOR));
        }
    }

    /// A delta was acknowledged by all members in this order.
    pub fn passed(&mut self, order: &[NodeId]) {
        if !self.broken.is_empty() {
            let was_passed = |known| order.windows(2).any(|pair| link(pair[0], pair[1]) == known);
            self.broken.retain(|known, _| !was_passed(*known));
        }
    }

    fn is_broken(&self, one: NodeId, other: NodeId, now: Instant) -> bool {
        self.broken.get(&link(one, other)).is_some_and(|until| now < *until)
    }

    /// Positions of `members`: a good order if there is one, as near to the given one as can be. Those that the mount itself does not
    /// reach come last if they can, for the others may reach them.
    pub fn order(
        &self,
        members: &[NodeId],
        unreachable: impl Fn(NodeId) -> bool,
        now: Instant,
    ) -> Vec<usize> {
        self.good_order(members, &unreachable, now).unwrap_or_else(|| reached_first(members, &unreachable))
    }

    fn good_order(
        &self,
        members: &[NodeId],
        unreachable: &impl Fn(NodeId) -> bool,
        now: Instant,
    ) -> Option<Vec<usize>> {
        let from = reached_first(members, unreachable);
        let mut order = Vec::with_capacity(members.len());
        let mut steps = MAX_STEPS;
        let fits = |order: &[usize], next: usize| match order.last() {
            None => !unreachable(members[next]),
            Some(last) => !self.is_broken(members[*last], members[next], now),
        };
        complete(&mut order, &from, &fits, &mut steps).then_some(order)
    }

    /// Who to report when `accused` did not answer. None: the mount reaches none of them, so it is cut off itself.
    pub fn blame(
        &self,
        members: &[NodeId],
        unreachable: impl Fn(NodeId) -> bool,
        accused: NodeId,
        now: Instant,
    ) -> Option<NodeId> {
        if members.len() > 1 && members.iter().all(|member| unreachable(*member)) {
            return None;
        }
        if self.good_order(members, &unreachable, now).is_some() {
            return Some(accused);
        }
        let broken = |node: NodeId| {
            let links = members.iter().filter(|other| self.is_broken(node, **other, now)).count();
            links + usize::from(unreachable(node))
        };
        members.iter().copied().max_by_key(|node| (broken(*node), *node == accused)).or(Some(accused))
    }
}

fn reached_first(members: &[NodeId], unreachable: &impl Fn(NodeId) -> bool) -> Vec<usize> {
    let mut order: Vec<usize> = (0..members.len()).collect();
    order.sort_by_key(|at| unreachable(members[*at]));
    order
}

/// Depth first, so that what is found keeps as much of the order `from` as there can be.
fn complete(
    order: &mut Vec<usize>,
    from: &[usize],
    fits: &impl Fn(&[usize], usize) -> bool,
    steps: &mut u32,
) -> bool {
    if order.len() == from.len() {
        return true;
    }
    for next in from.iter().copied() {
        if *steps == 0 {
            return false;
        }
        *steps -= 1;
        if !order.contains(&next) && fits(order, next) {
            order.push(next);
            if complete(order, from, fits, steps) {
                return true;
            }
            order.pop();
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const C: NodeId = NodeId(3);
    const MEMBERS: [NodeId; 3] = [A, B, C];
    const NOW: Instant = Instant(0);

    struct Network {
        routes: Routes,
        unreachable: Vec<NodeId>,
    }

    impl Network {
        fn new(broken: &[(NodeId, NodeId)], unreachable: &[NodeId]) -> Self {
            let mut routes = Routes::default();
            broken.iter().for_each(|(one, other)| routes.broke(*one, *other, NOW));
            Self { routes, unreachable: unreachable.to_vec() }
        }

        fn order_at(&self, now: Instant) -> Vec<NodeId> {
            let order = self.routes.order(&MEMBERS, |node| self.unreachable.contains(&node), now);
            order.into_iter().map(|at| MEMBERS[at]).collect()
        }

        fn order(&self) -> Vec<NodeId> {
            self.order_at(NOW)
        }

        fn blame(&self, accused: NodeId) -> Option<NodeId> {
            self.routes.blame(&MEMBERS, |node| self.unreachable.contains(&node), accused, NOW)
        }
    }

    #[test]
    fn an_order_keeps_to_what_is_given_as_far_as_it_can() {
        assert_eq!(Network::new(&[], &[]).order(), [A, B, C]);
        assert_eq!(Network::new(&[], &[A]).order(), [B, C, A]);
        assert_eq!(Network::new(&[(B, C)], &[]).order(), [B, A, C]);
        assert_eq!(Network::new(&[(B, A)], &[]).order(), [A, C, B]);
        assert_eq!(Network::new(&[(B, C)], &[B]).order(), [C, A, B]);
        // No order: those that are reached first.
        assert_eq!(Network::new(&[(A, B), (A, C)], &[A]).order(), [B, C, A]);
        assert_eq!(Network::new(&[], &MEMBERS).order(), [A, B, C]);
    }

    #[test]
    fn the_one_with_most_broken_links_is_to_blame() {
        // Another order may do: what was seen is told.
        assert_eq!(Network::new(&[(B, C)], &[]).blame(C), Some(C));
        assert_eq!(Network::new(&[], &[A]).blame(A), Some(A));
        // It sent to the others in vain, and accused them.
        assert_eq!(Network::new(&[(C, A), (C, B)], &[]).blame(B), Some(C));
        assert_eq!(Network::new(&[(C, A), (C, B)], &[C]).blame(A), Some(C));
        assert_eq!(Network::new(&[], &MEMBERS).blame(A), None);
        let two = |unreachable: &[NodeId]| {
            let routes = Network::new(&[(A, B)], &[]).routes;
            routes.blame(&[A, B], |node| unreachable.contains(&node), B, NOW)
        };
        assert_eq!((two(&[]), two(&[A])), (Some(B), Some(A)));
        let alone = Routes::default().blame(&[A], |_| true, A, NOW);
        assert_eq!(alone, Some(A));
    }

    #[test]
    fn a_link_is_tried_again_when_its_time_is_over_or_it_was_passed() {
        let mut network = Network::new(&[(B, C), (A, B)], &[]);
        assert_eq!(network.order(), [A, B, C], "there is no good one");
        network.routes.passed(&[A, B, C]);
        assert_eq!(network.routes.broken.len(), 0);
        let network = Network::new(&[(B, C)], &[]);
        assert_eq!(network.order_at(NOW.after(AVOIDED_FOR)), [A, B, C]);
    }

    #[test]
    fn many_members_are_not_searched_through_for_ever() {
        let members: Vec<NodeId> = (1..=16).map(NodeId).collect();
        let mut routes = Routes::default();
        // The last one reaches nobody.
        members.iter().for_each(|member| routes.broke(*member, NodeId(16), NOW));
        assert_eq!(routes.order(&members, |_| false, NOW), Vec::from_iter(0..16));
        assert_eq!(routes.blame(&members, |_| false, A, NOW), Some(NodeId(16)));
    }
}
