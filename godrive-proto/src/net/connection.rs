//! An authenticated connection: asks requests, and hands out those of the peer.

use super::incoming::Incoming;
use super::stream::{Reader, StreamError, Writer, encode, now};
use crate::frame::{ReplyHeader, RequestHeader};
use crate::limits::MAX_PAYLOAD_BYTES;
use crate::{Code, Fault, NodeId, Operation, Role, frame};
use bytes::Bytes;
use quinn::{ConnectionError, VarInt};
use std::fmt;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;
use tokio::sync::{Mutex, mpsc};
use tokio::time::{Instant, timeout, timeout_at};

/// Application close codes: why this side ended a connection.
pub(super) const CLOSED: VarInt = VarInt::from_u32(0);
pub(super) const FORBIDDEN: VarInt = VarInt::from_u32(1);
pub(super) const MALFORMED: VarInt = VarInt::from_u32(2);

/// A request's frame must be complete this long after its stream was opened.
const FRAME_WITHIN: Duration = Duration::from_secs(10);

/// Who is at the other end, from its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub role: Role,
    pub node: NodeId,
    pub address: SocketAddr,
}

impl fmt::Display for Peer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} at {}", self.role, self.node, self.address)
    }
}

/// An authenticated connection; clones share it.
#[derive(Clone)]
pub struct Connection {
    shared: Arc<Shared>,
}

struct Shared {
    quinn: quinn::Connection,
    peer: Peer,
    requests: AtomicU64,
    /// Requests whose frame took more than one packet arrive here, so that they hold nobody up.
    late: mpsc::UnboundedSender<Incoming>,
    late_requests: Mutex<mpsc::UnboundedReceiver<Incoming>>,
}

/// Keeps nothing open.
pub(super) struct WeakConnection(Weak<Shared>);

impl WeakConnection {
    pub fn upgrade(&self) -> Option<Connection> {
        self.0.upgrade().map(|shared| Connection { shared })
    }
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "connection to {}", self.shared.peer)
    }
}

/// A decoded reply and its payload, wholly received.
#[derive(Debug)]
pub struct Reply<T> {
    pub header: ReplyHeader,
    pub body: T,
    pub payload: Vec<Bytes>,
}

impl Connection {
    pub(super) fn new(quinn: quinn::Connection, peer: Peer) -> Self {
        let (late, late_requests) = mpsc::unbounded_channel();
        let late_requests = Mutex::new(late_requests);
        Self { shared: Arc::new(Shared { quinn, peer, requests: AtomicU64::new(0), late, late_requests }) }
    }

    pub fn peer(&self) -> &Peer {
        &self.shared.peer
    }

    /// One request and its reply. `header.code`, `payload_bytes`, `request` and `deadline_ms` are filled in here.
    /// Fails with the peer's fault, with `Timeout` after `deadline`, or with `Unreachable`.
    pub async fn call<O: Operation>(
        &self,
        header: RequestHeader,
        request: &O::Request,
        payload: &[Bytes],
        deadline: Duration,
    ) -> Result<Reply<O::Reply>, Fault> {
        let message = Message::new::<O>(request)?;
        let reply = self.exchange(header, &message, payload, deadline).await?;
        reply.decode::<O>().inspect_err(|fault| self.offend(&fault.detail))
    }

    /// The same with bodies that are serialised: what is done here is the same for all operations, so that it is
    /// compiled once and not for each of them.
    pub fn exchange<'a>(
        &'a self,
        header: RequestHeader,
        message: &'a Message,
        payload: &'a [Bytes],
        deadline: Duration,
    ) -> Pin<Box<dyn Future<Output = Result<Reply<Bytes>, Fault>> + Send + 'a>> {
        let name = message.name;
        let exchange = async move {
            let payload_bytes = payload.iter().map(Bytes::len).sum::<usize>();
            let frame = self.frame(header, message, payload_bytes, deadline)?;
            let (send, receive) =
                self.shared.quinn.open_bi().await.map_err(|error| self.lost(name, error))?;
            // If the peer wants no more of the payload it has answered: the reply says why.
            Writer::new(send).message(frame, payload).await.map_err(|error| self.lost(name, error))?;
            self.reply(name, Reader::new(receive)).await
        };
        Box::pin(async move {
            timeout(deadline, exchange).await.unwrap_or_else(|_| Err(self.late_answer(name, deadline)))
        })
    }

    /// Starts a request whose payload is sent piece by piece (cut-through forwarding).
    pub async fn start<O: Operation>(
        &self,
        header: RequestHeader,
        request: &O::Request,
        payload_bytes: u32,
        deadline: Duration,
    ) -> Result<Call<O>, Fault> {
        let expires = Instant::now() + deadline;
        let message = Message::new::<O>(request)?;
        let opening = async {
            let frame = self.frame(header, &message, payload_bytes as usize, deadline)?;
            let lost = |error| self.lost(O::NAME, error);
            let (send, receive) = self.shared.quinn.open_bi().await.map_err(lost)?;
            let mut writer = Writer::new(send);
            let wanted = writer.write(frame).await.map_err(lost)?;
            Ok((writer, receive, wanted))
        };
        let opened = timeout_at(expires, opening).await;
        let (writer, receive, wanted) =
            opened.unwrap_or_else(|_| Err(self.late_answer(O::NAME, deadline)))?;
        Ok(Call {
            connection: self.clone(),
            writer,
            reader: Reader::new(receive),
            remaining: payload_bytes as usize,
            wanted,
            expires,
            deadline,
            operation: PhantomData,
        })
    }

    /// The next request of the peer; None when the connection has ended. A malformed frame ends the connection
    /// with a logged reason.
    pub async fn accept(&self) -> Option<Incoming> {
        let mut late_requests = self.shared.late_requests.lock().await;
        loop {
            tokio::select! {
                biased;
                // Never ends: this connection holds the channel's other end.
                Some(incoming) = late_requests.recv() => return Some(incoming),
                stream = self.shared.quinn.accept_bi() => match stream {
                    Ok((send, receive)) => {
                        if let Some(incoming) = self.receive(Writer::new(send), Reader::new(receive)).await {
                            return Some(incoming);
                        }
                    }
                    Err(error) => {
                        tracing::debug!(peer = %self.shared.peer, %error, "connection ended");
                        return None;
                    }
                },
            }
        }
    }

    /// The request on a new stream if its frame is there already, as it mostly is; else a task waits for the rest.
    async fn receive(&self, writer: Writer, mut reader: Reader) -> Option<Incoming> {
        if let Some(frame) = now(reader.frame()).await {
            return self.incoming(frame, writer, reader);
        }
        let connection = self.clone();
        tokio::spawn(async move {
            let Ok(frame) = timeout(FRAME_WITHIN, reader.frame()).await else {
                tracing::warn!(peer = %connection.shared.peer, "gave up a request whose frame did not arrive");
                return;
            };
            if let Some(incoming) = connection.incoming(frame, writer, reader) {
                // Fails only when the connection is being dropped.
                let _ = connection.shared.late.send(incoming);
            }
        });
        None
    }

    fn incoming(
        &self,
        frame: Result<(RequestHeader, Bytes), StreamError>,
        writer: Writer,
        reader: Reader,
    ) -> Option<Incoming> {
        match frame {
            Ok((header, _)) if header.payload_bytes as usize > MAX_PAYLOAD_BYTES => {
                self.offend(&format!("a request announces a payload of {} bytes", header.payload_bytes));
                None
            }
            Ok((header, body)) => Some(Incoming::new(self.clone(), header, body, writer, reader)),
            Err(StreamError::Malformed(reason)) => {
                self.offend(&reason);
                None
            }
            Err(StreamError::Cancelled | StreamError::Lost(_)) => None,
        }
    }

    pub fn is_closed(&self) -> bool {
        self.shared.quinn.close_reason().is_some()
    }

    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> String {
        self.shared.quinn.closed().await.to_string()
    }

    pub fn close(&self, reason: &str) {
        self.shared.quinn.close(CLOSED, reason.as_bytes());
    }

    /// The largest datagram this path was found to carry, for measurements.
    pub fn mtu(&self) -> u16 {
        self.shared.quinn.stats().path.current_mtu
    }

    pub(super) fn datagrams_received(&self) -> u64 {
        self.shared.quinn.stats().udp_rx.datagrams
    }

    pub(super) fn downgrade(&self) -> WeakConnection {
        WeakConnection(Arc::downgrade(&self.shared))
    }

    /// Ends the connection of a peer that broke the protocol.
    pub(super) fn offend(&self, reason: &str) {
        tracing::warn!(peer = %self.shared.peer, reason, "malformed message: closing the connection");
        self.shared.quinn.close(MALFORMED, reason.as_bytes());
    }

    fn frame(
        &self,
        mut header: RequestHeader,
        message: &Message,
        payload_bytes: usize,
        deadline: Duration,
    ) -> Result<Bytes, Fault> {
        header.code = message.code;
        header.request = self.shared.requests.fetch_add(1, Ordering::Relaxed) + 1;
        header.payload_bytes = payload_length(payload_bytes)?;
        header.deadline_ms = u32::try_from(deadline.as_millis()).unwrap_or(u32::MAX).max(1);
        encode(&header, &message.body)
            .map_err(|error| Fault::new(Code::Malformed, format!("{} request: {error}", message.name)))
    }

    async fn reply(&self, name: &'static str, mut reader: Reader) -> Result<Reply<Bytes>, Fault> {
        let (header, body, payload) = async {
            let (header, body) = reader.frame::<ReplyHeader>().await?;
            let length = header.payload_bytes as usize;
            if length > MAX_PAYLOAD_BYTES {
                return Err(StreamError::Malformed(format!("a reply announces a payload of {length} bytes")));
            }
            let payload = reader.payload(length).await?;
            Ok((header, body, payload))
        }
        .await
        .map_err(|error| self.no_reply(name, error))?;
        match header.fault {
            Some(fault) => Err(fault),
            None => Ok(Reply { header, body, payload }),
        }
    }

    fn no_reply(&self, name: &str, error: StreamError) -> Fault {
        let peer = &self.shared.peer;
        match error {
            StreamError::Lost(error) => self.lost(name, error),
            StreamError::Cancelled => {
                Fault::new(Code::Unreachable, format!("{name}: {peer} gave the request up"))
            }
            StreamError::Malformed(reason) => {
                self.offend(&format!("reply to {name}: {reason}"));
                Fault::new(Code::Malformed, format!("{name}: the reply of {peer}: {reason}"))
            }
        }
    }

    fn lost(&self, name: &str, error: ConnectionError) -> Fault {
        let mut fault = fault_of(&error);
        fault.detail = format!("{name}: {}: {}", self.shared.peer, fault.detail);
        fault
    }

    fn late_answer(&self, name: &str, deadline: Duration) -> Fault {
        let waited_ms = deadline.as_millis();
        let peer = &self.shared.peer;
        Fault::new(Code::Timeout, format!("{name}: no answer of {peer} within {waited_ms} ms"))
    }
}

/// A request whose body is serialised.
#[derive(Clone, Debug)]
pub struct Message {
    pub code: u16,
    pub name: &'static str,
    pub body: Vec<u8>,
}

impl Message {
    pub fn new<O: Operation>(request: &O::Request) -> Result<Self, Fault> {
        let body = frame::encode_body(request)
            .map_err(|error| Fault::new(Code::Malformed, format!("{} request: {error}", O::NAME)))?;
        Ok(Self { code: O::CODE, name: O::NAME, body })
    }
}

impl Reply<Bytes> {
    pub fn decode<O: Operation>(self) -> Result<Reply<O::Reply>, Fault> {
        let body = frame::decode_body(&self.body)
            .map_err(|error| Fault::new(Code::Malformed, format!("reply to {}: {error}", O::NAME)))?;
        Ok(Reply { header: self.header, body, payload: self.payload })
    }
}

/// A request under way. Dropped before [`Call::finish`] it is cancelled.
pub struct Call<O: Operation> {
    connection: Connection,
    writer: Writer,
    reader: Reader,
    remaining: usize,
    /// False once the peer has answered without waiting for the rest.
    wanted: bool,
    expires: Instant,
    deadline: Duration,
    operation: PhantomData<fn() -> O>,
}

impl<O: Operation> Call<O> {
    /// Sends the next piece. After the peer has answered early this does nothing; [`Call::finish`] has the answer.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), Fault> {
        let Some(remaining) = self.remaining.checked_sub(bytes.len()) else {
            return Err(Fault::new(Code::Internal, format!("{}: more payload than announced", O::NAME)));
        };
        self.remaining = remaining;
        if self.wanted {
            let written = timeout_at(self.expires, self.writer.write(bytes)).await;
            let written = written.map_err(|_| self.connection.late_answer(O::NAME, self.deadline))?;
            self.wanted = written.map_err(|error| self.connection.lost(O::NAME, error))?;
        }
        Ok(())
    }

    /// Ends the payload and waits for the reply.
    pub async fn finish(mut self) -> Result<Reply<O::Reply>, Fault> {
        if self.remaining > 0 && self.wanted {
            return Err(Fault::new(Code::Internal, format!("{}: less payload than announced", O::NAME)));
        }
        self.writer.finish();
        let reply = self.connection.reply(O::NAME, self.reader);
        let reply = timeout_at(self.expires, reply)
            .await
            .unwrap_or_else(|_| Err(self.connection.late_answer(O::NAME, self.deadline)))?;
        reply.decode::<O>().inspect_err(|fault| self.connection.offend(&fault.detail))
    }
}

/// The length as a header carries it, if it is within the limit.
pub(super) fn payload_length(bytes: usize) -> Result<u32, Fault> {
    match u32::try_from(bytes) {
        Ok(length) if bytes <= MAX_PAYLOAD_BYTES => Ok(length),
        _ => Err(Fault::new(
            Code::Malformed,
            frame::FrameError::PayloadTooLong(bytes, MAX_PAYLOAD_BYTES).to_string(),
        )),
    }
}

/// What the end of a connection, or a failed handshake, means to whoever needed it.
pub(super) fn fault_of(error: &ConnectionError) -> Fault {
    match error {
        ConnectionError::ApplicationClosed(close) => {
            let reason = String::from_utf8_lossy(&close.reason);
            let code = if close.error_code == FORBIDDEN { Code::Forbidden } else { Code::Unreachable };
            Fault::new(code, format!("closed by the peer: {reason}"))
        }
        ConnectionError::TransportError(error) => refused(error.code, &error.reason),
        ConnectionError::ConnectionClosed(close) => {
            refused(close.error_code, &format!("the peer says: {}", String::from_utf8_lossy(&close.reason)))
        }
        ConnectionError::TimedOut => Fault::new(Code::Unreachable, "not a packet for several seconds"),
        other => Fault::new(Code::Unreachable, other.to_string()),
    }
}

/// TLS alerts (RFC 8446 section 6), as QUIC carries them, in words that say what to do.
fn refused(code: quinn::TransportErrorCode, reason: &str) -> Fault {
    let hint = match u64::from(code).checked_sub(0x100) {
        Some(48) => "the certificate was issued by another cluster's CA",
        Some(42 | 43 | 46) => "the certificate is not valid for the role that is expected there",
        Some(44) => "the certificate was revoked",
        Some(45) => "the certificate has expired, or the clocks differ by more than a day",
        Some(116) => "a certificate of this cluster is required; join it first",
        Some(120) => "the peer speaks another version of the protocol; run the same release on all machines",
        Some(0..=255) => "the TLS handshake failed",
        _ => return Fault::new(Code::Unreachable, format!("{code}: {reason}")),
    };
    Fault::new(Code::Forbidden, format!("{hint} ({reason})"))
}
