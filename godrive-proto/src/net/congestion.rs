//! Congestion control that knows when the machine has moved.
//!
//! quinn gives the side that moves no new congestion state: what was in flight on the old path still fills the window, so
//! that nothing but a loss probe may be sent, and after some seconds of silence those are seconds apart. And when
//! all of it is found to be lost, that counts as congestion of the new path. RFC 9000 (9.4) wants neither: on a new path
//! the window begins anew, and what was sent before says nothing about it.

use quinn::congestion::{Controller, ControllerFactory, CubicConfig};
use quinn_proto::RttEstimator;
use std::any::Any;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

/// Loss probes are not counted by the window; so many bytes of them may be in flight beside what is known.
const PROBES_BYTES: u64 = 64 << 10;

/// Makes cubic controllers that begin anew when `moves` rises.
pub(super) struct Roaming {
    pub cubic: Arc<CubicConfig>,
    pub moves: Arc<AtomicU64>,
}

impl ControllerFactory for Roaming {
    fn build(self: Arc<Self>, now: Instant, current_mtu: u16) -> Box<dyn Controller> {
        let inner = self.cubic.clone().build(now, current_mtu);
        let seen = self.moves.load(Ordering::Relaxed);
        Box::new(Path {
            config: self,
            inner,
            seen,
            mtu: current_mtu,
            in_flight: 0,
            stranded: 0,
            moved_at: None,
        })
    }
}

struct Path {
    config: Arc<Roaming>,
    inner: Box<dyn Controller>,
    seen: u64,
    mtu: u16,
    in_flight: u64,
    /// In flight when the machine moved, until the new path was heard of. The window is raised by it.
    stranded: u64,
    moved_at: Option<Instant>,
}

impl Path {
    fn has_moved(&self) -> bool {
        self.config.moves.load(Ordering::Relaxed) != self.seen
    }

    fn is_of_this_path(&self, sent: Instant) -> bool {
        self.moved_at.is_none_or(|moved_at| sent >= moved_at)
    }
}

impl Controller for Path {
    fn on_sent(&mut self, now: Instant, bytes: u64, last_packet_number: u64) {
        if self.has_moved() {
            self.seen = self.config.moves.load(Ordering::Relaxed);
            self.inner = self.config.cubic.clone().build(now, self.mtu);
            self.stranded = self.in_flight + PROBES_BYTES;
            self.moved_at = Some(now);
        }
        self.in_flight += bytes;
        self.inner.on_sent(now, bytes, last_packet_number);
    }

    fn on_ack(&mut self, now: Instant, sent: Instant, bytes: u64, app_limited: bool, rtt: &RttEstimator) {
        if self.is_of_this_path(sent) {
            self.stranded = 0;
            self.inner.on_ack(now, sent, bytes, app_limited, rtt);
        }
    }

    fn on_end_acks(&mut self, now: Instant, in_flight: u64, app_limited: bool, largest_acked: Option<u64>) {
        self.in_flight = in_flight;
        self.inner.on_end_acks(now, in_flight, app_limited, largest_acked);
    }

    fn on_congestion_event(&mut self, now: Instant, sent: Instant, is_persistent: bool, lost_bytes: u64) {
        self.in_flight = self.in_flight.saturating_sub(lost_bytes);
        if self.is_of_this_path(sent) {
            self.inner.on_congestion_event(now, sent, is_persistent, lost_bytes);
        }
    }

    fn on_mtu_update(&mut self, new_mtu: u16) {
        self.mtu = new_mtu;
        self.inner.on_mtu_update(new_mtu);
    }

    fn window(&self) -> u64 {
        match self.has_moved() {
            true => self.inner.initial_window() + self.in_flight + PROBES_BYTES,
            false => self.inner.window() + self.stranded,
        }
    }

    fn clone_box(&self) -> Box<dyn Controller> {
        Box::new(Self { config: self.config.clone(), inner: self.inner.clone_box(), ..*self })
    }

    fn initial_window(&self) -> u64 {
        self.inner.initial_window()
    }

    fn into_any(self: Box<Self>) -> Box<dyn Any> {
        self
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    const INITIAL: u64 = 100_000;

    #[allow(clippy::disallowed_methods)] // Any moment will do.
    fn moved_with_a_full_window() -> (Box<dyn Controller>, Instant, Arc<AtomicU64>) {
        let mut cubic = CubicConfig::default();
        cubic.initial_window(INITIAL);
        let moves = Arc::new(AtomicU64::new(0));
        let roaming = Arc::new(Roaming { cubic: Arc::new(cubic), moves: moves.clone() });
        let start = Instant::now();
        let mut path = roaming.build(start, 1200);
        assert_eq!(path.window(), INITIAL);
        path.on_sent(start, INITIAL, 1);
        moves.fetch_add(1, Ordering::Relaxed);
        (path, start, moves)
    }

    #[test]
    fn a_move_opens_a_window_of_its_own_beside_what_is_stranded() {
        let (mut path, start, _) = moved_with_a_full_window();
        assert!(path.window() >= 2 * INITIAL);
        path.on_sent(start + Duration::from_secs(2), 1200, 2);
        assert!(path.window() >= 2 * INITIAL, "until the new path was heard of");
    }

    #[test]
    fn what_was_lost_on_the_old_path_is_no_congestion_of_the_new() {
        let (mut path, start, _) = moved_with_a_full_window();
        let later = start + Duration::from_secs(2);
        path.on_sent(later, 1200, 2);
        let window = path.window();
        path.on_congestion_event(later, start, true, INITIAL);
        assert_eq!(path.window(), window);
        path.on_congestion_event(later, later, true, 1200);
        assert!(path.window() < window);
    }
}
