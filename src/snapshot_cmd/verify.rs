//! `esker snapshot verify`.

use std::time::{Duration, Instant};

use esker_repository::{PartitionId, Progress, Verification};
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
/// it hurts.
#[derive(clap::Args)]
pub struct Args {
    /// Read and hash every byte
    #[arg(long)]
    pub data: bool,

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
                first = worse(first, judge(&report, PUT_ANEW).err());
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
    let (repository, _) = place.read_of(partition).await?;
    let progress = Progress::new();
    let started = Instant::now();
    let verifying = repository.verify(args.data, &progress);
    let left = "what is damaged was not found out";
    let report = watch(place, &progress, verifying, left).await?;
    let report = report.map_err(|e| place.failure(e))?;
    Ok((report, progress.bytes_done(), started.elapsed()))
}

/// Advice about damage that was found directly on a repository.
const PUT_ANEW: &str = "put a new snapshot with --no-reuse (a put reuses objects as they are), or bring them back \
                        from versions or a backup of the bucket";

/// A failure with advice, if anything is damaged.
pub fn judge(report: &Verification, advice: &str) -> Result<(), Failure> {
    if report.is_sound() {
        return Ok(());
    }
    let hurt: std::collections::BTreeSet<_> =
        report.damaged.iter().flat_map(|d| &d.hurts).collect();
    let of = report.snapshots.len();
    let damaged = match report.damaged.len() {
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
