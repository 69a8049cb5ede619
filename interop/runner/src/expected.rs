//! Known failures of the other implementations.

use interop_testplan::{features::Feature, key::KeyType};

use crate::{
    check::{Check, Direction},
    peer::Peer,
};

/// A known failure.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct KnownFailure {
    peer: &'static str,
    /// `None` means both.
    direction: Option<Direction>,
    check: Check,
    /// The check fails only at times, so that a success is no surprise.
    pub(crate) sometimes: bool,
    /// Implementation that has the fault.
    pub(crate) implementation: &'static str,
    /// Description of the fault.
    pub(crate) description: &'static str,
}

const KUBO_HALF_CLOSE: &str =
    "closes both halves of a mounted stream when one half ends; go-libp2p itself does not";

/// Without its ping, 30 of 30 closes of its listener were seen at once; with it 2 of 15 by us, 0 of
/// 15 by rust-libp2p.
const LITEP2P_CLOSE: &str = "drops a QUIC connection to close it; quinn reports that only when \
    the last stream is dropped, and the ping of litep2p keeps a stream; the same with stock \
    rust-libp2p";

/// All known failures.
const KNOWN_FAILURES: &[KnownFailure] = &[
    KnownFailure {
        peer: "go",
        direction: None,
        check: Check::Feature(Feature::HalfClose),
        sometimes: false,
        implementation: "go-libp2p-daemon",
        description: "closes both halves of a stream when one half ends; go-libp2p itself does not",
    },
    KnownFailure {
        peer: "kubo",
        direction: None,
        check: Check::Feature(Feature::HalfClose),
        sometimes: false,
        implementation: "Kubo",
        description: KUBO_HALF_CLOSE,
    },
    KnownFailure {
        peer: "kubo-current",
        direction: None,
        check: Check::Feature(Feature::HalfClose),
        sometimes: false,
        implementation: "Kubo",
        description: KUBO_HALF_CLOSE,
    },
    KnownFailure {
        peer: "py",
        direction: None,
        check: Check::Ipv6,
        sometimes: false,
        implementation: "py-libp2p",
        description: "QUIC transport opens IPv4 sockets only",
    },
    KnownFailure {
        peer: "py",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        implementation: "py-libp2p",
        description: "does not support ECDSA identities in certificates",
    },
    // In 3 of 25 runs with us, in 4 of 22 with stock rust-libp2p.
    KnownFailure {
        peer: "py",
        direction: Some(Direction::TheyDial),
        check: Check::Feature(Feature::Identify),
        sometimes: true,
        implementation: "py-libp2p",
        description: "at times loses an answer that arrives together with the end of its stream, \
            and does not ask again; the same with stock rust-libp2p",
    },
    KnownFailure {
        peer: "py",
        direction: Some(Direction::WeDial),
        check: Check::Feature(Feature::CloseByDialer),
        sometimes: true,
        implementation: "py-libp2p",
        description: "at times reports a closed connection after 10 s or never; the same with \
            stock rust-libp2p",
    },
    KnownFailure {
        peer: "js",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        implementation: "js-libp2p",
        description: "QUIC refuses ECDSA identities in certificates, those of stock rust-libp2p \
            too",
    },
    KnownFailure {
        peer: "litep2p",
        direction: None,
        check: Check::OurKey(KeyType::Secp256k1),
        sometimes: false,
        implementation: "litep2p",
        description: "does not support identities of this type in certificates",
    },
    KnownFailure {
        peer: "litep2p",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        implementation: "litep2p",
        description: "does not support identities of this type in certificates",
    },
    KnownFailure {
        peer: "litep2p",
        direction: Some(Direction::WeDial),
        check: Check::Feature(Feature::CloseByListener),
        sometimes: true,
        implementation: "litep2p",
        description: LITEP2P_CLOSE,
    },
    KnownFailure {
        peer: "litep2p",
        direction: Some(Direction::TheyDial),
        check: Check::Feature(Feature::CloseByDialer),
        sometimes: true,
        implementation: "litep2p",
        description: LITEP2P_CLOSE,
    },
];

/// Returns the reason why a check is not tried.
pub(crate) fn untried(peer: &Peer, direction: Direction, check: Check) -> Option<&'static str> {
    let is_kubo = peer.name == "kubo" && direction == Direction::TheyDial;
    match check {
        Check::Feature(Feature::Ping) if is_kubo => Some(
            "Kubo as a library has no call for its ping; in the other rows the bytes of a ping go \
                through a mounted stream",
        ),
        Check::TheirKey(key) if !peer.keys.contains(&key) => Some("has no identities of this type"),
        Check::Wire if direction == Direction::TheyDial => Some("only our handshake as the client is read"),
        Check::WireRawKey => Some("does not support raw keys"),
        Check::TransportUnified | Check::TransportLegacy | Check::PerfUnified
            if !peer.has_contract_programs =>
        {
            Some("ships without the programs of the official suites")
        }
        _ => None,
    }
}

/// Result of a check after a failed first attempt. The output and the JSON file show both attempts.
pub(crate) fn second_attempt(first: &str, second: Result<String, String>) -> Result<String, String> {
    second.map(|detail| format!("{detail} (at the second attempt; at the first: {first})"))
}

/// Returns the known failure of a check, if there is one.
pub(crate) fn find(peer: &str, direction: Direction, check: Check) -> Option<&'static KnownFailure> {
    let same = |expected: &&KnownFailure| {
        let direction = expected.direction.is_none_or(|of| of == direction);
        expected.peer == peer && expected.check == check && direction
    };
    KNOWN_FAILURES.iter().find(same)
}
