//! Ten simulated minutes of chaos; `cargo bench --bench soak` runs hours of it.

mod chaos;
mod forger;
mod peer;

use std::time::Duration;

use chaos::Plan;

#[test]
fn every_dial_ends_once_and_nothing_is_left_after_ten_minutes_of_chaos() {
    let plan =
        Plan { seed: 1, peers: 120, duration: Duration::from_secs(600), pace: Duration::from_millis(600) };
    let outcome = chaos::soak(plan, |_| ());
    println!("{outcome}");
    outcome.check();
}
