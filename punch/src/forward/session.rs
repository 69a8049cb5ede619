//! One forwarded connection, at both sides.

use std::{collections::HashSet, io, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{
    endpoint::Endpoint,
    error::ForwardError,
    wire::{Answer, Request, Transport, read_message, receive_chunks, send_chunks, write_message},
};
use crate::ticket::Secret;

/// Time for a peer that opened a stream to show that it has the ticket.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the port at the peer to accept.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);
/// Time for the answer of the peer, which first connects to the port.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for a refusal to be sent.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Bytes of a connection that has ended, as the side counts them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    /// Bytes from the local connection to the peer.
    pub(crate) sent: u64,
    /// Bytes from the peer to the local connection.
    pub(crate) received: u64,
}

/// Rule for what peers may reach through the side that serves.
#[derive(Debug)]
pub(crate) struct Gate {
    pub(crate) secret: Secret,
    pub(crate) allowed: HashSet<Endpoint>,
}

/// Request that the gate let through.
#[derive(Debug)]
pub(crate) struct Admitted {
    pub(crate) target: Endpoint,
    /// The peer wants no connection, but to know whether it may have one.
    pub(crate) is_check: bool,
}

impl Gate {
    /// Reads the request of a peer. One that is not allowed is refused.
    pub(crate) async fn admit<W, R>(&self, send: &mut W, recv: &mut R) -> Result<Admitted, ForwardError>
    where
        W: AsyncWrite + Unpin,
        R: AsyncRead + Unpin,
    {
        let request = timeout(REQUEST_TIMEOUT, read_message::<Request>(recv)).await;
        let admitted =
            request.unwrap_or(Err(ForwardError::NoRequest)).and_then(|request| self.check(request));
        if let Err(error) = &admitted {
            refuse(send, error).await;
        }
        admitted
    }

    fn check(&self, request: Request) -> Result<Admitted, ForwardError> {
        let Request { secret, transport: Transport::Tcp, target, check } = request;
        let target = target.checked()?;
        if !self.secret.is(&secret) {
            return Err(ForwardError::NoTicket { target });
        }
        if !self.allowed.contains(&target) {
            return Err(ForwardError::NotAllowed { target });
        }
        Ok(Admitted { target, is_check: check })
    }
}

/// Tells a peer why it gets no connection, if it still listens.
pub(crate) async fn refuse<W: AsyncWrite + Unpin>(send: &mut W, error: &ForwardError) {
    let detail = match error {
        ForwardError::NoTicket { .. } => "the ticket is not the present one".to_owned(),
        error => error.to_string(),
    };
    let end = async {
        write_message(send, &Answer::Refused { detail }).await?;
        send.shutdown().await.map_err(ForwardError::Lost)
    };
    // An error means that the peer has gone.
    let _ = timeout(END_TIMEOUT, end).await;
}

/// Serves a request: connects to its port, and passes bytes until both directions have ended.
pub(crate) async fn serve<W, R>(mut send: W, recv: R, admitted: Admitted) -> Result<Traffic, ForwardError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let Admitted { target, is_check } = admitted;
    if is_check {
        write_message(&mut send, &Answer::Open).await?;
        send.shutdown().await.map_err(ForwardError::Lost)?;
        return Ok(Traffic { sent: 0, received: 0 });
    }
    let unreachable = |cause: String| ForwardError::Unreachable { target: target.clone(), cause };
    let connected = timeout(CONNECT_TIMEOUT, TcpStream::connect(target.resolvable())).await;
    let connected = connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
    let mut local = match connected {
        Ok(local) => local,
        Err(error) => {
            let error = unreachable(describe(&error));
            refuse(&mut send, &error).await;
            return Err(error);
        }
    };
    let result = async {
        write_message(&mut send, &Answer::Open).await?;
        pass(&mut local, &mut send, async { Ok(recv) }).await
    };
    let result = result.await;
    end(&local, result)
}

/// Passes a local connection to a port at the peer, until both directions have ended.
///
/// The first bytes go with the request and do not wait for the answer.
pub(crate) async fn open<W, R>(
    mut local: TcpStream,
    mut send: W,
    mut recv: R,
    secret: &Secret,
    target: &Endpoint,
) -> Result<Traffic, ForwardError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let result = async {
        write_message(&mut send, &request(secret, target, false)).await?;
        let answered = async move {
            read_answer(&mut recv).await?;
            Ok(recv)
        };
        pass(&mut local, &mut send, answered).await
    };
    let result = result.await;
    end(&local, result)
}

/// Asks the peer if it would connect to a port.
pub(crate) async fn check<W, R>(
    mut send: W,
    mut recv: R,
    secret: &Secret,
    target: &Endpoint,
) -> Result<(), ForwardError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    write_message(&mut send, &request(secret, target, true)).await?;
    read_answer(&mut recv).await
}

fn request(secret: &Secret, target: &Endpoint, check: bool) -> Request {
    Request { secret: secret.text().to_owned(), transport: Transport::Tcp, target: target.clone(), check }
}

async fn read_answer<R: AsyncRead + Unpin>(recv: &mut R) -> Result<(), ForwardError> {
    let answer = timeout(ANSWER_TIMEOUT, read_message::<Answer>(recv)).await;
    answer.unwrap_or(Err(ForwardError::NoAnswer))?.into_result()
}

/// Passes bytes in both directions. Each direction ends by itself, and an error ends both.
async fn pass<W, R>(
    local: &mut TcpStream,
    send: &mut W,
    answered: impl Future<Output = Result<R, ForwardError>>,
) -> Result<Traffic, ForwardError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    // Small writes of an interactive program go out at once. Without that, they are late.
    let _ = local.set_nodelay(true);
    let (mut from, mut to) = local.split();
    let receive = async { receive_chunks(&mut answered.await?, &mut to).await };
    let (sent, received) = tokio::try_join!(send_chunks(&mut from, send), receive)?;
    Ok(Traffic { sent, received })
}

/// Lets the local program see a connection that was broken off as such, and not as ended.
fn end(local: &TcpStream, result: Result<Traffic, ForwardError>) -> Result<Traffic, ForwardError> {
    if result.is_err() {
        // An error means that the connection has gone already.
        let _ = local.set_zero_linger();
    }
    result
}

fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "nothing listens there".to_owned(),
        io::ErrorKind::TimedOut => "it does not answer".to_owned(),
        io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
            "there is no route to it".to_owned()
        }
        _ => error.to_string(),
    }
}
