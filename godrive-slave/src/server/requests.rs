//! From connections to handlers: a task per connection, a task per request, and the answer to each.

use super::shared::Shared;
use super::{commands, copy, delta, range, reading};
use bytes::Bytes;
use godrive_proto::cluster::{Copy, Delete, Install, Quarantine, Seal};
use godrive_proto::data::{CopyRange, Delta, Fetch, GetSums, Read, Sync};
use godrive_proto::frame::{ReplyHeader, RequestHeader};
use godrive_proto::net::{Connection, Endpoint, Incoming};
use godrive_proto::{Code, Fault, Operation, Role};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

/// How long a request without a deadline may take.
const DEFAULT_DEADLINE: Duration = Duration::from_secs(30);

/// Clients and other slaves.
pub async fn accept(shared: Arc<Shared>, endpoint: Endpoint) {
    while let Some(connection) = endpoint.accept().await {
        tracing::debug!(peer = ?connection.peer(), "connected");
        tokio::spawn(serve(shared.clone(), connection));
    }
}

/// Answers one connection's requests until it ends.
pub async fn serve(shared: Arc<Shared>, connection: Connection) {
    while let Some(incoming) = connection.accept().await {
        tokio::spawn(handle(shared.clone(), incoming));
    }
}

pub fn deadline(header: &RequestHeader) -> Duration {
    match header.deadline_ms {
        0 => DEFAULT_DEADLINE,
        ms => Duration::from_millis(ms.into()).min(DEFAULT_DEADLINE * 10),
    }
}

async fn handle(shared: Arc<Shared>, incoming: Incoming) {
    use godrive_proto::admin::Ping;
    let result = match incoming.header.code {
        Delta::CODE => delta::serve(shared.clone(), incoming).await,
        Sync::CODE => {
            answer::<Sync, _>(incoming, |request, header| delta::sync(&shared, request, header)).await
        }
        CopyRange::CODE => {
            answer::<CopyRange, _>(incoming, |request, header| range::copy_range(shared, request, header))
                .await
        }
        Read::CODE => answer_with::<Read, _>(incoming, |request, _| reading::read(&shared, request)).await,
        GetSums::CODE => answer::<GetSums, _>(incoming, |request, _| reading::sums(&shared, request)).await,
        Fetch::CODE => answer_with::<Fetch, _>(incoming, |request, _| reading::fetch(&shared, request)).await,
        Ping::CODE => answer::<Ping, _>(incoming, |(), _| async { Ok(()) }).await,
        Seal::CODE => {
            command::<Seal, _>(&shared, incoming, |request, _| commands::seal(&shared, request)).await
        }
        Install::CODE => {
            command::<Install, _>(&shared, incoming, |request, _| commands::install(&shared, request)).await
        }
        Copy::CODE => {
            command::<Copy, _>(&shared, incoming, |request, header| copy::copy(&shared, request, header))
                .await
        }
        Delete::CODE => {
            command::<Delete, _>(&shared, incoming, |request, _| commands::delete(&shared, request)).await
        }
        Quarantine::CODE => {
            command::<Quarantine, _>(&shared, incoming, |request, _| commands::quarantine(&shared, request))
                .await
        }
        code => {
            let detail = format!("{code:#06x} is nothing that a slave answers");
            incoming.fail(ReplyHeader::default(), Fault::new(Code::Forbidden, detail)).await
        }
    };
    if let Err(fault) = result {
        tracing::debug!(%fault, "an answer found nobody");
    }
}

/// A command of the master: refused from anybody else, and for a term that is over.
async fn command<O: Operation, F>(
    shared: &Shared,
    incoming: Incoming,
    act: impl FnOnce(O::Request, RequestHeader) -> F,
) -> Result<(), Fault>
where
    F: Future<Output = Result<O::Reply, Fault>>,
{
    if incoming.peer().role == Role::Master
        && let Err(fault) = shared.check_term(incoming.header.term)
    {
        return incoming.fail(ReplyHeader::default(), fault).await;
    }
    answer::<O, F>(incoming, act).await
}

async fn answer<O: Operation, F>(
    incoming: Incoming,
    act: impl FnOnce(O::Request, RequestHeader) -> F,
) -> Result<(), Fault>
where
    F: Future<Output = Result<O::Reply, Fault>>,
{
    answer_with::<O, _>(incoming, |request, header| {
        let reply = act(request, header);
        async { Ok((reply.await?, Vec::new())) }
    })
    .await
}

async fn answer_with<O: Operation, F>(
    incoming: Incoming,
    act: impl FnOnce(O::Request, RequestHeader) -> F,
) -> Result<(), Fault>
where
    F: Future<Output = Result<(O::Reply, Vec<Bytes>), Fault>>,
{
    let result = match incoming.decode::<O>() {
        Ok(request) => {
            let header = incoming.header.clone();
            let limit = deadline(&header);
            tokio::time::timeout(limit, act(request, header)).await.unwrap_or_else(|_| {
                let detail = format!("{} was not done within {} ms", O::NAME, limit.as_millis());
                Err(Fault::new(Code::Timeout, detail))
            })
        }
        Err(fault) => Err(fault),
    };
    match result {
        Ok((reply, payload)) => incoming.reply::<O>(ReplyHeader::default(), &reply, &payload).await,
        Err(fault) => {
            tracing::debug!(operation = O::NAME, peer = ?incoming.peer(), %fault, "refused");
            incoming.fail(ReplyHeader::default(), fault).await
        }
    }
}
