//! Dialing: by address, by address in the role of the listener, and through a traversal.

use std::{
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    sync::Arc,
    task::{Context, Poll},
};

use futures::{
    FutureExt,
    channel::oneshot,
    future::{self, BoxFuture, Either},
};
use libp2p_core::{
    Endpoint, Multiaddr,
    transport::{DialOpts, PortUse, TransportError},
};
use libp2p_identity::PeerId;
use tokio::sync::mpsc;

use super::{
    Error, Transport, addr,
    binding::Binding,
    connection_stats::ConnectionOrigin,
    context::TransportContext,
    handshake::{self, Output},
    hole_punching,
    listener::Listener,
    live::Carrier,
    migration,
    notice::{self, Notice},
    shared_endpoint::SharedEndpoint,
    tls::Expected,
};
use crate::offers::{self, Offer};

/// quinn wants a server name; it is never sent.
const SERVER_NAME: &str = "libp2p";

pub(super) type Dial = BoxFuture<'static, Result<Output, Error>>;

impl Transport {
    pub(super) fn start_dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Dial, TransportError<Error>> {
        if offers::is_offer(&address) {
            // An address that is not offered, or not any more, leads nowhere.
            let offer = self.offers.take(&address).filter(|_| opts.role == Endpoint::Dialer);
            return match (offer, self.notices.sender()) {
                (Some(offer), Some(driver)) => Ok(self.dial_offer(offer, driver)?),
                _ => Err(TransportError::MultiaddrNotSupported(address)),
            };
        }
        let named = self.socket_of(&address)?;
        let Some((remote, peer)) = named.filter(|(remote, _)| addr::is_remote(*remote)) else {
            return Err(TransportError::MultiaddrNotSupported(address));
        };
        match (opts.role, peer) {
            (Endpoint::Dialer, _) => Ok(self.dial_address(remote, peer, opts.port_use)?),
            (Endpoint::Listener, Some(peer)) => Ok(self.dial_as_listener(remote, peer)?),
            // Any connection from that address would match, which no application wants.
            (Endpoint::Listener, None) => Err(TransportError::MultiaddrNotSupported(address)),
        }
    }

    /// Dials an address of the peer's own, and takes the connection of a session if that is there
    /// earlier.
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
        // A dial from a new port is a question about this address, which no other path answers.
        let session_peer = peer.filter(|_| reused.is_some());
        if let Some(peer) = session_peer
            && let Some(mut connection) = self.ready.take(peer, remote)
        {
            connection.note_source(&*self.env.network);
            connection.told(remote);
            return Ok(future::ready(Ok((peer, connection))).boxed());
        }
        self.contacts.note(remote.ip());
        let env = self.env.clone();
        let driver = self.notices.sender();
        let plain = plain_dial(PlainDial { env, remote, peer, reused, driver: driver.clone() });
        let (Some(peer), Some(driver)) = (session_peer, driver) else { return Ok(plain.boxed()) };
        let (offers, network) = (self.offers.clone(), self.env.network.clone());
        Ok(async move {
            // Asked when the dial is polled: the swarm may have been given the offer after this
            // address.
            if !offers.has_any_of(peer) {
                return plain.await;
            }
            match future::select(plain.boxed(), join(peer, driver).boxed()).await {
                Either::Left((dialed, _)) => dialed,
                Either::Right((Some((peer, connection)), _)) => {
                    connection.note_source(&*network);
                    Ok((peer, connection))
                }
                Either::Right((None, plain)) => plain.await,
            }
        }
        .boxed())
    }

    fn dial_as_listener(&mut self, remote: SocketAddr, peer: PeerId) -> Result<Dial, Error> {
        let listener = self.listener_towards(remote).ok_or(Error::NoActiveListenerForDialAsListener)?;
        let wire = listener.binding.wire.clone();
        self.contacts.note(remote.ip());
        // Registered before the first poll, so that a faster remote is not mistaken for another
        // peer.
        let punch = self.env.punches.register(remote, peer)?;
        Ok(hole_punching::punch(self.env.clone(), wire, punch).boxed())
    }

    /// Begins a session at once; the swarm may poll other addresses first.
    fn dial_offer(&mut self, offer: Arc<Offer>, driver: mpsc::Sender<Notice>) -> Result<Dial, Error> {
        if self.listeners.is_empty() && self.clients.is_empty() {
            // A host may be without IPv4, but then it has IPv6.
            let any_v4 = SocketAddr::from((Ipv4Addr::UNSPECIFIED, 0));
            let any_v6 = SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0));
            self.client_binding(any_v4).or_else(|_| self.client_binding(any_v6))?;
        }
        self.notices.push(Notice::Dial(offer.clone()));
        self.wake();
        let (located, dial) = oneshot::channel();
        self.locating.retain(|_, dial| !dial.is_canceled());
        self.locating.insert((offer.peer(), offer.number()), located);
        let (network, awaited) = (self.env.network.clone(), offer.clone());
        let session = async move {
            let (reply, answer) = oneshot::channel();
            notice::tell(Some(driver), Notice::Await { offer: awaited, reply }).await?;
            let (peer, connection) = answer.await.map_err(|_| Error::DriverStopped)??;
            connection.note_source(&*network);
            Ok((peer, connection))
        };
        Ok(async move {
            let (peer, connection) = either(session.boxed(), dial).await?;
            Ok((peer, connection.dialed_at(offer)))
        }
        .boxed())
    }

    /// Dials the own addresses of peers that were found while a dial of an offer waits for a
    /// session.
    pub(super) fn dial_located(&mut self, cx: &Context<'_>) {
        while let Poll::Ready((offer, addresses)) = self.offers.poll_located(cx) {
            let Some(waiting) = self.locating.remove(&(offer.peer(), offer.number())) else { continue };
            let remotes = addresses.into_iter().filter(|remote| addr::is_remote(*remote));
            let dials: Vec<_> =
                remotes.filter_map(|remote| self.dial_peer_at(remote, offer.peer())).collect();
            if !dials.is_empty() {
                let first = future::select_ok(dials);
                // An error means that the dial of the offer has ended.
                let _ = waiting.send(async { Ok(first.await?.0) }.boxed());
            }
        }
    }

    fn dial_peer_at(&mut self, remote: SocketAddr, peer: PeerId) -> Option<Dial> {
        let reused = Some(self.binding_towards(remote).ok()?);
        self.contacts.note(remote.ip());
        let env = self.env.clone();
        Some(plain_dial(PlainDial { env, remote, peer: Some(peer), reused, driver: None }).boxed())
    }

    /// The socket to dial `remote` from: a listener that sends from the right address, or the
    /// family's client.
    fn binding_towards(&mut self, remote: SocketAddr) -> Result<Arc<SharedEndpoint>, Error> {
        if let Some(listener) = self.listener_towards(remote) {
            return Ok(listener.binding.wire.clone());
        }
        self.client_binding(addr::wildcard(remote))
    }

    fn listener_towards(&self, remote: SocketAddr) -> Option<&Listener> {
        if addr::is_zoned(remote.ip()) {
            // There is no route to ask for: the zone is the link.
            let here = |listener: &&Listener| listener.is_in_zone_of(remote);
            let anywhere = |listener: &&Listener| listener.is_wildcard_for(remote.ip());
            let mut all = self.listeners.iter();
            return all.clone().find(here).or_else(|| all.find(anywhere));
        }
        let Ok(source) = self.env.network.source_for(remote.ip()) else {
            // There is no route at present. A wildcard listener sends from the next address that
            // appears.
            return self.listeners.iter().find(|listener| listener.is_wildcard_for(remote.ip()));
        };
        let fits = |listener: &&Listener| listener.sends_from(source);
        let exact =
            self.listeners.iter().find(|listener| fits(listener) && !listener.is_wildcard_for(source));
        exact.or_else(|| self.listeners.iter().find(fits))
    }

    fn client_binding(&mut self, any: SocketAddr) -> Result<Arc<SharedEndpoint>, Error> {
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

/// Returns the connection of a session, or of a dial of the peer's own addresses that begins later.
/// An error of one of them counts only if the other one fails, too, or has not begun.
async fn either(session: Dial, located: oneshot::Receiver<Dial>) -> Result<Output, Error> {
    match future::select(session, located).await {
        Either::Left((result, _)) => result,
        Either::Right((Err(_), session)) => session.await,
        Either::Right((Ok(dial), session)) => {
            let first = future::select(session, dial).await;
            match first {
                Either::Left((Ok(output), _)) | Either::Right((Ok(output), _)) => Ok(output),
                Either::Left((Err(_), other)) | Either::Right((Err(_), other)) => other.await,
            }
        }
    }
}

/// A dial of an address of the peer's own.
struct PlainDial {
    env: Arc<TransportContext>,
    remote: SocketAddr,
    peer: Option<PeerId>,
    /// Listener through which the dial leaves. `None` for a socket of its own.
    reused: Option<Arc<SharedEndpoint>>,
    driver: Option<mpsc::Sender<Notice>>,
}

async fn plain_dial(dial: PlainDial) -> Result<Output, Error> {
    let PlainDial { env, remote, peer, reused, driver } = dial;
    let wire = match reused {
        Some(reused) => reused,
        None => Binding::new(&env, addr::wildcard(remote), false)?.wire,
    };
    let dialed = connect(ClientDial { env, remote, peer, wire }).await;
    if let (true, Some(peer)) = (dialed.as_ref().is_err_and(Error::is_silence), peer) {
        // The dial has failed, driver or not.
        let _ = notice::tell(driver, Notice::Unanswered { peer }).await;
    }
    dialed
}

/// Handshake of ours as the QUIC client.
pub(super) struct ClientDial {
    pub(super) env: Arc<TransportContext>,
    pub(super) remote: SocketAddr,
    /// Peer that must answer, if it is known.
    pub(super) peer: Option<PeerId>,
    /// Endpoint from which the handshake leaves.
    pub(super) wire: Arc<SharedEndpoint>,
}

pub(super) async fn connect(dial: ClientDial) -> Result<Output, Error> {
    let ClientDial { env, remote, peer, wire } = dial;
    let expected = Expected::new(peer);
    let config = env.quic.client_config(&expected);
    let connecting =
        migration::while_opening(None, || wire.endpoint().connect_with(config, remote, SERVER_NAME))?;
    let (beneath, through) = (Carrier::Dialed(wire), ConnectionOrigin::Dial);
    handshake::finish(env, connecting, expected, beneath, through).await
}

/// Waits for a connection of the peer's session that no other dial takes. `None` if there will be
/// none.
async fn join(peer: PeerId, driver: mpsc::Sender<Notice>) -> Option<Output> {
    let (reply, answer) = oneshot::channel();
    notice::tell(Some(driver), Notice::Join { peer, reply }).await.ok()?;
    answer.await.ok()?.ok()
}
