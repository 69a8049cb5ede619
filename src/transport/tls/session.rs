//! A TLS session that exposes its cipher, which quinn does not.

use std::any::Any;

use quinn_proto::{
    ConnectionId, Side, TransportError,
    crypto::{self, ExportKeyingMaterialError, HeaderKey, KeyPair, Keys, PacketKey, Session},
    transport_parameters::TransportParameters,
};

/// Cipher of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Cipher {
    /// AES in Galois/Counter Mode, with 128 or 256 bits.
    AesGcm,
    /// ChaCha20-Poly1305.
    ChaCha20Poly1305,
}

impl Cipher {
    /// RFC 9001 §6.6: AES-GCM keys may protect 2^23 packets, and for ChaCha20-Poly1305 the limit is
    /// beyond what QUIC can count. So the limit identifies the cipher.
    fn of(key: &dyn PacketKey) -> Self {
        if key.confidentiality_limit() <= 1 << 32 { Self::AesGcm } else { Self::ChaCha20Poly1305 }
    }
}

/// Passes everything on, and takes a look at the keys.
pub(super) struct Watched {
    inner: Box<dyn Session>,
    /// Cipher of the last keys: of the handshake first, then of the connection. TLS uses one cipher
    /// for both.
    cipher: Option<Cipher>,
}

impl Watched {
    pub(super) fn boxed(inner: Box<dyn Session>) -> Box<dyn Session> {
        Box::new(Self { inner, cipher: None })
    }
}

impl Session for Watched {
    fn initial_keys(&self, dst_cid: &ConnectionId, side: Side) -> Keys {
        self.inner.initial_keys(dst_cid, side)
    }

    fn handshake_data(&self) -> Option<Box<dyn Any>> {
        // Only this crate reads the value, and the rest of the handshake data is known: the ALPN
        // follows from the identity's form, names are not sent.
        self.cipher.map(|cipher| Box::new(cipher) as Box<dyn Any>)
    }

    fn peer_identity(&self) -> Option<Box<dyn Any>> {
        self.inner.peer_identity()
    }

    fn early_crypto(&self) -> Option<(Box<dyn HeaderKey>, Box<dyn PacketKey>)> {
        self.inner.early_crypto()
    }

    fn early_data_accepted(&self) -> Option<bool> {
        self.inner.early_data_accepted()
    }

    fn is_handshaking(&self) -> bool {
        self.inner.is_handshaking()
    }

    fn read_handshake(&mut self, buf: &[u8]) -> Result<bool, TransportError> {
        self.inner.read_handshake(buf)
    }

    fn transport_parameters(&self) -> Result<Option<TransportParameters>, TransportError> {
        self.inner.transport_parameters()
    }

    fn write_handshake(&mut self, buf: &mut Vec<u8>) -> Option<Keys> {
        let keys = self.inner.write_handshake(buf)?;
        self.cipher = Some(Cipher::of(&*keys.packet.local));
        Some(keys)
    }

    fn next_1rtt_keys(&mut self) -> Option<KeyPair<Box<dyn PacketKey>>> {
        self.inner.next_1rtt_keys()
    }

    fn is_valid_retry(&self, orig_dst_cid: &ConnectionId, header: &[u8], payload: &[u8]) -> bool {
        self.inner.is_valid_retry(orig_dst_cid, header, payload)
    }

    fn export_keying_material(
        &self,
        output: &mut [u8],
        label: &[u8],
        context: &[u8],
    ) -> Result<(), ExportKeyingMaterialError> {
        crypto::Session::export_keying_material(&*self.inner, output, label, context)
    }
}
