//! Entry points of the fuzz targets: one function for each parser of bytes from the network.
//!
//! Each function takes any bytes, and must neither panic nor violate its assertions. The targets
//! under `fuzz/` feed new bytes; the tests here replay `fuzz/corpus`. The module is behind the
//! feature `fuzzing`, and no part of the crate's stable interface.

use bytes::BytesMut;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;

use crate::transport::addr;
pub use crate::transport::{fuzz_certificate as certificates, fuzz_datagrams as datagrams};
use libp2p_punch_proto::{
    SessionId,
    event::SessionRole,
    wire::{
        frame::{self, Frame},
        keys::{ProbeKeys, ProbeSecret},
        probe::{self, Probe},
    },
};

/// Frames of a control stream, one after the other. A decoded frame can be encoded, and decodes to
/// the same frame.
pub fn frames(bytes: &[u8]) {
    let mut stream = BytesMut::from(bytes);
    while let Ok(Some(decoded)) = frame::decode(&mut stream) {
        match &decoded {
            // The result of the verification does not matter here, but the verification must not
            // panic.
            Frame::PunchMeNow(punch) => drop(punch.verify()),
            Frame::Register { registration, .. } => drop(registration.verify(&PeerId::random(), &[])),
            _ => {}
        }
        let mut written = BytesMut::new();
        frame::encode(&decoded, &mut written);
        assert_eq!(frame::decode(&mut written), Ok(Some(decoded)));
        assert!(written.is_empty());
    }
}

/// A probe. An authentic probe equals our own encoding.
pub fn probes(bytes: &[u8]) {
    let secret = ProbeSecret::new([7; 32]);
    let theirs = ProbeSecret::new([8; 32]).public();
    let peers = [identity(1), identity(2)];
    let role = SessionRole::Initiator;
    let Ok(keys) = ProbeKeys::derive(&secret, &theirs, SessionId([1; 16]), &peers[0], &peers[1], role) else {
        return;
    };
    let _ = probe::tag_of(bytes);
    if let Ok(read) = Probe::decode(bytes, &keys) {
        assert_eq!(bytes.len(), read.encode(&keys).len());
    }
    libp2p_punch_proto::fuzz_requests(bytes);
}

/// A peer that is the same in every run.
fn identity(seed: u8) -> PeerId {
    let hash = libp2p_core::multihash::Multihash::wrap(0, &[seed; 4]);
    hash.ok().and_then(|hash| PeerId::from_multihash(hash).ok()).unwrap_or_else(PeerId::random)
}

/// A multiaddr, binary or as text. An address of this transport is the same after a round trip.
pub fn addresses(bytes: &[u8]) {
    let text = std::str::from_utf8(bytes).ok().and_then(|text| text.parse::<Multiaddr>().ok());
    for address in [Multiaddr::try_from(bytes.to_vec()).ok(), text].into_iter().flatten() {
        if let Some((socket, peer)) = addr::to_socket(&address) {
            assert_eq!(addr::to_socket(&addr::from_socket(socket)), Some((socket, None)));
            assert_eq!(crate::config::peer_of(&address), peer);
            let can_be_dialed = socket.port() != 0 && !socket.ip().is_unspecified();
            assert_eq!(addr::is_remote(socket), can_be_dialed);
            assert_eq!(addr::to_zoned(&address), None);
        }
        if let Some((zone, socket, peer)) = addr::to_zoned(&address) {
            let rest = addr::from_socket(socket.into());
            let again: Multiaddr =
                std::iter::once(Protocol::Ip6zone(zone.into())).chain(rest.iter()).collect();
            assert_eq!(addr::to_zoned(&again).map(|(_, socket, _)| socket), Some(socket));
            assert_eq!(crate::config::peer_of(&address), peer);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{fs, path::Path};

    /// Runs a target on every file of its corpus.
    fn replay(target: &str, run: fn(&[u8])) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(target);
        let mut count = 0;
        for entry in fs::read_dir(folder).unwrap() {
            run(&fs::read(entry.unwrap().path()).unwrap());
            count += 1;
        }
        assert!(count >= 5, "{target} has a corpus of {count}");
    }

    #[test]
    fn the_corpora_of_all_fuzz_targets_still_pass() {
        replay("frames", super::frames);
        replay("probes", super::probes);
        replay("certificates", super::certificates);
        replay("addresses", super::addresses);
        replay("datagrams", super::datagrams);
    }

    #[test]
    fn seeds_that_are_authentic_are_taken_for_that() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus/probes");
        for seed in ["observe", "provoke", "hold", "held", "filter"] {
            assert!(libp2p_punch_proto::fuzz_requests(&fs::read(folder.join(seed)).unwrap()), "{seed}");
        }
    }
}
