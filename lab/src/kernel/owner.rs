//! Owners of namespaces. The name of a namespace holds the id of the process that made it, so a lab
//! can tell what a dead process left behind from what a living one uses.

use std::{
    fs,
    sync::atomic::{AtomicU32, Ordering},
};

const PREFIX: &str = "punchlab";

static LABS: AtomicU32 = AtomicU32::new(0);

/// Part of a namespace's name that all namespaces of one lab share.
pub(super) fn unique_lab_name() -> String {
    let process = std::process::id();
    let began = beginning(process).unwrap_or_default();
    format!("{PREFIX}.{process}-{began}.{}", LABS.fetch_add(1, Ordering::Relaxed))
}

/// Returns true for the name of a namespace whose owner is gone.
pub(super) fn is_stale(namespace: &str) -> bool {
    let mut parts = namespace.split('.');
    let (Some(PREFIX), Some(owner)) = (parts.next(), parts.next()) else { return false };
    let Some((process, began)) = owner.split_once('-') else { return false };
    let (Ok(process), Ok(began)) = (process.parse(), began.parse()) else { return false };
    beginning(process) != Some(began)
}

/// Returns the start of a living process in clock ticks since boot. A later process with the same
/// number has another start.
fn beginning(process: u32) -> Option<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/stat")).ok()?;
    // proc_pid_stat(5): the name in parentheses may hold anything; field 22 is the 20th behind it.
    let (_, fields) = status.rsplit_once(')')?;
    let mut fields = fields.split_whitespace();
    let state = fields.next()?;
    if matches!(state, "Z" | "X") {
        return None;
    }
    fields.nth(18)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_this_process_differ_and_are_not_stale() {
        let (one, other) = (unique_lab_name(), unique_lab_name());
        assert_ne!(one, other);
        assert!(!is_stale(&format!("{one}.wan")));
    }

    #[test]
    fn names_of_dead_processes_are_stale_also_when_their_number_is_used_again() {
        let process = std::process::id();
        let began = beginning(process).expect("this process has begun");
        assert!(is_stale(&format!("{PREFIX}.{process}-{}.0.wan", began + 1)));
        // Process numbers end at 2^22.
        assert!(is_stale(&format!("{PREFIX}.{}-1.0.wan", u32::MAX)));
    }

    #[test]
    fn names_of_others_are_never_stale() {
        for name in ["", "wan", "docker0", "punchlab", "punchlab.wan", "punchlab.1-x.0.wan", "x.1-1.0.wan"] {
            assert!(!is_stale(name), "{name}");
        }
    }
}
