//! Installation of the peer's program.
//!
//! `s2 lite` ships in the crate `s2-cli`. Its version is pinned here, so that two runs of the
//! bench compare with the same peer.

use std::{path::PathBuf, process::Stdio};

use anyhow::{Context, bail};

use crate::process::{Contender, Program};
use bench_harness::scratch;

/// Version of `s2-cli` that is installed when there is none.
pub const S2_CLI_VERSION: &str = "0.43.4";

/// The peer's program: the one at `path`, or the one in the cache directory, which is built first
/// if it is missing.
///
/// # Errors
///
/// If there is no file at `path`, or the build fails.
pub async fn program(path: Option<PathBuf>) -> anyhow::Result<Program> {
    let path = match path {
        Some(path) if path.is_file() => path,
        Some(path) => bail!("there is no program {}", path.display()),
        None => {
            let root = scratch::cache_directory()?.join("peers");
            let path = root.join("bin").join("s2");
            if !path.is_file() {
                install(&root).await?;
            }
            path
        }
    };
    Ok(Program {
        contender: Contender::Peer,
        path,
    })
}

async fn install(root: &std::path::Path) -> anyhow::Result<()> {
    eprintln!(
        "Building s2-cli {S2_CLI_VERSION} into {} for comparison. This happens once and takes \
         from ten minutes to half an hour.",
        root.display()
    );
    let status = tokio::process::Command::new("cargo")
        .args(["install", "s2-cli", "--locked", "--version", S2_CLI_VERSION])
        .arg("--root")
        .arg(root)
        .stdin(Stdio::null())
        // Standard output is for the table alone.
        .stdout(Stdio::from(std::io::stderr()))
        .kill_on_drop(true)
        .status()
        .await
        .context("cannot execute cargo")?;
    if !status.success() {
        bail!("cargo install s2-cli ended with {status}");
    }
    Ok(())
}
