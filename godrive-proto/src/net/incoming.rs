//! A request of the peer, its payload as it arrives, and the duty to answer it.

use super::connection::{Connection, Peer, payload_length};
use super::stream::{Reader, StreamError, Writer, encode, ends_early, now};
use crate::frame::{self, FrameError, ReplyHeader, RequestHeader};
use crate::{Code, Fault, Operation};
use bytes::Bytes;
use std::pin::Pin;
use std::time::Duration;
use tokio::time::{Instant, timeout_at};

/// Nothing waits longer for a peer that named no deadline, or a longer one.
const LONGEST: Duration = Duration::from_secs(60);
/// An answer that was ready only after the deadline is still offered this long.
const GRACE: Duration = Duration::from_secs(1);
const MAX_DETAIL_BYTES: usize = 4096;

/// A request of the peer: header checked and bounded, body not yet decoded, payload not yet read.
/// Dropped without an answer, it answers `Internal`.
pub struct Incoming {
    pub header: RequestHeader,
    pub payload: Payload,
    connection: Connection,
    body: Bytes,
    answer: Answer,
}

impl Incoming {
    pub(super) fn new(
        connection: Connection,
        header: RequestHeader,
        body: Bytes,
        writer: Writer,
        reader: Reader,
    ) -> Self {
        let asked = Duration::from_millis(u64::from(header.deadline_ms));
        let expires = Instant::now() + if asked.is_zero() { LONGEST } else { asked.min(LONGEST) };
        let remaining = header.payload_bytes;
        let payload = Payload { connection: connection.clone(), reader, remaining, ended: false, expires };
        let answer = Answer { code: header.code, writer: Some(writer) };
        Self { header, payload, connection, body, answer }
    }

    pub fn peer(&self) -> &Peer {
        self.connection.peer()
    }

    /// Decodes the body after checking that the peer's role may ask this. On failure answer with the fault.
    pub fn decode<O: Operation>(&self) -> Result<O::Request, Fault> {
        let peer = self.peer();
        if self.header.code != O::CODE {
            return Err(Fault::new(Code::Internal, format!("{:#06x} is not {}", self.header.code, O::NAME)));
        }
        if !O::ROLES.contains(&peer.role) {
            return Err(Fault::new(Code::Forbidden, format!("a {} may not ask for {}", peer.role, O::NAME)));
        }
        frame::decode_body(&self.body)
            .map_err(|error| Fault::new(Code::Malformed, format!("{} request of {peer}: {error}", O::NAME)))
    }

    /// Sends the reply. `payload_bytes` is filled in. An error means that the peer is gone.
    pub async fn reply<O: Operation>(
        self,
        header: ReplyHeader,
        reply: &O::Reply,
        payload: &[Bytes],
    ) -> Result<(), Fault> {
        let body = frame::encode_body(reply);
        self.answer(O::NAME, header, body, payload).await
    }

    /// The same for all operations, so that it is compiled once and not for each of them.
    fn answer<'a>(
        self,
        name: &'static str,
        mut header: ReplyHeader,
        body: Result<Vec<u8>, FrameError>,
        payload: &'a [Bytes],
    ) -> Pin<Box<dyn Future<Output = Result<(), Fault>> + Send + 'a>> {
        Box::pin(async move {
            let filled = payload_length(payload.iter().map(Bytes::len).sum()).and_then(|length| {
                header.payload_bytes = length;
                body.and_then(|body| encode(&header, &body))
                    .map_err(|error| Fault::new(Code::Internal, error.to_string()))
            });
            match filled {
                Ok(frame) => self.send(frame, payload).await,
                Err(fault) => {
                    tracing::error!(operation = name, %fault, "a reply does not fit its frame");
                    header.payload_bytes = 0;
                    self.fail(header, Fault::new(Code::Internal, format!("{name}: {}", fault.detail))).await
                }
            }
        })
    }

    pub async fn fail(self, mut header: ReplyHeader, mut fault: Fault) -> Result<(), Fault> {
        let end = (0..=MAX_DETAIL_BYTES.min(fault.detail.len()))
            .rev()
            .find(|at| fault.detail.is_char_boundary(*at));
        fault.detail.truncate(end.unwrap_or(0));
        header.fault = Some(fault);
        header.payload_bytes = 0;
        let frame = encode(&header, &[]).map_err(|error| Fault::new(Code::Internal, error.to_string()))?;
        self.send(frame, &[]).await
    }

    async fn send(mut self, frame: Bytes, payload: &[Bytes]) -> Result<(), Fault> {
        let peer = *self.peer();
        let gone = |why: &str| Fault::new(Code::Unreachable, format!("{peer} did not take the reply: {why}"));
        let Some(mut writer) = self.answer.writer.take() else {
            return Err(Fault::new(Code::Internal, "answered twice"));
        };
        let until = self.payload.expires.max(Instant::now() + GRACE);
        match timeout_at(until, writer.message(frame, payload)).await {
            Ok(Ok(true)) => Ok(()),
            Ok(Ok(false)) => Err(gone("it has given the request up")),
            Ok(Err(error)) => Err(gone(&error.to_string())),
            Err(_) => Err(gone("it reads too slowly")),
        }
    }
}

/// Sees to it that a request does not go without an answer.
struct Answer {
    code: u16,
    writer: Option<Writer>,
}

impl Drop for Answer {
    fn drop(&mut self) {
        let Some(mut writer) = self.writer.take() else { return };
        tracing::error!(code = format_args!("{:#06x}", self.code), "a request was dropped without an answer");
        let fault = Some(Fault::new(Code::Internal, "the request was dropped; the peer's log says more"));
        if let Ok(frame) = encode(&ReplyHeader { fault, ..ReplyHeader::default() }, &[]) {
            // A frame this small fits what the stream may send without waiting; if not, the stream is reset.
            let mut sending = std::pin::pin!(now(writer.message(frame, &[])));
            let _ = sending.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()));
        }
    }
}

/// The payload of a request as it arrives. No wait is longer than the request's deadline.
pub struct Payload {
    connection: Connection,
    reader: Reader,
    remaining: u32,
    ended: bool,
    expires: Instant,
}

impl Payload {
    /// Bytes that the header announced and that were not read yet.
    pub fn remaining(&self) -> u32 {
        self.remaining
    }

    /// The next piece (packet-sized); None at the announced end. A shorter or longer stream is `Malformed`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.ended {
            return Ok(None);
        }
        let reading = async {
            if self.remaining == 0 {
                self.reader.end().await?;
                return Ok(None);
            }
            let piece = self.reader.piece(self.remaining as usize).await?;
            piece.map(Some).ok_or_else(|| ends_early(self.remaining as usize))
        };
        let piece = match timeout_at(self.expires, reading).await {
            Ok(piece) => piece.map_err(|error| self.broken(error))?,
            Err(_) => {
                let peer = self.connection.peer();
                return Err(Fault::new(
                    Code::Timeout,
                    format!("the payload of {peer} did not arrive in time"),
                ));
            }
        };
        match &piece {
            // A piece is never longer than what was asked for.
            Some(bytes) => self.remaining -= bytes.len() as u32,
            None => self.ended = true,
        }
        Ok(piece)
    }

    /// Everything that remains; refuses more than `limit` before it allocates.
    pub async fn collect(&mut self, limit: usize) -> Result<Vec<Bytes>, Fault> {
        if self.remaining as usize > limit {
            let detail = FrameError::PayloadTooLong(self.remaining as usize, limit).to_string();
            return Err(Fault::new(Code::Malformed, detail));
        }
        let mut pieces = Vec::new();
        while let Some(piece) = self.next().await? {
            pieces.push(piece);
        }
        Ok(pieces)
    }

    fn broken(&self, error: StreamError) -> Fault {
        let peer = self.connection.peer();
        match error {
            StreamError::Malformed(reason) => {
                self.connection.offend(&reason);
                Fault::new(Code::Malformed, format!("the payload of {peer}: {reason}"))
            }
            StreamError::Cancelled => Fault::new(Code::Unreachable, format!("{peer} gave the request up")),
            StreamError::Lost(error) => Fault::new(Code::Unreachable, format!("{peer} is gone: {error}")),
        }
    }
}
