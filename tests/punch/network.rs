//! Whole swarms on the simulated network.

use std::{sync::Arc, time::Duration};

use futures::StreamExt;
use libp2p::{
    Multiaddr, PeerId, Swarm, SwarmBuilder,
    identity::Keypair,
    swarm::{NetworkBehaviour, SwarmEvent},
};
use libp2p_punch::{Behaviour, Config, Event, RegistrationEvent, Role, Transport, transport::Stats};
use libp2p_punch_sim::{Filtering, Host, Link, Mapping, Nat, Ports, World};

/// The port of every listener.
pub(crate) const PORT: u16 = 4001;
/// A time that no test reaches, for the time-outs of libp2p-swarm and of libp2p's behaviours that a
/// test is not about. [`on_paused_time`] bounds a test instead.
pub(crate) const NEVER: Duration = Duration::from_secs(365 * 24 * 60 * 60);
/// The simulated time by which every test on paused time has ended.
const LIMIT: Duration = Duration::from_secs(60 * 60);

/// Access of a host to the Internet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Site {
    Public,
    Nat(Mapping, Filtering, Ports),
    NatBehindNat,
    /// EIM+APDF without a firewall: what comes too early does harm.
    Bare,
}

impl Site {
    pub(crate) const EIM_EIF: Self = eim(Filtering::EndpointIndependent, Ports::Preserving);
    pub(crate) const EIM_ADF: Self = eim(Filtering::AddressDependent, Ports::Preserving);
    pub(crate) const EIM_APDF: Self = eim(Filtering::AddressAndPortDependent, Ports::Preserving);
    pub(crate) const EIM_APDF_PORT_NOT_KEPT: Self = eim(Filtering::AddressAndPortDependent, Ports::Random);
    pub(crate) const APDM_RANDOM: Self =
        Self::Nat(Mapping::AddressAndPortDependent, Filtering::AddressAndPortDependent, Ports::Random);
    /// All that punching without prediction gets through on both sides.
    pub(crate) const EIM: [Self; 6] = [
        Self::Public,
        Self::EIM_EIF,
        Self::EIM_ADF,
        Self::EIM_APDF,
        Self::EIM_APDF_PORT_NOT_KEPT,
        Self::NatBehindNat,
    ];

    /// A host at this site; `number` tells sites of one world apart.
    pub(crate) fn host(self, world: &World, number: u8, loss: f64) -> Arc<Host> {
        let link = Link { loss, ..Link::with_latency(Duration::ZERO) };
        let outer = [198, 51, 100, number];
        match self {
            Self::Public => {
                let host = world.public_host([203, 0, 113, number]);
                world.set_link(&host, link);
                host
            }
            Self::Nat(mapping, filtering, ports) => {
                let gateway = world.nat(Nat { ports, ..Nat::new(mapping, filtering) }, outer);
                world.set_link(&gateway, link);
                gateway.host([192, 168, number, 2])
            }
            Self::Bare => {
                let gateway = world.nat(Nat { early_packets_harm: true, ..Nat::default() }, outer);
                world.set_link(&gateway, link);
                gateway.host([192, 168, number, 2])
            }
            Self::NatBehindNat => {
                let gateway = world.nat(Nat::default(), outer);
                world.set_link(&gateway, link);
                gateway.nat(Nat::default(), [10, 0, number, 2]).host([192, 168, number, 2])
            }
        }
    }
}

const fn eim(filtering: Filtering, ports: Ports) -> Site {
    Site::Nat(Mapping::EndpointIndependent, filtering, ports)
}

/// A swarm on `host` that listens on IPv4.
pub(crate) fn swarm<B, F>(host: &Arc<Host>, seed: u8, config: Config, behaviour: F) -> Swarm<B>
where
    B: NetworkBehaviour,
    F: FnOnce(Behaviour, &Keypair) -> B,
{
    swarm_and_stats(host, seed, config, behaviour).0
}

/// As [`swarm`], and what its transport can tell.
pub(crate) fn swarm_and_stats<B, F>(
    host: &Arc<Host>,
    seed: u8,
    config: Config,
    behaviour: F,
) -> (Swarm<B>, Stats)
where
    B: NetworkBehaviour,
    F: FnOnce(Behaviour, &Keypair) -> B,
{
    let (keypair, transport, punch) = parts(host, seed, config);
    let stats = transport.stats();
    let swarm = SwarmBuilder::with_existing_identity(keypair.clone())
        .with_tokio()
        .with_other_transport(|_| transport)
        .expect("it is a transport")
        .with_behaviour(|_| behaviour(punch, &keypair))
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    (listening(swarm), stats)
}

/// The identity of a swarm with this seed.
pub(crate) fn keypair(seed: u8) -> Keypair {
    Keypair::ed25519_from_bytes([seed; 32]).expect("32 bytes make a key")
}

/// Returns the parts of a swarm at `host`.
pub(crate) fn parts(host: &Arc<Host>, seed: u8, config: Config) -> (Keypair, Transport, Behaviour) {
    let keypair = keypair(seed);
    let runtime = libp2p_punch::io::Runtime::tokio();
    let (transport, punch) = libp2p_punch::with_io(&keypair, config, host.clone(), runtime).expect("valid");
    (keypair, transport, punch)
}

/// The swarm, told to listen on IPv4.
pub(crate) fn listening<B: NetworkBehaviour>(mut swarm: Swarm<B>) -> Swarm<B> {
    let address = format!("/ip4/0.0.0.0/udp/{PORT}/quic-v1").parse().expect("valid");
    swarm.listen_on(address).expect("port is free");
    swarm
}

/// A coordinator at 203.0.113.254; its address. It runs until the runtime ends.
pub(crate) fn coordinator(world: &World) -> (Arc<Host>, Multiaddr) {
    let host = world.public_host([203, 0, 113, 254]);
    world.set_link(&host, Link::with_latency(Duration::ZERO));
    let mut swarm = swarm(
        &host,
        254,
        {
            let mut config = Config::default();
            config.role = Role::Server;
            config
        },
        |punch, _| punch,
    );
    let address = format!("/ip4/203.0.113.254/udp/{PORT}/quic-v1/p2p/{}", swarm.local_peer_id());
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    (host, address.parse().expect("valid"))
}

/// The configuration of a peer that uses this coordinator.
pub(crate) fn client(coordinator: &Multiaddr) -> Config {
    {
        let mut config = Config::default();
        config.coordinators = vec![coordinator.clone()];
        config
    }
}

/// Drives a swarm until `pick` finds what it looks for.
pub(crate) async fn until<B: NetworkBehaviour, T>(
    swarm: &mut Swarm<B>,
    mut pick: impl FnMut(SwarmEvent<B::ToSwarm>) -> Option<T>,
) -> T {
    loop {
        if let Some(found) = pick(swarm.select_next_some().await) {
            return found;
        }
    }
}

/// Drives a swarm for ever, in the background.
pub(crate) fn run<B: NetworkBehaviour<ToSwarm: Send> + Send>(mut swarm: Swarm<B>) -> PeerId
where
    Swarm<B>: Send,
{
    let peer = *swarm.local_peer_id();
    tokio::spawn(async move {
        loop {
            swarm.select_next_some().await;
        }
    });
    peer
}

/// Waits until the coordinator has accepted this swarm's registration.
pub(crate) async fn registered(swarm: &mut Swarm<Behaviour>) {
    until(swarm, |event| {
        matches!(event, SwarmEvent::Behaviour(Event::Registration(RegistrationEvent::Accepted { .. })))
            .then_some(())
    })
    .await
}

/// Runs `future` on a runtime of its own, whose clock jumps to the next timer whenever nothing else
/// is to be done.
///
/// Panics if it has not ended after an hour of simulated time.
pub(crate) fn on_paused_time<T>(future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    let runtime = builder.enable_all().start_paused(true).build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(LIMIT, future).await.expect("the test ends") })
}
