//! Listings of settings: the file of defaults, and the values in force with their sources.

use clap::{Arg, ArgAction, parser::ValueSource};

use super::{Parsed, SUBCOMMAND, command, settings, variable};

/// Width of the comments in the file of defaults.
const WIDTH: usize = 96;

/// Returns a file with each setting as a comment, its documentation and its default.
pub(crate) fn default_file() -> String {
    let mut text = String::from(
        "# Configuration of `punch coordinator`.\n\
         # Flags and variables of the environment, such as PUNCH_MAX_REGISTRATIONS, take precedence.\n\
         # Settings that are comments show the default, or the form of a value that has none.\n",
    );
    for setting in settings(&command()) {
        let help =
            setting.get_long_help().or(setting.get_help()).map(ToString::to_string).unwrap_or_default();
        text.push('\n');
        for line in wrapped(&help) {
            text.push_str(&format!("# {line}\n"));
        }
        text.push_str(&format!("# {} = {}\n", setting.get_id(), default_value(setting)));
    }
    text
}

fn default_value(setting: &Arg) -> String {
    if matches!(setting.get_action(), ArgAction::SetTrue) {
        return "false".into();
    }
    let default = setting.get_default_values().first().map(|value| value.to_string_lossy().into_owned());
    let form =
        || setting.get_value_names().and_then(<[_]>::first).map(ToString::to_string).unwrap_or_default();
    let value = literal(&default.unwrap_or_else(form));
    match setting.get_num_args() {
        Some(range) if range.max_values() > 1 => format!("[{value}]"),
        _ => value,
    }
}

/// Returns a value as TOML has it: a number, or else a string.
fn literal(text: &str) -> String {
    let is_number = text.parse::<i64>().is_ok() || text.parse::<f64>().is_ok_and(f64::is_finite);
    if is_number { text.to_owned() } else { toml::Value::from(text).to_string() }
}

fn wrapped(text: &str) -> Vec<String> {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        match lines.last_mut() {
            Some(line) if line.is_empty() => line.push_str(word),
            Some(line) if line.len() + 1 + word.len() <= WIDTH => {
                line.push(' ');
                line.push_str(word);
            }
            _ => lines.push(word.to_owned()),
        }
    }
    lines
}

/// Returns one line for each setting that has a value: the key, the value, and its source.
pub(crate) fn show(parsed: &Parsed) -> String {
    let Some(matches) = parsed.matches.subcommand_matches(SUBCOMMAND) else { return String::new() };
    let mut text = String::new();
    for setting in settings(&command()) {
        let key = setting.get_id().as_str();
        let source = match matches.value_source(key) {
            _ if parsed.sets(key) => parsed.file.as_ref().map(|(path, _)| path.display().to_string()),
            Some(ValueSource::CommandLine) => setting.get_long().map(|flag| format!("--{flag}")),
            Some(ValueSource::EnvVariable) => Some(variable(key)),
            _ => Some("default".to_owned()),
        };
        let values = matches.get_raw(key).into_iter().flatten();
        let values: Vec<_> = values.map(|value| literal(&value.to_string_lossy())).collect();
        let is_list = setting.get_num_args().is_some_and(|range| range.max_values() > 1);
        let value = match &values[..] {
            _ if is_list => format!("[{}]", values.join(", ")),
            [] if matches!(setting.get_action(), ArgAction::SetTrue) => matches.get_flag(key).to_string(),
            [value] if matches!(setting.get_action(), ArgAction::SetTrue) => {
                value.trim_matches('"').to_owned()
            }
            [value] => value.clone(),
            _ => continue,
        };
        text.push_str(&format!("{key} = {value} # {}\n", source.unwrap_or_default()));
    }
    text
}

impl Parsed {
    /// Returns true if the value of a key comes from the file.
    fn sets(&self, key: &str) -> bool {
        self.file.as_ref().is_some_and(|(_, entries)| entries.iter().any(|entry| entry.key == key))
    }
}
