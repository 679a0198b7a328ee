//! Frames on a QUIC stream: bounded reading without copies, and writing that never passes a torn message off as whole.

use crate::frame::{self, FrameError};
use bytes::{Buf, Bytes, BytesMut};
use quinn::{ConnectionError, ReadError, RecvStream, SendStream, VarInt, WriteError};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::future::{Future, poll_fn};
use std::pin::pin;
use std::task::Poll;

/// The stream was given up by its writer (a deadline passed, a task was dropped).
pub(super) const CANCELLED: VarInt = VarInt::from_u32(1);

/// Pieces shorter than this are sent together, as pieces of up to so many bytes.
const SHORT_BYTES: usize = 16 << 10;
const JOINED_BYTES: usize = 256 << 10;

/// Why a message did not arrive.
#[derive(Debug)]
pub(super) enum StreamError {
    /// Against the protocol: the connection ends for it.
    Malformed(String),
    /// The peer gave this stream up; the connection is fine.
    Cancelled,
    /// The connection has ended.
    Lost(ConnectionError),
}

impl From<FrameError> for StreamError {
    fn from(error: FrameError) -> Self {
        Self::Malformed(error.to_string())
    }
}

impl From<ReadError> for StreamError {
    fn from(error: ReadError) -> Self {
        match error {
            ReadError::Reset(_) => Self::Cancelled,
            ReadError::ConnectionLost(error) => Self::Lost(error),
            // 0-RTT is never used and reads are ordered, so these are defects of this module.
            ReadError::ClosedStream | ReadError::IllegalOrderedRead | ReadError::ZeroRttRejected => {
                Self::Malformed(error.to_string())
            }
        }
    }
}

/// The receiving half. Every method may be cancelled and called again.
pub(super) struct Reader {
    stream: RecvStream,
    buffered: Bytes,
}

impl Reader {
    pub fn new(stream: RecvStream) -> Self {
        Self { stream, buffered: Bytes::new() }
    }

    /// A frame's header and the bytes of its body.
    pub async fn frame<H: DeserializeOwned>(&mut self) -> Result<(H, Bytes), StreamError> {
        self.fill(4).await?;
        let prefix = [self.buffered[0], self.buffered[1], self.buffered[2], self.buffered[3]];
        let length = frame::body_length(prefix)?;
        self.fill(4 + length).await?;
        self.buffered.advance(4);
        let bytes = self.buffered.split_to(length);
        let (header, body) = frame::decode_header(&bytes)?;
        Ok((header, bytes.slice_ref(body)))
    }

    /// The next piece of the payload, at most `limit` bytes; None at the stream's end.
    pub async fn piece(&mut self, limit: usize) -> Result<Option<Bytes>, StreamError> {
        if !self.buffered.is_empty() {
            return Ok(Some(self.buffered.split_to(limit.min(self.buffered.len()))));
        }
        Ok(self.stream.read_chunk(limit, true).await?.map(|chunk| chunk.bytes))
    }

    /// All of a payload of known length, and then the stream's end.
    pub async fn payload(&mut self, length: usize) -> Result<Vec<Bytes>, StreamError> {
        let (mut pieces, mut remaining) = (Vec::new(), length);
        while remaining > 0 {
            let piece = self.piece(remaining).await?.ok_or_else(|| ends_early(remaining))?;
            remaining -= piece.len();
            pieces.push(piece);
        }
        self.end().await?;
        Ok(pieces)
    }

    /// Waits for the stream's end; anything else is malformed.
    pub async fn end(&mut self) -> Result<(), StreamError> {
        match self.piece(usize::MAX).await? {
            None => Ok(()),
            Some(_) => Err(StreamError::Malformed("the stream is longer than it announced".into())),
        }
    }

    async fn fill(&mut self, length: usize) -> Result<(), StreamError> {
        while self.buffered.len() < length {
            let chunk = self.stream.read_chunk(usize::MAX, true).await?;
            let chunk = chunk.ok_or_else(|| ends_early(length - self.buffered.len()))?.bytes;
            if self.buffered.is_empty() {
                self.buffered = chunk;
            } else {
                // Grows with what has arrived, never ahead to what a peer has merely announced.
                let so_far = std::mem::take(&mut self.buffered);
                let mut joined = so_far.try_into_mut().unwrap_or_else(|shared| BytesMut::from(&shared[..]));
                joined.extend_from_slice(&chunk);
                self.buffered = joined.freeze();
            }
        }
        Ok(())
    }
}

pub(super) fn ends_early(missing: usize) -> StreamError {
    StreamError::Malformed(format!("the stream ends {missing} bytes early"))
}

/// The next piece to write and how many of `pieces` it is made of. Short ones are copied together, because quinn searches
/// its send buffer piece by piece for every packet.
fn gather(pieces: &[Bytes]) -> Option<(Bytes, usize)> {
    let first = pieces.first()?;
    let short = pieces.iter().take_while(|piece| piece.len() < SHORT_BYTES);
    let mut room = JOINED_BYTES;
    let used = short.take_while(|piece| {
        let fits = piece.len() <= room;
        room = room.saturating_sub(piece.len());
        fits
    });
    match used.count() {
        0 | 1 => Some((first.clone(), 1)),
        used => Some((pieces[..used].concat().into(), used)),
    }
}

/// The sending half. Dropped before [`Writer::finish`] it resets the stream: quinn alone would end it as if whole.
pub(super) struct Writer {
    stream: SendStream,
    finished: bool,
}

impl Writer {
    pub fn new(stream: SendStream) -> Self {
        Self { stream, finished: false }
    }

    /// False if the peer wants no more of it, because it has answered already.
    pub async fn write(&mut self, piece: Bytes) -> Result<bool, ConnectionError> {
        match self.stream.write_chunk(piece).await {
            Ok(()) => Ok(true),
            Err(WriteError::ConnectionLost(error)) => Err(error),
            Err(WriteError::Stopped(_) | WriteError::ClosedStream | WriteError::ZeroRttRejected) => Ok(false),
        }
    }

    /// Writes a frame and its whole payload and ends the stream. False as for [`Self::write`].
    pub async fn message(&mut self, frame: Bytes, payload: &[Bytes]) -> Result<bool, ConnectionError> {
        let mut wanted = self.write(frame).await?;
        let mut rest = payload;
        while wanted && let Some((piece, used)) = gather(rest) {
            wanted = self.write(piece).await?;
            rest = &rest[used..];
        }
        self.finish();
        Ok(wanted)
    }

    pub fn finish(&mut self) {
        self.finished = true;
        // Fails only if the peer stopped the stream, which ends it as well.
        let _ = self.stream.finish();
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if !self.finished {
            let _ = self.stream.reset(CANCELLED);
        }
    }
}

/// Encodes a frame whose header has been filled in.
pub(super) fn encode<H: Serialize>(header: &H, body: &[u8]) -> Result<Bytes, FrameError> {
    frame::encode_around(header, body).map(Bytes::from)
}

/// Polls once: what is already there, without waiting.
pub(super) async fn now<F: Future>(future: F) -> Option<F::Output> {
    let mut future = pin!(future);
    poll_fn(|context| {
        Poll::Ready(match future.as_mut().poll(context) {
            Poll::Ready(output) => Some(output),
            Poll::Pending => None,
        })
    })
    .await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn short_pieces_are_joined_and_nothing_is_left_out() {
        for lengths in
            [vec![], vec![0, 0], vec![5], vec![4096; 300], vec![1 << 20, 1, 2, 1 << 20, SHORT_BYTES, 7]]
        {
            let pieces: Vec<Bytes> =
                lengths.iter().enumerate().map(|(n, len)| Bytes::from(vec![n as u8; *len])).collect();
            let (mut rest, mut joined, mut writes) = (&pieces[..], Vec::new(), 0);
            while let Some((piece, used)) = gather(rest) {
                assert!(used == 1 || piece.len() <= JOINED_BYTES);
                joined.extend_from_slice(&piece);
                writes += 1;
                rest = &rest[used..];
            }
            assert_eq!(joined, pieces.concat());
            assert!(writes <= pieces.len().min(6), "{writes} writes for {} pieces", pieces.len());
        }
    }
}
