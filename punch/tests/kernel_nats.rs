//! Three processes and real NATs: `coordinator`, `listen` and `dial` in network namespaces with nftables.
//!
//! Needs Linux, root and the programs `ip` and `nft`; elsewhere one line on stderr says that the tests are skipped.
//! With `PUNCH_REQUIRE_LAB` in the environment they fail instead of being skipped, for a CI where the lab must run.

#[cfg(target_os = "linux")]
mod lab;

#[cfg(not(target_os = "linux"))]
#[test]
fn the_lab_is_skipped_unless_it_is_required() {
    use std::io::Write;
    assert!(std::env::var_os("PUNCH_REQUIRE_LAB").is_none(), "the NAT lab needs Linux");
    // Past libtest's capture, which would hide it.
    let _ = writeln!(std::io::stderr(), "skipped: the NAT lab needs Linux");
}
