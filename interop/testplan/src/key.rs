//! Identity keys of every type that libp2p knows.

use std::fmt;

use anyhow::Context;
use clap::ValueEnum;
use libp2p::identity::Keypair;
use serde::{Deserialize, Serialize};

/// An RSA key for tests only: libp2p-identity cannot generate one.
const RSA: &[u8] = include_bytes!("../keys/rsa-2048.pk8");
/// Length of the header before the PKCS#1 structure (RFC 5208 §5): two sequences, a version, the
/// algorithm and a string's head.
const PKCS8_HEADER: usize = 26;

/// A type of identity key.
#[derive(
    Debug, Clone, Copy, Default, PartialEq, Eq, Hash, PartialOrd, Ord, ValueEnum, Serialize, Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum KeyType {
    /// Ed25519, what nearly everybody uses.
    #[default]
    Ed25519,
    /// ECDSA over the curve secp256k1.
    Secp256k1,
    /// ECDSA over the curve P-256.
    Ecdsa,
    /// RSA with 2,048 bits.
    Rsa,
}

impl KeyType {
    /// All types.
    pub const ALL: [Self; 4] = [Self::Ed25519, Self::Secp256k1, Self::Ecdsa, Self::Rsa];

    /// The key in libp2p's protobuf, which other implementations read from a file.
    ///
    /// # Errors
    ///
    /// If it cannot be encoded.
    pub fn protobuf(self, keypair: &Keypair) -> anyhow::Result<Vec<u8>> {
        if self != Self::Rsa {
            return Ok(keypair.to_protobuf_encoding()?);
        }
        // Not supported by libp2p-identity: type 0, and the PKCS#1 structure that PKCS#8 wraps for
        // 2,048 bits.
        let key = RSA.get(PKCS8_HEADER..).context("the RSA key")?;
        let length = u16::try_from(key.len())?;
        let varint = [(length & 0x7f) as u8 | 0x80, (length >> 7) as u8];
        Ok([&[0x08, 0, 0x12], &varint[..], key].concat())
    }

    /// A fresh key; the RSA key is always the same.
    ///
    /// # Errors
    ///
    /// If the RSA key cannot be read.
    pub fn keypair(self) -> anyhow::Result<Keypair> {
        Ok(match self {
            Self::Ed25519 => Keypair::generate_ed25519(),
            Self::Secp256k1 => Keypair::generate_secp256k1(),
            Self::Ecdsa => Keypair::generate_ecdsa(),
            Self::Rsa => Keypair::rsa_from_pkcs8(&mut RSA.to_vec()).context("the RSA key")?,
        })
    }
}

impl fmt::Display for KeyType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ed25519 => "ed25519",
            Self::Secp256k1 => "secp256k1",
            Self::Ecdsa => "ecdsa",
            Self::Rsa => "rsa",
        })
    }
}

#[cfg(test)]
mod tests {
    use libp2p::identity;

    use super::*;

    #[test]
    fn every_type_makes_a_key_of_that_type() {
        let made = KeyType::ALL.map(|kind| kind.keypair().unwrap().key_type());
        let wanted = [
            identity::KeyType::Ed25519,
            identity::KeyType::Secp256k1,
            identity::KeyType::Ecdsa,
            identity::KeyType::RSA,
        ];
        assert_eq!(made, wanted);
    }
}
