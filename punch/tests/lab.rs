//! `punch lab` as a user meets it: its arguments, and the simulated matrix.

use std::{
    env, fs,
    process::{Command, Output, Stdio},
};

use serde_json::Value;

fn lab(arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_punch"));
    command.arg("lab").args(arguments).env_remove("RUST_LOG").stdin(Stdio::null());
    command.output().expect("punch can be run")
}

/// Expects this exit code, nothing on stdout and one line on stderr that has all of `words`.
fn refuses(arguments: &[&str], code: i32, words: &[&str]) {
    let output = lab(arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{arguments:?}: {output:?}");
    assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
    assert_eq!(stderr.lines().count(), 1, "{arguments:?}: {stderr}");
    for word in words {
        assert!(stderr.contains(word), "{arguments:?}: {stderr:?} does not say {word:?}");
    }
}

#[test]
fn wrong_arguments_are_refused() {
    refuses(&["--kinds", "cone"], 2, &["--kinds", "cone", "eim+apdf"]);
    refuses(&["--simulated", "--kinds", "public,"], 2, &["--kinds"]);
    for runs in ["0", "1001", "many"] {
        refuses(&["--simulated", "--runs", runs], 2, &["--runs", runs]);
    }
    refuses(&["--simulated", "--jobs", "0"], 2, &["--jobs"]);
    refuses(&["--simulated", "--loss", "101"], 2, &["--loss", "101"]);
    refuses(&["--simulated", "--timeout", "0"], 2, &["--timeout"]);
    refuses(&["--implementation", "cone"], 2, &["--implementation", "cone"]);
}

#[test]
fn what_is_simulated_only_is_refused_without_a_simulation() {
    refuses(&["--rtt", "50"], 2, &["--simulated"]);
    refuses(&["--loss", "1"], 2, &["--simulated"]);
    refuses(&["--simulated", "--implementation", "stock"], 2, &["--simulated", "punch"]);
}

#[test]
fn a_file_that_cannot_be_written_is_known_before_the_first_dial() {
    let nowhere = env::temp_dir().join("punch-lab-missing").join("lab.svg");
    let nowhere = nowhere.to_str().expect("the temporary directory has a name in UTF-8");
    refuses(&["--simulated", "--svg", nowhere], 1, &["cannot write", nowhere]);
    refuses(&["--simulated", "--json", nowhere], 1, &["cannot write", nowhere]);
}

#[test]
fn help_names_every_kind() {
    let output = lab(&["--help"]);
    assert_eq!(output.status.code(), Some(0));
    let help = String::from_utf8_lossy(&output.stdout);
    for kind in punch_lab::Kind::ALL {
        assert!(help.contains(kind.word()), "{kind}");
    }
}

#[test]
fn the_simulated_matrix_is_a_table_json_and_a_picture() {
    let files = ["json", "svg"]
        .map(|end| env::temp_dir().join(format!("punch-lab-cli-{}.{end}", std::process::id())));
    let [json, svg] = files.each_ref().map(|file| file.to_str().expect("the directory has a name in UTF-8"));
    let output =
        lab(&["--simulated", "--kinds", "public,eim+apdf", "--runs", "1", "--json", json, "--svg", svg]);
    let [json, svg] = files.each_ref().map(fs::read_to_string);
    for file in &files {
        let _ = fs::remove_file(file);
    }
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    assert!(output.stderr.is_empty(), "no progress bar without a terminal: {output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout.lines().last(), Some("4 direct, 0 relayed, 0 failed"), "{stdout}");

    let json: Value = serde_json::from_str(&json.expect("the file is written")).expect("it holds JSON");
    assert_eq!(json["lab"]["mode"], "simulated");
    assert_eq!(json["lab"]["rtt_ms"], 50.0);
    let pairs = json["implementations"][0]["pairs"].as_array().expect("pairs are a list");
    assert_eq!(pairs.len(), 4);
    for pair in pairs {
        // (a+b+d)/2 of three round trips of 50 ms.
        assert_eq!((&pair["direct"], &pair["median_ms"]), (&1.into(), &75.0.into()), "{pair}");
    }
    let svg = svg.expect("the file is written");
    assert!(
        svg.starts_with("<svg ") && svg.ends_with("</svg>\n") && svg.contains("4 of 4 dials direct"),
        "{svg}"
    );
}

#[test]
fn a_simulated_pair_that_cannot_be_direct_is_relayed() {
    let output = lab(&["--simulated", "--kinds", "apdm+apdf+random", "--runs", "1"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let stdout = String::from_utf8_lossy(&output.stdout);
    assert_eq!(stdout.lines().last(), Some("0 direct, 1 relayed, 0 failed"), "{stdout}");
}
