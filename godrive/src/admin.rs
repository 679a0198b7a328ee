//! Questions to the master with the administrator's certificate.

use crate::cluster::layout::{Home, Kind, NodeName};
use crate::cluster::process;
use anyhow::{Context, Result};
use godrive_proto::admin::{
    DamagedPage, EmptyTrash, GetStatus, Intend, IntendRequest, Intended, ListDamaged, ListDamagedRequest,
    ListTrash, ListTrashRequest, MakeToken, MakeTokenRequest, Status, TrashPage,
};
use godrive_proto::frame::RequestHeader;
use godrive_proto::net::identity::Identity;
use godrive_proto::net::machine;
use godrive_proto::net::{Connection, Endpoint, Expect, Options};
use godrive_proto::{Ino, Operation, Role};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

/// How long a master is waited for that seems not to run.
const STOPPED: Duration = Duration::from_secs(1);

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
        // Nothing answers at the port of a master that does not run, so there is little to wait for. It is tried all
        // the same: its process may be one that is not seen from here.
        let stopped = is_stopped(home)?;
        let deadline = if stopped { deadline.min(STOPPED) } else { deadline };
        let identity = load_identity(&home.admin())?;
        let endpoint = Endpoint::new(&machine::sockets(), local_for(master), &identity, &Options::default())?;
        let connecting = endpoint.connect(master, Expect { role: Role::Master, node: None });
        let connection = tokio::time::timeout(deadline, connecting)
            .await
            .map_err(|_| anyhow::anyhow!("no answer within {} s", deadline.as_secs_f32()))
            .and_then(|result| result.map_err(anyhow::Error::from))
            .with_context(|| match stopped {
                true => {
                    format!("the master is not running; start it: godrive up --dir {}", home.dir.display())
                }
                false => format!("the master {master} cannot be reached"),
            })?;
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

    pub async fn trash(&self, request: ListTrashRequest) -> Result<TrashPage> {
        self.ask::<ListTrash>(&request).await
    }

    /// How many there were.
    pub async fn empty_trash(&self, inodes: Vec<Ino>) -> Result<u32> {
        self.ask::<EmptyTrash>(&inodes).await
    }

    pub async fn damaged(&self, request: ListDamagedRequest) -> Result<DamagedPage> {
        self.ask::<ListDamaged>(&request).await
    }

    pub async fn intend(&self, request: IntendRequest) -> Result<Intended> {
        self.ask::<Intend>(&request).await
    }

    pub async fn close(self) {
        self.connection.close("done");
        self.endpoint.close().await;
    }
}

/// The master is one of this folder, and its process is not there.
fn is_stopped(home: &Home) -> Result<bool> {
    let master = NodeName { kind: Kind::Master, number: 1 };
    Ok(home.config(master).exists() && process::running(home, master)?.is_none())
}

/// Fails soon where a session would wait for a master that is not running.
pub async fn refuse_stopped(home: &Home) -> Result<()> {
    if is_stopped(home)? {
        Admin::connect(home, STOPPED).await?.close().await;
    }
    Ok(())
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
