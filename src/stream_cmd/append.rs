//! `esker stream append`.
//!
//! Batches go over one append session, several under way at a time; acknowledgements come back in
//! order. The session repeats a batch only if it cannot have been appended, so nothing is ever in
//! the stream twice. When it breaks, the message says what was acknowledged, and how much nobody
//! knows about.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{IsTerminal as _, Read};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use futures::FutureExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use s2_sdk::append_session::{AppendSessionConfig, BatchSubmitTicket};
use s2_sdk::error::{AppendSessionError, ErrorCode, ReadError};
use s2_sdk::types::{AppendAck, AppendInput, FencingToken};
use serde_json::json;
use tokio::sync::mpsc;

use super::connection::Connection;
use super::create::{self, Created};
use super::lines::{self, Batch, LineError};
use super::target::{self, StreamTarget};
use crate::exit::Failure;
use crate::json;
use crate::output::print;
use crate::term::{Paint, bytes, count, rate, records, took};

/// Bytes of batches that are under way, which is also what this keeps in memory of them.
const UNACKNOWLEDGED_BYTES: u32 = 8 * 1024 * 1024;
/// Records from which on the summary shows their rate.
const RATE_FROM: u64 = 1000;

/// Append lines to a stream, each as one record.
///
/// Lines come from FILE or from standard input, and end with a line feed, which is not part of the
/// record. They are appended in order, in batches, and each is durable when this says so.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  echo hello | esker stream append my-basin/orders
  esker stream append my-basin/orders orders.jsonl --create
  tail -f app.log | esker stream append my-basin/logs
  esker stream append my-basin/orders more.jsonl --match-seq-num 20000")]
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

    /// Print the summary as a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let source = Source::open(args.file.as_deref())?;
    prepare(connection, &args).await?;
    if source.is_typed {
        let remark = "Type records, one a line; Ctrl-D ends.";
        say!("{}", Paint::stderr().dim(remark));
    }
    let bar = source.bar();
    let is_typed = source.is_typed;
    let mut appending = Appending::new(connection, &args, bar.clone());
    let end = appending.run(lines::read(source.input)).await;
    bar.finish_and_clear();
    let Appending { done, .. } = appending;
    let summary = match end {
        Ok(End::Input) => return done.print(&args),
        // Whoever types has said that this is all.
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

/// Makes the stream if that was asked for; else says early if there is none.
async fn prepare(connection: &Connection, args: &Args) -> Result<(), Failure> {
    let target = &args.stream;
    if args.create {
        let Created { basin, stream } = create::ensure(connection, target, None).await?;
        if stream {
            let with_basin = if basin { ", and its basin" } else { "" };
            say!("created stream {target}{with_basin}");
        }
        return Ok(());
    }
    let Err(error) = connection.stream(target).check_tail().await else {
        return Ok(());
    };
    let code = error
        .request_error()
        .and_then(|e| e.server_error()?.known_code());
    // The basin may be one that makes streams when they are appended to.
    if code == Some(ErrorCode::StreamNotFound) {
        let config = connection
            .account()
            .get_basin_config(target.basin.clone())
            .await;
        if config.is_ok_and(|config| config.create_stream_on_append) {
            return Ok(());
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

/// Where lines come from.
struct Source {
    input: Box<dyn Read + Send>,
    /// Bytes, if it is a file.
    size: Option<u64>,
    /// A person types them.
    is_typed: bool,
}

impl Source {
    fn open(path: Option<&std::path::Path>) -> Result<Source, Failure> {
        let Some(path) = path.filter(|path| *path != "-") else {
            return Ok(Source {
                is_typed: std::io::stdin().is_terminal(),
                input: Box::new(std::io::stdin()),
                size: None,
            });
        };
        let cannot = |e| Failure::wrong("io", format!("cannot read {}: {e}", path.display()));
        let file = File::open(path).map_err(cannot)?;
        let metadata = file.metadata().map_err(cannot)?;
        if metadata.is_dir() {
            return Err(cannot(std::io::ErrorKind::IsADirectory.into()));
        }
        Ok(Source {
            input: Box::new(file),
            size: metadata.is_file().then_some(metadata.len()),
            is_typed: false,
        })
    }

    /// A progress bar for a file, on a terminal.
    fn bar(&self) -> ProgressBar {
        let Some(size) = self.size.filter(|_| std::io::stderr().is_terminal()) else {
            return ProgressBar::hidden();
        };
        let bar = ProgressBar::new(size);
        let template = "{bar:30} {percent:>3} %  {binary_bytes} of {binary_total_bytes}, \
                        {binary_bytes_per_sec}, {eta} left";
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style.progress_chars("█▉▊▋▌▍▎▏ "));
        }
        bar
    }
}

/// Why it ended without failing.
enum End {
    /// The input ended, and everything is acknowledged.
    Input,
    /// Ctrl-C; what was under way is acknowledged.
    Interrupted,
}

/// Batches on their way.
struct Appending<'a> {
    connection: &'a Connection,
    args: &'a Args,
    bar: ProgressBar,
    /// The sequence number that the next batch has to get, if that matters.
    expected: Option<u64>,
    under_way: VecDeque<Under>,
    done: Done,
}

/// A batch under way.
struct Under {
    ticket: BatchSubmitTicket,
    records: u64,
    /// Bytes of its records.
    bytes: u64,
    /// Bytes of its lines.
    read: u64,
}

impl<'a> Appending<'a> {
    fn new(connection: &'a Connection, args: &'a Args, bar: ProgressBar) -> Self {
        Appending {
            connection,
            args,
            bar,
            expected: args.match_seq_num,
            under_way: VecDeque::new(),
            done: Done::new(),
        }
    }

    async fn run(
        &mut self,
        mut batches: mpsc::Receiver<Result<Batch, LineError>>,
    ) -> Result<End, Failure> {
        let config = AppendSessionConfig::new()
            .with_max_unacked_bytes(UNACKNOWLEDGED_BYTES)
            .map_err(|e| Failure::wrong("client", e))?;
        let session = self
            .connection
            .session(&self.args.stream)
            .append_session(config);
        let mut interrupts = 0;
        let mut open = true;
        let mut bad_line = None;
        while open || !self.under_way.is_empty() {
            tokio::select! {
                biased;
                answer = next(&mut self.under_way), if !self.under_way.is_empty() => {
                    self.answered(answer)?;
                }
                batch = batches.recv(), if open => match batch {
                    Some(Ok(batch)) => {
                        let under = match self.submit(&session, batch).await {
                            Ok(under) => under,
                            Err(error) => return Err(self.broken(&error)),
                        };
                        self.under_way.push_back(under);
                    }
                    Some(Err(error)) => {
                        bad_line = Some(error);
                        open = false;
                    }
                    None => open = false,
                },
                _ = tokio::signal::ctrl_c() => {
                    interrupts += 1;
                    if interrupts > 1 {
                        let error = AppendSessionError::SessionDropped;
                        let mut failure = self.broken(&error);
                        failure.code = "interrupted";
                        failure.message = "interrupted".into();
                        return Err(failure);
                    }
                    open = false;
                }
            }
        }
        if let Err(error) = session.close().await {
            return Err(self.broken(&error));
        }
        match bad_line {
            Some(error) => Err(Failure::wrong("input", error)),
            None if interrupts > 0 => Ok(End::Interrupted),
            None => Ok(End::Input),
        }
    }

    async fn submit(
        &mut self,
        session: &s2_sdk::append_session::AppendSession,
        batch: Batch,
    ) -> Result<Under, AppendSessionError> {
        let records = batch.records.len() as u64;
        let bytes = batch.records.iter().map(|r| r.body().len() as u64).sum();
        let read = batch.read;
        let mut input = AppendInput::new(batch.records);
        if let Some(expected) = &mut self.expected {
            input = input.with_match_seq_num(*expected);
            *expected += records;
        }
        if let Some(token) = &self.args.fencing_token {
            input = input.with_fencing_token(token.clone());
        }
        let ticket = session.submit(input).await?;
        Ok(Under {
            ticket,
            records,
            bytes,
            read,
        })
    }

    fn answered(
        &mut self,
        (under, answer): (Under, Result<AppendAck, AppendSessionError>),
    ) -> Result<(), Failure> {
        match answer {
            Ok(ack) => {
                self.done.acknowledged(&ack, &under);
                self.bar.inc(under.read);
                Ok(())
            }
            Err(error) => {
                self.done.in_doubt(&error, under.records);
                Err(self.broken(&error))
            }
        }
    }

    /// The session is over: looks at what else was under way.
    fn broken(&mut self, error: &AppendSessionError) -> Failure {
        for mut under in self.under_way.drain(..) {
            match (&mut under.ticket).now_or_never() {
                Some(Ok(ack)) => self.done.acknowledged(&ack, &under),
                Some(Err(error)) => self.done.in_doubt(&error, under.records),
                None => self.done.unknown += under.records,
            }
        }
        self.connection
            .asked_stream(&self.args.stream)
            .append_session(error)
    }
}

/// The answer to the oldest batch under way. Safe to drop before it answers.
async fn next(under_way: &mut VecDeque<Under>) -> (Under, Result<AppendAck, AppendSessionError>) {
    let answer = match under_way.front_mut() {
        Some(under) => (&mut under.ticket).await,
        None => std::future::pending().await,
    };
    match under_way.pop_front() {
        Some(under) => (under, answer),
        // There was one a moment ago.
        None => std::future::pending().await,
    }
}

/// What was acknowledged so far.
struct Done {
    started: Instant,
    took: Duration,
    records: u64,
    bytes: u64,
    /// The first sequence number, and the one after the last.
    range: Option<(u64, u64)>,
    /// Records of which nobody knows whether they are in the stream.
    unknown: u64,
}

impl Done {
    fn new() -> Done {
        Done {
            started: Instant::now(),
            took: Duration::ZERO,
            records: 0,
            bytes: 0,
            range: None,
            unknown: 0,
        }
    }

    fn acknowledged(&mut self, ack: &AppendAck, under: &Under) {
        self.records += under.records;
        self.bytes += under.bytes;
        let first = self.range.map_or(ack.start.seq_num, |(first, _)| first);
        self.range = Some((first, ack.end.seq_num));
        self.took = self.started.elapsed();
    }

    fn in_doubt(&mut self, error: &AppendSessionError, records: u64) {
        if !error.has_no_side_effects() {
            self.unknown += records;
        }
    }

    /// `sequence numbers 0 to 19999`.
    fn range(&self) -> String {
        match self.range {
            None => "no sequence number".into(),
            Some((first, end)) if end - first == 1 => format!("sequence number {first}"),
            Some((first, end)) if end - first == self.records => {
                format!("sequence numbers {first} to {}", end - 1)
            }
            Some((first, end)) => format!(
                "sequence numbers between {first} and {}, because others appended as well",
                end - 1
            ),
        }
    }

    fn print(&self, args: &Args) -> Result<(), Failure> {
        if args.json {
            return print(self.document());
        }
        if self.records == 0 {
            return print("nothing to append: the input has no line");
        }
        // Of a few records it would say nothing.
        let rate = match self.records {
            0..RATE_FROM => String::new(),
            n => format!(", {}", rate(n, self.took)),
        };
        print(format_args!(
            "appended {} ({}) to {}: {}; {}{rate}",
            records(self.records),
            bytes(self.bytes),
            args.stream,
            self.range(),
            took(self.took),
        ))
    }

    fn document(&self) -> serde_json::Value {
        json!({
            "records": self.records,
            "bytes": self.bytes,
            "first_seq_num": self.range.map(|(first, _)| first),
            "next_seq_num": self.range.map(|(_, end)| end),
            "records_in_doubt": self.unknown,
            "seconds": self.took.as_secs_f64(),
        })
    }

    /// For the message of a failure.
    fn so_far(&self, target: &StreamTarget) -> String {
        let before = match self.records {
            0 => "before that, nothing was appended".to_owned(),
            1 => format!("before that, 1 record was appended ({})", self.range()),
            n => format!(
                "before that, {} records were appended ({})",
                count(n),
                self.range()
            ),
        };
        match self.unknown {
            0 => before,
            n => format!(
                "{before}; {} more may or may not have been: see where the stream ends \
                 (`esker stream tail {target}`) before you append them again",
                count(n)
            ),
        }
    }
}
