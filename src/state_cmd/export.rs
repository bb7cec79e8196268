//! `esker state export`.

use std::io::{self, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};

use esker_proto::state::v1::ExportRequest;

use super::connection::State;
use crate::failure::Failure;
use crate::follow_cmd::progress::spinner;
use crate::json::EscapedPieces;
use crate::output::{Written, written};
use crate::output_file::OutputFile;
use crate::term::bytes;

/// Write the state into a file, as a JSON snapshot of the present.
///
/// `esker state import` takes it, into any server. The file is there only when it is whole. One that
/// is replaced keeps its owner and mode, and a new one is for its owner alone. A device, a FIFO and
/// what a link points to are written through.
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

    /// Replace FILE if it is there already
    #[arg(long, requires = "output")]
    force: bool,
}

impl Args {
    /// Opens the destination, before the export is requested.
    ///
    /// # Errors
    ///
    /// `file_exists`, `io`.
    pub fn target(&self) -> Result<Target, Failure> {
        let path = self.output.as_deref();
        match path.filter(|path| *path != Path::new("-")) {
            None if io::stdout().is_terminal() => {
                Ok(Target::Terminal(io::stdout(), EscapedPieces::default()))
            }
            None => Ok(Target::Stdout(io::stdout())),
            Some(path) => Ok(Target::File(OutputFile::create(path, self.force)?)),
        }
    }
}

/// The destination of an export.
pub enum Target {
    Stdout(io::Stdout),
    /// Standard output on a terminal, with control characters escaped: the document has the same meaning, and
    /// its bytes are not compared.
    Terminal(io::Stdout, EscapedPieces),
    File(OutputFile),
}

impl Target {
    fn write(&mut self, piece: &[u8]) -> Result<Written, Failure> {
        match self {
            Target::Stdout(out) => written(out.write_all(piece)),
            Target::Terminal(out, pieces) => written(out.write_all(&pieces.next(piece))),
            Target::File(file) => match file.write_all(piece) {
                Ok(()) => Ok(Written::Yes),
                Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(Written::NobodyReads),
                Err(e) => Err(file.failure(&e)),
            },
        }
    }
}

pub async fn run(mut state: State, args: Args, mut target: Target) -> Result<(), Failure> {
    let request = ExportRequest {
        commit_ts: args.at_snapshot,
    };
    let pieces = state.client.export(request).await;
    let mut pieces = pieces.map_err(|e| state.failure(&e))?.into_inner();
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
        if let Written::NobodyReads = target.write(&piece)? {
            return Ok(());
        }
        length += piece.len() as u64;
        bar.set_message(format!("exporting, {}", bytes(length)));
    }
    bar.finish_and_clear();
    match (target, &args.output) {
        (Target::File(file), Some(path)) => {
            file.finish()?;
            let remark = format!("{}: {}", path.display(), bytes(length));
            remark!("{remark}");
        }
        (Target::Stdout(mut out) | Target::Terminal(mut out, _), _) => {
            written(out.flush())?;
        }
        // Unreachable, because a file has a path.
        (Target::File(_), None) => {}
    }
    Ok(())
}
