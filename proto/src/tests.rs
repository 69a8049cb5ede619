//! `docs/protocol.md` gives the numbers that the code has.

use crate::{
    config::{Config, CoordinatorLimits},
    coordinator::{COORDINATORS_RATE, MAX_LIFETIME, OBSERVED_RATE, registrations::MAX_ANNOUNCED},
    endpoint::MAX_SESSIONS,
    nat::{
        binding_lifetime::{HOLD_RATE, MAX_HOLDS},
        early_packets::EARLY_RATE,
        filtering::{ASSIST_RATE, FILTER_RATE, MAX_ASSISTS, MAX_SOURCES, MAX_TESTS, ROUNDS},
        observer::{OBSERVE_RATE, OFFER_RATE},
    },
    pacing::{MAX_ALLOWANCE, MIN_ALLOWANCE},
    probe_budget::{DESTINATION_FLIGHT_RATE, DESTINATION_RATE, TOTAL_FLIGHT_RATE, TOTAL_RATE},
    rate_limit::{PAIR_RATE, Rate},
    session::{
        checklist::{CHALLENGE_RATE, MAX_FORMED, MAX_PAIRS},
        context::FLIGHT_RATE,
        pair::{MAX_TRIGGERED, SCHEDULE},
        port_search::{
            MAX_SEARCH_SOCKETS, MAX_SEARCHES, MAX_SHOTS, MAX_WAITING, PROBE_INTERVAL, TARGET_RATE,
        },
        request_limiter::{
            ACQUAINTED_PLACES, ACQUAINTED_RATE, COORDINATOR_RATE, LATELY, MAX_CONNECTED_TO_ONE,
            MAX_RESPONDING, NEWCOMERS,
        },
    },
    wire::frame::{
        MAX_ALLOWANCE_INTERVAL, MAX_FILTER_SOURCES, MAX_FIRST_FLIGHT_DATAGRAM, MAX_FIRST_FLIGHT_DATAGRAMS,
        MAX_FRAME_CANDIDATES, MAX_FRAME_COORDINATORS, MAX_FRAME_LEN, MAX_NAT_REPORT_LEN, MAX_OBSERVER_PORTS,
        MAX_PEER_ID_LEN, MAX_PUBLIC_KEY_LEN, MAX_PUNCH_LIFETIME, MAX_REGISTRATION_LIFETIME, MAX_RETRY_AFTER,
        MAX_SIGNATURE_LEN,
    },
};

const DOCUMENT: &str = include_str!("../../docs/protocol.md");

/// 16384 as 16,384.
fn number(n: impl TryInto<u64>) -> String {
    let digits = n.try_into().ok().expect("small").to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(",")
}

fn rate(rate: Rate) -> String {
    format!("{} at once and {} a second", rate.burst, 1.0 / rate.interval.as_secs_f64())
}

fn rate_of_thousands(rate: Rate) -> String {
    let a_second = (1.0 / rate.interval.as_secs_f64()).round();
    format!("{} at once and {} a second", number(rate.burst), number(a_second as u64))
}

fn one_in(rate: Rate) -> String {
    format!("{} at once and one in {} s", rate.burst, rate.interval.as_secs())
}

fn by_configuration(default: String) -> String {
    format!("by configuration, {default} by default")
}

/// The rows of §9 on the sizes of what is sent.
fn caps_of_frames() -> Vec<(&'static str, String)> {
    vec![
        ("type and payload of a frame", format!("{} bytes", number(MAX_FRAME_LEN))),
        ("candidates in a frame", number(MAX_FRAME_CANDIDATES)),
        ("datagrams in a first flight", format!("1 to {MAX_FIRST_FLIGHT_DATAGRAMS}")),
        ("bytes of each of these", format!("1 to {}", number(MAX_FIRST_FLIGHT_DATAGRAM))),
        ("public key", format!("1 to {} bytes (RSA with 8,192 bits has 1,067)", number(MAX_PUBLIC_KEY_LEN))),
        ("signature", format!("1 to {} bytes (RSA with 8,192 bits)", number(MAX_SIGNATURE_LEN))),
        ("peer ID", format!("{MAX_PEER_ID_LEN} bytes")),
        ("lifetime of a registration", format!("{} s", number(MAX_REGISTRATION_LIFETIME.as_secs()))),
        ("lifetime of a request", format!("{} ms", number(MAX_PUNCH_LIFETIME.as_millis()))),
        ("interval of an allowance", format!("{} µs", number(MAX_ALLOWANCE_INTERVAL.as_micros()))),
        ("retry after", format!("{} ms", number(MAX_RETRY_AFTER.as_millis()))),
        ("NAT report", format!("1 to {MAX_NAT_REPORT_LEN} bytes")),
        ("ports in OBSERVER, in OBSERVER_AT", format!("1 to {MAX_OBSERVER_PORTS}")),
        ("addresses in FILTER_TESTED", number(MAX_FILTER_SOURCES)),
        ("coordinators in COORDINATORS", format!("1 to {MAX_FRAME_COORDINATORS}")),
    ]
}

/// The rows of §9 on searches, probes and sessions.
fn caps_of_sessions() -> Vec<(&'static str, String)> {
    let a_second = (1.0 / PROBE_INTERVAL.as_secs_f64()).round();
    let towards = format!("{} and one in {} s", TARGET_RATE.burst, TARGET_RATE.interval.as_secs());
    vec![
        ("sockets of a search", number(crate::nat::strategy::SPRAY_SOCKETS)),
        ("probes of a search", format!("{}, {a_second} a second", number(MAX_SHOTS))),
        ("searches at once; waiting searches", format!("{MAX_SEARCHES}; {MAX_WAITING}")),
        ("searches towards one IP address", towards),
        ("sockets of all searches", number(MAX_SEARCH_SOCKETS)),
        (
            "pairs of a session",
            format!("{MAX_PAIRS}, of which {} by the peer's own probes", MAX_PAIRS - MAX_FORMED),
        ),
        (
            "probes of a checklist to addresses that never answered",
            format!("{0} for each pair formed, {1} in all", SCHEDULE.len(), MAX_FORMED * SCHEDULE.len()),
        ),
        (
            "probes of a request to one destination that never answered",
            "three times the bytes of the request".into(),
        ),
        (
            "probes of all requests to one such destination; to all",
            format!("{}; {}", rate(DESTINATION_RATE), rate_of_thousands(TOTAL_RATE)),
        ),
        ("server flights on the word of one coordinator to addresses that never answered", rate(FLIGHT_RATE)),
        (
            "server flights to one destination that only the initiator named; to all",
            format!("{}; {}", one_in(DESTINATION_FLIGHT_RATE), rate(TOTAL_FLIGHT_RATE)),
        ),
        ("challenges answered in a session", rate(CHALLENGE_RATE)),
        ("candidates kept of a peer", by_configuration(Config::default().max_candidates.to_string())),
        ("sessions", number(MAX_SESSIONS)),
        ("sessions under way that others asked for", number(MAX_RESPONDING)),
        ("connections that one peer gets by asking", number(MAX_CONNECTED_TO_ONE)),
    ]
}

/// The rows of §9 on what a peer does for others.
fn caps_of_service() -> Vec<(&'static str, String)> {
    let limits = CoordinatorLimits::default();
    let (tests, delayed_replies) = (one_in(FILTER_RATE), one_in(HOLD_RATE));
    vec![
        (
            "registrations at a coordinator",
            format!("{}; networks share", by_configuration(number(limits.max_registrations))),
        ),
        ("lifetime that a coordinator grants", format!("{} s", number(MAX_LIFETIME.as_secs()))),
        ("candidates announced on a stream", number(MAX_ANNOUNCED)),
        ("REGISTER of a peer", by_configuration(rate(limits.register_rate))),
        (
            "PUNCH_ME_NOW and PORT_PREDICTION of a peer, at a coordinator",
            by_configuration(rate(limits.request_rate)),
        ),
        ("the least of these that a coordinator grants", rate(MIN_ALLOWANCE)),
        ("the most of them that an initiator believes", rate_of_thousands(MAX_ALLOWANCE)),
        (
            "PUNCH_ME_NOW of a peer for one responder, at a coordinator",
            by_configuration(rate(limits.pair_rate)),
        ),
        ("requests through one coordinator, at a responder", rate(COORDINATOR_RATE)),
        ("more of these, of peers that were connected before", rate(ACQUAINTED_RATE)),
        ("requests of one initiator, at a responder", rate(PAIR_RATE)),
        ("requests of a peer to observers", rate(OBSERVE_RATE)),
        ("OBSERVER and OBSERVER_AT of a coordinator", one_in(OFFER_RATE)),
        ("requests for early packets, of a peer", one_in(EARLY_RATE)),
        (
            "requests for a later answer, of a peer; of all at once",
            format!("{delayed_replies}; {}", number(MAX_HOLDS)),
        ),
        ("datagrams of a filtering test", number(ROUNDS * (1 + MAX_SOURCES))),
        ("filtering tests of a peer; of all at once", format!("{tests}; {}", number(MAX_TESTS))),
        ("datagrams for a FILTERING_ASSIST_REQUEST", number(ROUNDS)),
        (
            "FILTERING_ASSIST_REQUEST of a coordinator; of all at once",
            format!("{}; {MAX_ASSISTS}", rate(ASSIST_RATE)),
        ),
        ("OBSERVED_ADDRESS of a peer", rate(OBSERVED_RATE)),
        ("COORDINATORS of a peer", rate(COORDINATORS_RATE)),
    ]
}

#[test]
fn the_caps_in_the_document_are_those_of_the_code() {
    let (_, section) = DOCUMENT.split_once("\n## 9. Caps").expect("§9");
    let cells = |line: &'static str| {
        let mut cells = line.strip_prefix("| ")?.split(" | ");
        Some((cells.next()?, cells.next()?.to_owned()))
    };
    // The transport and the behaviour look after their own rows.
    const ELSEWHERE: [&str; 5] = [
        "virtual connections that take",
        "bytes of frames that wait",
        "time for which a control stream",
        "descriptors",
        "peers whose coordinators are remembered",
    ];
    let rows = section
        .lines()
        .filter_map(cells)
        .filter(|(what, _)| !ELSEWHERE.iter().any(|words| what.starts_with(words)));
    assert_eq!(
        rows.skip(1).collect::<Vec<_>>(),
        [caps_of_frames(), caps_of_sessions(), caps_of_service()].concat()
    );
}

#[test]
fn the_rules_in_the_document_have_the_numbers_of_the_code() {
    let (_, section) = DOCUMENT.split_once("\n## 8. Rules").expect("§8");
    let (section, _) = section.split_once("\n## 9. Caps").expect("§9");
    let section = section.split_whitespace().collect::<Vec<_>>().join(" ");
    for rule in [
        format!("at most {} probes for each socket in an attempt", SCHEDULE.len()),
        format!("each of the first {MAX_TRIGGERED} authentic challenges"),
        format!("formed of at most {MAX_FORMED} pairs"),
        format!("{} probes for each pair, {} in all", SCHEDULE.len(), SCHEDULE.len() * MAX_FORMED),
        format!("sends at most {} probes, 300 a second", number(MAX_SHOTS)),
        format!("at most {MAX_SEARCHES} searches at once, with at most {MAX_SEARCH_SOCKETS} sockets"),
        format!(
            "at most {}, and then one in {} s, towards one IP address",
            TARGET_RATE.burst,
            TARGET_RATE.interval.as_secs()
        ),
        format!("The last {NEWCOMERS} requests of a coordinator"),
        format!("did not ask through that coordinator in the last {} s", LATELY.as_secs()),
        format!("under way that others asked for, {ACQUAINTED_PLACES} are reserved for these peers"),
    ] {
        assert!(section.contains(&rule), "§8 does not say {rule:?}");
    }
}
