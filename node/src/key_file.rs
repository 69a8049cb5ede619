//! The file that holds a node's key: libp2p's protobuf encoding of a key pair, mode 0600.

use std::{
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

use libp2p_identity::Keypair;

/// Longest file that is read, far longer than any key.
const MAX_LEN: u64 = 16 * 1024;

/// Reason for which the key in a file cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum KeyFileError {
    /// The file cannot be read.
    #[error("the key file {path} cannot be read: {cause}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The file cannot be created.
    #[error("the key file {path} cannot be created: {cause}")]
    Create {
        /// The file.
        path: PathBuf,
        /// The cause.
        cause: io::Error,
    },
    /// The file does not hold a private key in libp2p's protobuf encoding.
    #[error("the file {path} does not hold a private key in libp2p's protobuf encoding")]
    NotAKey {
        /// The file.
        path: PathBuf,
    },
}

/// Returns the key in the file. A file that does not exist is created with a new Ed25519 key.
pub(crate) fn load(path: &Path) -> Result<Keypair, KeyFileError> {
    let unreadable = |cause| KeyFileError::Read { path: path.to_owned(), cause };
    match fs::metadata(path) {
        Ok(metadata) if !metadata.is_file() || metadata.len() > MAX_LEN => {
            Err(KeyFileError::NotAKey { path: path.to_owned() })
        }
        Ok(_) => {
            let bytes = fs::read(path).map_err(unreadable)?;
            Keypair::from_protobuf_encoding(&bytes)
                .map_err(|_| KeyFileError::NotAKey { path: path.to_owned() })
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            create(path).map_err(|cause| KeyFileError::Create { path: path.to_owned(), cause })
        }
        Err(error) => Err(unreadable(error)),
    }
}

fn create(path: &Path) -> io::Result<Keypair> {
    let key = Keypair::generate_ed25519();
    let bytes = key.to_protobuf_encoding().map_err(io::Error::other)?;
    let mut options = OpenOptions::new();
    options.write(true).create_new(true);
    #[cfg(unix)]
    std::os::unix::fs::OpenOptionsExt::mode(&mut options, 0o600);
    let mut file = options.open(path)?;
    file.write_all(&bytes).and_then(|()| file.sync_all())?;
    Ok(key)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A folder that is removed on drop.
    struct Scratch(PathBuf);

    impl Scratch {
        fn new(test: &str) -> Self {
            let path = std::env::temp_dir().join(format!("punch-node-key-{test}-{}", std::process::id()));
            fs::create_dir_all(&path).unwrap();
            Self(path)
        }
    }

    impl Drop for Scratch {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn a_key_that_was_created_is_found_again() {
        let scratch = Scratch::new("again");
        let path = scratch.0.join("key");
        let created = load(&path).unwrap().public();
        assert_eq!(load(&path).unwrap().public(), created);
    }

    #[cfg(unix)]
    #[test]
    fn a_key_file_is_created_for_its_owner_only() {
        use std::os::unix::fs::PermissionsExt;
        let scratch = Scratch::new("mode");
        let path = scratch.0.join("key");
        load(&path).unwrap();
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
    }

    #[test]
    fn files_without_a_key_are_refused() {
        let scratch = Scratch::new("refused");
        let path = scratch.0.join("key");
        for contents in [b"".to_vec(), b"-----BEGIN".to_vec(), vec![8; 20_000]] {
            fs::write(&path, contents).unwrap();
            assert!(matches!(load(&path), Err(KeyFileError::NotAKey { .. })));
        }
        assert!(matches!(load(&scratch.0), Err(KeyFileError::NotAKey { .. })));
        let nowhere = scratch.0.join("missing").join("key");
        assert!(matches!(load(&nowhere), Err(KeyFileError::Create { .. })));
    }
}
