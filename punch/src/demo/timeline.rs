//! What happened, in the order of simulated time, told in columns.

use std::{
    fmt::Write as _,
    sync::{Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use libp2p::PeerId;
use libp2p_punch_sim::{Record, Verdict};
use tokio::time::Instant;

use crate::report::short;

/// One line.
#[derive(Debug, Clone)]
struct Entry {
    at: Duration,
    who: &'static str,
    label: &'static str,
    text: String,
}

/// Lines from all peers.
#[derive(Debug)]
pub(crate) struct Story {
    begun: Instant,
    names: Vec<(PeerId, &'static str)>,
    entries: Mutex<Vec<Entry>>,
}

impl Story {
    /// A story that begins now, in which these peers are called by these names.
    pub(crate) fn new(names: Vec<(PeerId, &'static str)>) -> Self {
        Self { begun: Instant::now(), names, entries: Mutex::default() }
    }

    /// Adds what `who` has to say now.
    pub(crate) fn tell(&self, who: &'static str, label: &'static str, text: &str) {
        self.tell_at(self.now(), who, label, text.to_owned());
    }

    /// Adds what happened at another time.
    pub(super) fn tell_at(&self, at: Duration, who: &'static str, label: &'static str, mut text: String) {
        for (peer, name) in &self.names {
            text = text.replace(&peer.to_string(), name).replace(&short(peer), name);
        }
        self.lock().push(Entry { at, who, label, text });
    }

    /// Simulated time since the beginning.
    pub(super) fn now(&self) -> Duration {
        self.begun.elapsed()
    }

    /// The lines from one time to another, with the times counted from the first one.
    pub(super) fn between(&self, from: Duration, to: Duration) -> String {
        let mut entries: Vec<Entry> = self.lock().clone();
        entries.retain(|entry| (from..to).contains(&entry.at));
        // Stable: what happened at the same time stays in the order in which it was told.
        entries.sort_by_key(|entry| entry.at);
        let mut text = String::new();
        for Entry { at, who, label, text: words } in entries {
            let at = in_milliseconds(at.saturating_sub(from));
            let _ = writeln!(text, "  {at:>10}  {who:<9} {label:<11} {words}");
        }
        text
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Such as `75.0 ms`.
pub(super) fn in_milliseconds(time: Duration) -> String {
    format!("{:.1} ms", time.as_secs_f64() * 1e3)
}

/// What became of a datagram.
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
        Verdict::NoHairpin => "is not turned around by the NAT",
    };
    word.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_story_is_told_in_the_order_of_time_and_with_names() {
        let peer = PeerId::random();
        let story = Story::new(vec![(peer, "listener")]);
        tokio::time::advance(Duration::from_millis(80)).await;
        story.tell("dialer", "connected", &format!("with {peer}, that is {}", short(&peer)));
        story.tell_at(Duration::from_millis(60), "dialer", "probe", "to 192.0.2.20:4001".into());
        story.tell_at(Duration::from_millis(10), "listener", "registered", "too early to be told".into());
        let told = story.between(Duration::from_millis(50), Duration::MAX);
        let expected = "     10.0 ms  dialer    probe       to 192.0.2.20:4001\n     \
                        30.0 ms  dialer    connected   with listener, that is listener\n";
        assert_eq!(told, expected);
    }
}
