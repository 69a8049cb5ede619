//! The files of the sender.

use std::{
    collections::HashMap,
    fs::{self, File, Metadata},
    io::{self, Read, Seek, SeekFrom},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::SystemTime,
};

use blake3::Hasher;
use tokio::sync::mpsc;
use walkdir::WalkDir;

use super::{
    error::{TransferError, describe},
    frame::{BLOCK_LEN, Frame, FrameKind, HASH_LEN},
    message::{Accept, Beginning, Check, Checked, Entry, Kind, MAX_ENTRIES, Offer, Reason, Wanted},
    path::{NameRules, RelativePath},
    progress::Progress,
};

/// Name of the data of stdin at the receiver.
const STDIN_NAME: &str = "stdin";

/// Files and folders that are offered.
#[derive(Debug)]
pub(crate) struct Source {
    offer: Offer,
    /// Place of each entry.
    origins: Vec<Origin>,
    /// Bytes of stdin were read, which cannot be read again.
    is_stdin_consumed: AtomicBool,
}

#[derive(Debug)]
enum Origin {
    Disk(PathBuf, Stamp),
    Stdin,
}

/// State of a file by which a change is noticed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Stamp {
    len: u64,
    modified: Option<SystemTime>,
    /// Device and inode, where there are any: another file may have taken the name.
    identity: Option<(u64, u64)>,
}

impl Stamp {
    fn of(metadata: &Metadata) -> Self {
        #[cfg(unix)]
        let identity = {
            use std::os::unix::fs::MetadataExt;
            Some((metadata.dev(), metadata.ino()))
        };
        #[cfg(not(unix))]
        let identity = None;
        Self { len: metadata.len(), modified: metadata.modified().ok(), identity }
    }

    /// Opens the file at this path, which must be the one that was offered.
    fn open(&self, path: &Path) -> io::Result<File> {
        // To open a pipe would wait for its writer.
        if !fs::metadata(path)?.is_file() {
            return Err(io::Error::other("it is no longer a file"));
        }
        let file = File::open(path)?;
        self.check(&file, "it has changed since it was offered")?;
        Ok(file)
    }

    fn check(&self, file: &File, otherwise: &'static str) -> io::Result<()> {
        if Self::of(&file.metadata()?) == *self { Ok(()) } else { Err(io::Error::other(otherwise)) }
    }
}

/// Source, and what was left out of it.
#[derive(Debug)]
pub(crate) struct Offered {
    pub(crate) source: Source,
    /// Lines for people, one for each file that is not sent.
    pub(crate) skipped: Vec<String>,
}

/// Comparisons with a receiver, in which the sender has read beginnings of files.
pub(crate) type Hashers = HashMap<usize, (u64, Hasher)>;

impl Source {
    /// Looks for all files below these paths. `-` is stdin.
    pub(crate) fn find(paths: &[PathBuf]) -> Result<Offered, String> {
        let mut source = Self {
            offer: Offer { entries: Vec::new() },
            origins: Vec::new(),
            is_stdin_consumed: false.into(),
        };
        let mut skipped = Vec::new();
        for path in paths {
            if path == Path::new("-") {
                let name = RelativePath::new([STDIN_NAME.to_owned()]);
                source.add(Entry { path: name, kind: Kind::Stream }, Origin::Stdin)?;
                continue;
            }
            let failed = |error: &io::Error| format!("cannot read {}: {}", path.display(), describe(error));
            let metadata = fs::metadata(path).map_err(|error| failed(&error))?;
            let root = RelativePath::new([name_of(path)?]);
            root.check(NameRules::Unix)
                .map_err(|error| format!("cannot send {}: {error}", path.display()))?;
            if metadata.is_dir() {
                source.add_folder(path, &root, &mut skipped)?;
            } else if metadata.is_file() {
                File::open(path).map_err(|error| failed(&error))?;
                let origin = Origin::Disk(path.clone(), Stamp::of(&metadata));
                source.add(Entry { path: root, kind: file_kind(&metadata) }, origin)?;
            } else {
                let path = path.display();
                return Err(format!("{path} is neither a file nor a folder; - sends what a pipe has"));
            }
        }
        source.offer.check(NameRules::Unix).map_err(|error| match error {
            TransferError::Path(error) => format!("cannot send these together: {error}"),
            error => error.to_string(),
        })?;
        Frame::message(FrameKind::Offer, &source.offer)
            .map_err(|_| "the names of these files are too long to be offered at once".to_owned())?;
        Ok(Offered { source, skipped })
    }

    fn add(&mut self, entry: Entry, origin: Origin) -> Result<(), String> {
        if self.offer.entries.len() == MAX_ENTRIES {
            return Err(format!("more than {MAX_ENTRIES} files and folders cannot be sent at once"));
        }
        self.offer.entries.push(entry);
        self.origins.push(origin);
        Ok(())
    }

    fn add_folder(
        &mut self,
        folder: &Path,
        root: &RelativePath,
        skipped: &mut Vec<String>,
    ) -> Result<(), String> {
        for found in WalkDir::new(folder).sort_by_file_name() {
            let found = match found {
                Ok(found) => found,
                Err(error) => {
                    skipped.push(error.to_string());
                    continue;
                }
            };
            // A name may have characters that would harm a terminal.
            let shown = format!("{:?}", found.path());
            let below = found.path().strip_prefix(folder).unwrap_or(Path::new(""));
            let Some(path) = below_root(root, below) else {
                skipped.push(format!("{shown}: its name is not UTF-8"));
                continue;
            };
            if let Err(error) = path.check(NameRules::Unix) {
                skipped.push(format!("{shown}: {error}"));
                continue;
            }
            let metadata = match found.metadata() {
                Ok(metadata) => metadata,
                Err(error) => {
                    skipped.push(error.to_string());
                    continue;
                }
            };
            let kind = if metadata.is_dir() || found.depth() == 0 {
                Kind::Folder
            } else if metadata.is_file() && is_partial(&path) {
                skipped.push(format!("{shown}: it is a partial file"));
                continue;
            } else if metadata.is_file() {
                file_kind(&metadata)
            } else {
                skipped.push(format!("{shown}: it is a link or a device"));
                continue;
            };
            let origin = Origin::Disk(found.path().to_owned(), Stamp::of(&metadata));
            self.add(Entry { path, kind }, origin)?;
        }
        Ok(())
    }

    pub(super) fn offer(&self) -> &Offer {
        &self.offer
    }

    /// Entries that are offered.
    pub(crate) fn entries(&self) -> &[Entry] {
        &self.offer.entries
    }

    /// Returns the size of all files, if it is known.
    pub(crate) fn size(&self) -> Option<u64> {
        self.offer.size()
    }

    /// Compares beginnings of files with those that a receiver has. A file that cannot be read is
    /// not equal.
    pub(super) fn compare(&self, check: &Check) -> (Checked, Hashers) {
        let mut hashers = HashMap::new();
        let mut same = Vec::new();
        for (number, Beginning { entry, length, hash }) in check.files.iter().enumerate() {
            let Some(Origin::Disk(path, stamp)) = self.origins.get(*entry) else { continue };
            let hasher = stamp.open(path).and_then(|mut file| hash_beginning(&mut file, *length));
            let Ok(hasher) = hasher else { continue };
            if blake3::Hash::from_hex(hash).is_ok_and(|hash| hash == hasher.finalize()) {
                same.push(number);
                if self.offer.entry(*entry).is_ok_and(|entry| entry.kind.size() != Some(*length)) {
                    hashers.insert(*entry, (*length, hasher));
                }
            }
        }
        (Checked { same }, hashers)
    }

    /// Makes the frames of the files that the receiver wants, until nobody takes them any more.
    pub(super) fn produce(
        &self,
        accept: &Accept,
        mut hashers: Hashers,
        frames: &mpsc::Sender<Frame>,
        progress: &Progress,
    ) -> Result<(), TransferError> {
        for wanted in &accept.files {
            let hasher = hashers.remove(&wanted.entry);
            let failed = |cause: &io::Error| {
                let reason = Reason { reason: describe(cause) };
                Frame::message(FrameKind::Failed, &reason)
            };
            let last = match self.open(*wanted, hasher) {
                Ok(mut reading) => loop {
                    match reading.block() {
                        Ok(Some(block)) => {
                            let len = block.body.len() - HASH_LEN;
                            if frames.blocking_send(block).is_err() {
                                return Ok(());
                            }
                            progress.add_moved(len);
                        }
                        Ok(None) => break reading.end().or_else(|error| failed(&error))?,
                        Err(error) => break failed(&error)?,
                    }
                },
                Err(error) => failed(&error)?,
            };
            match last.kind {
                FrameKind::End => progress.add_file(),
                _ => progress.add_failed(),
            }
            if frames.blocking_send(last).is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// Returns true if the receiver wants what a pipe has. Only one receiver gets it.
    pub(super) fn take_pipe(&self, accept: &Accept) -> Result<bool, TransferError> {
        let is_stdin = |wanted: &Wanted| matches!(self.origins.get(wanted.entry), Some(Origin::Stdin));
        let wants_pipe = accept.files.iter().any(is_stdin);
        if wants_pipe && self.is_stdin_consumed.swap(true, Ordering::Relaxed) {
            return Err(TransferError::Consumed);
        }
        Ok(wants_pipe)
    }

    fn open(&self, wanted: Wanted, hasher: Option<(u64, Hasher)>) -> io::Result<Reading> {
        let Wanted { entry, from } = wanted;
        let size = self.offer.entries.get(entry).and_then(|entry| entry.kind.size());
        match (self.origins.get(entry), size) {
            (Some(Origin::Disk(path, stamp)), Some(size)) => {
                let mut file = stamp.open(path)?;
                let hasher = match hasher {
                    Some((length, hasher)) if length == from => hasher,
                    _ => hash_beginning(&mut file, from)?,
                };
                file.seek(SeekFrom::Start(from))?;
                Ok(Reading {
                    input: Input::File(file, *stamp),
                    left: Some(size.saturating_sub(from)),
                    hasher,
                })
            }
            _ => Ok(Reading { input: Input::Pipe(io::stdin()), left: None, hasher: Hasher::new() }),
        }
    }
}

/// A file that is being sent.
struct Reading {
    input: Input,
    /// Bytes that are left, if that is known.
    left: Option<u64>,
    hasher: Hasher,
}

enum Input {
    File(File, Stamp),
    Pipe(io::Stdin),
}

impl Read for Input {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Self::File(file, _) => file.read(buffer),
            Self::Pipe(pipe) => pipe.read(buffer),
        }
    }
}

impl Reading {
    /// Returns the next block. `None` at the end.
    fn block(&mut self) -> io::Result<Option<Frame>> {
        let len =
            self.left.map_or(BLOCK_LEN, |left| usize::try_from(left).unwrap_or(usize::MAX).min(BLOCK_LEN));
        if len == 0 {
            return Ok(None);
        }
        let mut body = vec![0; HASH_LEN + len];
        let (hash, data) = body.split_at_mut(HASH_LEN);
        // A pipe has what it has; a file has all that was offered.
        let len = if self.left.is_some() {
            read_full(&mut self.input, data)?
        } else {
            read_some(&mut self.input, data)?
        };
        let data = data.get(..len).unwrap_or_default();
        match &mut self.left {
            Some(left) if len == 0 => {
                return Err(io::Error::other(format!("it was cut by {left} bytes while it was sent")));
            }
            Some(left) => *left = left.saturating_sub(len as u64),
            None if len == 0 => return Ok(None),
            None => {}
        }
        self.hasher.update(data);
        hash.copy_from_slice(self.hasher.finalize().as_bytes());
        body.truncate(HASH_LEN + len);
        Ok(Some(Frame { kind: FrameKind::Data, body }))
    }

    /// Returns the last frame of a file that is still as it was offered.
    fn end(&self) -> io::Result<Frame> {
        if let Input::File(file, stamp) = &self.input {
            stamp.check(file, "it changed while it was sent")?;
        }
        Ok(Frame { kind: FrameKind::End, body: self.hasher.finalize().as_bytes().to_vec() })
    }
}

/// Reads until the buffer is full or the input ends.
fn read_full(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    let mut filled = 0;
    while let Some(rest) = buffer.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        match read_some(input, rest)? {
            0 => break,
            len => filled += len,
        }
    }
    Ok(filled)
}

fn read_some(input: &mut impl Read, buffer: &mut [u8]) -> io::Result<usize> {
    loop {
        match input.read(buffer) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            result => return result,
        }
    }
}

/// Hashes the first bytes of a file. A file that is shorter is an error.
pub(super) fn hash_beginning(file: &mut impl Read, length: u64) -> io::Result<Hasher> {
    let mut hasher = Hasher::new();
    let mut left = length;
    let mut buffer = vec![0; 128 << 10];
    while left > 0 {
        let part = usize::try_from(left).unwrap_or(usize::MAX).min(buffer.len());
        let part = buffer.get_mut(..part).unwrap_or_default();
        file.read_exact(part)?;
        hasher.update(part);
        left -= part.len() as u64;
    }
    Ok(hasher)
}

fn file_kind(metadata: &Metadata) -> Kind {
    #[cfg(unix)]
    let executable = std::os::unix::fs::PermissionsExt::mode(&metadata.permissions()) & 0o100 != 0;
    #[cfg(not(unix))]
    let executable = false;
    Kind::File { size: metadata.len(), executable }
}

/// Name of a file or folder at the receiver.
fn name_of(path: &Path) -> Result<String, String> {
    // `.` and `..` have a name elsewhere.
    let name = match path.file_name() {
        Some(name) => Some(name.to_owned()),
        None => fs::canonicalize(path).ok().and_then(|path| path.file_name().map(ToOwned::to_owned)),
    };
    let name = name.ok_or_else(|| format!("{} has no name to send it under", path.display()))?;
    name.into_string().map_err(|_| format!("the name of {} is not UTF-8", path.display()))
}

fn below_root(root: &RelativePath, below: &Path) -> Option<RelativePath> {
    let names = below.iter().map(|name| name.to_str().map(ToOwned::to_owned));
    let names: Option<Vec<_>> = std::iter::once(Some(root.name().to_owned())).chain(names).collect();
    names.map(RelativePath::new)
}

fn is_partial(path: &RelativePath) -> bool {
    path.name().to_ascii_lowercase().ends_with(super::PARTIAL_SUFFIX)
}
