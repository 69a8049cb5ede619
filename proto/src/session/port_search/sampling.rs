//! Samples of the own NAT: the ports at which a coordinator sees the sockets of a search.

use super::window::Window;

/// Maximum number of samples of a NAT that gives ports in sequence.
pub(super) const MAX_SAMPLES: usize = 4;

/// A fresh socket from which shots leave before the peer learns where it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fresh {
    /// Number of requests to the coordinator for the port of the socket.
    Asked(u32),
    /// The coordinator sees the socket at this port.
    Seen(u16),
    /// The peer knows the port.
    Told,
}

/// Samples of one search.
#[derive(Debug, Default)]
pub(super) struct Sampling {
    /// Number of samples that were asked for.
    count: usize,
    /// A sample was answered.
    is_done: bool,
    /// Sockets of this peer of which the peer learns only later.
    fresh: Vec<Fresh>,
}

impl Sampling {
    /// Expects samples of fresh sockets.
    pub(super) fn expect_fresh(&mut self, sockets: usize) {
        self.fresh = vec![Fresh::Asked(0); sockets];
    }

    pub(super) fn is_done(&self) -> bool {
        self.is_done
    }

    /// Number of fresh sockets.
    pub(super) fn fresh_sockets(&self) -> usize {
        self.fresh.len()
    }

    /// Returns the number of the next sample, unless there were enough.
    pub(super) fn next(&self) -> Option<usize> {
        (self.count < MAX_SAMPLES).then_some(self.count)
    }

    pub(super) fn asked(&mut self) {
        self.count += 1;
    }

    /// Notes that a sample was answered for which the search waited.
    pub(super) fn done(&mut self) {
        self.is_done = true;
    }

    /// Notes that the coordinator sees the fresh socket at this place at `port`.
    pub(super) fn seen(&mut self, place: usize, port: u16) {
        if let Some(fresh @ Fresh::Asked(_)) = self.fresh.get_mut(place) {
            *fresh = Fresh::Seen(port);
        }
    }

    /// Returns the place of the next fresh socket that the peer must learn of, among the first
    /// `complete`, and where it is.
    fn next_untold(&self, complete: usize) -> Option<(usize, Window)> {
        let mut all = self.fresh.iter().take(complete).enumerate();
        all.find_map(|(place, fresh)| match fresh {
            Fresh::Seen(port) => Some((place, Window { port: *port, step: 0 })),
            Fresh::Asked(_) | Fresh::Told => None,
        })
    }

    /// Returns true if the peer must learn of a fresh socket among the first `complete`.
    pub(super) fn has_untold(&self, complete: usize) -> bool {
        self.next_untold(complete).is_some()
    }

    /// Returns, once, where the next fresh socket is that the peer must learn of.
    pub(super) fn tell(&mut self, complete: usize) -> Option<Window> {
        let (place, window) = self.next_untold(complete)?;
        if let Some(fresh) = self.fresh.get_mut(place) {
            *fresh = Fresh::Told;
        }
        Some(window)
    }

    /// Notes a request for the port of the fresh socket at this place, if one is due after `shots`
    /// from that socket, at intervals of `interval` shots.
    pub(super) fn asks_again(&mut self, place: usize, shots: u32, interval: u32) -> bool {
        match self.fresh.get_mut(place) {
            Some(Fresh::Asked(times)) if shots >= *times * interval => {
                *times += 1;
                true
            }
            _ => false,
        }
    }
}
