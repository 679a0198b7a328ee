//! SKELETON: signatures fixed, bodies to come.
use crate::frame::{ReplyHeader, RequestHeader};
use crate::{Fault, NodeId, Operation, Role};
use bytes::Bytes;
use std::marker::PhantomData;
use std::net::SocketAddr;
use std::time::Duration;

/// Who is at the other end, from its certificate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Peer {
    pub role: Role,
    pub node: NodeId,
    pub address: SocketAddr,
}

/// An authenticated connection; clones share it.
#[derive(Clone)]
pub struct Connection {}

/// A decoded reply and its payload, wholly received.
pub struct Reply<T> {
    pub header: ReplyHeader,
    pub body: T,
    pub payload: Vec<Bytes>,
}

impl Connection {
    pub fn peer(&self) -> &Peer {
        todo!()
    }
    /// One request and its reply. `header.code`, `payload_bytes`, `request` and `deadline_ms` are filled in here.
    /// Fails with the peer's fault, with `Timeout` after `deadline`, or with `Unreachable`.
    pub async fn call<O: Operation>(
        &self,
        _header: RequestHeader,
        _request: &O::Request,
        _payload: &[Bytes],
        _deadline: Duration,
    ) -> Result<Reply<O::Reply>, Fault> {
        todo!()
    }
    /// Starts a request whose payload is sent piece by piece (cut-through forwarding).
    pub async fn start<O: Operation>(
        &self,
        _header: RequestHeader,
        _request: &O::Request,
        _payload_bytes: u32,
        _deadline: Duration,
    ) -> Result<Call<O>, Fault> {
        todo!()
    }
    /// The next request of the peer; None when the connection has ended. A malformed frame ends the connection
    /// with a logged reason.
    pub async fn accept(&self) -> Option<Incoming> {
        todo!()
    }
    pub fn is_closed(&self) -> bool {
        todo!()
    }
    /// Waits until the connection has ended, and says why.
    pub async fn closed(&self) -> String {
        todo!()
    }
    pub fn close(&self, _reason: &str) {
        todo!()
    }
}

/// A request under way.
pub struct Call<O: Operation> {
    _operation: PhantomData<O>,
}

impl<O: Operation> Call<O> {
    pub async fn send(&mut self, _bytes: Bytes) -> Result<(), Fault> {
        todo!()
    }
    /// Ends the payload and waits for the reply.
    pub async fn finish(self) -> Result<Reply<O::Reply>, Fault> {
        todo!()
    }
}

/// A request of the peer: header checked and bounded, body not yet decoded, payload not yet read.
/// Dropped without an answer, it answers `Internal`.
pub struct Incoming {
    pub header: RequestHeader,
    pub payload: Payload,
}

impl Incoming {
    pub fn peer(&self) -> &Peer {
        todo!()
    }
    /// Decodes the body after checking that the peer's role may ask this. On failure answer with the fault.
    pub fn decode<O: Operation>(&self) -> Result<O::Request, Fault> {
        todo!()
    }
    /// Sends the reply. `payload_bytes` is filled in. An error means that the peer is gone.
    pub async fn reply<O: Operation>(self, _header: ReplyHeader, _reply: &O::Reply, _payload: &[Bytes]) -> Result<(), Fault> {
        todo!()
    }
    pub async fn fail(self, _header: ReplyHeader, _fault: Fault) -> Result<(), Fault> {
        todo!()
    }
}

/// The payload of a request as it arrives.
pub struct Payload {}

impl Payload {
    /// Bytes that the header announced and that were not read yet.
    pub fn remaining(&self) -> u32 {
        todo!()
    }
    /// The next piece (packet-sized); None at the announced end. A shorter or longer stream is `Malformed`.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Fault> {
        todo!()
    }
    /// Everything that remains; refuses more than `limit` before it allocates.
    pub async fn collect(&mut self, _limit: usize) -> Result<Vec<Bytes>, Fault> {
        todo!()
    }
}
