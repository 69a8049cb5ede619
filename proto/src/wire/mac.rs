//! Authenticators: HMAC-SHA256, its first half (RFC 2104 §5).

use hmac::{Hmac, Mac, digest::KeyInit};
use sha2::Sha256;

/// Bytes of one key: a block of SHA-256, so that HMAC takes it unchanged (RFC 2104 §3).
pub(crate) const BLOCK_LEN: usize = 64;
/// Bytes of one authenticator.
pub const MAC_LEN: usize = 16;

/// Key of the authenticators of one sender.
#[derive(Clone)]
pub(crate) struct MacKey(
    // Keyed once: an authenticator then costs two compressions and not four.
    Hmac<Sha256>,
);

impl MacKey {
    /// Key of 32 bytes, as offers and tests name it.
    pub(crate) fn new(key: &[u8; 32]) -> Self {
        let mut block = [0; BLOCK_LEN];
        block[..32].copy_from_slice(key);
        Self::of_block(&block)
    }

    /// Key of a whole block.
    pub(crate) fn of_block(block: &[u8; BLOCK_LEN]) -> Self {
        Self(<Hmac<Sha256> as KeyInit>::new(&(*block).into()))
    }

    /// Returns the authenticator of `covered`.
    pub(crate) fn authenticate(&self, covered: &[u8]) -> [u8; MAC_LEN] {
        let whole = self.derive(covered);
        let mut first = [0; MAC_LEN];
        first.copy_from_slice(&whole[..MAC_LEN]);
        first
    }

    /// Returns true if `authenticator` is that of `covered`, in constant time.
    pub(crate) fn verify(&self, covered: &[u8], authenticator: &[u8; MAC_LEN]) -> bool {
        self.0.clone().chain_update(covered).verify_truncated_left(authenticator).is_ok()
    }

    /// Returns a secret that follows from this key and `info`: the whole HMAC.
    pub(crate) fn derive(&self, info: &[u8]) -> [u8; 32] {
        self.0.clone().chain_update(info).finalize().into_bytes().into()
    }
}
