use std::net::{Ipv4Addr, Ipv6Addr};

use libp2p_identity::Keypair;
use proptest::{collection::vec, prelude::*};

use super::*;

fn peer(seed: u8) -> PeerId {
    Keypair::ed25519_from_bytes([seed; 32]).unwrap().public().to_peer_id()
}

fn address(text: &str) -> Multiaddr {
    text.parse().unwrap()
}

fn ticket() -> Ticket {
    let coordinator = address("/ip4/192.0.2.2/udp/4001/quic-v1").with(Protocol::P2p(peer(2)));
    Ticket::new(peer(1), [address("/ip4/192.0.2.1/udp/4001/quic-v1")], [coordinator]).unwrap()
}

/// Text of a ticket with this content and a right checksum.
fn sealed(content: &[u8]) -> String {
    let bytes = [content, &checksum(content)].concat();
    format!("{PREFIX}{}", BASE32_NOPAD_NOCASE.encode(&bytes))
}

fn error(text: &str) -> TicketError {
    text.parse::<Ticket>().unwrap_err()
}

fn any_address() -> impl Strategy<Value = Multiaddr> {
    let ip4 = any::<Ipv4Addr>().prop_map(Multiaddr::from);
    let ip6 = any::<Ipv6Addr>().prop_map(Multiaddr::from);
    (prop_oneof![ip4, ip6], any::<u16>())
        .prop_map(|(ip, port)| ip.with(Protocol::Udp(port)).with(Protocol::QuicV1))
}

fn any_ticket() -> impl Strategy<Value = Ticket> {
    let coordinator = (any_address(), any::<u8>());
    let coordinators = vec(coordinator, 0..=MAX_COORDINATORS);
    (any::<u8>(), vec(any_address(), 0..=MAX_ADDRESSES), coordinators).prop_map(|(seed, own, others)| {
        let others = others.into_iter().map(|(address, id)| address.with(Protocol::P2p(peer(id))));
        Ticket::new(peer(seed), own, others).unwrap()
    })
}

proptest! {
    #[test]
    fn each_ticket_comes_back_from_its_text(ticket in any_ticket()) {
        let text = ticket.to_string();
        prop_assert!(text.len() <= MAX_TEXT_LEN);
        prop_assert!(text.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit()));
        prop_assert_eq!(&text.parse::<Ticket>().unwrap(), &ticket);
        prop_assert_eq!(&text.to_ascii_uppercase().parse::<Ticket>().unwrap(), &ticket);
    }

    #[test]
    fn a_changed_character_is_found(ticket in any_ticket(), at in any::<prop::sample::Index>(), to in "[a-z2-7]") {
        let mut text = ticket.to_string();
        let at = at.index(text.len());
        prop_assume!(text[at..=at] != to);
        text.replace_range(at..=at, &to);
        prop_assert!(text.parse::<Ticket>().is_err());
    }

    #[test]
    fn a_missing_end_is_found(ticket in any_ticket(), at in any::<prop::sample::Index>()) {
        let text = ticket.to_string();
        prop_assert!(text[..at.index(text.len())].parse::<Ticket>().is_err());
    }

    #[test]
    fn hostile_text_never_panics(text in "(punch)?\\PC{0,200}") {
        if let Ok(ticket) = text.parse::<Ticket>() {
            prop_assert_eq!(ticket.to_string().parse::<Ticket>(), Ok(ticket));
        }
    }

    #[test]
    fn hostile_content_never_panics(content in vec(any::<u8>(), 0..200)) {
        let mut versioned = vec![VERSION];
        versioned.extend(content);
        if let Ok(ticket) = sealed(&versioned).parse::<Ticket>() {
            prop_assert_eq!(ticket.to_string().parse::<Ticket>(), Ok(ticket));
        }
    }
}

#[test]
fn whitespace_does_no_harm() {
    let text = ticket().to_string();
    let (head, tail) = text.split_at(40);
    assert_eq!(format!("  {head}\r\n\t{tail}\n").parse(), Ok(ticket()));
}

#[test]
fn the_layout_of_version_1_is_fixed() {
    let mut content = vec![1, 38];
    content.extend(peer(1).to_bytes());
    content.push(0);
    content.push(0);
    let bare = Ticket::new(peer(1), [], []).unwrap();
    assert_eq!(bare.to_string(), sealed(&content).to_ascii_lowercase());
    assert_eq!(bare.to_string().len(), 5 + 74);
}

#[test]
fn each_fault_has_its_error() {
    assert_eq!(error(""), TicketError::Prefix);
    assert_eq!(error("QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N"), TicketError::Prefix);
    assert_eq!(error("punc"), TicketError::Prefix);
    assert_eq!(error("puncé"), TicketError::Prefix);
    assert_eq!(error("punch"), TicketError::Truncated);
    assert_eq!(error("punchaeaq"), TicketError::Truncated);
    assert_eq!(error("punchae!q"), TicketError::Character { position: 8 });
    assert_eq!(error("punchaé"), TicketError::Character { position: 7 });
    let long = format!("punch{}", "a".repeat(MAX_TEXT_LEN));
    assert_eq!(error(&long), TicketError::TooLong { len: MAX_TEXT_LEN + 5 });
    assert_eq!(error(&sealed(&[2, 0])), TicketError::Version { version: 2 });

    let mut own = vec![VERSION, 38];
    own.extend(peer(1).to_bytes());
    assert_eq!(error(&sealed(&[&own[..], &[0, 0, 9, 9]].concat())), TicketError::TrailingBytes { len: 2 });
    let too_many = TicketError::TooMany { field: TicketField::Addresses, count: 17, max: 16 };
    assert_eq!(error(&sealed(&[&own[..], &[17]].concat())), too_many);
    let too_many = TicketError::TooMany { field: TicketField::Coordinators, count: 9, max: 8 };
    assert_eq!(error(&sealed(&[&own[..], &[0, 9]].concat())), too_many);
    for (content, of) in [
        (vec![VERSION, 3, 1, 2, 3], TicketField::Peer),
        (vec![VERSION, 200, 1, 1], TicketField::Peer),
        ([&own[..], &[1, 2, 0xff, 0xff]].concat(), TicketField::Addresses),
        ([&own[..], &[0, 1, 77]].concat(), TicketField::Coordinators),
    ] {
        let error = error(&sealed(&content));
        assert!(matches!(&error, TicketError::Malformed { field, .. } if *field == of), "{error}");
    }
}

#[test]
fn addresses_of_other_peers_and_nameless_coordinators_are_refused() {
    let own = address("/ip4/192.0.2.1/udp/4001/quic-v1");
    let named = own.clone().with(Protocol::P2p(peer(1)));
    let ticket = Ticket::new(peer(1), [named.clone()], []).unwrap();
    assert_eq!(ticket.addresses(), std::slice::from_ref(&own));
    let other = TicketError::OtherPeer { address: named.clone(), peer: peer(2) };
    assert_eq!(Ticket::new(peer(2), [named], []), Err(other));
    let nameless = TicketError::NoCoordinatorId { address: own.clone() };
    assert_eq!(Ticket::new(peer(1), [], [own]), Err(nameless));
}

#[test]
fn a_ticket_that_would_be_too_long_is_refused() {
    let name = "a".repeat(250);
    let long = address(&format!("/dns4/{name}.{name}.{name}/udp/4001/quic-v1"));
    let error = Ticket::new(peer(1), vec![long; 10], []).unwrap_err();
    assert!(matches!(error, TicketError::TooLong { len } if len > MAX_TEXT_LEN), "{error}");
}
