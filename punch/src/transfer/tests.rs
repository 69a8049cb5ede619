//! Transfers between two folders over a pipe in memory.

use std::{collections::HashMap, fs, future::pending, path::Path, sync::Arc, time::Duration};

use proptest::prelude::*;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt, DuplexStream, ReadHalf, WriteHalf, duplex, split};

use super::{
    frame::{BLOCK_LEN, Frame, FrameKind, HASH_LEN, read_frame, write_frame},
    message::{Entry, Offer, Request, Wanted},
    session::Received,
    *,
};
use crate::ticket::Secret;

/// Bytes that are under way at once.
const PIPE_LEN: usize = 64 << 10;

type Half = (WriteHalf<DuplexStream>, ReadHalf<DuplexStream>);

fn pipe() -> (Half, Half) {
    let (sender, receiver) = duplex(PIPE_LEN);
    let [sender, receiver] = [sender, receiver].map(|end| {
        let (recv, send) = split(end);
        (send, recv)
    });
    (sender, receiver)
}

/// Bytes that differ from file to file.
fn bytes(len: usize, seed: u8) -> Vec<u8> {
    (0..len).map(|at| (at / 251 + at * 7) as u8 ^ seed).collect()
}

/// A sender with these files, as paths and contents, in its folder `sent`.
fn sender_of(files: &[(&str, Vec<u8>)]) -> (TempDir, Arc<Source>) {
    let scratch = TempDir::new().unwrap();
    let root = scratch.path().join("sent");
    fs::create_dir(&root).unwrap();
    for (path, contents) in files {
        let path = root.join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, contents).unwrap();
    }
    let Offered { source, .. } = Source::find(&[root]).unwrap();
    (scratch, Arc::new(source))
}

/// Receiver with a folder, and with an answer about files that exist.
#[derive(Clone, Copy)]
struct Fetch<'a> {
    folder: &'a Path,
    answer: Option<Answer>,
}

impl<'a> Fetch<'a> {
    fn into(folder: &'a Path) -> Self {
        Self { folder, answer: None }
    }

    /// Runs the receiver. Returns also the number of bytes that went over the network.
    async fn run(self, (send, recv): Half, secret: &Secret) -> Result<(Received, u64), TransferError> {
        let mut receiver = Receiver::request(send, recv, secret).await?;
        let destination = Destination::folder(self.folder).unwrap();
        let mut found = destination.find(receiver.offer())?;
        let checked = receiver.compare(found.beginnings()).await?;
        let conflicts = found.conflicts(receiver.offer(), &checked);
        let answers: HashMap<_, _> =
            conflicts.into_iter().filter_map(|conflict| Some((conflict.path, self.answer?))).collect();
        let progress = Progress::default();
        let incoming = destination.accept(receiver.offer(), found, &answers, progress.clone())?;
        let received = receiver.receive(incoming, pending()).await;
        Ok((received, progress.moved()))
    }

    /// Fetches all files of the sender, which must succeed. Returns the number of bytes that moved.
    async fn all_of(self, source: &Arc<Source>) -> u64 {
        let (sender, receiver) = pipe();
        let secret = Secret::generate();
        let serving = serve(sender.0, sender.1, source.clone(), &secret, Progress::default());
        let (served, received) = tokio::join!(serving, self.run(receiver, &secret));
        served.unwrap();
        let (received, moved) = received.unwrap();
        received.result.unwrap();
        moved
    }

    /// Plays a sender with an offer and frames of its own.
    async fn meet_hostile(self, offer: &Offer, frames: &[Frame]) -> Result<(), TransferError> {
        let ((mut send, mut recv), receiver) = pipe();
        let secret = Secret::generate();
        let hostile = async {
            let _: Request = read_frame(&mut recv).await.unwrap().parse(FrameKind::Request).unwrap();
            write_frame(&mut send, &Frame::message(FrameKind::Offer, offer).unwrap()).await.unwrap();
            for frame in frames {
                // The receiver may have had enough.
                if write_frame(&mut send, frame).await.is_err() {
                    break;
                }
            }
            let _ = send.shutdown().await;
            let _ = recv.read_to_end(&mut Vec::new()).await;
        };
        let fetch = async { self.run(receiver, &secret).await.and_then(|(received, _)| received.result) };
        tokio::join!(hostile, fetch).1
    }
}

/// Serves one receiver, as a program does.
async fn serve(
    mut send: WriteHalf<DuplexStream>,
    mut recv: ReadHalf<DuplexStream>,
    source: Arc<Source>,
    secret: &Secret,
    progress: Progress,
) -> Result<(), TransferError> {
    authorize(&mut send, &mut recv, secret).await?;
    super::serve(send, recv, source, progress).await
}

fn path(text: &str) -> RelativePath {
    RelativePath::new(text.split('/').map(str::to_owned))
}

fn file(name: &str, size: u64) -> Entry {
    Entry { path: path(name), kind: Kind::File { size, executable: false } }
}

fn data(block: &[u8], before: &[u8]) -> Frame {
    let hash = blake3::hash(&[before, block].concat());
    Frame { kind: FrameKind::Data, body: [hash.as_bytes().as_slice(), block].concat() }
}

fn end(contents: &[u8]) -> Frame {
    Frame { kind: FrameKind::End, body: blake3::hash(contents).as_bytes().to_vec() }
}

#[tokio::test]
async fn files_folders_and_empty_ones_arrive_as_they_are() {
    let large = bytes(2 * BLOCK_LEN + 17, 1);
    let files = [("a.bin", large.clone()), ("empty", Vec::new()), ("deep/er/b", bytes(BLOCK_LEN, 2))];
    let (scratch, source) = sender_of(&files);
    fs::create_dir(scratch.path().join("sent/nothing")).unwrap();
    let source = Source::find(&[scratch.path().join("sent")])
        .map(|offered| offered.source)
        .unwrap_or_else(|_| Arc::into_inner(source).unwrap());
    let target = TempDir::new().unwrap();
    let moved = Fetch::into(target.path()).all_of(&Arc::new(source)).await;
    assert_eq!(moved, (3 * BLOCK_LEN + 17) as u64);
    for (name, contents) in files {
        assert_eq!(fs::read(target.path().join("sent").join(name)).unwrap(), contents, "{name}");
    }
    assert!(target.path().join("sent/nothing").is_dir());
}

#[cfg(unix)]
#[tokio::test]
async fn a_program_can_be_run_at_the_receiver() {
    use std::os::unix::fs::PermissionsExt;
    let (scratch, _) = sender_of(&[("run", b"#!/bin/sh".to_vec())]);
    let program = scratch.path().join("sent/run");
    fs::set_permissions(&program, fs::Permissions::from_mode(0o700)).unwrap();
    let source = Source::find(&[program]).unwrap().source;
    let target = TempDir::new().unwrap();
    Fetch::into(target.path()).all_of(&Arc::new(source)).await;
    let mode = fs::metadata(target.path().join("run")).unwrap().permissions().mode();
    assert_eq!(mode & 0o100, 0o100);
}

#[tokio::test]
async fn a_transfer_goes_on_where_the_partial_file_ends() {
    let contents = bytes(3 * BLOCK_LEN, 3);
    let (_scratch, source) = sender_of(&[("a", contents.clone())]);
    let target = TempDir::new().unwrap();
    fs::create_dir(target.path().join("sent")).unwrap();
    let partial = target.path().join(format!("sent/a{PARTIAL_SUFFIX}"));
    fs::write(&partial, &contents[..BLOCK_LEN + 5]).unwrap();
    let moved = Fetch::into(target.path()).all_of(&source).await;
    assert_eq!(moved, (2 * BLOCK_LEN - 5) as u64);
    assert_eq!(fs::read(target.path().join("sent/a")).unwrap(), contents);
    assert!(!partial.exists());
}

#[tokio::test]
async fn a_partial_file_of_other_contents_is_not_continued() {
    let contents = bytes(BLOCK_LEN, 4);
    let (_scratch, source) = sender_of(&[("a", contents.clone())]);
    let target = TempDir::new().unwrap();
    fs::create_dir(target.path().join("sent")).unwrap();
    fs::write(target.path().join(format!("sent/a{PARTIAL_SUFFIX}")), b"something else").unwrap();
    assert_eq!(Fetch::into(target.path()).all_of(&source).await, BLOCK_LEN as u64);
    assert_eq!(fs::read(target.path().join("sent/a")).unwrap(), contents);
}

#[tokio::test]
async fn files_that_are_equal_do_not_move_and_others_need_a_permission() {
    let (_scratch, source) = sender_of(&[("same", b"equal".to_vec()), ("other", b"theirs".to_vec())]);
    let target = TempDir::new().unwrap();
    let folder = target.path().join("sent");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("same"), b"equal").unwrap();
    fs::write(folder.join("other"), b"mine!!").unwrap();
    let fetch = Fetch::into(target.path());
    assert_eq!(fetch.all_of(&source).await, 0);
    assert_eq!(fs::read(folder.join("other")).unwrap(), b"mine!!", "nobody permitted that");
    let permitted = Fetch { answer: Some(Answer::Overwrite), ..fetch };
    assert_eq!(permitted.all_of(&source).await, 6);
    assert_eq!(fs::read(folder.join("other")).unwrap(), b"theirs");
}

#[tokio::test]
async fn an_equal_file_with_a_stale_partial_file_is_no_conflict() {
    let contents = bytes(BLOCK_LEN, 7);
    let (_scratch, source) = sender_of(&[("a", contents.clone()), ("b", contents.clone())]);
    let target = TempDir::new().unwrap();
    let folder = target.path().join("sent");
    fs::create_dir(&folder).unwrap();
    for (name, partial) in [("a", &contents[..9]), ("b", &contents)] {
        fs::write(folder.join(name), &contents).unwrap();
        fs::write(folder.join(format!("{name}{PARTIAL_SUFFIX}")), partial).unwrap();
    }
    assert_eq!(Fetch::into(target.path()).all_of(&source).await, 0);
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    assert_eq!(names, ["a", "b"], "partial files of complete files are of no use");
}

#[tokio::test]
async fn a_file_that_differs_is_replaced_by_the_rest_of_its_partial_file() {
    let contents = bytes(BLOCK_LEN, 8);
    let (_scratch, source) = sender_of(&[("a", contents.clone())]);
    let target = TempDir::new().unwrap();
    let folder = target.path().join("sent");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("a"), bytes(BLOCK_LEN, 9)).unwrap();
    fs::write(folder.join(format!("a{PARTIAL_SUFFIX}")), &contents[..1_000]).unwrap();
    let fetch = Fetch { answer: Some(Answer::Overwrite), ..Fetch::into(target.path()) };
    assert_eq!(fetch.all_of(&source).await, (BLOCK_LEN - 1_000) as u64);
    assert_eq!(fs::read(folder.join("a")).unwrap(), contents);
}

#[cfg(unix)]
#[tokio::test]
async fn a_file_that_is_replaced_keeps_its_permissions() {
    use std::os::unix::fs::PermissionsExt;
    let (_scratch, source) = sender_of(&[("a", b"new".to_vec())]);
    let target = TempDir::new().unwrap();
    let file = target.path().join("sent/a");
    fs::create_dir(file.parent().unwrap()).unwrap();
    for mode in [0o600, 0o755, 0o440] {
        let _ = fs::remove_file(&file);
        fs::write(&file, b"old").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(mode | 0o4000)).unwrap();
        let fetch = Fetch { answer: Some(Answer::Overwrite), ..Fetch::into(target.path()) };
        assert_eq!(fetch.all_of(&source).await, 3);
        let now = fs::metadata(&file).unwrap().permissions().mode() & 0o7777;
        assert_eq!(now, mode, "{now:o}: those of the old file, without its privileges");
    }
}

#[tokio::test]
async fn a_name_that_is_of_another_kind_here_is_reported_and_the_others_arrive() {
    let files = [("a", "1"), ("b/c", "2"), ("b/d/e", "3"), ("f", "4")];
    let (_scratch, source) = sender_of(&files.map(|(name, contents)| (name, contents.into())));
    let target = TempDir::new().unwrap();
    let folder = target.path().join("sent");
    fs::create_dir_all(folder.join("a")).unwrap();
    fs::write(folder.join("b"), b"mine").unwrap();
    let (sender, receiver) = pipe();
    let secret = Secret::generate();
    let serving = serve(sender.0, sender.1, source, &secret, Progress::default());
    let (served, received) = tokio::join!(serving, Fetch::into(target.path()).run(receiver, &secret));
    served.unwrap();
    let (mut received, _) = received.unwrap();
    let failures: Vec<_> = received.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(
        failures,
        [
            "cannot write sent/a: it is a folder here",
            "cannot write sent/b: it is a file here, and a folder at the sender",
            "cannot write sent/b/c: a file is here instead of its folder",
            "cannot write sent/b/d: a file is here instead of its folder",
            "cannot write sent/b/d/e: a file is here instead of its folder",
        ]
    );
    received.result.unwrap();
    assert_eq!(fs::read(folder.join("f")).unwrap(), b"4");
    assert_eq!(fs::read(folder.join("b")).unwrap(), b"mine");
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_says_nothing_any_more_is_given_up() {
    let target = TempDir::new().unwrap();
    fs::write(target.path().join("b"), b"here").unwrap();
    let offer = |name| Frame::message(FrameKind::Offer, &Offer { entries: vec![file(name, 4)] }).unwrap();
    // It is silent instead of its offer, of its comparison, and of its data.
    for frames in [vec![], vec![offer("b")], vec![offer("a"), data(b"dat", b"")]] {
        let ((mut send, recv), receiver) = pipe();
        let sender = async {
            for frame in &frames {
                write_frame(&mut send, frame).await.unwrap();
            }
            // Threads of the disk hold a paused clock up.
            loop {
                tokio::time::advance(Duration::from_secs(1)).await;
            }
        };
        let secret = Secret::generate();
        let fetch =
            async { Fetch::into(target.path()).run(receiver, &secret).await.and_then(|(got, _)| got.result) };
        let result = tokio::select! {
            result = fetch => result,
            never = sender => never,
        };
        let error = result.unwrap_err().to_string();
        assert!(error.contains("says nothing any more"), "{frames:?}: {error}");
        drop(recv);
    }
}

#[tokio::test(start_paused = true)]
async fn a_sender_that_is_at_work_for_an_hour_is_waited_for() {
    let target = TempDir::new().unwrap();
    let (alive, an_hour) = (Frame { kind: FrameKind::Alive, body: Vec::new() }, Duration::from_secs(3_600));
    let ((mut send, mut recv), receiver) = pipe();
    let sender = async {
        let _: Request = read_frame(&mut recv).await.unwrap().parse(FrameKind::Request).unwrap();
        let offer = Offer { entries: vec![file("a", 4)] };
        write_frame(&mut send, &Frame::message(FrameKind::Offer, &offer).unwrap()).await.unwrap();
        let begun = tokio::time::Instant::now();
        while begun.elapsed() < an_hour {
            tokio::time::advance(Duration::from_secs(5)).await;
            write_frame(&mut send, &alive).await.unwrap();
        }
        for frame in [data(b"late", b""), end(b"late")] {
            write_frame(&mut send, &frame).await.unwrap();
        }
        let _ = recv.read_to_end(&mut Vec::new()).await;
    };
    let secret = Secret::generate();
    let (received, ()) = tokio::join!(Fetch::into(target.path()).run(receiver, &secret), sender);
    received.unwrap().0.result.unwrap();
    assert_eq!(fs::read(target.path().join("a")).unwrap(), b"late");
}

#[tokio::test]
async fn a_receiver_without_the_secret_learns_nothing() {
    let (_scratch, source) = sender_of(&[("a", b"x".to_vec())]);
    let target = TempDir::new().unwrap();
    let (sender, receiver) = pipe();
    let (right, wrong) = (Secret::generate(), Secret::generate());
    let serving = serve(sender.0, sender.1, source, &right, Progress::default());
    let (served, received) = tokio::join!(serving, Fetch::into(target.path()).run(receiver, &wrong));
    assert!(matches!(served, Err(TransferError::NoTicket)), "{served:?}");
    assert!(matches!(received, Err(TransferError::WrongTicket)), "{received:?}");
}

#[tokio::test]
async fn a_file_that_vanishes_is_named_and_the_others_arrive() {
    let (scratch, source) = sender_of(&[("a", b"first".to_vec()), ("b", b"second".to_vec())]);
    fs::remove_file(scratch.path().join("sent/a")).unwrap();
    let target = TempDir::new().unwrap();
    let (sender, receiver) = pipe();
    let secret = Secret::generate();
    let serving = serve(sender.0, sender.1, source, &secret, Progress::default());
    let (served, received) = tokio::join!(serving, Fetch::into(target.path()).run(receiver, &secret));
    served.unwrap();
    let failures: Vec<_> = received.unwrap().0.take_failures().iter().map(ToString::to_string).collect();
    assert_eq!(failures, ["the sender could not send sent/a: no such file or folder"]);
    assert_eq!(fs::read(target.path().join("sent/b")).unwrap(), b"second");
}

#[tokio::test]
async fn a_file_that_has_changed_since_it_was_offered_is_not_sent() {
    for now in ["short", "longer than it was", "as long"] {
        let (scratch, source) = sender_of(&[("a", b"as_long".to_vec())]);
        let changed = scratch.path().join("sent/a");
        // Another file of the same name is a change, even within one tick of the clock.
        fs::write(changed.with_extension("new"), now).unwrap();
        fs::rename(changed.with_extension("new"), changed).unwrap();
        let target = TempDir::new().unwrap();
        let (sender, receiver) = pipe();
        let (secret, progress) = (Secret::generate(), Progress::default());
        let serving = serve(sender.0, sender.1, source, &secret, progress.clone());
        let (served, received) = tokio::join!(serving, Fetch::into(target.path()).run(receiver, &secret));
        served.unwrap();
        let failures = received.unwrap().0.take_failures();
        assert!(failures[0].to_string().contains("changed since it was offered"), "{failures:?}");
        assert!(!target.path().join("sent/a").exists());
        assert_eq!((progress.files(), progress.failed()), (0, 1));
    }
}

#[tokio::test]
async fn a_file_that_changes_while_it_is_sent_gets_no_name_at_the_receiver() {
    let len = 8 * BLOCK_LEN;
    for now in [bytes(len + 1, 6), bytes(BLOCK_LEN, 6)] {
        let (scratch, source) = sender_of(&[("a", bytes(len, 5))]);
        let target = TempDir::new().unwrap();
        let (sender, receiver) = pipe();
        let (secret, progress) = (Secret::generate(), Progress::default());
        let change = async {
            while progress.moved() == 0 {
                tokio::task::yield_now().await;
            }
            // The sender is at most a few blocks ahead of what has moved.
            fs::write(scratch.path().join("sent/a"), now).unwrap();
        };
        let serving = serve(sender.0, sender.1, source, &secret, progress.clone());
        let fetching = Fetch::into(target.path()).run(receiver, &secret);
        let (served, received, ()) = tokio::join!(serving, fetching, change);
        served.unwrap();
        let failures = received.unwrap().0.take_failures();
        assert_eq!(failures.len(), 1, "{failures:?}");
        assert_eq!((progress.files(), progress.failed()), (0, 1));
        assert!(!target.path().join("sent/a").exists());
    }
}

#[tokio::test(start_paused = true)]
async fn a_peer_that_sends_no_request_is_let_go() {
    let ((mut send, mut recv), receiver) = pipe();
    let authorized = authorize(&mut send, &mut recv, &Secret::generate()).await;
    assert!(matches!(authorized, Err(TransferError::Lost(_))), "{authorized:?}");
    drop(receiver);
}

#[test]
fn a_pipe_goes_to_the_first_receiver_that_wants_it() {
    let source = Source::find(&["-".into()]).unwrap().source;
    let accept = |from| message::Accept { files: vec![Wanted { entry: 0, from }] };
    assert!(accept(1).check(&Offer { entries: source.entries().to_vec() }).is_err(), "it has one beginning");
    let nothing = message::Accept { files: Vec::new() };
    assert!(!source.take_pipe(&nothing).unwrap());
    assert!(source.take_pipe(&accept(0)).unwrap());
    assert!(matches!(source.take_pipe(&accept(0)), Err(TransferError::Consumed)));
}

#[tokio::test]
async fn a_block_with_a_wrong_hash_is_not_kept() {
    let target = TempDir::new().unwrap();
    let offer = Offer { entries: vec![file("a", 8)] };
    let frames = [data(b"good", b""), data(b"evil", b"other")];
    let result = Fetch::into(target.path()).meet_hostile(&offer, &frames).await;
    assert!(matches!(result, Err(TransferError::Corrupt { .. })), "{result:?}");
    assert_eq!(fs::read(target.path().join(format!("a{PARTIAL_SUFFIX}"))).unwrap(), b"good");
}

#[tokio::test]
async fn more_bytes_or_files_than_were_offered_are_refused() {
    let target = TempDir::new().unwrap();
    let fetch = Fetch::into(target.path());
    let offer = Offer { entries: vec![file("a", 3)] };
    for (frames, words) in [
        (vec![data(b"four", b"")], "longer than it was offered"),
        (vec![end(b"")], "ends after 0 bytes"),
        (vec![data(b"", b"")], "no data"),
        (vec![Frame { kind: FrameKind::Done, body: Vec::new() }], "Done came between"),
    ] {
        let error = fetch.meet_hostile(&offer, &frames).await.unwrap_err().to_string();
        assert!(error.contains(words), "{error}");
    }
}

#[tokio::test]
async fn offers_that_lead_out_of_the_folder_write_nothing() {
    let scratch = TempDir::new().unwrap();
    let folder = scratch.path().join("folder");
    for name in ["../out", "/out", "a/../../out", "a\\..\\out", "a\0b", "", "a//b"] {
        let offer = Offer { entries: vec![file(name, 4)] };
        let result = Fetch::into(&folder).meet_hostile(&offer, &[data(b"evil", b""), end(b"evil")]).await;
        assert!(matches!(result, Err(TransferError::Path(_))), "{name:?}: {result:?}");
        assert!(!folder.exists(), "{name:?}");
    }
    assert_eq!(fs::read_dir(scratch.path()).unwrap().count(), 0);
}

#[cfg(unix)]
#[tokio::test]
async fn a_link_in_the_folder_leads_nothing_out_of_it() {
    let scratch = TempDir::new().unwrap();
    let (folder, outside) = (scratch.path().join("folder"), scratch.path().join("outside"));
    fs::create_dir(&folder).unwrap();
    fs::create_dir(&outside).unwrap();
    std::os::unix::fs::symlink(&outside, folder.join("a")).unwrap();
    std::os::unix::fs::symlink(outside.join("b"), folder.join(format!("b{PARTIAL_SUFFIX}"))).unwrap();
    for name in ["a/x", "b"] {
        let offer = Offer { entries: vec![file(name, 4)] };
        let result = Fetch::into(&folder).meet_hostile(&offer, &[data(b"evil", b""), end(b"evil")]).await;
        assert!(matches!(result, Err(TransferError::Write { .. })), "{name}: {result:?}");
    }
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
}

/// Frames that a hostile sender may send after its offer.
fn any_frame() -> impl Strategy<Value = Frame> {
    let kinds = [
        FrameKind::Data,
        FrameKind::End,
        FrameKind::Failed,
        FrameKind::Stopped,
        FrameKind::Done,
        FrameKind::Offer,
        FrameKind::Accept,
        FrameKind::Alive,
    ];
    let known = prop_oneof![
        Just(data(b"abc", b"")),
        Just(data(b"def", b"abc")),
        Just(end(b"abc")),
        Just(end(b"abcdef")),
        Just(end(b"")),
        Just(Frame { kind: FrameKind::Failed, body: br#"{"reason":"gone"}"#.to_vec() }),
    ];
    let wild = (prop::sample::select(kinds.to_vec()), prop::collection::vec(any::<u8>(), 0..HASH_LEN));
    prop_oneof![4 => known, 1 => wild.prop_map(|(kind, body)| {
        // These have no body on the wire.
        let is_empty = matches!(kind, FrameKind::Done | FrameKind::Alive);
        let body = if is_empty { Vec::new() } else { body };
        Frame { kind, body }
    })]
}

fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(future)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn frames_in_any_order_leave_verified_bytes_alone(frames in prop::collection::vec(any_frame(), 0..8)) {
        let target = TempDir::new().unwrap();
        let offer = Offer { entries: vec![file("x/a", 3), file("x/b", 6)] };
        let result = block_on(Fetch::into(target.path()).meet_hostile(&offer, &frames));
        for (name, contents) in [("a", &b"abc"[..]), ("b", b"abcdef")] {
            if let Ok(complete) = fs::read(target.path().join("x").join(name)) {
                prop_assert_eq!(&complete[..], contents);
            }
            if let Ok(partial) = fs::read(target.path().join(format!("x/{name}{PARTIAL_SUFFIX}"))) {
                prop_assert!(b"abcdef".starts_with(&partial), "{:?}", partial);
            }
        }
        let names = fs::read_dir(target.path()).unwrap().map(|entry| entry.unwrap().file_name());
        prop_assert!(names.into_iter().all(|name| name == "x"));
        // A sender that stops early was not all there.
        prop_assert!(result.is_err() || frames.len() >= 2);
    }

    #[test]
    fn a_transfer_that_is_cut_anywhere_completes_in_the_next_one(
        lens in prop::collection::vec(0usize..3 * PIPE_LEN, 1..4),
        cut in 0usize..8 * PIPE_LEN,
    ) {
        let names: Vec<_> = (0..lens.len()).map(|number| format!("f{number}")).collect();
        let files: Vec<_> =
            names.iter().zip(&lens).map(|(name, len)| (name.as_str(), bytes(*len, *len as u8))).collect();
        let (_scratch, source) = sender_of(&files);
        let target = TempDir::new().unwrap();
        block_on(async {
            // A relay that passes a number of bytes to the receiver, and then ends.
            let (sender, (mut to_sender, from_sender)) = pipe();
            let ((mut to_receiver, mut from_receiver), receiver) = pipe();
            let secret = Secret::generate();
            let serving = tokio::spawn({
                let (source, secret) = (source.clone(), secret.clone());
                async move { serve(sender.0, sender.1, source, &secret, Progress::default()).await }
            });
            let back = tokio::spawn(async move { tokio::io::copy(&mut from_receiver, &mut to_sender).await });
            let forth = tokio::spawn(async move {
                let _ = tokio::io::copy(&mut from_sender.take(cut as u64), &mut to_receiver).await;
                let _ = to_receiver.shutdown().await;
            });
            // It fails unless the cut comes after the end.
            let _ = Fetch::into(target.path()).run(receiver, &secret).await;
            forth.await.unwrap();
            back.abort();
            serving.abort();
            Fetch::into(target.path()).all_of(&source).await;
        });
        for (name, contents) in files {
            prop_assert_eq!(fs::read(target.path().join("sent").join(name)).unwrap(), contents);
        }
        prop_assert_eq!(fs::read_dir(target.path().join("sent")).unwrap().count(), lens.len());
    }

    #[test]
    fn a_sender_survives_any_frames(frames in prop::collection::vec(any_frame(), 0..4), from in any::<u64>()) {
        let (_scratch, source) = sender_of(&[("a", b"abc".to_vec())]);
        block_on(async {
            let (sender, (mut send, mut recv)) = pipe();
            let secret = Secret::generate();
            let request = Request { secret: secret.text().to_owned() };
            let accept = message::Accept { files: vec![Wanted { entry: 1, from }] };
            let hostile = async {
                let request = Frame::message(FrameKind::Request, &request).unwrap();
                let accept = Frame::message(FrameKind::Accept, &accept).unwrap();
                for frame in [&[request][..], &frames, &[accept]].concat() {
                    if write_frame(&mut send, &frame).await.is_err() {
                        break;
                    }
                }
                let _ = send.shutdown().await;
                let _ = recv.read_to_end(&mut Vec::new()).await;
            };
            let serving = serve(sender.0, sender.1, source, &secret, Progress::default());
            let (served, ()) = tokio::join!(serving, hostile);
            // Nobody has said that all has arrived.
            assert!(served.is_err());
        });
    }
}
