//! Replies: errors as JSON with the right status, and a file's bytes as they are read.

use crate::remote::{Reader, UploadError};
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Response, StatusCode, header};
use godrive_client::FsError;
use hyper::body::{Frame, SizeHint};
use serde_json::{Value, json};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use tokio::sync::{OwnedSemaphorePermit, mpsc};

pub type Reply = Response<Body>;

/// A refusal: a status and a sentence.
#[derive(Debug)]
pub struct Refusal {
    pub status: StatusCode,
    pub detail: String,
}

impl Refusal {
    pub fn new(status: StatusCode, detail: impl Into<String>) -> Self {
        Self { status, detail: detail.into() }
    }

    pub fn reply(self) -> Reply {
        let mut reply =
            document(self.status, &json!({ "error": self.detail, "status": self.status.as_u16() }));
        let headers = reply.headers_mut();
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::SERVICE_UNAVAILABLE => {
                headers.insert(header::RETRY_AFTER, HeaderValue::from_static("1"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET, HEAD, PUT, DELETE"));
            }
            _ => {}
        }
        reply
    }
}

/// The status of an errno.
fn status(errno: i32) -> StatusCode {
    match errno {
        libc::ENOENT => StatusCode::NOT_FOUND,
        libc::EEXIST
        | libc::EISDIR
        | libc::ENOTDIR
        | libc::ENOTEMPTY
        | libc::EBUSY
        | libc::ELOOP
        | libc::ESTALE => StatusCode::CONFLICT,
        libc::EACCES | libc::EPERM | libc::EROFS => StatusCode::FORBIDDEN,
        libc::EINVAL | libc::ENAMETOOLONG => StatusCode::BAD_REQUEST,
        libc::EFBIG => StatusCode::PAYLOAD_TOO_LARGE,
        libc::ENOSPC | libc::EDQUOT => StatusCode::INSUFFICIENT_STORAGE,
        // Too few replicas, or the cluster cannot be reached.
        _ => StatusCode::SERVICE_UNAVAILABLE,
    }
}

impl From<FsError> for Refusal {
    fn from(error: FsError) -> Self {
        Self::new(status(error.errno), crate::remote::said(&error))
    }
}

impl From<UploadError> for Refusal {
    fn from(error: UploadError) -> Self {
        match error {
            UploadError::Cluster(error) => error.into(),
            UploadError::Source(error) if error.is::<Slow>() => {
                Self::new(StatusCode::REQUEST_TIMEOUT, error.to_string())
            }
            UploadError::Source(error) => Self::new(StatusCode::BAD_REQUEST, format!("{error:#}")),
        }
    }
}

/// The client sent nothing for too long.
#[derive(Debug, thiserror::Error)]
#[error("nothing was received for {0} s; nothing is stored")]
pub struct Slow(pub u64);

pub fn document(status: StatusCode, value: &Value) -> Reply {
    let mut reply = Response::new(Body::from(format!("{value}\n")));
    *reply.status_mut() = status;
    reply.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    reply
}

pub fn empty(status: StatusCode) -> Reply {
    let mut reply = Response::new(Body::empty());
    *reply.status_mut() = status;
    reply
}

/// A file's bytes. A task reads ahead by one piece; an error ends the connection before the announced length, so
/// that the client notices.
pub struct FileBody {
    pieces: mpsc::Receiver<Result<Bytes, FsError>>,
    remaining: u64,
}

impl FileBody {
    /// Starts to read; the permit is given back when the last byte was taken or the client is gone.
    pub fn start(mut reader: Reader, bytes: u64, permit: OwnedSemaphorePermit) -> Self {
        let (sender, pieces) = mpsc::channel(1);
        tokio::spawn(async move {
            let _permit = permit;
            loop {
                let piece = match reader.next().await {
                    Ok(Some(piece)) => Ok(piece),
                    Ok(None) => break,
                    Err(error) => {
                        tracing::warn!(inode = %reader.attr.ino, %error, "a download ended early");
                        Err(error)
                    }
                };
                let failed = piece.is_err();
                // A receiver that is gone is a client that is gone.
                if sender.send(piece).await.is_err() || failed {
                    break;
                }
            }
        });
        Self { pieces, remaining: bytes }
    }
}

impl HttpBody for FileBody {
    type Data = Bytes;
    type Error = FsError;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, FsError>>> {
        let piece = ready!(self.pieces.poll_recv(context));
        if let Some(Ok(bytes)) = &piece {
            self.remaining = self.remaining.saturating_sub(bytes.len() as u64);
        }
        Poll::Ready(piece.map(|piece| piece.map(Frame::data)))
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.remaining)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errnos_have_their_status() {
        for (errno, expected) in [
            (libc::ENOENT, 404),
            (libc::ENOTEMPTY, 409),
            (libc::EISDIR, 409),
            (libc::EACCES, 403),
            (libc::ENAMETOOLONG, 400),
            (libc::ENOSPC, 507),
            (libc::EIO, 503),
        ] {
            assert_eq!(Refusal::from(FsError::bare(errno)).status.as_u16(), expected);
        }
        let bare = FsError::new(libc::ENOTEMPTY, "NotEmpty: ");
        assert_eq!(Refusal::from(bare).detail, "directory not empty");
    }

    #[test]
    fn refusals_say_what_helps() {
        let reply = Refusal::new(StatusCode::UNAUTHORIZED, "no").reply();
        assert_eq!(reply.headers()[header::WWW_AUTHENTICATE], "Bearer");
        assert_eq!(
            Refusal::new(StatusCode::SERVICE_UNAVAILABLE, "").reply().headers()[header::RETRY_AFTER],
            "1"
        );
    }
}
