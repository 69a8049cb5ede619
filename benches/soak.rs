//! Hours of chaos: `cargo bench --bench soak`. See `docs/reliability.md`.
//!
//! `SOAK_HOURS` (24), `SOAK_PEERS` (60), `SOAK_PACE_MS` (1000) and `SOAK_SEED` (1) change the plan.

#[path = "../tests/soak/chaos.rs"]
mod chaos;
#[path = "../tests/soak/forger.rs"]
mod forger;
#[path = "../tests/soak/peer.rs"]
mod peer;

use std::{env, str::FromStr, time::Duration};

use chaos::Plan;

fn setting<T: FromStr>(name: &str, default: T) -> T {
    match env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name} is {text:?}, which is no such number")),
        Err(_) => default,
    }
}

fn main() {
    let hours: f64 = setting("SOAK_HOURS", 24.0);
    let plan = Plan {
        seed: setting("SOAK_SEED", 1),
        peers: setting("SOAK_PEERS", 60),
        duration: Duration::from_secs_f64(hours * 3600.0),
        pace: Duration::from_millis(setting("SOAK_PACE_MS", 1_000)),
    };
    println!("{plan:?}");
    let outcome = chaos::soak(plan, |progress| println!("{progress}"));
    println!("{outcome}");
    outcome.check();
}
