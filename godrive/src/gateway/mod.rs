//! The cluster's files over HTTPS: `PUT`, `GET` with ranges, `HEAD`, `DELETE` and listings, for programs that have no
//! mount and no client library. One bearer token opens it; the certificate is issued by the cluster's own authority.
//!
//! A request's path through this folder: [`server`] (TCP, TLS, limits, the end) → [`auth`] → [`handlers`], which use
//! [`request`] to understand headers and [`answer`] to make replies.

mod answer;
mod auth;
mod handlers;
mod patience;
mod request;
mod server;
mod tls;

use crate::cli;
use crate::cluster::create::{PUBLIC, write};
use crate::cluster::layout::Home;
use crate::remote::Remote;
use anyhow::{Context, Result};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;

/// What every request needs.
pub struct Gateway {
    remote: Remote,
    token: auth::Token,
    /// One permit per request, held until its last byte was sent or its upload has ended.
    requests: Arc<Semaphore>,
    /// A client that sends or takes nothing for this long is cut off.
    patience: Duration,
}

pub async fn run(line: cli::Gateway) -> Result<()> {
    log();
    let home = Home::new(line.access.home.path()?);
    home.cluster()?;
    let folder = home.gateway();
    std::fs::create_dir_all(&folder).with_context(|| format!("creating {}", folder.display()))?;
    let token_file = line.token_file.clone().unwrap_or_else(|| folder.join("token"));
    let token = auth::Token::load_or_make(&token_file)?;
    let certificate = tls::issue(&home, line.listen.ip(), &line.host)?;
    let ca_file = folder.join("ca.pem");
    write(&ca_file, &certificate.ca_pem, PUBLIC)?;
    let listener = tokio::net::TcpListener::bind(line.listen)
        .await
        .with_context(|| format!("listening on {}", line.listen))?;
    let address = listener.local_addr()?;
    let remote = Remote::connect(&home, "gateway", line.access.deadline).await?;
    let requests = line.max_requests as usize;
    let gateway = Arc::new(Gateway {
        remote: remote.clone(),
        token,
        requests: Arc::new(Semaphore::new(requests)),
        patience: Duration::from_secs(30),
    });
    say!("listening on https://{address}")?;
    say!("token: {}   certificate authority: {}", token_file.display(), ca_file.display())?;
    server::serve(listener, certificate.config, gateway, requests, stopped()?).await;
    remote.stop().await
}

/// Ends with SIGTERM or SIGINT.
fn stopped() -> Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    Ok(async move {
        tokio::select! { _ = terminate.recv() => {} _ = interrupt.recv() => {} }
        tracing::info!("stopping: requests under way may end");
    })
}

fn log() {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env().unwrap_or_else(|_| "info".into());
    let colours = std::io::IsTerminal::is_terminal(&std::io::stderr());
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).with_ansi(colours).init();
}
