//! One UDP socket, and the ordinary quinn endpoint on it.

use std::{
    io,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use super::{
    addr::wildcard,
    context::TransportContext,
    error::Error,
    shared_endpoint::{InterceptingSocket, SharedEndpoint},
    socket::{Replacement, Socket, SocketNews},
};

/// A wire, and the socket that it was made with.
#[derive(Debug, Clone)]
pub(crate) struct Binding {
    /// The address that the socket is bound to; perhaps a wildcard, but the port is known.
    pub(crate) local: SocketAddr,
    pub(crate) wire: Arc<SharedEndpoint>,
    /// The socket at `local`. The endpoint may use another socket while that address is gone.
    home: Arc<Socket>,
}

impl Binding {
    /// Binds a socket; `accepts` incoming connections or is for dials only.
    pub(crate) fn new(env: &TransportContext, address: SocketAddr, accepts: bool) -> Result<Self, Error> {
        let home = env.bind(address)?;
        let local = home.local();
        let hooked = hook(env, home.clone());
        let endpoint = quinn::Endpoint::new_with_abstract_socket(
            env.quic.endpoint_config(local),
            accepts.then(|| (*env.quic.server_config()).clone()),
            hooked.clone(),
            env.runtime.clone(),
        )?;
        Ok(Self { local, wire: Arc::new(SharedEndpoint::new(endpoint, hooked)), home })
    }

    /// The address that the socket in use is bound to.
    pub(crate) fn bound(&self) -> SocketAddr {
        self.wire.hooked().inner.local()
    }

    /// Handles the loss of the binding's address: its connections continue from any address that
    /// the machine still has.
    pub(crate) fn leave_home(&self, env: &TransportContext) -> Result<(), Error> {
        Ok(self.wire.exchange(hook(env, env.bind(wildcard(self.local))?))?)
    }

    /// The binding's address is back.
    pub(crate) fn return_home(&self, env: &TransportContext) -> Result<(), Error> {
        self.home.retry_now();
        Ok(self.wire.exchange(hook(env, self.home.clone()))?)
    }

    /// Waits for the next event of the socket in use.
    pub(crate) fn poll_news(&self, cx: &mut Context<'_>) -> Poll<SocketNews> {
        self.wire.hooked().inner.poll_news(cx)
    }

    /// Tries at once to replace sockets that have failed.
    pub(crate) fn retry_now(&self) {
        self.home.retry_now();
        self.wire.hooked().inner.retry_now();
    }

    /// Handles the replacement of the socket in use. Returns true if the socket has another name
    /// now: nothing that was known of the old socket holds for the new one. Connections report
    /// their new address to their servers in either case.
    pub(crate) fn replaced(&mut self, env: &TransportContext, replacement: &Replacement) -> io::Result<bool> {
        let socket = self.wire.hooked().inner.clone();
        if Arc::ptr_eq(&socket, &self.home) {
            self.local = replacement.after;
        }
        if replacement.keeps_mappings() {
            self.wire.refresh()?;
            return Ok(false);
        }
        self.wire.exchange(hook(env, socket))?;
        Ok(true)
    }
}

/// Gives a socket a new name, and shows the punches and the path layer the received datagrams.
fn hook(env: &TransportContext, socket: Arc<Socket>) -> Arc<InterceptingSocket> {
    let (id, punches, path) = (env.next_socket(), env.punches.clone(), env.path.clone());
    Arc::new(InterceptingSocket { id, inner: socket, punches, path })
}
