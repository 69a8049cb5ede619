//! The end of connections, as the other end sees it.

use super::support::*;

/// Programs that connect, close their connection and exit.
const ROUNDS: usize = 100;

#[test]
fn the_server_hears_of_the_close_of_each_client_that_exits_after_it() {
    let server = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let (address, mut ends) = server.block_on(async {
        let mut listener = new().1;
        let address = listen(&mut listener, V4).await;
        let (sender, ends) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            loop {
                let Some((upgrade, _)) = next(&mut listener).await.into_incoming() else { continue };
                let sender = sender.clone();
                tokio::spawn(async move {
                    let (_, mut connection) = upgrade.await.unwrap();
                    let end = poll_fn(|cx| connection.poll_inbound_unpin(cx)).await.map(|_| ());
                    sender.send(end.unwrap_err()).unwrap();
                });
            }
        });
        (address, ends)
    });
    for round in 0..ROUNDS {
        let client =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        client.block_on(async {
            let (_, connection) = new().1.dial(address.clone(), PLAIN).unwrap().await.unwrap();
            connection.close().await.unwrap();
        });
        // Datagrams that were not sent by now are never sent.
        client.shutdown_background();
        let end = server.block_on(ends.recv()).unwrap();
        let is_close =
            matches!(&end, Error::Connection(error) if error.to_string().contains("closed by peer"));
        assert!(is_close, "round {round}: {end}");
    }
}
