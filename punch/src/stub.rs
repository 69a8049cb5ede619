//! Placeholder of the library until its branches are merged; deleted then.
use libp2p::{
    Multiaddr, PeerId,
    core::{
        Endpoint, Transport as _,
        muxing::StreamMuxerBox,
        transport::{Boxed, PortUse},
    },
    identity::Keypair,
    multiaddr::Protocol,
    swarm::{
        ConnectionDenied, ConnectionId, FromSwarm, NetworkBehaviour, THandler, THandlerInEvent,
        THandlerOutEvent, ToSwarm, dial_opts::DialOpts, dummy,
    },
};
use libp2p_punch::{
    config::{Config, ConfigError},
    core::event::Event,
    io::Network,
};
use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
    task::{Context, Poll},
};
pub type Transport = Boxed<(PeerId, StreamMuxerBox)>;
pub struct Behaviour {
    todo: VecDeque<ToSwarm<Event, std::convert::Infallible>>,
    coordinators: HashMap<PeerId, Multiaddr>,
}
pub fn new(key: &Keypair, config: Config) -> Result<(Transport, Behaviour), ConfigError> {
    config.validate()?;
    let mut todo = VecDeque::new();
    let mut coordinators = HashMap::new();
    for a in config.coordinators {
        if let Some(Protocol::P2p(p)) = a.iter().last() {
            coordinators.insert(p, a.clone());
            todo.push_back(ToSwarm::Dial { opts: DialOpts::peer_id(p).addresses(vec![a]).build() });
        }
    }
    Ok((
        libp2p::quic::tokio::Transport::new(libp2p::quic::Config::new(key))
            .map(|(p, c), _| (p, StreamMuxerBox::new(c)))
            .boxed(),
        Behaviour { todo, coordinators },
    ))
}
pub fn with_io(
    key: &Keypair,
    config: Config,
    _: Arc<dyn Network>,
    _: Arc<dyn quinn::Runtime>,
) -> Result<(Transport, Behaviour), ConfigError> {
    new(key, config)
}
impl NetworkBehaviour for Behaviour {
    type ConnectionHandler = dummy::ConnectionHandler;
    type ToSwarm = Event;
    fn handle_established_inbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: &Multiaddr,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }
    fn handle_established_outbound_connection(
        &mut self,
        _: ConnectionId,
        _: PeerId,
        _: &Multiaddr,
        _: Endpoint,
        _: PortUse,
    ) -> Result<THandler<Self>, ConnectionDenied> {
        Ok(dummy::ConnectionHandler)
    }
    fn on_swarm_event(&mut self, event: FromSwarm<'_>) {
        if let FromSwarm::ConnectionEstablished(c) = event {
            if self.coordinators.contains_key(&c.peer_id) {
                self.todo.push_back(ToSwarm::GenerateEvent(Event::Registered { coordinator: c.peer_id }));
            }
        }
    }
    fn on_connection_handler_event(&mut self, _: PeerId, _: ConnectionId, event: THandlerOutEvent<Self>) {
        match event {}
    }
    fn poll(&mut self, _: &mut Context<'_>) -> Poll<ToSwarm<Event, THandlerInEvent<Self>>> {
        self.todo.pop_front().map_or(Poll::Pending, Poll::Ready)
    }
}
