//! The command line.

use std::{path::PathBuf, time::Duration};

use clap::{Args, Parser, Subcommand};
use libp2p::{Multiaddr, PeerId};

use crate::{
    demo,
    exit::Failure,
    lab,
    values::{coordinator_address, listen_address, seconds},
};

/// Direct connections between two peers behind NATs, through a coordinator.
#[derive(Debug, Parser)]
#[command(name = "punch", version, arg_required_else_help = true)]
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
    /// Register with a coordinator and wait for peers.
    Listen(Listen),
    /// Connect to a peer, send it something, and leave. Exit code: 0 direct, 10 relayed, 11 failed,
    /// 2 usage.
    Dial(Dial),
    /// Try every pair of NAT kinds, on real NATs or simulated ones. Exit code: 11 if any dial
    /// failed.
    Lab(lab::Arguments),
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

/// Arguments of `punch coordinator`.
#[derive(Debug, Args)]
pub(crate) struct Coordinator {
    /// Addresses to listen on, such as /ip4/0.0.0.0/udp/4001/quic-v1.
    #[arg(long, value_name = "MULTIADDR", required = true, num_args = 1.., value_parser = listen_address)]
    pub(crate) listen: Vec<Multiaddr>,
    /// Other coordinators, as /ip4/ADDRESS/udp/PORT/quic-v1/p2p/PEER_ID. Two coordinators that name
    /// each other test together how the NATs of their clients filter.
    #[arg(long, value_name = "MULTIADDR", num_args = 1.., value_parser = coordinator_address)]
    pub(crate) coordinator: Vec<Multiaddr>,
    /// Key and output.
    #[command(flatten)]
    pub(crate) common: Common,
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
