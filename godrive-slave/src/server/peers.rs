//! One connection to each other slave, made when it is needed and again when it is lost.

use godrive_proto::data::Member;
use godrive_proto::net::{Connection, Endpoint, Expect};
use godrive_proto::{Code, Fault, NodeId, Role};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

/// Held while connecting, so that many requests to one peer make one connection.
type Link = Arc<tokio::sync::Mutex<Option<Connection>>>;

pub struct Peers {
    endpoint: Endpoint,
    links: Mutex<BTreeMap<(NodeId, SocketAddr), Link>>,
}

impl Peers {
    pub fn new(endpoint: Endpoint) -> Self {
        Self { endpoint, links: Mutex::default() }
    }

    pub async fn connection(&self, member: &Member, within: Duration) -> Result<Connection, Fault> {
        let link = {
            let mut links = self.links.lock();
            // A node that moved has no use for its old link.
            links.retain(|(node, address), _| *node != member.node || *address == member.address);
            links.entry((member.node, member.address)).or_default().clone()
        };
        let connect = async {
            let mut held = link.lock().await;
            if let Some(connection) = held.as_ref().filter(|connection| !connection.is_closed()) {
                return Ok(connection.clone());
            }
            let expect = Expect { role: Role::Slave, node: Some(member.node) };
            let connection = self.endpoint.connect(member.address, expect).await?;
            *held = Some(connection.clone());
            Ok(connection)
        };
        tokio::time::timeout(within, connect).await.unwrap_or_else(|_| {
            let detail = format!(
                "slave {} at {} did not answer in {} ms",
                member.node,
                member.address,
                within.as_millis()
            );
            Err(Fault::new(Code::Unreachable, detail))
        })
    }
}
