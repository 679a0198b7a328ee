//! Counters of what went over the wire, for tests and metrics.

use bytes::Bytes;
use godrive_proto::frame::RequestHeader;
use godrive_proto::net::{Message, Reply};
use serde::Serialize;
use std::sync::atomic::{AtomicU64, Ordering};

/// Requests, payload and frames (length, header and body) since the start.
#[derive(Debug, Default)]
pub struct Stats {
    pub master_requests: AtomicU64,
    /// Those of them that only kept the session's leases.
    pub renewals: AtomicU64,
    pub slave_requests: AtomicU64,
    pub payload_bytes_sent: AtomicU64,
    pub payload_bytes_received: AtomicU64,
    pub frame_bytes_sent: AtomicU64,
    pub frame_bytes_received: AtomicU64,
    /// Requests that were sent again.
    pub retries: AtomicU64,
    /// Reports of failed, corrupt or diverged members.
    pub reports: AtomicU64,
    /// Reads that were also asked of another member because the first was late.
    pub hedges: AtomicU64,
}

/// The values at one moment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub master_requests: u64,
    pub renewals: u64,
    pub slave_requests: u64,
    pub payload_bytes_sent: u64,
    pub payload_bytes_received: u64,
    pub frame_bytes_sent: u64,
    pub frame_bytes_received: u64,
    pub retries: u64,
    pub reports: u64,
    pub hedges: u64,
    /// How often the connections moved because the machine's network changed.
    pub moves: u64,
}

impl Counts {
    /// Everything sent and received, without QUIC's own overhead.
    pub fn wire_bytes(&self) -> u64 {
        self.payload_bytes_sent
            + self.payload_bytes_received
            + self.frame_bytes_sent
            + self.frame_bytes_received
    }

    pub fn since(&self, earlier: &Self) -> Self {
        Self {
            master_requests: self.master_requests - earlier.master_requests,
            renewals: self.renewals - earlier.renewals,
            slave_requests: self.slave_requests - earlier.slave_requests,
            payload_bytes_sent: self.payload_bytes_sent - earlier.payload_bytes_sent,
            payload_bytes_received: self.payload_bytes_received - earlier.payload_bytes_received,
            frame_bytes_sent: self.frame_bytes_sent - earlier.frame_bytes_sent,
            frame_bytes_received: self.frame_bytes_received - earlier.frame_bytes_received,
            retries: self.retries - earlier.retries,
            reports: self.reports - earlier.reports,
            hedges: self.hedges - earlier.hedges,
            moves: self.moves - earlier.moves,
        }
    }
}

impl Stats {
    pub fn counts(&self, moves: u64) -> Counts {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Counts {
            master_requests: load(&self.master_requests),
            renewals: load(&self.renewals),
            slave_requests: load(&self.slave_requests),
            payload_bytes_sent: load(&self.payload_bytes_sent),
            payload_bytes_received: load(&self.payload_bytes_received),
            frame_bytes_sent: load(&self.frame_bytes_sent),
            frame_bytes_received: load(&self.frame_bytes_received),
            retries: load(&self.retries),
            reports: load(&self.reports),
            hedges: load(&self.hedges),
            moves,
        }
    }

    pub(super) fn add(counter: &AtomicU64, amount: u64) {
        counter.fetch_add(amount, Ordering::Relaxed);
    }

    pub(super) fn sent(&self, header: &RequestHeader, message: &Message, payload_bytes: usize) {
        Self::add(&self.frame_bytes_sent, 4 + encoded_bytes(header) + message.body.len() as u64);
        Self::add(&self.payload_bytes_sent, payload_bytes as u64);
    }

    pub(super) fn received(&self, reply: &Reply<Bytes>) {
        Self::add(&self.frame_bytes_received, 4 + encoded_bytes(&reply.header) + reply.body.len() as u64);
        Self::add(&self.payload_bytes_received, reply.payload.iter().map(|piece| piece.len() as u64).sum());
    }
}

/// What postcard makes of it, counted without writing it.
fn encoded_bytes(value: &impl Serialize) -> u64 {
    postcard::experimental::serialized_size(value).map_or(0, |bytes| bytes as u64)
}
