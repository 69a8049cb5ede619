//! Forwarded connections over a pipe in memory, with real TCP connections of this machine.

use std::{collections::HashSet, net::SocketAddr};

use futures::FutureExt;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, repeat, split},
    net::{TcpListener, TcpStream},
};

use super::{
    wire::{receive_chunks, send_chunks},
    *,
};
use crate::ticket::Secret;

/// Bytes that are under way at once.
const PIPE_LEN: usize = 64 << 10;

type Half = (WriteHalf<DuplexStream>, ReadHalf<DuplexStream>);

fn pipe() -> [Half; 2] {
    let (one, other) = duplex(PIPE_LEN);
    [one, other].map(|end| {
        let (recv, send) = split(end);
        (send, recv)
    })
}

/// A port of this machine.
async fn port() -> (TcpListener, Endpoint) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let endpoint = listener.local_addr().unwrap().to_string().parse().unwrap();
    (listener, endpoint)
}

/// Both ends of a connection of a local program.
async fn local() -> (TcpStream, TcpStream) {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let address: SocketAddr = listener.local_addr().unwrap();
    let (program, accepted) = tokio::join!(TcpStream::connect(address), listener.accept());
    (program.unwrap(), accepted.unwrap().0)
}

fn gate(allowed: &[&Endpoint]) -> Gate {
    let allowed: HashSet<_> = allowed.iter().copied().cloned().collect();
    Gate { secret: Secret::generate(), allowed }
}

/// Serves one stream, as the program does.
async fn serve_one(gate: &Gate, (mut send, mut recv): Half) -> Result<Traffic, ForwardError> {
    let admitted = gate.admit(&mut send, &mut recv).await?;
    serve(send, recv, admitted).await
}

#[tokio::test]
async fn a_connection_ends_in_each_direction_by_itself() {
    let (listener, target) = port().await;
    let gate = gate(&[&target]);
    let (mut program, accepted) = local().await;
    let [client, server] = pipe();
    let sent: Vec<u8> = (0..1 << 20).map(|at: u32| (at / 251) as u8).collect();
    let service = async {
        let (mut connection, _) = listener.accept().await.unwrap();
        let mut received = Vec::new();
        // The end of what the program sends comes while the other direction is open.
        connection.read_to_end(&mut received).await.unwrap();
        connection.write_all(b"thanks").await.unwrap();
        received
    };
    let work = async {
        program.write_all(&sent).await.unwrap();
        program.shutdown().await.unwrap();
        let mut answer = Vec::new();
        program.read_to_end(&mut answer).await.unwrap();
        answer
    };
    let opened = open(accepted, client.0, client.1, &gate.secret, &target);
    let (opened, served, received, answer) = tokio::join!(opened, serve_one(&gate, server), service, work);
    assert!(received == sent && answer == b"thanks");
    assert_eq!(opened.unwrap(), Traffic { sent: 1 << 20, received: 6 });
    assert_eq!(served.unwrap(), Traffic { sent: 6, received: 1 << 20 });
}

#[tokio::test]
async fn a_peer_that_goes_away_breaks_the_connection_of_the_program() {
    let (_listener, target) = port().await;
    let (mut program, accepted) = local().await;
    let [client, (mut send, mut recv)] = pipe();
    let secret = Secret::generate();
    let peer = async {
        let _: wire::Request = wire::read_message(&mut recv).await.unwrap();
        wire::write_message(&mut send, &wire::Answer::Open).await.unwrap();
        // A chunk that is cut off.
        send.write_all(&[0, 9, b'x']).await.unwrap();
        send.shutdown().await.unwrap();
    };
    let (opened, ()) = tokio::join!(open(accepted, client.0, client.1, &secret, &target), peer);
    assert!(matches!(opened, Err(ForwardError::Aborted)), "{opened:?}");
    let end = program.read_to_end(&mut Vec::new()).await.unwrap_err();
    assert_eq!(end.kind(), std::io::ErrorKind::ConnectionReset, "an end would look like the whole");
}

#[tokio::test]
async fn what_the_gate_does_not_allow_is_refused_with_the_reason() {
    let ((listener, target), (_other_listener, other)) = (port().await, port().await);
    let guarded = gate(&[&target]);
    let wrong = Secret::generate();
    for (secret, asked, words) in
        [(&wrong, &target, "the ticket is not the present one"), (&guarded.secret, &other, "is not allowed")]
    {
        let [client, server] = pipe();
        let asking = check(client.0, client.1, secret, asked);
        let (served, asked) = tokio::join!(serve_one(&guarded, server), asking);
        assert!(served.is_err());
        let asked = asked.unwrap_err().to_string();
        assert!(asked.contains(words), "{asked}");
    }
    let [client, server] = pipe();
    let asking = check(client.0, client.1, &guarded.secret, &target);
    let (served, asked) = tokio::join!(serve_one(&guarded, server), asking);
    assert!(served.is_ok() && asked.is_ok());
    assert!(listener.accept().now_or_never().is_none(), "nothing was connected");
}

#[tokio::test]
async fn a_port_at_which_nothing_listens_is_named() {
    let (listener, target) = port().await;
    drop(listener);
    let gate = gate(&[&target]);
    let (mut program, accepted) = local().await;
    let [client, server] = pipe();
    let opened = open(accepted, client.0, client.1, &gate.secret, &target);
    let (opened, served) = tokio::join!(opened, serve_one(&gate, server));
    let words = format!("cannot connect to {target}: nothing listens there");
    assert_eq!(served.unwrap_err().to_string(), words);
    assert_eq!(opened.unwrap_err().to_string(), format!("the peer refused: {words}"));
    assert!(program.read(&mut [0]).await.is_err(), "the program sees a connection that broke");
}

#[tokio::test]
async fn a_peer_that_takes_nothing_holds_the_program_back() {
    let (mut stream, mut taker) = duplex(PIPE_LEN);
    let mut endless = repeat(7).take(u64::MAX);
    assert!(send_chunks(&mut endless, &mut stream).now_or_never().is_none());
    let read = u64::MAX - endless.limit();
    assert!((1..=2 * PIPE_LEN as u64).contains(&read), "{read}");

    // The other direction: nothing more is read of the stream than the program takes.
    let (mut sink, _program) = duplex(PIPE_LEN);
    let mut chunks = (&[0xff, 0xff][..]).chain(repeat(0xff)).take(u64::MAX);
    assert!(receive_chunks(&mut chunks, &mut sink).now_or_never().is_none());
    let read = u64::MAX - chunks.limit();
    assert!(read <= 4 * PIPE_LEN as u64, "{read}");
    let mut first = [0; 3];
    taker.read_exact(&mut first).await.unwrap();
    assert_eq!(first[2], 7);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_asks_for_nothing_is_let_go() {
    let [client, (mut send, mut recv)] = pipe();
    let admitted = gate(&[]).admit(&mut send, &mut recv).await;
    assert!(matches!(admitted, Err(ForwardError::NoRequest)), "{admitted:?}");
    drop(client);
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_does_not_answer_is_given_up() {
    let target = "localhost:1".parse().unwrap();
    let [client, server] = pipe();
    let asked = check(client.0, client.1, &Secret::generate(), &target).await;
    assert!(matches!(asked, Err(ForwardError::NoAnswer)), "{asked:?}");
    drop(server);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn no_bytes_get_through_the_gate(bytes in prop::collection::vec(any::<u8>(), 0..200), json in any::<bool>()) {
        let body = if json {
            let text = String::from_utf8_lossy(&bytes);
            let target = serde_json::json!({ "host": text, "port": bytes.len() });
            let request = serde_json::json!({ "secret": text, "transport": "tcp", "target": target });
            let body = request.to_string().into_bytes();
            [&u16::try_from(body.len()).unwrap().to_be_bytes()[..], &body].concat()
        } else {
            bytes
        };
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let [(mut to, from), (mut send, mut recv)] = pipe();
            to.write_all(&body).await.unwrap();
            to.shutdown().await.unwrap();
            assert!(gate(&[]).admit(&mut send, &mut recv).await.is_err());
            drop(from);
        });
    }
}
