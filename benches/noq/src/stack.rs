//! Measures of each stack. noq has quinn's interface, but not its types.

/// A module with the measures of one stack.
macro_rules! stack {
    ($name:ident, $quic:ident) => {
        mod $name {
            use std::{net::SocketAddr, sync::Arc, time::Instant};

            use libp2p_identity::Keypair;
            use $quic::crypto::rustls::{QuicClientConfig, QuicServerConfig};

            use crate::{BULK, ECHOES, HANDSHAKES, IDLE, Result, cpu, median, resident};

            /// Requests in the first byte of a stream: everything back, or one byte at the end.
            const ECHO: u8 = 1;
            const SINK: u8 = 2;

            fn server() -> Result<(SocketAddr, $quic::Endpoint)> {
                let tls = libp2p_tls::make_server_config(&Keypair::generate_ed25519())?;
                let crypto = Arc::new(QuicServerConfig::try_from(tls)?);
                let config = $quic::ServerConfig::with_crypto(crypto);
                let endpoint = $quic::Endpoint::server(config, ([127, 0, 0, 1], 0).into())?;
                let address = endpoint.local_addr()?;
                tokio::spawn(accept(endpoint.clone()));
                Ok((address, endpoint))
            }

            async fn accept(endpoint: $quic::Endpoint) {
                while let Some(incoming) = endpoint.accept().await {
                    tokio::spawn(async move {
                        let Ok(connection) = incoming.await else { return };
                        while let Ok((send, recv)) = connection.accept_bi().await {
                            tokio::spawn(serve(send, recv));
                        }
                    });
                }
            }

            async fn serve(mut send: $quic::SendStream, mut recv: $quic::RecvStream) -> Result<()> {
                let mut first = [0];
                recv.read_exact(&mut first).await?;
                let mut block = vec![0; 64 << 10];
                while recv.read(&mut block).await?.is_some() {}
                send.write_all(&first).await?;
                send.finish()?;
                Ok(())
            }

            struct Client($quic::Endpoint, $quic::ClientConfig);

            impl Client {
                fn new() -> Result<Self> {
                    let mut tls = libp2p_tls::make_client_config(&Keypair::generate_ed25519(), None)?;
                    // It would skip what is measured.
                    tls.resumption = rustls::client::Resumption::disabled();
                    let crypto = Arc::new(QuicClientConfig::try_from(tls)?);
                    let endpoint = $quic::Endpoint::client(([127, 0, 0, 1], 0).into())?;
                    Ok(Self(endpoint, $quic::ClientConfig::new(crypto)))
                }

                async fn connect(&self, address: SocketAddr) -> Result<$quic::Connection> {
                    Ok(self.0.connect_with(self.1.clone(), address, "l")?.await?)
                }
            }

            async fn exchange(connection: &$quic::Connection, kind: u8, bytes: usize) -> Result<()> {
                let (mut send, mut recv) = connection.open_bi().await?;
                let block = vec![kind; bytes.min(64 << 10)];
                let mut left = bytes;
                while left > 0 {
                    let now = left.min(block.len());
                    send.write_all(&block[..now]).await?;
                    left -= now;
                }
                send.finish()?;
                recv.read_to_end(1).await?;
                Ok(())
            }

            pub(crate) async fn measure() -> Result<[f64; 5]> {
                let (address, server) = server()?;
                let client = Client::new()?;
                let connection = client.connect(address).await?;
                exchange(&connection, ECHO, 1).await?;
                let (begin, before) = (Instant::now(), cpu()?);
                exchange(&connection, SINK, BULK).await?;
                let megabytes = BULK as f64 / 1e6;
                let bulk = megabytes / begin.elapsed().as_secs_f64();
                let bulk_cpu = (cpu()? - before) * 1e3 / megabytes * 100.0;
                let mut echoes = Vec::with_capacity(ECHOES);
                for _ in 0..ECHOES {
                    let begin = Instant::now();
                    exchange(&connection, ECHO, 1).await?;
                    echoes.push(begin.elapsed().as_secs_f64() * 1e6);
                }
                echoes.sort_by(f64::total_cmp);
                let before = cpu()?;
                for _ in 0..HANDSHAKES {
                    let connection = client.connect(address).await?;
                    exchange(&connection, ECHO, 1).await?;
                    connection.close(0u32.into(), b"");
                }
                let handshake = (cpu()? - before) * 1e6 / f64::from(HANDSHAKES);
                server.close(0u32.into(), b"");
                Ok([bulk, bulk_cpu, handshake, median(echoes.clone()), echoes[ECHOES * 99 / 100]])
            }

            /// KiB an end. To be asked in a process of its own, since what was freed before is used
            /// again.
            pub(crate) async fn memory() -> Result<f64> {
                let (address, _server) = server()?;
                let client = Client::new()?;
                let before = resident()?;
                let mut idle = Vec::with_capacity(IDLE);
                for _ in 0..IDLE {
                    let connection = client.connect(address).await?;
                    exchange(&connection, ECHO, 1).await?;
                    idle.push(connection);
                }
                Ok((resident()? - before) / 1024.0 / IDLE as f64 / 2.0)
            }
        }
    };
}
