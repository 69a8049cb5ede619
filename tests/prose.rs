//! The style of comments and documents: first words of doc comments, words, widths and lines.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// Folders with Rust sources.
const SOURCES: &[&str] =
    &["benches", "examples", "fuzz", "interop", "lab", "node", "proto", "punch", "sim", "src", "tests"];

/// Documents that do not follow the rules: the change log names past behaviour in past words.
const UNCHECKED_DOCUMENTS: &[&str] = &["CHANGELOG.md"];

/// Words that may not begin a doc comment, which begins with a verb or a noun of the domain.
const BANNED_OPENINGS: &[&str] = &[
    "How", "If", "That", "What", "When", "Where", "Whether", "Which", "Who", "Whoever", "Whom", "Whose",
    "Why",
];

/// Phrases that a reader of RFCs does not expect.
const BANNED_PHRASES: &[&str] =
    &["anew", "are told", "as long as it likes", "beside", "is told", "so many", "stands", "whoever"];

const MAX_COMMENT_WIDTH: usize = 100;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Files of the repository with an extension, sorted, as paths below its root.
fn files(folders: &[&str], extension: &str) -> Vec<PathBuf> {
    fn walk(folder: &Path, extension: &str, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).expect("folder exists") {
            let path = entry.expect("entry is readable").path();
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            let is_foreign = ["target", "node_modules", "venv"].contains(&name);
            if path.is_dir() && !is_foreign && (!name.starts_with('.') || name == ".github") {
                walk(&path, extension, found);
            } else if path.is_file() && path.extension().is_some_and(|own| own == extension) {
                found.push(path.strip_prefix(root()).expect("below the root").to_owned());
            }
        }
    }
    let mut found = Vec::new();
    for folder in folders {
        walk(&root().join(folder), extension, &mut found);
    }
    found.sort();
    found
}

fn read(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn is_checked(path: &Path) -> bool {
    !UNCHECKED_DOCUMENTS.iter().any(|unclean| path.starts_with(unclean))
}

/// A fault of a line.
#[derive(Debug, PartialEq, Eq)]
struct Fault {
    line: usize,
    text: String,
}

/// Returns the phrase of `BANNED_PHRASES` that the text contains as whole words.
fn banned_phrase(text: &str) -> Option<&'static str> {
    let words: Vec<_> = text
        .split(|char: char| !char.is_alphanumeric() && char != '_')
        .filter(|word| !word.is_empty())
        .collect();
    BANNED_PHRASES.iter().copied().find(|phrase| {
        let phrase: Vec<_> = phrase.split(' ').collect();
        words
            .windows(phrase.len())
            .any(|window| window.iter().zip(&phrase).all(|(word, banned)| word.eq_ignore_ascii_case(banned)))
    })
}

/// Returns the comment of a line and whether it is a doc comment.
fn comment(line: &str) -> Option<(&str, bool)> {
    let trimmed = line.trim_start();
    if let Some(doc) = trimmed.strip_prefix("///").or_else(|| trimmed.strip_prefix("//!")) {
        return Some((doc, true));
    }
    if let Some(text) = trimmed.strip_prefix("//") {
        return Some((text, false));
    }
    // Slashes before a later quote are part of a string, such as a URL.
    let (_, text) = line.split_once(" // ").filter(|(_, text)| !text.contains('"'))?;
    Some((text, false))
}

/// Returns the faults of the comments of a source.
fn faults_of_source(text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut continues_doc = false;
    let mut in_code = false;
    for (index, line) in text.lines().enumerate() {
        let mut fault = |text: String| faults.push(Fault { line: index + 1, text });
        let Some((text, is_doc)) = comment(line) else {
            (continues_doc, in_code) = (false, false);
            continue;
        };
        let first = text.split_whitespace().next().unwrap_or_default();
        let first = first.trim_end_matches(|char: char| !char.is_alphanumeric());
        if is_doc && !continues_doc && BANNED_OPENINGS.contains(&first) {
            fault(format!("a doc comment begins with \"{first}\""));
        }
        continues_doc = is_doc;
        if let Some(phrase) = banned_phrase(text) {
            fault(format!("\"{phrase}\""));
        }
        // Tables, code blocks and single words cannot be wrapped.
        let text = text.trim();
        in_code ^= text.starts_with("```");
        let can_wrap = !in_code && !text.starts_with('|') && text.contains(' ') && !text.contains("://");
        let width = line.chars().count();
        if width > MAX_COMMENT_WIDTH && can_wrap {
            fault(format!("{width} columns"));
        }
    }
    faults
}

/// Returns true if a sentence ends within the line.
fn has_second_sentence(line: &str) -> bool {
    let text = line.trim_start();
    let text = text.trim_start_matches(|char: char| char.is_ascii_digit()).trim_start_matches(". ");
    let chars: Vec<_> = text.chars().collect();
    chars.windows(4).any(|window| {
        let ends = window[0].is_lowercase() || window[0].is_ascii_digit() || ")`\"*]".contains(window[0]);
        let begins = window[3].is_uppercase() || "`*\"[".contains(window[3]);
        ends && ".!?".contains(window[1]) && window[2] == ' ' && begins
    })
}

/// Returns true if a line of a paragraph may be its last one, or the last one of a sentence.
fn ends_sentence(line: &str) -> bool {
    let text = line.trim_end().trim_end_matches(['*', ')', '"', '`']);
    text.ends_with(['.', ':', '!', '?', ';'])
}

/// Returns the faults of a Markdown document.
fn faults_of_document(text: &str) -> Vec<Fault> {
    let mut faults = Vec::new();
    let mut in_code = false;
    // Templates begin with fields between two lines of dashes.
    let mut in_fields = text.starts_with("---\n");
    let lines: Vec<_> = text.lines().collect();
    for (index, line) in lines.iter().enumerate() {
        let mut fault = |text: String| faults.push(Fault { line: index + 1, text });
        let trimmed = line.trim_start();
        if trimmed.starts_with("```") {
            in_code = !in_code;
            continue;
        }
        if in_fields && index > 0 && trimmed == "---" {
            in_fields = false;
            continue;
        }
        if in_code || in_fields {
            continue;
        }
        if let Some(phrase) = banned_phrase(line) {
            fault(format!("\"{phrase}\""));
        }
        let is_prose = |line: &str| !line.starts_with(['|', '#', '<']) && !line.starts_with("![");
        if !is_prose(trimmed) || trimmed.is_empty() {
            continue;
        }
        if has_second_sentence(line) {
            fault("two sentences".to_owned());
        }
        let next = lines.get(index + 1).map_or("", |next| next.trim_start());
        let begins_item = next.starts_with("- ")
            || next.split_once(". ").is_some_and(|(number, _)| number.parse::<u32>().is_ok());
        let continues = !next.is_empty() && !begins_item && is_prose(next) && !next.starts_with("```");
        if continues && !ends_sentence(line) {
            fault("a sentence on two lines".to_owned());
        }
    }
    faults
}

fn assert_clean(faults: Vec<(PathBuf, Fault)>) {
    let list: Vec<_> = faults
        .iter()
        .map(|(path, fault)| format!("{}:{}: {}", path.display(), fault.line, fault.text))
        .collect();
    assert!(list.is_empty(), "{} faults\n{}", list.len(), list.join("\n"));
}

#[test]
fn comments_follow_the_rules() {
    let sources = files(SOURCES, "rs");
    assert!(sources.len() > 100, "only {} sources were found", sources.len());
    let faults = sources.into_iter().flat_map(|path| {
        let faults = faults_of_source(&read(&path));
        faults.into_iter().map(move |fault| (path.clone(), fault))
    });
    assert_clean(faults.collect());
}

#[test]
fn documents_have_one_sentence_a_line() {
    let documents = files(&[""], "md");
    assert!(documents.len() > 50, "only {} documents were found", documents.len());
    let checked = documents.into_iter().filter(|path| is_checked(path));
    let faults = checked.flat_map(|path| {
        let faults = faults_of_document(&read(&path));
        faults.into_iter().map(move |fault| (path.clone(), fault))
    });
    assert_clean(faults.collect());
}

#[test]
fn no_exception_is_left_for_clean_documents() {
    for exception in UNCHECKED_DOCUMENTS {
        let faults = faults_of_document(&read(Path::new(exception)));
        assert!(!faults.is_empty(), "{exception} follows the rules: remove the exception");
    }
}

#[test]
fn each_fault_of_a_comment_is_found() {
    let faults = |text: &str| faults_of_source(text).into_iter().map(|fault| fault.text).collect::<Vec<_>>();
    let opening = format!("/// {} the peer is called.\nfn name() {{}}\n", "What");
    assert_eq!(faults(&opening), ["a doc comment begins with \"What\""]);
    assert_eq!(faults("/// Returns the name.\n/// What follows is a second line.\n"), [""; 0]);
    let phrase = format!("// The mapping {}.\n", BANNED_PHRASES[6]);
    assert_eq!(faults(&phrase), [format!("\"{}\"", BANNED_PHRASES[6])]);
    assert_eq!(faults(&format!("// x {}\n", "x".repeat(96))), ["101 columns"]);
    assert_eq!(faults(&format!("let a = 1; // x {}\n", "x".repeat(96))), ["112 columns"]);
    assert_eq!(faults("let url = \"a // What\";\n"), [""; 0]);
}

#[test]
fn each_fault_of_a_document_is_found() {
    let faults =
        |text: &str| faults_of_document(text).into_iter().map(|fault| fault.text).collect::<Vec<_>>();
    assert_eq!(faults("One sentence. Another.\n"), ["two sentences"]);
    assert_eq!(faults("A sentence that goes\non below.\n"), ["a sentence on two lines"]);
    assert_eq!(faults("1. An item.\n   A second sentence.\n\n- An item:\n  - more\n"), [""; 0]);
    assert_eq!(faults("```\nOne. Two.\n```\n\n| One. Two. |\n"), [""; 0]);
}
