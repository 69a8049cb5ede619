//! The command line.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use clap_complete::Shell;
use libp2p::{Multiaddr, PeerId};
use libp2p_punch::config::{CoordinatorLimits, Rate};

use crate::{
    demo,
    exit::Failure,
    forward::{Endpoint, Tunnel},
    lab, network,
    node::RelayLimits,
    values::{bootstrap_address, bytes, coordinator_address, listen_address, per_second, seconds},
};

/// Exit codes, for the end of the help.
const EXIT_CODES: &str = "Exit codes: 0 done, 1 something failed, 2 the arguments or a file that they name cannot be \
    used, 10 connected through a relay (dial, demo), 11 not connected.";

/// Direct connections between two peers behind NATs, through a coordinator.
#[derive(Debug, Parser)]
#[command(name = "punch", version, arg_required_else_help = true, after_help = EXIT_CODES)]
pub(crate) struct Arguments {
    /// The subcommand.
    #[command(subcommand)]
    pub(crate) command: Command,
}

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Watch two simulated peers behind NATs find each other; needs neither root nor a network.
    Demo(demo::Arguments),
    /// Introduce peers to each other; needs a public address.
    Coordinator(Coordinator),
    /// List or check the settings of a coordinator.
    #[command(subcommand)]
    Config(ConfigCommand),
    /// Register with a coordinator and wait for peers.
    Listen(Listen),
    /// Connect to a peer, send it something, and leave. Exit codes: 10 relayed, 11 not connected.
    Dial(Dial),
    /// Send files and folders; prints a ticket for the receiver.
    Send(Send),
    /// Receive what a ticket offers, into a folder or to stdout.
    Receive(Receive),
    /// Exchange lines of text with a peer; without a PEER, prints a ticket and waits for one. Ends
    /// with stdin.
    Chat(Chat),
    /// Make TCP ports at a peer local ones, as ssh -L does. With --allow, print a ticket and serve
    /// these ports.
    Forward(Forward),
    /// Measure the round-trip time to a peer, and show how it is connected.
    Ping(Ping),
    /// Measure the rate of a stream to a peer; without a PEER, prints a ticket and serves
    /// measurements.
    Perf(Perf),
    /// Tell why a peer cannot be reached. Exit codes: 10 relayed, 11 unknown; the fault is that of
    /// 20 this machine, 21 the network, 22 a coordinator, 23 the peer, 24 the NATs, 25 a limit.
    Doctor(Doctor),
    /// Simulate a network of nodes without configured coordinators. Exit code: 11 if any dial
    /// failed.
    Network(network::Arguments),
    /// Print the PeerId of a key file.
    Id(KeyFile),
    /// Create a key file, and print its PeerId.
    Keys(KeyFile),
    /// Print the completions of the command line for a shell.
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write the manual pages into a folder.
    Man {
        /// The folder, created if it does not exist.
        folder: PathBuf,
    },
    /// Try every pair of NAT kinds, on real NATs or simulated ones. Exit code: 11 if any dial
    /// failed.
    Lab(lab::Arguments),
}

/// The subcommands of `punch config`.
#[derive(Debug, Subcommand)]
pub(crate) enum ConfigCommand {
    /// Print a file with each setting, its documentation and its default.
    Default,
    /// Print the values in force, each with its source: the file, a variable or the default.
    Show(ConfigFile),
    /// Check the file and the variables of the environment.
    Check(ConfigFile),
}

/// File of `punch config`.
#[derive(Debug, Args)]
pub(crate) struct ConfigFile {
    /// TOML file, as for 'punch coordinator --config'.
    #[arg(value_name = "FILE")]
    pub(crate) file: Option<PathBuf>,
}

impl Command {
    /// Returns true if a failure that explains itself is an object on stdout, too.
    pub(crate) fn explains_in_json(&self) -> bool {
        match self {
            Self::Send(Send { node, .. })
            | Self::Receive(Receive { node, .. })
            | Self::Chat(Chat { node, .. })
            | Self::Ping(Ping { node, .. })
            | Self::Forward(Forward { node, .. })
            | Self::Perf(Perf { node, .. }) => node.common.json,
            _ => false,
        }
    }
}

/// Arguments of `punch id` and `punch keys`.
#[derive(Debug, Args)]
pub(crate) struct KeyFile {
    /// File with a peer's Ed25519 key, as --key takes it.
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Print one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of all peers over real UDP.
#[derive(Debug, Args)]
pub(crate) struct Common {
    /// File with the peer's Ed25519 key; created if it does not exist. Without it, every run has a
    /// new key.
    #[arg(long, value_name = "FILE")]
    pub(crate) key: Option<PathBuf>,
    /// Print one JSON object a line on stdout, and nothing else.
    #[arg(long)]
    pub(crate) json: bool,
}

/// Arguments of the subcommands that find their peer by a ticket or a PeerId.
#[derive(Debug, Args)]
pub(crate) struct NodeFlags {
    /// Address of a node through which both peers enter their network, such as a coordinator;
    /// may be repeated. Peers on one machine or one network need none.
    #[arg(long, visible_alias = "coordinator", value_name = "MULTIADDR", value_parser = bootstrap_address)]
    pub(crate) bootstrap: Vec<Multiaddr>,
    /// Address to listen on; may be repeated. Without it, all interfaces and a free port.
    #[arg(long, value_name = "MULTIADDR", value_parser = listen_address)]
    pub(crate) listen: Vec<Multiaddr>,
    /// Do not ask the gateway of the network to forward a port (UPnP, NAT-PMP, PCP).
    #[arg(long)]
    pub(crate) no_port_mapping: bool,
    /// Key and output.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Arguments of `punch send`.
#[derive(Debug, Args)]
pub(crate) struct Send {
    /// Files and folders; - for stdin.
    #[arg(value_name = "FILE", required = true)]
    pub(crate) files: Vec<PathBuf>,
    /// Serve further receivers until Ctrl-C, instead of one.
    #[arg(long)]
    pub(crate) keep: bool,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch receive`.
#[derive(Debug, Args)]
pub(crate) struct Receive {
    /// The ticket that `punch send` printed.
    #[arg(value_name = "TICKET")]
    pub(crate) ticket: String,
    /// Folder for the files, created if it does not exist; - writes a single file to stdout.
    #[arg(value_name = "FOLDER", default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Overwrite files that exist, without a question.
    #[arg(long)]
    pub(crate) yes: bool,
    /// Give an attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch chat`.
#[derive(Debug, Args)]
pub(crate) struct Chat {
    /// The peer: a ticket, a PeerId, or an address that ends with /p2p/PEER_ID.
    #[arg(value_name = "PEER")]
    pub(crate) peer: Option<String>,
    /// Give an attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch forward`.
#[derive(Debug, Args)]
pub(crate) struct Forward {
    /// The ticket that `punch forward --allow` printed at the peer.
    #[arg(value_name = "TICKET", required_unless_present = "allow", conflicts_with = "allow")]
    pub(crate) ticket: Option<String>,
    /// A local port, and the TCP port at the peer to which it leads. BIND is an address of this
    /// machine, and 127.0.0.1 if it is left out; the peer looks HOST up.
    #[arg(value_name = "[BIND:]PORT:HOST:PORT", required_unless_present = "allow")]
    pub(crate) tunnels: Vec<Tunnel>,
    /// Serve: let a peer that has the ticket connect to this TCP port, as HOST:PORT; may be
    /// repeated. With --key, and --listen at a fixed port or --bootstrap, the ticket is good for
    /// all later starts.
    #[arg(long, value_name = "HOST:PORT")]
    pub(crate) allow: Vec<Endpoint>,
    /// Give an attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch perf`.
#[derive(Debug, Args)]
pub(crate) struct Perf {
    /// The peer: a ticket, a PeerId, or an address that ends with /p2p/PEER_ID. Any libp2p program
    /// with /perf/1.0.0 will do.
    #[arg(value_name = "PEER")]
    pub(crate) peer: Option<String>,
    /// Bytes to send, also with a unit, such as 1GiB.
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub(crate) upload: u64,
    /// Bytes to receive.
    #[arg(long, value_name = "BYTES", default_value = "64MiB", value_parser = bytes)]
    pub(crate) download: u64,
    /// Give an attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch ping`.
#[derive(Debug, Args)]
pub(crate) struct Ping {
    /// The peer: a ticket, a PeerId, or an address that ends with /p2p/PEER_ID.
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
    /// End after this number of pings, instead of with Ctrl-C.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    pub(crate) count: Option<u64>,
    /// Time from one ping to the next.
    #[arg(long, value_name = "SECONDS", default_value = "1", value_parser = seconds)]
    pub(crate) interval: Duration,
    /// Give an attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch doctor`.
#[derive(Debug, Args)]
pub(crate) struct Doctor {
    /// The peer: a ticket, a PeerId, or an address that ends with /p2p/PEER_ID.
    #[arg(value_name = "PEER")]
    pub(crate) peer: String,
    /// Give the attempt to connect up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Network, key and output.
    #[command(flatten)]
    pub(crate) node: NodeFlags,
}

/// Arguments of `punch coordinator`.
#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    /// TOML file with the other arguments; 'punch config default' prints one. Arguments and
    /// variables such as PUNCH_MAX_REGISTRATIONS take precedence. SIGHUP reads it again, for the
    /// coordinators and the log.
    #[arg(long, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Addresses to listen on, such as /ip4/0.0.0.0/udp/4001/quic-v1.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_delimiter = ',', value_parser = listen_address)]
    pub(crate) listen: Vec<Multiaddr>,
    /// Other coordinators, as /ip4/ADDRESS/udp/PORT/quic-v1/p2p/PEER_ID. Two coordinators that name
    /// each other test together how the NATs of their clients filter.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_delimiter = ',', value_parser = coordinator_address)]
    pub(crate) coordinator: Vec<Multiaddr>,
    /// Parts of the program that log, and their levels, such as warn,libp2p_punch=debug. Without
    /// it, RUST_LOG has them. Without both, the coordinator logs errors and what a reload changes.
    #[arg(long, value_name = "FILTER")]
    pub(crate) log: Option<String>,
    /// Serve /metrics for Prometheus, /healthz and /readyz over HTTP at this address, such as
    /// 127.0.0.1:9400.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Limits of the coordinator.
    #[command(flatten)]
    pub(crate) limits: CoordinatorFlags,
    /// Limits of the relay.
    #[command(flatten)]
    pub(crate) relay: RelayFlags,
    /// Key and output.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Limits of a coordinator.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct CoordinatorFlags {
    /// Peers that are registered at once.
    #[arg(long, value_name = "N", default_value_t = CoordinatorLimits::default().max_registrations)]
    pub(crate) max_registrations: usize,
    /// Registrations of one peer at once.
    #[arg(long, value_name = "N", default_value_t = CoordinatorLimits::default().register_rate.burst)]
    pub(crate) register_burst: u32,
    /// Registrations of one peer a second in the long run.
    #[arg(long, value_name = "N", default_value = "1", value_parser = per_second)]
    pub(crate) register_rate: Duration,
    /// Requests of one peer at once. Registered peers learn of this limit and keep within it.
    #[arg(long, value_name = "N", default_value_t = CoordinatorLimits::default().request_rate.burst)]
    pub(crate) request_burst: u32,
    /// Requests of one peer a second in the long run.
    #[arg(long, value_name = "N", default_value = "100", value_parser = per_second)]
    pub(crate) request_rate: Duration,
    /// Requests of one peer for one other peer at once.
    #[arg(long, value_name = "N", default_value_t = CoordinatorLimits::default().pair_rate.burst)]
    pub(crate) pair_burst: u32,
    /// Requests of one peer for one other peer a second in the long run.
    #[arg(long, value_name = "N", default_value = "2", value_parser = per_second)]
    pub(crate) pair_rate: Duration,
}

impl From<CoordinatorFlags> for CoordinatorLimits {
    fn from(flags: CoordinatorFlags) -> Self {
        Self {
            max_registrations: flags.max_registrations,
            register_rate: Rate { burst: flags.register_burst, interval: flags.register_rate },
            request_rate: Rate { burst: flags.request_burst, interval: flags.request_rate },
            pair_rate: Rate { burst: flags.pair_burst, interval: flags.pair_rate },
        }
    }
}

/// Limits of a relay.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Args)]
pub(crate) struct RelayFlags {
    /// Reservations at once.
    #[arg(long, value_name = "N", default_value_t = RelayLimits::default().max_reservations)]
    pub(crate) relay_reservations: usize,
    /// Relayed connections at once.
    #[arg(long, value_name = "N", default_value_t = RelayLimits::default().max_circuits)]
    pub(crate) relay_circuits: usize,
    /// Relayed connections of one peer at once.
    #[arg(long, value_name = "N", default_value_t = RelayLimits::default().max_circuits_per_peer)]
    pub(crate) relay_circuits_per_peer: usize,
    /// Longest time of a relayed connection, such as 30m; without a unit, in seconds.
    #[arg(long, value_name = "SECONDS", default_value = "3600", value_parser = seconds)]
    pub(crate) relay_circuit_duration: Duration,
    /// Most bytes of a relayed connection, in each direction, such as 32MiB.
    #[arg(long, value_name = "BYTES", default_value = "33554432", value_parser = bytes)]
    pub(crate) relay_circuit_bytes: u64,
}

impl From<RelayFlags> for RelayLimits {
    fn from(flags: RelayFlags) -> Self {
        Self {
            max_reservations: flags.relay_reservations,
            max_circuits: flags.relay_circuits,
            max_circuits_per_peer: flags.relay_circuits_per_peer,
            max_circuit_duration: flags.relay_circuit_duration,
            max_circuit_bytes: flags.relay_circuit_bytes,
        }
    }
}

/// Arguments of `punch listen`.
#[derive(Debug, Args)]
pub(crate) struct Listen {
    /// Coordinators to register with, as /ip4/ADDRESS/udp/PORT/quic-v1/p2p/PEER_ID.
    #[arg(long, value_name = "MULTIADDR", required = true, num_args = 1.., value_parser = coordinator_address)]
    pub(crate) coordinator: Vec<Multiaddr>,
    /// Addresses to listen on; without it, all interfaces and a free port.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = listen_address)]
    pub(crate) listen: Vec<Multiaddr>,
    /// Do not ask the gateway of the network to forward a port (UPnP, NAT-PMP, PCP).
    #[arg(long)]
    pub(crate) no_port_mapping: bool,
    /// Serve /metrics for Prometheus, /healthz and /readyz over HTTP at this address, such as
    /// 127.0.0.1:9400.
    #[arg(long, value_name = "ADDRESS:PORT")]
    pub(crate) metrics: Option<SocketAddr>,
    /// Key and output.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Arguments of `punch dial`.
#[derive(Debug, Args)]
pub(crate) struct Dial {
    /// The peer to connect to.
    #[arg(value_name = "PEER_ID", required_unless_present = "coordinator")]
    peer: Option<PeerId>,
    /// Coordinators that may know the peer, as /ip4/ADDRESS/udp/PORT/quic-v1/p2p/PEER_ID.
    #[arg(long, value_name = "MULTIADDR", required = true, num_args = 1.., value_parser = target)]
    coordinator: Vec<Target>,
    /// Give up after this number of seconds.
    #[arg(long, value_name = "SECONDS", default_value = "30", value_parser = seconds)]
    pub(crate) timeout: Duration,
    /// Stay connected for this number of seconds, with an echo every tenth of a second: shows what
    /// a change of networks does.
    #[arg(long, value_name = "SECONDS", value_parser = seconds)]
    pub(crate) watch: Option<Duration>,
    /// Do not ask the gateway of the network to forward a port (UPnP, NAT-PMP, PCP).
    #[arg(long)]
    pub(crate) no_port_mapping: bool,
    /// Key and output.
    #[command(flatten)]
    pub(crate) common: Common,
}

/// Word after `--coordinator`: `--coordinator A B PEER` means the same as `PEER --coordinator A B`.
#[derive(Debug, Clone)]
enum Target {
    Coordinator(Multiaddr),
    Peer(PeerId),
}

impl Dial {
    /// Returns the peer to connect to, and the coordinators.
    pub(crate) fn targets(&self) -> Result<(PeerId, Vec<Multiaddr>), Failure> {
        let mut peers = Vec::from_iter(self.peer);
        let mut coordinators = Vec::new();
        for target in &self.coordinator {
            match target {
                Target::Coordinator(address) => coordinators.push(address.clone()),
                Target::Peer(peer) => peers.push(*peer),
            }
        }
        match (peers.as_slice(), coordinators.is_empty()) {
            ([peer], false) => Ok((*peer, coordinators)),
            ([], _) => Err(Failure::usage("PEER_ID is missing")),
            (_, true) => Err(Failure::usage("--coordinator needs the address of a coordinator")),
            _ => Err(Failure::usage("only one PEER_ID can be dialed")),
        }
    }
}

fn target(text: &str) -> Result<Target, String> {
    match text.parse() {
        Ok(peer) => Ok(Target::Peer(peer)),
        Err(_) => coordinator_address(text).map(Target::Coordinator),
    }
}

/// Returns clap's message about wrong arguments as one sentence.
pub(crate) fn sentence(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let lines = text.lines().take_while(|line| !line.trim().is_empty()).map(str::trim);
    let sentence = lines.collect::<Vec<_>>().join(" ");
    sentence.strip_prefix("error: ").map(str::to_owned).unwrap_or(sentence)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str = "/ip4/192.0.2.1/udp/4001/quic-v1";
    const PEER: &str = "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";
    const OTHER: &str = "12D3KooWPjceQrSwdWXPyLLeABRXmuqt69Rg3sBYbU1Nft9HyQ6X";

    fn dial(words: &[&str]) -> Result<(PeerId, usize), String> {
        let words = ["punch", "dial"].iter().chain(words);
        let arguments = Arguments::try_parse_from(words).map_err(|error| sentence(&error))?;
        let Command::Dial(dial) = arguments.command else { return Err("not dial".into()) };
        dial.targets().map(|(peer, all)| (peer, all.len())).map_err(|failure| failure.message)
    }

    #[test]
    fn the_peer_may_come_before_and_after_the_coordinators() {
        let coordinator = format!("{ADDRESS}/p2p/{OTHER}");
        let peer: PeerId = PEER.parse().unwrap();
        assert_eq!(dial(&[PEER, "--coordinator", &coordinator]), Ok((peer, 1)));
        assert_eq!(dial(&["--coordinator", &coordinator, PEER]), Ok((peer, 1)));
        assert_eq!(dial(&[PEER, "--coordinator", &coordinator, &coordinator]), Ok((peer, 2)));
        let twice = [PEER, "--coordinator", &coordinator, "--coordinator", &coordinator];
        assert_eq!(dial(&twice), Ok((peer, 2)));
    }

    #[test]
    fn a_missing_or_second_peer_is_refused() {
        let coordinator = format!("{ADDRESS}/p2p/{OTHER}");
        assert_eq!(dial(&["--coordinator", &coordinator]), Err("PEER_ID is missing".into()));
        let two = dial(&[PEER, "--coordinator", &coordinator, OTHER]);
        assert_eq!(two, Err("only one PEER_ID can be dialed".into()));
        let none = dial(&["--coordinator", PEER]);
        assert_eq!(none, Err("--coordinator needs the address of a coordinator".into()));
    }
}
