//! quinn runs on the simulated sockets, with and without offload.

use std::{io, net::SocketAddr, sync::Arc};

use crate::support::ms;
use libp2p_identity::Keypair;
use libp2p_punch::io::Network;
use libp2p_punch_sim::{Host, Link, Nat, SocketConfig, Verdict, World};
use quinn::{
    AsyncUdpSocket, ClientConfig, Endpoint, EndpointConfig, ServerConfig, TokioRuntime,
    crypto::rustls::{QuicClientConfig, QuicServerConfig},
    udp::{RecvMeta, Transmit},
};
use tokio::time::Instant;

fn endpoint(host: &Host, server: bool) -> Endpoint {
    let socket = host.bind(([0, 0, 0, 0], 4001).into()).unwrap().into_inner();
    let identity = Keypair::ed25519_from_bytes([u8::from(server); 32]).unwrap();
    let tls = QuicServerConfig::try_from(libp2p_tls::make_server_config(&identity).unwrap()).unwrap();
    let config = server.then(|| ServerConfig::with_crypto(Arc::new(tls)));
    let runtime = Arc::new(TokioRuntime);
    let mut endpoint =
        Endpoint::new_with_abstract_socket(EndpointConfig::default(), config, socket, runtime).unwrap();
    let tls = QuicClientConfig::try_from(libp2p_tls::make_client_config(&identity, None).unwrap()).unwrap();
    endpoint.set_default_client_config(ClientConfig::new(Arc::new(tls)));
    endpoint
}

/// A handshake and an echo of `size` bytes from behind a NAT over links of 10 ms; how long the
/// handshake took.
async fn echo(world: &World, sockets: SocketConfig, size: usize) -> std::time::Duration {
    let server = world.public_host([203, 0, 113, 1]);
    let client = world.nat(Nat::default(), [198, 51, 100, 1]).host([192, 168, 1, 2]);
    [&server, &client].iter().for_each(|host| host.configure(sockets));
    let [server, client] = [endpoint(&server, true), endpoint(&client, false)];
    let serve = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        assert_eq!(connection.remote_address(), ([198, 51, 100, 1], 4001).into());
        assert_eq!(connection.local_ip(), Some([203, 0, 113, 1].into()));
        let (mut send, mut receive) = connection.accept_bi().await.unwrap();
        send.write_all(&receive.read_to_end(size).await.unwrap()).await.unwrap();
        send.finish().unwrap();
        connection.closed().await;
    });
    let before = Instant::now();
    let connection = client.connect(([203, 0, 113, 1], 4001).into(), "l").unwrap().await.unwrap();
    let handshake = before.elapsed();
    let (mut send, mut receive) = connection.open_bi().await.unwrap();
    let sent: Vec<u8> = (0..size).map(|index| index as u8).collect();
    send.write_all(&sent).await.unwrap();
    send.finish().unwrap();
    assert_eq!(receive.read_to_end(size).await.unwrap(), sent);
    connection.close(0u8.into(), b"");
    serve.await.unwrap();
    handshake
}

#[tokio::test(start_paused = true)]
async fn two_endpoints_shake_hands_in_one_round_trip_and_echo() {
    let world = World::new(1);
    assert_eq!(echo(&world, SocketConfig::default(), 100_000).await, ms(40));
    assert_eq!(world.stats().of(Verdict::Delivered), world.stats().ended());
}

#[tokio::test(start_paused = true)]
async fn two_endpoints_echo_with_every_combination_of_offload() {
    for (send_segments, receive_segments) in [(1, 1), (1, 10), (10, 10)] {
        let sockets = SocketConfig { send_segments, receive_segments, ..SocketConfig::default() };
        echo(&World::new(1), sockets, 100_000).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_endpoints_echo_on_a_running_clock_and_several_threads() {
    assert!(echo(&World::new(1), SocketConfig::default(), 100_000).await >= ms(40));
}

#[tokio::test(start_paused = true)]
async fn a_lossy_and_slow_path_delays_an_echo_but_does_not_corrupt_it() {
    let world = World::new(1);
    let bad = Link {
        loss: 0.02,
        reorder: 0.02,
        duplicate: 0.02,
        jitter: ms(3),
        rate: Some(2_000_000),
        ..Link::with_latency(ms(10))
    };
    let host = world.public_host([203, 0, 113, 7]);
    world.set_link(&host, bad);
    let [server, client] = [endpoint(&host, true), endpoint(&world.public_host([203, 0, 113, 8]), false)];
    let serve = tokio::spawn(async move {
        let connection = server.accept().await.unwrap().await.unwrap();
        let mut receive = connection.accept_uni().await.unwrap();
        receive.read_to_end(300_000).await.unwrap()
    });
    let connection = client.connect(([203, 0, 113, 7], 4001).into(), "l").unwrap().await.unwrap();
    let sent: Vec<u8> = (0..300_000u32).map(|index| (index / 7) as u8).collect();
    let mut send = connection.open_uni().await.unwrap();
    send.write_all(&sent).await.unwrap();
    send.finish().unwrap();
    assert!(serve.await.unwrap() == sent);
    assert!(world.stats().of(Verdict::Lost) > 0);
}

#[tokio::test(start_paused = true)]
async fn segments_are_split_on_sending_and_joined_on_receiving_as_a_kernel_does() {
    let world = World::new(1);
    let [a, b] = [1, 2].map(|last| world.public_host([203, 0, 113, last]));
    b.configure(SocketConfig { receive_segments: 3, ..SocketConfig::default() });
    let [a, b] = [a, b].map(|host| crate::support::socket(&host, 80));
    let contents: Vec<u8> = (0..45).collect();
    let destination: SocketAddr = ([203, 0, 113, 2], 80).into();
    let transmit =
        Transmit { destination, ecn: None, contents: &contents, segment_size: Some(10), src_ip: None };
    a.try_send(&transmit).unwrap();
    a.send_to(destination, &[45, 46, 47]);
    tokio::time::sleep(ms(100)).await;
    let mut buffers = [[0u8; 100]; 4];
    let mut slices = buffers.each_mut().map(|buffer| io::IoSliceMut::new(buffer));
    let mut metas = [RecvMeta::default(); 4];
    let count = std::future::poll_fn(|cx| b.poll_recv(cx, &mut slices, &mut metas)).await.unwrap();
    let shapes: Vec<_> = metas[..count].iter().map(|meta| (meta.len, meta.stride)).collect();
    assert_eq!(shapes, [(30, 10), (15, 10), (3, 3)], "nothing follows a shorter segment");
    assert_eq!([&buffers[0][..30], &buffers[1][..15]].concat(), contents);
    assert_eq!(metas[0].dst_ip, Some([203, 0, 113, 2].into()));
}
