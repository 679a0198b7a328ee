//! The frame around every request and reply.
//!
//! A QUIC stream carries one request and one reply, each as
//! `[body length: u32 LE][header + body: postcard][payload: raw bytes]`. The header names the payload's
//! length; payload bytes are never serialised and never copied into the body.

use crate::{Fault, LogIndex, SessionId, Term};
use serde::{Deserialize, Serialize};

/// What every request carries beside its body. Fields that nothing reads yet are room that would be costly to add.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RequestHeader {
    /// [`crate::Operation::CODE`].
    pub code: u16,
    pub feature_level: u16,
    /// Unique per connection; for logs.
    pub request: u64,
    /// The client's session; 0 for none.
    pub session: SessionId,
    /// For mutations: the position in the session's order, from 1; 0 for none.
    pub sequence: u64,
    /// Every mutation of the session below this has been answered; their kept results may be dropped.
    pub answered_below: u64,
    /// The master's term as the sender knows it; receivers refuse commands of a lower term than one they saw.
    pub term: Term,
    /// The highest log index this peer has seen in a reply of the master.
    pub seen: LogIndex,
    /// Milliseconds that remain until the sender gives up; 0 for none. A receiver may stop working then.
    pub deadline_ms: u32,
    pub class: Class,
    /// The master's grant for this peer, chunk, epoch and rights. Empty until grants are signed.
    #[serde(with = "serde_bytes")]
    pub grant: Vec<u8>,
    pub payload_bytes: u32,
}

/// What a request is for; slaves serve foreground work before repair and scrub.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Class {
    #[default]
    Foreground,
    Repair,
    Scrub,
}

/// What every reply carries beside its body.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReplyHeader {
    /// None: the body is the operation's reply. Some: there is no body.
    pub fault: Option<Fault>,
    /// The master's term and durable log index when it answered; 0 from others.
    pub term: Term,
    pub index: LogIndex,
    pub payload_bytes: u32,
}

/// Why bytes are not a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    #[error("the frame's body of {0} bytes exceeds the limit of {limit}", limit = crate::limits::MAX_BODY_BYTES)]
    BodyTooLong(usize),
    #[error("the payload of {0} bytes exceeds the limit of {1}")]
    PayloadTooLong(usize, usize),
    #[error("the body does not decode: {0}")]
    Undecodable(postcard::Error),
    #[error("{0} bytes follow the body")]
    Trailing(usize),
}

/// Serialises header and body behind the length. Fails if the body exceeds its limit.
pub fn encode<H: Serialize, B: Serialize>(header: &H, body: &B) -> Result<Vec<u8>, FrameError> {
    encode_around(header, &encode_body(body)?)
}

/// Serialises a body on its own, for [`encode_around`].
pub fn encode_body<B: Serialize>(body: &B) -> Result<Vec<u8>, FrameError> {
    postcard::to_extend(body, Vec::new()).map_err(FrameError::Undecodable)
}

/// Serialises the header and puts it and a serialised body behind the length.
pub fn encode_around<H: Serialize>(header: &H, body: &[u8]) -> Result<Vec<u8>, FrameError> {
    let mut bytes = Vec::with_capacity(64 + body.len());
    bytes.extend_from_slice(&[0u8; 4]);
    bytes = postcard::to_extend(header, bytes).map_err(FrameError::Undecodable)?;
    bytes.extend_from_slice(body);
    let body_bytes = bytes.len() - 4;
    check_body_length(body_bytes)?;
    bytes[..4].copy_from_slice(&(body_bytes as u32).to_le_bytes());
    Ok(bytes)
}

/// Decodes a length prefix; the caller allocates only after this check.
pub fn body_length(prefix: [u8; 4]) -> Result<usize, FrameError> {
    let length = u32::from_le_bytes(prefix) as usize;
    check_body_length(length)?;
    Ok(length)
}

fn check_body_length(length: usize) -> Result<(), FrameError> {
    if length > crate::limits::MAX_BODY_BYTES {
        return Err(FrameError::BodyTooLong(length));
    }
    Ok(())
}

/// Splits the header off; the rest is the body for [`decode_body`].
pub fn decode_header<'a, H: Deserialize<'a>>(bytes: &'a [u8]) -> Result<(H, &'a [u8]), FrameError> {
    postcard::take_from_bytes(bytes).map_err(FrameError::Undecodable)
}

/// Decodes a body that must fill `bytes` exactly.
pub fn decode_body<'a, B: Deserialize<'a>>(bytes: &'a [u8]) -> Result<B, FrameError> {
    let (body, rest) = postcard::take_from_bytes(bytes).map_err(FrameError::Undecodable)?;
    if !rest.is_empty() {
        return Err(FrameError::Trailing(rest.len()));
    }
    Ok(body)
}
