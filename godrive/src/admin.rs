//! Questions to the master with the administrator's certificate.

use crate::cluster::layout::Home;
use anyhow::{Context, Result};
use godrive_proto::admin::{GetStatus, MakeToken, MakeTokenRequest, Status};
use godrive_proto::frame::RequestHeader;
use godrive_proto::net::identity::Identity;
use godrive_proto::net::machine::MachineSockets;
use godrive_proto::net::{Connection, Endpoint, Expect, Options};
use godrive_proto::{Operation, Role};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// One connection to the master.
pub struct Admin {
    endpoint: Endpoint,
    connection: Connection,
    deadline: Duration,
}

impl Admin {
    /// Connects within the deadline, which then holds for each question.
    pub async fn connect(home: &Home, deadline: Duration) -> Result<Self> {
        let master = home.cluster()?.master()?;
        let identity = load_identity(&home.admin())?;
        let endpoint = Endpoint::new(&MachineSockets, local_for(master), &identity, &Options::default())?;
        let connecting = endpoint.connect(master, Expect { role: Role::Master, node: None });
        let connection = tokio::time::timeout(deadline, connecting)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", deadline.as_secs_f32()))
            .and_then(|result| result.map_err(anyhow::Error::from))
            .with_context(|| format!("the master {master} cannot be reached"))?;
        Ok(Self { endpoint, connection, deadline })
    }

    async fn ask<O: Operation>(&self, request: &O::Request) -> Result<O::Reply> {
        let reply = self.connection.call::<O>(RequestHeader::default(), request, &[], self.deadline).await;
        Ok(reply.with_context(|| format!("asking the master: {}", O::NAME))?.body)
    }

    pub async fn status(&self) -> Result<Status> {
        self.ask::<GetStatus>(&()).await
    }

    pub async fn token(&self, request: MakeTokenRequest) -> Result<String> {
        self.ask::<MakeToken>(&request).await
    }

    pub async fn close(self) {
        self.connection.close("done");
        self.endpoint.close().await;
    }
}

/// Any port of this machine from which `peer` is reached.
pub fn local_for(peer: SocketAddr) -> SocketAddr {
    let ip: IpAddr = match peer.ip() {
        IpAddr::V4(ip) if ip.is_loopback() => Ipv4Addr::LOCALHOST.into(),
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    SocketAddr::new(ip, 0)
}

pub fn load_identity(file: &Path) -> Result<Identity> {
    let text =
        std::fs::read_to_string(file).with_context(|| format!("reading the identity {}", file.display()))?;
    Identity::from_pem(&text).with_context(|| format!("the identity {}", file.display()))
}
