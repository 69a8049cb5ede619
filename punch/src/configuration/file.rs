//! Files with settings, in TOML.

use std::{ffi::OsString, fs::File, io::Read, path::Path};

use clap::{Arg, ArgAction};
use toml::{Table, Value};

use crate::exit::Failure;

/// Longest file that is read.
const MAX_LEN: u64 = 1 << 20;
/// Similarity, from 0 to 1, from which on a key is taken for a misspelt one.
const SIMILAR: f64 = 0.7;

/// Key of a file that is set, and the flags with its values.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    pub(super) key: String,
    pub(super) flags: Vec<OsString>,
}

/// Reads a file whose keys are `settings`.
pub(super) fn read(path: &Path, settings: &[&Arg]) -> Result<Vec<Entry>, Failure> {
    let refused = |cause: String| Failure::usage(format!("{}: {cause}", path.display()));
    let unreadable = |error| refused(format!("it cannot be read: {error}"));
    let mut text = String::new();
    // One byte more shows that the file is too long. The length of a pipe is not known before.
    let mut file = File::open(path).map_err(unreadable)?.take(MAX_LEN + 1);
    file.read_to_string(&mut text).map_err(unreadable)?;
    if file.limit() == 0 {
        return Err(refused(format!("it has more than {MAX_LEN} bytes")));
    }
    entries(&text, settings).map_err(refused)
}

/// Returns the entries of the text of a file, or a sentence about its fault.
pub(super) fn entries(text: &str, settings: &[&Arg]) -> Result<Vec<Entry>, String> {
    let table: Table = toml::from_str(text).map_err(|error| {
        let line = error.span().map(|span| text.get(..span.start).unwrap_or_default().matches('\n').count());
        let place = line.map(|line| format!("line {}: ", line + 1)).unwrap_or_default();
        format!("{place}{}", error.message())
    })?;
    table.into_iter().map(|(key, value)| entry(key, value, settings)).collect()
}

fn entry(key: String, value: Value, settings: &[&Arg]) -> Result<Entry, String> {
    let Some(setting) = settings.iter().find(|setting| setting.get_id().as_str() == key) else {
        return Err(unknown(&key, settings));
    };
    let flag = setting.get_long().unwrap_or_default();
    let takes_values = !matches!(setting.get_action(), ArgAction::SetTrue);
    let flags = match value {
        Value::Boolean(is_set) if !takes_values => {
            if is_set {
                vec![format!("--{flag}").into()]
            } else {
                Vec::new()
            }
        }
        _ if !takes_values => return Err(format!("{key}: it must be true or false")),
        Value::Array(values) if setting.get_num_args().is_some_and(|range| range.max_values() > 1) => {
            let flags = values.into_iter().map(|value| word(&key, flag, value));
            flags.collect::<Result<_, _>>()?
        }
        value => vec![word(&key, flag, value)?],
    };
    Ok(Entry { key, flags })
}

fn word(key: &str, flag: &str, value: Value) -> Result<OsString, String> {
    let text = match value {
        Value::String(text) => text,
        Value::Integer(number) => number.to_string(),
        Value::Float(number) => number.to_string(),
        other => return Err(format!("{key}: a value of the type {} is not allowed", other.type_str())),
    };
    Ok(format!("--{flag}={text}").into())
}

/// Returns the sentence about an unknown key, with the known key that is nearest to it.
fn unknown(key: &str, settings: &[&Arg]) -> String {
    let keys = settings.iter().map(|setting| setting.get_id().as_str());
    let rated = keys.map(|known| (strsim::jaro_winkler(key, known), known));
    let nearest =
        rated.max_by(|(a, _), (b, _)| a.total_cmp(b)).filter(|(similarity, _)| *similarity >= SIMILAR);
    match nearest {
        Some((_, known)) => format!("there is no key {key}; did you mean {known}?"),
        None => format!("there is no key {key}; 'punch config default' lists all of them"),
    }
}
