//! Directories of a run: the repository, the installed peers and the programs that cargo has built.

use std::{
    env,
    path::{Path, PathBuf},
};

use anyhow::Context;

/// Directories of a run.
#[derive(Debug, Clone)]
pub(crate) struct Layout {
    /// The repository.
    pub(crate) root: PathBuf,
    /// The installed peers.
    pub(crate) cache: PathBuf,
    /// The programs of the workspace, as cargo places them.
    programs: PathBuf,
}

impl Layout {
    /// Derives the directories from the path of this program, which cargo has just built.
    pub(crate) fn find() -> anyhow::Result<Self> {
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..").canonicalize()?;
        let program = env::current_exe()?;
        let programs = program.parent().context("a program has a directory")?.to_owned();
        Ok(Self { cache: root.join("interop/.cache"), root, programs })
    }

    /// Path of a program of the workspace.
    pub(crate) fn binary(&self, name: &str) -> PathBuf {
        self.programs.join(name)
    }

    /// Directory with the sources of the peer of this name.
    pub(crate) fn peer_sources(&self, name: &str) -> PathBuf {
        self.root.join("interop/peers").join(name)
    }

    /// Cargo's target directory.
    pub(crate) fn target(&self) -> anyhow::Result<&Path> {
        self.programs.parent().context("programs are in a directory of the target directory")
    }
}
