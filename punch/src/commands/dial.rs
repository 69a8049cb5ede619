//! `punch dial`: connects to a peer, has something echoed, and leaves.

use std::{future::pending, time::Duration};

use libp2p::{PeerId, swarm::DialError};
use libp2p_punch::config::{Config, Role};
use tokio::time::{Instant, sleep_until, timeout, timeout_at};

use crate::{
    args::Dial,
    exit::{Exit, Failure},
    node::{Happening, Node},
    reason,
    report::Line,
    signal::Stop,
};

/// Bytes that are sent and come back.
const ECHO: usize = 64;
/// How much later than a failed dial the reason of its session may be told.
const REASON: Duration = Duration::from_millis(250);
/// How long a direct connection is waited for when a relayed one stands.
const DIRECT: Duration = Duration::from_secs(10);
/// From the end of one echo of `--watch` to the next.
const BETWEEN: Duration = Duration::from_millis(100);

/// Why there is no connection.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// To be told as a `failed` line.
    Failed { reason: &'static str, message: String },
    /// The program itself cannot go on.
    Program(Failure),
}

impl From<Failure> for Trouble {
    fn from(failure: Failure) -> Self {
        Trouble::Program(failure)
    }
}

/// Runs until there was an echo, or a failure, or Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Dial) -> Result<Exit, Failure> {
    let (peer, coordinators) = arguments.targets()?;
    let mut stop = Stop::new()?;
    let config = Config { role: Role::Client, coordinators, ..Config::default() };
    let mut node = Node::new(&arguments.common, config)?;
    node.listen_anywhere()?;
    let interrupted = || Trouble::Failed { reason: "interrupted", message: "interrupted".into() };
    let result = tokio::select! {
        result = timeout(arguments.timeout, attempt(&mut node, peer)) => result.map_err(|_| {
            let message = format!("no connection within {} s", arguments.timeout.as_secs_f64());
            Trouble::Failed { reason: "timeout", message }
        }),
        () = stop.told() => Ok(Err(interrupted())),
    };
    let result = match (result, arguments.watch) {
        (Ok(Ok(exit)), Some(time)) => tokio::select! {
            result = watch(&mut node, peer, time) => Ok(result.map(|()| exit)),
            () = stop.told() => Ok(Ok(exit)),
        },
        (result, _) => result,
    };
    let result = match result {
        Ok(Ok(exit)) => Ok(exit),
        // The time was up before it was clear that the relayed connection will not become a direct one.
        Err(_) if node.swarm.is_connected(&peer) => Ok(Exit::Relayed),
        Ok(Err(trouble)) | Err(trouble) => Err(trouble),
    };
    let result = match result {
        Ok(exit) => Ok(exit),
        Err(Trouble::Program(failure)) => Err(failure),
        Err(Trouble::Failed { reason, message }) => {
            let failure =
                Failure { exit: Exit::Failed, message: format!("cannot connect to {peer}: {message}") };
            node.report.line(&Line::Failed { peer, reason, message: &message }).and(Err(failure))
        }
    };
    node.leave().await;
    result
}

async fn attempt(node: &mut Node, peer: PeerId) -> Result<Exit, Trouble> {
    node.register()
        .await
        .map_err(|failure| Trouble::Failed { reason: "no_coordinator", message: failure.message })?;
    let relayed = connect(node, peer).await?;
    echo(node, peer, ECHO).await?;
    Ok(if relayed { Exit::Relayed } else { Exit::Success })
}

/// Has something echoed again and again.
async fn watch(node: &mut Node, peer: PeerId, time: Duration) -> Result<(), Trouble> {
    let end = Instant::now() + time;
    while Instant::now() < end {
        echo(node, peer, ECHO).await?;
        let next = (Instant::now() + BETWEEN).min(end);
        // The swarm has to be driven meanwhile.
        while let Ok(happening) = timeout_at(next, node.next()).await {
            happening?;
        }
    }
    Ok(())
}

/// Asks for a connection and waits for it; true if it is relayed, and traversal has failed or takes its time.
pub(crate) async fn connect(node: &mut Node, peer: PeerId) -> Result<bool, Trouble> {
    node.ask_for(peer).map_err(|error| not_dialed(&error))?;
    // The session knows best why it failed, but the end of the dial is what ends the wait: a relay may still help.
    let mut session: Option<Trouble> = None;
    let mut dial: Option<(Instant, Trouble)> = None;
    let mut relayed: Option<Instant> = None;
    loop {
        let happening = tokio::select! {
            happening = node.next() => happening?,
            trouble = overdue(&mut dial) => return Err(trouble),
            () = until(relayed) => return Ok(true),
        };
        match happening {
            Happening::Connected { peer: who, relayed: false } if who == peer => return Ok(false),
            Happening::Connected { peer: who, relayed: true } if who == peer => {
                if session.is_some() || dial.is_some() {
                    return Ok(true);
                }
                relayed = Some(Instant::now() + DIRECT);
            }
            Happening::NotPunched { peer: who, .. } | Happening::NotDialed { peer: who, .. }
                if who == peer && relayed.is_some() =>
            {
                return Ok(true);
            }
            Happening::NotPunched { peer: who, reason, message } if who == peer => {
                let trouble = Trouble::Failed { reason, message };
                if dial.is_some() {
                    return Err(trouble);
                }
                session = Some(trouble);
            }
            Happening::NotDialed { peer: who, error } if who == peer => match session.take() {
                Some(trouble) => return Err(trouble),
                None => dial = Some((Instant::now() + REASON, not_dialed(&error))),
            },
            _ => {}
        }
    }
}

/// Ends at `deadline`; never without one.
async fn until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => sleep_until(deadline).await,
        None => pending().await,
    }
}

/// Sends so many bytes and waits for them to come back; returns how long that took.
pub(crate) async fn echo(node: &mut Node, peer: PeerId, bytes: usize) -> Result<Duration, Trouble> {
    let sent = Instant::now();
    let ours = node.swarm.behaviour_mut().echo.send_request(&peer, vec![0x70; bytes]);
    loop {
        match node.next().await? {
            Happening::Echoed { request, bytes } if request == ours => {
                let rtt = sent.elapsed();
                node.report.line(&Line::Echo { bytes, rtt })?;
                return Ok(rtt);
            }
            Happening::NotEchoed { request, message } if request == ours => {
                let message = format!("connected, but nothing came back: {message}");
                return Err(Trouble::Failed { reason: "no_echo", message });
            }
            _ => {}
        }
    }
}

fn not_dialed(error: &DialError) -> Trouble {
    let reason = match error {
        DialError::LocalPeerId { .. } => "dial_self",
        DialError::NoAddresses => "no_addresses",
        DialError::WrongPeerId { .. } => "wrong_peer_id",
        _ => "dial",
    };
    Trouble::Failed { reason, message: reason::of_dial(error) }
}

/// Ends when a trouble has waited for its time; never without a trouble.
async fn overdue(trouble: &mut Option<(Instant, Trouble)>) -> Trouble {
    if let Some((deadline, _)) = trouble {
        sleep_until(*deadline).await;
    }
    match trouble.take() {
        Some((_, trouble)) => trouble,
        None => pending().await,
    }
}
