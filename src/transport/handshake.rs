//! From a QUIC handshake that has begun to an authenticated connection.

use std::{
    fmt,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    future::{self, BoxFuture, Either},
};
use libp2p_identity::PeerId;

use super::{
    Connection, Error,
    connection_stats::ConnectionOrigin,
    context::TransportContext,
    live::{AskedBy, Carrier, NewConnection},
    time::Delay,
    tls::Expected,
};

/// Result of a successful dial or upgrade.
pub(crate) type Output = (PeerId, Connection);

/// An incoming connection on its way to being authenticated.
pub struct Upgrade(BoxFuture<'static, Result<Output, Error>>);

impl Upgrade {
    pub(crate) fn new(upgrade: impl Future<Output = Result<Output, Error>> + Send + 'static) -> Self {
        Self(upgrade.boxed())
    }
}

impl Future for Upgrade {
    type Output = Result<Output, Error>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        self.0.poll_unpin(cx)
    }
}

impl fmt::Debug for Upgrade {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Upgrade").finish_non_exhaustive()
    }
}

/// Waits for the handshake, within its time limit.
pub(crate) async fn finish(
    env: Arc<TransportContext>,
    connecting: quinn::Connecting,
    expected: Expected,
    beneath: Carrier,
    through: ConnectionOrigin,
) -> Result<Output, Error> {
    let timeout = Delay::new(&*env.runtime, env.quic.handshake_timeout());
    let connection = match future::select(connecting, timeout).await {
        Either::Left((connected, _)) => connected.map_err(|error| expected.explain(error))?,
        Either::Right(_) => return Err(Error::HandshakeTimedOut),
    };
    let remote = beneath.remote(&connection);
    let source = match through {
        ConnectionOrigin::Dial => remote.and_then(|remote| env.network.source_for(remote.ip()).ok()),
        _ => connection.local_ip(),
    };
    let asked_by = match through {
        ConnectionOrigin::Listener => AskedBy::Remote,
        // A dial in the role of the listener is a dial.
        _ => AskedBy::Us,
    };
    let new = NewConnection { connection, through, beneath, source, asked_by };
    let live = env.connections.add(new)?;
    let peer = live.peer();
    Ok((peer, Connection::new(live, None)))
}
