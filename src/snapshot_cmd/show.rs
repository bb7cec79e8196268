//! `esker snapshot show`.

use std::fmt::Write as _;

use esker_repository::{SnapshotMetadata, inventory::State};
use serde::Serialize;

use super::list::kind;
use super::render::{created, files, print_json, states, table};
use super::target::Target;
use crate::failure::Failure;
use crate::output::print;
use crate::term::{bytes, plain};

/// Show one snapshot: what it is, and its files with the objects that hold them.
#[derive(clap::Args)]
pub struct Args {
    /// The snapshot: its id, its directory's name or its LSN [default: the newest]
    #[arg(value_name = "SNAPSHOT")]
    pub snapshot: Option<String>,
}

#[derive(Serialize)]
pub struct Shown<'a> {
    pub repository: &'a str,
    pub partition: u16,
    pub snapshot: String,
    pub states: Vec<State>,
    pub kind: &'static str,
    pub files: usize,
    pub bytes: u64,
    /// The metadata as it is in the repository.
    pub metadata: &'a SnapshotMetadata,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let (repository, root) = place.read().await?;
    let dir = match &args.snapshot {
        Some(name) => repository.find(&root, name).map_err(|e| place.failure(e))?,
        None => place.newest(&root)?,
    };
    let metadata = repository.describe(&dir).await;
    let metadata = metadata.map_err(|e| place.failure(e))?;
    let shown = Shown {
        repository: place.shown(),
        partition: repository.partition().0,
        snapshot: dir.to_string(),
        states: root.states(&dir),
        kind: kind(metadata.kind()),
        files: metadata.files.len(),
        bytes: metadata.bytes(),
        metadata: &metadata,
    };
    show(&shown, json)
}

pub fn show(shown: &Shown<'_>, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(shown);
    }
    print(text(shown).trim_end())
}

fn text(shown: &Shown<'_>) -> String {
    let metadata = shown.metadata;
    let optional = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
    let facts = [
        ("snapshot", metadata.snapshot_id.to_string()),
        (
            "at",
            format!(
                "{}/{}/{}",
                shown.repository, shown.partition, shown.snapshot
            ),
        ),
        ("lsn", metadata.min_applied_lsn.to_string()),
        ("lineage", optional(metadata.lineage.map(|l| l.to_string()))),
        ("created", created(metadata.created_at)),
        ("state", states(&shown.states)),
        (
            "cluster",
            match metadata.cluster_fingerprint {
                Some(print) => format!("{} (fingerprint {print})", metadata.cluster_name),
                None => metadata.cluster_name.clone(),
            },
        ),
        ("node", metadata.node_name.clone()),
        ("kind", shown.kind.to_owned()),
        (
            "holds",
            format!("{}, {}", files(shown.files as u64), bytes(shown.bytes)),
        ),
        (
            "checksums",
            match &metadata.checksums {
                Some(_) => "xxh3-128 of every file".to_owned(),
                None => "none: of its files only the sizes can be checked".to_owned(),
            },
        ),
    ];
    let mut text = String::new();
    for (name, value) in facts {
        // Writing to a string cannot fail.
        let _ = writeln!(text, "{name:<10} {}", plain(&value));
    }
    let rows: Vec<_> = metadata
        .files
        .iter()
        .map(|file| {
            vec![
                plain(file.name.trim_start_matches('/')),
                bytes(file.size),
                plain(&metadata.key_of(file)),
            ]
        })
        .collect();
    if !rows.is_empty() {
        text.push('\n');
        text += &table(&["file", "size", "object"], &rows, &[1]);
    }
    text
}
