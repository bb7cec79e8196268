//! `esker snapshot why`.

use esker_repository::why::{Holder, Verdict, Why};

use super::render::orphan_reason;
use super::target::Target;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::{bytes, plain, took};

/// Show what keeps an object in the repository, or why it will be deleted.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker snapshot why ssts/3a7bd3e2360a3d29eea436fcfb7e44c70000000100000001.sst
  esker snapshot why lsn_00000000000000004200-snap_10LFxDCVEAwz1ZbnbLXHvLm/metadata.json
  esker snapshot why s3://bucket/prefix/0/latest.json")]
pub struct Args {
    /// The object: its key below the partition, its URL, or its path
    #[arg(value_name = "KEY")]
    pub key: String,
}

pub async fn run(place: &Target, args: &Args, json: bool) -> Result<(), Failure> {
    let (repository, _) = place.read().await?;
    let key = place.key(&args.key, repository.partition());
    let why = repository.why(&key).await.map_err(|e| place.failure(e))?;
    show(&why, json)
}

pub fn show(why: &Why, json: bool) -> Result<(), Failure> {
    let result = match why.verdict {
        Verdict::Lost => Err(Failure::wrong(
            "damaged",
            format!("{} is needed and missing", plain(&why.key)),
        )
        .advise("`esker snapshot verify` says what else is")),
        _ => Ok(()),
    };
    if json {
        return json::print_with(why, result);
    }
    print(text(why))?;
    result
}

fn text(why: &Why) -> String {
    let size = why
        .size
        .map_or_else(String::new, |size| format!(" ({})", bytes(size)));
    let mut lines = vec![format!("{}{size}", plain(&why.key))];
    let indented = |text: &str| format!("  {text}");
    match &why.verdict {
        Verdict::Root => lines.push(indented(
            "is the root: it lists what is kept, and is never deleted",
        )),
        Verdict::Foreign => lines.push(indented(
            "is not an object of a repository: it is never changed or deleted",
        )),
        Verdict::Kept => {}
        Verdict::Lost => lines.push(indented("is missing, and is needed:")),
        Verdict::Absent => lines.push(indented("does not exist, and nothing needs it")),
        Verdict::Orphan { why } => {
            lines.push(indented(&format!(
                "will go with the next sweep: {}",
                orphan_reason(*why)
            )));
        }
        Verdict::TooYoung { why, seconds_left } => lines.push(indented(&format!(
            "will go with the first sweep in {} or later: {}, but it is young",
            took(std::time::Duration::from_secs(*seconds_left)),
            orphan_reason(*why)
        ))),
    }
    for holder in &why.kept_by {
        lines.push(indented(&held_by(holder)));
    }
    lines.join("\n")
}

fn held_by(holder: &Holder) -> String {
    let part = |files: &[String]| match files {
        [] => "as its description".to_owned(),
        files => {
            let names: Vec<_> = files
                .iter()
                .map(|name| plain(name.trim_start_matches('/')))
                .collect();
            format!("as its {}", names.join(", "))
        }
    };
    match holder {
        Holder::Retained { snapshot, files } => {
            format!(
                "kept by {snapshot}, {}, which the root retains",
                part(files)
            )
        }
        Holder::Pinned {
            snapshot,
            pin,
            files,
        } => format!(
            "kept by {snapshot}, {}, which a restore has pinned ({})",
            part(files),
            plain(pin)
        ),
        Holder::Abandoned { snapshot, files } => format!(
            "kept by {snapshot}, {}, which a fork has abandoned; `esker snapshot prune \
             --abandoned` releases it",
            part(files)
        ),
        Holder::Intent {
            generation,
            node_name,
        } => format!(
            "kept for the upload of node {} that is under way (generation {generation})",
            plain(node_name)
        ),
    }
}
