//! `esker state import`.

use std::path::{Path, PathBuf};
use std::pin::Pin;

use bytes::BytesMut;
use esker_proto::state::v1::{ImportOptions, ImportRequest, import_request::Part};
use futures::{Stream, stream};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncReadExt as _};
use tokio::sync::oneshot;

use super::connection::State;
use crate::failure::Failure;
use crate::output::{self, print};
use crate::term::{bytes, count};

/// Bytes of a message.
const PIECE: usize = 256 * 1024;

/// Import the state of a JSON snapshot.
///
/// Into a server whose state store has had commits only with --replace, which drops what it holds.
/// Nothing changes unless the whole file is good.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state import backup.json
  esker state import snapshots/snapshot-12000.json --replace")]
pub struct Args {
    /// The snapshot; `-` reads it from standard input
    pub file: PathBuf,

    /// Replace the state that the server has
    #[arg(long)]
    replace: bool,

    /// Print one JSON object: imported_commit_ts, commit_ts, keys, bytes
    #[arg(long)]
    json: bool,
}

/// The file that is imported.
pub struct File {
    from: Pin<Box<dyn AsyncRead + Send>>,
    name: String,
    length: Option<u64>,
}

impl File {
    /// Opens it.
    ///
    /// # Errors
    ///
    /// `io`.
    pub async fn open(path: &Path) -> Result<File, Failure> {
        if path == Path::new("-") {
            return Ok(File {
                from: Box::pin(tokio::io::stdin()),
                name: "standard input".into(),
                length: None,
            });
        }
        let name = path.display().to_string();
        let cannot = |e| Failure::wrong("io", format!("reading {name}: {e}"));
        let file = tokio::fs::File::open(path).await.map_err(cannot)?;
        let length = file.metadata().await.map_err(cannot)?.len();
        Ok(File {
            from: Box::pin(file),
            name,
            length: Some(length),
        })
    }
}

pub async fn run(mut state: State, args: Args, file: File) -> Result<(), Failure> {
    let bar = bar(file.length);
    let name = file.name.clone();
    let (failed, failure) = oneshot::channel();
    let options = ImportOptions {
        replace: args.replace,
    };
    let messages = messages(options, file, failed, bar.clone());
    let done = tokio::select! {
        done = state.client.import(messages) => done,
        Ok(error) = failure => {
            bar.finish_and_clear();
            return Err(Failure::wrong("io", format!("reading {name}: {error}; nothing was imported")));
        }
    };
    bar.finish_and_clear();
    let done = done.map_err(|e| state.failure(&e))?.into_inner();
    if args.json {
        return print(json!({
            "imported_commit_ts": done.imported_commit_ts,
            "commit_ts": done.commit_ts,
            "keys": done.keys,
            "bytes": done.bytes,
        }));
    }
    let moved = match done.commit_ts == done.imported_commit_ts {
        true => String::new(),
        false => format!(", which is commit {} here", done.commit_ts),
    };
    print(format_args!(
        "imported {} {} ({}) as of commit {}{moved}",
        count(done.keys),
        if done.keys == 1 { "key" } else { "keys" },
        bytes(done.bytes),
        done.imported_commit_ts,
    ))
}

/// The messages of an import: the options, then the file in pieces. If the file cannot be read to its end,
/// the server must not take it for a shorter one: the stream of messages stays open, and the caller, which
/// gets the error, drops the call.
fn messages(
    options: ImportOptions,
    file: File,
    failed: oneshot::Sender<std::io::Error>,
    bar: ProgressBar,
) -> impl Stream<Item = ImportRequest> + Send + 'static {
    let first = stream::iter([message(Part::Options(options))]);
    let rest = stream::unfold(
        (file, Some(failed), bar),
        |(mut file, mut failed, bar)| async {
            let mut data = BytesMut::with_capacity(PIECE);
            match file.from.read_buf(&mut data).await {
                Ok(0) => None,
                Ok(read) => {
                    bar.inc(read as u64);
                    Some((message(Part::Data(data.freeze())), (file, failed, bar)))
                }
                Err(error) => {
                    if let Some(failed) = failed.take() {
                        // The receiver may have been dropped.
                        let _ = failed.send(error);
                    }
                    std::future::pending().await
                }
            }
        },
    );
    futures::StreamExt::chain(first, rest)
}

fn message(part: Part) -> ImportRequest {
    ImportRequest { part: Some(part) }
}

fn bar(length: Option<u64>) -> ProgressBar {
    let Some(length) = length.filter(|_| output::draws_progress()) else {
        return ProgressBar::hidden();
    };
    let bar = ProgressBar::new(length);
    let template = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, \
                    {binary_bytes_per_sec}, {eta} left";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
    }
    bar
}
