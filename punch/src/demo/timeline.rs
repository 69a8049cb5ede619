//! Events of all peers in the order of simulated time, in columns.

use std::{
    fmt::Write as _,
    io,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use libp2p_punch_sim::{Record, Verdict};
use tokio::time::Instant;

use crate::{
    node::{NodeEvent, Observer},
    output::{TextLog, short},
};

/// Line of the time line.
#[derive(Debug, Clone)]
struct Entry {
    at: Duration,
    peer: &'static str,
    label: &'static str,
    text: String,
}

/// Lines of all peers.
#[derive(Debug)]
pub(super) struct Timeline {
    started: Instant,
    names: Vec<(PeerId, &'static str)>,
    entries: Mutex<Vec<Entry>>,
}

impl Timeline {
    /// Creates a time line that begins now and shows these peers by these names.
    pub(super) fn new(names: Vec<(PeerId, &'static str)>) -> Self {
        Self { started: Instant::now(), names, entries: Mutex::default() }
    }

    /// Adds a line of `peer` at a time since the beginning.
    pub(super) fn add(&self, at: Duration, peer: &'static str, label: &'static str, mut text: String) {
        for (id, name) in &self.names {
            text = text.replace(&id.to_string(), name).replace(&short(id), name);
        }
        self.lock().push(Entry { at, peer, label, text });
    }

    /// Returns the simulated time since the beginning.
    pub(super) fn now(&self) -> Duration {
        self.started.elapsed()
    }

    /// Returns the lines from one time to another. Their times count from the first.
    pub(super) fn between(&self, from: Duration, to: Duration) -> String {
        let mut entries: Vec<Entry> = self.lock().clone();
        entries.retain(|entry| (from..to).contains(&entry.at));
        // The sort is stable: lines of one time keep the order in which they were added.
        entries.sort_by_key(|entry| entry.at);
        let mut text = String::new();
        for Entry { at, peer, label, text: words } in entries {
            let at = in_milliseconds(at.saturating_sub(from));
            let _ = writeln!(text, "  {at:>10}  {peer:<9} {label:<11} {words}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Observer that adds the events of one peer to a time line.
pub(super) struct TimelineObserver {
    peer: &'static str,
    timeline: Arc<Timeline>,
    log: TextLog,
}

impl TimelineObserver {
    /// Creates an observer of the peer of this name.
    pub(super) fn new(peer: &'static str, timeline: &Arc<Timeline>) -> Self {
        Self { peer, timeline: timeline.clone(), log: TextLog::default() }
    }
}

impl Observer for TimelineObserver {
    fn observe(&mut self, event: &NodeEvent) -> io::Result<()> {
        if let Some(entry) = self.log.entry(event) {
            self.timeline.add(self.timeline.now(), self.peer, entry.label, entry.text);
        }
        Ok(())
    }
}

/// Formats a time, such as `75.0 ms`.
pub(super) fn in_milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// Describes the fate of a datagram.
pub(super) fn fate(record: &Record) -> String {
    let word = match record.verdict {
        Verdict::Delivered => {
            return format!("arrives {} later", in_milliseconds(record.at.saturating_sub(record.sent)));
        }
        Verdict::Lost | Verdict::QueueFull | Verdict::BufferFull => "is lost",
        Verdict::TooBig => "is too big",
        Verdict::Blocked => "is blocked",
        Verdict::NoRoute => "has nowhere to go",
        Verdict::NoSocket => "finds no socket",
        Verdict::NoMapping => "finds no mapping in the NAT",
        Verdict::Filtered => "is filtered by the NAT",
        Verdict::TableFull => "finds the NAT full",
        Verdict::NoHairpin => "is not hairpinned by the NAT",
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_time_line_has_the_order_of_time_and_the_names_of_peers() {
        let peer = PeerId::random();
        let timeline = Arc::new(Timeline::new(vec![(peer, "listener")]));
        tokio::time::advance(Duration::from_millis(80)).await;
        let mut dialer = TimelineObserver::new("dialer", &timeline);
        dialer.observe(&NodeEvent::Registered { coordinator: peer }).unwrap();
        dialer.observe(&NodeEvent::Disconnected { peer }).unwrap();
        let (probe, early) = (Duration::from_millis(60), Duration::from_millis(10));
        timeline.add(probe, "dialer", "probe", "to 192.0.2.20:4001".into());
        timeline.add(early, "listener", "registered", "too early to be shown".into());
        let shown = timeline.between(Duration::from_millis(50), Duration::MAX);
        let expected = "     10.0 ms  dialer    probe       to 192.0.2.20:4001\n     \
                        30.0 ms  dialer    registered  with listener\n     \
                        30.0 ms  dialer    closed      the connection to listener\n";
        assert_eq!(shown, expected);
    }
}
