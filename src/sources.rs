//! Sources of coordinators for swarms without a DHT: a list and a file.
//!
//! A source names the same coordinators for each peer that is looked up. The coordinators nearest
//! to the peer by Kademlia's distance are asked first, since peers register with those.
//!
//! ```
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! use libp2p_punch::sources::CoordinatorFile;
//!
//! let keypair = libp2p::identity::Keypair::generate_ed25519();
//! let (transport, mut punch) = libp2p_punch::new(&keypair, libp2p_punch::Config::default())?;
//! # let path = std::env::temp_dir().join(format!("coordinators-{}", std::process::id()));
//! # std::fs::write(&path, "# none\n")?;
//! let source = CoordinatorFile::open(punch.coordinator_lookup(), &path).await?;
//! tokio::spawn(source.run());
//! # std::fs::remove_file(path)?;
//! # Ok(()) }
//! ```

use std::{
    collections::BTreeMap,
    fs::File,
    io::{self, Read},
    path::{Path, PathBuf},
};

use futures::StreamExt;
use libp2p_core::{Multiaddr, multiaddr};
use libp2p_identity::PeerId;

pub use crate::behaviour::CoordinatorLookup;
use crate::{
    behaviour::{MAX_SPARE, sort_by_distance},
    config::{ConfigError, peer_of},
};

/// Largest file of coordinators, in bytes: room for about 10,000 addresses.
const MAX_FILE: u64 = 1 << 20;

/// Reason for which a source cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum SourceError {
    /// A file contains an address that does not end in `/p2p/PEER_ID`.
    #[error("{}: {cause}", path.display())]
    Address {
        /// The file.
        path: PathBuf,
        /// The address found.
        cause: ConfigError,
    },
    /// A line of a file is no multiaddress.
    #[error("line {line} of {}: '{value}' is no multiaddress: {cause}", path.display())]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The line, from 1.
        line: usize,
        /// The text found.
        value: String,
        /// The rule that it breaks.
        cause: multiaddr::Error,
    },
    /// A file cannot be read.
    #[error("cannot read {}: {cause}", path.display())]
    Unreadable {
        /// The file.
        path: PathBuf,
        /// The cause, by the operating system.
        cause: io::Error,
    },
    /// A file is larger than 1 MiB.
    #[error("{} is too large: a file of coordinators has at most {MAX_FILE} bytes", path.display())]
    TooLarge {
        /// The file.
        path: PathBuf,
    },
}

/// Addresses of coordinators, by coordinator.
type Coordinators = BTreeMap<PeerId, Vec<Multiaddr>>;

/// A fixed list of coordinators.
#[derive(Debug)]
pub struct CoordinatorList {
    lookup: CoordinatorLookup,
    coordinators: Coordinators,
}

impl CoordinatorList {
    /// Creates a source that names these coordinators. Each address ends in `/p2p/PEER_ID`; a
    /// `/dnsaddr` address is resolved by the transport of the swarm, if that resolves names.
    ///
    /// # Errors
    ///
    /// [`ConfigError::CoordinatorWithoutPeerId`].
    pub fn new(
        lookup: CoordinatorLookup,
        addresses: impl IntoIterator<Item = Multiaddr>,
    ) -> Result<Self, ConfigError> {
        Ok(Self { lookup, coordinators: by_peer(addresses)? })
    }

    /// Answers lookups until the behaviour is gone.
    pub async fn run(mut self) {
        while let Some(peer) = self.lookup.next().await {
            answer(&mut self.lookup, peer, &self.coordinators);
        }
    }
}

/// A file of coordinators: one address a line. Empty lines and lines that begin with `#` do not
/// count. The file is read again for each lookup, so that changes need no restart.
#[derive(Debug)]
pub struct CoordinatorFile {
    lookup: CoordinatorLookup,
    path: PathBuf,
    /// As the file was when it could be read last.
    coordinators: Coordinators,
}

impl CoordinatorFile {
    /// Reads the file for the first time.
    ///
    /// # Errors
    ///
    /// The file cannot be read, is too large, or contains a line that is no address of a
    /// coordinator.
    pub async fn open(lookup: CoordinatorLookup, path: impl AsRef<Path>) -> Result<Self, SourceError> {
        let path = path.as_ref().to_owned();
        let coordinators = read(path.clone()).await?;
        Ok(Self { lookup, path, coordinators })
    }

    /// Answers lookups until the behaviour is gone. If the file cannot be used any longer, a
    /// warning says so, and the coordinators that it had last are named.
    pub async fn run(mut self) {
        while let Some(peer) = self.lookup.next().await {
            match read(self.path.clone()).await {
                Ok(coordinators) => self.coordinators = coordinators,
                Err(error) => tracing::warn!(%error, "the coordinators of the last reading stay in use"),
            }
            answer(&mut self.lookup, peer, &self.coordinators);
        }
    }
}

fn answer(lookup: &mut CoordinatorLookup, peer: PeerId, coordinators: &Coordinators) {
    let mut nearest: Vec<_> = coordinators.iter().collect();
    sort_by_distance(&peer, &mut nearest, |(coordinator, _)| **coordinator);
    for (coordinator, addresses) in nearest.into_iter().take(MAX_SPARE) {
        if !lookup.found(peer, *coordinator, addresses.clone()) {
            return;
        }
    }
}

fn by_peer(addresses: impl IntoIterator<Item = Multiaddr>) -> Result<Coordinators, ConfigError> {
    let mut coordinators = Coordinators::new();
    for value in addresses {
        let Some(peer) = peer_of(&value) else { return Err(ConfigError::CoordinatorWithoutPeerId { value }) };
        coordinators.entry(peer).or_default().push(value);
    }
    Ok(coordinators)
}

/// Reads a file in a thread of its own.
async fn read(path: PathBuf) -> Result<Coordinators, SourceError> {
    let unreadable = |path: PathBuf, cause| SourceError::Unreadable { path, cause };
    let reading = {
        let path = path.clone();
        move || {
            let file = File::open(&path).map_err(|cause| unreadable(path.clone(), cause))?;
            let mut text = String::new();
            // Some files have no size before they are read.
            let read = file.take(MAX_FILE + 1).read_to_string(&mut text);
            match read {
                Ok(read) if read as u64 > MAX_FILE => Err(SourceError::TooLarge { path }),
                Ok(_) => Ok(text),
                Err(cause) => Err(unreadable(path, cause)),
            }
        }
    };
    match tokio::task::spawn_blocking(reading).await {
        Ok(text) => parse(&path, &text?),
        Err(error) => Err(unreadable(path, io::Error::other(error))),
    }
}

fn parse(path: &Path, text: &str) -> Result<Coordinators, SourceError> {
    let lines = (1..).zip(text.lines().map(str::trim));
    let lines = lines.filter(|(_, text)| !text.is_empty() && !text.starts_with('#'));
    let address = |(line, text): (usize, &str)| {
        text.parse::<Multiaddr>().map_err(|cause| SourceError::Malformed {
            path: path.to_owned(),
            line,
            value: text.to_owned(),
            cause,
        })
    };
    by_peer(lines.map(address).collect::<Result<Vec<_>, _>>()?)
        .map_err(|cause| SourceError::Address { path: path.to_owned(), cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    const ADDRESS: &str =
        "/ip4/192.0.2.1/udp/4001/quic-v1/p2p/12D3KooWDpJ7As7BWAwRMfu1VU2WCqNjvq387JEYKDBj4kx6nXTN";

    #[test]
    fn a_file_has_an_address_a_line_and_comments() {
        let text = format!("# ours\n\n  {ADDRESS}\r\n{}\n", ADDRESS.replace("192.0.2.1", "192.0.2.2"));
        let coordinators = parse(Path::new("list"), &text).unwrap();
        let addresses: Vec<_> = coordinators.values().map(Vec::len).collect();
        assert_eq!(addresses, [2], "two addresses of one coordinator");
    }

    #[test]
    fn an_error_names_the_line_and_the_cause() {
        let error = |text: &str| parse(Path::new("list"), text).unwrap_err().to_string();
        let malformed = error(&format!("{ADDRESS}\nnonsense"));
        assert!(malformed.starts_with("line 2 of list: 'nonsense' is no multiaddress: "), "{malformed}");
        let expected =
            "list: coordinators contains /ip4/192.0.2.1/udp/1/quic-v1, which must end in /p2p/PEER_ID";
        assert_eq!(error("/ip4/192.0.2.1/udp/1/quic-v1"), expected);
    }

    #[tokio::test]
    async fn a_file_that_is_missing_or_too_large_is_refused() {
        let path = std::env::temp_dir().join(format!("punch-sources-{}", std::process::id()));
        assert!(matches!(read(path.clone()).await, Err(SourceError::Unreadable { .. })));
        std::fs::write(&path, vec![b'\n'; MAX_FILE as usize + 1]).unwrap();
        let read = read(path.clone()).await;
        std::fs::remove_file(path).unwrap();
        assert!(matches!(read, Err(SourceError::TooLarge { .. })), "{read:?}");
    }
}
