//! Connections: accepted up to a limit, encrypted, served with bounded headers and bounded patience, ended gently.

use super::patience::Patient;
use super::{Gateway, handlers};
use axum::Router;
use hyper::server::conn::http1;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use rustls::ServerConfig;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio::task::JoinSet;
use tokio_rustls::TlsAcceptor;

const HANDSHAKE: Duration = Duration::from_secs(10);
const HEADERS: Duration = Duration::from_secs(15);
/// About: the last read may exceed it by as much again.
const HEADER_BYTES: usize = 32 << 10;
const MOST_HEADERS: usize = 64;
/// How long requests under way may take at the end.
const LAST_REQUESTS: Duration = Duration::from_secs(60);

/// Serves until `stopped` ends, then lets requests under way finish.
pub async fn serve(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    gateway: Arc<Gateway>,
    requests: usize,
    stopped: impl Future<Output = ()>,
) {
    // Connections that only wait for their next request are cheap, so there may be more of them.
    let connections = Arc::new(Semaphore::new(requests.saturating_mul(4).max(64)));
    let (stop, stopping) = watch::channel(false);
    let mut open = JoinSet::new();
    let acceptor = TlsAcceptor::from(tls);
    tokio::pin!(stopped);
    loop {
        let permit = tokio::select! {
            () = &mut stopped => break,
            permit = connections.clone().acquire_owned() => permit,
        };
        let accepted = tokio::select! {
            () = &mut stopped => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Out of descriptors, most likely; the next connections must not be missed by giving up.
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
                continue;
            }
        };
        let serving = connection(stream, acceptor.clone(), gateway.clone(), stopping.clone());
        open.spawn(async move {
            serving.await;
            drop(permit);
        });
        while open.try_join_next().is_some() {}
    }
    drop(listener);
    // Fails only if no connection is open.
    let _ = stop.send(true);
    let all = async {
        while open.join_next().await.is_some() {}
        // Uploads whose client went away still take their temporary names away.
        let permits = u32::try_from(requests).unwrap_or(u32::MAX);
        let _ = gateway.requests.acquire_many(permits).await;
    };
    if tokio::time::timeout(LAST_REQUESTS, all).await.is_err() {
        tracing::warn!(seconds = LAST_REQUESTS.as_secs(), "requests that did not end are cut off");
    }
}

async fn connection(
    stream: TcpStream,
    acceptor: TlsAcceptor,
    gateway: Arc<Gateway>,
    mut stopping: watch::Receiver<bool>,
) {
    if let Err(error) = stream.set_nodelay(true) {
        tracing::debug!(%error, "TCP_NODELAY could not be set");
    }
    let stream = Patient::new(stream, gateway.patience);
    let stream = match tokio::time::timeout(HANDSHAKE, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "a TLS handshake failed"),
        Err(_) => return tracing::debug!("a TLS handshake took too long"),
    };
    let router = Router::new().fallback(handlers::answer).with_state(gateway);
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADERS)
        .max_buf_size(HEADER_BYTES)
        .max_headers(MOST_HEADERS)
        .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router));
    tokio::pin!(connection);
    let result = tokio::select! {
        result = &mut connection => result,
        () = async { drop(stopping.wait_for(|stop| *stop).await) } => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "a connection ended with an error");
    }
}
