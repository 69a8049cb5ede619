//! `punch send`: offers files to a holder of the ticket.

use std::{sync::Arc, time::Duration};

use libp2p_punch_node::{Connection, Node, PeerId, TicketUnavailable};
use serde_json::json;
use tokio::{
    sync::{Semaphore, mpsc},
    task::spawn_blocking,
    time::{Instant, MissedTickBehavior, interval},
};

use super::peer::{self, Settings};
use crate::{
    args::Send,
    exit::{Exit, Failure},
    output::{Meter, Report, bytes, seconds_left, short, transferred},
    signal::Stop,
    ticket::{Secret, SecretTicket},
    transfer::{self, Kind, Offered, Progress, Source, TransferError},
};

/// Streams of receivers at once. Further ones are closed.
const MAX_SESSIONS: usize = 32;
/// Interval of the status line.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Time-out of connections that the node makes; a sender waits for others.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(60);

/// End of a session with a receiver, or its start.
enum Event {
    Began { peer: PeerId, progress: Progress },
    Ended { peer: PeerId, progress: Progress, elapsed: Duration, result: Result<(), TransferError> },
}

/// State that all sessions share.
#[derive(Clone)]
struct Sessions {
    source: Arc<Source>,
    secret: Arc<Secret>,
    events: mpsc::Sender<Event>,
    places: Arc<Semaphore>,
}

/// Runs until a receiver has all files, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Send) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let mut report = Report::new(arguments.node.common.json);
    let files = arguments.files.clone();
    let found = tokio::select! {
        found = spawn_blocking(move || Source::find(&files)) => found.map_err(Failure::error)?,
        () = stop.requested() => return Err(Failure::error("interrupted")),
    };
    let Offered { source, skipped } = found.map_err(Failure::usage)?;
    for skipped in skipped {
        let object = json!({ "event": "skipped", "message": skipped });
        report.note(&format!("not sent: {skipped}"), &object)?;
    }
    let settings = Settings { protocol: transfer::PROTOCOL, connect_timeout: CONNECT_TIMEOUT };
    let node = peer::start(&arguments.node, settings).await?;
    let mut sending = Sending { node: node.clone(), report, source: Arc::new(source), keep: arguments.keep };
    let result = tokio::select! {
        result = sending.run() => result,
        () = stop.requested() => match arguments.keep {
            true => Ok(Exit::Success),
            false => Err(Failure::error("interrupted")),
        },
    };
    node.shutdown().await;
    result
}

struct Sending {
    node: Node,
    report: Report,
    source: Arc<Source>,
    keep: bool,
}

impl Sending {
    async fn run(&mut self) -> Result<Exit, Failure> {
        let secret = Arc::new(Secret::generate());
        self.offer(&secret).await?;
        let (events, mut happened) = mpsc::channel(MAX_SESSIONS);
        let places = Arc::new(Semaphore::new(MAX_SESSIONS));
        let sessions = Sessions { source: self.source.clone(), secret, events, places };
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut shown = None;
        loop {
            tokio::select! {
                connection = self.node.accept() => {
                    let connection = connection.map_err(Failure::error)?;
                    tokio::spawn(serve(connection, sessions.clone()));
                }
                Some(event) = happened.recv() => match event {
                    Event::Began { peer, progress } => {
                        peer::report_path(&mut self.report, peer, &self.node.connection_status(&peer))?;
                        shown = Some((peer, progress, Meter::new()));
                    }
                    Event::Ended { peer, progress, elapsed, result } => {
                        shown.take_if(|(shown, _, _)| *shown == peer);
                        if self.on_end(peer, &progress, result, elapsed)? {
                            return Ok(Exit::Success);
                        }
                    }
                },
                _ = ticks.tick() => if let Some((peer, progress, meter)) = &mut shown {
                    self.show(*peer, progress, meter)?;
                },
            }
        }
    }

    /// Prints the ticket.
    async fn offer(&mut self, secret: &Secret) -> Result<(), Failure> {
        let files = self.source.entries().iter().filter(|entry| entry.kind != Kind::Folder).count();
        let size = match self.size() {
            Some(size) => format!(", {}", bytes(size)),
            None => String::new(),
        };
        let object = json!({ "event": "offer", "files": files, "bytes": self.size() });
        let s = if files == 1 { "" } else { "s" };
        self.report.note(&format!("offering {files} file{s}{size}"), &object)?;
        self.report.status("waiting until other networks can reach this machine");
        let node = self.node.ticket().await.map_err(|error| match error {
            TicketUnavailable::NoAddresses => {
                Failure::error("this machine has no network address, and no --bootstrap answers")
            }
            error => Failure::explained(&error),
        })?;
        let ticket = SecretTicket { node, secret: secret.clone() }.to_string();
        self.report.result(&ticket, &json!({ "event": "ticket", "ticket": ticket }))?;
        let hint = "on the other machine: punch receive TICKET; this one waits until then";
        self.report.note(hint, &json!({ "event": "waiting" }))
    }

    fn size(&self) -> Option<u64> {
        self.source.size()
    }

    fn show(&mut self, peer: PeerId, progress: &Progress, meter: &mut Meter) -> Result<(), Failure> {
        let rate = meter.rate(progress.moved());
        let path = peer::route(&self.node.connection_status(&peer));
        let done = progress.done();
        let words = transferred(done, self.size(), rate);
        self.report.status(&format!("sending {words}, {}", path.as_deref().unwrap_or("not connected")));
        self.report.object(&json!({
            "event": "progress",
            "peer": peer.to_string(),
            "bytes": done,
            "total": self.size(),
            "bytes_per_second": rate.round(),
            "seconds_left": seconds_left(done, self.size(), rate).map(f64::ceil),
            "path": path,
        }))
    }

    /// Prints the end of a session. Returns true if the work is done.
    fn on_end(
        &mut self,
        peer: PeerId,
        progress: &Progress,
        result: Result<(), TransferError>,
        elapsed: Duration,
    ) -> Result<bool, Failure> {
        let error = match result {
            Ok(()) => {
                let (files, moved, failed) = (progress.files(), progress.moved(), progress.failed());
                let seconds = elapsed.as_secs_f64();
                let s = if files == 1 { "" } else { "s" };
                let mut line = format!("sent {files} file{s}, {} in {seconds:.1} s", bytes(moved));
                if failed > 0 {
                    line += &format!("; {failed} could not be sent");
                }
                self.report.note(
                    &line,
                    &json!({
                        "event": "sent",
                        "peer": peer.to_string(),
                        "files": files,
                        "failed": failed,
                        "bytes": moved,
                        "seconds": (seconds * 1e3).round() / 1e3,
                    }),
                )?;
                return match failed {
                    0 => Ok(!self.keep),
                    _ if self.keep => Ok(false),
                    _ => Err(Failure::error(format!("{failed} of the files could not be sent"))),
                };
            }
            Err(error) => error,
        };
        let object = json!({ "event": "lost", "peer": peer.to_string(), "message": error.to_string() });
        self.report
            .note(&format!("with {}: {error}; waiting for it or another one", short(&peer)), &object)?;
        if progress.reads_pipe() {
            Err(Failure::explained(&TransferError::Consumed)
                .in_words(format!("stdin cannot be sent again: {error}")))
        } else {
            Ok(false)
        }
    }
}

/// Serves all streams of a receiver.
async fn serve(connection: Connection, sessions: Sessions) {
    let peer = connection.peer();
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        let Sessions { source, secret, events, places } = sessions.clone();
        let connection = connection.clone();
        // A peer without the ticket waits for itself only: its streams take turns.
        if let Err(error) = transfer::authorize(&mut send, &mut recv, &secret).await {
            tracing::debug!(%peer, %error, "a stream was refused");
            continue;
        }
        // Without a place, the stream is closed.
        let Ok(place) = places.try_acquire_owned() else { continue };
        tokio::spawn(async move {
            let (progress, begun) = (Progress::default(), Instant::now());
            // An error means that the program ends.
            let _ = events.send(Event::Began { peer, progress: progress.clone() }).await;
            let result = transfer::serve(send, recv, source, progress.clone()).await;
            let elapsed = begun.elapsed();
            let _ = events.send(Event::Ended { peer, progress, elapsed, result }).await;
            drop((connection, place));
        });
    }
}
