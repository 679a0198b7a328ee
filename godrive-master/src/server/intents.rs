//! Draining and decommissioning slaves: what people want is logged, and the repair loop follows it.

use super::hub::Hub;
use super::requests::Context;
use crate::core::nodes::Health;
use crate::core::record::{Body, Purpose};
use crate::core::state::values::Intent;
use godrive_proto::admin::{IntendRequest, Intended, Intention};
use godrive_proto::time::Instant;
use godrive_proto::{Code, DiskId, Fault, NodeId, SessionId};

pub async fn intend(context: &Context, request: IntendRequest) -> Result<Intended, Fault> {
    let step = |hub: &mut Hub, now: Instant| {
        let node = request.node;
        let disks: Option<Vec<DiskId>> =
            hub.nodes.get(node).map(|known| known.disks.iter().map(|state| state.disk).collect());
        let intent = hub.nodes.intents.changed(&request, disks.as_deref())?;
        let mut notes = match request.intention {
            Intention::Drain | Intention::Decommission => hub.check_left(now, &request)?,
            Intention::Undrain | Intention::Recommission => Vec::new(),
        };
        if hub.nodes.intents.get(node) != intent {
            let (purpose, disks) = (intent.purpose, intent.disks.clone());
            hub.decide(Body::NodeIntended { node, purpose, disks })?.0?;
            tracing::info!(%node, disk = ?request.disk, intention = ?request.intention, "people want this");
            hub.nodes.intents.set(node, intent);
            hub.slaves.reclaim = true;
        }
        match request.intention {
            Intention::Decommission if hub.nodes.give_up_as_lost(now, node) => {
                tracing::warn!(%node, "people give it up: what only it has is lost");
                notes.push(
                    "it is dead: what only it has is given up as lost, unless it comes back".to_owned(),
                );
            }
            Intention::Recommission => hub.nodes.take_back(node),
            _ => {}
        }
        Ok((Intended { notes }, hub.must_be_durable(SessionId(0))))
    };
    context.step(step).await
}

impl Hub {
    /// Whether enough slaves are left for new data, and for what is to move. Who is dead takes none away.
    fn check_left(&self, now: Instant, request: &IntendRequest) -> Result<Vec<String>, Fault> {
        let parameters = self.parameters()?;
        let (replicas, least) = (usize::from(parameters.replicas), usize::from(parameters.min_replicas));
        let serves = |node: NodeId| {
            self.nodes.intents.purpose(node) == Purpose::Serve && self.nodes.health(now, node) != Health::Dead
        };
        let others = self.nodes.iter().filter(|(node, _)| *node != request.node && serves(*node)).count();
        // Of a slave that loses a disk the others still take new data.
        let known = self.nodes.get(request.node);
        let other_disks = known.is_some_and(|known| {
            let stays =
                |disk| Some(disk) != request.disk && !self.nodes.intents.is_draining(request.node, disk);
            known.disks.iter().any(|state| stays(state.disk))
        });
        let left = others + usize::from(request.disk.is_some() && other_disks);
        if left < least && serves(request.node) {
            let detail = format!(
                "only {left} slaves would be left for new data, and it needs {least} (min_replicas): add a slave first"
            );
            return Err(Fault::new(Code::Invalid, detail));
        }
        // What is on one disk may go to another one of its slave.
        if others < replicas && !(request.disk.is_some() && other_disks) {
            let note = format!(
                "{others} other slaves are there and replicas is {replicas}: not all can move until there is another \
                 slave"
            );
            return Ok(vec![note]);
        }
        Ok(Vec::new())
    }

    /// The slave holds nothing any more. From now on it is refused.
    pub fn retire(&mut self, node: NodeId) -> Result<(), Fault> {
        self.decide(Body::NodeRetired { node })?.0?;
        let disks = self.nodes.get(node).map(|known| known.disks.iter().map(|state| state.disk).collect());
        let intent = Intent { purpose: Purpose::Retired, disks: disks.unwrap_or_default() };
        self.nodes.intents.set(node, intent);
        self.nodes.forget(node);
        self.slaves.inventories.remove(&node);
        // What it had of chunks that are deleted later is not waited for either.
        self.slaves.forget(node);
        if let Some(link) = self.slaves.links.remove(&node) {
            link.connection.close("decommissioned");
        }
        Ok(())
    }
}
