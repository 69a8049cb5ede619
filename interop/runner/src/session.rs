//! Checks between one listener and one dialer.

use std::time::Duration;

use anyhow::Context;
use futures::{StreamExt, stream};
use interop_testplan::{features::Feature, key::KeyType, report::Line};

use crate::{
    capture::{self, Capture, IdentityForm, Requirements, Scratch},
    check::{Check, Direction},
    expected,
    layout::Layout,
    matrix::Matrix,
    peer::Peer,
    probe,
    process::Process,
};

/// Time for a listener to start; interpreters are slow on a busy machine.
const START_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a dialer to try all its features.
const DIAL_TIMEOUT: Duration = Duration::from_secs(150);
/// Time for a listener to report its view. py-libp2p needs up to 6 s to report a connection as
/// gone.
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// Sessions that run at once.
const PARALLEL_SESSIONS: usize = 2;

/// Features that a dialer tries on one connection; the last one ends it.
const ON_ONE_CONNECTION: [Feature; 7] = [
    Feature::Ping,
    Feature::Identify,
    Feature::Echo,
    Feature::Streams,
    Feature::HalfClose,
    Feature::Reset,
    Feature::CloseByDialer,
];

/// Work of one pair of processes.
#[derive(Debug, Clone)]
struct Session {
    direction: Direction,
    our_key: KeyType,
    their_key: KeyType,
    ip6: bool,
    /// tshark captures the session.
    wire: bool,
    checks: Vec<(Feature, Check)>,
}

impl Session {
    fn plain(direction: Direction, features: &[Feature]) -> Self {
        let checks = features.iter().map(|feature| (*feature, Check::Feature(*feature))).collect();
        Self {
            direction,
            our_key: KeyType::Ed25519,
            their_key: KeyType::Ed25519,
            ip6: false,
            wire: false,
            checks,
        }
    }

    fn ping(direction: Direction, check: Check) -> Self {
        Self { checks: vec![(Feature::Ping, check)], ..Self::plain(direction, &[]) }
    }
}

/// Everything that is checked with a peer.
fn plan(peer: &Peer) -> Vec<Session> {
    let mut sessions = vec![Session { wire: true, ..Session::ping(Direction::WeDial, Check::Wire) }];
    for direction in peer.directions() {
        // The long one comes first, so that the others run at the same time.
        sessions.push(Session::plain(direction, &[Feature::KeepAlive]));
        sessions.push(Session::plain(direction, &ON_ONE_CONNECTION));
        sessions.push(Session::plain(direction, &[Feature::CloseByListener]));
        sessions.push(Session { ip6: true, ..Session::ping(direction, Check::Ipv6) });
        for key in KeyType::ALL {
            sessions.push(Session { our_key: key, ..Session::ping(direction, Check::OurKey(key)) });
        }
        for key in KeyType::ALL {
            sessions.push(Session { their_key: key, ..Session::ping(direction, Check::TheirKey(key)) });
        }
    }
    for session in &mut sessions {
        session.checks.retain(|(_, check)| expected::untried(peer, session.direction, *check).is_none());
    }
    sessions.retain(|session| !session.checks.is_empty());
    sessions
}

/// Takes some sessions from the plan, and records their checks as skipped.
fn skip(
    sessions: &mut Vec<Session>,
    peer: &Peer,
    is_skipped: impl Fn(&Session) -> bool,
    why: &str,
    matrix: &mut Matrix,
) {
    for session in sessions.extract_if(.., |session| is_skipped(session)) {
        for (_, check) in &session.checks {
            matrix.skip(peer.name, session.direction, *check, why);
        }
    }
}

/// Records everything that is checked with a peer as skipped.
pub(crate) fn skip_all(peer: &Peer, why: &str, matrix: &mut Matrix) {
    skip(&mut plan(peer), peer, |_| true, why, matrix);
}

/// Runs everything that is checked with a peer.
pub(crate) async fn run_all(layout: &Layout, peer: &'static Peer, matrix: &mut Matrix) {
    let mut sessions = plan(peer);
    if !capture::is_possible().await {
        skip(&mut sessions, peer, |session| session.wire, capture::NO_TSHARK, matrix);
    }
    let runs = sessions.into_iter().map(|session| async move {
        let result = run(layout, peer, &session).await;
        (session, result)
    });
    let mut done = stream::iter(runs).buffer_unordered(PARALLEL_SESSIONS);
    let mut again = Vec::new();
    while let Some((session, result)) = done.next().await {
        for (feature, check) in session.checks.clone() {
            match verdict(&result, feature) {
                Err(first) if expected::find(peer.name, session.direction, check).is_none() => {
                    again.push((session.clone(), feature, check, first));
                }
                outcome => matrix.add(peer.name, session.direction, check, outcome),
            }
        }
    }
    // Other implementations fail now and then while several of these run; a check that fails alone
    // too counts as failed.
    for (session, feature, check, first) in again {
        let second = verdict(&run(layout, peer, &session).await, feature);
        matrix.add(peer.name, session.direction, check, expected::second_attempt(&first, second));
    }
}

fn verdict(result: &anyhow::Result<Vec<Line>>, wanted: Feature) -> Result<String, String> {
    let lines = result.as_ref().map_err(|error| format!("{error:#}"))?;
    let said = lines.iter().find_map(|line| match line {
        Line::Feature { feature, ok, detail } if *feature == wanted => Some((*ok, detail.clone())),
        _ => None,
    });
    match said {
        Some((true, detail)) => Ok(detail),
        Some((false, detail)) => Err(detail),
        None => Err("the dialer did not say".into()),
    }
}

/// Runs a listener and a dialer; returns the results of the dialer, corrected by the observations
/// of the listener.
async fn run(layout: &Layout, peer: &Peer, session: &Session) -> anyhow::Result<Vec<Line>> {
    let ours = vec![layout.binary("testplan").to_str().context("a path that is not text")?.to_owned()];
    let theirs = peer.command(layout)?;
    let (listener, dialer) = match session.direction {
        Direction::TheyDial => ((&ours, session.our_key), (&theirs, session.their_key)),
        Direction::WeDial => ((&theirs, session.their_key), (&ours, session.our_key)),
    };
    let address = if session.ip6 { "/ip6/::1/udp/0/quic-v1" } else { "/ip4/127.0.0.1/udp/0/quic-v1" };
    let words = ["listen", "--key", &listener.1.to_string(), "--address", address].map(str::to_owned);
    let scratch = if session.wire { Some(Scratch::new()?) } else { None };
    let secrets = scratch.as_ref().filter(|_| peer.logs_secrets).map(Scratch::secrets);
    let variable = secrets.as_deref().map(|file| ("SSLKEYLOGFILE", file));
    let mut listener = Process::start(listener.0, &words, variable).context("the listener")?;
    let listening = |line: &Line| match line {
        Line::Listening { address } => Some(address.to_string()),
        _ => None,
    };
    let address = listener.wait_for(START_TIMEOUT, listening).await.context("the listener")?;

    let capture = match scratch {
        Some(scratch) => {
            let fixed_bit = !peer.may_be_greased;
            let presented = secrets.is_some().then_some(IdentityForm::Certificate);
            let wanted = Requirements { port: port_of(&address)?, fixed_bit, presented };
            Some(Capture::start(wanted, scratch).await?)
        }
        None => None,
    };
    let mut words = ["dial", "--key", &dialer.1.to_string(), &address].map(str::to_owned).to_vec();
    words.extend(session.checks.iter().map(|(feature, _)| feature.to_string()));
    let mut dialer = Process::start(dialer.0, &words, None).context("the dialer")?;
    // Watched while the dialer runs: a process that ends takes its connections along.
    let closed = |line: &Line| matches!(line, Line::Closed { .. }).then_some(());
    let closes = session.checks.iter().any(|(feature, _)| *feature == Feature::CloseByDialer);
    dialer.finish(DIAL_TIMEOUT).await.context("the dialer")?;
    let mut lines = dialer.lines();
    if closes && let Err(error) = listener.wait_for(REPORT_TIMEOUT, closed).await {
        withdraw(&mut lines, Feature::CloseByDialer, &format!("the listener: {error:#}"));
    }
    let identified = |line: &Line| matches!(line, Line::Identified { .. }).then_some(());
    if session.direction == Direction::TheyDial
        && let Err(error) = listener.wait_for(REPORT_TIMEOUT, identified).await
    {
        withdraw(&mut lines, Feature::Identify, &format!("the listener: {error:#}"));
    }
    if let Some(capture) = capture {
        let seen = capture.finish().await.context("on the wire")?;
        for line in &mut lines {
            if let Line::Feature { ok: true, detail, .. } = line {
                detail.clone_from(&seen);
            }
        }
    }
    listener.stop().await;
    Ok(lines)
}

/// Reads the identity that our listener presents to a client that shares no code with it, and that
/// writes its secrets down.
pub(crate) async fn run_raw_key(layout: &Layout, peer: &'static Peer, matrix: &mut Matrix) {
    if !capture::is_possible().await {
        return matrix.skip(peer.name, Direction::WeDial, Check::WireRawKey, capture::NO_TSHARK);
    }
    let result = raw_key(layout).await.map_err(|error| format!("{error:#}"));
    matrix.add(peer.name, Direction::WeDial, Check::WireRawKey, result);
}

async fn raw_key(layout: &Layout) -> anyhow::Result<String> {
    let ours = layout.binary("testplan").to_str().context("a path that is not text")?.to_owned();
    let mut listener = Process::start(&[ours], &["listen".to_owned()], None).context("the listener")?;
    let listening = |line: &Line| match line {
        Line::Listening { address } => Some(address.to_string()),
        _ => None,
    };
    let port = port_of(&listener.wait_for(START_TIMEOUT, listening).await.context("the listener")?)?;
    let scratch = Scratch::new()?;
    let secrets = scratch.secrets();
    // The probe lets everybody grease.
    let wanted = Requirements { port, fixed_bit: false, presented: Some(IdentityForm::RawKey) };
    let capture = Capture::start(wanted, scratch).await?;
    probe::handshake(port, &secrets).await?;
    let seen = capture.finish().await.context("on the wire")?;
    listener.stop().await;
    Ok(seen)
}

fn port_of(address: &str) -> anyhow::Result<u16> {
    let port = address.split('/').nth(4).context("an address without port")?;
    Ok(port.parse()?)
}

/// The dialer believes that it works, and the listener has not seen it.
fn withdraw(lines: &mut [Line], wanted: Feature, why: &str) {
    for line in lines {
        if let Line::Feature { feature, ok, detail } = line
            && *feature == wanted
            && *ok
        {
            *ok = false;
            *detail = why.to_owned();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::peer::{self, PEERS};

    #[test]
    fn without_tshark_the_wire_check_of_each_peer_is_skipped_and_all_others_remain() {
        for peer in PEERS {
            let mut matrix = Matrix::default();
            let mut sessions = plan(peer);
            let planned = checks(&sessions);
            skip(&mut sessions, peer, |session| session.wire, capture::NO_TSHARK, &mut matrix);
            assert_eq!(matrix.tally().skipped, 1, "{}", peer.name);
            assert!(matrix.to_string().contains(&format!("skipped: {}: wire: ", peer.name)), "{matrix}");
            assert_eq!(checks(&sessions), planned - 1, "{}", peer.name);
        }
    }

    #[test]
    fn each_check_of_a_peer_that_cannot_be_installed_counts_as_skipped() {
        let peers = peer::select(&["go-current".to_owned()], false).expect("a known peer");
        let mut matrix = Matrix::default();
        for peer in peers {
            skip_all(peer, "it cannot be installed here", &mut matrix);
            assert_eq!(matrix.tally().skipped, checks(&plan(peer)));
        }
        // The nine features, IPv6 and the four types of keys on either side, both ways; our
        // ClientHello.
        assert_eq!(matrix.tally().to_string(), "0 passed, 0 failed, 0 known failures, 37 skipped");
    }

    fn checks(sessions: &[Session]) -> usize {
        sessions.iter().map(|session| session.checks.len()).sum()
    }
}
