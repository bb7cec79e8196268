//! `esker snapshot list`.

use std::fmt::Write as _;

use esker_repository::inventory::{Inventory, KeptSnapshot};
use esker_repository::{Error, Kind, PartitionId};
use serde::Serialize;

use super::failure;
use super::render::{created, snapshots, states, table};
use super::target::Target;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::{Paint, bytes, count, plain};

/// List the snapshots that are kept, and the uploads under way.
///
/// Of every partition, or of one with --partition. Newest LSN first. A snapshot is kept while it is
/// retained (the first of those is the newest), pinned by a restore, or abandoned by a fork.
#[derive(clap::Args)]
pub struct Args {}

#[derive(Serialize)]
pub struct Listing<'a> {
    pub repository: &'a str,
    pub partitions: Vec<Partition>,
}

#[derive(Serialize)]
#[serde(untagged)]
pub enum Partition {
    Readable(Box<Inventory>),
    Unreadable {
        partition: PartitionId,
        problem: String,
    },
}

pub async fn run(place: &Target, _: &Args, json: bool) -> Result<(), Failure> {
    let partitions = place.partitions().await?;
    if partitions.is_empty() {
        return Err(failure::no_repository(place.shown()));
    }
    let mut listing = Listing {
        repository: place.shown(),
        partitions: Vec::new(),
    };
    let mut first_problem = None;
    for id in &partitions {
        match place.reader(*id).inventory().await {
            Ok(inventory) => listing
                .partitions
                .push(Partition::Readable(Box::new(inventory))),
            // The other partitions may be intact, and are still shown.
            Err(error)
                if error.is_damage()
                    || matches!(
                        error,
                        Error::NoRoot { others: true, .. } | Error::NewerFormat { .. }
                    ) =>
            {
                listing.partitions.push(Partition::Unreadable {
                    partition: *id,
                    problem: error.to_string(),
                });
                first_problem.get_or_insert(error);
            }
            Err(error) => return Err(place.failure(error)),
        }
    }
    let result = first_problem.map_or(Ok(()), |error| Err(place.failure(error)));
    show(&listing, json, result)
}

/// Prints a listing with the failure in it if there is one, and returns the result.
pub fn show(listing: &Listing<'_>, json: bool, result: Result<(), Failure>) -> Result<(), Failure> {
    if json {
        return json::print_with(listing, result);
    }
    print(text(listing).trim_end())?;
    result
}

fn text(listing: &Listing<'_>) -> String {
    let paint = Paint::stdout();
    let mut text = format!("{}\n", paint.dim(listing.repository));
    for partition in &listing.partitions {
        // Writing to a string cannot fail.
        let _ = match partition {
            Partition::Readable(inventory) => writeln!(text, "\n{}", of_partition(inventory)),
            Partition::Unreadable { partition, problem } => {
                writeln!(text, "\npartition {partition}: {}\n", plain(problem))
            }
        };
    }
    text
}

fn of_partition(inventory: &Inventory) -> String {
    let restates = match inventory.generation {
        Some(_) => "",
        None => " (not written by Esker: never written to)",
    };
    let mut text = format!(
        "partition {} of cluster {}{restates}: {}\n",
        inventory.partition,
        plain(&inventory.cluster_name),
        snapshots(inventory.snapshots.len() as u64),
    );
    if !inventory.snapshots.is_empty() {
        let head = [
            "lsn",
            "snapshot",
            "created (UTC)",
            "kind",
            "files",
            "size",
            "node",
            "state",
        ];
        let rows: Vec<_> = inventory.snapshots.iter().map(row).collect();
        text += &table(&head, &rows, &[0, 4, 5]);
    }
    for upload in &inventory.uploads {
        let _ = writeln!(
            text,
            "upload under way by node {}, renewed {}",
            plain(&upload.node_name),
            created(upload.renewed_at),
        );
    }
    text
}

fn row(snapshot: &KeptSnapshot) -> Vec<String> {
    let or_unknown = |known: Option<String>| known.unwrap_or_else(|| "?".to_owned());
    let mut state = states(&snapshot.states);
    if let Some(mark) = snapshot.damaged.first() {
        let count = match snapshot.damaged.len() {
            1 => "1 object".to_owned(),
            n => format!("{n} objects"),
        };
        state = format!("{state}, damaged: {count}, such as {}", plain(&mark.key));
    }
    if let Some(problem) = &snapshot.problem {
        state = format!("{state}, unusable: {}", plain(problem));
    }
    vec![
        snapshot.lsn.to_string(),
        snapshot.snapshot_id.to_string(),
        or_unknown(snapshot.created_at.map(created)),
        or_unknown(snapshot.kind.map(|k| kind(k).to_owned())),
        or_unknown(snapshot.files.map(count)),
        or_unknown(snapshot.bytes.map(bytes)),
        or_unknown(snapshot.node_name.as_deref().map(plain)),
        state,
    ]
}

/// The kind as it is written on the command line.
pub fn kind(kind: Kind) -> &'static str {
    match kind {
        Kind::Full => "full",
        Kind::Incremental => "incremental",
    }
}
