//! Traversal offers: the addresses by which a swarm dials a peer through a traversal.
//!
//! A swarm dials addresses, and no address of a peer behind a NAT is known before the traversal. So
//! the behaviour offers an address for each dial of a peer that a coordinator may know, and the
//! transport begins a session for it. The transport does so only while the offer is open, and once:
//! an address of this form from another source, such as the request for an AutoNAT dial-back,
//! punches no hole.
//!
//! The form is `/ip6/IDENTIFIER/udp/NUMBER/quic-v1/p2p/PEER`. The identifier is an ORCHIDv2 (RFC
//! 7343), which names the peer and which no network routes. The number names the dial. Metrics and
//! dial rankers so see a QUIC address.

use std::{
    collections::{BTreeMap, VecDeque},
    net::{Ipv6Addr, SocketAddr},
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    task::{Context, Poll, Waker},
};

use futures::task::AtomicWaker;
use libp2p_core::{Multiaddr, multiaddr::Protocol};
use libp2p_identity::PeerId;
use sha2::{Digest, Sha256};

/// 2001:20::/28.
const PREFIX: u128 = 0x2001_0020 << 96;
const PREFIX_MASK: u128 = 0xffff_fff0 << 96;
/// The context of the hash (RFC 7343 §2).
const CONTEXT: &[u8] = b"libp2p-punch peer";

/// A dial of the swarm that a traversal may answer.
#[derive(Debug)]
pub(crate) struct Offer {
    peer: PeerId,
    number: u16,
    is_taken: AtomicBool,
    /// Addresses of the peer itself were found.
    is_located: AtomicBool,
    /// Asks the connection of the dial to report its real address once more.
    repeats: AtomicBool,
    waker: AtomicWaker,
}

impl Offer {
    pub(crate) fn peer(&self) -> PeerId {
        self.peer
    }

    /// Names the dial among those of its peer.
    pub(crate) fn number(&self) -> u16 {
        self.number
    }

    pub(crate) fn address(&self) -> Multiaddr {
        Multiaddr::empty()
            .with(Protocol::Ip6(identifier(&self.peer)))
            .with(Protocol::Udp(self.number))
            .with(Protocol::QuicV1)
            .with(Protocol::P2p(self.peer))
    }

    /// Makes the connection of this dial report its real address once more, since a behaviour may
    /// have stored the offered address.
    pub(crate) fn repeat_address(&self) {
        self.repeats.store(true, Relaxed);
        self.waker.wake();
    }

    pub(crate) fn poll_repeat(&self, cx: &Context<'_>) -> Poll<()> {
        self.waker.register(cx.waker());
        if self.repeats.swap(false, Relaxed) { Poll::Ready(()) } else { Poll::Pending }
    }
}

/// The open offers. The behaviour opens and closes them, the transport takes them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Offers(Arc<Mutex<Open>>);

#[derive(Debug, Default)]
struct Open {
    last: u16,
    offers: BTreeMap<(PeerId, u16), Arc<Offer>>,
    /// Offers whose peer was found, with its addresses, for the transport.
    located: VecDeque<(Arc<Offer>, Vec<SocketAddr>)>,
    /// Task of the transport.
    waker: Option<Waker>,
}

impl Offers {
    /// Opens an offer for a dial of `peer`. `None` if the peer has as many as there are numbers.
    pub(crate) fn open(&self, peer: PeerId) -> Option<Arc<Offer>> {
        let mut open = self.lock();
        let after = open.last;
        let numbers = (after.checked_add(1)?..=u16::MAX).chain(1..=after);
        let number = numbers.into_iter().find(|number| !open.offers.contains_key(&(peer, *number)))?;
        open.last = number % u16::MAX;
        let offer = Arc::new(Offer {
            peer,
            number,
            is_taken: AtomicBool::new(false),
            is_located: AtomicBool::new(false),
            repeats: AtomicBool::new(false),
            waker: AtomicWaker::new(),
        });
        open.offers.insert((peer, number), offer.clone());
        Some(offer)
    }

    /// The dial has ended.
    pub(crate) fn close(&self, offer: &Offer) {
        self.lock().offers.remove(&(offer.peer, offer.number));
    }

    /// Takes the open offer of this address. An offer can be taken once.
    pub(crate) fn take(&self, address: &Multiaddr) -> Option<Arc<Offer>> {
        let key = parse(address)?;
        let offer = self.lock().offers.get(&key).cloned()?;
        (!offer.is_taken.swap(true, Relaxed)).then_some(offer)
    }

    /// The peer itself was found at these addresses: the transport dials them for the offer. The
    /// first addresses of an offer count.
    pub(crate) fn locate(&self, offer: &Arc<Offer>, addresses: Vec<SocketAddr>) {
        if !offer.is_located.swap(true, Relaxed) {
            let mut open = self.lock();
            open.located.push_back((offer.clone(), addresses));
            open.waker.take().into_iter().for_each(Waker::wake);
        }
    }

    /// Returns the next offer whose peer was found, and its addresses.
    pub(crate) fn poll_located(&self, cx: &Context<'_>) -> Poll<(Arc<Offer>, Vec<SocketAddr>)> {
        let mut open = self.lock();
        open.waker = Some(cx.waker().clone());
        open.located.pop_front().map_or(Poll::Pending, Poll::Ready)
    }

    pub(crate) fn is_open(&self, offer: &Offer) -> bool {
        self.lock().offers.contains_key(&(offer.peer, offer.number))
    }

    /// Returns true if a dial of `peer` has an open offer.
    pub(crate) fn has_any_of(&self, peer: PeerId) -> bool {
        self.lock().offers.range((peer, 0)..=(peer, u16::MAX)).next().is_some()
    }

    fn lock(&self) -> MutexGuard<'_, Open> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns true for an address of the form of an offer, whatever its origin.
pub(crate) fn is_offer(address: &Multiaddr) -> bool {
    matches!(address.iter().next(), Some(Protocol::Ip6(ip)) if ip.to_bits() & PREFIX_MASK == PREFIX)
}

fn parse(address: &Multiaddr) -> Option<(PeerId, u16)> {
    let mut parts = address.iter();
    let Protocol::Ip6(ip) = parts.next()? else { return None };
    let Protocol::Udp(number) = parts.next()? else { return None };
    let Protocol::QuicV1 = parts.next()? else { return None };
    let Protocol::P2p(peer) = parts.next()? else { return None };
    (parts.next().is_none() && ip == identifier(&peer)).then_some((peer, number))
}

fn identifier(peer: &PeerId) -> Ipv6Addr {
    let digest = Sha256::new().chain_update(CONTEXT).chain_update(peer.to_bytes()).finalize();
    let low = digest.iter().take(16).fold(0u128, |bits, byte| bits << 8 | u128::from(*byte));
    Ipv6Addr::from_bits(PREFIX | low & !PREFIX_MASK)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_offer_is_taken_once_and_only_while_it_is_open() {
        let (offers, peer) = (Offers::default(), PeerId::random());
        let offer = offers.open(peer).unwrap();
        assert!(
            is_offer(&offer.address()) && offers.has_any_of(peer) && !offers.has_any_of(PeerId::random())
        );
        assert_eq!(offers.take(&offer.address()).map(|taken| taken.number()), Some(offer.number()));
        assert!(offers.take(&offer.address()).is_none(), "twice");
        let second = offers.open(peer).unwrap();
        assert_ne!(second.address(), offer.address());
        offers.close(&second);
        assert!(offers.take(&second.address()).is_none(), "closed");
        assert!(offers.is_open(&offer) && !offers.is_open(&second));
    }

    #[test]
    fn addresses_of_others_are_no_offers() {
        let (offers, peer) = (Offers::default(), PeerId::random());
        let offer = offers.open(peer).unwrap();
        let bare: Multiaddr = offer.address().iter().take(3).collect();
        let other = bare.clone().with(Protocol::P2p(PeerId::random()));
        let circuit = offer.address().with(Protocol::P2pCircuit);
        for address in [bare, other, circuit, Multiaddr::empty().with(Protocol::P2p(peer))] {
            assert!(offers.take(&address).is_none(), "{address}");
        }
        assert!(!is_offer(&"/ip6/2001:db8::1/udp/1/quic-v1".parse().unwrap()));
        assert!(offers.take(&offer.address()).is_some());
    }

    #[test]
    fn numbers_are_used_again_once_they_are_free() {
        let (offers, peer) = (Offers::default(), PeerId::random());
        let all: Vec<_> = std::iter::from_fn(|| offers.open(peer)).collect();
        assert_eq!(all.len(), usize::from(u16::MAX));
        let freed = &all[77];
        offers.close(freed);
        assert_eq!(offers.open(peer).unwrap().number(), freed.number());
    }
}
