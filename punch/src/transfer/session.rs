//! The course of a transfer over a stream, at both sides.

use std::{pin::Pin, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    sync::mpsc,
    task::{JoinError, spawn_blocking},
    time::timeout,
};
use tokio_io_timeout::TimeoutReader;

use super::{
    destination::{Destination, Incoming},
    error::{Loss, TransferError},
    frame::{Frame, FrameKind, read_frame, write_frame},
    message::{Accept, Beginning, Check, Checked, Offer, Reason, Request},
    path::NameRules,
    progress::Progress,
    source::{Hashers, Source},
};
use crate::ticket::Secret;

/// Blocks between the disk and the network, at each side.
const BLOCKS_AHEAD: usize = 4;
/// Time for a peer that opened a stream to show that it has the ticket.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// Interval at which a sender that has nothing to send yet says that it is at work.
const ALIVE_INTERVAL: Duration = Duration::from_secs(5);
/// Time without a byte of the sender, after which its program is taken for dead. QUIC notices that
/// a machine has gone, and not that a program hangs.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(30);
/// Time for the last frame to arrive.
const END_TIMEOUT: Duration = Duration::from_secs(3);

/// Reads the request of a peer, and refuses a peer without the ticket.
pub(crate) async fn authorize<W, R>(send: &mut W, recv: &mut R, secret: &Secret) -> Result<(), TransferError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let request = async {
        let request: Request = read_frame(recv).await?.parse(FrameKind::Request)?;
        if secret.is(&request.secret) { Ok(()) } else { Err(TransferError::NoTicket) }
    };
    let no_request = |_| TransferError::Lost(Loss("the peer sends no request".to_owned()));
    let result = timeout(REQUEST_TIMEOUT, request).await.map_err(no_request).and_then(|result| result);
    if let Err(error) = &result {
        stop(send, error).await;
    }
    result
}

/// Serves one receiver, which has the ticket.
pub(crate) async fn serve<W, R>(
    mut send: W,
    mut recv: R,
    source: Arc<Source>,
    progress: Progress,
) -> Result<(), TransferError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    let result = serve_files(&mut send, &mut recv, source, progress).await;
    match &result {
        Ok(()) => {}
        // The receiver has the last word.
        Err(TransferError::Lost(_) | TransferError::Stopped(_)) => return result,
        Err(error) => stop(&mut send, error).await,
    }
    // An error means that the receiver has gone, which no longer matters.
    let _ = send.shutdown().await;
    result
}

async fn serve_files<W, R>(
    send: &mut W,
    recv: &mut R,
    source: Arc<Source>,
    progress: Progress,
) -> Result<(), TransferError>
where
    W: AsyncWrite + Unpin,
    R: AsyncRead + Unpin,
{
    write_frame(send, &Frame::message(FrameKind::Offer, source.offer())?).await?;
    let mut frame = read_frame(recv).await?;
    let mut hashers = Hashers::new();
    if frame.kind == FrameKind::Check {
        let check: Check = frame.parse(FrameKind::Check)?;
        check.check(source.offer())?;
        let of_files = source.clone();
        let compare = spawn_blocking(move || of_files.compare(&check));
        let (checked, compared) = while_alive(send, compare).await?.map_err(failed)?;
        hashers = compared;
        write_frame(send, &Frame::message(FrameKind::Checked, &checked)?).await?;
        frame = read_frame(recv).await?;
    }
    let accept: Accept = parse(&frame, FrameKind::Accept)?;
    accept.check(source.offer())?;
    if source.take_pipe(&accept)? {
        progress.set_reads_pipe();
    }
    let kept = accept.files.iter().map(|wanted| wanted.from).fold(0, u64::saturating_add);
    progress.set_kept(kept);
    let (frames, mut blocks) = mpsc::channel(BLOCKS_AHEAD);
    let producer = spawn_blocking(move || source.produce(&accept, hashers, &frames, &progress));
    let write = async {
        while let Some(frame) = while_alive(send, blocks.recv()).await? {
            write_frame(send, &frame).await?;
        }
        send.flush().await?;
        producer.await.map_err(failed)?
    };
    // The receiver may end the transfer early.
    let answer = async {
        let answer = read_frame(recv).await?;
        match answer.kind {
            FrameKind::Done => Ok(()),
            FrameKind::Stopped => Err(stopped(&answer)),
            kind => Err(TransferError::Protocol(format!("{kind:?} came during the transfer"))),
        }
    };
    tokio::pin!(answer);
    tokio::select! {
        biased;
        answer = &mut answer => return answer,
        written = write => written?,
    }
    answer.await
}

/// Tells the receiver again and again that the sender is at work, until that work is done.
async fn while_alive<W, T>(send: &mut W, work: impl Future<Output = T>) -> Result<T, TransferError>
where
    W: AsyncWrite + Unpin,
{
    tokio::pin!(work);
    loop {
        match timeout(ALIVE_INTERVAL, &mut work).await {
            Ok(done) => return Ok(done),
            Err(_) => write_frame(send, &Frame { kind: FrameKind::Alive, body: Vec::new() }).await?,
        }
    }
}

/// Side of the receiver, up to the order that begins the transfer.
#[derive(Debug)]
pub(crate) struct Receiver<W, R> {
    send: W,
    recv: Pin<Box<TimeoutReader<R>>>,
    offer: Offer,
}

impl<W: AsyncWrite + Unpin, R: AsyncRead + Unpin> Receiver<W, R> {
    /// Asks for the offer of the sender, and checks it.
    pub(crate) async fn request(mut send: W, recv: R, secret: &Secret) -> Result<Self, TransferError> {
        let mut recv = TimeoutReader::new(recv);
        recv.set_timeout(Some(SILENCE_TIMEOUT));
        let mut recv = Box::pin(recv);
        let request = Request { secret: secret.text().to_owned() };
        write_frame(&mut send, &Frame::message(FrameKind::Request, &request)?).await?;
        let answer = read_frame(&mut recv).await?;
        let offer: Offer = match parse(&answer, FrameKind::Offer) {
            // A sender states no other reason before its offer.
            Err(TransferError::Stopped(_)) => return Err(TransferError::WrongTicket),
            offer => offer?,
        };
        let mut receiver = Self { send, recv, offer };
        if let Err(error) = receiver.offer.check(NameRules::OWN) {
            stop(&mut receiver.send, &error).await;
            return Err(error);
        }
        Ok(receiver)
    }

    /// Offer of the sender.
    pub(crate) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Asks the sender which of these beginnings are equal.
    pub(crate) async fn compare(&mut self, files: Vec<Beginning>) -> Result<Checked, TransferError> {
        if files.is_empty() {
            return Ok(Checked { same: Vec::new() });
        }
        write_frame(&mut self.send, &Frame::message(FrameKind::Check, &Check { files })?).await?;
        let answer = loop {
            let frame = read_frame(&mut self.recv).await?;
            if frame.kind != FrameKind::Alive {
                break frame;
            }
        };
        parse(&answer, FrameKind::Checked)
    }

    /// Tells the sender that the user wants nothing of it.
    pub(crate) async fn refuse(mut self, reason: &TransferError) {
        stop(&mut self.send, reason).await;
    }

    /// Receives the files. Returns also what was received before a failure. An attempt that
    /// `interrupt` ends counts as lost for the reason that it returns.
    pub(crate) async fn receive(
        mut self,
        mut incoming: Incoming,
        interrupt: impl Future<Output = &'static str>,
    ) -> Received {
        let accept = match Frame::message(FrameKind::Accept, &incoming.wanted()) {
            Ok(accept) => accept,
            Err(error) => return Received::failed(Some(incoming), error),
        };
        if let Err(error) = write_frame(&mut self.send, &accept).await {
            return Received::failed(Some(incoming), error.into());
        }
        let mut left = incoming.to_receive;
        let (blocks, mut frames) = mpsc::channel::<Frame>(BLOCKS_AHEAD);
        let consumer = spawn_blocking(move || {
            let mut result = Ok(());
            while let (Ok(()), Some(frame)) = (&result, frames.blocking_recv()) {
                result = incoming.on_frame(&frame);
            }
            (incoming, result)
        });
        let mut lost = None;
        tokio::pin!(interrupt);
        while left > 0 {
            let frame = tokio::select! {
                frame = read_frame(&mut self.recv) => frame,
                reason = &mut interrupt => Err(TransferError::Lost(Loss(reason.to_owned()))),
            };
            match frame {
                Ok(frame) if frame.kind == FrameKind::Alive => continue,
                Ok(frame) if frame.kind == FrameKind::Stopped => lost = Some(stopped(&frame)),
                Ok(frame) => {
                    left -= usize::from(matches!(frame.kind, FrameKind::End | FrameKind::Failed));
                    if blocks.send(frame).await.is_ok() {
                        continue;
                    }
                }
                Err(error) => lost = Some(error),
            }
            break;
        }
        drop(blocks);
        let (incoming, result) = match consumer.await {
            Ok(consumed) => consumed,
            Err(error) => return Received::failed(None, failed(error)),
        };
        match (result, lost) {
            (Err(error), _) => {
                stop(&mut self.send, &error).await;
                Received::failed(Some(incoming), error)
            }
            (Ok(()), Some(error)) => Received::failed(Some(incoming), error),
            (Ok(()), None) => {
                self.say_done().await;
                Received { incoming: Some(incoming), result: Ok(()) }
            }
        }
    }

    /// Tells the sender that all has arrived, and waits until it knows.
    async fn say_done(&mut self) {
        let end = async {
            write_frame(&mut self.send, &Frame { kind: FrameKind::Done, body: Vec::new() }).await?;
            self.send.shutdown().await?;
            self.recv.read(&mut [0]).await
        };
        // The files are here, and a sender that has gone already does not miss the word.
        let _ = timeout(END_TIMEOUT, end).await;
    }
}

/// Outcome of one attempt of a receiver.
#[derive(Debug)]
pub(crate) struct Received {
    incoming: Option<Incoming>,
    pub(crate) result: Result<(), TransferError>,
}

impl Received {
    fn failed(incoming: Option<Incoming>, error: TransferError) -> Self {
        Self { incoming, result: Err(error) }
    }

    /// Takes the files and folders that are missing, each with its cause.
    pub(crate) fn take_failures(&mut self) -> Vec<TransferError> {
        self.incoming.as_mut().map(|incoming| std::mem::take(&mut incoming.failed)).unwrap_or_default()
    }

    /// Returns the destination, for another attempt.
    pub(crate) fn into_destination(self) -> Option<Destination> {
        self.incoming.map(Incoming::into_destination)
    }
}

/// Reads a message of this kind. A peer may also end the transfer.
fn parse<T: serde::de::DeserializeOwned>(frame: &Frame, kind: FrameKind) -> Result<T, TransferError> {
    if frame.kind == FrameKind::Stopped { Err(stopped(frame)) } else { frame.parse(kind) }
}

/// Reads the reason for which the peer ended the transfer.
fn stopped(frame: &Frame) -> TransferError {
    match frame.parse::<Reason>(FrameKind::Stopped) {
        Ok(reason) => TransferError::Stopped(reason.shown()),
        Err(error) => error,
    }
}

/// Tells the peer the reason of the end, if it still listens.
async fn stop<W: AsyncWrite + Unpin>(send: &mut W, error: &TransferError) {
    let reason = Reason { reason: error.to_string().chars().take(500).collect() };
    let Ok(frame) = Frame::message(FrameKind::Stopped, &reason) else { return };
    let end = async {
        write_frame(send, &frame).await?;
        send.shutdown().await
    };
    // An error means that the peer has gone.
    let _ = timeout(END_TIMEOUT, end).await;
}

fn failed(error: JoinError) -> TransferError {
    TransferError::Protocol(format!("a task of this program failed: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_sender_that_waits_for_its_disk_or_a_pipe_says_that_it_is_alive() {
        let (mut send, mut recv) = tokio::io::duplex(1 << 10);
        let stalled = tokio::time::sleep(Duration::from_secs(61));
        while_alive(&mut send, stalled).await.unwrap();
        drop(send);
        let mut frames = 0;
        while let Ok(frame) = read_frame(&mut recv).await {
            assert_eq!(frame.kind, FrameKind::Alive);
            frames += 1;
        }
        assert_eq!(frames, 12, "one each 5 s");
    }
}
