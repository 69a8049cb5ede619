//! Dialing: by address, by address in the role of the listener, and by peer.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
};

use futures::{
    FutureExt,
    channel::{mpsc, oneshot},
    future::BoxFuture,
};
use libp2p_core::{
    Endpoint, Multiaddr,
    transport::{DialOpts, PortUse, TransportError},
};
use libp2p_identity::PeerId;

use super::{
    Error, Transport, addr,
    binding::{Binding, Wire},
    handshake::{self, Output},
    listener::Listener,
    notice::{self, DialRequest, Notice},
    punch,
    stats::ConnectedThrough,
    tls::Expected,
    wildcard,
};
/// quinn wants a server name; it is never sent.
const SERVER_NAME: &str = "libp2p";

type Dial = BoxFuture<'static, Result<Output, Error>>;

impl Transport {
    pub(super) fn start_dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Dial, TransportError<Error>> {
        if let (Some(peer), Some(driver)) = (addr::to_bare_peer(&address), self.notices.sender()) {
            return Ok(self.dial_peer(peer, driver)?);
        }
        let named = self.socket_of(&address)?;
        let Some((remote, peer)) = named.filter(|(remote, _)| addr::is_remote(*remote)) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        match (opts.role, peer) {
            (Endpoint::Dialer, _) => Ok(self.dial_address(remote, peer, opts.port_use)?),
            (Endpoint::Listener, Some(peer)) => Ok(self.dial_as_listener(remote, peer)?),
            // Whoever comes first from that address would do, and that is for nobody to want.
            (Endpoint::Listener, None) => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    fn dial_address(
        &mut self,
        remote: SocketAddr,
        peer: Option<PeerId>,
        port_use: PortUse,
    ) -> Result<Dial, Error> {
        let reused = match port_use {
            PortUse::Reuse => Some(self.binding_towards(remote)?),
            PortUse::New => None,
        };
        let env = self.env.clone();
        let driver = self.notices.sender();
        let expected = Expected::new(peer);
        Ok(async move {
            let wire = match reused {
                Some(reused) => reused,
                None => Binding::new(&env, wildcard(remote), false)?.wire,
            };
            let config = env.quic.client_config(&expected);
            let connecting = wire.endpoint().connect_with(config, remote, SERVER_NAME)?;
            let through = ConnectedThrough::Dial;
            let dialed = handshake::finish(env, connecting, expected, wire, through, driver.clone()).await;
            if let (true, Some(peer)) = (dialed.as_ref().is_err_and(Error::is_silence), peer) {
                // The dial has failed, driver or not.
                let _ = notice::tell(driver, Notice::Unanswered { peer }).await;
            }
            dialed
        }
        .boxed())
    }

    fn dial_as_listener(&mut self, remote: SocketAddr, peer: PeerId) -> Result<Dial, Error> {
        let listener = self.listener_towards(remote).ok_or(Error::NoActiveListenerForDialAsListener)?;
        let socket = listener.binding.wire.socket();
        // Registered before the first poll, so that a remote which is faster is not taken for somebody else.
        let punch = self.punches.register(remote, peer)?;
        Ok(punch::punch(self.env.clone(), socket, punch).boxed())
    }

    fn dial_peer(&mut self, peer: PeerId, driver: mpsc::Sender<Notice>) -> Result<Dial, Error> {
        if self.listeners.is_empty() && self.clients.is_empty() {
            // A host may be without IPv4, but then it has IPv6.
            let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            self.client_binding(any_v4).or_else(|_| self.client_binding(any_v6))?;
        }
        let network = self.env.network.clone();
        Ok(async move {
            let (reply, answer) = oneshot::channel();
            notice::tell(Some(driver), Notice::Dial(DialRequest { peer, reply })).await?;
            let (peer, connection) = answer.await.map_err(|_| Error::DriverStopped)??;
            connection.note_source(&*network);
            Ok((peer, connection))
        }
        .boxed())
    }

    /// The socket to dial `remote` from: a listener that sends from the right address, or the family's client.
    fn binding_towards(&mut self, remote: SocketAddr) -> Result<Arc<Wire>, Error> {
        if let Some(listener) = self.listener_towards(remote) {
            return Ok(listener.binding.wire.clone());
        }
        self.client_binding(wildcard(remote))
    }

    fn listener_towards(&self, remote: SocketAddr) -> Option<&Listener> {
        if addr::is_zoned(remote.ip()) {
            // There is no route to ask for: the zone is the link.
            let here = |listener: &&Listener| listener.is_in_zone_of(remote);
            let anywhere = |listener: &&Listener| listener.is_wildcard_for(remote.ip());
            let mut all = self.listeners.iter();
            return all.clone().find(here).or_else(|| all.find(anywhere));
        }
        let source = self.env.network.source_for(remote.ip()).ok()?;
        let fits = |listener: &&Listener| listener.sends_from(source);
        let exact =
            self.listeners.iter().find(|listener| fits(listener) && !listener.is_wildcard_for(source));
        exact.or_else(|| self.listeners.iter().find(fits))
    }

    fn client_binding(&mut self, any: SocketAddr) -> Result<Arc<Wire>, Error> {
        let known = self.clients.iter().find(|client| client.local.is_ipv4() == any.is_ipv4());
        if let Some(client) = known {
            return Ok(client.wire.clone());
        }
        let client = Binding::new(&self.env, any, false)?;
        self.announce(&client, false);
        let wire = client.wire.clone();
        self.clients.push(client);
        Ok(wire)
    }

    /// Lets go of the client of the family of `address`.
    pub(super) fn retire_client(&mut self, address: SocketAddr) {
        let same_family = |client: &Binding| client.local.is_ipv4() == address.is_ipv4();
        if let Some(index) = self.clients.iter().position(same_family) {
            let client = self.clients.swap_remove(index);
            self.retire(client.wire.id());
        }
    }
}
