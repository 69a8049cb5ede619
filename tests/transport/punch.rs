//! Dials in the role of the listener.

use super::support::*;

#[tokio::test]
async fn a_punch_as_the_listener_ends_in_one_connection() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(b_id));
    let punch = a.dial(b_address.clone(), AS_LISTENER).unwrap();
    assert!(matches!(
        a.dial(b_address, AS_LISTENER),
        Err(TransportError::Other(Error::HolePunchInProgress(_)))
    ));
    let dial = b.dial(a_address, PLAIN).unwrap();
    let (a_events, b_events) = (next(&mut a), next(&mut b));
    let both = Box::pin(future::try_join(punch, dial));
    let events = Box::pin(future::select(Box::pin(a_events), Box::pin(b_events)));
    let ((at_a, mut a_end), (at_b, mut b_end)) = match future::select(both, events).await {
        Either::Left((connected, _)) => connected.unwrap(),
        Either::Right(_) => panic!("the punch must take the connection"),
    };
    assert_eq!((at_a, at_b), (b_id, a_id));
    echo(&mut a_end, &mut b_end).await;
    echo(&mut b_end, &mut a_end).await;
}

#[tokio::test]
async fn a_punch_refuses_another_peer_from_the_same_address() {
    let ((a_id, mut a), (b_id, mut b)) = (new(), new());
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let other = PeerId::random();
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(other));
    let punch = a.dial(b_address, AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    drive(a);
    drive(b);
    let (punched, _) = future::join(punch, dial).await;
    match punched {
        Err(Error::WrongPeerId { expected, got }) => {
            assert_eq!((expected, got), (other, Some(Box::new(b_id))))
        }
        punched => panic!("{punched:?}"),
    }
}

#[tokio::test]
async fn a_punch_that_nobody_answers_ends_and_can_be_tried_again() {
    let mut config = Config::default();
    config.quic.handshake_timeout = Duration::from_secs(1);
    let mut a = Transport::new(&Keypair::generate_ed25519(), config).unwrap();
    let nobody: Multiaddr = format!("/ip4/127.0.0.1/udp/9/quic-v1/p2p/{}", PeerId::random()).parse().unwrap();
    let without_listener = a.dial(nobody.clone(), AS_LISTENER);
    assert!(matches!(without_listener, Err(TransportError::Other(Error::NoActiveListenerForDialAsListener))));
    listen(&mut a, V4).await;
    for _ in 0..2 {
        let error = a.dial(nobody.clone(), AS_LISTENER).unwrap().await.unwrap_err();
        assert!(matches!(error, Error::HandshakeTimedOut), "{error:?}");
    }
}

#[tokio::test]
async fn a_stock_peer_is_punched_for_and_dials_as_ever() {
    let (a, b) = (Keypair::generate_ed25519(), Keypair::generate_ed25519());
    let (a_id, b_id) = (a.public().to_peer_id(), b.public().to_peer_id());
    let (mut a, mut b) = (boxed(&a), stock(&b));
    let a_address = listen(&mut a, V4).await.with(Protocol::P2p(a_id));
    let b_address = listen(&mut b, V4).await.with(Protocol::P2p(b_id));
    let punch = a.dial(b_address, AS_LISTENER).unwrap();
    let dial = b.dial(a_address, PLAIN).unwrap();
    let both = Box::pin(future::try_join(punch, dial));
    let events = Box::pin(future::select(Box::pin(next(&mut a)), Box::pin(next(&mut b))));
    match future::select(both, events).await {
        Either::Left((connected, _)) => {
            let ((at_a, _), (at_b, _)) = connected.unwrap();
            assert_eq!((at_a, at_b), (b_id, a_id));
        }
        Either::Right(_) => panic!("the punch must take the connection"),
    }
}
