//! Inputs in any order never panic, never lose count, and never leave a deadline that brings
//! nothing.

use std::{fs, path::Path};

use libp2p_punch_proto::config::Role;
use proptest::{collection::vec, prelude::*};

use crate::rig::{Input, inputs_of, run};

fn input() -> impl Strategy<Value = Input> {
    use Input::*;
    let small = || 0_u8..4;
    prop_oneof![
        1 => (small(), any::<bool>()).prop_map(|(a, b)| Socket(a, b)),
        1 => small().prop_map(SocketDown),
        1 => any::<u8>().prop_map(Interface),
        1 => any::<u8>().prop_map(InterfaceDown),
        1 => any::<bool>().prop_map(Reachable),
        1 => small().prop_map(Coordinator),
        1 => small().prop_map(NoCoordinator),
        3 => (small(), small()).prop_map(|(a, b)| ControlStream(a, b)),
        1 => small().prop_map(LinkDown),
        3 => small().prop_map(Connect),
        1 => small().prop_map(Cancel),
        4 => (small(), small()).prop_map(|(a, b)| FirstFlight(a, b)),
        2 => any::<u8>().prop_map(Established),
        2 => any::<u8>().prop_map(Closed),
        1 => (small(), any::<u8>(), any::<u8>()).prop_map(|(a, b, c)| Observed(a, b, c)),
        1 => (small(), any::<u8>()).prop_map(|(a, b)| Announce(a, b)),
        1 => (small(), small()).prop_map(|(a, b)| Withdraw(a, b)),
        2 => (small(), small()).prop_map(|(a, b)| Register(a, b)),
        1 => (small(), small()).prop_map(|(a, b)| Registered(a, b)),
        1 => (small(), small()).prop_map(|(a, b)| RegisterRejected(a, b)),
        4 => (small(), small(), small(), prop::bool::weighted(0.8), any::<u8>())
            .prop_map(|(a, b, c, d, e)| Punch(a, b, c, d, e)),
        4 => (small(), small()).prop_map(|(a, b)| Answer(a, b)),
        1 => (small(), small()).prop_map(|(a, b)| Reject(a, b)),
        4 => (any::<u8>(), small(), any::<bool>()).prop_map(|(a, b, c)| Probe(a, b, c)),
        1 => (small(), vec(any::<u8>(), 0..80)).prop_map(|(a, b)| Noise(a, b)),
        2 => any::<u8>().prop_map(Opened),
        1 => any::<u8>().prop_map(Silent),
        1 => any::<u8>().prop_map(Quiet),
        1 => small().prop_map(Upgrade),
        4 => any::<u16>().prop_map(Wait),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 256, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_inputs_in_any_order_keep_the_counts_and_end_in_silence(
        role in prop_oneof![Just(Role::Auto), Just(Role::Client), Just(Role::Server)],
        inputs in vec(input(), 0..120),
    ) {
        run(role, inputs);
    }
}

#[test]
fn the_corpus_of_the_fuzz_target_endpoint_still_passes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/corpus/endpoint");
    let mut count = 0;
    for entry in fs::read_dir(folder).unwrap() {
        let (role, inputs) = inputs_of(&fs::read(entry.unwrap().path()).unwrap());
        run(role, inputs);
        count += 1;
    }
    assert!(count >= 5, "a corpus of {count}");
}
