//! How a driver comes to its session: a new one, or that of a daemon which was killed.

use super::config::Config;
use super::master::{Gate, Session, send};
use super::sequence::Window;
use super::stats::Stats;
use super::timing::Timing;
use crate::ledger::Inheritance;
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::lease::{OpenSession, OpenSessionRequest, TakeOver, TakeOverRequest};
use godrive_proto::net::{Connection, Endpoint, Expect, Message};
use godrive_proto::version::FEATURE_LEVEL;
use godrive_proto::{Code, Fault, Ino, Role};
use std::sync::Arc;
use std::time::Duration;
use tokio::time::timeout;

/// What became of a dead daemon's session.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Succession {
    /// There was none.
    None,
    /// It goes on, and keeps these unlinked inodes.
    Taken(Vec<Ino>),
    /// The master had revoked it, so there is a new one.
    Lost,
}

/// Connects to the configured master.
pub async fn connect(endpoint: &Endpoint, config: &Config) -> Result<Connection, Fault> {
    let expect = Expect { role: Role::Master, node: None };
    match timeout(config.timeouts.connect, endpoint.connect(config.master, expect)).await {
        Ok(outcome) => outcome,
        Err(_) => {
            Err(Fault::new(Code::Unreachable, format!("the master at {} does not answer", config.master)))
        }
    }
}

/// How a driver begins.
pub(super) struct Begun {
    pub connection: Connection,
    pub session: Arc<Session>,
    pub header: ReplyHeader,
    pub gate: Gate,
    pub succession: Succession,
}

/// Connects and opens a session, or goes on with that of a dead daemon.
pub(super) async fn begin(
    endpoint: &Endpoint,
    config: &Config,
    timing: &Timing,
    stats: &Stats,
    inherited: Option<&Inheritance>,
) -> Result<Begun, Fault> {
    let connection = connect(endpoint, config).await?;
    let mut succession = Succession::None;
    if let Some(inherited) = inherited {
        match take_over(&connection, config, timing, stats, inherited).await {
            Ok((session, header, orphans)) => {
                let succession = Succession::Taken(orphans);
                return Ok(Begun { connection, session, header, gate: Gate::Unconfirmed, succession });
            }
            Err(fault) if fault.code == Code::SessionLost => succession = Succession::Lost,
            Err(fault) => return Err(fault),
        }
    }
    let (session, header) =
        open_session(&connection, RequestHeader::default(), config, timing, stats, Timing::renewed).await?;
    Ok(Begun { connection, session, header, gate: Gate::Open, succession })
}

/// Goes on with the session of a daemon that is dead.
async fn take_over(
    connection: &Connection,
    config: &Config,
    timing: &Timing,
    stats: &Stats,
    inherited: &Inheritance,
) -> Result<(Arc<Session>, ReplyHeader, Vec<Ino>), Fault> {
    // What the dead daemon said to be answered is below this, so that the master can tell a repetition.
    let from = inherited.from + 1;
    let header = RequestHeader {
        feature_level: FEATURE_LEVEL,
        session: inherited.session,
        ..RequestHeader::default()
    };
    let sent = timing.now();
    let message = Message::new::<TakeOver>(&TakeOverRequest { from })?;
    let reply = send(stats, connection, header, &message, config.timeouts.renewal).await?;
    let reply = reply.decode::<TakeOver>()?;
    let taken = reply.body;
    let session = Session::new(inherited.session, taken.timing, taken.parameters);
    *session.window.lock() = Window::starting_at(from);
    timing.set_wall(taken.now, sent);
    tracing::info!(session = %session.id, master = %config.master, "session taken over");
    Ok((Arc::new(session), reply.header, taken.orphans))
}

/// Asks for a new session. `renewed` says what its lease time means to the caller.
pub async fn open_session(
    connection: &Connection,
    header: RequestHeader,
    config: &Config,
    timing: &Timing,
    stats: &Stats,
    renewed: impl FnOnce(&Timing, godrive_proto::time::Instant, Duration),
) -> Result<(Arc<Session>, ReplyHeader), Fault> {
    let header = RequestHeader { feature_level: FEATURE_LEVEL, ..header };
    let request = OpenSessionRequest { label: config.label.clone() };
    let sent = timing.now();
    let message = Message::new::<OpenSession>(&request)?;
    let reply = send(stats, connection, header, &message, config.timeouts.renewal).await?;
    let reply = reply.decode::<OpenSession>()?;
    let opened = reply.body;
    let session = Arc::new(Session::new(opened.session, opened.timing, opened.parameters));
    timing.set_wall(opened.now, sent);
    renewed(timing, sent, session.holder_stops_after());
    tracing::info!(session = %session.id, master = %config.master, "session opened");
    Ok((session, reply.header))
}
