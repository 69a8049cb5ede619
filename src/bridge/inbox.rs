//! Everything that the driver reacts to, in the order in which it does.

use std::task::{Context, Poll};

use tokio::sync::mpsc;

use crate::{
    behaviour::link,
    io::{Change, InterfaceWatch},
    transport::{notice::Notice, path::PathNotice},
};

/// One input of the driver.
#[derive(Debug)]
pub(super) enum Input {
    /// Of the path layer: probes, and the progress of virtual connections.
    Path(PathNotice),
    /// Of the transport: sockets and dials.
    Transport(Notice),
    /// Of the behaviour and its handlers: control streams, and what the swarm wants.
    Swarm(link::Input),
    /// A change of the addresses of the interfaces.
    Interfaces(Change),
}

/// The ends of the channels to the driver.
pub(super) struct Inbox {
    pub(super) path: mpsc::Receiver<PathNotice>,
    pub(super) transport: mpsc::Receiver<Notice>,
    pub(super) swarm: mpsc::Receiver<link::Input>,
    /// `None` once the watcher has ended.
    pub(super) interfaces: Option<InterfaceWatch>,
    /// An input of the swarm that came before a notice of the transport was seen.
    pub(super) held: Option<link::Input>,
}

impl Inbox {
    /// Returns the next input; `None` once the transport or the behaviour is gone.
    ///
    /// Probes come first: their timing is what NATs and round-trip times are measured by. What the
    /// transport said before the swarm saw a connection comes before what the swarm says of it.
    pub(super) fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<Input>> {
        if let Poll::Ready(Some(notice)) = self.path.poll_recv(cx) {
            return Poll::Ready(Some(Input::Path(notice)));
        }
        if let Poll::Ready(notice) = self.transport.poll_recv(cx) {
            return Poll::Ready(notice.map(Input::Transport));
        }
        let input = match self.held.take() {
            Some(input) => Poll::Ready(Some(input)),
            None => self.swarm.poll_recv(cx),
        };
        match input {
            Poll::Ready(Some(input)) => {
                // The transport may have spoken since it was asked.
                if let Poll::Ready(Some(notice)) = self.transport.poll_recv(cx) {
                    self.held = Some(input);
                    return Poll::Ready(Some(Input::Transport(notice)));
                }
                Poll::Ready(Some(Input::Swarm(input)))
            }
            Poll::Ready(None) => Poll::Ready(None),
            Poll::Pending => self.poll_interfaces(cx),
        }
    }

    fn poll_interfaces(&mut self, cx: &mut Context<'_>) -> Poll<Option<Input>> {
        let Some(interfaces) = &mut self.interfaces else { return Poll::Pending };
        match interfaces.poll_change(cx) {
            Poll::Ready(Some(change)) => Poll::Ready(Some(Input::Interfaces(change))),
            Poll::Ready(None) => {
                self.interfaces = None;
                Poll::Pending
            }
            Poll::Pending => Poll::Pending,
        }
    }
}
