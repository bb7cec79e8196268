//! Checkpoints of a directory of immutable files, in a repository in another directory.
//!
//! `cargo run --release -p esker-repository --example checkpoints`
//!
//! It puts a directory, changes one file of it, puts it again, and shows that only this file was
//! uploaded; then it lists, verifies, restores and sweeps. No network is needed: with
//! `s3://bucket/prefix` instead of the directory, the same code works on a bucket.

use std::error::Error;
use std::fs;
use std::num::NonZeroU32;
use std::path::Path;

use esker_repository::destination::{Destination, DestinationOptions, probe};
use esker_repository::env::System;
use esker_repository::{
    Checkpoint, Cluster, Digests, Kind, Lsn, Options, PartitionId, Progress, Repository, Which,
};

/// Writes a file of 1 MiB. Files are immutable: a new content is a new file.
fn write(dir: &Path, name: &str, byte: u8) -> std::io::Result<()> {
    let path = dir.join(name);
    let _ = fs::remove_file(&path);
    fs::write(path, vec![byte; 1 << 20])
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn Error>> {
    let work = std::env::temp_dir().join(format!("esker-checkpoints-{}", std::process::id()));
    let done = example(&work).await;
    fs::remove_dir_all(&work)?;
    done
}

async fn example(work: &Path) -> Result<(), Box<dyn Error>> {
    // The destination: any URL that `Destination::open` accepts. The probe tests whether its conditional
    // puts are reliable, which safety depends on.
    let place = work.join("repository");
    let place = place.to_str().ok_or("a directory whose name is no UTF-8")?;
    let destination = Destination::open(place, &DestinationOptions::default())?;
    probe(&destination, &System).await?;
    let options = Options {
        cluster: Some(Cluster {
            name: "example".to_owned(),
            fingerprint: Some(4711),
            node_name: "here".to_owned(),
        }),
        kind: Kind::Incremental,
        num_retained: NonZeroU32::new(3),
        ..Options::default()
    };
    let repository = Repository::new(&destination, PartitionId(0), options);

    let files = work.join("files");
    fs::create_dir_all(&files)?;
    for number in 0..8_u8 {
        write(&files, &format!("{number:06}.sst"), number)?;
    }

    // The checkpoint: the files, and the position in a log that they cover. Checksums are computed once.
    let digests = Digests::new();
    let checkpoint = Checkpoint::scan(&files, Lsn(100), digests.clone())?;
    let first = repository.put(&checkpoint, &Progress::new()).await?;
    println!(
        "{}: {} bytes uploaded of {}",
        first.snapshot, first.bytes_uploaded, first.bytes
    );

    write(&files, "000003.sst", 77)?;
    let checkpoint = Checkpoint::scan(&files, Lsn(200), digests)?;
    let second = repository.put(&checkpoint, &Progress::new()).await?;
    println!(
        "{}: {} bytes uploaded of {}",
        second.snapshot, second.bytes_uploaded, second.bytes
    );

    for retained in &repository.root().await?.retained_snapshots {
        println!("retained: {} of {}", retained.path, retained.created_at);
    }
    let diff = repository.diff(&first.snapshot, &second.snapshot).await?;
    println!(
        "changed: {:?}; {} files are the same",
        diff.changed, diff.same
    );

    let report = repository.verify(true, &Progress::new()).await?;
    println!(
        "verified: {} objects, {} damaged",
        report.objects,
        report.damaged.len()
    );

    let to = work.join("restored");
    let restored = repository
        .restore(&Which::Newest, &to, &Progress::new())
        .await?;
    let count = fs::read_dir(restored.dir())?.count();
    println!("restored: {count} files of {}", restored.metadata().dir());

    let sweep = repository.sweep().await?;
    println!(
        "swept: {} objects listed, {} deleted",
        sweep.listed, sweep.deleted
    );
    Ok(())
}
