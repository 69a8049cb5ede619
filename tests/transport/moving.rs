//! Our address changes under a running connection, on the simulated network.

use std::{net::IpAddr, sync::Arc};

use futures::StreamExt;
use libp2p_core::muxing::StreamMuxerEvent;
use libp2p_punch::transport::{StatsEvent, Stream};
use libp2p_punch_sim::{Host, Link, World};
use quinn::crypto::rustls::QuicServerConfig;
use tokio::time::Instant;

use super::support::*;

const RTT: Duration = Duration::from_millis(40);
/// Time until a server has validated a client's new address and sent a packet without a
/// PATH_CHALLENGE: a round trip and a half, and QUIC's delay of acknowledgements.
const VALIDATION: Duration = Duration::from_millis(3 * 40 / 2 + 25 + 5);
/// Bytes of a transfer, and of one message of it.
const TRANSFER: usize = 2_000_000;
const RATE: u64 = 1_000_000;

type Hosts = (Arc<Host>, Arc<Host>);

/// Two public hosts, 10 ms from the core each, at 8 Mbit/s.
fn hosts() -> Hosts {
    let world = World::new(1);
    let host = |last| {
        let host = world.public_host([203, 0, 113, last]);
        world.set_link(&host, Link { rate: Some(RATE), ..Link::with_latency(RTT / 4) });
        host
    };
    (host(1), host(2))
}

fn transport(host: &Arc<Host>) -> Transport {
    let keypair = Keypair::generate_ed25519();
    Transport::with_io(&keypair, Config::default(), host.clone(), libp2p_punch::io::Runtime::tokio()).unwrap()
}

fn any(port: u16) -> String {
    format!("/ip4/0.0.0.0/udp/{port}/quic-v1")
}

/// A connection from the first to the second host, and both transports, which must be driven.
async fn pair(hosts: &Hosts, listen_at: Option<&str>) -> (Transport, Transport, Connected<Connection>) {
    let (mut dialer, mut listener) = (transport(&hosts.0), transport(&hosts.1));
    if let Some(address) = listen_at {
        listen(&mut dialer, address).await;
    }
    let address = listen(&mut listener, &any(4001)).await;
    let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
    (dialer, listener, connected)
}

async fn open(from: &mut Connection, to: &mut Connection) -> (Stream, Stream) {
    let mut outbound = poll_fn(|cx| from.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(&[0]).await.unwrap();
    let mut inbound = poll_fn(|cx| to.poll_inbound_unpin(cx)).await.unwrap();
    inbound.read_exact(&mut [1]).await.unwrap();
    (outbound, inbound)
}

/// Sends a transfer, calls `change` when half of it has arrived, and returns the longest gap
/// between two reads after that.
async fn transfer(mut from: Stream, mut to: Stream, change: impl FnOnce()) -> Duration {
    let data: Vec<u8> = (0..TRANSFER).map(|i| (i / 7) as u8).collect();
    let expected = data.clone();
    let sender = tokio::spawn(async move {
        from.write_all(&data).await.unwrap();
        from.close().await.unwrap();
        from
    });
    let (mut received, mut change, mut longest) = (Vec::new(), Some(change), Duration::ZERO);
    let mut buffer = vec![0; 65_536];
    let mut last = Instant::now();
    loop {
        let read = to.read(&mut buffer).await.unwrap();
        if change.is_none() {
            longest = longest.max(last.elapsed());
        }
        last = Instant::now();
        if read == 0 {
            break;
        }
        received.extend_from_slice(&buffer[..read]);
        if received.len() > TRANSFER / 2
            && let Some(change) = change.take()
        {
            change();
        }
    }
    assert!(received == expected, "bytes were lost");
    sender.await.unwrap();
    longest
}

/// Up to two round trips: one packet on its way in vain, and the path's validation. The congestion
/// window starts again.
const STALL: Duration = Duration::from_millis(2 * 40 + 10);

#[tokio::test(start_paused = true)]
async fn a_dialed_connection_moves_with_our_address_and_loses_nothing_it_sends() {
    let hosts = hosts();
    let (dialer, listener, mut connected) = pair(&hosts, None).await;
    let stats = listener.stats();
    let mut events = stats.events().unwrap();
    drive(dialer);
    drive(listener);
    let (from, to) = open(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
    let stall = transfer(from, to, || hosts.0.renumber([203, 0, 113, 1], [203, 0, 113, 9])).await;
    assert!(stall <= STALL, "{stall:?}");

    // The swarm and the listeners to the events get the peer's new address.
    let mut at_listener = connected.at_listener.1;
    match poll_fn(|cx| at_listener.poll_unpin(cx)).await.unwrap() {
        StreamMuxerEvent::AddressChange(address) => {
            assert!(address.to_string().starts_with("/ip4/203.0.113.9/"), "{address}")
        }
    }
    let moved = events.next().await.unwrap();
    assert!(matches!(&moved, StatsEvent::Moved(stats) if stats.peer == connected.at_listener.0), "{moved:?}");
    assert_eq!(stats.connections().len(), 1);
}

#[tokio::test(start_paused = true)]
async fn a_dialed_connection_moves_with_our_address_and_loses_nothing_it_receives() {
    let hosts = hosts();
    let (dialer, listener, mut connected) = pair(&hosts, None).await;
    drive(dialer);
    drive(listener);
    let (from, to) = open(&mut connected.at_listener.1, &mut connected.at_dialer.1).await;
    let sender = &connected.at_listener.1;
    let mut rtt = Duration::ZERO;
    let stall = transfer(from, to, || {
        rtt = sender.stats().rtt;
        hosts.0.renumber([203, 0, 113, 1], [203, 0, 113, 9]);
    })
    .await;
    // The packets that the server had sent are lost; from the PING it learns the new address. The
    // path's queue is full, which adds to the RTT.
    assert!(stall <= 2 * rtt, "{stall:?} at an RTT of {rtt:?}");
}

#[tokio::test(start_paused = true)]
async fn a_dialed_connection_that_is_idle_tells_its_server_which_believes_it_once_it_has_answered() {
    let hosts = hosts();
    let (dialer, listener, mut connected) = pair(&hosts, None).await;
    drive(dialer);
    drive(listener);
    hosts.0.renumber([203, 0, 113, 1], [203, 0, 113, 9]);
    tokio::time::sleep(VALIDATION).await;
    let address = connected.at_listener.1.stats().remote.unwrap();
    assert!(address.to_string().starts_with("/ip4/203.0.113.9/"), "{address}");
    // And it is still there when those are given up that were not followed.
    tokio::time::sleep(Duration::from_secs(20)).await;
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;
}

#[tokio::test(start_paused = true)]
async fn a_listener_of_one_address_expires_and_comes_back_and_its_connections_live_on() {
    let hosts = hosts();
    let old = [203, 0, 113, 1];
    let (mut dialer, listener, mut connected) = pair(&hosts, Some("/ip4/203.0.113.1/udp/4001/quic-v1")).await;
    drive(listener);
    assert_eq!(connected.send_back.to_string(), "/ip4/203.0.113.1/udp/4001/quic-v1");
    hosts.0.renumber(old, [203, 0, 113, 9]);
    match next(&mut dialer).await {
        TransportEvent::AddressExpired { listen_addr, .. } => assert_eq!(listen_addr, connected.send_back),
        event => panic!("{event:?}"),
    }
    tokio::time::sleep(VALIDATION).await;
    let address = connected.at_listener.1.stats().remote.unwrap();
    assert!(address.to_string().starts_with("/ip4/203.0.113.9/"), "{address}");
    echo(&mut connected.at_dialer.1, &mut connected.at_listener.1).await;

    hosts.0.interface_down([203, 0, 113, 9]);
    hosts.0.interface_up(old);
    match next(&mut dialer).await {
        TransportEvent::NewAddress { listen_addr, .. } => assert_eq!(listen_addr, connected.send_back),
        event => panic!("{event:?}"),
    }
    tokio::time::sleep(VALIDATION).await;
    assert_eq!(connected.at_listener.1.stats().remote, Some(connected.send_back));
    echo(&mut connected.at_listener.1, &mut connected.at_dialer.1).await;
}

#[tokio::test(start_paused = true)]
async fn a_wildcard_listener_follows_addresses_of_its_family_up_and_down() {
    let world = World::new(1);
    for (number, any, [old, new]) in
        [(1, "/ip4/0.0.0.0", ["203.0.113.1", "203.0.113.9"]), (2, "/ip6/::", ["2001:db8::1", "2001:db8::9"])]
    {
        let host = world.host();
        // Addresses of both families, to see which of them is followed.
        world.attach(&host, [192, 0, 2, number]);
        world.attach(&host, [0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)]);
        let [old, new] = [old, new].map(|address| address.parse::<IpAddr>().unwrap());
        let address = |ip: IpAddr| Multiaddr::from(ip).with(Protocol::Udp(4001)).with(Protocol::QuicV1);
        let mut transport = transport(&host);
        listen(&mut transport, &format!("{any}/udp/4001/quic-v1")).await;
        world.attach(&host, old);
        assert_eq!(next(&mut transport).await.into_new_address(), Some(address(old)));
        host.renumber(old, new);
        match next(&mut transport).await {
            TransportEvent::AddressExpired { listen_addr, .. } => assert_eq!(listen_addr, address(old)),
            event => panic!("{event:?}"),
        }
        assert_eq!(next(&mut transport).await.into_new_address(), Some(address(new)));
        assert!(next(&mut transport).now_or_never().is_none());
    }
}

#[tokio::test(start_paused = true)]
async fn a_connection_whose_server_moved_is_closed_there_at_once_and_dialed_again() {
    let hosts = hosts();
    let (dialer, mut listener, mut connected) = pair(&hosts, None).await;
    drive(dialer);
    let old = connected.at_dialer.1.stats().connection;
    hosts.1.renumber([203, 0, 113, 2], [203, 0, 113, 8]);
    assert!(matches!(next(&mut listener).await, TransportEvent::AddressExpired { .. }));
    let new = next(&mut listener).await.into_new_address().unwrap();
    let before = Instant::now();
    poll_fn(|cx| connected.at_listener.1.poll_inbound_unpin(cx)).await.unwrap_err();
    assert!(before.elapsed() < Duration::from_secs(1));
    drop(connected.at_listener);

    let mut dialer = transport(&hosts.0);
    let mut again = connect(&mut listener, &mut dialer, new, PLAIN).await;
    assert_eq!(listener.stats().connections().len(), 1);
    echo(&mut again.at_dialer.1, &mut again.at_listener.1).await;
    assert_ne!(old, again.at_dialer.1.stats().connection, "no two connections of a process have one number");
}

/// A server that does not let its clients migrate, as stock libp2p-quic.
fn stubborn_server(host: &Host) -> quinn::Endpoint {
    use libp2p_punch::io::Network;
    let identity = Keypair::generate_ed25519();
    let tls = QuicServerConfig::try_from(libp2p_tls::make_server_config(&identity).unwrap()).unwrap();
    let mut config = quinn::ServerConfig::with_crypto(Arc::new(tls));
    config.migration(false);
    let socket = host.bind(([0, 0, 0, 0], 4001).into()).unwrap().into_inner();
    let runtime = Arc::new(quinn::TokioRuntime);
    quinn::Endpoint::new_with_abstract_socket(quinn::EndpointConfig::default(), Some(config), socket, runtime)
        .unwrap()
}

#[tokio::test(start_paused = true)]
async fn a_server_that_does_not_follow_is_given_up_within_a_second() {
    let hosts = hosts();
    let server = stubborn_server(&hosts.1);
    let (served, mut accepted) = futures::channel::mpsc::unbounded();
    tokio::spawn(async move {
        while let Some(incoming) = server.accept().await {
            served.unbounded_send(incoming.await.unwrap()).unwrap();
        }
    });
    let mut dialer = transport(&hosts.0);
    let address: Multiaddr = "/ip4/203.0.113.2/udp/4001/quic-v1".parse().unwrap();
    let (_, mut connection) = dialer.dial(address.clone(), PLAIN).unwrap().await.unwrap();
    let again = dialer.dial(address, PLAIN).unwrap();
    drive(dialer);
    // Late acknowledgements of the handshake come first.
    tokio::time::sleep(Duration::from_secs(1)).await;
    hosts.0.renumber([203, 0, 113, 1], [203, 0, 113, 9]);
    let before = Instant::now();
    poll_fn(|cx| connection.poll_inbound_unpin(cx)).await.unwrap_err();
    assert!(before.elapsed() <= Duration::from_secs(1), "{:?}", before.elapsed());
    again.await.unwrap();
    let remotes =
        [accepted.next().await, accepted.next().await].map(|served| served.unwrap().remote_address().ip());
    assert_eq!(remotes.map(|ip| ip.to_string()), ["203.0.113.1", "203.0.113.9"]);
}
