//! `punch receive`: fetches what a ticket offers, and goes on where an earlier run ended.

use std::{
    collections::HashMap,
    io::{self, BufRead, IsTerminal, Write},
    path::Path,
    time::Duration,
};

use libp2p_punch_node::{CloseReason, Connection, ConnectionStatus, Node, RecvStream, SendStream, Target};
use serde_json::json;
use tokio::{
    task::spawn_blocking,
    time::{MissedTickBehavior, interval, timeout},
};

use super::peer::{self, Settings};
use crate::{
    args::Receive,
    exit::{Exit, Failure},
    output::{Meter, Report, bytes, seconds_left, transferred},
    signal::Stop,
    ticket::SecretTicket,
    transfer::{
        self, Answer, Conflict, Destination, Found, Incoming, Kind, Loss, Progress, Receiver, RelativePath,
        TransferError,
    },
};

/// Interval of the status line.
const STATUS_INTERVAL: Duration = Duration::from_millis(250);
/// Attempts without a byte, after which the transfer ends.
const MAX_IDLE_ATTEMPTS: u32 = 3;
/// Time for the reason of a lost connection.
const REASON_TIMEOUT: Duration = Duration::from_secs(1);
/// End of the sentence about a transfer that another run can continue.
const HINT: &str = "the same command goes on from here";

/// Runs until all files are here, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Receive) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let ticket: SecretTicket =
        arguments.ticket.parse().map_err(|error| Failure::usage(format!("TICKET: {error}")))?;
    let is_stdout = arguments.folder == Path::new("-");
    if is_stdout && arguments.node.common.json {
        return Err(Failure::usage("--json and the file cannot both go to stdout"));
    }
    let destination = if is_stdout {
        Destination::stdout()
    } else {
        let failed = |error| transfer::describe(&error);
        let folder = Destination::folder(&arguments.folder).map_err(failed);
        folder
            .map_err(|cause| Failure::usage(format!("cannot use {}: {cause}", arguments.folder.display())))?
    };
    let settings = Settings { protocol: transfer::PROTOCOL, connect_timeout: arguments.timeout };
    let node = peer::start(&arguments.node, settings).await?;
    let mut receiving = Receiving {
        node: node.clone(),
        report: Report::new(arguments.node.common.json),
        target: Target::from(&ticket.node),
        ticket,
        may_overwrite: arguments.yes,
        answers: HashMap::new(),
        progress: Progress::default(),
        meter: Meter::new(),
        failed: Vec::new(),
    };
    let result = tokio::select! {
        result = receiving.run(destination) => result,
        () = stop.requested() => Err(Failure::error(format!("interrupted; {HINT}"))),
    };
    drop(receiving);
    node.shutdown().await;
    result
}

struct Receiving {
    node: Node,
    report: Report,
    target: Target,
    ticket: SecretTicket,
    may_overwrite: bool,
    /// Answers of the user, for all attempts.
    answers: HashMap<RelativePath, Answer>,
    progress: Progress,
    meter: Meter,
    /// Files and folders that are missing, each with its cause.
    failed: Vec<TransferError>,
}

/// End of one attempt.
enum Attempt {
    Complete {
        equal: usize,
    },
    /// Another attempt may go on.
    Lost {
        destination: Destination,
        loss: Loss,
    },
}

impl Receiving {
    async fn run(&mut self, mut destination: Destination) -> Result<Exit, Failure> {
        let peer = self.ticket.node.peer();
        self.report.status("connecting");
        let mut connection = self.connect().await.map_err(|error| peer::not_connected(peer, &error))?;
        self.meter = Meter::new();
        let mut idle_attempts = 0;
        loop {
            peer::report_path(&mut self.report, peer, &connection.status())?;
            let before = self.progress.done();
            match self.attempt(&connection, destination).await? {
                Attempt::Complete { equal } => return self.complete(equal),
                Attempt::Lost { destination: kept, loss } => {
                    destination = kept;
                    idle_attempts = if self.progress.done() <= before { idle_attempts + 1 } else { 0 };
                    self.on_loss(&connection, &loss, idle_attempts).await?;
                }
            }
            self.report.status("connecting again");
            connection = self.connect().await.map_err(|error| {
                let words = format!("the sender does not come back: {error}; {HINT}");
                Failure::explained(&error).in_words(words)
            })?;
        }
    }

    async fn connect(&self) -> Result<Connection, libp2p_punch_node::ConnectError> {
        peer::connect(&self.node, &self.target).await
    }

    /// Ends the program if the sender has left, or if attempts lead nowhere.
    async fn on_loss(&mut self, connection: &Connection, loss: &Loss, idle: u32) -> Result<(), Failure> {
        // A lost stream may be heard of before its connection.
        let _ = timeout(REASON_TIMEOUT, connection.closed()).await;
        if let ConnectionStatus::Closed { reason: CloseReason::Peer, .. } = connection.status() {
            return Err(Failure::explained(&CloseReason::Peer)
                .in_words("the sender has ended; with its next ticket, another run goes on from here"));
        }
        if idle >= MAX_IDLE_ATTEMPTS {
            let failure = Failure::explained(&TransferError::Lost(loss.clone()));
            return Err(failure.in_words(format!("{loss}; {HINT}")));
        }
        let object = json!({ "event": "lost", "message": loss.to_string() });
        self.report.note(&format!("{loss}; connecting again"), &object)
    }

    /// Transfers what is missing, once.
    async fn attempt(
        &mut self,
        connection: &Connection,
        destination: Destination,
    ) -> Result<Attempt, Failure> {
        let (send, recv) = match connection.open_bi().await {
            Ok(stream) => stream,
            Err(error) => return Ok(Attempt::Lost { destination, loss: Loss(error.to_string()) }),
        };
        let mut receiver = match Receiver::request(send, recv, &self.ticket.secret).await {
            Err(TransferError::Lost(loss)) => return Ok(Attempt::Lost { destination, loss }),
            receiver => receiver.map_err(|error| Failure::explained(&error))?,
        };
        let offer = receiver.offer().clone();
        self.report.status("comparing with the files that are here");
        let (destination, offer, found) = spawn_blocking(move || {
            let found = destination.find(&offer);
            (destination, offer, found)
        })
        .await
        .map_err(Failure::error)?;
        let found = match found {
            Ok(found) => self.compare(&mut receiver, &destination, found).await,
            Err(error) => Err(Ended::Refused(Failure::explained(&error))),
        };
        let found = match found {
            Ok(found) => found,
            Err(Ended::Lost(loss)) => return Ok(Attempt::Lost { destination, loss }),
            Err(Ended::Refused(failure)) => {
                receiver.refuse(&TransferError::Declined).await;
                return Err(failure);
            }
        };
        let incoming = destination.accept(&offer, found, &self.answers, self.progress.clone());
        let incoming = match incoming {
            Ok(incoming) => incoming,
            Err(error) => {
                receiver.refuse(&TransferError::Declined).await;
                return Err(Failure::explained(&error));
            }
        };
        self.receive(connection, receiver, incoming, offer.size()).await
    }

    /// Has the sender compare what is here already, and asks the user about files that would be
    /// replaced.
    async fn compare(
        &mut self,
        receiver: &mut Receiver<SendStream, RecvStream>,
        destination: &Destination,
        mut found: Found,
    ) -> Result<Found, Ended> {
        let offer = receiver.offer();
        let files = offer.entries.iter().filter(|entry| entry.kind != Kind::Folder).count();
        if matches!(destination, Destination::Stdout { .. }) && (files != 1 || offer.entries.len() != 1) {
            let failure = Failure::usage("the offer is not a single file: give a FOLDER instead of -");
            return Err(Ended::Refused(failure));
        }
        let checked = match receiver.compare(found.beginnings()).await {
            Err(TransferError::Lost(loss)) => return Err(Ended::Lost(loss)),
            checked => checked.map_err(|error| Ended::Refused(Failure::explained(&error)))?,
        };
        let conflicts = found.conflicts(receiver.offer(), &checked);
        self.ask(conflicts).await.map_err(Ended::Refused)?;
        Ok(found)
    }

    /// Asks the user about each file that would be replaced.
    async fn ask(&mut self, conflicts: Vec<Conflict>) -> Result<(), Failure> {
        let mut unanswered =
            conflicts.into_iter().filter(|conflict| !self.answers.contains_key(&conflict.path));
        let mut unanswered: Vec<_> = unanswered.by_ref().map(|conflict| conflict.path).collect();
        let Some(first) = unanswered.first() else { return Ok(()) };
        let can_ask = io::stdin().is_terminal() && io::stderr().is_terminal();
        if !self.may_overwrite && !can_ask {
            let others = match unanswered.len() - 1 {
                0 => String::new(),
                others => format!(" and {others} more"),
            };
            return Err(Failure::usage(format!("{first}{others} would be overwritten; --yes permits it")));
        }
        unanswered.reverse();
        while let Some(path) = unanswered.pop() {
            let answer = if self.may_overwrite { Reply::All } else { self.prompt(&path).await? };
            let answer = match answer {
                Reply::One(answer) => answer,
                Reply::All => {
                    self.may_overwrite = true;
                    Answer::Overwrite
                }
                Reply::Quit => return Err(Failure::error("nothing was received")),
            };
            self.answers.insert(path, answer);
        }
        Ok(())
    }

    async fn prompt(&mut self, path: &RelativePath) -> Result<Reply, Failure> {
        loop {
            self.report.status("");
            let question = format!("{path} exists and differs. Overwrite it? [y]es, [n]o, [a]ll, [q]uit: ");
            let line = spawn_blocking(move || {
                write!(io::stderr(), "{question}")?;
                io::stderr().flush()?;
                let mut line = String::new();
                // The end of the input is no answer.
                io::stdin()
                    .lock()
                    .read_line(&mut line)
                    .map(|len| if len == 0 { "q".to_owned() } else { line })
            });
            let line = line.await.map_err(Failure::error)?;
            let line = line.map_err(|error| Failure::error(format!("cannot ask: {error}")))?;
            match line.trim().to_lowercase().as_str() {
                "y" | "yes" => return Ok(Reply::One(Answer::Overwrite)),
                "n" | "no" => return Ok(Reply::One(Answer::Skip)),
                "a" | "all" => return Ok(Reply::All),
                "q" | "quit" => return Ok(Reply::Quit),
                _ => {}
            }
        }
    }

    async fn receive(
        &mut self,
        connection: &Connection,
        receiver: Receiver<SendStream, RecvStream>,
        incoming: Incoming,
        // `None` for a pipe.
        total: Option<u64>,
    ) -> Result<Attempt, Failure> {
        let equal = incoming.equal;
        let is_relayed = !connection.status().is_direct();
        let mut ticks = interval(STATUS_INTERVAL);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let interrupt = async {
            // A stream stays on its connection: a new one uses the direct path. What a pipe has
            // cannot be sent again.
            if is_relayed && total.is_some() && connection.wait_direct().await {
                "a direct path"
            } else {
                std::future::pending().await
            }
        };
        let transfer = receiver.receive(incoming, interrupt);
        tokio::pin!(transfer);
        let mut received = loop {
            tokio::select! {
                received = &mut transfer => break received,
                _ = ticks.tick() => show(&mut self.report, connection, Shown {
                    progress: &self.progress, meter: &mut self.meter, total,
                })?,
            }
        };
        // Another attempt asks for all that is missing.
        self.failed = received.take_failures();
        match std::mem::replace(&mut received.result, Ok(())) {
            Ok(()) => Ok(Attempt::Complete { equal }),
            Err(TransferError::Lost(loss)) if total.is_none() => {
                Err(Failure::explained(&TransferError::Consumed)
                    .in_words(format!("{loss}; {}", TransferError::Consumed)))
            }
            Err(TransferError::Lost(loss)) => match received.into_destination() {
                Some(destination) => Ok(Attempt::Lost { destination, loss }),
                None => Err(Failure::explained(&TransferError::Lost(loss))),
            },
            Err(error) => Err(Failure::explained(&error)),
        }
    }

    /// Prints the end of a transfer.
    fn complete(&mut self, equal: usize) -> Result<Exit, Failure> {
        let (files, seconds) = (self.progress.files(), self.meter.elapsed().as_secs_f64());
        let received = self.progress.moved_in_all();
        let s = if files == 1 { "" } else { "s" };
        let mut line = format!("received {files} file{s}, {} in {seconds:.1} s", bytes(received));
        if equal > 0 {
            line += &format!("; {equal} equal before");
        }
        let skipped = self.answers.values().filter(|answer| **answer == Answer::Skip).count();
        if skipped > 0 {
            line += &format!("; {skipped} skipped");
        }
        self.report.note(
            &line,
            &json!({
                "event": "received",
                "files": files,
                "equal": equal,
                "skipped": skipped,
                "failed": self.failed.len(),
                "bytes": received,
                "seconds": (seconds * 1e3).round() / 1e3,
            }),
        )?;
        match self.failed.as_slice() {
            [] => Ok(Exit::Success),
            [one] => Err(Failure::explained(one)),
            [first, ..] => {
                let count = self.failed.len();
                let words = format!("{count} files or folders are missing; the first: {first}");
                Err(Failure::explained(first).in_words(words))
            }
        }
    }
}

/// Reason for which no transfer begins.
enum Ended {
    Lost(Loss),
    Refused(Failure),
}

/// Reply to a question.
enum Reply {
    One(Answer),
    All,
    Quit,
}

struct Shown<'a> {
    progress: &'a Progress,
    meter: &'a mut Meter,
    total: Option<u64>,
}

fn show(report: &mut Report, connection: &Connection, shown: Shown<'_>) -> Result<(), Failure> {
    let Shown { progress, meter, total } = shown;
    let (done, rate) = (progress.done(), meter.rate(progress.moved()));
    let path = peer::route(&connection.status());
    let words = transferred(done, total, rate);
    report.status(&format!("receiving {words}, {}", path.as_deref().unwrap_or("not connected")));
    report.object(&json!({
        "event": "progress",
        "bytes": done,
        "total": total,
        "bytes_per_second": rate.round(),
        "seconds_left": seconds_left(done, total, rate).map(f64::ceil),
        "path": path,
    }))
}
