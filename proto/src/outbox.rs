//! Outputs of the endpoint, and its counters.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use crate::{
    AttemptId, ControlStreamId, Path,
    command::Command,
    counters::Counters,
    event::Event,
    wire::{
        frame::{Frame, RejectReason},
        keys::ProbeKeys,
        probe::{PROBE_LEN, Probe},
    },
};

/// A probe to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Transmit {
    /// From which socket, to which address.
    pub path: Path,
    /// The datagram.
    pub payload: [u8; PROBE_LEN],
}

/// Reason for the refusal of a request, and the time after which it may be sent again.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) reason: RejectReason,
    /// Zero if that time is not known.
    pub(crate) retry_after: Duration,
}

impl Refusal {
    /// A rate does not allow it until then.
    pub(crate) fn rate_limited(until: Instant, now: Instant) -> Self {
        let retry_after = until.saturating_duration_since(now);
        Self { reason: RejectReason::RateLimited, retry_after }
    }
}

impl From<RejectReason> for Refusal {
    fn from(reason: RejectReason) -> Self {
        Self { reason, retry_after: Duration::ZERO }
    }
}

#[derive(Debug, Default)]
pub(crate) struct Outbox {
    pub(crate) transmits: VecDeque<Transmit>,
    pub(crate) frames: VecDeque<(ControlStreamId, Frame)>,
    pub(crate) commands: VecDeque<Command>,
    pub(crate) events: VecDeque<Event>,
    pub(crate) counters: Counters,
}

impl Outbox {
    /// Sends a datagram of a NAT test.
    pub(crate) fn transmit(&mut self, path: Path, payload: [u8; PROBE_LEN]) {
        self.transmits.push_back(Transmit { path, payload });
    }

    /// Sends a probe of a session.
    pub(crate) fn probe(&mut self, path: Path, probe: Probe, keys: &ProbeKeys) {
        self.counters.probes_sent += 1;
        self.counters.probe_bytes_sent += PROBE_LEN as u64;
        self.transmits.push_back(Transmit { path, payload: probe.encode(keys) });
    }

    pub(crate) fn frame(&mut self, stream: ControlStreamId, frame: Frame) {
        self.frames.push_back((stream, frame));
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    pub(crate) fn event(&mut self, event: Event) {
        self.events.push_back(event);
    }

    /// Rejects the request of an attempt.
    pub(crate) fn reject(&mut self, to: ControlStreamId, attempt: AttemptId, refusal: impl Into<Refusal>) {
        let AttemptId { session, round } = attempt;
        let Refusal { reason, retry_after } = refusal.into();
        self.frame(to, Frame::PunchRejected { session, round, reason, retry_after });
    }

    /// Counts an answer of a coordinator, and the time that it took.
    pub(crate) fn coordinated(&mut self, after: Option<Duration>) {
        self.counters.coordinations += 1;
        self.counters.coordination_time += after.unwrap_or_default();
    }

    pub(crate) fn refuse_frame(&mut self) {
        self.counters.frames_refused += 1;
    }

    pub(crate) fn cap_hit(&mut self) {
        self.counters.caps_hit += 1;
    }
}
