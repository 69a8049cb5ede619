//! The frames of the control protocol `/libp2p-punch/1.0.0`.
//!
//! `docs/protocol.md` specifies every byte.

mod codec;
mod decode;
mod signed;
#[cfg(test)]
mod tests;
pub(crate) mod wire;

#[cfg(test)]
pub(crate) use codec::MAX_PEER_ID_LEN;
pub use codec::{
    MAX_ALLOWANCE_INTERVAL, MAX_FILTER_SOURCES, MAX_FIRST_FLIGHT_DATAGRAM, MAX_FIRST_FLIGHT_DATAGRAMS,
    MAX_FRAME_CANDIDATES, MAX_FRAME_COORDINATORS, MAX_FRAME_LEN, MAX_NAT_REPORT_LEN, MAX_OBSERVER_PORTS,
    MAX_PUBLIC_KEY_LEN, MAX_PUNCH_LIFETIME, MAX_REGISTRATION_LIFETIME, MAX_RETRY_AFTER, MAX_SIGNATURE_LEN,
    encode,
};
pub use decode::decode;
pub use signed::{SignError, VerifyError};
pub use wire::{DecodeError, VARINT_MAX};

use std::{
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use bytes::Bytes;
use libp2p_identity::PeerId;

use crate::{AttemptId, SessionId, candidate::Candidate, config::Disclosure, rate_limit::Rate};

/// Frame of the control stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Frame {
    /// The address at which the sender sees the receiver (draft-ietf-quic-address-discovery).
    ObservedAddress {
        /// Grows with every observation on this stream; an older observation is ignored.
        sequence: u64,
        /// The observed address.
        address: SocketAddr,
    },
    /// A candidate of the sender (draft-seemann-quic-nat-traversal).
    AddAddress(Candidate),
    /// The candidate of this sequence number is gone.
    RemoveAddress {
        /// [`Candidate::sequence`] of an earlier `AddAddress`.
        sequence: u64,
    },
    /// Asks the receiver to coordinate: commits the candidates announced so far on this stream.
    Register {
        /// The signed part.
        registration: Registration,
        /// Peers to which the receiver discloses it.
        disclosure: Disclosure,
    },
    /// The receiver of [`Frame::Register`] coordinates for its sender.
    Registered {
        /// [`Registration::generation`] of the request.
        generation: u64,
        /// After this time without another `Register` the registration ends. At most the requested
        /// lifetime.
        lifetime: Duration,
        /// Requests that the receiver of this frame may send.
        allowance: Rate,
    },
    /// The receiver of [`Frame::Register`] does not coordinate for its sender.
    RegisterRejected {
        /// [`Registration::generation`] of the request.
        generation: u64,
        /// Reason.
        reason: RejectReason,
        /// Time after which to ask again; zero if the sender does not say. In whole milliseconds on
        /// the wire.
        retry_after: Duration,
    },
    /// Initiator to coordinator, and coordinator to responder: open your NAT now.
    PunchMeNow(Box<PunchMeNow>),
    /// Coordinator to initiator, at once: where the responder may be reached.
    PunchAnswer(Box<PunchAnswer>),
    /// Coordinator or responder to initiator (through the coordinator): no.
    PunchRejected {
        /// The session that ends.
        session: SessionId,
        /// [`PunchRequest::round`] of the request.
        round: u32,
        /// Reason.
        reason: RejectReason,
        /// Time after which to ask again; zero if the sender does not say. In whole milliseconds on
        /// the wire.
        retry_after: Duration,
    },
    /// Responder to coordinator: the initiator may learn our candidates, see
    /// [`Disclosure::ToAccepted`].
    PunchAccepted {
        /// The session.
        session: SessionId,
        /// [`PunchRequest::round`] of the request.
        round: u32,
    },
    /// Coordinator to client: ask these ports where you come from.
    Observer(ObserverOffer),
    /// Coordinator to client: ask these ports of another IP address of mine, over the address
    /// family that this connection does not use.
    ObserverAt {
        /// The IP address.
        ip: IpAddr,
        /// The ports there. Token and key are as in [`Frame::Observer`].
        offer: ObserverOffer,
    },
    /// Coordinator to client: where a request to an observer came from.
    ProbeObserved {
        /// Data of the request.
        data: [u8; 8],
        /// Its source address.
        address: SocketAddr,
    },
    /// From one peer of a session to the other, through the coordinator: the port that the sender's
    /// NAT has just given.
    PortPrediction(Box<PortPrediction>),
    /// From one peer of a connected session to the other, through a coordinator: the sender's new
    /// addresses.
    PunchMoved(Box<PunchMoved>),
    /// To a connected peer: the coordinators with which the sender is registered. They replace
    /// those of an earlier frame.
    Coordinators(Vec<CoordinatorAddress>),
    /// Client to coordinator: send a few small datagrams to the address of this connection, so that
    /// I see which of them my NAT lets in.
    FilterTest {
        /// Names the test, in the datagrams too.
        data: [u8; 8],
        /// Authenticates the datagrams.
        key: [u8; 32],
    },
    /// Coordinator to client: all datagrams of a filtering test have been sent.
    FilterTested {
        /// Data of the request.
        data: [u8; 8],
        /// Number of datagrams from each source, and from the address of the connection; 0 if there
        /// was no test.
        rounds: u8,
        /// Sources of the datagrams: the sender's own addresses, without the address of the
        /// connection.
        sources: Vec<SocketAddr>,
    },
    /// Coordinator to coordinator: send the datagrams of a client's test from an address of yours.
    FilteringAssistRequest {
        /// Data of the client's request.
        data: [u8; 8],
        /// Key of the client's request.
        key: [u8; 32],
        /// Address of the client's end of its connection.
        target: SocketAddr,
    },
    /// Coordinator to coordinator: all datagrams that you asked for have been sent.
    FilteringAssistResponse {
        /// Data of the request.
        data: [u8; 8],
        /// Number of datagrams; 0 if none will be sent.
        rounds: u8,
        /// The sender's own address from which they were sent, as it knows it itself; `None` if
        /// none were.
        source: Option<SocketAddr>,
    },
}

/// Further ports of a coordinator that report a client's address to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObserverOffer {
    /// UDP ports, at least one: at the IP address at which the client reached the coordinator,
    /// unless the frame names another.
    pub ports: Vec<u16>,
    /// Names the client in its requests.
    pub token: [u8; 8],
    /// Authenticates its requests.
    pub key: [u8; 32],
}

/// Position of a NAT in its port sequence; or, without a port, the report that the sender's search
/// waits for its turn or begins.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortPrediction {
    /// To the coordinator: the peer that it is for. From the coordinator: the peer that it is from.
    pub peer: PeerId,
    /// The session.
    pub session: SessionId,
    /// [`PunchRequest::round`] of the attempt.
    pub round: u32,
    /// The external port of the newest mapping; 0 if this is about the turn of a search.
    pub port: u16,
    /// From one mapping to the next. Without a port: 0 if the search waits, 1 if it begins.
    pub step: u16,
    /// By the probe keys of the session, so that the coordinator cannot make it up.
    pub authenticator: [u8; 16],
}

/// New addresses of a peer of a connected session. The other peer must send there before its own
/// NAT admits anything from there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchMoved {
    /// To the coordinator: the peer that it is for. From the coordinator: the peer that it is from.
    pub peer: PeerId,
    /// The session.
    pub session: SessionId,
    /// Grows with every such frame of the sender in this session; the first has 1.
    pub sequence: u32,
    /// Addresses of the sender.
    pub candidates: Vec<Candidate>,
    /// By the probe keys of the session, so that the coordinator cannot make it up.
    pub authenticator: [u8; 16],
}

/// Coordinator of a peer, and the address at which the coordinator accepts QUIC connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct CoordinatorAddress {
    /// The identity of the coordinator.
    pub coordinator: PeerId,
    /// The UDP address of the coordinator.
    pub address: SocketAddr,
}

/// Registration of a peer at its coordinator, signed by the peer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Registration {
    /// Public key of the peer, as libp2p encodes it (protobuf). A [`PeerId`] gives the key only
    /// where the key is short (Ed25519, secp256k1), and the coordinator must hand the key of any
    /// peer to initiators.
    pub peer: Bytes,
    /// Grows with every registration of this peer.
    pub generation: u64,
    /// Lifetime of the registration, in whole seconds on the wire.
    pub lifetime: Duration,
    /// X25519 public key from which initiators derive the probe keys.
    pub probe_key: [u8; 32],
    /// Report of the peer on its NAT, see [`NatProfile`](crate::nat::strategy::NatProfile); empty
    /// if nothing.
    pub nat: Bytes,
    /// Signature of the same over all but the candidates that are not global. The coordinator
    /// answers strangers with it. Only in `REGISTER`; empty in an answer.
    pub public_signature: Bytes,
    /// Signature of the peer's identity key over peer, generation, lifetime, probe key, candidates
    /// and NAT report.
    pub signature: Bytes,
}

/// Request of one peer to reach another.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchMeNow {
    /// The part that speaks for the initiator.
    pub request: PunchRequest,
    /// Signature of the initiator's identity key over the request.
    pub signature: Bytes,
    /// The address at which the coordinator sees the initiator. Set by the coordinator, in its own
    /// name.
    pub observed: Option<SocketAddr>,
}

/// The part of [`PunchMeNow`] that the initiator signs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchRequest {
    /// Names the session.
    pub session: SessionId,
    /// The attempt, from 0.
    pub round: u32,
    /// Public key of the initiator, as libp2p encodes it (protobuf).
    pub initiator: Bytes,
    /// Peer to reach.
    pub responder: PeerId,
    /// Time for which the request is valid, in whole milliseconds on the wire.
    pub lifetime: Duration,
    /// X25519 public key of this session, from which the responder derives the probe keys.
    pub probe_key: [u8; 32],
    /// Addresses of the initiator.
    pub candidates: Vec<Candidate>,
    /// Report of the initiator on its NAT, see [`NatProfile`](crate::nat::strategy::NatProfile);
    /// empty if nothing.
    pub nat: Bytes,
    /// The initiator's first QUIC flight: one or two datagrams.
    pub first_flight: Vec<Bytes>,
}

impl PunchRequest {
    /// Returns the attempt for which the request is.
    pub(crate) fn attempt(&self) -> AttemptId {
        AttemptId { session: self.session, round: self.round }
    }
}

/// Answer of the coordinator to [`PunchMeNow`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PunchAnswer {
    /// The session that it answers.
    pub session: SessionId,
    /// [`PunchRequest::round`] of the request.
    pub round: u32,
    /// The responder's registration, with its key and its signature.
    pub registration: Registration,
    /// The candidates that the registration commits.
    pub candidates: Vec<Candidate>,
    /// The address at which the coordinator sees the responder. The coordinator's own word.
    pub observed: Option<SocketAddr>,
}

/// Reason for the rejection of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, thiserror::Error)]
#[non_exhaustive]
pub enum RejectReason {
    /// The coordinator does not know the responder, or has no connection to it.
    #[error("the peer is not connected to the coordinator")]
    NotConnected,
    /// Too many requests; try again later.
    #[error("rate-limited, try again later")]
    RateLimited,
    /// The receiver does not do this for others, or does not accept connections.
    #[error("not willing")]
    NotWilling,
    /// The request came too late.
    #[error("the request came too late")]
    Expired,
    /// The receiver cannot do what was asked.
    #[error("not supported")]
    Unsupported,
    /// A cap on registrations or sessions is reached.
    #[error("a cap on registrations or sessions is reached")]
    Full,
    /// A signature or a field is wrong.
    #[error("a signature or a field is wrong")]
    Malformed,
    /// The other peer's own session to us goes on instead.
    #[error("the other peer's own session goes on instead")]
    Superseded,
}

impl RejectReason {
    /// Every reason, in the order of the variants.
    pub const ALL: [Self; 8] = [
        Self::NotConnected,
        Self::RateLimited,
        Self::NotWilling,
        Self::Expired,
        Self::Unsupported,
        Self::Full,
        Self::Malformed,
        Self::Superseded,
    ];
}
