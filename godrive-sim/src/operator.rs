//! Who looks after the cluster: tells the master what the schedule wants of slaves, until it has answered, and looks at
//! its status.

use crate::shared::Shared;
use godrive_proto::admin::{GetStatus, Intend, IntendRequest, Intention, Status};
use godrive_proto::frame::RequestHeader;
use godrive_proto::net::{Connection, Endpoint, Expect};
use godrive_proto::{Code, DiskId, Fault, NodeId, Operation, Role};
use std::collections::VecDeque;
use std::net::SocketAddr;
use std::time::Duration;

const LOOK_EVERY: Duration = Duration::from_millis(300);
const DEADLINE: Duration = Duration::from_secs(3);

/// What is wanted, and what was seen last.
#[derive(Default)]
pub struct Desk {
    orders: VecDeque<IntendRequest>,
    status: Option<(Duration, Status)>,
}

impl Desk {
    pub fn order(&mut self, node: NodeId, disk: Option<DiskId>, intention: Intention) {
        self.orders.push_back(IntendRequest { node, disk, intention });
    }

    fn done(&mut self) {
        self.orders.pop_front();
        self.status = None;
    }

    /// The master's status, if it was asked for after this time and after every order was followed.
    pub fn status_since(&self, at: Duration) -> Option<&Status> {
        let (asked, status) = self.status.as_ref()?;
        (*asked >= at && self.orders.is_empty()).then_some(status)
    }
}

/// Works as long as the simulation.
pub async fn work(endpoint: Endpoint, master: SocketAddr, shared: Shared) {
    loop {
        let connecting = endpoint.connect(master, Expect { role: Role::Master, node: None });
        let connected = match tokio::time::timeout(DEADLINE, connecting).await {
            Ok(connected) => connected,
            Err(_) => Err(Fault::bare(Code::Timeout)),
        };
        let fault = match connected {
            Ok(connection) => attend(&connection, &shared).await,
            Err(fault) => fault,
        };
        tracing::debug!("the operator tries again: {fault}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

/// Until the connection fails. What is refused may be possible later, when more slaves are there.
async fn attend(connection: &Connection, shared: &Shared) -> Fault {
    loop {
        let asked = turmoil::sim_elapsed().unwrap_or_default();
        let status = match ask::<GetStatus>(connection, &()).await {
            Ok(status) => status,
            Err(fault) => return fault,
        };
        if let Some(order) = shared.with(|notes| notes.desk.orders.front().copied()) {
            // An answer that was lost may have said that it is done.
            let gone = order.intention == Intention::Decommission && status.retired.contains(&order.node);
            match if gone { Ok(()) } else { ask::<Intend>(connection, &order).await.map(drop) } {
                Ok(()) => shared.with(|notes| notes.desk.done()),
                Err(fault) if matches!(fault.code, Code::Invalid | Code::NotFound) => {
                    shared.error("an order", &fault);
                }
                Err(fault) => return fault,
            }
        } else {
            shared.with(|notes| notes.desk.status = Some((asked, status)));
        }
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

async fn ask<O: Operation>(connection: &Connection, request: &O::Request) -> Result<O::Reply, Fault> {
    Ok(connection.call::<O>(RequestHeader::default(), request, &[], DEADLINE).await?.body)
}
