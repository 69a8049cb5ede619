//! Streams, as libp2p's muxer tests want them.

use super::support::*;

/// Two ends of one stream; each connection is kept alive by a task.
async fn streams() -> (libp2p_punch::transport::Stream, libp2p_punch::transport::Stream) {
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let Connected { at_dialer: (_, mut dialer), at_listener: (_, mut listener), .. } =
        connect(&mut a, &mut b, address, PLAIN).await;
    let mut outbound = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
    outbound.write_all(&[0]).await.unwrap();
    let mut inbound = poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap();
    inbound.read_exact(&mut [1]).await.unwrap();
    drive(a);
    drive(b);
    tokio::spawn(async move {
        let _alive = (dialer, listener);
        future::pending::<()>().await
    });
    (outbound, inbound)
}

#[tokio::test]
async fn a_writer_blocks_at_exactly_max_stream_data() {
    let limit = Config::default().quic.max_stream_data as usize;
    let (mut a, mut b) = streams().await;
    // `streams` has sent one byte, whose credit comes back only with much more.
    a.write_all(&vec![0; limit - 1]).await.unwrap();
    assert!(a.write(&[0]).now_or_never().is_none());
    b.read_exact(&mut vec![1; limit - 1]).await.unwrap();
    assert!(b.read(&mut [0]).now_or_never().is_none());
    a.write_all(&[0]).await.unwrap();
}

#[tokio::test]
async fn closing_flushes() {
    let (mut a, mut b) = streams().await;
    a.write_all(b"PING").await.unwrap();
    a.close().await.unwrap();
    let mut received = Vec::new();
    b.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"PING");
}

#[tokio::test]
async fn a_closed_stream_can_still_be_read_and_closed_again() {
    let (mut a, mut b) = streams().await;
    a.close().await.unwrap();
    b.write_all(b"PONG").await.unwrap();
    b.close().await.unwrap();
    let mut received = Vec::new();
    a.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, b"PONG");
    a.close().await.unwrap();
    a.write_all(b"late").await.unwrap_err();
}

#[tokio::test]
async fn what_a_dropped_stream_has_written_arrives() {
    let (mut a, mut b) = streams().await;
    b.close().now_or_never();
    a.write_all(&[0; 10]).await.unwrap();
    a.close().await.unwrap();
    drop(a);
    b.close().await.unwrap();
    let mut received = Vec::new();
    b.read_to_end(&mut received).await.unwrap();
    assert_eq!(received, [0; 10]);
}

#[tokio::test]
async fn writing_to_a_dropped_stream_fails() {
    let (a, mut b) = streams().await;
    drop(a);
    let write = async {
        while b.write_all(&[0; 10]).await.is_ok() {
            tokio::task::yield_now().await
        }
    };
    tokio::time::timeout(PATIENCE, write).await.unwrap();
}

#[tokio::test]
async fn many_connections_and_streams_run_at_once() {
    let (_, mut dialer) = new();
    let (mut echoes, mut connections) = (Vec::new(), Vec::new());
    for _ in 0..4 {
        let (_, mut listener) = new();
        let address = listen(&mut listener, V4).await;
        let connected = connect(&mut listener, &mut dialer, address, PLAIN).await;
        drive(listener);
        let (mut at_dialer, mut at_listener) = (connected.at_dialer.1, connected.at_listener.1);
        tokio::spawn(async move {
            while let Ok(stream) = poll_fn(|cx| at_listener.poll_inbound_unpin(cx)).await {
                let (mut read, mut write) = stream.split();
                tokio::spawn(async move {
                    futures::io::copy(&mut read, &mut write).await.unwrap();
                    write.close().await.unwrap();
                });
            }
        });
        for seed in 0..8u8 {
            let mut stream = poll_fn(|cx| at_dialer.poll_outbound_unpin(cx)).await.unwrap();
            echoes.push(async move {
                let data = vec![seed; 40_960];
                stream.write_all(&data).await.unwrap();
                stream.close().await.unwrap();
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.unwrap();
                assert_eq!(received, data);
            });
        }
        connections.push(at_dialer);
    }
    tokio::time::timeout(PATIENCE, future::join_all(echoes)).await.unwrap();
}

#[tokio::test]
async fn a_remote_that_is_busy_gets_all_of_its_streams_and_not_one_more() {
    let limit = Config::default().quic.max_concurrent_stream_limit as usize;
    let ((_, mut a), (_, mut b)) = (new(), new());
    let address = listen(&mut a, V4).await;
    let Connected { at_dialer: (_, mut dialer), at_listener: (_, mut listener), .. } =
        connect(&mut a, &mut b, address, PLAIN).await;
    drive(a);
    drive(b);
    let mut first = Vec::new();
    // QUIC tells the listener of a stream by its first byte.
    while let Some(Ok(mut stream)) = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).now_or_never() {
        stream.write_all(&[0]).await.unwrap();
        first.push(stream);
    }
    assert!((1..limit).contains(&first.len()), "{}", first.len());
    let accepting = async {
        let mut accepted = Vec::new();
        while accepted.len() < limit {
            accepted.push(poll_fn(|cx| listener.poll_inbound_unpin(cx)).await.unwrap());
        }
        accepted
    };
    let opening = async {
        let mut opened = first;
        while opened.len() < limit {
            let mut stream = poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
            stream.write_all(&[0]).await.unwrap();
            opened.push(stream);
        }
        opened
    };
    let (opened, accepted) = future::join(opening, accepting).await;
    assert!(poll_fn(|cx| dialer.poll_outbound_unpin(cx)).now_or_never().is_none());
    // Each one that is over makes room for another.
    drop((opened, accepted));
    poll_fn(|cx| dialer.poll_outbound_unpin(cx)).await.unwrap();
}
