//! The file that holds a peer's key: libp2p's protobuf encoding of an Ed25519 key pair, mode 0600.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::Path,
};

use libp2p::identity::Keypair;

use crate::exit::Failure;

/// `KeyType` of the libp2p peer id specification, by number.
const KINDS: [&str; 4] = ["RSA", "Ed25519", "secp256k1", "ECDSA"];
const ED25519: u8 = 1;
/// Longest file that is read, far longer than any key.
const MAX_LENGTH: u64 = 16 * 1024;

/// Returns the key in `path`, which is created if it does not exist; without a path a new key.
pub(crate) fn load(path: Option<&Path>) -> Result<Keypair, Failure> {
    let Some(path) = path else { return Ok(Keypair::generate_ed25519()) };
    find(path)?.map_or_else(|| create(path), Ok)
}

/// Returns the key in `path`, which must exist.
pub(crate) fn show(path: &Path) -> Result<Keypair, Failure> {
    find(path)?.ok_or_else(|| unusable(path, "does not exist"))
}

/// Creates a key in `path`, which must not exist.
pub(crate) fn make(path: &Path) -> Result<Keypair, Failure> {
    match fs::symlink_metadata(path) {
        Ok(_) => Err(unusable(path, "exists already, and is not replaced")),
        Err(_) => create(path),
    }
}

/// Returns the key in `path`, if there is something.
fn find(path: &Path) -> Result<Option<Keypair>, Failure> {
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() => Err(unusable(path, "is not a file")),
        Ok(metadata) if metadata.len() > MAX_LENGTH => Err(unusable(path, "is too long for a key")),
        Ok(_) => read(path).map(Some),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(unusable(path, &format!("cannot be read: {error}"))),
    }
}

fn read(path: &Path) -> Result<Keypair, Failure> {
    let bytes = fs::read(path).map_err(|error| unusable(path, &format!("cannot be read: {error}")))?;
    match bytes.as_slice() {
        [] => return Err(unusable(path, "is empty")),
        // Field 1 is the kind, field 2 the key itself.
        [0x08, kind, 0x12, ..] if *kind != ED25519 && usize::from(*kind) < KINDS.len() => {
            let kind = KINDS.get(usize::from(*kind)).copied().unwrap_or_default();
            return Err(unusable(
                path,
                &format!("holds a key of kind {kind}; punch takes Ed25519 keys only"),
            ));
        }
        _ => {}
    }
    Keypair::from_protobuf_encoding(&bytes)
        .map_err(|_| unusable(path, "does not hold a libp2p private key in protobuf encoding"))
}

fn create(path: &Path) -> Result<Keypair, Failure> {
    let failed = |error: &dyn std::fmt::Display| unusable(path, &format!("cannot be created: {error}"));
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().map_err(|error| failed(&error))?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path).map_err(|error| failed(&error))?;
    file.write_all(&bytes).and_then(|()| file.sync_all()).map_err(|error| failed(&error))?;
    Ok(key)
}

fn unusable(path: &Path, what: &str) -> Failure {
    Failure::usage(format!("the key file {} {what}", path.display()))
}

#[cfg(test)]
mod tests {
    use std::path::PathBuf;

    use super::*;
    use crate::exit::Exit;

    /// A directory that is removed on drop.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("punch-key-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }

        fn file(&self, contents: &[u8]) -> PathBuf {
            let path = self.0.join("key");
            fs::write(&path, contents).unwrap();
            path
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn refusal(path: &Path) -> String {
        let failure = load(Some(path)).unwrap_err();
        assert_eq!(failure.exit, Exit::Usage);
        assert!(failure.message.contains(&path.display().to_string()), "{failure:?}");
        failure.message
    }

    #[test]
    fn a_key_that_was_created_is_found_again() {
        let scratch = Scratch::new("again");
        let path = scratch.0.join("key");
        let created = load(Some(&path)).unwrap().public();
        assert_eq!(load(Some(&path)).unwrap().public(), created);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_is_created_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("key");
        load(Some(&path)).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn without_a_file_every_key_is_new() {
        assert_ne!(load(None).unwrap().public(), load(None).unwrap().public());
    }

    #[test]
    fn a_key_of_another_kind_is_refused_by_name() {
        let scratch = Scratch::new("kind");
        let secp256k1 = b"\x08\x02\x12\x20\x53\xda\xdf\x1d\x5a\x16\x4d\x6b\x4a\xcd\xb1\x5e\x24\xaa\x4c\x5b\
            \x1d\x34\x61\xbd\xbd\x42\xab\xed\xb0\xa4\x40\x4d\x56\xce\xd8\xfb";
        assert!(refusal(&scratch.file(secp256k1)).contains("secp256k1"));
        assert!(refusal(&scratch.file(b"\x08\x00\x12\x01\x00")).contains("RSA"));
        assert!(refusal(&scratch.file(b"\x08\x03\x12\x01\x00")).contains("ECDSA"));
    }

    #[test]
    fn garbage_a_public_key_and_a_torn_key_are_refused() {
        let scratch = Scratch::new("garbage");
        let key = Keypair::generate_ed25519();
        let private = key.to_protobuf_encoding().unwrap();
        for contents in [b"-----BEGIN".to_vec(), key.public().encode_protobuf(), private[..40].to_vec()] {
            assert!(refusal(&scratch.file(&contents)).contains("does not hold a libp2p private key"));
        }
    }

    #[test]
    fn an_empty_file_a_long_file_and_a_directory_are_refused() {
        let scratch = Scratch::new("shape");
        assert!(refusal(&scratch.file(b"")).contains("is empty"));
        assert!(refusal(&scratch.file(&[8; 20_000])).contains("too long"));
        assert!(refusal(&scratch.0).contains("is not a file"));
    }

    #[test]
    fn a_file_in_no_directory_cannot_be_created() {
        let scratch = Scratch::new("nowhere");
        assert!(refusal(&scratch.0.join("missing").join("key")).contains("cannot be created"));
    }
}
