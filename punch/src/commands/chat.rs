//! `punch chat`: lines of text between two peers.

use libp2p_punch_node::{Connection, ConnectionStatus, MAX_MESSAGE_LEN, Node, PeerId};
use serde_json::json;
use tokio::{
    io::{AsyncBufReadExt, BufReader, Lines, Stdin},
    sync::mpsc,
};

use super::peer::{self, Settings};
use crate::{
    args::Chat,
    exit::{Exit, Failure},
    output::{Report, short},
    signal::Stop,
};

/// Protocol of the streams of a chat. Its lines are messages of the node.
const PROTOCOL: &str = "/libp2p-punch/chat/1.0.0";
/// Lines that wait until the peer has read those before.
const LINES_AHEAD: usize = 16;

/// Runs until the end of stdin, the end of the peer, a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Chat) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let target = arguments.peer.as_deref().map(peer::target).transpose()?;
    let settings = Settings { protocol: PROTOCOL, connect_timeout: arguments.timeout };
    let node = peer::start(&arguments.node, settings).await?;
    let mut report = Report::new(arguments.node.common.json);
    let talk = async {
        let connection = match target {
            Some(target) => {
                report.status("connecting");
                let connected = peer::connect(&node, &target).await;
                connected.map_err(|error| peer::not_connected(target.peer(), &error))?
            }
            None => {
                let ticket = node.ticket().await.map_err(|error| Failure::explained(&error))?.to_string();
                report.result(&ticket, &json!({ "event": "ticket", "ticket": ticket }))?;
                let hint = "on the other machine: punch chat TICKET; this one waits until then";
                report.note(hint, &json!({ "event": "waiting" }))?;
                node.accept().await.map_err(Failure::error)?
            }
        };
        let peer = connection.peer();
        Talk { node: &node, peer, connection, report: &mut report }.run().await
    };
    let result = tokio::select! {
        result = talk => result,
        () = stop.requested() => Ok(Exit::Success),
    };
    node.shutdown().await;
    result
}

struct Talk<'a> {
    node: &'a Node,
    peer: PeerId,
    /// Latest connection to the peer, which is held until the end of the chat.
    connection: Connection,
    report: &'a mut Report,
}

impl Talk<'_> {
    async fn run(&mut self) -> Result<Exit, Failure> {
        let mut watch = self.node.watch_status(&self.peer);
        peer::report_path(self.report, self.peer, &watch.current())?;
        let mut shown = watch.current();
        let (lines, mut waiting) = mpsc::channel::<String>(LINES_AHEAD);
        let mut typed = BufReader::new(tokio::io::stdin()).lines();
        let (node, peer) = (self.node.clone(), self.peer);
        let deliver = async move {
            while let Some(line) = waiting.recv().await {
                if let Err(error) = node.send_to_peer(peer, line).await {
                    let words = format!("a line did not arrive: {error}");
                    return Err(Failure::explained(&error).in_words(words));
                }
            }
            Ok(Exit::Success)
        };
        tokio::pin!(deliver);
        let mut lines = Some(lines);
        loop {
            tokio::select! {
                delivered = &mut deliver => return delivered,
                line = next_line(&mut typed, lines.clone()), if lines.is_some() => match line? {
                    Some((line, place)) => drop(place.send(line)),
                    // All lines that wait are delivered first.
                    None => lines = None,
                },
                message = self.node.receive() => {
                    let message = message.map_err(Failure::error)?;
                    self.show(message.peer, &message.bytes)?;
                }
                connection = self.node.accept() => {
                    let connection = connection.map_err(Failure::error)?;
                    if connection.peer() == self.peer {
                        self.connection = connection;
                    } else {
                        self.turn_away(connection.peer())?;
                        tokio::spawn(async move { connection.close().await });
                    }
                }
                Some(status) = watch.changed() => match &status {
                    ConnectionStatus::Closed { .. } => {
                        self.report.note(
                            &format!("{} has left", short(&self.peer)),
                            &json!({ "event": "left", "peer": self.peer.to_string() }),
                        )?;
                        return Ok(Exit::Success);
                    }
                    status => {
                        if peer::route(status) != peer::route(&shown) {
                            peer::report_path(self.report, self.peer, status)?;
                        }
                        shown = status.clone();
                    }
                },
            }
        }
    }

    /// Prints that another peer cannot take part.
    fn turn_away(&mut self, other: PeerId) -> Result<(), Failure> {
        let line = format!("{} was turned away: a chat is for two", short(&other));
        self.report.note(&line, &json!({ "event": "refused", "peer": other.to_string() }))
    }

    /// Prints a line of the peer. A line of another one that came before its connection was closed
    /// is mentioned only.
    fn show(&mut self, sender: PeerId, bytes: &[u8]) -> Result<(), Failure> {
        if sender != self.peer {
            return self.turn_away(sender);
        }
        let text: String = String::from_utf8_lossy(bytes).chars().filter(|char| !char.is_control()).collect();
        let object = json!({ "event": "message", "peer": sender.to_string(), "text": text });
        self.report.result(&format!("{}: {text}", short(&sender)), &object)
    }
}

/// Waits for a typed line, and for its place in the queue. `None` at the end of stdin.
async fn next_line(
    typed: &mut Lines<BufReader<Stdin>>,
    lines: Option<mpsc::Sender<String>>,
) -> Result<Option<(String, mpsc::OwnedPermit<String>)>, Failure> {
    let Some(lines) = lines else { return Ok(None) };
    // An error means that the chat ends.
    let Ok(place) = lines.reserve_owned().await else { return Ok(None) };
    let line = typed.next_line().await;
    let line = line.map_err(|error| Failure::error(format!("cannot read stdin: {error}")))?;
    match line {
        Some(line) if line.len() > MAX_MESSAGE_LEN => {
            let len = line.len();
            Err(Failure::usage(format!("a line has {len} bytes, and at most {MAX_MESSAGE_LEN} can be sent")))
        }
        line => Ok(line.map(|line| (line, place))),
    }
}
