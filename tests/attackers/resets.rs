//! Stateless resets that a sibling socket gives away (RFC 9000 §21.11).

use crate::support::*;

const SERVER: [u8; 4] = [203, 0, 113, 2];
const CID_LEN: usize = 8;

/// Fields of a packet with a short header that its path can see.
struct Seen {
    cid: [u8; CID_LEN],
    sender: SocketAddr,
}

/// The last packet with a short header that reached `at`.
fn last_short_header(world: &World, at: SocketAddr) -> Arc<Mutex<Option<Seen>>> {
    let seen: Arc<Mutex<Option<Seen>>> = Arc::default();
    let copy = seen.clone();
    world.tap(move |packet| {
        if packet.record.reached == at && packet.payload[0] & 0xc0 == 0x40 {
            let cid = packet.payload[1..=CID_LEN].try_into().unwrap();
            *copy.lock().unwrap() = Some(Seen { cid, sender: packet.record.seen_from });
        }
    });
    seen
}

fn packet_of(cid: [u8; CID_LEN]) -> Vec<u8> {
    [&[0x41], cid.as_slice(), &[7; 60]].concat()
}

#[tokio::test(start_paused = true)]
async fn a_sibling_socket_tells_no_reset_token_of_a_live_connection() {
    let world = World::new(1);
    let [server, client, attacker] = [2, 3, 66].map(|last| world.public_host([203, 0, 113, last]));
    world.attach(&server, "2001:db8::2".parse::<IpAddr>().unwrap());
    world.attach(&attacker, "2001:db8::66".parse::<IpAddr>().unwrap());
    let sockets = [
        "/ip4/203.0.113.2/udp/4001/quic-v1",
        "/ip4/203.0.113.2/udp/4002/quic-v1",
        "/ip6/2001:db8::2/udp/4001/quic-v1",
    ];
    serve(transport(server, 2, QuicConfig::default()), &sockets);
    let seen = last_short_header(&world, (SERVER, 4001).into());
    let mut dialer = transport(client, 3, QuicConfig::default());
    let (_, mut connection) = dialer.dial(sockets[0].parse().unwrap(), FRESH).unwrap().await.unwrap();
    tokio::time::sleep(Duration::from_secs(2)).await;

    // An observer of the connection's packets sends its ID to the other sockets, and forwards their
    // answers as from the right socket.
    let Seen { cid, sender } = seen.lock().unwrap().take().unwrap();
    let siblings: [SocketAddr; 2] = [(SERVER, 4002).into(), "[2001:db8::2]:4001".parse().unwrap()];
    let mut resets = 0;
    for sibling in siblings {
        let any: SocketAddr = if sibling.is_ipv4() { ([0; 4], 9).into() } else { ([0; 16], 9).into() };
        let socket = attacker.socket(any).unwrap();
        socket.send_to(sibling, &packet_of(cid));
        let answer = tokio::time::timeout(Duration::from_secs(2), socket.receive()).await;
        if let Ok(reset) = answer {
            resets += 1;
            attacker.send_forged((SERVER, 4001).into(), sender, &reset.payload);
        }
    }
    tokio::time::sleep(Duration::from_secs(2)).await;
    let ended = poll_fn(|cx| connection.poll_inbound_unpin(cx)).now_or_never();
    println!("resets that siblings gave away: {resets} of {}; ended: {}", siblings.len(), ended.is_some());
    assert_eq!(resets, 0);
    assert!(ended.is_none(), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn a_restarted_server_still_resets_the_connections_of_its_port() {
    let world = World::new(1);
    let [server, client] = [2, 3].map(|last| world.public_host([203, 0, 113, last]));
    let address = "/ip4/203.0.113.2/udp/4001/quic-v1";
    let start = || {
        let mut listener = transport(server.clone(), 2, QuicConfig::default());
        listener.listen_on(ListenerId::next(), address.parse().unwrap()).unwrap();
        listener
    };
    let accept = |mut listener: Transport| async move {
        loop {
            if let Some((upgrade, _)) = next(&mut listener).await.into_incoming() {
                return (listener, upgrade.await.unwrap());
            }
        }
    };
    let mut dialer = transport(client, 3, QuicConfig::default());
    let dial = dialer.dial(address.parse().unwrap(), FRESH).unwrap();
    let ((listener, accepted), dialed) = futures::future::join(accept(start()), dial).await;
    let (_, mut connection) = dialed.unwrap();
    tokio::time::sleep(Duration::from_secs(1)).await;

    // The server dies without a word.
    world.set_link(&server, Link { loss: 1.0, ..Link::default() });
    drop((listener, accepted));
    tokio::time::sleep(Duration::from_secs(1)).await;
    world.set_link(&server, Link::with_latency(Duration::from_millis(10)));
    let _restarted = start();
    let mut stream = poll_fn(|cx| connection.poll_outbound_unpin(cx)).await.unwrap();
    futures::AsyncWriteExt::write_all(&mut stream, &[7; 100]).await.unwrap();
    let ended =
        tokio::time::timeout(Duration::from_secs(1), poll_fn(|cx| connection.poll_inbound_unpin(cx))).await;
    let error = ended.unwrap().unwrap_err().to_string();
    assert!(error.contains("reset"), "{error}");
}
