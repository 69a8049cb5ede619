//! Beneath the wrappers that a `SwarmBuilder` puts around transports: names, and bandwidth metrics.

use futures::StreamExt;
use libp2p::{
    Swarm, SwarmBuilder, dns, metrics, ping,
    swarm::{NetworkBehaviour, SwarmEvent},
};

use super::support::*;

/// Without any name server: `localhost` is answered by the resolver itself (RFC 6761 §6.3), and
/// nothing else is asked for.
fn named(keypair: &Keypair) -> Muxers {
    dns::tokio::Transport::custom(ours(keypair), dns::ResolverConfig::default(), dns::ResolverOpts::default())
        .map(|(peer, connection), _| (peer, StreamMuxerBox::new(connection)))
        .boxed()
}

/// The same address by name.
fn by_name(address: &Multiaddr, name: &'static str) -> Multiaddr {
    let name = match name {
        "dns4" => Protocol::Dns4("localhost".into()),
        "dns6" => Protocol::Dns6("localhost".into()),
        _ => Protocol::Dns("localhost".into()),
    };
    std::iter::once(name).chain(address.iter().skip(1)).collect()
}

#[tokio::test]
async fn names_are_resolved_and_dialed() {
    for (at, kind) in [(V4, "dns4"), (V6, "dns6"), (V4, "dns")] {
        let [a_key, b_key] = [(); 2].map(|()| Keypair::generate_ed25519());
        let a_id = a_key.public().to_peer_id();
        let (mut a, mut b) = (boxed(&a_key), named(&b_key));
        let address = by_name(&listen(&mut a, at).await, kind).with(Protocol::P2p(a_id));
        let connected = connect(&mut a, &mut b, address, PLAIN).await;
        assert_eq!((connected.at_dialer.0, connected.at_listener.0), (a_id, b_key.public().to_peer_id()));
    }
}

#[tokio::test]
async fn a_name_pins_the_peer_and_leads_to_our_addresses_only() {
    let [a_key, b_key] = [(); 2].map(|()| Keypair::generate_ed25519());
    let (mut a, mut b) = (boxed(&a_key), named(&b_key));
    let address = by_name(&listen(&mut a, V4).await, "dns4");
    let wrong = PeerId::random();
    let dial = b.dial(address.with(Protocol::P2p(wrong)), PLAIN).unwrap();
    tokio::spawn(async move {
        let (upgrade, _) = a.select_next_some().await.into_incoming().unwrap();
        upgrade.await.map(|_| ()).unwrap_err();
    });
    let error = dial.await.unwrap_err().to_string();
    assert!(error.contains(&format!("expected peer {wrong}")), "{error}");

    let elsewhere = b.dial("/dns4/localhost/tcp/1".parse().unwrap(), PLAIN).unwrap();
    let error = elsewhere.await.unwrap_err().to_string();
    assert!(error.contains("Unsupported resolved address: /ip4/127.0.0.1/tcp/1"), "{error}");
}

#[tokio::test]
async fn a_listener_beneath_names_listens_and_lets_go() {
    let mut transport = named(&Keypair::generate_ed25519());
    let id = ListenerId::next();
    transport.listen_on(id, V4.parse().unwrap()).unwrap();
    let address = next(&mut transport).await.into_new_address().unwrap();
    let mut dialer = named(&Keypair::generate_ed25519());
    connect(&mut transport, &mut dialer, by_name(&address, "dns4"), PLAIN).await;
    assert!(transport.remove_listener(id));
    let closed = next(&mut transport).await;
    assert!(matches!(closed, TransportEvent::ListenerClosed { listener_id, .. } if listener_id == id));
}

/// Creates a swarm on the transport of `libp2p_punch::new`, in every wrapper of libp2p.
fn swarm(registry: &mut metrics::Registry) -> Swarm<Measured> {
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) = libp2p_punch::new(&keypair, Config::default()).unwrap();
    SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)
        .unwrap()
        .with_dns_config(dns::ResolverConfig::default(), dns::ResolverOpts::default())
        .with_bandwidth_metrics(registry)
        .with_behaviour(|_| Measured { punch, ping: ping::Behaviour::default() })
        .unwrap()
        .with_swarm_config(|config| config.with_idle_connection_timeout(PATIENCE))
        .with_connection_timeout(PATIENCE)
        .build()
}

#[derive(NetworkBehaviour)]
struct Measured {
    punch: libp2p_punch::Behaviour,
    ping: ping::Behaviour,
}

#[tokio::test]
async fn a_swarm_with_names_and_bandwidth_metrics_counts_what_it_says() {
    let mut registries = [(); 2].map(|()| metrics::Registry::default());
    let [mut a, mut b] = registries.each_mut().map(swarm);
    a.listen_on(V4.parse().unwrap()).unwrap();
    let address = loop {
        if let SwarmEvent::NewListenAddr { address, .. } = a.select_next_some().await {
            break by_name(&address, "dns4").with(Protocol::P2p(*a.local_peer_id()));
        }
    };
    b.dial(address).unwrap();
    let mut pinged = [false; 2];
    while pinged != [true; 2] {
        let (side, event) = tokio::select! {
            event = a.select_next_some() => (0, event),
            event = b.select_next_some() => (1, event),
        };
        if let SwarmEvent::Behaviour(MeasuredEvent::Ping(event)) = event {
            event.result.unwrap();
            pinged[side] = true;
        }
    }
    for registry in &registries {
        for direction in ["Inbound", "Outbound"] {
            // A ping is 32 bytes, there and back.
            assert!(bytes(registry, direction) >= 64, "{direction}");
        }
    }
}

/// Returns the sum of the bandwidth metrics over all protocols.
fn bytes(registry: &metrics::Registry, direction: &str) -> u64 {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).unwrap();
    let wanted = format!("direction=\"{direction}\"");
    let lines = text
        .lines()
        .filter(|line| line.starts_with("libp2p_bandwidth_bytes_total") && line.contains(&wanted));
    lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok()).sum()
}
