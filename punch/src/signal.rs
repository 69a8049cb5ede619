//! Signals that end the program.

use std::io;

use crate::exit::Failure;

#[cfg(unix)]
use tokio::signal::unix::{Signal, SignalKind, signal};
#[cfg(windows)]
use tokio::signal::windows::{CtrlC, ctrl_c};

/// Listens for Ctrl-C, and for SIGTERM where there is one, from the moment it is made.
///
/// It is made before the first line is printed, because the reader of that line may send a signal
/// at once.
pub(crate) struct Stop {
    #[cfg(unix)]
    signals: [Signal; 2],
    #[cfg(windows)]
    ctrl_c: CtrlC,
}

impl Stop {
    /// Begins to listen. The caller must be within a tokio runtime.
    pub(crate) fn new() -> Result<Self, Failure> {
        Self::listen().map_err(|error| Failure::error(format!("cannot listen for signals: {error}")))
    }

    #[cfg(unix)]
    fn listen() -> io::Result<Self> {
        Ok(Self { signals: [signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?] })
    }

    #[cfg(windows)]
    fn listen() -> io::Result<Self> {
        Ok(Self { ctrl_c: ctrl_c()? })
    }

    /// Waits for a signal.
    pub(crate) async fn requested(&mut self) {
        #[cfg(unix)]
        {
            let [interrupt, terminate] = &mut self.signals;
            tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            }
        }
        #[cfg(windows)]
        self.ctrl_c.recv().await;
    }
}

/// Listens for SIGHUP, where there is one, from the moment it is made.
pub(crate) struct Hangup {
    /// `None` if SIGHUP keeps its usual effect, which is to end the program.
    #[cfg(unix)]
    signal: Option<Signal>,
}

impl Hangup {
    /// Begins to listen if the signal `is_wanted`. The caller must be within a tokio runtime.
    pub(crate) fn new(is_wanted: bool) -> Result<Self, Failure> {
        #[cfg(unix)]
        {
            let signal = is_wanted
                .then(|| signal(SignalKind::hangup()))
                .transpose()
                .map_err(|error| Failure::error(format!("cannot listen for signals: {error}")))?;
            Ok(Self { signal })
        }
        #[cfg(windows)]
        {
            let _ = is_wanted;
            Ok(Self {})
        }
    }

    /// Waits for the signal.
    pub(crate) async fn requested(&mut self) {
        #[cfg(unix)]
        if let Some(signal) = &mut self.signal
            && signal.recv().await.is_some()
        {
            return;
        }
        std::future::pending().await
    }
}
