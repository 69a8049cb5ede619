//! Processes and real NATs: `coordinator`, `listen` and `dial` in network namespaces with nftables.
//!
//! Needs Linux, root and the programs `ip` and `nft`; elsewhere one line on stderr says that the
//! tests are skipped. With `PUNCH_REQUIRE_LAB` in the environment they fail instead of being
//! skipped, for a CI where the lab must run. `dht` runs nine processes of `examples/dht_node.rs`,
//! which `cargo test` of the whole workspace builds. `port_mapping` needs `miniupnpd`; with
//! `PUNCH_REQUIRE_MINIUPNPD` it fails without.

#[cfg(target_os = "linux")]
mod kernel_nats {
    mod command;
    mod dht;
    mod doctor;
    mod early_packets;
    mod files;
    mod forward;
    mod moving;
    mod pairs;
    mod port_mapping;

    use std::{
        io::{self, Write},
        sync::OnceLock,
    };

    use punch_lab::kernel;

    /// Returns true if this machine can run the lab; prints a line otherwise.
    fn lab_is_possible() -> bool {
        static OBSTACLE: OnceLock<Option<String>> = OnceLock::new();
        let obstacle = OBSTACLE.get_or_init(|| {
            let obstacle = kernel::obstacle();
            match &obstacle {
                Some(obstacle) => say(&format!("skipped: the NAT lab {obstacle}")),
                None => {
                    kernel::remove_stale();
                }
            }
            obstacle
        });
        if let Some(obstacle) = obstacle {
            assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the NAT lab {obstacle}");
        }
        obstacle.is_none()
    }

    /// Writes to stderr, past libtest's capture: figures and skipped tests are to be seen also when
    /// all is well.
    fn say(line: &str) {
        let _ = writeln!(io::stderr(), "{line}");
    }
}

#[cfg(not(target_os = "linux"))]
#[test]
fn the_lab_is_skipped_unless_it_is_required() {
    use std::io::Write;
    assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the NAT lab needs Linux");
    // Past libtest's capture, which would hide it.
    let _ = writeln!(std::io::stderr(), "skipped: the NAT lab needs Linux");
}
