//! One function per method.

use super::Gateway;
use super::answer::{FileBody, Refusal, Reply, Slow, document, empty};
use super::request::{Conditions, Listing, Wanted, etag, listing, matches, modified, range};
use crate::commands::files::attr_json;
use crate::remote::{RemotePath, Source, Upload};
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{self, HeaderMap, HeaderName};
use axum::http::request::Parts;
use axum::http::{HeaderValue, Method, StatusCode};
use godrive_proto::meta::{Attr, Kind};
use http_body_util::BodyExt;
use serde_json::json;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::OwnedSemaphorePermit;

/// Every request comes here.
pub async fn answer(State(gateway): State<Arc<Gateway>>, request: Request) -> Reply {
    let method = request.method().clone();
    // The path as sent, with control characters escaped by the debug format: it goes to the log.
    let path = request.uri().path().to_owned();
    let reply = match checked(&gateway, request).await {
        Ok(reply) => reply,
        Err(refusal) => {
            tracing::info!(%method, ?path, status = refusal.status.as_u16(), why = %refusal.detail, "refused");
            refusal.reply()
        }
    };
    tracing::debug!(%method, ?path, status = reply.status().as_u16(), "answered");
    reply
}

async fn checked(gateway: &Arc<Gateway>, request: Request) -> Result<Reply, Refusal> {
    let (parts, body) = request.into_parts();
    let authorization = parts.headers.get(header::AUTHORIZATION).map(HeaderValue::as_bytes);
    if !gateway.token.opens(authorization) {
        return Err(Refusal::new(
            StatusCode::UNAUTHORIZED,
            "the header `Authorization: Bearer TOKEN` is needed",
        ));
    }
    let permit = gateway.requests.clone().try_acquire_owned().map_err(|_| {
        Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "too many requests at one time; try again")
    })?;
    let bad = |detail: String| Refusal::new(StatusCode::BAD_REQUEST, detail);
    let path = RemotePath::encoded(parts.uri.path()).map_err(|error| bad(error.to_string()))?;
    let listing = listing(parts.uri.query()).map_err(bad)?;
    match parts.method {
        Method::GET | Method::HEAD => match listing {
            Some(listing) => list(gateway, &path, listing).await,
            None => fetch(gateway, &path, &parts, permit).await,
        },
        Method::PUT => store(gateway.clone(), path, &parts, body, permit).await,
        Method::DELETE => {
            gateway.remote.remove(&path).await?;
            Ok(empty(StatusCode::NO_CONTENT))
        }
        _ => Err(Refusal::new(StatusCode::METHOD_NOT_ALLOWED, "GET, HEAD, PUT and DELETE are possible")),
    }
}

fn text(headers: &HeaderMap, name: HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

async fn fetch(
    gateway: &Gateway,
    path: &RemotePath,
    parts: &Parts,
    permit: OwnedSemaphorePermit,
) -> Result<Reply, Refusal> {
    let headers = &parts.headers;
    let mut reader = gateway.remote.open(path).await.map_err(|error| match error.errno {
        libc::EISDIR => Refusal::new(StatusCode::CONFLICT, format!("{path} is a directory: add ?list")),
        _ => error.into(),
    })?;
    let attr = reader.attr.clone();
    let conditions = Conditions {
        if_none_match: text(headers, header::IF_NONE_MATCH),
        if_modified_since: text(headers, header::IF_MODIFIED_SINCE),
        if_range: text(headers, header::IF_RANGE),
    };
    if conditions.unchanged(&attr) {
        return Ok(described(empty(StatusCode::NOT_MODIFIED), &attr));
    }
    // A range has a meaning for GET only.
    let header =
        text(headers, header::RANGE).filter(|_| parts.method == Method::GET && conditions.range_holds(&attr));
    let (status, part) = match range(header, attr.size) {
        Wanted::All => (StatusCode::OK, 0..attr.size),
        Wanted::Part(part) => (StatusCode::PARTIAL_CONTENT, part),
        Wanted::Unsatisfiable => {
            let detail = format!("{path} has {} bytes, the range lies behind them", attr.size);
            let mut reply = Refusal::new(StatusCode::RANGE_NOT_SATISFIABLE, detail).reply();
            set(&mut reply, header::CONTENT_RANGE, format!("bytes */{}", attr.size));
            return Ok(reply);
        }
    };
    let length = part.end - part.start;
    let mut reply = described(empty(status), &attr);
    set(&mut reply, header::ACCEPT_RANGES, "bytes".into());
    set(&mut reply, header::CONTENT_TYPE, "application/octet-stream".into());
    set(&mut reply, header::CONTENT_LENGTH, length.to_string());
    if status == StatusCode::PARTIAL_CONTENT {
        let value = format!("bytes {}-{}/{}", part.start, part.end - 1, attr.size);
        set(&mut reply, header::CONTENT_RANGE, value);
    }
    if parts.method == Method::GET {
        reader.limit(part);
        *reply.body_mut() = Body::new(FileBody::start(reader, length, permit));
    }
    Ok(reply)
}

/// Says of a reply which state of which file it is about.
fn described(mut reply: Reply, attr: &Attr) -> Reply {
    set(&mut reply, header::ETAG, etag(attr));
    set(&mut reply, header::LAST_MODIFIED, httpdate::fmt_http_date(modified(attr)));
    reply
}

fn set(reply: &mut Reply, name: HeaderName, value: String) {
    // All values set here are numbers, dates and words of our own.
    if let Ok(value) = HeaderValue::from_str(&value) {
        reply.headers_mut().insert(name, value);
    }
}

async fn list(gateway: &Gateway, path: &RemotePath, listing: Listing) -> Result<Reply, Refusal> {
    let attr = gateway.remote.resolve(path, true).await?;
    if attr.kind != Kind::Directory {
        return Err(Refusal::new(StatusCode::CONFLICT, format!("{path} is not a directory")));
    }
    let page = gateway.remote.list(attr.ino, listing.after, listing.limit).await?;
    // A full page may be the last; the next one is empty then.
    let next = page.last().filter(|_| page.len() == listing.limit).map(|entry| entry.offset);
    let mut entries = Vec::with_capacity(page.len());
    for entry in page {
        let attr = match entry.entry {
            Some(found) => found.attr,
            None => match gateway.remote.attr(entry.ino).await {
                Ok(attr) => attr,
                Err(error) if matches!(error.errno, libc::ENOENT | libc::ESTALE) => continue,
                Err(error) => return Err(error.into()),
            },
        };
        let mut value = attr_json(&entry.name, &attr);
        // The exact name, also where it is not text.
        let href = path
            .join(&entry.name)
            .map_err(|error| Refusal::new(StatusCode::BAD_REQUEST, error.to_string()))?;
        value["href"] = json!(href.to_encoded());
        entries.push(value);
    }
    Ok(document(StatusCode::OK, &json!({ "path": path.to_string(), "entries": entries, "next": next })))
}

/// The bytes of a request, with the client's slowness bounded.
struct Incoming {
    body: Body,
    patience: Duration,
}

impl Source for Incoming {
    async fn next(&mut self) -> anyhow::Result<Option<Bytes>> {
        loop {
            let frame = tokio::time::timeout(self.patience, self.body.frame())
                .await
                .map_err(|_| Slow(self.patience.as_secs()))?;
            match frame {
                None => return Ok(None),
                // Trailers carry no bytes of the file.
                Some(frame) => match frame?.into_data() {
                    Ok(data) => return Ok(Some(data)),
                    Err(_) => continue,
                },
            }
        }
    }
}

async fn store(
    gateway: Arc<Gateway>,
    path: RemotePath,
    parts: &Parts,
    body: Body,
    permit: OwnedSemaphorePermit,
) -> Result<Reply, Refusal> {
    if path.names().is_empty() || parts.uri.path().ends_with('/') {
        return Err(Refusal::new(
            StatusCode::BAD_REQUEST,
            "a file's name is needed; directories are made as needed",
        ));
    }
    let headers = &parts.headers;
    if headers.contains_key(header::CONTENT_RANGE) {
        return Err(Refusal::new(StatusCode::BAD_REQUEST, "PUT stores a whole file; parts cannot be put"));
    }
    let only_new = text(headers, header::IF_NONE_MATCH).is_some_and(|tags| matches(tags, ""));
    let mut source = Incoming { body, patience: gateway.patience };
    // A task of its own: if the client goes away, the connection drops its requests, and the upload must still
    // take its temporary name away.
    let upload = tokio::spawn(async move {
        let _permit = permit;
        let upload = Upload { path: &path, mode: 0o644, make_parents: true, only_new };
        let stored = gateway.remote.upload(upload, &mut source).await;
        if let Err(error) = &stored {
            tracing::warn!(%path, %error, "an upload failed; nothing is stored");
        }
        stored.map(|(attr, replaced)| (attr, replaced, path))
    });
    let stored = upload.await.map_err(|panic| {
        tracing::error!(%panic, "a defect in an upload; please report it");
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, "a defect; the gateway's log has it")
    })?;
    let (attr, replaced, path) = match stored {
        Err(crate::remote::UploadError::Cluster(error)) if error.errno == libc::EEXIST && only_new => {
            return Err(Refusal::new(StatusCode::PRECONDITION_FAILED, error.context));
        }
        other => other?,
    };
    let status = if replaced { StatusCode::OK } else { StatusCode::CREATED };
    Ok(described(document(status, &json!({ "path": path.to_string(), "size": attr.size })), &attr))
}
