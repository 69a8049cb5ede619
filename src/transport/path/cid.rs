//! The connection IDs that the session endpoint issues.
//!
//! They carry a keyed tag. The tag lets the path layer distinguish packets of sessions from packets
//! of plain connections by the destination connection ID alone, without asking quinn and without a
//! table of IDs.

use std::cell::Cell;

use hmac::{Hmac, Mac};
use quinn::{ConnectionId, ConnectionIdGenerator};
use quinn_proto::InvalidCid;
use sha2::Sha256;

use libp2p_punch_proto::VirtualConnectionId;

/// Length of every connection ID that the session endpoint issues, in bytes.
pub(super) const CID_LEN: usize = 8;
/// Leading random bytes; the rest is the tag. 32 bits of each: room for 10,000 sessions with
/// several IDs each, and one in four billion foreign IDs matches by chance.
const NONCE_LEN: usize = 4;

/// A connection ID of the session endpoint.
pub(super) type Cid = [u8; CID_LEN];

/// The key beneath the tags.
#[derive(Clone)]
pub(super) struct CidKey(Hmac<Sha256>);

impl CidKey {
    /// The same secret recognises the same IDs, also after a restart.
    pub(super) fn new(secret: &[u8; 32]) -> Option<Self> {
        // HMAC takes keys of any length, so this is always `Some`; the type of the constructor does
        // not show that.
        Hmac::new_from_slice(secret).ok().map(Self)
    }

    /// A fresh connection ID.
    fn issue(&self) -> Cid {
        let nonce: [u8; NONCE_LEN] = rand::random();
        let mut cid = [0; CID_LEN];
        let (head, tail) = cid.split_at_mut(NONCE_LEN);
        head.copy_from_slice(&nonce);
        tail.copy_from_slice(&self.tag(&nonce));
        cid
    }

    /// Returns true if `cid` bears our tag.
    pub(super) fn issued(&self, cid: &[u8]) -> bool {
        cid.len() == CID_LEN
            && cid.split_at_checked(NONCE_LEN).is_some_and(|(nonce, tag)| tag == self.tag(nonce).as_slice())
    }

    fn tag(&self, nonce: &[u8]) -> [u8; CID_LEN - NONCE_LEN] {
        let mut mac = self.0.clone();
        mac.update(nonce);
        let [a, b, c, d, ..] = <[u8; 32]>::from(mac.finalize().into_bytes());
        [a, b, c, d]
    }
}

/// Generator of the session endpoint's connection IDs.
pub(super) struct SessionCids(pub(super) CidKey);

impl ConnectionIdGenerator for SessionCids {
    fn generate_cid(&mut self) -> ConnectionId {
        let cid = self.0.issue();
        OPENING.with(|opening| {
            if let Some(current) = opening.get() {
                opening.set(Some(Opening { cid: Some(cid), ..current }));
            }
        });
        ConnectionId::new(&cid)
    }

    fn validate(&self, cid: &ConnectionId) -> Result<(), InvalidCid> {
        if self.0.issued(cid) { Ok(()) } else { Err(InvalidCid) }
    }

    fn cid_len(&self) -> usize {
        CID_LEN
    }

    fn cid_lifetime(&self) -> Option<std::time::Duration> {
        None
    }
}

/// The virtual connection whose connection quinn is creating on this thread right now.
#[derive(Clone, Copy)]
struct Opening {
    flow: VirtualConnectionId,
    cid: Option<Cid>,
}

thread_local! {
    // quinn creates a connection's ID and its poller inside `connect_with` and `accept_with`, on
    // the caller's thread, and gives neither the connection. The thread of the call identifies the
    // connection.
    static OPENING: Cell<Option<Opening>> = const { Cell::new(None) };
}

/// Runs `open`, which creates the quinn connection of `flow`, and also returns the connection ID
/// that it was given.
pub(super) fn while_opening<T>(flow: VirtualConnectionId, open: impl FnOnce() -> T) -> (T, Option<Cid>) {
    /// Ends the scope also when `open` unwinds.
    struct Scope;
    impl Drop for Scope {
        fn drop(&mut self) {
            OPENING.with(|opening| opening.set(None));
        }
    }

    let _scope = Scope;
    OPENING.with(|opening| opening.set(Some(Opening { flow, cid: None })));
    let output = open();
    (output, OPENING.with(Cell::get).and_then(|opening| opening.cid))
}

/// The virtual connection that [`while_opening`] was called for on this thread, while it runs.
pub(super) fn opening() -> Option<VirtualConnectionId> {
    OPENING.with(Cell::get).map(|opening| opening.flow)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_issued_id_is_recognised_by_the_same_key_only() {
        let (ours, theirs) = (CidKey::new(&[1; 32]).unwrap(), CidKey::new(&[2; 32]).unwrap());
        let cid = ours.issue();
        assert!(ours.issued(&cid));
        assert!(CidKey::new(&[1; 32]).unwrap().issued(&cid));
        assert!(!theirs.issued(&cid));
    }

    #[test]
    fn a_changed_bit_or_length_is_not_recognised() {
        let key = CidKey::new(&[1; 32]).unwrap();
        let cid = key.issue();
        for bit in 0..64 {
            let mut other = cid;
            other[bit / 8] ^= 1 << (bit % 8);
            assert!(!key.issued(&other), "bit {bit}");
        }
        assert!(!key.issued(&cid[..7]));
        assert!(!key.issued(&[cid.as_slice(), &[0]].concat()));
        assert!(!key.issued(&[]));
    }

    #[test]
    fn the_id_made_while_a_flow_is_opened_is_told_apart_from_later_ones() {
        let mut cids = SessionCids(CidKey::new(&[1; 32]).unwrap());
        let (made, seen) = while_opening(VirtualConnectionId(5), || {
            assert_eq!(opening(), Some(VirtualConnectionId(5)));
            cids.generate_cid()
        });
        assert_eq!(seen.as_ref().map(<[u8; 8]>::as_slice), Some(&*made));
        assert_eq!(opening(), None);
        cids.generate_cid();
        assert_eq!(opening(), None);
    }
}
