//! The rules of `docs/architecture.md` that a compiler does not hold.

use std::{
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    fn walk(folder: &Path, found: &mut Vec<(PathBuf, String)>) {
        for entry in fs::read_dir(folder).expect("folder exists") {
            let path = entry.expect("entry is readable").path();
            if path.is_dir() {
                walk(&path, found);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                let text = fs::read_to_string(&path).expect("source is readable");
                found.push((path, text));
            }
        }
    }
    let mut found = Vec::new();
    walk(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), &mut found);
    assert!(!found.is_empty(), "{folder} holds no sources");
    found
}

/// The code of a file that ships: without comments, and without the unit tests at its end.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    shipped.lines().map(|line| line.split("//").next().unwrap_or_default()).collect::<Vec<_>>().join("\n")
}

fn assert_free_of(folder: &str, banned: &[&str]) {
    let is_test = |path: &Path| path.iter().any(|part| part == "tests" || part == "tests.rs");
    for (path, text) in sources(folder).into_iter().filter(|(path, _)| !is_test(path)) {
        let code = code(&text);
        for word in banned {
            assert!(!code.contains(word), "{} uses {word}", path.display());
        }
    }
}

#[test]
fn transport_and_behaviour_meet_only_in_the_bridge() {
    assert_free_of("src/transport", &["crate::behaviour", "crate::bridge", "libp2p_swarm"]);
    assert_free_of("src/behaviour", &["crate::transport", "crate::bridge"]);
}

#[test]
fn nothing_is_allowed_past_the_lints() {
    for folder in ["node/src", "proto/src", "src", "punch/src", "sim/src"] {
        assert_free_of(folder, &["#[allow(", "#![allow(", "unimplemented!", "todo!"]);
    }
}

#[test]
fn no_test_goes_by_the_wall_clock() {
    for (path, text) in ["tests", "proto/tests", "sim/tests"].into_iter().flat_map(sources) {
        if path.ends_with("architecture.rs") {
            continue;
        }
        // The clock of tokio may be paused; the clock of `std` never is.
        for word in ["time::SystemTime", "SystemTime::now", "std::time::Instant::now", "thread::sleep"] {
            assert!(!text.contains(word), "{} uses {word}", path.display());
        }
        let measures = text.contains(".elapsed()");
        let imports = text.lines().any(|line| line.contains("std::time::") && line.contains("Instant"));
        assert!(!(measures && imports), "{} measures with std::time::Instant", path.display());
        let swarms = text.matches("SwarmBuilder::with_").count();
        let bounded = text.matches(".with_connection_timeout(").count();
        assert_eq!(swarms, bounded, "{}: swarms, and those with a time-out of their own", path.display());
    }
}

fn document(path: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(path);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// Names of the Markdown files in a folder of `docs/`, in order.
fn documents(folder: &str) -> Vec<String> {
    let entries = fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).expect("folder exists");
    let names = entries.map(|entry| entry.expect("entry is readable").file_name().into_string());
    let mut names: Vec<_> = names.map(|name| name.expect("names are UTF-8")).collect();
    names.retain(|name| name.ends_with(".md"));
    names.sort();
    names
}

#[test]
fn every_document_is_in_the_book() {
    let summary = document("docs/SUMMARY.md");
    let top = documents("docs").into_iter().filter(|name| name != "SUMMARY.md");
    let decisions = documents("docs/decisions").into_iter().map(|name| format!("decisions/{name}"));
    for name in top.chain(decisions) {
        assert!(summary.contains(&format!("]({name})")), "docs/SUMMARY.md does not list {name}");
    }
}

#[test]
fn the_table_of_decisions_agrees_with_the_records() {
    let (table, summary) = (document("docs/decisions/README.md"), document("docs/SUMMARY.md"));
    let records: Vec<_> =
        documents("docs/decisions").into_iter().filter(|name| name != "README.md").collect();
    for (index, name) in records.iter().enumerate() {
        let number = format!("{:04}", index + 1);
        assert!(name.starts_with(&format!("{number}-")), "{name} does not have the number {number}");
        let text = document(&format!("docs/decisions/{name}"));
        let lines: Vec<_> = text.lines().take(5).collect();
        let [title, "", status, "", date] = lines[..] else {
            panic!("{name} does not begin with title, status and date: {lines:?}");
        };
        let title = title.strip_prefix("# ").unwrap_or_else(|| panic!("{name} has no title"));
        let status = status.strip_prefix("Status: ").unwrap_or_else(|| panic!("{name} has no status"));
        let successor = status.strip_prefix("superseded by ");
        let is_replaced = successor.is_some_and(|number| records.iter().any(|name| name[..4] == *number));
        assert!(status == "accepted" || is_replaced, "{name} has the status {status}");
        let is_date = |text: &str| {
            text.len() == 10
                && text.bytes().enumerate().all(|(at, byte)| match at {
                    4 | 7 => byte == b'-',
                    _ => byte.is_ascii_digit(),
                })
        };
        assert!(date.strip_prefix("Date: ").is_some_and(is_date), "{name} has no date");
        let row = format!("| [{number}]({name}) | {title} | {status} |");
        assert!(table.contains(&row), "docs/decisions/README.md does not have the row {row}");
        let chapter = format!("[{number} {title}](decisions/{name})");
        assert!(summary.contains(&chapter), "docs/SUMMARY.md does not have {chapter}");
    }
}

#[test]
fn every_function_that_the_architecture_names_is_in_its_file() {
    let text = document("docs/architecture.md");
    let places: Vec<_> =
        text.split('`').skip(1).step_by(2).filter_map(|code| code.split_once(".rs::")).collect();
    assert!(places.len() > 50, "the walks through the code name {} functions only", places.len());
    for (file, function) in places {
        let source = document(&format!("{file}.rs"));
        let is_there = [format!("fn {function}("), format!("fn {function}<")]
            .iter()
            .any(|signature| source.contains(signature));
        assert!(is_there, "docs/architecture.md names {file}.rs::{function}, which is not there");
    }
}
