//! `esker state export`.

use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use esker_proto::state::v1::ExportRequest;
use tempfile::NamedTempFile;

use super::connection::State;
use crate::exit::Failure;
use crate::follow_cmd::progress::spinner;
use crate::output::{Written, written};
use crate::term::{Paint, bytes};

/// Write the state into a file, as a JSON snapshot of the present.
///
/// `esker state import` takes it, into any server. The file is there only when it is whole.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state export -o backup.json
  esker state export | jq '.state | keys'
  esker state export --at-snapshot 12000 -o snapshot-12000.json")]
pub struct Args {
    /// The snapshot of this commit, one of `esker state snapshot --list` [default: a new one]
    #[arg(long, value_name = "COMMIT_TS")]
    at_snapshot: Option<u64>,

    /// Where to [default: standard output, which is `-`, too]
    #[arg(long, short, value_name = "FILE")]
    output: Option<PathBuf>,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    let request = ExportRequest {
        commit_ts: args.at_snapshot,
    };
    let pieces = state.client.export(request).await;
    let mut pieces = pieces.map_err(|e| state.failure(&e))?.into_inner();
    let path = args
        .output
        .as_deref()
        .filter(|path| *path != Path::new("-"));
    let mut target = match path {
        None => Target::Stdout(io::stdout()),
        Some(path) => Target::File(scratch(path)?),
    };
    let bar = spinner("exporting".into());
    let mut length = 0;
    loop {
        let piece = match pieces.message().await {
            Ok(Some(piece)) => piece.data,
            Ok(None) => break,
            Err(error) => {
                bar.finish_and_clear();
                return Err(state.failure(&error));
            }
        };
        match &mut target {
            Target::Stdout(out) => {
                if let Written::NobodyReads = written(out.write_all(&piece))? {
                    return Ok(());
                }
            }
            Target::File(file) => file
                .write_all(&piece)
                .map_err(|e| cannot(file.path(), &e))?,
        }
        length += piece.len() as u64;
        bar.set_message(format!("exporting, {}", bytes(length)));
    }
    bar.finish_and_clear();
    match (target, path) {
        (Target::File(file), Some(path)) => {
            file.as_file().sync_all().map_err(|e| cannot(path, &e))?;
            file.persist(path).map_err(|e| cannot(path, &e.error))?;
            let remark = format!("{}: {}", path.display(), bytes(length));
            say!("{}", Paint::stderr().dim(remark));
        }
        (Target::Stdout(mut out), _) => {
            written(out.flush())?;
        }
        // A file has a path.
        (Target::File(_), None) => {}
    }
    Ok(())
}

enum Target {
    Stdout(io::Stdout),
    File(NamedTempFile),
}

/// A file beside the one that is wanted, which is gone if it is not finished.
fn scratch(path: &Path) -> Result<NamedTempFile, Failure> {
    let directory = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let made = tempfile::Builder::new()
        .prefix(".esker-export-")
        .tempfile_in(directory);
    made.map_err(|e| cannot(path, &e))
}

fn cannot(path: &Path, error: &io::Error) -> Failure {
    Failure::wrong("io", format!("writing {}: {error}", path.display()))
}
