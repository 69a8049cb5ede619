//! The folder, or the pipe, into which the receiver writes.

use std::{
    collections::{BTreeMap, HashMap, HashSet, VecDeque},
    fs::File,
    io::{self, Seek, SeekFrom, Write},
    path::Path,
    thread::{self, JoinHandle},
};

use blake3::Hasher;
use cap_std::{
    ambient_authority,
    fs::{Dir, Metadata, OpenOptions},
};
use fs4::{FileExt, TryLockError};

use super::{
    error::TransferError,
    frame::{Frame, FrameKind, HASH_LEN},
    message::{Accept, Beginning, Checked, Entry, Kind, MAX_PARTIAL, Offer, Reason, Wanted},
    path::{MAX_NAME_LEN, RelativePath},
    progress::Progress,
    source::hash_beginning,
};

/// End of the name of a file that is not complete.
pub(crate) const PARTIAL_SUFFIX: &str = ".punch-part";

/// Bytes that are written before the disk is asked to take them.
const WRITE_BACK_LEN: u64 = 32 << 20;

/// Place of the files. All access to the disk is relative to its folder, and no link leads out.
#[derive(Debug)]
pub(crate) enum Destination {
    Folder(Dir),
    /// Bytes that went to stdout, which no other attempt may repeat.
    Stdout {
        length: u64,
        hasher: Box<Hasher>,
    },
}

/// A file of the receiver that would be replaced.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    pub(crate) path: RelativePath,
}

/// Answer of the user to a [`Conflict`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Answer {
    Overwrite,
    Skip,
}

/// Files that the receiver has, or has the beginning of.
#[derive(Debug, Default)]
pub(crate) struct Found {
    /// Files that are in the way unless they are equal.
    existing: HashSet<usize>,
    /// Entries that have a partial file.
    begun: HashSet<usize>,
    /// Files and beginnings that were hashed, by their entry and their length. An entry may have
    /// one of each.
    hashed: BTreeMap<(usize, u64), Hashed>,
    /// Entries whose name is that of another kind of thing here.
    clashes: BTreeMap<usize, io::Error>,
}

#[derive(Debug)]
struct Hashed {
    hasher: Hasher,
    /// The bytes are those of a partial file, and not those of a complete one.
    is_partial: bool,
}

/// Bytes of an entry that need not be sent.
enum Kept {
    /// The whole file is here.
    Whole(u64),
    /// The partial file has its beginning.
    Beginning(u64, Box<Hasher>),
}

impl Found {
    /// Beginnings that the sender should compare, in the order of the offer.
    pub(crate) fn beginnings(&self) -> Vec<Beginning> {
        let beginning = |(&(entry, length), hashed): (&(usize, u64), &Hashed)| Beginning {
            entry,
            length,
            hash: hashed.hasher.finalize().to_hex().to_string(),
        };
        self.hashed.iter().map(beginning).collect()
    }

    /// Notes which beginnings are equal at the sender, and returns the files that a transfer would
    /// replace.
    pub(crate) fn conflicts(&mut self, offer: &Offer, checked: &Checked) -> Vec<Conflict> {
        let same: HashSet<usize> = checked.same.iter().copied().collect();
        let mut number = 0..;
        self.hashed.retain(|_, _| number.next().is_some_and(|number| same.contains(&number)));
        let equal = self.hashed.iter().filter(|(_, hashed)| !hashed.is_partial);
        for ((entry, _), _) in equal {
            self.existing.remove(entry);
        }
        let mut existing: Vec<_> = self.existing.iter().copied().collect();
        existing.sort_unstable();
        let paths = existing.into_iter().filter_map(|entry| offer.entries.get(entry));
        paths.map(|entry| Conflict { path: entry.path.clone() }).collect()
    }

    /// Looks for an entry of the offer, whole or in part.
    fn find(&mut self, folder: &Dir, index: usize, entry: &Entry) -> Result<(), TransferError> {
        let Entry { path, kind } = entry;
        let existing = match folder.symlink_metadata(path.to_path_buf()) {
            Ok(metadata) => Some(metadata),
            Err(error) if is_absent(&error) => None,
            Err(error) if error.kind() == io::ErrorKind::NotADirectory => {
                self.clashes.insert(index, io::Error::other("a file is here instead of its folder"));
                return Ok(());
            }
            Err(cause) => return Err(TransferError::Write { path: path.clone(), cause }),
        };
        let is_folder = *kind == Kind::Folder;
        let clash = match &existing {
            Some(existing) if is_folder && existing.is_file() => {
                "it is a file here, and a folder at the sender"
            }
            Some(existing) if !is_folder && existing.is_dir() => "it is a folder here",
            _ if is_folder => return Ok(()),
            _ => {
                self.find_file(folder, index, entry, existing.as_ref());
                return Ok(());
            }
        };
        self.clashes.insert(index, io::Error::other(clash));
        Ok(())
    }

    /// Hashes what is here of a file.
    fn find_file(&mut self, folder: &Dir, index: usize, entry: &Entry, existing: Option<&Metadata>) {
        let Entry { path, kind } = entry;
        if existing.is_some() {
            self.existing.insert(index);
        }
        let Kind::File { size, .. } = *kind else { return };
        let is_whole = existing.is_some_and(|existing| existing.is_file() && existing.len() == size);
        if is_whole {
            self.hash(folder, (index, size), path, false);
        }
        let begun = folder.metadata(partial_path(path).to_path_buf()).ok();
        let Some(begun) = begun.filter(Metadata::is_file).map(|begun| begun.len()) else { return };
        self.begun.insert(index);
        // A partial file that lacks nothing but its name gives way to a file that may be equal.
        let is_useful = (1..=size).contains(&begun) && !(is_whole && begun == size);
        if is_useful && self.hashed.values().filter(|hashed| hashed.is_partial).count() < MAX_PARTIAL {
            self.hash(folder, (index, begun), &partial_path(path), true);
        }
    }

    fn hash(&mut self, folder: &Dir, place: (usize, u64), path: &RelativePath, is_partial: bool) {
        let (_, length) = place;
        let hasher = folder.open(path.to_path_buf()).and_then(|mut file| hash_beginning(&mut file, length));
        // A file that cannot be read is received again.
        if let Ok(hasher) = hasher {
            self.hashed.insert(place, Hashed { hasher, is_partial });
        }
    }

    /// Returns what is equal at the sender, once the sender has compared.
    fn kept(&self, entry: usize) -> Option<Kept> {
        let all = self.hashed.range((entry, 0)..=(entry, u64::MAX));
        let (&(_, length), hashed) = all.min_by_key(|(_, hashed)| hashed.is_partial)?;
        Some(if hashed.is_partial {
            Kept::Beginning(length, Box::new(hashed.hasher.clone()))
        } else {
            Kept::Whole(length)
        })
    }
}

impl Destination {
    /// Opens a folder, which is created if it does not exist.
    pub(crate) fn folder(path: &Path) -> io::Result<Self> {
        std::fs::create_dir_all(path)?;
        Ok(Self::Folder(Dir::open_ambient_dir(path, ambient_authority())?))
    }

    pub(crate) fn stdout() -> Self {
        Self::Stdout { length: 0, hasher: Box::default() }
    }

    /// Looks for files of the offer that exist, whole or in part.
    pub(crate) fn find(&self, offer: &Offer) -> Result<Found, TransferError> {
        let mut found = Found::default();
        let folder = match self {
            Self::Folder(folder) => folder,
            Self::Stdout { length, hasher } => {
                let is_file = |entry: &Entry| matches!(entry.kind, Kind::File { .. });
                if *length > 0 && offer.entries.first().is_some_and(is_file) {
                    let hashed = Hashed { hasher: Hasher::clone(hasher), is_partial: true };
                    found.hashed.insert((0, *length), hashed);
                }
                return Ok(found);
            }
        };
        for (index, entry) in offer.entries.iter().enumerate() {
            found.find(folder, index, entry)?;
        }
        Ok(found)
    }

    /// Prepares the transfer of all files but those that are equal and those that the user wants to
    /// keep.
    pub(crate) fn accept(
        self,
        offer: &Offer,
        mut found: Found,
        answers: &HashMap<RelativePath, Answer>,
        progress: Progress,
    ) -> Result<Incoming, TransferError> {
        let mut planned = VecDeque::new();
        let mut failed = Vec::new();
        let mut kept = 0;
        let mut equal = 0;
        for (entry, Entry { path, kind }) in offer.entries.iter().enumerate() {
            if let Some(cause) = found.clashes.remove(&entry) {
                failed.push(TransferError::Write { path: path.clone(), cause });
                continue;
            }
            if *kind == Kind::Folder {
                self.create_folder(path)?;
                continue;
            }
            let replaces = found.existing.contains(&entry);
            let (from, hasher) = match found.kept(entry) {
                Some(Kept::Whole(length)) => {
                    kept += length;
                    equal += 1;
                    if found.begun.contains(&entry) {
                        self.remove_partial(path);
                    }
                    continue;
                }
                _ if replaces && answers.get(path) != Some(&Answer::Overwrite) => continue,
                Some(Kept::Beginning(length, hasher)) => (length, *hasher),
                None => (0, Hasher::new()),
            };
            kept += from;
            planned.push_back(Planned { entry, path: path.clone(), kind: *kind, from, hasher, replaces });
        }
        if let Self::Stdout { length: 1.., .. } = self
            && planned.front().is_none_or(|planned| planned.from == 0)
        {
            return Err(TransferError::Protocol("the file of the sender has changed meanwhile".to_owned()));
        }
        progress.set_kept(kept);
        let to_receive = planned.len();
        Ok(Incoming { destination: self, planned, current: None, failed, equal, to_receive, progress })
    }

    /// Removes the partial file of a file that is complete, unless another program writes to it.
    fn remove_partial(&self, path: &RelativePath) {
        let Self::Folder(folder) = self else { return };
        let path = partial_path(path).to_path_buf();
        let remove = || {
            let file = folder.open_with(&path, OpenOptions::new().write(true))?.into_std();
            FileExt::try_lock(&file)?;
            if is_at(folder, &path, &file)? { folder.remove_file(&path) } else { Ok(()) }
        };
        // A file that stays harms nothing.
        let _: io::Result<()> = remove();
    }

    fn create_folder(&self, path: &RelativePath) -> Result<(), TransferError> {
        match self {
            Self::Folder(folder) if !path.is_root() => folder
                .create_dir_all(path.to_path_buf())
                .map_err(|cause| TransferError::Write { path: path.clone(), cause }),
            _ => Ok(()),
        }
    }
}

/// Name of a file until it is complete.
fn partial_path(path: &RelativePath) -> RelativePath {
    if path.name().len() + PARTIAL_SUFFIX.len() <= MAX_NAME_LEN {
        return path.with_suffix(PARTIAL_SUFFIX);
    }
    let hash = blake3::hash(path.name().as_bytes()).to_hex();
    let name = format!("{}{PARTIAL_SUFFIX}", hash.as_str());
    path.parent().join(name)
}

fn is_absent(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::NotFound)
}

/// A file that the sender will send.
#[derive(Debug)]
struct Planned {
    entry: usize,
    path: RelativePath,
    kind: Kind,
    from: u64,
    hasher: Hasher,
    /// The user wants the file that has its name replaced.
    replaces: bool,
}

/// Files that are being received, each after the other.
#[derive(Debug)]
pub(crate) struct Incoming {
    destination: Destination,
    planned: VecDeque<Planned>,
    current: Option<Current>,
    /// Files and folders that are missing, each with its cause.
    pub(crate) failed: Vec<TransferError>,
    /// Number of files that need not be sent.
    pub(crate) equal: usize,
    /// Number of files that the sender will send.
    pub(crate) to_receive: usize,
    progress: Progress,
}

#[derive(Debug)]
struct Current {
    planned: Planned,
    /// The partial file. `None` for stdout.
    file: Option<File>,
    write_back: WriteBack,
    length: u64,
}

/// Writes a file through to the disk while more of it comes, so that little is left to do at its
/// end.
#[derive(Debug, Default)]
struct WriteBack {
    /// Bytes since the last start.
    written: u64,
    running: Option<JoinHandle<io::Result<()>>>,
}

impl WriteBack {
    /// Takes note of bytes that were written to the file.
    fn on_written(&mut self, file: &File, len: usize) -> io::Result<()> {
        self.written += len as u64;
        let is_busy = self.running.as_ref().is_some_and(|running| !running.is_finished());
        if self.written < WRITE_BACK_LEN || is_busy {
            return Ok(());
        }
        self.finish()?;
        self.written = 0;
        let file = file.try_clone()?;
        self.running = Some(thread::Builder::new().spawn(move || file.sync_data())?);
        Ok(())
    }

    /// Waits for the disk. An error of it is reported once only, here or at a later call.
    fn finish(&mut self) -> io::Result<()> {
        let Some(running) = self.running.take() else { return Ok(()) };
        running.join().unwrap_or_else(|_| Err(io::Error::other("the disk could not be waited for")))
    }
}

impl Drop for WriteBack {
    fn drop(&mut self) {
        // The second handle holds the lock of the file, too, and the file is given up here.
        let _ = self.finish();
    }
}

impl Incoming {
    /// Returns the order for the sender.
    pub(super) fn wanted(&self) -> Accept {
        let wanted = |planned: &Planned| Wanted { entry: planned.entry, from: planned.from };
        Accept { files: self.planned.iter().map(wanted).collect() }
    }

    /// Consumes a frame of the sender.
    pub(super) fn on_frame(&mut self, frame: &Frame) -> Result<(), TransferError> {
        match frame.kind {
            FrameKind::Data => self.on_data(&frame.body),
            FrameKind::End => self.on_end(&frame.body),
            FrameKind::Failed => {
                let reason: Reason = frame.parse(FrameKind::Failed)?;
                let path = match (self.current.take(), self.planned.is_empty()) {
                    (Some(current), _) => current.planned.path,
                    (None, false) => self.planned.pop_front().map(|planned| planned.path).unwrap_or_default(),
                    (None, true) => return Err(unexpected(frame.kind)),
                };
                self.failed.push(TransferError::SourceFailed { path, cause: reason.shown() });
                Ok(())
            }
            other => Err(unexpected(other)),
        }
    }

    /// Returns the destination, for another attempt.
    pub(super) fn into_destination(self) -> Destination {
        self.destination
    }

    fn on_data(&mut self, body: &[u8]) -> Result<(), TransferError> {
        let mut current = self.current()?;
        let (hash, data) = body
            .split_first_chunk::<HASH_LEN>()
            .filter(|(_, data)| !data.is_empty())
            .ok_or_else(|| TransferError::Protocol("a block has no data".to_owned()))?;
        let length = current.length + data.len() as u64;
        let path = || current.planned.path.clone();
        if current.planned.kind.size().is_some_and(|size| length > size) {
            return Err(TransferError::Protocol(format!("{} is longer than it was offered", path())));
        }
        // A block that is refused leaves no trace in the hash of the file.
        let mut hasher = current.planned.hasher.clone();
        if hasher.update(data).finalize() != *hash {
            return Err(TransferError::Corrupt { path: path() });
        }
        match &mut current.file {
            Some(file) => {
                let written =
                    file.write_all(data).and_then(|()| current.write_back.on_written(file, data.len()));
                written.map_err(|cause| TransferError::Write { path: path(), cause })?;
            }
            None => write_stdout(data).map_err(TransferError::Stdout)?,
        }
        if let Destination::Stdout { length: written, hasher: of_written } = &mut self.destination {
            *written = length;
            **of_written = hasher.clone();
        }
        (current.planned.hasher, current.length) = (hasher, length);
        self.current = Some(current);
        self.progress.add_moved(data.len());
        Ok(())
    }

    fn on_end(&mut self, hash: &[u8]) -> Result<(), TransferError> {
        let Current { planned, file, mut write_back, length } = self.current()?;
        if planned.kind.size().is_some_and(|size| length != size) {
            return Err(TransferError::Protocol(format!("{} ends after {length} bytes", planned.path)));
        }
        let is_right = <[u8; HASH_LEN]>::try_from(hash).is_ok_and(|hash| planned.hasher.finalize() == hash);
        if !is_right {
            return Err(TransferError::Corrupt { path: planned.path });
        }
        if let (Some(file), Destination::Folder(folder)) = (file, &self.destination) {
            let complete = write_back.finish().and_then(|()| finish(folder, &planned, file));
            complete.map_err(|cause| TransferError::Write { path: planned.path, cause })?;
        }
        self.progress.add_file();
        Ok(())
    }

    /// Takes the file that is being received, or opens the next one.
    fn current(&mut self) -> Result<Current, TransferError> {
        if let Some(current) = self.current.take() {
            return Ok(current);
        }
        let planned = self
            .planned
            .pop_front()
            .ok_or_else(|| TransferError::Protocol("more files came than were accepted".to_owned()))?;
        let file = match &self.destination {
            Destination::Folder(folder) => {
                self.destination.create_folder(&planned.path.parent())?;
                let file = open_partial(folder, &planned);
                Some(file.map_err(|cause| TransferError::Write { path: planned.path.clone(), cause })?)
            }
            Destination::Stdout { .. } => None,
        };
        Ok(Current { length: planned.from, planned, file, write_back: WriteBack::default() })
    }
}

fn unexpected(kind: FrameKind) -> TransferError {
    TransferError::Protocol(format!("{kind:?} came between the files"))
}

/// Opens the partial file of a file, with exactly the bytes that the sender has confirmed. No other
/// program that receives writes to it until it is closed.
fn open_partial(folder: &Dir, planned: &Planned) -> io::Result<File> {
    let path = partial_path(&planned.path).to_path_buf();
    if folder.symlink_metadata(&path).is_ok_and(|found| !found.is_file()) {
        return Err(io::Error::other(format!("{} is in the way, and no regular file", path.display())));
    }
    let mut options = OpenOptions::new();
    options.write(true).create(true);
    let mut file = folder.open_with(&path, &options)?.into_std();
    FileExt::try_lock(&file).map_err(|error| match error {
        TryLockError::WouldBlock => io::Error::other("another program receives into the same file"),
        TryLockError::Error(error) => error,
    })?;
    // Before the lock, another program may have written to the file, or given it its final name.
    if file.metadata()?.len() < planned.from || !is_at(folder, &path, &file)? {
        return Err(io::Error::other("another program has received into the same file"));
    }
    set_permissions(folder, planned, &file, 0o600)?;
    file.set_len(planned.from)?;
    file.seek(SeekFrom::End(0))?;
    Ok(file)
}

/// Returns true if the path still leads to this file.
#[cfg(unix)]
fn is_at(folder: &Dir, path: &Path, file: &File) -> io::Result<bool> {
    use cap_std::fs::MetadataExt as _;
    use std::os::unix::fs::MetadataExt as _;

    let (there, here) = (folder.symlink_metadata(path)?, file.metadata()?);
    Ok((there.dev(), there.ino()) == (here.dev(), here.ino()))
}

/// Returns true: a file that is open keeps its name.
#[cfg(not(unix))]
fn is_at(_: &Dir, _: &Path, _: &File) -> io::Result<bool> {
    Ok(true)
}

/// Gives a file the permissions of the one that it replaces, and also `more`. The sender may add
/// that to run it.
#[cfg(unix)]
fn set_permissions(folder: &Dir, planned: &Planned, file: &File, more: u32) -> io::Result<()> {
    use cap_std::fs::PermissionsExt as _;
    use std::os::unix::fs::PermissionsExt as _;

    let replaced = folder.symlink_metadata(planned.path.to_path_buf()).ok();
    let replaced = replaced.filter(|replaced| planned.replaces && replaced.is_file());
    let mut permissions = file.metadata()?.permissions();
    // The contents are those of a peer, so that they get no privileges of another user.
    let mut mode = replaced.map_or(permissions.mode(), |replaced| replaced.permissions().mode()) & 0o777;
    if let Kind::File { executable: true, .. } = planned.kind {
        // Those who may read it may run it.
        mode |= (mode & 0o444) >> 2;
    }
    permissions.set_mode(mode | more);
    file.set_permissions(permissions)
}

/// Does nothing: there are no such permissions.
#[cfg(not(unix))]
fn set_permissions(_: &Dir, _: &Planned, _: &File, _: u32) -> io::Result<()> {
    Ok(())
}

/// Gives a complete file its name. A file of that name is replaced only if the user was asked.
fn finish(folder: &Dir, planned: &Planned, file: File) -> io::Result<()> {
    set_permissions(folder, planned, &file, 0)?;
    // After a failure of power, a name would otherwise lead to a file that is not all there.
    file.sync_all()?;
    let path = planned.path.to_path_buf();
    if !planned.replaces && folder.symlink_metadata(&path).is_ok() {
        return Err(io::Error::other("a file of that name has appeared meanwhile, and is not replaced"));
    }
    folder.rename(partial_path(&planned.path).to_path_buf(), folder, path)?;
    // The lock ends after the rename: nobody else writes to the complete file.
    drop(file);
    Ok(())
}

fn write_stdout(data: &[u8]) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(data)?;
    stdout.flush()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed at the end.
    struct Scratch(std::path::PathBuf);

    impl Scratch {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("punch-destination-{name}-{}", std::process::id()));
            std::fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn open(&self) -> Dir {
            Dir::open_ambient_dir(&self.0, ambient_authority()).unwrap()
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }

    fn planned(from: u64, replaces: bool) -> Planned {
        let path = RelativePath::default().join("file".to_owned());
        let kind = Kind::File { size: 5, executable: false };
        Planned { entry: 0, path, kind, from, hasher: Hasher::new(), replaces }
    }

    #[test]
    fn two_programs_do_not_receive_into_one_file() {
        let scratch = Scratch::new("lock");
        let folder = scratch.open();
        let mut first = open_partial(&folder, &planned(0, false)).unwrap();
        let second = open_partial(&folder, &planned(0, false)).unwrap_err();
        assert_eq!(second.to_string(), "another program receives into the same file");
        first.write_all(b"first").unwrap();
        finish(&folder, &planned(0, false), first).unwrap();
        // The second one had compared a beginning, which is gone.
        let second = open_partial(&folder, &planned(3, true)).unwrap_err();
        assert_eq!(second.to_string(), "another program has received into the same file");
        assert_eq!(std::fs::read(scratch.0.join("file")).unwrap(), b"first");
    }

    #[test]
    fn a_file_that_is_given_up_can_be_received_again_at_once() {
        let scratch = Scratch::new("again");
        let folder = scratch.open();
        for _ in 0..20 {
            let file = open_partial(&folder, &planned(0, false)).unwrap();
            let mut write_back = WriteBack::default();
            write_back.on_written(&file, WRITE_BACK_LEN as usize).unwrap();
            assert!(write_back.running.is_some());
            drop((file, write_back));
        }
    }

    #[test]
    fn a_file_that_appears_meanwhile_is_not_replaced() {
        let scratch = Scratch::new("appears");
        let folder = scratch.open();
        let file = open_partial(&folder, &planned(0, false)).unwrap();
        std::fs::write(scratch.0.join("file"), "precious").unwrap();
        assert!(finish(&folder, &planned(0, false), file).is_err());
        assert_eq!(std::fs::read(scratch.0.join("file")).unwrap(), b"precious");
    }

    #[cfg(unix)]
    #[test]
    fn a_partial_file_that_is_a_link_is_refused() {
        let scratch = Scratch::new("link");
        std::fs::write(scratch.0.join("keep"), "keep").unwrap();
        std::os::unix::fs::symlink("keep", scratch.0.join(format!("file{PARTIAL_SUFFIX}"))).unwrap();
        assert!(open_partial(&scratch.open(), &planned(0, false)).is_err());
        assert_eq!(std::fs::read(scratch.0.join("keep")).unwrap(), b"keep");
    }
}
