//! `esker snapshot restore`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use esker_repository::restore::Checked;
use esker_repository::{Error, Options, Progress, Repository, Restored, SnapshotDir, Which};
use serde::Serialize;

use super::render::{files, print_json};
use super::target::{Target, remark_on};
use super::watch::watch;
use crate::failure::Failure;
use crate::output::print;
use crate::term::{byte_rate, bytes, plain, took};

/// Restore a snapshot into a directory, every byte checked.
///
/// The directory must not exist, or must be empty. Files are fetched into DIR.partial beside it, which is
/// renamed once all are complete: DIR has every file, or does not exist. An empty directory that exists,
/// such as a mount point, is kept: files are fetched into .esker-restore.partial in it, and moved once
/// all are complete. After an interruption, the same command resumes the restore.
///
/// Without SNAPSHOT the newest usable one is restored: a damaged one is reported, and the one
/// before it is tried. While it reads, the snapshot is pinned in the repository's root, so that no
/// sweep deletes it; a repository that cannot be written to is read without a pin.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot restore --to restored/
  esker snapshot restore 4200 --to restored/")]
pub struct Args {
    /// Only this snapshot: its id, its directory's name or its LSN [default: the newest usable]
    #[arg(value_name = "SNAPSHOT")]
    snapshot: Option<String>,

    /// Where the files go
    #[arg(long, value_name = "DIR")]
    to: PathBuf,

    /// Write nothing to the repository, not even a pin
    #[arg(long)]
    no_pin: bool,
}

#[derive(Serialize)]
struct Done<'a> {
    repository: &'a str,
    partition: u16,
    snapshot: String,
    lsn: u64,
    to: String,
    files: u64,
    bytes: u64,
    checked: Checked,
    /// Files that an earlier attempt left complete.
    resumed: u64,
    pinned: bool,
    passed_over: Vec<PassedOver>,
    seconds: f64,
}

#[derive(Serialize)]
struct PassedOver {
    snapshot: String,
    why: String,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let reader = place.reader(place.partition().await?);
    let dir = args.snapshot.as_deref().and_then(SnapshotDir::parse);
    let (which, root) = match (reader.root().await, dir) {
        (Ok(root), _) => {
            remark_on(&root);
            let which = match &args.snapshot {
                Some(name) => {
                    Which::Exactly(reader.find(&root, name).map_err(|e| place.failure(e))?)
                }
                None => Which::Newest,
            };
            (which, Some(root))
        }
        // The library reads the root again, and restores a snapshot that is named in full without a root.
        (Err(error), Some(dir)) if is_of_no_use(&error) => (Which::Exactly(dir), None),
        (Err(error), _) => return Err(place.failure(error)),
    };
    let root = root.filter(|root| !args.no_pin && root.generation.is_some());
    let pins = root.is_some();
    let repository = if let Some(root) = root {
        let options = Options {
            cluster: Some(place.cluster(Some(&root), None)),
            ..Options::default()
        };
        Repository::new(place.destination(), reader.partition(), options)
    } else {
        reader
    };
    let progress = Progress::new();
    let started = Instant::now();
    let restoring = repository.restore(&which, &args.to, &progress);
    let left = format!(
        "{} is not restored; run the same command again to resume{}",
        args.to.display(),
        if pins {
            " (the pin in the repository expires within 6 hours)"
        } else {
            ""
        }
    );
    let restored = watch(place, &progress, restoring, &left).await?;
    let restored = restored.map_err(|e| place.failure(e))?;
    let done = done(place, &repository, &restored, pins, started.elapsed());
    if json {
        return print_json(&done);
    }
    print(text(&done, &restored))
}

/// Whether it is the root alone that cannot be used: it is damaged or missing, or a newer release has written it.
fn is_of_no_use(error: &Error) -> bool {
    error.is_damage()
        || matches!(
            error,
            Error::NoRoot { others: true, .. } | Error::NewerFormat { .. }
        )
}

fn done<'a>(
    place: &'a Target,
    repository: &Repository,
    restored: &Restored,
    pins: bool,
    took_all: Duration,
) -> Done<'a> {
    let metadata = restored.metadata();
    let passed_over = restored.passed_over().iter();
    Done {
        repository: place.shown(),
        partition: repository.partition().0,
        snapshot: metadata.dir().to_string(),
        lsn: metadata.min_applied_lsn.0,
        to: restored.dir().display().to_string(),
        files: metadata.files.len() as u64,
        bytes: metadata.bytes(),
        checked: restored.checked(),
        resumed: restored.resumed(),
        pinned: pins && restored.unpinned().is_none(),
        passed_over: passed_over
            .map(|(dir, why)| PassedOver {
                snapshot: dir.to_string(),
                why: why.to_string(),
            })
            .collect(),
        seconds: took_all.as_secs_f64(),
    }
}

fn text(done: &Done<'_>, restored: &Restored) -> String {
    let mut lines = Vec::new();
    for PassedOver { snapshot, why } in &done.passed_over {
        lines.push(format!("passed over {snapshot}: {}", plain(why)));
    }
    let took_all = Duration::from_secs_f64(done.seconds);
    lines.push(format!(
        "restored {} to {}: {} ({}) in {}, {}",
        done.snapshot,
        done.to,
        files(done.files),
        bytes(done.bytes),
        took(took_all),
        byte_rate(done.bytes, took_all),
    ));
    if done.resumed > 0 {
        lines.push(format!(
            "{} were there already, whole, from an attempt before",
            files(done.resumed)
        ));
    }
    lines.push(match done.checked {
        Checked::Checksums => "checked: size and xxh3-128 of every file".to_owned(),
        Checked::SizesOnly => {
            "checked: sizes only, as the snapshot was written without checksums".to_owned()
        }
    });
    if let Some(why) = restored.unpinned() {
        lines.push(format!(
            "it was not pinned meanwhile: {}",
            plain(&why.to_string())
        ));
    }
    lines.join("\n")
}
