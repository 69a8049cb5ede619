//! `punch coordinator`: introduces peers to each other until a signal ends it.

use libp2p_punch::config::{Config, Role};

use super::{config, service};
use crate::{
    args::{self, Coordinator},
    configuration,
    exit::{Exit, Failure},
    log::{self, LogFilter},
    node::{Node, Setup},
    output::Printer,
    signal::{Hangup, Stop},
};

/// Runs until Ctrl-C or SIGTERM. SIGHUP reads the file of the configuration again, if there is one.
pub(crate) async fn run(mut arguments: Coordinator, log: &LogFilter) -> Result<Exit, Failure> {
    let (mut stop, mut hangup) = (Stop::new()?, Hangup::new(arguments.config.is_some())?);
    check(&arguments)?;
    log.set(log::filter(arguments.log.as_deref())?)?;
    let printer = Printer::new(arguments.common.json);
    let config = library_config(&arguments);
    // A coordinator is at addresses that everybody reaches.
    let setup = Setup { config, relay_limits: arguments.relay.into(), port_mapping: false };
    let mut node = service::start(&arguments.common, setup, printer.clone())?;
    service::serve_metrics(&node, arguments.metrics, &printer).await?;
    node.listen_on(&arguments.listen)?;
    let end = loop {
        tokio::select! {
            () = stop.requested() => break Ok(Exit::Success),
            error = node.run() => break Err(error.into()),
            () = hangup.requested() => match reload(&arguments, &mut node, log) {
                Ok(new) => arguments = new,
                Err(failure) => tracing::error!("nothing is reloaded: {}", failure.message),
            },
        }
    };
    node.close().await;
    end
}

/// Checks what the command line alone cannot check.
pub(crate) fn check(arguments: &Coordinator) -> Result<(), Failure> {
    if arguments.listen.is_empty() {
        return Err(Failure::usage("--listen is missing: a coordinator needs an address to listen on"));
    }
    log::filter(arguments.log.as_deref())?;
    library_config(arguments).validate().map_err(Failure::usage)
}

fn library_config(arguments: &Coordinator) -> Config {
    let mut config = Config::default();
    config.role = Role::Server;
    config.coordinators = arguments.coordinator.clone();
    config.coordinator_limits = arguments.limits.into();
    config
}

/// Reads the configuration again, and changes what can change. Returns the arguments in force.
fn reload(before: &Coordinator, node: &mut Node, log: &LogFilter) -> Result<Coordinator, Failure> {
    let parsed = configuration::parse(std::env::args_os()).map_err(config::failure)?;
    let args::Command::Coordinator(mut new) = parsed.arguments.command else {
        return Err(Failure::usage("the arguments are not those of a coordinator"));
    };
    check(&new)?;
    node.change_coordinators(&before.coordinator, &new.coordinator)?;
    log.set(log::filter(new.log.as_deref())?)?;
    for setting in fixed_changes(before, &new) {
        tracing::warn!(setting, "the change takes effect at the next start");
    }
    // What is fixed is compared with the values at the start the next time, too.
    new.listen.clone_from(&before.listen);
    (new.limits, new.relay, new.metrics) = (before.limits, before.relay, before.metrics);
    new.common.key.clone_from(&before.common.key);
    new.common.json = before.common.json;
    tracing::info!(coordinators = new.coordinator.len(), "the configuration was reloaded");
    Ok(new)
}

/// Returns the settings that have changed, and that only the next start applies.
fn fixed_changes(before: &Coordinator, new: &Coordinator) -> impl Iterator<Item = &'static str> {
    let changes = [
        ("listen", before.listen != new.listen),
        ("limits of the coordinator", before.limits != new.limits),
        ("limits of the relay", before.relay != new.relay),
        ("metrics", before.metrics != new.metrics),
        ("key", before.common.key != new.common.key),
        ("json", before.common.json != new.common.json),
    ];
    changes.into_iter().filter(|(_, has_changed)| *has_changed).map(|(setting, _)| setting)
}
