//! Positions in the sequences of ports that NATs give.

/// The ports that a NAT gives to others than system services (RFC 6335 §6).
pub(super) const FIRST_PORT: u32 = 1024;
pub(super) const PORTS: u32 = 65_536 - FIRST_PORT;

/// Position of the peer's NAT in its sequence of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Window {
    pub(crate) port: u16,
    /// Distance between two ports of the sequence; 0 for a single socket.
    pub(crate) step: u16,
}

impl Window {
    /// Returns the port `n` steps on, around at the end.
    pub(super) fn after(self, n: u32) -> u16 {
        let ahead = u32::from(self.port).saturating_sub(FIRST_PORT) + n * u32::from(self.step);
        u16::try_from(FIRST_PORT + ahead % PORTS).unwrap_or(u16::MAX)
    }
}

/// Windows that the peer has told.
#[derive(Debug, Default)]
pub(super) struct PeerWindows {
    /// The first window of the NAT of the peer. Only the first one counts.
    pub(super) first: Option<Window>,
    /// Number of windows of fresh sockets.
    pub(super) fresh: usize,
}
