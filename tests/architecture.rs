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

/// The code of a file that ships: without comments, and without its unit tests, which stand last.
fn code(text: &str) -> String {
    let shipped = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
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
    for folder in ["proto/src", "src", "punch/src", "sim/src"] {
        assert_free_of(folder, &["#[allow(", "#![allow(", "unimplemented!", "todo!"]);
    }
}

#[test]
fn no_test_goes_by_the_wall_clock() {
    for (path, text) in ["tests", "proto/tests", "sim/tests"].into_iter().flat_map(sources) {
        if path.ends_with("architecture.rs") {
            continue;
        }
        // The clock of tokio may be paused; those of `std` and of the time-outs of a swarm never are.
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
