//! Envelope of all probes: one layout, and one authenticator over it.
//!
//! | bytes | content |
//! |---|---|
//! | 0 | [`PROBE_FIRST_BYTE`] |
//! | 1 | version in the high half, kind in the low half |
//! | 2 | flags |
//! | 3..11 | tag |
//! | 11..19 | data |
//! | 19..37 | address |
//! | 37..53 | HMAC-SHA256 over bytes 0..37, its first half |
//!
//! The kind tells the meaning of tag, data and address. A field without a meaning is zero.

use crate::wire::mac::{MAC_LEN, MacKey};

/// First byte of a probe. RFC 9443 §2 leaves 4..=15 unused by STUN, ZRTP, DTLS, TURN, RTP and QUIC.
pub const PROBE_FIRST_BYTE: u8 = 0x0a;
/// Bytes of every probe.
pub const PROBE_LEN: usize = COVERED_LEN + MAC_LEN;

/// Bytes of a probe before its authenticator.
const COVERED_LEN: usize = 37;
const VERSION: u8 = 1;

/// Returns true if a datagram that begins with `first` is a probe and not QUIC.
pub fn is_probe(first: u8) -> bool {
    (4..=15).contains(&first)
}

/// Kind of a probe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Challenge of a session, see [`probe`](crate::wire::probe).
    Challenge,
    /// Response to a challenge.
    Response,
    /// Request to an observer, see [`observer`](crate::nat::observer).
    Observe,
    /// Datagram of a filtering test, see [`filtering`](crate::nat::filtering).
    Filter,
    /// Request to an observer for a delayed reply, see
    /// [`binding_lifetime`](crate::nat::binding_lifetime).
    Hold,
    /// Reply to such a request.
    Held,
    /// Request to an observer for early packets, see [`early_packets`](crate::nat::early_packets).
    Provoke,
}

impl Kind {
    /// Returns the version and the kind as a byte.
    fn byte(self) -> u8 {
        let kind = match self {
            Self::Challenge => 1,
            Self::Response => 2,
            Self::Observe => 3,
            Self::Filter => 4,
            Self::Hold => 5,
            Self::Held => 6,
            Self::Provoke => 7,
        };
        VERSION << 4 | kind
    }

    fn of(byte: u8) -> Option<Self> {
        let all = [
            Self::Challenge,
            Self::Response,
            Self::Observe,
            Self::Filter,
            Self::Hold,
            Self::Held,
            Self::Provoke,
        ];
        all.into_iter().find(|kind| kind.byte() == byte)
    }
}

/// Contents of a probe. See the [module](self).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Envelope {
    pub(crate) kind: Kind,
    pub(crate) flags: u8,
    pub(crate) tag: [u8; 8],
    pub(crate) data: [u8; 8],
    pub(crate) address: [u8; 18],
}

impl Envelope {
    /// Probe without flags and address.
    pub(crate) fn new(kind: Kind, tag: [u8; 8], data: [u8; 8]) -> Self {
        Self { kind, flags: 0, tag, data, address: [0; 18] }
    }

    /// Returns the datagram to send.
    pub(crate) fn seal(&self, key: &MacKey) -> [u8; PROBE_LEN] {
        let mut out = [0; PROBE_LEN];
        let (covered, authenticator) = out.split_at_mut(COVERED_LEN);
        covered[..3].copy_from_slice(&[PROBE_FIRST_BYTE, self.kind.byte(), self.flags]);
        covered[3..11].copy_from_slice(&self.tag);
        covered[11..19].copy_from_slice(&self.data);
        covered[19..].copy_from_slice(&self.address);
        authenticator.copy_from_slice(&key.authenticate(covered));
        out
    }

    /// Returns true if the fields of flags and address have no meaning, as with a probe of
    /// [`new`](Self::new).
    pub(crate) fn is_plain(&self) -> bool {
        self.flags == 0 && self.address == [0; 18]
    }
}

/// A datagram that has the layout of a probe, and may be authentic.
#[derive(Debug)]
pub(crate) struct SealedProbe<'a> {
    /// The contents that the datagram claims.
    pub(crate) claimed: Envelope,
    covered: &'a [u8; COVERED_LEN],
    authenticator: &'a [u8; MAC_LEN],
}

impl<'a> SealedProbe<'a> {
    /// Cuts a datagram into its fields. Returns `None` if it is no probe of this version.
    pub(crate) fn parse(datagram: &'a [u8]) -> Option<Self> {
        let (covered, authenticator) = datagram.split_first_chunk::<COVERED_LEN>()?;
        let authenticator = authenticator.try_into().ok()?;
        let ([first, kind, flags], rest) = covered.split_first_chunk()?;
        let (tag, rest) = rest.split_first_chunk()?;
        let (data, address) = rest.split_first_chunk()?;
        let kind = Kind::of(*kind).filter(|_| *first == PROBE_FIRST_BYTE)?;
        let claimed =
            Envelope { kind, flags: *flags, tag: *tag, data: *data, address: address.try_into().ok()? };
        Some(Self { claimed, covered, authenticator })
    }

    /// Returns true if the holder of `key` has made the datagram.
    pub(crate) fn is_authentic(&self, key: &MacKey) -> bool {
        key.verify(self.covered, self.authenticator)
    }
}
