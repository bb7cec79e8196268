//! `esker snapshot create`.

use esker_server::admin::snapshots::Created;

use super::online::Online;
use super::render::files;
use crate::failure::Failure;
use crate::term::{Paint, bytes, plain, took};

/// Have a server put a snapshot of its partitions into the repository now, and wait for it.
///
/// Of every partition, or of one with --partition. A snapshot covers everything up to its LSN. The
/// archived LSN is that of the oldest retained snapshot: the server keeps its log from there on.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot create
  esker snapshot create --partition 3 --json | jq '.done[].lsn'")]
pub struct Args {}

pub async fn run(online: &Online) -> Result<(), Failure> {
    let partitions = online.partitions().await?;
    let create = async |partition| online.create(partition).await;
    online.each(&partitions, create, text).await
}

fn text(created: &Created) -> String {
    let paint = Paint::stdout();
    format!(
        "partition {:<3} LSN {:<8} {}  {}, {}; uploaded {} in {}; archived LSN {}",
        created.partition,
        created.lsn,
        paint.dim(plain(&created.snapshot)),
        files(created.files),
        bytes(created.bytes),
        bytes(created.bytes_uploaded),
        took(std::time::Duration::from_secs_f64(created.seconds)),
        created.archived_lsn,
    )
}
