//! What people want of the slaves, beyond that they serve: that one of them, or a disk of it, is emptied, and that
//! it goes for good. The log keeps it; this is the same in memory, and the rules of what may follow what.

use super::record::Purpose;
use super::state::values::Intent;
use godrive_proto::admin::{IntendRequest, Intention};
use godrive_proto::{Code, DiskId, Fault, NodeId};
use std::collections::BTreeMap;

#[derive(Debug, Default)]
pub struct Intents {
    nodes: BTreeMap<NodeId, Intent>,
}

impl Intents {
    pub fn set(&mut self, node: NodeId, intent: Intent) {
        match intent == Intent::default() {
            true => self.nodes.remove(&node),
            false => self.nodes.insert(node, intent),
        };
    }

    pub fn get(&self, node: NodeId) -> Intent {
        self.nodes.get(&node).cloned().unwrap_or_default()
    }

    pub fn purpose(&self, node: NodeId) -> Purpose {
        self.nodes.get(&node).map_or(Purpose::Serve, |intent| intent.purpose)
    }

    /// No new replicas go there, and those that are there move away.
    pub fn is_draining(&self, node: NodeId, disk: DiskId) -> bool {
        self.nodes
            .get(&node)
            .is_some_and(|intent| intent.purpose != Purpose::Serve || intent.disks.contains(&disk))
    }

    /// Disks that are drained by themselves.
    pub fn draining_disks(&self, node: NodeId) -> &[DiskId] {
        let own = self.nodes.get(&node).filter(|intent| intent.purpose != Purpose::Retired);
        own.map_or(&[], |intent| &intent.disks)
    }

    pub fn with_purpose(&self, purpose: Purpose) -> impl Iterator<Item = NodeId> {
        self.nodes.iter().filter(move |(_, intent)| intent.purpose == purpose).map(|(node, _)| *node)
    }

    /// Whether a slave with these disks may register. What was decommissioned does not come back by itself.
    pub fn admit(&self, node: NodeId, disks: impl IntoIterator<Item = DiskId>) -> Result<(), Fault> {
        if self.purpose(node) == Purpose::Retired {
            let detail = format!(
                "node {node} was decommissioned. To take it back: godrive recommission {node}. To use the machine as a \
                 new slave: join again with a new token into an empty directory"
            );
            return Err(Fault::at(Code::Forbidden, node, detail));
        }
        for disk in disks {
            let retired = self
                .nodes
                .iter()
                .find(|(_, intent)| intent.purpose == Purpose::Retired && intent.disks.contains(&disk));
            if let Some((last, _)) = retired {
                let detail = format!(
                    "disk {disk} belonged to node {last}, which was decommissioned. Give the slave an empty directory \
                     for it, or take that node back: godrive recommission {last}"
                );
                return Err(Fault::at(Code::Forbidden, *last, detail));
            }
        }
        Ok(())
    }

    /// The node's intent if the request is followed. `disks` are those it has; None: there is no such slave.
    pub fn changed(&self, request: &IntendRequest, disks: Option<&[DiskId]>) -> Result<Intent, Fault> {
        let IntendRequest { node, disk, intention } = *request;
        let mut intent = self.get(node);
        let refuse = |why: String| Err(Fault::at(Code::Invalid, node, why));
        if disks.is_none() && intent.purpose != Purpose::Retired {
            let why = format!("there is no slave {node}: `godrive status` lists them");
            return Err(Fault::at(Code::NotFound, node, why));
        }
        if let Some(disk) = disk {
            match (intention, intent.purpose) {
                (Intention::Decommission | Intention::Recommission, _) => {
                    return refuse(format!(
                        "a slave is decommissioned as a whole; drain its disk {disk} instead"
                    ));
                }
                (_, Purpose::Retired) => return refuse(format!("slave {node} was decommissioned")),
                (Intention::Drain, _) if !disks.is_some_and(|disks| disks.contains(&disk)) => {
                    return refuse(format!("slave {node} has no disk {disk}"));
                }
                (Intention::Drain, _) if intent.disks.contains(&disk) => {}
                (Intention::Drain, _) => intent.disks.push(disk),
                (Intention::Undrain, _) => intent.disks.retain(|other| *other != disk),
            }
            return Ok(intent);
        }
        intent.purpose = match (intention, intent.purpose) {
            (Intention::Drain, Purpose::Serve | Purpose::Drain) => Purpose::Drain,
            (Intention::Undrain, Purpose::Serve | Purpose::Drain) => Purpose::Serve,
            (Intention::Decommission, Purpose::Serve | Purpose::Drain | Purpose::Decommission) => {
                Purpose::Decommission
            }
            (Intention::Recommission, Purpose::Retired) => return Ok(Intent::default()),
            (Intention::Recommission, Purpose::Decommission | Purpose::Serve) => Purpose::Serve,
            (Intention::Recommission, Purpose::Drain) => {
                return refuse(format!("slave {node} is only drained: godrive undrain {node}"));
            }
            (_, Purpose::Decommission) => {
                return refuse(format!(
                    "slave {node} is being decommissioned: godrive recommission {node} ends that"
                ));
            }
            (_, Purpose::Retired) => {
                return refuse(format!(
                    "slave {node} was decommissioned: godrive recommission {node} takes it back"
                ));
            }
        };
        Ok(intent)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: NodeId = NodeId(1);
    const B: NodeId = NodeId(2);
    const DISKS: [DiskId; 2] = [DiskId(10), DiskId(11)];

    fn ask(intents: &mut Intents, intention: Intention, disk: Option<DiskId>) -> Result<Purpose, Code> {
        let intent = intents.changed(&IntendRequest { node: A, disk, intention }, Some(&DISKS));
        let intent = intent.map_err(|fault| fault.code)?;
        intents.set(A, intent);
        Ok(intents.purpose(A))
    }

    #[test]
    fn what_may_follow_what() {
        use Intention::{Decommission, Drain, Recommission, Undrain};
        let mut intents = Intents::default();
        for (intention, expected) in [
            (Drain, Ok(Purpose::Drain)),
            (Drain, Ok(Purpose::Drain)),
            (Recommission, Err(Code::Invalid)),
            (Undrain, Ok(Purpose::Serve)),
            (Undrain, Ok(Purpose::Serve)),
            (Drain, Ok(Purpose::Drain)),
            (Decommission, Ok(Purpose::Decommission)),
            (Drain, Err(Code::Invalid)),
            (Undrain, Err(Code::Invalid)),
            (Recommission, Ok(Purpose::Serve)),
        ] {
            assert_eq!(ask(&mut intents, intention, None), expected, "{intention:?}");
        }
        intents.set(A, Intent { purpose: Purpose::Retired, disks: DISKS.to_vec() });
        for intention in [Drain, Undrain, Decommission] {
            assert_eq!(ask(&mut intents, intention, None), Err(Code::Invalid), "{intention:?}");
            assert_eq!(ask(&mut intents, intention, Some(DISKS[0])), Err(Code::Invalid), "{intention:?}");
        }
        assert_eq!(ask(&mut intents, Recommission, None), Ok(Purpose::Serve));
        assert!(intents.nodes.is_empty(), "nothing is kept of it");
        let unknown = IntendRequest { node: B, disk: None, intention: Drain };
        assert_eq!(intents.changed(&unknown, None).unwrap_err().code, Code::NotFound);
    }

    #[test]
    fn a_disk_is_drained_by_itself() {
        let mut intents = Intents::default();
        ask(&mut intents, Intention::Drain, Some(DISKS[1])).unwrap();
        assert_eq!(DISKS.map(|disk| intents.is_draining(A, disk)), [false, true]);
        assert_eq!(ask(&mut intents, Intention::Drain, Some(DiskId(99))), Err(Code::Invalid));
        assert_eq!(ask(&mut intents, Intention::Decommission, Some(DISKS[0])), Err(Code::Invalid));
        ask(&mut intents, Intention::Drain, None).unwrap();
        assert_eq!(DISKS.map(|disk| intents.is_draining(A, disk)), [true, true]);
        ask(&mut intents, Intention::Undrain, None).unwrap();
        assert_eq!(intents.draining_disks(A), [DISKS[1]], "the disk stays as it was");
        ask(&mut intents, Intention::Undrain, Some(DISKS[1])).unwrap();
        assert!(intents.nodes.is_empty());
    }

    #[test]
    fn what_was_retired_is_refused_by_node_and_by_disk() {
        let mut intents = Intents::default();
        intents.set(A, Intent { purpose: Purpose::Retired, disks: DISKS.to_vec() });
        let node = intents.admit(A, []).unwrap_err();
        assert!(node.code == Code::Forbidden && node.detail.contains("godrive recommission"), "{node}");
        let disk = intents.admit(B, [DiskId(5), DISKS[0]]).unwrap_err();
        assert!(disk.code == Code::Forbidden && disk.detail.contains("an empty directory"), "{disk}");
        intents.admit(B, [DiskId(5)]).unwrap();
        intents.set(A, Intent::default());
        intents.admit(A, DISKS).unwrap();
    }
}
