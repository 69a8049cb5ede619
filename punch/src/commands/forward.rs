//! `punch forward`: ports at a peer, as local ones.

use std::{collections::HashSet, io, sync::Arc, time::Duration};

use libp2p_punch_node::{Connection, ConnectionStatus, Node, PeerId, Target};
use serde_json::json;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::{Semaphore, mpsc},
    task::JoinSet,
    time::sleep,
};

use super::peer::{self, Settings};
use crate::{
    args::Forward,
    exit::{Exit, Failure},
    forward::{self, Endpoint, ForwardError, Gate, Traffic, Tunnel},
    key,
    output::{Report, short},
    signal::Stop,
    ticket::{Secret, SecretTicket},
};

/// Forwarded connections at once. Further ones are refused by the side that serves, and wait at
/// the other one.
const MAX_CONNECTIONS: usize = 256;
/// Events that wait to be printed.
const EVENTS_AHEAD: usize = 64;
/// Pause after a local port could not take a connection, for example without a free descriptor.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// End of a forwarded connection.
struct Event {
    peer: PeerId,
    /// The port at the peer, unless the request names none.
    target: Option<Endpoint>,
    result: Result<Traffic, ForwardError>,
}

/// Runs until a failure, Ctrl-C or SIGTERM.
pub(crate) async fn run(arguments: Forward) -> Result<Exit, Failure> {
    let mut stop = Stop::new()?;
    let ticket = arguments.ticket.as_deref().map(str::parse::<SecretTicket>).transpose();
    let ticket = ticket.map_err(|error| Failure::usage(format!("TICKET: {error}")))?;
    // A port in use is noticed before anything is connected.
    let mut listeners = Vec::new();
    for tunnel in &arguments.tunnels {
        listeners.push(listen(tunnel).await?);
    }
    let secret = match &arguments.node.common.key {
        Some(path) if ticket.is_none() => Secret::of_key(&key::load(Some(path))?).map_err(Failure::error)?,
        _ => Secret::generate(),
    };
    let settings = Settings { protocol: forward::PROTOCOL, connect_timeout: arguments.timeout };
    let node = peer::start(&arguments.node, settings).await?;
    let report = Report::new(arguments.node.common.json);
    let work = async {
        match ticket {
            Some(ticket) => Forwarding::new(node.clone(), report, ticket).run(listeners).await,
            None => {
                let gate = Gate { secret, allowed: arguments.allow.iter().cloned().collect() };
                Serving { node: node.clone(), report }.run(gate).await
            }
        }
    };
    let result = tokio::select! {
        result = work => result.map(|never| match never {}),
        () = stop.requested() => Ok(Exit::Success),
    };
    node.shutdown().await;
    result
}

async fn listen(tunnel: &Tunnel) -> Result<(TcpListener, Endpoint), Failure> {
    let listener = TcpListener::bind(tunnel.local).await.map_err(|error| {
        let cause = match error.kind() {
            io::ErrorKind::AddrInUse => "the port is in use".to_owned(),
            io::ErrorKind::AddrNotAvailable => "the address is not one of this machine".to_owned(),
            io::ErrorKind::PermissionDenied => "permission denied".to_owned(),
            _ => error.to_string(),
        };
        Failure::error(format!("cannot listen on {}: {cause}", tunnel.local))
    })?;
    Ok((listener, tunnel.target.clone()))
}

/// Work that ends with an error only.
type Endless = Result<std::convert::Infallible, Failure>;

/// Side that lets peers connect to ports.
struct Serving {
    node: Node,
    report: Report,
}

impl Serving {
    async fn run(mut self, gate: Gate) -> Endless {
        self.report.status("waiting until other networks can reach this machine");
        let node = self.node.ticket().await.map_err(|error| Failure::explained(&error))?;
        let ticket = SecretTicket { node, secret: gate.secret.clone() }.to_string();
        self.report.result(&ticket, &json!({ "event": "ticket", "ticket": ticket }))?;
        let first = sorted(&gate.allowed).into_iter().next().unwrap_or_default();
        let hint = format!("on the other machine: punch forward TICKET LOCAL_PORT:{first}");
        self.report.note(&hint, &json!({ "event": "waiting", "allowed": sorted(&gate.allowed) }))?;
        let gate = Arc::new(gate);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let (events, mut happened) = mpsc::channel(EVENTS_AHEAD);
        loop {
            tokio::select! {
                connection = self.node.accept() => {
                    let connection = connection.map_err(Failure::error)?;
                    let peer = connection.peer();
                    peer::report_path(&mut self.report, peer, &self.node.connection_status(&peer))?;
                    tokio::spawn(serve(connection, gate.clone(), places.clone(), events.clone()));
                }
                Some(event) = happened.recv() => on_end(&mut self.report, &event)?,
            }
        }
    }
}

fn sorted(allowed: &HashSet<Endpoint>) -> Vec<String> {
    let mut allowed: Vec<_> = allowed.iter().map(ToString::to_string).collect();
    allowed.sort();
    allowed
}

/// Serves all streams of a peer.
async fn serve(connection: Connection, gate: Arc<Gate>, places: Arc<Semaphore>, events: mpsc::Sender<Event>) {
    let peer = connection.peer();
    while let Ok((mut send, mut recv)) = connection.accept_bi().await {
        // A peer without the ticket waits for itself only: its streams take turns.
        let admitted = match gate.admit(&mut send, &mut recv).await {
            Ok(admitted) => admitted,
            Err(error) => {
                // An error means that the program ends.
                let _ = events.send(Event { peer, target: None, result: Err(error) }).await;
                continue;
            }
        };
        let Ok(place) = places.clone().try_acquire_owned() else {
            forward::refuse(&mut send, &ForwardError::Busy).await;
            continue;
        };
        let (events, connection) = (events.clone(), connection.clone());
        tokio::spawn(async move {
            let (target, is_check) = (admitted.target.clone(), admitted.is_check);
            let result = forward::serve(send, recv, admitted).await;
            drop((connection, place));
            if !is_check {
                let _ = events.send(Event { peer, target: Some(target), result }).await;
            }
        });
    }
}

/// Side that has the local ports.
struct Forwarding {
    node: Node,
    report: Report,
    target: Target,
    secret: Arc<Secret>,
}

impl Forwarding {
    fn new(node: Node, report: Report, ticket: SecretTicket) -> Self {
        Self { node, report, target: ticket.node.into(), secret: Arc::new(ticket.secret) }
    }

    async fn run(mut self, listeners: Vec<(TcpListener, Endpoint)>) -> Endless {
        let peer = self.target.peer();
        self.report.status("connecting");
        let connected = peer::connect(&self.node, &self.target).await;
        // Held, so that a local connection need not wait for one to the peer.
        let mut connection = connected.map_err(|error| peer::not_connected(peer, &error))?;
        let mut is_held = true;
        let mut shown = connection.status();
        peer::report_path(&mut self.report, peer, &shown)?;
        let (events, mut happened) = mpsc::channel(EVENTS_AHEAD);
        let places = Arc::new(Semaphore::new(MAX_CONNECTIONS));
        let mut tasks = JoinSet::new();
        for (listener, target) in listeners {
            self.check(&connection, &target).await?;
            let local = listener.local_addr().map_err(Failure::error)?.to_string();
            let object = json!({ "event": "listening", "address": local, "target": target.to_string() });
            self.report.note(&format!("{local} leads to {target} at the peer"), &object)?;
            tasks.spawn(
                Port {
                    listener,
                    target,
                    node: self.node.clone(),
                    peer: self.target.clone(),
                    secret: self.secret.clone(),
                    places: places.clone(),
                    events: events.clone(),
                }
                .run(),
            );
        }
        let mut watch = self.node.watch_status(&peer);
        loop {
            tokio::select! {
                Some(event) = happened.recv() => on_end(&mut self.report, &event)?,
                _ = connection.closed(), if is_held => is_held = false,
                Some(status) = watch.changed() => {
                    if peer::route(&status) != peer::route(&shown) {
                        self.on_status(peer, &status)?;
                    }
                    // A local connection has made it again.
                    if status.is_connected()
                        && !is_held
                        && let Ok(again) = self.node.connect(self.target.clone()).await
                    {
                        (connection, is_held) = (again, true);
                    }
                    shown = status;
                }
            }
        }
    }

    /// Asks the peer about a port, so that a ticket or a list that does not fit is noticed at once.
    async fn check(&self, connection: &Connection, target: &Endpoint) -> Result<(), Failure> {
        let failed =
            |cause: &dyn std::fmt::Display| Failure::error(format!("cannot forward {target}: {cause}"));
        let (send, recv) = connection.open_bi().await.map_err(|error| failed(&error))?;
        let checked = forward::check(send, recv, &self.secret, target).await;
        checked.map_err(|error| Failure::explained(&error).in_words(failed(&error).message))
    }

    fn on_status(&mut self, peer: PeerId, status: &ConnectionStatus) -> Result<(), Failure> {
        let ConnectionStatus::Closed { reason, .. } = status else {
            return peer::report_path(&mut self.report, peer, status);
        };
        let line =
            format!("the connection to {} closed: {reason}; the next local one makes it again", short(&peer));
        self.report
            .note(&line, &json!({ "event": "lost", "peer": peer.to_string(), "message": reason.to_string() }))
    }
}

/// Local port.
struct Port {
    listener: TcpListener,
    target: Endpoint,
    node: Node,
    peer: Target,
    secret: Arc<Secret>,
    places: Arc<Semaphore>,
    events: mpsc::Sender<Event>,
}

impl Port {
    async fn run(self) {
        // An error means that the program ends.
        while let Ok(place) = self.places.clone().acquire_owned().await {
            let local = match self.listener.accept().await {
                Ok((local, _)) => local,
                Err(error) => {
                    tracing::warn!(%error, target = %self.target, "a local port takes no connection");
                    sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            let (node, target, secret) = (self.node.clone(), self.target.clone(), self.secret.clone());
            let (to, events) = (self.peer.clone(), self.events.clone());
            tokio::spawn(async move {
                let peer = to.peer();
                let result = pass(&node, to, local, &secret, &target).await;
                drop(place);
                let _ = events.send(Event { peer, target: Some(target), result }).await;
            });
        }
    }
}

/// Passes one local connection.
async fn pass(
    node: &Node,
    to: Target,
    local: TcpStream,
    secret: &Secret,
    target: &Endpoint,
) -> Result<Traffic, ForwardError> {
    let opened = async {
        let unreached = |error: &dyn std::fmt::Display| ForwardError::NotConnected(error.to_string());
        let connection = node.connect(to).await.map_err(|error| unreached(&error))?;
        let stream = connection.open_bi().await.map_err(|error| unreached(&error))?;
        Ok((connection, stream))
    };
    match opened.await {
        Ok((connection, (send, recv))) => {
            let result = forward::open(local, send, recv, secret, target).await;
            drop(connection);
            result
        }
        Err(error) => {
            // The local program sees a connection that broke. An error means that it has gone.
            let _ = local.set_zero_linger();
            Err(error)
        }
    }
}

/// Prints the end of a forwarded connection: in words only if it failed.
fn on_end(report: &mut Report, event: &Event) -> Result<(), Failure> {
    let Event { peer, target, result } = event;
    let shown = target.as_ref().map(ToString::to_string);
    match result {
        Ok(Traffic { sent, received }) => report.object(&json!({
            "event": "closed", "peer": peer.to_string(), "target": shown, "sent": sent, "received": received,
        })),
        Err(error) => {
            let what = shown.as_ref().map(|target| format!("{target}: ")).unwrap_or_default();
            let object = json!({
                "event": "failed", "peer": peer.to_string(), "target": shown, "message": error.to_string(),
            });
            report.note(&format!("{} {what}{error}", short(peer)), &object)
        }
    }
}
