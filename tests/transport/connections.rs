//! Listeners, dials, and admission.

use libp2p_identity::KeyType;

use super::support::*;

#[tokio::test]
async fn two_peers_connect_with_raw_keys_over_ipv4_and_ipv6() {
    for address in [V4, V6] {
        let ((a_id, mut a), (b_id, mut b)) = (new(), new());
        let address = listen(&mut a, address).await;
        let mut connected = connect(&mut a, &mut b, address.clone(), PLAIN).await;
        assert_eq!((connected.at_dialer.0, connected.at_listener.0), (a_id, b_id));
        assert_eq!(connected.local, address);
        for connection in [&connected.at_dialer.1, &connected.at_listener.1] {
            assert_eq!(connection.handshake_mode(), HandshakeMode::RawPublicKey);
        }
        echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    }
}

#[tokio::test]
async fn stock_peers_connect_in_both_directions_with_every_pair_of_kinds_of_keys() {
    for keypair in kinds(0) {
        for other in kinds(1) {
            for (mut listener, mut dialer) in
                [(boxed(&keypair), stock(&other)), (stock(&keypair), boxed(&other))]
            {
                let id = keypair.public().to_peer_id();
                let address = listen(&mut listener, V4).await.with(Protocol::P2p(id));
                let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
                assert_eq!(
                    (connected.at_dialer.0, connected.at_listener.0),
                    (id, other.public().to_peer_id())
                );
            }
        }
    }
}

#[tokio::test]
async fn peers_of_ours_connect_with_every_pair_of_kinds_of_keys() {
    for keypair in kinds(0) {
        for other in kinds(1) {
            let (mut a, mut b) = (ours(&keypair), ours(&other));
            let id = keypair.public().to_peer_id();
            let address = listen(&mut a, V4).await.with(Protocol::P2p(id));
            let mut connected = connect(&mut a, &mut b, address, PLAIN).await;
            assert_eq!((connected.at_dialer.0, connected.at_listener.0), (id, other.public().to_peer_id()));
            // A key that is not Ed25519 has no raw form, and takes a certificate on both sides.
            let is_raw = [&keypair, &other].iter().all(|key| key.key_type() == KeyType::Ed25519);
            let mode = if is_raw { HandshakeMode::RawPublicKey } else { HandshakeMode::X509 };
            for connection in [&connected.at_dialer.1, &connected.at_listener.1] {
                assert_eq!(connection.handshake_mode(), mode);
            }
            echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
        }
    }
}

#[tokio::test]
async fn a_wrong_peer_with_an_rsa_key_is_refused() {
    let [.., rsa] = kinds(0);
    let [.., other] = kinds(1);
    let (mut a, (_, mut b)) = (ours(&rsa), new());
    let expected = other.public().to_peer_id();
    let address = listen(&mut a, V4).await.with(Protocol::P2p(expected));
    let dial = b.dial(address, PLAIN).unwrap();
    let accepted = async {
        let (upgrade, _) = next(&mut a).await.into_incoming().unwrap();
        upgrade.await.map(|_| ())
    };
    let (dialed, accepted) = future::join(dial, accepted).await;
    accepted.unwrap_err();
    match dialed {
        Err(Error::WrongPeerId { expected: wanted, got }) => {
            assert_eq!((wanted, got), (expected, Some(Box::new(rsa.public().to_peer_id()))));
        }
        dialed => panic!("{dialed:?}"),
    }
}

#[tokio::test]
async fn a_wrong_peer_is_refused_within_the_handshake() {
    let ((a_id, mut a), (_, mut b)) = (new(), new());
    let other = PeerId::from(Keypair::generate_ed25519().public());
    let address = listen(&mut a, V4).await.with(Protocol::P2p(other));
    let dial = b.dial(address, PLAIN).unwrap();
    let accepted = async {
        let (upgrade, _) = next(&mut a).await.into_incoming().unwrap();
        upgrade.await
    };
    let (dialed, accepted) = future::join(dial, accepted).await;
    match dialed {
        Err(Error::WrongPeerId { expected, got }) => {
            assert_eq!((expected, got), (other, Some(Box::new(a_id))))
        }
        dialed => panic!("{dialed:?}"),
    }
    assert!(matches!(accepted, Err(Error::Connection(_))), "{accepted:?}");
}

#[tokio::test]
async fn addresses_of_others_fall_through_to_the_next_transport() {
    let keypair = Keypair::generate_ed25519();
    let mut transport = OrTransport::new(ours(&keypair), MemoryTransport::default());
    transport.listen_on(ListenerId::next(), "/memory/7741".parse().unwrap()).unwrap();
    drop(transport.dial("/memory/7741".parse().unwrap(), PLAIN).unwrap());
    let error = transport.dial("/ip4/127.0.0.1/tcp/1".parse().unwrap(), PLAIN).err().unwrap();
    assert!(matches!(error, TransportError::MultiaddrNotSupported(_)));
}

#[tokio::test]
async fn what_cannot_be_dialed_is_not_supported() {
    let (_, mut transport) = new();
    let peer = PeerId::random();
    for address in [
        "/ip4/127.0.0.1/udp/0/quic-v1",
        "/ip4/0.0.0.0/udp/1/quic-v1",
        "/ip6/::/udp/1/quic-v1",
        "/ip4/127.0.0.1/udp/1/quic",
        &format!("/p2p/{peer}"),
    ] {
        let error = transport.dial(address.parse().unwrap(), PLAIN).err().unwrap();
        assert!(matches!(error, TransportError::MultiaddrNotSupported(_)), "{address}: {error:?}");
    }
    let draft_29 = transport.listen_on(ListenerId::next(), "/ip4/127.0.0.1/udp/0/quic".parse().unwrap());
    assert!(matches!(draft_29, Err(TransportError::MultiaddrNotSupported(_))));
}

#[tokio::test]
async fn a_client_only_endpoint_does_not_answer() {
    let (mut a, (_, mut b)) = (with_default_time_outs(&Keypair::generate_ed25519()), new());
    let address = listen(&mut a, V4).await;
    let Connected { send_back, .. } = connect(&mut a, &mut b, address.clone(), PLAIN).await;
    let error = a.dial(send_back, PLAIN).unwrap().await.unwrap_err();
    assert_eq!(error.to_string(), "the handshake with the remote timed out");
    let b_address = listen(&mut b, V4).await;
    let Connected { send_back, .. } = connect(&mut b, &mut a, b_address, PLAIN).await;
    assert_eq!(send_back, address);
}

#[tokio::test]
async fn a_wildcard_listener_is_reused_and_knows_its_real_address() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    a.listen_on(ListenerId::next(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
    let a_address = address_where(&mut a, |first| *first == Protocol::Ip4(Ipv4Addr::LOCALHOST)).await;

    let b_address = listen(&mut b, V4).await;
    let Connected { send_back, .. } = connect(&mut b, &mut a, b_address.clone(), PLAIN).await;
    assert_eq!(send_back, a_address);

    let Connected { local, send_back, .. } = connect(&mut a, &mut b, a_address.clone(), PLAIN).await;
    assert_eq!((local, send_back), (a_address, b_address));
}

#[tokio::test]
async fn a_new_port_is_new_for_every_dial() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await;
    let b_address = listen(&mut b, V4).await;
    let first = connect(&mut b, &mut a, b_address.clone(), FRESH).await.send_back;
    let second = connect(&mut b, &mut a, b_address.clone(), FRESH).await.send_back;
    assert!(first != a_address && second != a_address && first != second, "{a_address} {first} {second}");
    // Without a listener that fits, dials share one port.
    let (_, mut c) = new();
    let first = connect(&mut b, &mut c, b_address.clone(), PLAIN).await;
    let second = connect(&mut b, &mut c, b_address.clone(), PLAIN).await;
    assert_eq!(first.send_back, second.send_back);
    assert_ne!(first.send_back, connect(&mut b, &mut c, b_address, FRESH).await.send_back);
}

#[tokio::test]
async fn ipv4_and_ipv6_listen_separately_on_one_port() {
    let (_, mut transport) = new();
    transport.listen_on(ListenerId::next(), "/ip4/0.0.0.0/udp/0/quic-v1".parse().unwrap()).unwrap();
    let v4 = address_where(&mut transport, |_| true).await;
    assert!(matches!(v4.iter().next(), Some(Protocol::Ip4(_))), "{v4}");
    let port = v4.iter().nth(1).unwrap();
    transport.listen_on(ListenerId::next(), format!("/ip6/::{port}/quic-v1").parse().unwrap()).unwrap();
    let v6 = address_where(&mut transport, |first| matches!(first, Protocol::Ip6(_))).await;
    assert_eq!(v6.iter().nth(1), Some(port));
}

#[tokio::test]
async fn connections_outlive_their_listener() {
    let ((_, mut a), mut b) = (new(), with_default_time_outs(&Keypair::generate_ed25519()));
    let id = ListenerId::next();
    a.listen_on(id, V4.parse().unwrap()).unwrap();
    let address = next(&mut a).await.into_new_address().unwrap();
    let mut connected = connect(&mut a, &mut b, address.clone(), PLAIN).await;

    assert!(a.remove_listener(id));
    assert!(!a.remove_listener(id));
    match next(&mut a).await {
        TransportEvent::ListenerClosed { listener_id, reason: Ok(()) } => assert_eq!(listener_id, id),
        event => panic!("{event:?}"),
    }
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    echo(&mut connected.at_listener.1, &mut connected.at_dialer.1).await;
    // No other peer is admitted.
    b.dial(address, PLAIN).unwrap().await.unwrap_err();
    assert!(next(&mut a).now_or_never().is_none());
}

#[tokio::test]
async fn a_dial_does_nothing_until_it_is_polled() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let dial = b.dial(address, PLAIN).unwrap();
    tokio::time::timeout(Duration::from_millis(200), next(&mut a)).await.err().unwrap();
    let (_, event) = future::join(dial, async {
        let (upgrade, _) = next(&mut a).await.into_incoming().unwrap();
        upgrade.await.unwrap()
    })
    .await;
    drop(event);
}

#[tokio::test]
async fn a_flood_of_handshakes_is_answered_with_retry_and_still_gets_through() {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let dials = future::join_all((0..80).map(|_| b.dial(address.clone(), PLAIN).unwrap()));
    let listener = async {
        // Upgrades that are never polled count as handshakes under way.
        let mut upgrades: Vec<Upgrade> = Vec::new();
        while upgrades.len() < 80 {
            upgrades.push(next(&mut a).await.into_incoming().unwrap().0);
        }
        upgrades
    };
    let (dialed, upgrades) = future::join(dials, listener).await;
    assert_eq!(dialed.iter().filter(|dialed| dialed.is_ok()).count(), 80);
    assert_eq!(upgrades.len(), 80);
}
