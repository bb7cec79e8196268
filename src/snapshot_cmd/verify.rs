//! `esker snapshot verify`.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use esker_repository::repair::{FilesBySize, LocalCopies, NoCopies};
use esker_repository::{
    Checkpoint, Digests, Lsn, Options, PartitionId, Progress, Repository, Verification,
};
use serde::Serialize;

use super::render::{objects, snapshots};
use super::target::Target;
use super::watch::watch;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::{Paint, byte_rate, bytes, plain, plain_lines, took};

/// Check that everything is there that the kept snapshots need.
///
/// Of every partition, or of one with --partition. Looks whether all objects are there and have the right size; with --data also reads and hashes
/// every byte. Exits with 1 if anything is damaged, and names each damaged object and the snapshots
/// it hurts. With --repair, uploads what is damaged or missing again from a file with the same bytes, and
/// exits with 1 only if something stays damaged. A server has the files of its database; on a repository,
/// --files names a directory, without which only what another snapshot has can be repaired, and the rest is
/// marked, so that no snapshot uses it again.
#[derive(clap::Args)]
pub struct Args {
    /// Read and hash every byte
    #[arg(long)]
    pub data: bool,

    /// Repair what is damaged or missing, and mark what cannot be repaired
    #[arg(long, requires = "data", conflicts_with = "restore")]
    pub repair: bool,

    /// With --repair, on a repository: a directory of files, such as a checkpoint, from which damaged
    /// objects are uploaded again; every file there is compared by its checksum
    #[arg(long, value_name = "DIR", requires = "repair")]
    pub files: Option<PathBuf>,

    /// Restore the newest snapshot into a scratch directory of the server, replay the log, and compare
    /// it with the live partition
    #[arg(long, conflicts_with = "data")]
    pub restore: bool,

    /// With --restore: this snapshot, by its id, its directory's name or its LSN
    #[arg(value_name = "SNAPSHOT", requires = "restore")]
    pub snapshot: Option<String>,
}

#[derive(Serialize)]
pub struct Verified<'a> {
    pub repository: &'a str,
    pub partition: u16,
    pub sound: bool,
    #[serde(flatten)]
    pub report: &'a Verification,
    pub seconds: f64,
}

/// A partition, as one of several.
#[derive(Serialize)]
#[serde(untagged)]
pub enum Document<'a> {
    Verified(Verified<'a>),
    /// It could not be verified.
    Unverified {
        partition: u16,
        problem: &'a str,
    },
}

/// The results of several partitions.
#[derive(Serialize)]
pub struct Documents<'a> {
    pub partitions: Vec<Document<'a>>,
}

/// The result of one partition.
struct Found {
    partition: PartitionId,
    report: Result<(Verification, Duration), String>,
}

impl Found {
    fn document<'a>(&'a self, repository: &'a str) -> Document<'a> {
        let partition = self.partition.0;
        match &self.report {
            Ok((report, took)) => Document::Verified(Verified {
                repository,
                partition,
                sound: report.is_sound(),
                report,
                seconds: took.as_secs_f64(),
            }),
            Err(problem) => Document::Unverified { partition, problem },
        }
    }
}

/// The failure that the command ends with: damage takes precedence over a partition that could not be
/// reached.
pub fn worse(one: Option<Failure>, other: Option<Failure>) -> Option<Failure> {
    match (one, other) {
        (Some(one), Some(other)) if one.exit != 1 && other.exit == 1 => Some(other),
        (Some(one), _) => Some(one),
        (None, other) => other,
    }
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let partitions = place.some_partitions().await?;
    let several = partitions.len() > 1;
    let (mut all, mut first) = (Vec::new(), None);
    for partition in partitions {
        let report = match one(place, partition, args).await {
            Ok((report, read, took)) => {
                if !json {
                    let text = text(&report, read, took);
                    match several {
                        true => print(format_args!("partition {partition}: {text}"))?,
                        false => print(text)?,
                    }
                }
                let advice = match args.repair && args.files.is_none() {
                    true => NAME_FILES,
                    false => PUT_ANEW,
                };
                first = worse(first, judge(&report, advice).err());
                Ok((report, took))
            }
            // The other partitions may be intact, and are still shown.
            Err(failure) if several && failure.code != "interrupted" => {
                let problem = failure.text();
                if !json {
                    say!("partition {partition}: {}", plain_lines(&problem));
                }
                first = worse(first, Some(failure));
                Err(problem)
            }
            Err(failure) => {
                first = worse(first, Some(failure));
                break;
            }
        };
        all.push(Found { partition, report });
    }
    let result = first.map_or(Ok(()), Err);
    let documents = all.iter().map(|found| found.document(place.shown()));
    match (json, several, all.first()) {
        (false, ..) | (true, false, None) => result,
        (true, false, Some(only)) => json::print_with(&only.document(place.shown()), result),
        (true, true, _) => {
            let partitions = documents.collect();
            json::print_with(&Documents { partitions }, result)
        }
    }
}

/// Verifies a partition. Returns the result, the bytes that were read, and how long it took.
async fn one(
    place: &Target,
    partition: PartitionId,
    args: &Args,
) -> Result<(Verification, u64, Duration), Failure> {
    let (repository, root) = place.read_of(partition).await?;
    let progress = Progress::new();
    let started = Instant::now();
    let verifying = repository.verify(args.data, &progress);
    let left = "not all objects were verified";
    let report = watch(place, &progress, verifying, left).await?;
    let mut report = report.map_err(|e| place.failure(e))?;
    let read = progress.bytes_done();
    if args.repair && !(report.is_sound() && report.sound.is_empty()) {
        let options = Options {
            cluster: Some(place.cluster(Some(&root), None)),
            ..Options::default()
        };
        let writer = Repository::new(place.destination(), partition, options);
        if !report.sound.is_empty() {
            // What was brought back is used again.
            let unmarking = writer.mark(&[], &report.sound);
            let unmarked = watch(place, &Progress::new(), unmarking, "run it again").await?;
            unmarked.map_err(|e| place.failure(e))?;
        }
        if report.damaged.is_empty() {
            return Ok((report, read, started.elapsed()));
        }
        let copies: Box<dyn LocalCopies> = match &args.files {
            Some(dir) => {
                let files = Checkpoint::scan(dir, Lsn(0), Digests::new());
                Box::new(FilesBySize::of(&files.map_err(|e| place.failure(e))?))
            }
            None => Box::new(NoCopies),
        };
        let progress = Progress::new();
        let bad = report.bad_objects();
        let repairing = writer.repair(&bad, &*copies, &progress);
        let left = "what was repaired stays repaired, and what was found is marked; run it again";
        let repaired = watch(place, &progress, repairing, left).await?;
        let (repair, _) = repaired.map_err(|e| place.failure(e))?;
        report.repair = Some(repair);
    }
    Ok((report, read, started.elapsed()))
}

/// Advice about damage that was found directly on a repository.
const PUT_ANEW: &str = "put a new snapshot with --no-reuse (a put reuses objects as they are), or bring them back \
                        from versions or a backup of the bucket";

/// Advice about damage that a repair without files has left.
const NAME_FILES: &str = "without a server, objects are repaired from the files of --files DIR; have the server of this \
                          repository repair it with --server, or put a new snapshot, which reuses nothing that is marked";

/// A failure with advice, if anything is damaged and was not repaired.
pub fn judge(report: &Verification, advice: &str) -> Result<(), Failure> {
    if report.is_sound() {
        return Ok(());
    }
    let is_well = report.damaged.is_empty() || report.is_repaired();
    if let Some(newer) = report.newer.first().filter(|_| is_well) {
        let count = snapshots(report.newer.len() as u64);
        let (snapshot, why) = (plain(&newer.snapshot), plain(&newer.why));
        let what = format!(
            "{count} of a newer release of Esker could not be verified ({snapshot}: {why}); no damage was found"
        );
        return Err(Failure::wrong("newer_format", what).advise("verify it with that release"));
    }
    if is_well {
        return Ok(());
    }
    let repaired = report.repair.iter().flat_map(|repair| &repair.repaired);
    let repaired: Vec<_> = repaired.map(|one| &one.key).collect();
    let left = report
        .damaged
        .iter()
        .filter(|d| !repaired.contains(&&d.key));
    let hurt: std::collections::BTreeSet<_> = left.clone().flat_map(|d| &d.hurts).collect();
    let of = report.snapshots.len();
    let damaged = match left.count() {
        1 => "1 object is damaged".to_owned(),
        n => format!("{n} objects are damaged"),
    };
    Err(Failure::wrong(
        "damaged",
        format!(
            "{damaged}, which hurts {} of {of}; {}",
            snapshots(hurt.len() as u64),
            if hurt.len() < of {
                "a restore passes over the hurt"
            } else {
                "none is left that a restore could use"
            }
        ),
    )
    .advise(advice))
}

pub fn text(report: &Verification, read: u64, took_all: Duration) -> String {
    let mut lines = Vec::new();
    for damaged in &report.damaged {
        lines.push(format!(
            "damaged: {}: {}",
            plain(&damaged.key),
            plain(&damaged.why)
        ));
        for snapshot in &damaged.hurts {
            lines.push(format!("  hurts {snapshot}"));
        }
    }
    if let Some(repair) = &report.repair {
        for one in &repair.repaired {
            let how = match &one.uploaded_from {
                Some(file) => format!("uploaded again from {}", plain(file)),
                None => "another snapshot has the same bytes".to_owned(),
            };
            lines.push(format!("repaired: {}: {how}", plain(&one.key)));
        }
        for one in &repair.replaced {
            lines.push(format!(
                "  {} is now {}",
                plain(&one.before),
                plain(&one.now)
            ));
        }
        for one in &repair.marked {
            let (key, why) = (plain(&one.key), plain(&one.why));
            lines.push(format!("marked: {key}: {why}"));
        }
    }
    for one in &report.newer {
        let (snapshot, why) = (plain(&one.snapshot), plain(&one.why));
        lines.push(format!(
            "not verified: {snapshot}: of a newer release of Esker ({why})"
        ));
    }
    for snapshot in &report.without_checksums {
        lines.push(format!(
            "{snapshot} has no checksums: of its files only the sizes could be checked"
        ));
    }
    let looked_at = format!(
        "{} of {} ({})",
        objects(report.objects),
        snapshots(report.snapshots.len() as u64),
        bytes(report.bytes)
    );
    lines.push(if report.data {
        format!(
            "looked at {looked_at}, read {} in {} ({})",
            bytes(read),
            took(took_all),
            byte_rate(read, took_all)
        )
    } else {
        format!("looked at the sizes of {looked_at} in {}", took(took_all))
    });
    if report.is_sound() {
        let paint = Paint::stdout();
        lines.push(match (report.data, report.without_checksums.is_empty()) {
            (true, true) => paint.green("every byte is as it was written"),
            (true, false) => paint.green("everything that can be checked is as it was written"),
            (false, _) => "everything is there; --data reads and hashes every byte".to_owned(),
        });
    }
    lines.join("\n")
}
