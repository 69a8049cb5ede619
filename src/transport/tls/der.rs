//! Minimal DER reader for an X.509 certificate that was checked before.
//!
//! `libp2p_tls::certificate::parse` checks a certificate once, at the price of two signatures, and
//! does not expose its key. This reader finds the key that signs the handshake and the host key,
//! without any cryptography. Its results are valid only for a certificate that was checked in full
//! before.

use libp2p_identity::PublicKey;

const INTEGER: u8 = 0x02;
const OCTET_STRING: u8 = 0x04;
const OBJECT_IDENTIFIER: u8 = 0x06;
const SEQUENCE: u8 = 0x30;
/// `[0] EXPLICIT`, the version of a certificate.
const VERSION: u8 = 0xa0;
/// `[3] EXPLICIT`, the extensions of a certificate.
const EXTENSIONS: u8 = 0xa3;

/// 1.3.6.1.4.1.53594.1.1, the libp2p public key extension (libp2p TLS specification).
const LIBP2P_EXTENSION: [u8; 10] = [0x2b, 0x06, 0x01, 0x04, 0x01, 0x83, 0xa2, 0x5a, 0x01, 0x01];

/// Content of a libp2p certificate.
#[derive(Debug)]
pub(super) struct Certificate<'a> {
    /// SubjectPublicKeyInfo of the key that signs the handshake, with tag and length.
    pub(super) spki: &'a [u8],
    /// The libp2p host key.
    pub(super) host_key: PublicKey,
}

/// Reads a certificate (RFC 5280 §4.1) that was checked before. `None` if it cannot be read, or
/// something follows it, which the check does not mind.
pub(super) fn certificate(der: &[u8]) -> Option<Certificate<'_>> {
    let (certificate, _) = expect(der, SEQUENCE).filter(|(_, rest)| rest.is_empty())?;
    let (mut tbs, _) = expect(certificate.content, SEQUENCE)?;
    let mut spki: &[u8] = &[];
    // Serial number, signature algorithm, issuer, validity, subject, key; the version before them
    // is optional.
    if let Some((_, rest)) = expect(tbs.content, VERSION) {
        tbs.content = rest;
    }
    for tag in [INTEGER, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE, SEQUENCE] {
        let (element, rest) = expect(tbs.content, tag)?;
        spki = element.whole;
        tbs.content = rest;
    }
    let mut rest = tbs.content;
    while let Some((element, after)) = element(rest) {
        if element.tag == EXTENSIONS {
            let (list, _) = expect(element.content, SEQUENCE)?;
            return Some(Certificate { spki, host_key: host_key(list.content)? });
        }
        rest = after;
    }
    None
}

/// The host key in the libp2p extension: `SignedKey ::= SEQUENCE { publicKey OCTET STRING,
/// signature OCTET STRING }`.
fn host_key(mut extensions: &[u8]) -> Option<PublicKey> {
    while let Some((extension, rest)) = expect(extensions, SEQUENCE) {
        let (oid, mut fields) = expect(extension.content, OBJECT_IDENTIFIER)?;
        if oid.content == LIBP2P_EXTENSION {
            // `critical BOOLEAN DEFAULT FALSE` may stand before the value.
            loop {
                let (field, after) = element(fields)?;
                if field.tag == OCTET_STRING {
                    let (signed_key, _) = expect(field.content, SEQUENCE)?;
                    let (key, _) = expect(signed_key.content, OCTET_STRING)?;
                    return PublicKey::try_decode_protobuf(key.content).ok();
                }
                fields = after;
            }
        }
        extensions = rest;
    }
    None
}

struct Element<'a> {
    tag: u8,
    content: &'a [u8],
    whole: &'a [u8],
}

fn expect(input: &[u8], tag: u8) -> Option<(Element<'_>, &[u8])> {
    element(input).filter(|(element, _)| element.tag == tag)
}

/// Returns the first element and the rest. Lengths are definite and at most four bytes long.
fn element(input: &[u8]) -> Option<(Element<'_>, &[u8])> {
    let (&tag, rest) = input.split_first()?;
    let (&first, rest) = rest.split_first()?;
    let (length, rest) = match first {
        0..=0x7f => (usize::from(first), rest),
        0x81..=0x84 => {
            let (bytes, rest) = rest.split_at_checked(usize::from(first & 0x7f))?;
            (bytes.iter().fold(0, |length, byte| length << 8 | usize::from(*byte)), rest)
        }
        _ => return None,
    };
    let (content, rest) = rest.split_at_checked(length)?;
    let (whole, _) = input.split_at_checked(input.len() - rest.len())?;
    Some((Element { tag, content, whole }, rest))
}

#[cfg(test)]
mod tests {
    use libp2p_identity::Keypair;

    use super::*;

    #[test]
    fn the_host_key_is_the_one_that_the_full_check_finds() {
        for keypair in [Keypair::generate_ed25519(), Keypair::generate_secp256k1(), Keypair::generate_ecdsa()]
        {
            let (der, _) = libp2p_tls::certificate::generate(&keypair).unwrap();
            let read = certificate(&der).unwrap();
            assert_eq!(read.host_key, keypair.public());
            assert_eq!(read.host_key.to_peer_id(), libp2p_tls::certificate::parse(&der).unwrap().peer_id());
            // An uncompressed P-256 key: SEQUENCE of 89 bytes in all.
            assert_eq!((read.spki.first(), read.spki.len()), (Some(&SEQUENCE), 91));
        }
    }

    #[test]
    fn every_cut_of_a_certificate_is_refused() {
        let (der, _) = libp2p_tls::certificate::generate(&Keypair::generate_ed25519()).unwrap();
        for end in 0..der.len() {
            assert!(certificate(&der[..end]).is_none(), "{end}");
        }
    }

    #[test]
    fn lengths_beyond_the_input_are_refused() {
        for der in [
            &[0x30, 0x80][..],
            &[0x30, 0x84, 0xff, 0xff, 0xff, 0xff],
            &[0x30, 0x85, 0, 0, 0, 0, 0],
            &[0x30, 0x05, 0],
        ] {
            assert!(certificate(der).is_none());
        }
    }
}
