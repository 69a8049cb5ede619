//! The list of all failures, `docs/troubleshooting.md`, is generated here.

use std::{collections::BTreeSet, env, fmt::Write, fs, io, path::Path, time::Duration};

use libp2p::{Multiaddr, PeerId, multiaddr};
use libp2p_punch::{
    ConfigError, Error,
    event::{FailureReason, RejectReason, RelayFailure},
    explain::Explain,
    sources::SourceError,
};
use libp2p_punch_node::{
    BuildError, CloseReason, ConnectError, KeyFileError, OpenError, SendError, ShutDown, TargetError,
    TicketError, TicketField, TicketUnavailable,
};

use crate::{
    commands::doctor::Cause,
    forward::{EndpointError, ForwardError},
    node::{DialFailure, NodeError},
    transfer::{Loss, PathError, RelativePath, TransferError},
};

const SECOND: Duration = Duration::from_secs(1);

const PREFACE: &str = "\
# Troubleshooting

Every failure has a sentence, a code and a remedy.
The sentence is the `Display` of the error, and `explain::Explain` gives the code and the remedy.
`punch doctor PEER` finds out which of them keeps you from a peer; see [Operations](operations.md).
`punch` prints the sentence and the remedy, and its `--json` lines have all three as `message`, `code` and `remedy`.
Codes stay the same in later versions; sentences may change.
The metrics name the reasons of failed sessions by the same codes.

Values in the sentences below are examples.
A test generates this document from the sources; `UPDATE_DOCS=1 cargo test -p punch troubleshooting` rewrites it.
";

fn peer() -> PeerId {
    "12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN".parse().expect("it is a PeerId")
}

fn address() -> Multiaddr {
    "/ip4/192.0.2.1/udp/4001/quic-v1".parse().expect("it is an address")
}

fn cause() -> String {
    "CAUSE".into()
}

fn io_error() -> io::Error {
    io::Error::other("CAUSE")
}

/// The document under construction, and the codes that it has.
struct Document {
    text: String,
    codes: BTreeSet<&'static str>,
}

impl Document {
    /// Adds the table of a type. There is one example for each of its explanations.
    fn section<E: Explain>(&mut self, title: &str, examples: &[E]) {
        let heading = format!("\n## {title}\n\n| code | sentence | remedy |\n|---|---|---|\n");
        self.text.push_str(&heading);
        let codes: Vec<_> = E::EXPLANATIONS.iter().map(|explanation| explanation.code).collect();
        let shown: Vec<_> = examples.iter().map(Explain::code).collect();
        assert_eq!(shown, codes, "{title}: one example for each explanation, in the same order");
        for failure in examples {
            let (code, remedy) = (failure.code(), failure.remedy());
            let is_word = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase());
            assert!(code.split('-').all(is_word), "{title}: {code} is not made of words");
            assert!(remedy.ends_with('.'), "{title}: the remedy of {code} is no sentence");
            assert!(self.codes.insert(code), "{title}: {code} is the code of another failure, too");
            let sentence = failure.to_string().replace('|', "\\|");
            writeln!(self.text, "| `{code}` | {sentence} | {remedy} |").expect("a String takes all");
        }
    }
}

fn doctor(document: &mut Document) {
    document.section(
        "Causes that `punch doctor` finds",
        &[
            Cause::NoNetwork { address: address() },
            Cause::NoSuchName { name: "NAME".into(), cause: cause() },
            Cause::Forbidden { address: address() },
            Cause::NoSocket { cause: cause() },
            Cause::NoRoute { address: address() },
            Cause::UdpBlocked { address: address() },
            Cause::CoordinatorDown { address: address() },
            Cause::CoordinatorSilent { address: address() },
            Cause::CoordinatorHandshake { address: address(), cause: cause() },
            Cause::WrongCoordinator { expected: peer(), obtained: peer(), address: address() },
            Cause::NotACoordinator { address: address() },
        ],
    );
}

fn document() -> String {
    let mut document = Document { text: PREFACE.into(), codes: BTreeSet::new() };
    sessions(&mut document);
    transport(&mut document);
    configuration(&mut document);
    sources(&mut document);
    node(&mut document);
    tickets(&mut document);
    program(&mut document);
    transfers(&mut document);
    doctor(&mut document);
    document.text
}

fn sessions(document: &mut Document) {
    document.section(
        "Sessions: `FailureReason`",
        &[
            FailureReason::NoCoordinator,
            FailureReason::CoordinationTimeout,
            FailureReason::CoordinatorLost,
            FailureReason::Forged,
            FailureReason::NoCandidates,
            FailureReason::SynchronizationTimeout,
            FailureReason::PunchingTimeout,
            FailureReason::NatMeasured,
            FailureReason::Hopeless,
            FailureReason::ValidationTimeout,
            FailureReason::Handshake,
            FailureReason::Cancelled,
            FailureReason::TooManySessions,
            FailureReason::DialSelf,
        ],
    );
    document.section(
        "Rejections by a coordinator or a peer: `RejectReason`",
        &[
            RejectReason::NotConnected,
            RejectReason::RateLimited,
            RejectReason::NotWilling,
            RejectReason::Expired,
            RejectReason::Unsupported,
            RejectReason::Full,
            RejectReason::Malformed,
            RejectReason::Superseded,
        ],
    );
    document.section("Relays: `RelayFailure`", &[RelayFailure::NoRelay, RelayFailure::Unreachable]);
}

fn transport(document: &mut Document) {
    document.section(
        "Transport and connections: `Error`",
        &[
            Error::Identity(cause().into()),
            Error::Io(io_error()),
            Error::HandshakeTimedOut,
            Error::WrongPeerId { expected: peer(), got: None },
            Error::NoPeerIdentity,
            Error::NoActiveListenerForDialAsListener,
            Error::TooManyConnections,
            Error::HolePunchInProgress(([192, 0, 2, 1], 4001).into()),
            Error::NoRuntime,
            Error::DriverStopped,
        ],
    );
    let Error::Connect(stopping) = Error::from(quinn::ConnectError::EndpointStopping) else {
        panic!("a dial that cannot begin is one");
    };
    document.section("Dials that cannot begin: `transport::ConnectError`", &[stopping]);
    let closed = quinn::ApplicationClose { error_code: 0_u32.into(), reason: Vec::new().into() };
    let connections = [
        quinn::ConnectionError::TimedOut,
        quinn::ConnectionError::ApplicationClosed(closed),
        quinn::ConnectionError::VersionMismatch,
    ]
    .map(|error| match Error::from(error) {
        Error::Connection(error) => error,
        other => panic!("{other} is not about a connection"),
    });
    document.section("QUIC connections: `transport::ConnectionError`", &connections);
}

fn configuration(document: &mut Document) {
    document.section(
        "Configuration: `ConfigError`",
        &[
            ConfigError::RelayDrain { value: 86_401 * SECOND },
            ConfigError::MaxCandidates { value: 0 },
            ConfigError::MaxConcurrentAttempts { value: 0 },
            ConfigError::ConcurrentAttemptsAboveCandidates { value: 8, max_candidates: 4 },
            ConfigError::MaxAttempts { value: 0 },
            ConfigError::Timeout { field: "coordination_timeout", value: Duration::ZERO },
            ConfigError::BootstrapWithRelayFallback,
            ConfigError::CoordinatorWithoutPeerId { value: address() },
            ConfigError::BindAddress { value: "/ip4/0.0.0.0/tcp/4001".parse().expect("it is an address") },
            ConfigError::KeepAliveAboveIdle { value: 20 * SECOND, max_idle_timeout: 10 * SECOND },
            ConfigError::QlogFolder { value: "traces".into(), reason: cause() },
            ConfigError::QlogNotBuilt,
            ConfigError::OutOfBounds {
                field: "quic.max_half_open",
                value: "0".into(),
                bound: "at least 1".into(),
            },
        ],
    );
}

fn sources(document: &mut Document) {
    document.section(
        "Sources of coordinators: `sources::SourceError`",
        &[
            SourceError::Malformed {
                path: "coordinators".into(),
                line: 3,
                value: "nonsense".into(),
                cause: multiaddr::Error::InvalidMultiaddr,
            },
            SourceError::Unreadable { path: "coordinators".into(), cause: io_error() },
            SourceError::TooLarge { path: "coordinators".into() },
        ],
    );
}

fn node(document: &mut Document) {
    let not_an_address = || multiaddr::Error::InvalidMultiaddr;
    document.section(
        "Start of a node: `libp2p_punch_node::BuildError`",
        &[
            BuildError::Noise(libp2p::noise::Error::BadSignature),
            BuildError::Resolvers(io_error()),
            BuildError::Address { text: "nonsense".into(), cause: not_an_address() },
            BuildError::ConnectTimeout { value: Duration::ZERO },
            BuildError::Listen { address: address(), cause: cause() },
            BuildError::ProtocolName { name: "chat".into() },
        ],
    );
    document.section(
        "Connections of a node: `libp2p_punch_node::ConnectError`",
        &[
            ConnectError::NoAddresses,
            ConnectError::WrongPeer { expected: peer(), obtained: peer(), address: address() },
            ConnectError::Transport { address: address(), cause: cause() },
            ConnectError::Denied { cause: cause() },
            ConnectError::TimedOut { after: 30 * SECOND, phase: None },
        ],
    );
    document.section(
        "Streams of a node: `libp2p_punch_node::OpenError`",
        &[
            OpenError::Unsupported { protocol: "/chat/1".into() },
            OpenError::TimedOut,
            OpenError::Io { cause: cause() },
        ],
    );
    document.section(
        "Messages of a node: `libp2p_punch_node::SendError`",
        &[
            SendError::TooLong { len: 70_000 },
            SendError::NotAcknowledged { cause: cause() },
            SendError::TimedOut { after: 30 * SECOND },
        ],
    );
    document.section(
        "Ends of connections of a node: `libp2p_punch_node::CloseReason`",
        &[
            CloseReason::Local,
            CloseReason::Peer,
            CloseReason::Idle,
            CloseReason::TimedOut,
            CloseReason::Failed { cause: cause() },
        ],
    );
    document.section("A node that was shut down: `libp2p_punch_node::ShutDown`", &[ShutDown]);
    document.section(
        "Key files: `libp2p_punch_node::KeyFileError`",
        &[
            KeyFileError::Read { path: "key".into(), cause: io_error() },
            KeyFileError::Create { path: "key".into(), cause: io_error() },
            KeyFileError::NotAKey { path: "key".into() },
        ],
    );
}

fn tickets(document: &mut Document) {
    document.section(
        "Targets of a node: `libp2p_punch_node::TargetError`",
        &[
            TargetError::Address { text: "/nonsense".into(), cause: cause() },
            TargetError::NoPeerId { address: address() },
            TargetError::Unknown { text: "nonsense".into(), cause: cause() },
        ],
    );
    document.section(
        "Tickets: `libp2p_punch_node::TicketError`",
        &[
            TicketError::Prefix,
            TicketError::TooLong { len: 10_000 },
            TicketError::Character { position: 7 },
            TicketError::Truncated,
            TicketError::Checksum,
            TicketError::Version { version: 9 },
            TicketError::Malformed { field: TicketField::Addresses, cause: cause() },
            TicketError::TooMany { field: TicketField::Addresses, count: 99, max: 16 },
            TicketError::OtherPeer { address: address(), peer: peer() },
            TicketError::NoCoordinatorId { address: address() },
            TicketError::TrailingBytes { len: 3 },
        ],
    );
    document.section(
        "Nodes without a ticket: `libp2p_punch_node::TicketUnavailable`",
        &[TicketUnavailable::NoAddresses],
    );
}

fn transfers(document: &mut Document) {
    let path = || RelativePath::new(["folder".to_owned(), "name".to_owned()]);
    document.section(
        "`punch send` and `punch receive`",
        &[
            TransferError::Lost(Loss(cause())),
            TransferError::WrongTicket,
            TransferError::NoTicket,
            TransferError::Protocol(cause()),
            TransferError::Path(PathError::Empty),
            TransferError::TooManyEntries { count: 100_001 },
            TransferError::Corrupt { path: path() },
            TransferError::SourceFailed { path: path(), cause: cause() },
            TransferError::Write { path: path(), cause: io_error() },
            TransferError::Stdout(io_error()),
            TransferError::Stopped(cause()),
            TransferError::Declined,
            TransferError::Consumed,
        ],
    );
    let target = || "localhost:8080".parse().expect("it is a port");
    document.section(
        "`punch forward`",
        &[
            ForwardError::NotConnected(cause()),
            ForwardError::Lost(io_error()),
            ForwardError::Aborted,
            ForwardError::Local(io_error()),
            ForwardError::Protocol(cause()),
            ForwardError::Endpoint(EndpointError::Endpoint),
            ForwardError::NoRequest,
            ForwardError::NoAnswer,
            ForwardError::NoTicket { target: target() },
            ForwardError::NotAllowed { target: target() },
            ForwardError::Busy,
            ForwardError::Unreachable { target: target(), cause: cause() },
            ForwardError::Refused { detail: cause() },
        ],
    );
}

fn program(document: &mut Document) {
    document.section(
        "The program `punch`",
        &[
            NodeError::Build(cause().into()),
            NodeError::Listen { addresses: vec![address()], cause: cause() },
            NodeError::Registration(vec![(peer(), cause())]),
            NodeError::Observer(io_error()),
        ],
    );
    document.section(
        "`punch dial`",
        &[
            DialFailure::Timeout(30 * SECOND),
            DialFailure::Interrupted,
            DialFailure::NoAddresses,
            DialFailure::Dial(cause()),
            DialFailure::NoEcho(cause()),
        ],
    );
}

#[test]
fn the_document_has_every_failure_with_its_code_and_remedy() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/troubleshooting.md");
    let generated = document();
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, &generated).expect("the document can be written");
    }
    let written = fs::read_to_string(&path).unwrap_or_default();
    assert!(written == generated, "run UPDATE_DOCS=1 cargo test -p punch troubleshooting");
}
