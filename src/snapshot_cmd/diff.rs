//! `esker snapshot diff`.

use std::fmt::Write as _;

use esker_repository::why::{Diff, FileSize};

use super::render::{files, print_json};
use super::target::Target;
use crate::failure::Failure;
use crate::output::print;
use crate::term::{bytes, plain};

/// Show how two snapshots differ, file by file.
///
/// Files are compared by checksum, so a file that was written again with the same bytes is the same.
#[derive(clap::Args)]
pub struct Args {
    /// The one: an id, a directory's name or an LSN
    #[arg(value_name = "A")]
    pub old: String,

    /// The other
    #[arg(value_name = "B")]
    pub new: String,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let (repository, root) = place.read().await?;
    let find = |name: &str| repository.find(&root, name).map_err(|e| place.failure(e));
    let (old, new) = (find(&args.old)?, find(&args.new)?);
    let diff = repository.diff(&old, &new).await;
    let diff = diff.map_err(|e| place.failure(e))?;
    show(&diff, json)
}

pub fn show(diff: &Diff, json: bool) -> Result<(), Failure> {
    if json {
        return print_json(diff);
    }
    print(text(diff).trim_end())
}

fn text(diff: &Diff) -> String {
    let mut text = format!("from {}\nto   {}\n", diff.old, diff.new);
    for (sign, list) in [
        ('+', &diff.added),
        ('-', &diff.removed),
        ('~', &diff.changed),
    ] {
        for FileSize { name, size } in list {
            let name = plain(name.trim_start_matches('/'));
            // Writing to a string cannot fail.
            let _ = writeln!(text, "{sign} {name}  {}", bytes(*size));
        }
    }
    let _ = writeln!(
        text,
        "{} added ({}), {} removed ({}), {} changed ({}), {} the same ({})",
        files(diff.added.len() as u64),
        bytes(diff.added_bytes),
        diff.removed.len(),
        bytes(diff.removed_bytes),
        diff.changed.len(),
        bytes(diff.changed_bytes),
        diff.same,
        bytes(diff.same_bytes),
    );
    text
}
