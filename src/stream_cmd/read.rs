//! `esker stream read`.
//!
//! Without `--follow`, it prints the records that existed when it started. With it, it prints records until
//! it is interrupted: if the connection is lost, it reconnects, and continues after the last record.

use std::io::{self, BufWriter, IsTerminal as _, Write as _};
use std::time::Duration;

use clap::ValueEnum;
use futures::StreamExt as _;
use s2_sdk::error::{ReadError, ReadSessionError};
use s2_sdk::types::{ReadFrom, ReadInput, ReadStart, ReadStop, SequencedRecord, StreamPosition};

use super::connection::Connection;
use super::target::{self, StreamTarget};
use super::when;
use super::{json_record, record};
use crate::failure::Failure;

use crate::interrupts::{self, Interrupts};
use crate::json::escaped;
use crate::output::{self, Written, written};
use crate::term::Paint;

/// Pause before a lost connection is opened again: short enough for a quick return, long enough not to burden
/// a server that is starting.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);
/// What an interruption leaves behind.
const INTERRUPTED: &str = "the output is incomplete";
/// Bytes of output that are gathered before they are written.
const OUTPUT_BUFFER: usize = 256 * 1024;

/// Print the records of a stream, each as a line.
///
/// Without further options it prints what is there and ends. As text, a line is the body of a
/// record, byte for byte; on a terminal, control characters are escaped, and what is no text is not
/// shown. Command records (trim, fence) and snapshots of `esker follow` are shown in brackets; where
/// standard output is no terminal they go to standard error, so that a pipe gets bodies only. So do
/// remarks where sequence numbers jump: those in between were trimmed, or are not there after a loss.
///
/// As JSON, a line is an object with seq_num, timestamp, time, headers and body; what is not UTF-8 comes
/// as headers_base64 and body_base64, and a command record has command instead. `esker stream append
/// --format json` takes such lines.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream read my-basin/orders
  esker stream read my-basin/orders --last 10 --follow
  esker stream read my-basin/orders --since 10m --format json
  esker stream read my-basin/orders --from 1000 --count 5")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// Begin at this sequence number [default: the first that is there]
    #[arg(long, value_name = "SEQ_NUM", group = "start")]
    from: Option<u64>,

    /// Begin this many records before the end
    #[arg(long, value_name = "COUNT", group = "start")]
    last: Option<u64>,

    /// Begin at a time (2026-11-20T12:00:00Z), so long ago (10m), or at a timestamp
    #[arg(long, value_name = "TIME", group = "start", value_parser = when::since)]
    since: Option<u64>,

    /// End after this many records
    #[arg(long, value_name = "COUNT")]
    count: Option<u64>,

    /// Wait for what comes next, until Ctrl-C
    #[arg(long, short)]
    follow: bool,

    /// How records are printed
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    format: Format,

    /// The same as --format json
    #[arg(long, conflicts_with = "format")]
    json: bool,
}

/// How records are printed.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// The body, as a line
    Text,
    /// One JSON object a line
    Json,
}

impl Args {
    /// The last records of a stream.
    pub fn tail(stream: StreamTarget, last: u64, follow: bool, format: Format) -> Args {
        Args {
            stream,
            from: None,
            last: Some(last),
            since: None,
            count: None,
            follow,
            format,
            json: false,
        }
    }

    /// Whether it runs until it is interrupted.
    pub fn follows(&self) -> bool {
        self.follow
    }

    fn start(&self) -> ReadFrom {
        if let Some(seq_num) = self.from {
            ReadFrom::SeqNum(seq_num)
        } else if let Some(count) = self.last {
            ReadFrom::TailOffset(count)
        } else if let Some(timestamp) = self.since {
            ReadFrom::Timestamp(timestamp)
        } else {
            // Trimmed records are skipped.
            ReadFrom::SeqNum(0)
        }
    }
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let mut out = Output::new(if args.json { Format::Json } else { args.format });
    let mut interrupts = Interrupts::listen(INTERRUPTED)?;
    let interrupted = tokio::select! {
        read = read(connection, &args, &mut out) => return read,
        // A command that ends by itself has its own result, even where standard output has no reader.
        () = output::unread(), if args.follow => return Ok(()),
        () = interrupts.next() => interrupts::interrupted(INTERRUPTED),
    };
    // The buffer holds whole lines.
    out.flush()?;
    match args.follow {
        true => Ok(()),
        false => Err(interrupted),
    }
}

async fn read(connection: &Connection, args: &Args, out: &mut Output) -> Result<(), Failure> {
    let target = &args.stream;
    let asked = connection.asked_stream(target);
    let tail = connection
        .stream(target)
        .check_tail()
        .await
        .map_err(|e| asked.read(&e))?;
    if args.from.is_some_and(|from| from > tail.seq_num) {
        return Err(asked.unwritten(tail.seq_num));
    }
    let mut rest = args.count.unwrap_or(u64::MAX);
    let mut start = args.start();
    // What the next record is, if that is known.
    let mut expected = args.from;
    if args.follow {
        let remark = format!("Following {target}; Ctrl-C ends.");
        if io::stdout().is_terminal() {
            remark!("{remark}");
        }
        loop {
            match session(connection, target, (start, expected), None, &mut rest, out).await {
                Ok(Pause::Over) => return Ok(()),
                Ok(Pause::LostAt(next, _)) => {
                    start = next.map_or(start, ReadFrom::SeqNum);
                    expected = next.or(expected);
                    let address = connection.address();
                    out.say(&format!("[lost {address}; waiting for it]"));
                    reconnect(connection, target).await?;
                    out.say("[connected again]");
                }
                Err(failure) => return Err(failure),
            }
        }
    }
    if tail.seq_num > 0 {
        match session(
            connection,
            target,
            (start, expected),
            Some(tail),
            &mut rest,
            out,
        )
        .await?
        {
            Pause::Over => {}
            Pause::LostAt(_, reason) => return Err(reason),
        }
    }
    if !out.printed && io::stdout().is_terminal() {
        let remark = match (args.last, args.since) {
            (None, None) => format!("There is no record in {target}."),
            _ => format!("There is no such record in {target}."),
        };
        remark!("{remark}");
    }
    Ok(())
}

/// Why a session ended.
enum Pause {
    /// Every requested record is printed, or standard output has no reader.
    Over,
    /// The connection was lost before this sequence number (unknown if nothing was read).
    LostAt(Option<u64>, Failure),
}

/// Prints from `start` until `end`, or without end, at most `rest` records; and a remark where sequence
/// numbers jump, also between the expected number and the first record.
async fn session(
    connection: &Connection,
    target: &StreamTarget,
    (start, mut expected): (ReadFrom, Option<u64>),
    end: Option<StreamPosition>,
    rest: &mut u64,
    out: &mut Output,
) -> Result<Pause, Failure> {
    let asked = connection.asked_stream(target);
    let mut input = ReadInput::new().with_start(
        ReadStart::new()
            .with_from(start)
            // A timestamp or an offset from the end is never beyond it.
            .with_clamp_to_tail(!matches!(start, ReadFrom::SeqNum(_))),
    );
    if end.is_some() {
        input = input.with_stop(ReadStop::new().with_wait(0));
    }
    let lost = |next, error: &ReadSessionError| {
        let failure = asked.read_session(error);
        match error {
            // The tail was reached, and `--follow` was not given.
            ReadSessionError::Read(ReadError::ReadUnwritten(_)) if end.is_some() => Ok(Pause::Over),
            error if error.is_retryable() => Ok(Pause::LostAt(next, failure)),
            _ => Err(failure),
        }
    };
    let stream = connection.session(target);
    let mut session = match stream.read_session(input, Default::default()).await {
        Ok(session) => session,
        Err(error) => return lost(None, &error),
    };
    let mut next = None;
    while *rest > 0 {
        let batch = match session.next().await {
            Some(Ok(batch)) => batch,
            Some(Err(error)) => return lost(next, &error),
            None => return Ok(Pause::Over),
        };
        for record in &batch.records {
            if *rest == 0 || end.is_some_and(|end| record.seq_num >= end.seq_num) {
                break;
            }
            if let Some(expected) = expected.filter(|expected| record.seq_num > *expected)
                && let Written::NobodyReads = out.jump(expected, record.seq_num)?
            {
                return Ok(Pause::Over);
            }
            if let Written::NobodyReads = out.print(record)? {
                return Ok(Pause::Over);
            }
            *rest -= 1;
            next = Some(record.seq_num + 1);
            expected = next;
        }
        if let Written::NobodyReads = out.flush()? {
            return Ok(Pause::Over);
        }
        let last = batch.records.last().map(|record| record.seq_num + 1);
        if end.is_some_and(|end| last >= Some(end.seq_num)) {
            break;
        }
    }
    Ok(Pause::Over)
}

/// Waits until the server answers again.
async fn reconnect(connection: &Connection, target: &StreamTarget) -> Result<(), Failure> {
    loop {
        tokio::time::sleep(RECONNECT_PAUSE).await;
        match connection.stream(target).check_tail().await {
            Ok(_) => return Ok(()),
            Err(error) if error.is_retryable() => {}
            Err(error) => return Err(connection.asked_stream(target).read(&error)),
        }
    }
}

/// Standard output.
struct Output {
    out: BufWriter<io::Stdout>,
    format: Format,
    /// Whether it is a terminal.
    terminal: bool,
    /// Whether a record was printed.
    printed: bool,
}

impl Output {
    fn new(format: Format) -> Output {
        Output {
            out: BufWriter::with_capacity(OUTPUT_BUFFER, io::stdout()),
            format,
            terminal: io::stdout().is_terminal(),
            printed: false,
        }
    }

    fn print(&mut self, record: &SequencedRecord) -> Result<Written, Failure> {
        self.printed = true;
        written(match (self.format, record::remark(record)) {
            (Format::Json, _) => self.json(record),
            (Format::Text, None) => self.body(&record.body),
            (Format::Text, Some(remark)) => self.remark(&remark),
        })
    }

    /// Remarks that sequence numbers go on at `to` and not at `from`. In JSON, each record has its number.
    fn jump(&mut self, from: u64, to: u64) -> Result<Written, Failure> {
        match self.format {
            Format::Json => Ok(Written::Yes),
            Format::Text => {
                let last = to - 1;
                let numbers = match from == last {
                    true => format!("{from} is"),
                    false => format!("{from} to {last} are"),
                };
                written(self.remark(&format!(
                    "[{numbers} not there: trimmed, or passed over after a loss or an import]"
                )))
            }
        }
    }

    fn json(&mut self, record: &SequencedRecord) -> io::Result<()> {
        if !self.terminal {
            return json_record::write(&mut self.out, record);
        }
        let mut line = Vec::new();
        json_record::write(&mut line, record)?;
        let line = String::from_utf8_lossy(&line);
        self.out.write_all(escaped(&line).as_bytes())
    }

    fn body(&mut self, body: &[u8]) -> io::Result<()> {
        if self.terminal {
            return match record::for_terminal(body) {
                Ok(text) => writeln!(self.out, "{text}"),
                Err(remark) => self.remark(&remark),
            };
        }
        self.out.write_all(body)?;
        self.out.write_all(b"\n")
    }

    fn remark(&mut self, text: &str) -> io::Result<()> {
        if self.terminal {
            return writeln!(self.out, "{}", Paint::stdout().dim(text));
        }
        // Flushed first, so that the remark is in order with the lines around it if both go to the same file.
        self.out.flush()?;
        self.say(text);
        Ok(())
    }

    fn flush(&mut self) -> Result<Written, Failure> {
        written(self.out.flush())
    }

    /// Prints a remark.
    fn say(&self, text: &str) {
        remark!("{text}");
    }
}
