//! The world of the demo, and what is done in it.

use std::{net::Ipv4Addr, sync::Arc, time::Duration};

use libp2p::{Multiaddr, PeerId, identity::Keypair, multiaddr::Protocol};
use libp2p_punch::config::{Config, Role};
use libp2p_punch_sim::{Host, Link, Record, Trace, World};
use tokio::{
    sync::oneshot,
    time::{Instant, timeout, timeout_at},
};

use super::{
    Arguments, Setting,
    nat::Behind,
    story::{Story, fate, in_milliseconds},
};
use crate::{
    dial::{self, Trouble},
    exit::{Exit, Failure},
    node::Node,
    report::{Report, print},
    swarm,
};

const COORDINATOR: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
const PORT: u16 = 4001;
/// Addresses of a peer: on the WAN, on the LAN, and between two NATs.
const DIALER: [Ipv4Addr; 3] =
    [Ipv4Addr::new(198, 51, 100, 10), Ipv4Addr::new(192, 168, 1, 2), Ipv4Addr::new(100, 64, 1, 2)];
const LISTENER: [Ipv4Addr; 3] =
    [Ipv4Addr::new(192, 0, 2, 20), Ipv4Addr::new(10, 0, 0, 2), Ipv4Addr::new(100, 64, 2, 2)];
/// Simulated time after which the dial is given up.
const PATIENCE: Duration = Duration::from_secs(60);
/// Simulated time between the registrations and the dial.
const QUIET: Duration = Duration::from_secs(1);
/// Bytes of the ping and of the transfer, each there and back.
const PING: usize = 64;
const TRANSFER: usize = 1 << 20;
/// The most probes that the story shows. Later ones keep looking for a better path.
const PROBES_SHOWN: usize = 12;

/// What came of it.
pub(crate) struct Outcome {
    pub(crate) relayed: bool,
    pub(crate) elapsed: Duration,
    ping: Duration,
    transfer: Duration,
}

/// Plays the scene and prints the story.
pub(super) async fn play(arguments: &Arguments) -> Result<Exit, Failure> {
    let world = World::new(arguments.seed);
    let trace = Trace::start(&world);
    let hosts = hosts(&world, &arguments.setting());
    let keys: [Keypair; 3] = std::array::from_fn(|_| Keypair::generate_ed25519());
    let [coordinator, listener, dialer] = keys.each_ref().map(|key| key.public().to_peer_id());
    let names = vec![(coordinator, "coordinator"), (listener, "listener"), (dialer, "dialer")];
    let story = Arc::new(Story::new(names));
    introduce(arguments)?;

    let mut dialer = peers(keys, hosts, &story).await?;
    settle(&mut dialer).await?;
    let asked = story.now();
    let result = timeout(PATIENCE, exchange(&mut dialer, listener)).await.unwrap_or_else(|_| {
        let message = format!("no connection within {} s", PATIENCE.as_secs());
        Err(Trouble::Failed { reason: "timeout", message })
    });
    let probes = tell_probes(&story, &trace, asked);
    print("The coordinator gets to know the peers (simulated time):\n")?;
    print(&story.between(Duration::ZERO, asked))?;
    print("The dialer asks for the listener (simulated time since then):\n")?;
    print(&story.between(asked, Duration::MAX))?;
    match result {
        Ok(outcome) => {
            conclude(arguments, &outcome, &probes)?;
            Ok(if outcome.relayed { Exit::Relayed } else { Exit::Success })
        }
        Err(Trouble::Program(failure)) => Err(failure),
        Err(Trouble::Failed { message, .. }) => {
            Err(Failure { exit: Exit::Failed, message: format!("the peers did not connect: {message}") })
        }
    }
}

/// The same without a story: the peers meet once, within so much simulated time.
pub(crate) async fn meet(setting: &Setting, seed: u64, patience: Duration) -> Result<Outcome, Trouble> {
    let world = World::new(seed);
    let keys: [Keypair; 3] = std::array::from_fn(|_| Keypair::generate_ed25519());
    let listener = keys[1].public().to_peer_id();
    let silent = Arc::new(Story::new(Vec::new()));
    let mut dialer = peers(keys, hosts(&world, setting), &silent).await?;
    settle(&mut dialer).await?;
    timeout(patience, exchange(&mut dialer, listener)).await.unwrap_or_else(|_| {
        let message = format!("no connection within {} s", patience.as_secs_f64());
        Err(Trouble::Failed { reason: "timeout", message })
    })
}

/// Hosts of the coordinator, the listener and the dialer.
fn hosts(world: &World, setting: &Setting) -> [Arc<Host>; 3] {
    let coordinator = world.public_host(COORDINATOR);
    // Every path crosses two links.
    let link = Link { loss: 1.0 - (1.0 - setting.loss / 100.0).sqrt(), ..Link::default() };
    world.set_link(&coordinator, link);
    let behind = |nat: &Behind, [wan, lan, between]: [Ipv4Addr; 3]| {
        let host = match nat {
            Behind::Public => world.public_host(wan),
            Behind::One(nat) => world.nat(nat.clone(), wan).host(lan),
            Behind::Two(nat) => world.nat(nat.clone(), wan).nat(nat.clone(), between).host(lan),
        };
        world.set_link(&host, link);
        host
    };
    let dialer = behind(&setting.dialer, DIALER);
    let listener = behind(&setting.listener, LISTENER);
    let [a, b, d] = setting.round_trips.map(|rtt| rtt / 2);
    world.set_path(&dialer, &coordinator, a);
    world.set_path(&listener, &coordinator, b);
    world.set_path(&dialer, &listener, d);
    [coordinator, listener, dialer]
}

/// Starts coordinator and listener as tasks, and returns the dialer. All of them are registered then.
async fn peers(keys: [Keypair; 3], hosts: [Arc<Host>; 3], story: &Arc<Story>) -> Result<Node, Failure> {
    let [coordinator_key, listener_key, dialer_key] = keys;
    let [coordinator_host, listener_host, dialer_host] = hosts;
    let listen = Multiaddr::from(COORDINATOR).with(Protocol::Udp(PORT)).with(Protocol::QuicV1);
    let known = listen.clone().with(Protocol::P2p(coordinator_key.public().to_peer_id()));

    let server = Config { role: Role::Server, ..Config::default() };
    // Nobody reads what the coordinator has to say: the peers tell the same.
    let silent = Arc::new(Story::new(Vec::new()));
    let mut coordinator = node(coordinator_key, server, coordinator_host, ("coordinator", &silent))?;
    coordinator.listen_on(&[listen])?;
    tokio::spawn(serve(coordinator));

    let client = Config { role: Role::Client, coordinators: vec![known], ..Config::default() };
    let mut listener = node(listener_key, client.clone(), listener_host, ("listener", story))?;
    listener.listen_on(&[anywhere()])?;
    let (sender, registered) = oneshot::channel();
    tokio::spawn(async move {
        let result = listener.register().await;
        let go_on = result.is_ok();
        // The receiver is gone only if the scene has ended.
        if sender.send(result).is_ok() && go_on {
            serve(listener).await;
        }
    });
    let mut dialer = node(dialer_key, client, dialer_host, ("dialer", story))?;
    dialer.listen_on(&[anywhere()])?;
    dialer.register().await?;
    registered.await.map_err(|_| Failure::error("the listener ended"))??;
    Ok(dialer)
}

fn node(
    key: Keypair,
    config: Config,
    host: Arc<Host>,
    (name, story): (&'static str, &Arc<Story>),
) -> Result<Node, Failure> {
    let coordinators = config.coordinators.clone();
    let peer = swarm::with_io(key, config, host, Arc::new(quinn::TokioRuntime))?;
    Ok(Node::with_swarm(peer, &coordinators, Report::story(name, story.clone())))
}

fn anywhere() -> Multiaddr {
    Multiaddr::from(Ipv4Addr::UNSPECIFIED).with(Protocol::Udp(PORT)).with(Protocol::QuicV1)
}

/// Answers whoever comes, until the scene ends.
async fn serve(mut node: Node) {
    while node.next().await.is_ok() {}
}

/// Lets everything end that began with the registrations, so that nothing of it is in the way of the dial.
async fn settle(dialer: &mut Node) -> Result<(), Failure> {
    let deadline = Instant::now() + QUIET;
    while let Ok(happening) = timeout_at(deadline, dialer.next()).await {
        happening?;
    }
    Ok(())
}

/// Connects to the listener and sends something.
async fn exchange(dialer: &mut Node, listener: PeerId) -> Result<Outcome, Trouble> {
    let asked = Instant::now();
    let relayed = dial::connect(dialer, listener).await?;
    let elapsed = asked.elapsed();
    let ping = dial::echo(dialer, listener, PING).await?;
    let transfer = dial::echo(dialer, listener, TRANSFER).await?;
    Ok(Outcome { relayed, elapsed, ping, transfer })
}

/// The cast.
fn introduce(arguments: &Arguments) -> Result<(), Failure> {
    let [a, b, d] = arguments.setting().round_trips.map(in_milliseconds);
    let Arguments { dialer_nat, listener_nat, loss, seed, .. } = arguments;
    let place = |nat: &Behind, [wan, lan, _]: [Ipv4Addr; 3]| match nat {
        Behind::Public => format!("{wan:<15}  {nat}"),
        _ => format!("{lan:<15}  behind {wan}: {nat}"),
    };
    print(&format!(
        "  dialer       {}\n  listener     {}\n  coordinator  {COORDINATOR:<15}  no NAT\n\n  \
         round trips  dialer-coordinator {a}, listener-coordinator {b}, dialer-listener {d}\n  \
         network      loss {loss}%, seed {seed}\n",
        place(dialer_nat, DIALER),
        place(listener_nat, LISTENER),
    ))
}

/// Whether a datagram is a probe: nothing else begins so (RFC 9443 §2).
fn is_probe(record: &Record) -> bool {
    record.first.is_some_and(|first| (4..=15).contains(&first))
}

/// Adds the probes to the story; returns all of them.
fn tell_probes(story: &Story, trace: &Trace, asked: Duration) -> Vec<Record> {
    let mut probes = trace.records();
    probes.retain(|record| is_probe(record) && record.sent >= asked);
    probes.sort_by_key(|record| record.id);
    for (index, record) in probes.iter().enumerate() {
        let who = match record.from.ip() {
            ip if DIALER.iter().any(|own| ip == *own) => "dialer",
            ip if LISTENER.iter().any(|own| ip == *own) => "listener",
            _ => "somebody",
        };
        if index == PROBES_SHOWN {
            let text = format!("and {} more, which are not shown", probes.len() - index);
            story.tell_at(record.sent, "both", "probe", text);
            break;
        }
        story.tell_at(record.sent, who, "probe", format!("to {} {}", record.to, fate(record)));
    }
    probes
}

/// How it went, and how well.
fn conclude(arguments: &Arguments, outcome: &Outcome, probes: &[Record]) -> Result<(), Failure> {
    let [a, b, d] = arguments.setting().round_trips;
    let bound = (a + b + d) / 2;
    let path = if outcome.relayed { "through a relay" } else { "directly" };
    let over = outcome.elapsed.saturating_sub(bound);
    let (bytes, seconds) =
        (probes.iter().map(|probe| probe.size).sum::<usize>(), outcome.transfer.as_secs_f64());
    let speed = (TRANSFER * 2 * 8) as f64 / 1e6 / seconds.max(1e-9);
    let rtts = outcome.elapsed.as_secs_f64() / d.as_secs_f64().max(1e-9);
    let in_rtts = if d.is_zero() { String::new() } else { format!(", {rtts:.2} times their round trip") };
    print(&format!(
        "Connected {path}.\n\n  \
         connect   {}{in_rtts}\n  \
         bound     {}, half of the three round trips: no scheme with a third party is faster; we took {} more\n  \
         probes    {}, {bytes} bytes in all\n  \
         ping      {} there and back\n  \
         transfer  1 MiB there and back in {}, {speed:.0} Mbit/s",
        in_milliseconds(outcome.elapsed),
        in_milliseconds(bound),
        in_milliseconds(over),
        probes.len(),
        in_milliseconds(outcome.ping),
        in_milliseconds(outcome.transfer),
    ))
}
