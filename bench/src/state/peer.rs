//! Installation of the peer's program: `statehoused`, of the crate `statehouse-daemon`, in a pinned version.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, bail};

use super::load;
use crate::process::Server;
use bench_harness::scratch;
use testkit::ports::free_port;

/// Its version.
pub const VERSION: &str = "0.1.0";

/// The peer's program: the one at `path`, or the one in the cache directory, which is built first if it
/// is missing.
pub fn program(path: Option<PathBuf>) -> anyhow::Result<PathBuf> {
    if let Some(path) = path {
        anyhow::ensure!(path.is_file(), "there is no program {}", path.display());
        return Ok(path);
    }
    let root = scratch::cache_directory()?.join("peers");
    let path = root.join("bin").join("statehoused");
    if path.is_file() {
        return Ok(path);
    }
    eprintln!(
        "Building statehouse-daemon {VERSION} into {} for comparison. This happens once, takes from ten \
         minutes to half an hour, and needs protoc (Debian: apt-get install protobuf-compiler).",
        root.display()
    );
    let status = Command::new("cargo")
        .args([
            "install",
            "statehouse-daemon",
            "--locked",
            "--version",
            VERSION,
            "--root",
        ])
        .arg(&root)
        .stdin(Stdio::null())
        // Standard output is for the table alone.
        .stdout(Stdio::from(std::io::stderr()))
        .status()
        .context("cannot execute cargo")?;
    if !status.success() {
        bail!("cargo install statehouse-daemon ended with {status}");
    }
    Ok(path)
}

/// A running peer. Dropping it kills it.
pub struct Peer {
    process: Server,
}

impl Peer {
    /// Starts it on an empty directory, with its most durable settings.
    pub async fn start(program: &Path, data: &Path) -> anyhow::Result<Peer> {
        let port = free_port()?;
        std::fs::create_dir_all(data)?;
        let address = format!("127.0.0.1:{port}");
        let mut command = Command::new(program);
        command
            .current_dir(data)
            .env("STATEHOUSE_ADDR", &address)
            .env("STATEHOUSE_LISTEN_ADDR", &address)
            .env("STATEHOUSE_DATA_DIR", data)
            .env("STATEHOUSE_FSYNC_ON_COMMIT", "1")
            // A log line per request would cost the peer much time.
            .env("RUST_LOG", "warn");
        let log = data.with_extension("log");
        let peer = Peer {
            process: Server::spawn("statehoused", &mut command, port, &log)?,
        };
        load::connect(&peer.url()).await?;
        Ok(peer)
    }

    pub fn url(&self) -> String {
        self.process.url()
    }
}
