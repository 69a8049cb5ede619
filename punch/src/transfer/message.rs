//! Messages of the protocol, and the checks of what a peer says.

use std::collections::HashSet;

use serde::{Deserialize, Serialize};

use super::{
    destination::PARTIAL_SUFFIX,
    error::TransferError,
    path::{NameRules, PathError, RelativePath},
};

/// Largest number of files and folders in an offer.
pub(crate) const MAX_ENTRIES: usize = 100_000;
/// Files whose beginnings a receiver may have compared, rather than their whole.
pub(crate) const MAX_PARTIAL: usize = 16;

/// First message of the receiver.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Request {
    /// The secret of the ticket.
    pub(crate) secret: String,
}

/// Answer of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Offer {
    pub(crate) entries: Vec<Entry>,
}

/// A file or a folder that is offered.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    pub(crate) path: RelativePath,
    #[serde(flatten)]
    pub(crate) kind: Kind,
}

/// Kind of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub(crate) enum Kind {
    File {
        size: u64,
        executable: bool,
    },
    /// Data whose length is known at their end.
    Stream,
    Folder,
}

impl Kind {
    /// Returns the size that is known before the transfer.
    pub(crate) fn size(&self) -> Option<u64> {
        match self {
            Self::File { size, .. } => Some(*size),
            Self::Folder => Some(0),
            Self::Stream => None,
        }
    }
}

/// The beginning of a file that the receiver has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// Index in the offer.
    pub(crate) entry: usize,
    pub(crate) length: u64,
    /// BLAKE3 hash of these bytes, in hexadecimal digits.
    pub(crate) hash: String,
}

/// Question of the receiver: which of these are equal at the sender?
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Check {
    pub(crate) files: Vec<Beginning>,
}

/// Answer of the sender.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Checked {
    /// Indices of the files of the question that are equal.
    pub(crate) same: Vec<usize>,
}

/// Order of the receiver, which begins the transfer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Accept {
    pub(crate) files: Vec<Wanted>,
}

/// A file to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Wanted {
    /// Index in the offer. Each is higher than the one before.
    pub(crate) entry: usize,
    /// Number of bytes that the receiver has already.
    pub(crate) from: u64,
}

/// Reason for which a side ends the transfer, or one file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Reason {
    pub(crate) reason: String,
}

impl Reason {
    /// Longest reason of a peer that is shown.
    const MAX_LEN: usize = 300;

    /// Returns the reason without anything that would harm a terminal.
    pub(crate) fn shown(&self) -> String {
        self.reason.chars().filter(|char| !char.is_control()).take(Self::MAX_LEN).collect()
    }
}

impl Offer {
    /// Checks an offer of a peer: each path leads to a place of its own below the folder of the
    /// receiver.
    pub(crate) fn check(&self, rules: NameRules) -> Result<(), TransferError> {
        if self.entries.len() > MAX_ENTRIES {
            return Err(TransferError::TooManyEntries { count: self.entries.len() });
        }
        let mut all = HashSet::new();
        let mut files = HashSet::new();
        for Entry { path, kind } in &self.entries {
            path.check(rules)?;
            if path.name().to_ascii_lowercase().ends_with(PARTIAL_SUFFIX) {
                return Err(PathError::Partial { name: path.name().to_owned() }.into());
            }
            // Two names may be one on systems that do not tell the cases of letters apart.
            let key = if cfg!(any(windows, target_os = "macos")) { lower(path) } else { path.clone() };
            if !matches!(kind, Kind::Folder) {
                files.insert(key.clone());
            }
            if !all.insert(key) {
                return Err(PathError::Twice { path: path.to_string() }.into());
            }
        }
        let files: HashSet<&[String]> = files.iter().map(RelativePath::names).collect();
        let mut folders = HashSet::new();
        for path in &all {
            // The folders of a folder that was seen were seen, too.
            let mut names = path.names();
            while let Some((_, folder)) = names.split_last()
                && !folder.is_empty()
                && folders.insert(folder)
            {
                if files.contains(folder) {
                    let path = RelativePath::new(folder.iter().cloned()).to_string();
                    return Err(PathError::FileAndFolder { path }.into());
                }
                names = folder;
            }
        }
        Ok(())
    }

    /// Returns the size of all files, if it is known.
    pub(crate) fn size(&self) -> Option<u64> {
        let sizes = self.entries.iter().map(|entry| entry.kind.size().map(u128::from));
        // Sizes of a hostile sender may exceed any number.
        sizes.sum::<Option<u128>>().map(|size| u64::try_from(size).unwrap_or(u64::MAX))
    }

    /// Returns an entry by its index in the words of a peer.
    pub(crate) fn entry(&self, index: usize) -> Result<&Entry, TransferError> {
        self.entries.get(index).ok_or_else(|| {
            TransferError::Protocol(format!("entry {index} of an offer of {}", self.entries.len()))
        })
    }
}

fn lower(path: &RelativePath) -> RelativePath {
    RelativePath::new(path.to_string().to_lowercase().split('/').map(str::to_owned))
}

impl Accept {
    /// Checks the order of a receiver against the offer.
    pub(crate) fn check(&self, offer: &Offer) -> Result<(), TransferError> {
        let mut last = None;
        for Wanted { entry, from } in &self.files {
            let kind = offer.entry(*entry)?.kind;
            let is_in_order = last.is_none_or(|last| last < *entry);
            // A pipe is sent from its beginning.
            if !is_in_order || matches!(kind, Kind::Folder) || *from > kind.size().unwrap_or_default() {
                return Err(TransferError::Protocol(format!(
                    "entry {entry} cannot be sent from byte {from}"
                )));
            }
            last = Some(*entry);
        }
        Ok(())
    }
}

impl Check {
    /// Checks the question of a receiver against the offer: it costs the sender reads of its disk.
    /// A file may come as a beginning and as a whole.
    pub(crate) fn check(&self, offer: &Offer) -> Result<(), TransferError> {
        let mut last = None;
        let mut partial = 0;
        for Beginning { entry, length, .. } in &self.files {
            let place = Some((entry, length));
            let Kind::File { size, .. } = offer.entry(*entry)?.kind else {
                return Err(TransferError::Protocol(format!("entry {entry} is not a file")));
            };
            partial += usize::from(*length < size);
            if last >= place || *length > size || partial > MAX_PARTIAL {
                return Err(TransferError::Protocol(format!("entry {entry} cannot be compared")));
            }
            last = place;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offer(entries: &[(&str, Kind)]) -> Offer {
        let entry = |(path, kind): &(&str, Kind)| Entry {
            path: RelativePath::new(path.split('/').map(str::to_owned)),
            kind: *kind,
        };
        Offer { entries: entries.iter().map(entry).collect() }
    }

    const FILE: Kind = Kind::File { size: 7, executable: false };

    fn error(entries: &[(&str, Kind)]) -> String {
        offer(entries).check(NameRules::Unix).unwrap_err().to_string()
    }

    #[test]
    fn an_offer_of_files_and_folders_is_accepted() {
        let entries = [("a", Kind::Folder), ("a/b", FILE), ("a/c", Kind::Folder), ("d", Kind::Stream)];
        assert!(offer(&entries).check(NameRules::Unix).is_ok());
    }

    #[test]
    fn paths_that_meet_are_refused() {
        assert!(error(&[("a", FILE), ("a", Kind::Folder)]).contains("twice"));
        assert!(error(&[("a", FILE), ("a/b/c", FILE)]).contains("as a file, and as a folder"));
        assert!(error(&[(&format!("a{PARTIAL_SUFFIX}"), FILE)]).contains("partial"));
        let many: Vec<_> = (0..=MAX_ENTRIES).map(|number| number.to_string()).collect();
        let many: Vec<_> = many.iter().map(|name| (name.as_str(), Kind::Folder)).collect();
        assert!(error(&many).contains("at most 100000"));
    }

    #[test]
    fn orders_out_of_order_or_out_of_bounds_are_refused() {
        let offer = offer(&[("a", FILE), ("b", Kind::Folder), ("c", FILE)]);
        let accept = |files: &[(usize, u64)]| {
            let files = files.iter().map(|(entry, from)| Wanted { entry: *entry, from: *from }).collect();
            Accept { files }.check(&offer).is_ok()
        };
        assert!(accept(&[(0, 0), (2, 7)]));
        for refused in [&[(2, 0), (0, 0)][..], &[(0, 0), (0, 0)], &[(0, 8)], &[(1, 0)], &[(3, 0)]] {
            assert!(!accept(refused), "{refused:?}");
        }
        let check = |files: &[(usize, u64)]| {
            let beginning = |(entry, length): &(usize, u64)| Beginning {
                entry: *entry,
                length: *length,
                hash: String::new(),
            };
            Check { files: files.iter().map(beginning).collect() }.check(&offer).is_ok()
        };
        assert!(check(&[(0, 7)]) && check(&[(0, 3), (0, 7), (2, 1)]));
        for refused in [&[(0, 8)][..], &[(1, 0)], &[(9, 0)], &[(0, 7), (0, 7)], &[(2, 1), (0, 7)]] {
            assert!(!check(refused), "{refused:?}");
        }
    }

    #[test]
    fn a_reason_of_a_peer_cannot_harm_a_terminal() {
        let reason = Reason { reason: format!("\x1b[2Jgone\r\n{}", "x".repeat(1_000)) };
        assert!(reason.shown().starts_with("[2Jgonexxx") && reason.shown().len() == 300);
    }
}
