//! Fates of datagrams: verdicts, records and counters.

use std::{collections::BTreeMap, fmt, net::SocketAddr, time::Duration};

/// End of the journey of a datagram.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Verdict {
    /// The datagram reached the receive buffer of a socket.
    Delivered,
    /// A link lost the datagram by chance, see [`Link::loss`](crate::Link::loss).
    Lost,
    /// The queue before a rate-limited link was full.
    QueueFull,
    /// Larger than the MTU of a link. No ICMP error says so to the sender.
    TooBig,
    /// The path is blocked, see [`World::block`](crate::World::block).
    Blocked,
    /// No node has the destination address, or the sender no longer has the source address.
    NoRoute,
    /// The destination host has no socket at that address and port.
    NoSocket,
    /// A NAT has no live mapping for the external endpoint.
    NoMapping,
    /// A NAT or a firewall filtered it (RFC 4787 §5).
    Filtered,
    /// A NAT had no room or no port for a new mapping.
    TableFull,
    /// The datagram was for the external address of its own NAT, which does not hairpin (RFC 4787
    /// §6).
    NoHairpin,
    /// The receive buffer of the socket was full.
    BufferFull,
}

/// The journey of one datagram, from the sending socket to its end.
///
/// A duplicate made by a link has a record of its own, with the same [`id`](Self::id).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    /// Counts the datagrams of a world in the order of sending, from 0.
    pub id: u64,
    /// Time of sending, since the start of the world.
    pub sent: Duration,
    /// Time of the end, since the start of the world. Exact even where tokio's timers,
    /// which tick in milliseconds, woke the receiver a little later.
    pub at: Duration,
    /// The sending socket, as its host knows it.
    pub from: SocketAddr,
    /// The address that it was sent to.
    pub to: SocketAddr,
    /// The source address where the journey ended, after every translation on the way.
    pub seen_from: SocketAddr,
    /// The destination address where the journey ended, after every translation on the way.
    pub reached: SocketAddr,
    /// UDP payload, in bytes.
    pub size: usize,
    /// First byte of the payload, which tells a probe from QUIC (RFC 9443 §2).
    pub first: Option<u8>,
    /// End of the journey.
    pub verdict: Verdict,
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [sent, at] = [self.sent, self.at].map(|time| time.as_secs_f64() * 1e3);
        write!(f, "{sent:>10.3} ms  {} -> {}", self.from, self.to)?;
        if self.seen_from != self.from || self.reached != self.to {
            write!(f, " (as {} -> {})", self.seen_from, self.reached)?;
        }
        write!(f, "  {} B", self.size)?;
        if let Some(first) = self.first {
            write!(f, " [{first:#04x}]")?;
        }
        write!(f, "  {:?} at {at:.3} ms", self.verdict)
    }
}

/// Datagram as a [tap](crate::World::tap) sees it: the record and the bytes.
#[derive(Debug, Clone, Copy)]
pub struct Packet<'a> {
    /// The journey.
    pub record: &'a Record,
    /// The UDP payload.
    pub payload: &'a [u8],
}

/// Counters of a world since its start.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    /// Datagrams that sockets sent.
    pub sent: u64,
    /// UDP payload bytes that sockets sent.
    pub bytes_sent: u64,
    /// UDP payload bytes that reached a receive buffer.
    pub bytes_delivered: u64,
    /// Copies that links made.
    pub duplicated: u64,
    pub(crate) verdicts: BTreeMap<Verdict, u64>,
}

impl Stats {
    /// Returns the number of journeys with this end.
    pub fn of(&self, verdict: Verdict) -> u64 {
        self.verdicts.get(&verdict).copied().unwrap_or(0)
    }

    /// Returns the number of journeys that have ended.
    pub fn ended(&self) -> u64 {
        self.verdicts.values().sum()
    }

    pub(crate) fn count(&mut self, record: &Record) {
        let count = self.verdicts.entry(record.verdict).or_default();
        *count = count.saturating_add(1);
        if record.verdict == Verdict::Delivered {
            self.bytes_delivered = self.bytes_delivered.saturating_add(record.size as u64);
        }
    }
}
