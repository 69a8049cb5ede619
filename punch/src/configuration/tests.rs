use std::{env, fs, io::Write};

use super::*;
use crate::args;

/// A file that is removed on drop.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str, text: &str) -> Self {
        let path = env::temp_dir().join(format!("punch-configuration-{name}-{}.toml", std::process::id()));
        let mut file = fs::File::create(&path).unwrap();
        file.write_all(text.as_bytes()).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.0);
    }
}

fn parsed(file: &Scratch, flags: &[&str]) -> Result<Parsed, ParseError> {
    let words = ["punch", "coordinator", "--config"].into_iter().map(OsString::from);
    parse(words.chain([file.0.clone().into()]).chain(flags.iter().map(OsString::from)))
}

fn coordinator(file: &Scratch, flags: &[&str]) -> args::Coordinator {
    match parsed(file, flags).map(|parsed| parsed.arguments.command) {
        Ok(args::Command::Coordinator(coordinator)) => coordinator,
        Ok(_) => panic!("the subcommand is coordinator"),
        Err(error) => panic!("{error:?}"),
    }
}

fn refusal(name: &str, text: &str) -> String {
    match parsed(&Scratch::new(name, text), &[]) {
        Err(ParseError::File(failure)) => failure.message,
        Err(error) => panic!("{error:?}"),
        Ok(_) => panic!("{text} is refused"),
    }
}

const FILE: &str = "listen = [\"/ip4/0.0.0.0/udp/4001/quic-v1\", \"/ip6/::/udp/4001/quic-v1\"]\n\
    max_registrations = 500\nrequest_rate = 200\nrelay_circuit_duration = \"30m\"\n\
    relay_circuit_bytes = \"64 MiB\"\njson = true\n";

#[test]
fn a_flag_takes_precedence_over_the_file_and_the_file_over_the_default() {
    let file = Scratch::new("precedence", FILE);
    let coordinator = coordinator(&file, &["--max-registrations", "7"]);
    assert_eq!(coordinator.limits.max_registrations, 7);
    assert_eq!(coordinator.listen.len(), 2);
    assert_eq!(coordinator.limits.request_rate, std::time::Duration::from_millis(5));
    assert_eq!(coordinator.relay.relay_circuit_duration, std::time::Duration::from_secs(30 * 60));
    assert_eq!(coordinator.relay.relay_circuit_bytes, 64 << 20);
    assert!(coordinator.common.json);
    assert_eq!(coordinator.relay.relay_circuits, crate::node::RelayLimits::default().max_circuits);
}

#[test]
fn the_source_of_each_value_is_shown() {
    let file = Scratch::new("sources", FILE);
    let parsed = parsed(&file, &["--max-registrations", "7"]).unwrap();
    let shown = show(&parsed);
    for line in [
        "max_registrations = 7 # --max-registrations".to_owned(),
        format!("request_rate = 200 # {}", file.0.display()),
        "pair_rate = 2 # default".to_owned(),
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line} is not in\n{shown}");
    }
}

#[test]
fn a_fault_of_the_file_is_named_with_its_key() {
    let unknown = refusal("unknown", "max_registration = 5\n");
    assert!(
        unknown.ends_with("there is no key max_registration; did you mean max_registrations?"),
        "{unknown}"
    );
    let other = refusal("other", "zzz = 5\n");
    assert!(other.contains("there is no key zzz; 'punch config default'"), "{other}");
    let kind = refusal("kind", "max_registrations = [1]\n");
    assert!(kind.contains("max_registrations: a value of the type array"), "{kind}");
    let value = refusal("value", "relay_circuit_duration = \"soon\"\n");
    assert!(value.contains("relay_circuit_duration: ") && value.contains("soon"), "{value}");
    let syntax = refusal("syntax", "json = true\nlisten =\n");
    assert!(syntax.contains("line 2: "), "{syntax}");
    let flag = refusal("flag", "json = 1\n");
    assert!(flag.contains("json: it must be true or false"), "{flag}");
}

#[test]
fn the_file_of_defaults_has_every_setting_and_changes_nothing() {
    let text = default_file();
    let command = command();
    let settings = settings(&command);
    assert!(settings.len() > 15, "{} settings", settings.len());
    for setting in &settings {
        assert!(text.contains(&format!("\n# {} = ", setting.get_id())), "{} is missing", setting.get_id());
    }
    assert_eq!(file::entries(&text, &settings), Ok(Vec::new()));
    // Those with a default are valid as they are written.
    let has_default = |line: &str| {
        let key = line.split(' ').next().unwrap_or_default();
        settings
            .iter()
            .any(|setting| setting.get_id().as_str() == key && !setting.get_default_values().is_empty())
    };
    let active: Vec<_> =
        text.lines().filter_map(|line| line.strip_prefix("# ")).filter(|line| has_default(line)).collect();
    assert!(active.len() > 10, "{active:?}");
    let file = Scratch::new("defaults", &active.join("\n"));
    let limits: libp2p_punch::config::CoordinatorLimits = coordinator(&file, &[]).limits.into();
    assert_eq!(limits, libp2p_punch::config::CoordinatorLimits::default());
}

#[test]
fn the_packaged_file_is_the_file_of_defaults() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../packaging/coordinator.toml");
    if env::var_os("UPDATE_DOCS").is_some() {
        fs::write(&path, default_file()).unwrap();
    }
    let packaged = fs::read_to_string(&path).unwrap_or_default();
    assert!(packaged == default_file(), "run UPDATE_DOCS=1 cargo test -p punch packaged");
}
