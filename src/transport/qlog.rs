//! Traces of connections in files (draft-ietf-quic-qlog-main-schema), for tools such as qvis.
//!
//! quinn takes the writer of a trace with the configuration of a connection. So with a folder for
//! traces every connection has a configuration of its own; without a folder all connections share
//! one.

use std::fmt;

/// Our part in a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Server,
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Client => "client",
            Self::Server => "server",
        })
    }
}

#[cfg(feature = "qlog")]
mod folder {
    use std::{
        fs::{self, File, OpenOptions},
        io::{self, BufWriter},
        path::{Path, PathBuf},
        sync::atomic::{AtomicU64, Ordering::Relaxed},
        time::{SystemTime, UNIX_EPOCH},
    };

    use quinn::{QlogConfig, TransportConfig};

    use super::Side;
    use crate::config::ConfigError;

    /// Traces that one transport writes; later connections have none. A remote causes a trace with
    /// every accepted handshake, and a disk is finite.
    const MAX_TRACES: u64 = 10_000;
    /// File names that may be taken before a trace is given up.
    const MAX_TAKEN: usize = 100;

    /// A folder for traces. Files are named by the time when the transport was made, a number, and
    /// our side.
    #[derive(Debug)]
    pub(in crate::transport) struct Qlog {
        folder: PathBuf,
        /// Milliseconds since 1970.
        since: u128,
        next: AtomicU64,
    }

    impl Qlog {
        /// Makes the folder if there is none, and tries whether files can be made in it.
        pub(in crate::transport) fn open(folder: &Path) -> Result<Self, ConfigError> {
            let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
            let qlog = Self { folder: folder.to_owned(), since, next: AtomicU64::new(0) };
            let usable = fs::create_dir_all(folder).and_then(|()| {
                let (_, path) = qlog.create("probe")?;
                fs::remove_file(path)
            });
            match usable {
                Ok(()) => Ok(qlog),
                Err(error) => Err(ConfigError::QlogFolder { value: qlog.folder, reason: error.to_string() }),
            }
        }

        /// Lets the connection of this configuration write a trace. A write error loses a part of
        /// the trace, and does not affect the connection.
        pub(in crate::transport) fn attach(&self, transport: &mut TransportConfig, side: Side) {
            let number = self.next.load(Relaxed);
            if number >= MAX_TRACES {
                return;
            }
            if number + 1 == MAX_TRACES {
                tracing::warn!(folder = %self.folder.display(), "this is the last trace");
            }
            match self.create(&side.to_string()) {
                Ok((file, _)) => {
                    let mut config = QlogConfig::default();
                    config
                        .writer(Box::new(BufWriter::new(file)))
                        .title(Some("libp2p-punch".to_owned()))
                        .description(Some(side.to_string()));
                    transport.qlog_stream(config.into_stream());
                }
                Err(error) => {
                    tracing::warn!(%error, folder = %self.folder.display(), "a connection has no trace");
                }
            }
        }

        fn create(&self, what: &str) -> io::Result<(File, PathBuf)> {
            let mut taken = 0;
            loop {
                let number = self.next.fetch_add(1, Relaxed);
                let path = self.folder.join(format!("{}-{number:05}-{what}.sqlog", self.since));
                match OpenOptions::new().write(true).create_new(true).open(&path) {
                    // Another transport was made in the same millisecond.
                    Err(error) if error.kind() == io::ErrorKind::AlreadyExists && taken < MAX_TAKEN => {
                        taken += 1;
                    }
                    opened => return Ok((opened?, path)),
                }
            }
        }
    }
}

#[cfg(not(feature = "qlog"))]
mod folder {
    use std::path::Path;

    use quinn::TransportConfig;

    use super::Side;
    use crate::config::ConfigError;

    /// Nothing that could write: this build has no traces.
    #[derive(Debug)]
    pub(in crate::transport) enum Qlog {}

    impl Qlog {
        /// Fails.
        pub(in crate::transport) fn open(_: &Path) -> Result<Self, ConfigError> {
            Err(ConfigError::QlogNotBuilt)
        }

        pub(in crate::transport) fn attach(&self, _: &mut TransportConfig, _: Side) {
            match *self {}
        }
    }
}

pub(super) use self::folder::Qlog;
