//! `esker stream append`.
//!
//! Batches are sent over one append session, several under way at a time; acknowledgements arrive in order.
//! The session repeats a batch only if it certainly was not appended. When it breaks because the server is
//! unreachable, the command waits for the server, searches the stream for the batches that were under way
//! ([`resumption`]), and continues with a new session. Otherwise the message reports what was acknowledged,
//! and how many records may or may not be in the stream.
//!
//! A batch that is still in transit over the lost connection may reach the server after that search. So each
//! batch is sent on the condition that it gets the sequence number that follows the previous batch: a
//! repeated batch has taken that number, and the late one is refused. The condition also fails when other
//! clients append to the stream. After [`MAX_MISMATCHES`](session) such failures, batches are sent without
//! it.
//!
//! | module | what it holds |
//! |---|---|
//! | [`source`] | the input: a file or standard input |
//! | [`session`] | batches under way |
//! | [`summary`] | what was acknowledged |

mod session;
mod source;
mod summary;

use std::path::PathBuf;
use std::time::Duration;

use clap::ValueEnum;
use esker_server::config::HumanDuration;
use s2_sdk::error::{ErrorCode, ReadError};
use s2_sdk::types::FencingToken;
use session::{Appending, End};
use source::Source;

use super::connection::Connection;
use super::create::{self, Created};
use super::lines;
use super::read::Format;
use super::target::{self, StreamTarget};
use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::json;

/// How long the command waits for an unreachable server by default.
const RECONNECT_TIMEOUT: Duration = Duration::from_secs(60);
/// What an append may leave behind when it ends without a summary.
const IN_DOUBT: &str = "records that were on their way may be in the stream: `esker stream check-tail` \
                        shows where it ends";

/// Append lines to a stream, each as one record.
///
/// Lines come from FILE or from standard input, and end with a line feed, which is not part of the
/// record. With --format json a line is an object as `esker stream read --format json` prints it: its
/// headers, timestamp and command are taken, its number is not; a trim goes to the same record. Lines are
/// appended in order, in batches, and each is durable when the summary is printed.
///
/// If the server goes away, it is waited for. What was under way is then looked for in the stream, and
/// appended only if it is not there, so that each line is there once; the same lines that somebody else
/// appends meanwhile, in one batch, cannot be told from it. Where others append at the same time, lines may
/// be there twice: a batch that was still on its way over the lost connection may arrive after that look.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo hello | esker stream append my-basin/orders
  esker stream append my-basin/orders orders.jsonl --create
  tail -f app.log | esker stream append my-basin/logs
  esker stream append my-basin/orders more.jsonl --match-seq-num 20000
  esker stream read my-basin/orders --json | esker stream append my-basin/copy --format json")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// A file of lines [default: standard input]
    #[arg(value_name = "FILE")]
    file: Option<PathBuf>,

    /// Create the stream if it is missing, and its basin
    #[arg(long)]
    create: bool,

    /// Append only if the first record gets this sequence number, and the others follow it
    #[arg(long, value_name = "SEQ_NUM")]
    match_seq_num: Option<u64>,

    /// Append only if the stream is fenced with this token
    #[arg(long, value_name = "TOKEN")]
    fencing_token: Option<FencingToken>,

    /// What a line is
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: InputFormat,

    /// How long to wait for a server that does not answer; 0s ends at once [default: 1m]
    #[arg(long, value_name = "DURATION")]
    reconnect: Option<HumanDuration>,

    /// Print the summary as a JSON object
    #[arg(long)]
    json: bool,
}

/// What a line is.
#[derive(Clone, Copy, ValueEnum)]
enum InputFormat {
    /// The body of a record
    Text,
    /// A record, as a JSON object
    Json,
}

impl From<InputFormat> for Format {
    fn from(format: InputFormat) -> Format {
        match format {
            InputFormat::Text => Format::Text,
            InputFormat::Json => Format::Json,
        }
    }
}

impl Args {
    fn retry_timeout(&self) -> Duration {
        self.reconnect.map_or(RECONNECT_TIMEOUT, Duration::from)
    }
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let source = Source::open(args.file.as_deref())?;
    let tail = prepare(connection, &args).await?;
    if source.is_typed {
        let remark = "Type records, one a line; Ctrl-D ends.";
        remark!("{remark}");
    }
    let bar = source.bar();
    let is_typed = source.is_typed;
    let signals = Interrupts::listen(IN_DOUBT)?;
    let mut appending = Appending::new(connection, &args, bar.clone(), tail, signals);
    let end = appending
        .run(lines::read(source.input, args.format.into(), tail))
        .await;
    bar.finish_and_clear();
    let Appending { done, .. } = appending;
    let summary = match end {
        Ok(End::Input) => return done.print(&args),
        // For typed input, Ctrl-C is a regular end.
        Ok(End::Interrupted) if is_typed => return done.print(&args),
        Ok(End::Interrupted) => {
            Failure::wrong("interrupted", "interrupted before the end of the input")
        }
        Err(failure) => failure,
    };
    let failure = Failure {
        message: format!("{}; {}", summary.message, done.so_far(&args.stream)),
        ..summary
    };
    match args.json {
        true => json::print_line_with(&done.document(), Err(failure)),
        false => Err(failure),
    }
}

/// Creates the stream if `--create` was given; otherwise fails early if it does not exist. Returns its tail.
async fn prepare(connection: &Connection, args: &Args) -> Result<u64, Failure> {
    let target = &args.stream;
    if args.create {
        let Created { basin, stream } = create::ensure(connection, target, None).await?;
        if stream {
            let with_basin = if basin { ", and its basin" } else { "" };
            remark!("created stream {target}{with_basin}");
        }
    }
    let error = match connection.stream(target).check_tail().await {
        Ok(tail) => return Ok(tail.seq_num),
        Err(error) => error,
    };
    let code = error
        .request_error()
        .and_then(|e| e.server_error()?.known_code());
    // The basin may create streams on append.
    if code == Some(ErrorCode::StreamNotFound) {
        let config = connection
            .account()
            .get_basin_config(target.basin.clone())
            .await;
        if config.is_ok_and(|config| config.create_stream_on_append) {
            return Ok(0);
        }
    }
    let mut failure = connection.asked_stream(target).read(&error);
    if matches!(error, ReadError::Request(_))
        && matches!(
            code,
            Some(ErrorCode::StreamNotFound | ErrorCode::BasinNotFound)
        )
    {
        failure = failure.advise("--create makes it on the way");
    }
    Err(failure)
}
