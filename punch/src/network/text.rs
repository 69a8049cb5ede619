//! The results as text.

use std::{fmt::Write as _, time::Duration};

use super::report::{IdleNode, Joined, Load, Report, Round, Tally, Traffic, percent, quantile};

/// Returns the results, a paragraph for each part.
pub(super) fn of(report: &Report) -> String {
    let mut text = joined(&report.joined);
    for round in &report.rounds {
        text += &dials(round);
    }
    text += &load(&report.load);
    text += &idle("hidden node", &report.idle.hidden);
    text += &idle("coordinator", &report.idle.coordinators);
    let _ = write!(text, "\n{:.0} s of simulated time", report.elapsed.as_secs_f64());
    text
}

fn joined(joined: &Joined) -> String {
    let Joined { nodes, public, coordinators, hidden, with_one, with_all, waited } = joined;
    format!(
        "{nodes} nodes, {public} of them public; {coordinators} coordinate\n\
         {with_one} of {hidden} hidden nodes are registered, {with_all} with all coordinators that they look for; \
         the last ones {:.1} s after the last node joined\n",
        waited.as_secs_f64()
    )
}

fn dials(round: &Round) -> String {
    let (all, possible) = (round.tally(), round.tally_possible());
    let mut text = format!("\nDials of random pairs, {}:\n", round.name);
    text += &tally("all", &all);
    text += &tally("that can be direct", &possible);
    let times = round.times();
    if !times.all.is_empty() {
        let _ = writeln!(
            text,
            "\n  time to connect through a coordinator        p50        p90        p99        max"
        );
        let rows = [
            ("in all", &times.all),
            ("looking for a coordinator that knows the peer", &times.lookup),
            ("from the request to the connection", &times.punch),
            ("of that above half of the three round trips", &times.over_bound),
        ];
        for (name, list) in rows {
            let _ = write!(text, "  {name:<45}");
            for share in [0.5, 0.9, 0.99, 1.0] {
                let _ = write!(text, "{:>8.0} ms", quantile(list, share).map_or(0.0, milliseconds));
            }
            text.push('\n');
        }
    }
    text += "\n  pair of NATs                               dials  direct  relayed, then direct  relayed  failed\n";
    for (one, other, tally) in round.tally_by_pair() {
        let Tally { direct, upgraded, relayed, failed, .. } = tally;
        let pair = format!("{one} and {other}");
        let dialed = tally.dialed();
        let _ =
            writeln!(text, "  {pair:<42} {dialed:>5} {direct:>7} {upgraded:>21} {relayed:>8} {failed:>7}");
    }
    for (reason, count) in round.failures() {
        let _ = writeln!(text, "  {count} failed, {reason}");
    }
    text
}

fn tally(name: &str, tally: &Tally) -> String {
    let Tally { already, direct, upgraded, relayed, failed } = tally;
    format!(
        "  {name:<18} {:>6} dials: {direct} direct, {upgraded} relayed and then direct, {relayed} relayed, {failed} failed \
         ({:.1}% direct, {:.1}% connected); {already} were connected before\n",
        tally.dialed(),
        tally.direct_share(),
        percent(tally.dialed() - failed, tally.dialed()),
    )
}

fn load(load: &Load) -> String {
    format!(
        "\nRequests passed on by each coordinator: mean {:.1}, p99 {}, max {} ({:.1} times the mean)\n",
        load.mean(),
        quantile(&load.requests, 0.99).unwrap_or_default(),
        load.requests.last().copied().unwrap_or_default(),
        load.max_by_mean()
    )
}

fn idle(name: &str, node: &IdleNode) -> String {
    format!(
        "Idle {name}, with {:.1} connected peers: {}; in the quietest minute {}\n",
        node.peers,
        traffic(&node.traffic),
        traffic(&node.quietest)
    )
}

fn traffic(traffic: &Traffic) -> String {
    let Traffic { datagrams_sent, bytes_sent, datagrams_received, bytes_received } = traffic;
    format!(
        "sends {bytes_sent:.0} B/s in {:.0} datagrams a minute and receives {bytes_received:.0} B/s in {:.0}",
        datagrams_sent * 60.0,
        datagrams_received * 60.0
    )
}

fn milliseconds(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
