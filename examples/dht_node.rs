//! A node of a DHT with one bootstrap address and no configured coordinator: `put` on a node behind
//! one NAT, `get` on a node behind another.
//!
//! The value stays with the node that puts it. A record of the DHT names that node, the DHT leads
//! to the coordinators of that node, and the value comes over a direct connection. A provider
//! record would not do: libp2p-kad leaves out providers that have no address.
//!
//! ```sh
//! cargo run --features kad --example dht_node                              # in a simulated network
//! cargo run --features kad --example dht_node -- serve [BOOTSTRAP]         # on a host that others reach
//! cargo run --features kad --example dht_node -- put BOOTSTRAP NAME VALUE  # behind a NAT
//! cargo run --features kad --example dht_node -- get BOOTSTRAP NAME        # behind another NAT
//! ```
//!
//! BOOTSTRAP is an address that `serve` prints, `/ip4/…/udp/…/quic-v1/p2p/…`. The last three also
//! work on one host.

use std::{env, error::Error, sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, StreamProtocol, Swarm, SwarmBuilder, identify,
    identity::Keypair,
    kad::{self, GetRecordOk, QueryResult, Quorum, Record, RecordKey, store::MemoryStore},
    multiaddr::Protocol,
    request_response::{self, Message, ProtocolSupport, cbor},
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Config, Event, RegistrationEvent, Role, SessionEvent, Transport, io::Runtime};
use libp2p_punch_sim::{Host, Nat, World};
use tokio::sync::oneshot;

/// Errors of many kinds, in words.
type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

#[derive(NetworkBehaviour)]
struct Behaviour {
    punch: libp2p_punch::Behaviour,
    kad: libp2p_punch::kad::Behaviour<MemoryStore>,
    identify: identify::Behaviour,
    /// The name of a value, and the value.
    values: cbor::Behaviour<String, Option<String>>,
}

/// Purpose of a node.
enum Task {
    Serve,
    Put { name: String, value: String, done: Option<oneshot::Sender<()>> },
    Get { name: String },
}

#[tokio::main]
async fn main() -> Result<()> {
    let arguments: Vec<String> = env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let (bootstrap, task) = match words[..] {
        [] => return tokio::task::spawn_blocking(simulate).await?,
        ["serve"] => (None, Task::Serve),
        ["serve", bootstrap] => (Some(bootstrap.parse()?), Task::Serve),
        ["put", bootstrap, name, value] => {
            let (name, value) = (name.to_owned(), value.to_owned());
            (Some(bootstrap.parse()?), Task::Put { name, value, done: None })
        }
        ["get", bootstrap, name] => (Some(bootstrap.parse()?), Task::Get { name: name.to_owned() }),
        _ => {
            return Err(
                "usage: dht_node [serve [BOOTSTRAP] | put BOOTSTRAP NAME VALUE | get BOOTSTRAP NAME]".into(),
            );
        }
    };
    let mut config = Config::default();
    // A node with `Role::Auto` coordinates once AutoNAT or the application has confirmed a global
    // address of it.
    config.role = if matches!(task, Task::Serve) { Role::Server } else { Role::Auto };
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) = libp2p_punch::new(&keypair, config)?;
    run(swarm(keypair, transport, punch, 0)?, bootstrap, task).await
}

/// Builds a node. It needs only one line more for the DHT than for this library alone.
fn swarm(
    keypair: Keypair,
    transport: Transport,
    mut punch: libp2p_punch::Behaviour,
    port: u16,
) -> Result<Swarm<Behaviour>> {
    let local_peer = keypair.public().to_peer_id();
    // Dials of a peer ask the DHT which nodes are nearest to it: these coordinate for it.
    let kad = kad::Behaviour::new(local_peer, MemoryStore::new(local_peer));
    let kad = libp2p_punch::kad::Behaviour::new(kad, punch.coordinator_lookup());
    let protocol = (StreamProtocol::new("/example/values/1"), ProtocolSupport::Full);
    // A dial may take longer than the default, 10 s.
    let requests = request_response::Config::default().with_request_timeout(Duration::from_secs(60));
    let mut swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| transport)?
        .with_behaviour(|keypair| Behaviour {
            punch,
            kad,
            identify: identify::Behaviour::new(identify::Config::new("/example/1".into(), keypair.public())),
            values: cbor::Behaviour::new([protocol], requests),
        })?
        .with_swarm_config(|config| config.with_idle_connection_timeout(Duration::from_secs(10)))
        .with_connection_timeout(Duration::from_secs(60))
        .build();
    swarm.listen_on(format!("/ip4/0.0.0.0/udp/{port}/quic-v1").parse()?)?;
    Ok(swarm)
}

/// A running node.
struct Node {
    swarm: Swarm<Behaviour>,
    task: Task,
    is_registered: bool,
    has_asked: bool,
}

/// Runs a node: until it has the value, or for ever.
async fn run(mut swarm: Swarm<Behaviour>, bootstrap: Option<Multiaddr>, task: Task) -> Result<()> {
    match bootstrap {
        None => swarm.behaviour_mut().kad.set_mode(Some(kad::Mode::Server)),
        Some(address) => {
            let Some(Protocol::P2p(peer)) = address.iter().last() else {
                return Err(format!("{address} must end in /p2p/PEER_ID").into());
            };
            swarm.behaviour_mut().kad.add_address(&peer, address);
            swarm.behaviour_mut().kad.bootstrap()?;
        }
    }
    let mut node = Node { swarm, task, is_registered: false, has_asked: false };
    loop {
        match node.swarm.select_next_some().await {
            SwarmEvent::NewListenAddr { address, .. } if matches!(node.task, Task::Serve) => {
                println!("listening on {address}/p2p/{}", node.swarm.local_peer_id());
            }
            SwarmEvent::Behaviour(event) => {
                if let Some(value) = node.handle(event)? {
                    println!("{} got {value:?}", node.swarm.local_peer_id());
                    return Ok(());
                }
            }
            _ => {}
        }
    }
}

impl Node {
    /// Returns the value that this node wants, once it has come.
    fn handle(&mut self, event: BehaviourEvent) -> Result<Option<String>> {
        use request_response::Event::{Message, OutboundFailure};
        match event {
            // Kademlia learns addresses from identify, as in every libp2p application.
            BehaviourEvent::Identify(identify::Event::Received { peer_id, info, .. })
                if info.protocols.contains(&kad::PROTOCOL_NAME) =>
            {
                for address in info.listen_addrs {
                    self.swarm.behaviour_mut().kad.add_address(&peer_id, address);
                }
            }
            BehaviourEvent::Punch(Event::Registration(RegistrationEvent::Accepted { .. })) => {
                self.registered()?;
            }
            BehaviourEvent::Punch(Event::Session(SessionEvent::Connected { peer, path, kind, .. })) => {
                let local_peer = self.swarm.local_peer_id();
                println!("{local_peer} is connected to {peer} at {}, {kind}", path.remote);
            }
            BehaviourEvent::Kad(kad::Event::OutboundQueryProgressed { result, .. }) => {
                self.query_progressed(result)?;
            }
            BehaviourEvent::Values(Message { message, .. }) => return Ok(self.value_message(message)),
            BehaviourEvent::Values(OutboundFailure { peer, error, .. }) => {
                return Err(format!("cannot ask {peer}: {error}").into());
            }
            _ => {}
        }
        Ok(None)
    }

    /// A coordinator registered this node: from now on, others find it by its PeerId.
    fn registered(&mut self) -> Result<()> {
        if std::mem::replace(&mut self.is_registered, true) {
            return Ok(());
        }
        let holder = self.swarm.local_peer_id().to_bytes();
        let kad = &mut self.swarm.behaviour_mut().kad;
        match &self.task {
            Task::Serve => {}
            Task::Put { name, .. } => {
                kad.put_record(Record::new(RecordKey::new(name), holder), Quorum::One)?;
            }
            Task::Get { name } => {
                kad.get_record(RecordKey::new(name));
            }
        }
        Ok(())
    }

    fn query_progressed(&mut self, result: QueryResult) -> Result<()> {
        let local_peer = *self.swarm.local_peer_id();
        match (result, &mut self.task) {
            (QueryResult::PutRecord(result), Task::Put { name, done, .. }) => {
                result?;
                println!("{local_peer} holds {name:?}");
                if let Some(done) = done.take() {
                    let _ = done.send(());
                }
            }
            (QueryResult::GetRecord(result), Task::Get { name }) => {
                if let GetRecordOk::FoundRecord(found) = result?
                    && !std::mem::replace(&mut self.has_asked, true)
                {
                    let holder = PeerId::from_bytes(&found.record.value)?;
                    println!("{local_peer} asks {holder} for {name:?}");
                    // The request dials the holder.
                    self.swarm.behaviour_mut().values.send_request(&holder, name.clone());
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Answers a request for a value, or returns the value of an answer.
    fn value_message(&mut self, message: Message<String, Option<String>>) -> Option<String> {
        match message {
            Message::Request { request, channel, .. } => {
                let held = match &self.task {
                    Task::Put { name, value, .. } if *name == request => Some(value.clone()),
                    _ => None,
                };
                let _ = self.swarm.behaviour_mut().values.send_response(channel, held);
                None
            }
            Message::Response { response, .. } => {
                if response.is_none() {
                    println!("the node does not hold the value any more");
                }
                response
            }
        }
    }
}

/// Runs three public nodes and six behind NATs on a simulated network, whose clock jumps to the
/// next event. One of the six puts a value, another gets it.
fn simulate() -> Result<()> {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    builder.enable_all().start_paused(true).build()?.block_on(async {
        let world = World::new(1);
        let mut bootstrap = None;
        for number in 1..=3 {
            let address: Multiaddr = format!("/ip4/203.{number}.113.1/udp/4001/quic-v1").parse()?;
            let mut swarm = simulated(&world.public_host([203, number, 113, 1]))?;
            // As AutoNAT would find, or the operator says.
            swarm.add_external_address(address.clone());
            let address = address.with(Protocol::P2p(*swarm.local_peer_id()));
            let known = bootstrap.get_or_insert(address.clone()).clone();
            let known = Some(known).filter(|known| *known != address);
            tokio::spawn(run(swarm, known, Task::Serve));
        }
        let hidden = |number: u8| {
            simulated(&world.nat(Nat::default(), [203, 0, 113, number]).host([192, 168, number, 2]))
        };
        for number in 1..=4 {
            tokio::spawn(run(hidden(number)?, bootstrap.clone(), Task::Serve));
        }
        let (done, put) = oneshot::channel();
        let (name, value) = ("greeting".to_owned(), "hello from behind a NAT".to_owned());
        tokio::spawn(run(
            hidden(5)?,
            bootstrap.clone(),
            Task::Put { name: name.clone(), value, done: Some(done) },
        ));
        put.await?;
        run(hidden(6)?, bootstrap, Task::Get { name }).await
    })
}

fn simulated(host: &Arc<Host>) -> Result<Swarm<Behaviour>> {
    let keypair = Keypair::generate_ed25519();
    let (transport, punch) =
        libp2p_punch::with_io(&keypair, Config::default(), host.clone(), Runtime::tokio())?;
    swarm(keypair, transport, punch, 4001)
}
