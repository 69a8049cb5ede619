//! A coordinator that is known by its DNS name only, and peers whose transports are wrapped: names
//! outside, bandwidth metrics inside.

use std::{
    pin::Pin,
    sync::{Arc, Mutex},
    task::{Context, Poll},
};

use futures::{FutureExt, future::BoxFuture};
use libp2p::{
    Multiaddr, Swarm, SwarmBuilder,
    core::transport::{DialOpts, ListenerId, TransportError, TransportEvent},
    metrics,
    multiaddr::Protocol,
    swarm::SwarmEvent,
};
use libp2p_punch::{Behaviour, Config, Transport};
use libp2p_punch_sim::{Host, World};

use crate::network::{
    NEVER, Site, client, coordinator, listening, on_paused_time, parts, registered, run, until,
};

const NAME: &str = "coordinator.test";

/// Resolves one name, as libp2p-dns does: within the dial, and unseen by the swarm.
struct Names {
    inner: Arc<Mutex<Transport>>,
    address: Protocol<'static>,
}

impl Names {
    fn resolve(&self, address: &Multiaddr) -> Multiaddr {
        let resolved = |part| match part {
            Protocol::Dns4(name) if name == NAME => self.address.clone(),
            part => part.acquire(),
        };
        address.iter().map(resolved).collect()
    }
}

impl libp2p::core::Transport for Names {
    type Output = <Transport as libp2p::core::Transport>::Output;
    type Error = libp2p_punch::Error;
    type ListenerUpgrade = <Transport as libp2p::core::Transport>::ListenerUpgrade;
    type Dial = BoxFuture<'static, Result<Self::Output, Self::Error>>;

    fn listen_on(&mut self, id: ListenerId, address: Multiaddr) -> Result<(), TransportError<Self::Error>> {
        self.inner.lock().expect("not poisoned").listen_on(id, address)
    }

    fn remove_listener(&mut self, id: ListenerId) -> bool {
        self.inner.lock().expect("not poisoned").remove_listener(id)
    }

    fn dial(
        &mut self,
        address: Multiaddr,
        opts: DialOpts,
    ) -> Result<Self::Dial, TransportError<Self::Error>> {
        let (inner, address) = (self.inner.clone(), self.resolve(&address));
        Ok(async move {
            let dial = inner.lock().expect("not poisoned").dial(address, opts);
            match dial {
                Ok(dial) => dial.await,
                Err(TransportError::Other(error)) => Err(error),
                Err(TransportError::MultiaddrNotSupported(address)) => panic!("dialed {address}"),
            }
        }
        .boxed())
    }

    fn poll(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<TransportEvent<Self::ListenerUpgrade, Self::Error>> {
        Pin::new(&mut *self.inner.lock().expect("not poisoned")).poll(cx)
    }
}

/// Label of the bytes of sessions.
const SESSION_LABEL: &str = "/ip6/udp/quic-v1/p2p";

/// The protocols by which bytes are counted.
fn labels(registry: &metrics::Registry) -> Vec<String> {
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, registry).expect("it fits");
    let label = |line: &str| Some(line.split_once("protocols=\"")?.1.split_once('"')?.0.to_owned());
    text.lines().filter_map(label).collect()
}

fn wrapped(host: &Arc<Host>, seed: u8, config: Config, registry: &mut metrics::Registry) -> Swarm<Behaviour> {
    let (keypair, transport, punch) = parts(host, seed, config);
    let address = Protocol::Ip4([203, 0, 113, 254].into());
    let swarm = SwarmBuilder::with_existing_identity(keypair)
        .with_tokio()
        .with_other_transport(|_| Names { inner: Arc::new(Mutex::new(transport)), address })
        .expect("it is a transport")
        .with_bandwidth_metrics(registry)
        .with_behaviour(|_| punch)
        .expect("it is a behaviour")
        .with_swarm_config(|config| config.with_idle_connection_timeout(NEVER))
        .with_connection_timeout(NEVER)
        .build();
    listening(swarm)
}

#[test]
fn peers_that_know_their_coordinator_by_name_and_count_bytes_get_through() {
    on_paused_time(async {
        let world = World::new(1);
        let (_, address) = coordinator(&world);
        let named: Multiaddr =
            std::iter::once(Protocol::Dns4(NAME.into())).chain(address.iter().skip(1)).collect();
        let mut registries = [(); 2].map(|()| metrics::Registry::default());
        let [a, b] = [1, 2].map(|number| Site::EIM_APDF.host(&world, number, 0.0));
        let mut listener = wrapped(&b, 2, client(&named), &mut registries[1]);
        registered(&mut listener).await;
        let peer = run(listener);
        let mut dialer = wrapped(&a, 1, client(&named), &mut registries[0]);
        registered(&mut dialer).await;
        dialer.dial(peer).expect("not dialed yet");
        let endpoint = until(&mut dialer, |event| match event {
            SwarmEvent::ConnectionEstablished { peer_id, endpoint, .. } => {
                (peer_id == peer).then_some(Ok(endpoint))
            }
            SwarmEvent::OutgoingConnectionError { error, .. } => Some(Err(error.to_string())),
            _ => None,
        });
        assert!(!endpoint.await.expect("connected").is_relayed());
        // The traffic of the control stream is counted in any case.
        let control = async {
            while !labels(&registries[0]).contains(&SESSION_LABEL.to_owned()) {
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = control => {}
            () = async { loop { until(&mut dialer, |_| Some(())).await } } => {}
        }
        assert!(labels(&registries[0]).iter().all(|label| label.contains("/udp/quic-v1")));
    });
}
