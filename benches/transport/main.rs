//! Comparison of our transport with others: `cargo bench --bench transport`, `-- --quick` for a
//! look, `-- --only NAME --kinds 'A;B' --rounds N` for a part of it.
//!
//! All transports take turns in every round, in an order that rotates. A cell is the median of its
//! rounds, and in brackets the median of each round's ratio to libp2p-quic with the same kind of
//! identity: other load on the machine then hits all of them alike.

mod measures;
mod raw;
mod stacks;

use std::{
    env,
    io::{self, BufRead, BufReader},
    process::{Child, Command, Stdio},
};

use measures::{Scale, run};
use stacks::Kind;

/// Base of the ratios, except for identities whose certificates cost more.
const BASE: Kind = Kind::Libp2pQuic;

/// One measure: rows of the table, and who takes part.
struct Measure {
    name: &'static str,
    rows: &'static [&'static str],
    kinds: Vec<Kind>,
    /// Share of the requested rounds: one in this number.
    one_in: usize,
    run: fn(Kind, Scale) -> io::Result<Vec<f64>>,
}

fn measures() -> Vec<Measure> {
    let mut all = bulk_measures();
    all.extend(connection_measures());
    all
}

fn bulk_measures() -> Vec<Measure> {
    let bulk = vec![BASE, Kind::Ours, Kind::OursBridged, Kind::Quinn, Kind::QuinnTuned, Kind::Tcp];
    vec![
        Measure {
            name: "bulk1",
            rows: &["bulk, 1 stream, one process, MB/s", "its CPU, ms per 100 MB"],
            kinds: bulk.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::bulk(kind, None, 1, scale.bulk_bytes)),
        },
        Measure {
            name: "bulk8",
            rows: &["bulk, 8 streams, one process, MB/s", "its CPU, ms per 100 MB"],
            kinds: bulk.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::bulk(kind, None, 8, scale.bulk_bytes)),
        },
        Measure {
            name: "two1",
            rows: &["bulk, 1 stream, two processes, MB/s", "CPU of the sender, ms per 100 MB"],
            kinds: bulk.clone(),
            one_in: 1,
            run: |kind, scale| bulk_to_child(kind, 1, scale),
        },
        Measure {
            name: "two8",
            rows: &["bulk, 8 streams, two processes, MB/s", "CPU of the sender, ms per 100 MB"],
            kinds: bulk,
            one_in: 1,
            run: |kind, scale| bulk_to_child(kind, 8, scale),
        },
    ]
}

fn connection_measures() -> Vec<Measure> {
    let authenticated = vec![BASE, Kind::Libp2pQuicEcdsa, Kind::Ours, Kind::OursX509, Kind::Quinn, Kind::Tcp];
    let streams = vec![BASE, Kind::Ours, Kind::Quinn, Kind::QuinnTuned];
    vec![
        Measure {
            name: "handshake",
            rows: &["CPU per handshake and echo, both sides, us"],
            kinds: authenticated.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::handshakes(kind, scale.handshakes, false)),
        },
        Measure {
            name: "again",
            rows: &["the same with a known peer, us"],
            kinds: authenticated.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::handshakes(kind, scale.handshakes, true)),
        },
        Measure {
            name: "storm",
            rows: &["64 dials at once, p50, ms", "64 dials at once, p99, ms"],
            kinds: vec![BASE, Kind::Ours, Kind::OursStock, Kind::Quinn, Kind::QuinnTuned, Kind::Tcp],
            one_in: 1,
            run: |kind, _| run(measures::storm(kind)),
        },
        Measure {
            name: "echo",
            rows: &["stream and 1-byte echo, p50, us", "stream and 1-byte echo, p99, us"],
            kinds: streams.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::echoes(kind, scale.echoes)),
        },
        Measure {
            name: "streams100",
            rows: &["streams/s, 100 at once"],
            kinds: streams.clone(),
            one_in: 1,
            run: |kind, scale| run(measures::stream_rate(kind, 100, scale.echoes * 4)),
        },
        Measure {
            name: "streams256",
            rows: &["streams/s, 256 at once"],
            kinds: streams,
            one_in: 1,
            run: |kind, scale| run(measures::stream_rate(kind, 256, scale.echoes * 4)),
        },
        Measure {
            name: "memory",
            rows: &["memory of an idle connection, one end, KiB"],
            kinds: authenticated,
            one_in: 3,
            run: memory_of_child,
        },
    ]
}

fn main() -> io::Result<()> {
    let args: Vec<String> = env::args().skip(1).collect();
    let after = |flag: &str| args.iter().skip_while(|arg| *arg != flag).nth(1);
    if let Some(kind) = after("--serve").and_then(|name| Kind::parse(name)) {
        return serve_parent(kind);
    }
    let scale = if args.iter().any(|arg| arg == "--quick") { Scale::QUICK } else { Scale::FULL };
    if let Some(kind) = after("--memory").and_then(|name| Kind::parse(name)) {
        println!("{}", run(measures::memory(kind, scale.idle))?);
        return Ok(());
    }
    let default = if args.iter().any(|arg| arg == "--quick") { 1 } else { 9 };
    let rounds = after("--rounds").and_then(|rounds| rounds.parse().ok()).unwrap_or(default);
    let only = after("--only");
    println!("| | {} |", Kind::ALL.map(Kind::name).join(" | "));
    println!("|---|{}", "---|".repeat(Kind::ALL.len()));
    let kinds = after("--kinds");
    for mut measure in measures() {
        if only.is_some_and(|only| only != measure.name) {
            continue;
        }
        if let Some(kinds) = kinds {
            measure.kinds.retain(|kind| *kind == BASE || kinds.split(';').any(|one| one == kind.name()));
        }
        report(&measure, scale, rounds)?;
    }
    Ok(())
}

/// Runs all rounds of a measure and prints its rows.
fn report(measure: &Measure, scale: Scale, rounds: usize) -> io::Result<()> {
    let mut values: Vec<Vec<Vec<f64>>> = Vec::new();
    for round in 0..rounds.div_ceil(measure.one_in) {
        let mut of_round = vec![Vec::new(); measure.kinds.len()];
        for turn in 0..measure.kinds.len() {
            let index = (turn + round) % measure.kinds.len();
            of_round[index] = (measure.run)(measure.kinds[index], scale)?;
        }
        values.push(of_round);
    }
    for (row, label) in measure.rows.iter().enumerate() {
        let cells = Kind::ALL.map(|kind| {
            let Some(index) = measure.kinds.iter().position(|one| *one == kind) else {
                return "-".to_owned();
            };
            let value = median(values.iter().map(|round| round[index][row]).collect());
            let ecdsa = measure.kinds.iter().position(|one| *one == Kind::Libp2pQuicEcdsa);
            let base = ecdsa.filter(|_| kind == Kind::OursX509).unwrap_or_default();
            let ratio = median(values.iter().map(|round| round[index][row] / round[base][row]).collect());
            format!("{value:.*} ({ratio:.2})", if value < 100.0 { 1 } else { 0 })
        });
        println!("| {label} | {} |", cells.join(" | "));
    }
    Ok(())
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    match values.len() {
        0 => f64::NAN,
        len if len % 2 == 0 => (values[len / 2 - 1] + values[len / 2]) / 2.0,
        len => values[len / 2],
    }
}

/// This program again, with a first line to read.
fn child(args: &[&str]) -> io::Result<(Child, String)> {
    let mut child =
        Command::new(env::current_exe()?).args(args).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
    let mut line = String::new();
    if let Some(stdout) = child.stdout.take() {
        BufReader::new(stdout).read_line(&mut line)?;
    }
    Ok((child, line.trim().to_owned()))
}

fn bulk_to_child(kind: Kind, streams: usize, scale: Scale) -> io::Result<Vec<f64>> {
    let (mut server, address) = child(&["--serve", kind.name()])?;
    let result = run(measures::bulk(kind, Some(address), streams, scale.bulk_bytes));
    // It ends with its standard input.
    drop(server.stdin.take());
    server.wait()?;
    result
}

fn memory_of_child(kind: Kind, scale: Scale) -> io::Result<Vec<f64>> {
    let quick = if scale.idle == Scale::FULL.idle { "--full" } else { "--quick" };
    let (mut measured, kib) = child(&["--memory", kind.name(), quick])?;
    measured.wait()?;
    Ok(vec![kib.parse().map_err(io::Error::other)?])
}

/// Serves until the parent closes our standard input.
fn serve_parent(kind: Kind) -> io::Result<()> {
    run(async move {
        println!("{}", stacks::serve(kind).await);
        tokio::task::spawn_blocking(|| io::stdin().read_line(&mut String::new())).await??;
        Ok(())
    })
}
