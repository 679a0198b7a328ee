//! A wire between one mount and the master that can be cut: datagrams are passed on, or not.

use parking_lot::Mutex;
use std::net::{SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Passes datagrams on while it exists.
pub struct Relay {
    pub address: SocketAddr,
    shared: Arc<Shared>,
}

struct Shared {
    /// The mount's side, and the master's.
    front: UdpSocket,
    back: UdpSocket,
    /// Where the mount was heard last.
    mount: Mutex<Option<SocketAddr>>,
    cut: AtomicBool,
    /// Datagrams that were not passed on: to the master, to the mount.
    dropped: [AtomicU64; 2],
    ended: AtomicBool,
}

/// The longest datagram of UDP.
const MAX_DATAGRAM: usize = 65_535;

impl Relay {
    pub fn to(master: SocketAddr) -> Self {
        let socket = || UdpSocket::bind("127.0.0.1:0").expect("a socket");
        let (front, back) = (socket(), socket());
        back.connect(master).expect("a connected socket");
        for socket in [&front, &back] {
            socket.set_read_timeout(Some(Duration::from_millis(100))).expect("a timeout");
        }
        let address = front.local_addr().expect("it is bound");
        let (cut, ended) = (AtomicBool::new(false), AtomicBool::new(false));
        let dropped = [AtomicU64::new(0), AtomicU64::new(0)];
        let shared = Arc::new(Shared { front, back, mount: Mutex::new(None), cut, dropped, ended });
        let (there, back) = (shared.clone(), shared.clone());
        std::thread::spawn(move || there.pass_to_master());
        std::thread::spawn(move || back.pass_to_mount());
        Self { address, shared }
    }

    pub fn cut(&self, cut: bool) {
        self.shared.cut.store(cut, Ordering::SeqCst);
    }

    /// Datagrams to the master and to the mount that were lost in the cuts.
    pub fn dropped(&self) -> [u64; 2] {
        [0, 1].map(|way| self.shared.dropped[way].load(Ordering::SeqCst))
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.shared.ended.store(true, Ordering::SeqCst);
    }
}

/// UDP promises nothing: what cannot be received or sent is lost, as on a wire.
impl Shared {
    fn pass_to_master(&self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        while !self.ended.load(Ordering::SeqCst) {
            let Ok((len, from)) = self.front.recv_from(&mut buffer) else { continue };
            *self.mount.lock() = Some(from);
            if self.cut.load(Ordering::SeqCst) {
                self.dropped[0].fetch_add(1, Ordering::SeqCst);
            } else {
                let _ = self.back.send(&buffer[..len]);
            }
        }
    }

    fn pass_to_mount(&self) {
        let mut buffer = vec![0; MAX_DATAGRAM];
        while !self.ended.load(Ordering::SeqCst) {
            let Ok(len) = self.back.recv(&mut buffer) else { continue };
            let mount = *self.mount.lock();
            if self.cut.load(Ordering::SeqCst) {
                self.dropped[1].fetch_add(1, Ordering::SeqCst);
            } else if let Some(mount) = mount {
                let _ = self.front.send_to(&buffer[..len], mount);
            }
        }
    }
}
