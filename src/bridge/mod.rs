//! The bridge between transport and behaviour: bounded channels, and the task that drives `proto`.
//!
//! The driver takes the inputs of sockets, control streams, interfaces, handshakes and the
//! application, passes them to the [`Endpoint`], and carries out the endpoint's decisions. The
//! driver is a task of its own, so that a busy swarm does not delay a probe.

mod dials;
mod driver;
mod events;
mod inbox;
mod reports;
#[cfg(test)]
mod tests;

use std::{
    sync::{Arc, Mutex},
    time::{SystemTime, UNIX_EPOCH},
};

use libp2p_identity::Keypair;
use quinn::Runtime;
use tokio::sync::mpsc;
use tokio_util::sync::PollSender;

use self::{driver::Driver, inbox::Inbox, reports::Reports};
use crate::{
    behaviour::{Behaviour, Ends},
    config::Config,
    counters::Counters,
    io::{InterfaceWatch, Network},
    transport::{Error, Transport, path::PathLayer, quic::Quic},
};
use libp2p_punch_proto::endpoint::Endpoint;

/// Messages that may wait on each channel before its sender has to.
const QUEUE: usize = 256;
/// Largest number of waiting probes and notices of virtual connections. Further probes are dropped,
/// as on a full socket.
const PROBE_QUEUE: usize = 1024;
/// Events that may wait for a swarm that is busy. Beyond that the driver keeps those that must not
/// be lost.
const EVENT_QUEUE: usize = 4096;

/// Makes a transport and a behaviour that work together, and spawns the driver between them.
pub(crate) fn build(
    keypair: &Keypair,
    config: Config,
    network: Arc<dyn Network>,
    runtime: Arc<dyn Runtime>,
) -> Result<(Transport, Behaviour), Error> {
    config.validate()?;
    let (seed, secret) = (network.seed(), network.seed());
    let (notice_sender, notices) = mpsc::channel(QUEUE);
    let (inbound, inbound_receiver) = mpsc::channel(QUEUE);
    let (input_sender, inputs) = mpsc::channel(QUEUE);
    let (event_sender, events) = mpsc::channel(EVENT_QUEUE);
    let counters = Arc::new(Mutex::new(Counters::default()));

    let quic = Quic::new(keypair, &config.quic)?;
    let keys = quic.session_keys();
    let (path_sender, path_notices) = mpsc::channel(PROBE_QUEUE);
    let path = PathLayer::new(network.clone(), runtime.clone(), Box::new(quic.clone()), keys, path_sender)?;
    let interfaces = InterfaceWatch::start(network.clone(), runtime.clone());
    let transport = Transport::bridged(
        quic,
        network,
        runtime.clone(),
        notice_sender,
        inbound_receiver,
        path.clone(),
        interfaces.subscribe(),
    );
    let ends = Ends {
        driver: input_sender,
        events,
        offers: transport.offers(),
        contacts: transport.contacts(),
        counters: counters.clone(),
        runtime: runtime.clone(),
        secret,
    };
    let behaviour = Behaviour::new(keypair.public().to_peer_id(), &config, ends)?;
    let mut endpoint = Endpoint::new(&config.protocol(), keypair.clone(), seed, generation());
    endpoint.limit_sockets(path.socket_budget().limit());
    let driver = Driver::new(
        endpoint,
        driver::Shared {
            path,
            connections: transport.connections(),
            offers: transport.offers(),
            contacts: transport.contacts(),
            ready: transport.ready(),
        },
        runtime.clone(),
        Inbox {
            path: path_notices,
            transport: notices,
            swarm: inputs,
            interfaces: Some(interfaces),
            held: None,
        },
        driver::Outputs { news: Reports::new(event_sender), inbound: PollSender::new(inbound) },
        counters,
        config.relay_fallback,
    );
    runtime.spawn(Box::pin(driver));
    Ok((transport, behaviour))
}

/// The generation above which those of this process begin: the microseconds since 1970, and 0 where
/// the clock is before that. A peer that starts again has registered fewer times than microseconds
/// have passed, unless its clock was set back meanwhile.
fn generation() -> u64 {
    let since_epoch = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since_epoch.as_micros()).unwrap_or(u64::MAX)
}
