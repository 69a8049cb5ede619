//! What does not work, and whose fault it is.

use interop_testplan::{features::Feature, key::KeyType};

use crate::matrix::{Check, Direction};

/// A failure that is known.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Expected {
    peer: &'static str,
    /// `None` stands for both.
    direction: Option<Direction>,
    check: Check,
    /// Whether it only fails at times, so that a success is none to wonder at.
    pub(crate) sometimes: bool,
    /// Whose fault it is.
    pub(crate) whose: &'static str,
    /// What the fault is.
    pub(crate) what: &'static str,
}

/// All of them.
const EXPECTED: &[Expected] = &[
    Expected {
        peer: "go",
        direction: None,
        check: Check::Feature(Feature::HalfClose),
        sometimes: false,
        whose: "go-libp2p-daemon",
        what: "when one half of a stream ends, it closes both; go-libp2p itself does not",
    },
    Expected {
        peer: "py",
        direction: None,
        check: Check::Ipv6,
        sometimes: false,
        whose: "py-libp2p",
        what: "its QUIC transport opens IPv4 sockets only",
    },
    Expected {
        peer: "py",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        whose: "py-libp2p",
        what: "it does not know ECDSA identities in certificates",
    },
    Expected {
        peer: "py",
        direction: Some(Direction::WeDial),
        check: Check::Feature(Feature::CloseByDialer),
        sometimes: true,
        whose: "py-libp2p",
        what: "at times it reports a connection that was closed as gone after 10 s or never, to stock rust-libp2p as well",
    },
    Expected {
        peer: "js",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        whose: "js-libp2p",
        what: "its QUIC refuses ECDSA identities in certificates, those of stock rust-libp2p as well",
    },
    Expected {
        peer: "litep2p",
        direction: None,
        check: Check::OurKey(KeyType::Secp256k1),
        sometimes: false,
        whose: "litep2p",
        what: "it does not know identities of this type in certificates",
    },
    Expected {
        peer: "litep2p",
        direction: None,
        check: Check::OurKey(KeyType::Ecdsa),
        sometimes: false,
        whose: "litep2p",
        what: "it does not know identities of this type in certificates",
    },
    Expected {
        peer: "litep2p",
        direction: Some(Direction::WeDial),
        check: Check::Feature(Feature::CloseByListener),
        sometimes: true,
        whose: "litep2p",
        what: "at times it tells the other side of a connection that it closes late or never, stock rust-libp2p neither",
    },
    Expected {
        peer: "litep2p",
        direction: Some(Direction::TheyDial),
        check: Check::Feature(Feature::CloseByDialer),
        sometimes: true,
        whose: "litep2p, or our peer program on it",
        what: "at times it tells the other side of a connection that it closes late or never; not tried with stock rust-libp2p",
    },
];

/// What a check that failed once is worth after the second attempt. It shows in the output and in the JSON file.
pub(crate) fn second_attempt(first: &str, second: Result<String, String>) -> Result<String, String> {
    second.map(|detail| format!("{detail} (at the second attempt; at the first: {first})"))
}

/// The known failure of a check, if there is one.
pub(crate) fn find(peer: &str, direction: Direction, check: Check) -> Option<&'static Expected> {
    let same = |expected: &&Expected| {
        let direction = expected.direction.is_none_or(|of| of == direction);
        expected.peer == peer && expected.check == check && direction
    };
    EXPECTED.iter().find(same)
}
