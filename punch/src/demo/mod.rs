//! `punch demo`: shows how two simulated peers behind NATs find each other.

mod args;
mod timeline;

use std::{net::IpAddr, sync::Arc, time::Duration};

use libp2p_punch_sim::{Record, Trace, World};

pub(crate) use self::args::Arguments;
use self::timeline::{Timeline, TimelineObserver, fate, in_milliseconds};
use crate::{
    exit::{Exit, Failure},
    node::DialFailure,
    output::print,
    simulation::{
        COORDINATOR, DIALER, HostAddresses, LISTENER, Measurement, NatSpec, PeerKeys, PeerObservers,
        Scenario, TRANSFER_LENGTH, run_in_simulated_time,
    },
};

/// Simulated time for the dial.
const DIAL_TIMEOUT: Duration = Duration::from_secs(60);
/// Probes that the time line shows. Later ones look for a better path.
const PROBES_SHOWN: usize = 12;

/// Runs the scenario and prints the time line.
pub(crate) fn run(arguments: &Arguments) -> Result<Exit, Failure> {
    run_in_simulated_time(play(arguments))?
}

async fn play(arguments: &Arguments) -> Result<Exit, Failure> {
    let scenario = arguments.scenario();
    let world = World::new(arguments.seed);
    let trace = Trace::start(&world);
    let keys = PeerKeys::generate();
    let names = [(&keys.coordinator, "coordinator"), (&keys.listener, "listener"), (&keys.dialer, "dialer")]
        .map(|(key, name)| (key.public().to_peer_id(), name));
    let timeline = Arc::new(Timeline::new(names.to_vec()));
    print_scenario(&scenario, arguments.seed)?;

    let observers = PeerObservers {
        listener: Box::new(TimelineObserver::new("listener", &timeline)),
        dialer: Box::new(TimelineObserver::new("dialer", &timeline)),
    };
    let mut dialer = scenario.start(&world, keys, observers).await?;
    let dialed = timeline.now();
    let result = dialer.exchange(DIAL_TIMEOUT).await;
    let probes = add_probes(&timeline, &trace, dialed);
    print("The peers register with the coordinator (simulated time):\n")?;
    print(&timeline.between(Duration::ZERO, dialed))?;
    print("The dialer asks for the listener (simulated time since then):\n")?;
    print(&timeline.between(dialed, Duration::MAX))?;
    match result {
        Ok(measurement) => {
            print_measurement(&scenario, &measurement, &probes)?;
            Ok(if measurement.is_relayed { Exit::Relayed } else { Exit::Success })
        }
        Err(DialFailure::Node(error)) => Err(error.into()),
        Err(failure) => {
            let message = format!("the peers did not connect: {failure}");
            Err(Failure { exit: Exit::Failed, message, explanation: None })
        }
    }
}

/// Prints the peers and the network between them.
fn print_scenario(scenario: &Scenario, seed: u64) -> Result<(), Failure> {
    let Scenario { dialer, listener, round_trips, loss } = scenario;
    let place = |nat: &NatSpec, addresses: HostAddresses| match nat {
        NatSpec::Public => format!("{:<15}  {nat}", addresses.public),
        _ => format!("{:<15}  behind {}: {nat}", addresses.private, addresses.public),
    };
    print(&format!(
        "  dialer       {}\n  listener     {}\n  coordinator  {COORDINATOR:<15}  no NAT\n\n  \
         round trips  dialer-coordinator {}, listener-coordinator {}, dialer-listener {}\n  \
         network      loss {loss}%, seed {seed}\n",
        place(dialer, DIALER),
        place(listener, LISTENER),
        in_milliseconds(round_trips.dialer_coordinator),
        in_milliseconds(round_trips.listener_coordinator),
        in_milliseconds(round_trips.dialer_listener),
    ))
}

/// Returns true for a probe: no other datagram begins with these bytes (RFC 9443 §2).
fn is_probe(record: &Record) -> bool {
    record.first.is_some_and(|first| (4..=15).contains(&first))
}

/// Adds the probes since the dial to the time line, and returns them.
fn add_probes(timeline: &Timeline, trace: &Trace, dialed: Duration) -> Vec<Record> {
    let mut probes = trace.records();
    probes.retain(|record| is_probe(record) && record.sent >= dialed);
    probes.sort_by_key(|record| record.id);
    for (index, record) in probes.iter().enumerate() {
        let peer = match record.from.ip() {
            IpAddr::V4(ip) if DIALER.contains(ip) => "dialer",
            IpAddr::V4(ip) if LISTENER.contains(ip) => "listener",
            _ => "somebody",
        };
        if index == PROBES_SHOWN {
            let text = format!("and {} more, which are not shown", probes.len() - index);
            timeline.add(record.sent, "both", "probe", text);
            break;
        }
        timeline.add(record.sent, peer, "probe", format!("to {} {}", record.to, fate(record)));
    }
    probes
}

/// Prints the times of the exchange.
fn print_measurement(
    scenario: &Scenario,
    measurement: &Measurement,
    probes: &[Record],
) -> Result<(), Failure> {
    let bound = scenario.round_trips.bound();
    let path = if measurement.is_relayed { "through a relay" } else { "directly" };
    let over = measurement.elapsed.saturating_sub(bound);
    let bytes = probes.iter().map(|probe| probe.size).sum::<usize>();
    let bits = (TRANSFER_LENGTH * 2 * 8) as f64;
    let speed = bits / 1e6 / measurement.transfer.as_secs_f64().max(1e-9);
    let round_trip = scenario.round_trips.dialer_listener;
    let rtts = measurement.elapsed.as_secs_f64() / round_trip.as_secs_f64().max(1e-9);
    let in_rtts =
        if round_trip.is_zero() { String::new() } else { format!(", {rtts:.2} times their round trip") };
    print(&format!(
        "Connected {path}.\n\n  \
         connect   {}{in_rtts}\n  \
         bound     {}, half of the three round trips: no scheme with a third party is faster; we took {} more\n  \
         probes    {}, {bytes} bytes in all\n  \
         ping      {} there and back\n  \
         transfer  1 MiB there and back in {}, {speed:.0} Mbit/s",
        in_milliseconds(measurement.elapsed),
        in_milliseconds(bound),
        in_milliseconds(over),
        probes.len(),
        in_milliseconds(measurement.ping),
        in_milliseconds(measurement.transfer),
    ))
}
