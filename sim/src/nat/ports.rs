//! Choice of the external port of a new mapping (RFC 4787 §4.2).

use std::{net::SocketAddr, ops::RangeInclusive};

use rand::{Rng, rngs::StdRng};

use super::mapping::Scope;

/// Choice of the external port of a new mapping (RFC 4787 §4.2). Ports are never overloaded: a port
/// in use is skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Ports {
    /// The internal port; a random one where that is taken.
    Preserving,
    /// The last one plus `step`, within [`Nat::port_range`](super::Nat::port_range), around at its
    /// end.
    Sequential {
        /// From one mapping to the next; 0 counts as 1.
        step: u16,
    },
    /// A random one of [`Nat::port_range`](super::Nat::port_range).
    Random,
    /// A fixed function of the endpoints of the mapping, into
    /// [`Nat::port_range`](super::Nat::port_range). The port is not kept, but returns when the
    /// mapping does. If the port is taken, the next free port.
    Hashed,
}

/// The state of an allocator.
#[derive(Debug)]
pub(crate) struct Allocator {
    range: RangeInclusive<u16>,
    last: Option<u16>,
    salt: u64,
}

impl Allocator {
    pub(crate) fn new(range: RangeInclusive<u16>, rng: &mut StdRng) -> Self {
        assert!(!range.is_empty() && *range.start() > 0, "a NAT needs ports to allocate");
        Self { range, last: None, salt: rng.random() }
    }

    /// A port that is free, or `None` if none of the range is.
    pub(crate) fn allocate(
        &self,
        ports: Ports,
        internal: SocketAddr,
        scope: &Scope,
        rng: &mut StdRng,
        free: impl Fn(u16) -> bool,
    ) -> Option<u16> {
        let (want, step) = match ports {
            Ports::Preserving if free(internal.port()) => return Some(internal.port()),
            Ports::Preserving | Ports::Random => (rng.random_range(self.range.clone()), 1),
            Ports::Sequential { step } => {
                let step = step.max(1);
                (self.last.map_or(*self.range.start(), |last| self.after(last, step)), step)
            }
            Ports::Hashed => (self.hashed(internal, scope), 1),
        };
        self.first_free(want, step, &free).or_else(|| self.first_free(want, 1, &free))
    }

    /// Notes which port was taken last, for sequential allocation.
    pub(crate) fn took(&mut self, port: u16) {
        self.last = Some(port);
    }

    fn first_free(&self, want: u16, step: u16, free: impl Fn(u16) -> bool) -> Option<u16> {
        let mut port = want;
        for _ in 0..self.count() {
            if free(port) {
                return Some(port);
            }
            port = self.after(port, step);
        }
        None
    }

    fn count(&self) -> u32 {
        u32::from(*self.range.end()) - u32::from(*self.range.start()) + 1
    }

    /// The port at this place in the range, counted around its end.
    fn nth(&self, place: u64) -> u16 {
        let offset = place % u64::from(self.count());
        self.range.start().saturating_add(u16::try_from(offset).unwrap_or(u16::MAX))
    }

    fn after(&self, port: u16, step: u16) -> u16 {
        self.nth(u64::from(port.saturating_sub(*self.range.start())) + u64::from(step))
    }

    /// FNV-1a with a salt: it must spread, not resist an attacker.
    fn hashed(&self, internal: SocketAddr, scope: &Scope) -> u16 {
        let hash =
            format!("{internal} {scope:?}").bytes().fold(0xcbf2_9ce4_8422_2325 ^ self.salt, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01b3)
            });
        self.nth(hash >> 16)
    }
}
