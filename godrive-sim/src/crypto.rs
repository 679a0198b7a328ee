//! TLS without the system's randomness: keys and nonces of the handshakes come from the seed, so that the bytes of every
//! datagram are the same each time. It matters where a packet is taken for another: whether what comes of it looks
//! valid depends on its ciphertext.

use parking_lot::Mutex;
use rand::rngs::SmallRng;
use rand::{RngCore, SeedableRng};
use rustls::crypto::{
    ActiveKeyExchange, CryptoProvider, GetRandomFailed, SecureRandom, SharedSecret, SupportedKxGroup,
};
use rustls::{Error, NamedGroup, PeerMisbehaved};
use std::sync::LazyLock;
use x25519_dalek::{PublicKey, StaticSecret};

static RANDOM: LazyLock<Mutex<SmallRng>> = LazyLock::new(|| Mutex::new(SmallRng::seed_from_u64(0)));

/// From now on this process's handshakes are a function of the seed, as long as nothing runs beside the simulation.
pub fn seed(seed: u64) {
    *RANDOM.lock() = SmallRng::seed_from_u64(seed);
    if CryptoProvider::get_default().is_none() {
        let provider = CryptoProvider {
            kx_groups: vec![&Seeded],
            secure_random: &Seeded,
            ..rustls::crypto::ring::default_provider()
        };
        // Another thread may have been quicker with the same.
        let _ = provider.install_default();
    }
}

#[derive(Debug)]
struct Seeded;

impl SecureRandom for Seeded {
    fn fill(&self, bytes: &mut [u8]) -> Result<(), GetRandomFailed> {
        RANDOM.lock().fill_bytes(bytes);
        Ok(())
    }
}

impl SupportedKxGroup for Seeded {
    fn start(&self) -> Result<Box<dyn ActiveKeyExchange>, Error> {
        let mut secret = [0; 32];
        RANDOM.lock().fill_bytes(&mut secret);
        let secret = StaticSecret::from(secret);
        Ok(Box::new(Exchange { public: PublicKey::from(&secret), secret }))
    }

    fn name(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}

struct Exchange {
    secret: StaticSecret,
    public: PublicKey,
}

impl ActiveKeyExchange for Exchange {
    fn complete(self: Box<Self>, peer: &[u8]) -> Result<SharedSecret, Error> {
        let peer: [u8; 32] = peer.try_into().map_err(|_| Error::from(PeerMisbehaved::InvalidKeyShare))?;
        Ok(SharedSecret::from(self.secret.diffie_hellman(&PublicKey::from(peer)).as_bytes().as_slice()))
    }

    fn pub_key(&self) -> &[u8] {
        self.public.as_bytes()
    }

    fn group(&self) -> NamedGroup {
        NamedGroup::X25519
    }
}
