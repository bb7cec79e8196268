//! `esker snapshot put`.

use std::num::{NonZeroU32, NonZeroU64};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use clap::ValueEnum;
use esker_repository::checkpoint::empty_directories;
use esker_repository::destination::probe;
use esker_repository::env::System;
use esker_repository::retention::Retention;
use esker_repository::sweep::Sweep;
use esker_repository::{
    Checkpoint, Digest, Digests, Error, Kind, LineageId, Lsn, Options, PartitionId, Progress, Put,
    RateLimiter, Repository, ownership,
};
use esker_server::config::ByteCount;
use serde::Serialize;

use super::failure::of_probe;
use super::prune::swept;
use super::render::{files, objects, snapshots};
use super::target::Target;
use super::watch::watch;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::{bytes, count, plain, took};

/// Most empty directories that a remark names.
const MAX_SHOWN: usize = 5;

/// Put a directory of immutable files into the repository, as a snapshot.
///
/// Only files that no retained snapshot has are uploaded. The snapshot becomes visible as a whole,
/// at the end. The first put creates the repository, after a probe of the store.
///
/// A snapshot holds files only: empty directories are reported, and are not part of it.
///
/// The files must never change: replace them instead. A repository on the same file system takes them
/// as hard links, so that a change would reach into it.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot put checkpoint/ --lsn 4200 --repository s3://bucket/prefix
  esker snapshot put checkpoint/ --lsn 4300 --num-retained 3 --sweep")]
pub struct Args {
    /// The directory; everything below it is put
    #[arg(value_name = "DIR")]
    dir: PathBuf,

    /// The last position in the partition's log that the files cover
    #[arg(long, value_name = "N")]
    lsn: u64,

    /// How files are kept: shared among snapshots, or a full copy of each
    #[arg(long, value_enum, value_name = "KIND", default_value_t = KindName::Incremental)]
    kind: KindName,

    /// Retain this many of the newest snapshots, and delete older ones at once [default: the newest
    /// alone; a sweep deletes older ones a day later]
    #[arg(long, value_name = "COUNT")]
    num_retained: Option<NonZeroU32>,

    /// The history that the position is of: 32 hexadecimal digits
    #[arg(long, value_name = "HEX")]
    lineage: Option<LineageId>,

    /// Sweep afterwards
    #[arg(long)]
    sweep: bool,

    /// Copy the files, even where the repository could take links
    #[arg(long)]
    no_links: bool,

    /// Upload every file, also those that a retained snapshot has: repairs a repository that
    /// `verify` found damaged
    #[arg(long)]
    no_reuse: bool,

    /// Upload at most this many bytes a second, such as 64MiB; 0 means no limit. Links are not
    /// counted [default: no limit]
    #[arg(long, value_name = "SIZE")]
    rate: Option<ByteCount>,

    /// Read and hash every file, also those that an earlier put hashed, and store no hashes
    #[arg(long)]
    no_cache: bool,
}

#[derive(Clone, Copy, ValueEnum)]
enum KindName {
    /// By content, shared among snapshots
    Incremental,
    /// All beside the snapshot's description; takes only files named like 000028.sst
    Full,
}

#[derive(Serialize)]
struct Done<'a> {
    repository: &'a str,
    partition: u16,
    snapshot: String,
    lsn: u64,
    kind: Kind,
    files: u64,
    bytes: u64,
    files_uploaded: u64,
    bytes_uploaded: u64,
    files_reused: u64,
    bytes_reused: u64,
    /// Empty directories, which a snapshot does not contain: it holds files.
    empty_directories: Vec<String>,
    retention: &'a Retention,
    sweep: Option<&'a Sweep>,
    seconds: f64,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let started = Instant::now();
    let dir = std::fs::canonicalize(&args.dir)
        .map_err(|e| Failure::usage("io", format!("cannot read {}: {e}", args.dir.display())))?;
    let cache = (!args.no_cache).then(|| cache_file(&dir)).flatten();
    let digests = cache.as_deref().map_or_else(Digests::new, Digests::load);
    let checkpoint = Checkpoint::scan(&dir, Lsn(args.lsn), digests.clone());
    let mut checkpoint = checkpoint.map_err(|e| place.failure(e))?;
    checkpoint.lineage = args.lineage;
    if checkpoint.files.is_empty() {
        return Err(Failure::usage(
            "invalid",
            format!("there is no file below {}", args.dir.display()),
        ));
    }

    let empty = empty_directories(&dir).map_err(|e| place.failure(e))?;
    let repository = open(place, args).await?;
    let progress = Progress::new();
    let putting = repository.put(&checkpoint, &progress);
    let left = "there is no snapshot of it; run it again, and hashes that were computed are known. \
                What was uploaded goes with a sweep, a day later";
    let put = watch(place, &progress, putting, left).await;
    if let Some(cache) = cache
        && let Err(error) = digests.save(&cache)
    {
        say!(
            "The hashes of the files are not remembered: cannot write {}: {error}",
            cache.display()
        );
    }
    let put = put?.map_err(|e| place.failure(e))?;
    let (mut sweep, mut result) = (None, Ok(()));
    if args.sweep {
        let left = "the snapshot is there; the sweep was given up";
        match watch(place, &Progress::new(), repository.sweep(), left).await {
            Ok(Ok(swept)) => sweep = Some(swept),
            Ok(Err(error)) => result = Err(place.failure(error)),
            Err(interrupted) => result = Err(interrupted),
        }
    }
    let done = Done {
        repository: place.shown(),
        partition: repository.partition().0,
        snapshot: put.snapshot.to_string(),
        lsn: args.lsn,
        kind: args.kind.into(),
        files: put.files,
        bytes: put.bytes,
        files_uploaded: put.files_uploaded,
        bytes_uploaded: put.bytes_uploaded,
        files_reused: put.files - put.files_uploaded,
        bytes_reused: put.bytes - put.bytes_uploaded,
        empty_directories: empty.iter().map(|dir| dir.display().to_string()).collect(),
        retention: &put.retention,
        sweep: sweep.as_ref(),
        seconds: started.elapsed().as_secs_f64(),
    };
    if json {
        return json::print_with(&done, result);
    }
    print(text(&done, &put, args))?;
    result
}

/// Opens the partition for writing. The store is probed before the first put; afterwards, the existence of a
/// root shows that it was.
async fn open(place: &Target, args: &Args) -> Result<Repository, Failure> {
    let partition = place.partition_if_any().await?.unwrap_or(PartitionId(0));
    let marker = ownership::marker(place.destination()).await;
    let marker = marker.map_err(|e| place.failure(e))?;
    let root = match place.reader(partition).root().await {
        Ok(root) => Some(root),
        Err(Error::NoRoot { others: false, .. }) => {
            // The probe writes, so the check for another cluster comes first.
            let cluster = place.cluster(None, marker.as_ref());
            let owner = ownership::check(place.destination(), &cluster).await;
            owner.map_err(|e| place.failure(e))?;
            probe(place.destination(), &System)
                .await
                .map_err(|e| of_probe(&e, place.place()))?;
            None
        }
        Err(error) => return Err(place.failure(error)),
    };
    let options = Options {
        cluster: Some(place.cluster(root.as_deref(), marker.as_ref())),
        kind: args.kind.into(),
        num_retained: args.num_retained,
        reuse: !args.no_reuse,
        rate_limiter: args
            .rate
            .and_then(|rate| NonZeroU64::new(rate.as_u64()))
            .map(RateLimiter::new),
        ..Options::default()
    };
    let destination = if args.no_links {
        place.without_links()?
    } else {
        place.destination().clone()
    };
    Ok(Repository::new(&destination, partition, options))
}

fn text(done: &Done<'_>, put: &Put, args: &Args) -> String {
    let took_all = Duration::from_secs_f64(done.seconds);
    let mut lines = vec![format!(
        "put {} as {}: {} ({}); uploaded {} ({}), reused {} ({}); {}",
        args.dir.display(),
        done.snapshot,
        files(done.files),
        bytes(done.bytes),
        done.files_uploaded,
        bytes(done.bytes_uploaded),
        done.files_reused,
        bytes(done.bytes_reused),
        took(took_all),
    )];
    if !done.empty_directories.is_empty() {
        let shown = done.empty_directories.iter().take(MAX_SHOWN);
        let shown: Vec<_> = shown.map(|name| plain(name)).collect();
        let more = match done.empty_directories.len() - shown.len() {
            0 => String::new(),
            n => format!(" and {} more", count(n as u64)),
        };
        lines.push(format!(
            "not kept, as there is no file in them: {}{more}",
            shown.join(", ")
        ));
    }
    let Retention {
        evicted,
        deleted,
        failed,
    } = &put.retention;
    if !evicted.is_empty() {
        lines.push(format!(
            "retained no more: {}; {}",
            snapshots(evicted.len() as u64),
            match (args.num_retained, *failed) {
                (None, _) =>
                    "a sweep deletes the objects that only it has, once they are a day old (--num-retained keeps more)"
                        .to_owned(),
                (Some(_), 0) => format!("{} deleted", objects(*deleted)),
                (Some(_), failed) => format!(
                    "{} deleted, {failed} could not be: a sweep will",
                    objects(*deleted)
                ),
            }
        ));
    }
    if let Some(sweep) = done.sweep {
        lines.push(swept(sweep));
    }
    lines.join("\n")
}

impl From<KindName> for Kind {
    fn from(name: KindName) -> Kind {
        match name {
            KindName::Incremental => Kind::Incremental,
            KindName::Full => Kind::Full,
        }
    }
}

/// The file that caches the hashes of a directory's files between runs. `None` without a home directory.
fn cache_file(dir: &Path) -> Option<PathBuf> {
    let variable = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let caches = variable
        // The specification of this variable requires an absolute path.
        .filter(|path| path.is_absolute())
        .or_else(|| Some(std::env::home_dir()?.join(".cache")))?;
    let name = Digest::of(dir.as_os_str().as_encoded_bytes());
    Some(caches.join("esker/digests").join(format!("{name}.json")))
}
