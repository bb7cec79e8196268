//! `esker stream trim`.

use s2_sdk::S2Stream;
use s2_sdk::error::ReadError;
use s2_sdk::types::{
    AppendInput, AppendRecordBatch, CommandRecord, FencingToken, ReadInput, ReadLimits, ReadStop,
};
use serde_json::json;

use super::connection::Connection;
use super::failure::Asked;
use super::target::{self, StreamTarget};
use crate::failure::Failure;
use crate::output::print;

/// Drop the records of a stream before a sequence number, for good.
///
/// This appends a trim command, which takes a sequence number of its own. What it drops is gone for
/// readers at once; its space is given back later.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream trim my-basin/orders 1000      keep records 1000 and later
  esker stream check-tail my-basin/orders     shows the number that drops everything so far")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// The first sequence number to keep
    #[arg(value_name = "SEQ_NUM")]
    point: u64,

    /// Trim only if the stream is fenced with this token
    #[arg(long, value_name = "TOKEN")]
    fencing_token: Option<FencingToken>,

    /// Print a JSON object: head is the first sequence number kept, gone counts the numbers dropped
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let target = &args.stream;
    let asked = connection.asked_stream(target);
    let stream = connection.stream(target);
    let tail = stream.check_tail().await.map_err(|e| asked.read(&e))?;
    if args.point > tail.seq_num {
        return Err(Failure::wrong(
            "beyond_tail",
            format!(
                "{target} ends before {}: the next record will have sequence number {tail}; \
                 `esker stream trim {target} {tail}` drops everything so far",
                args.point,
                tail = tail.seq_num,
            ),
        ));
    }
    let head = head(&stream, asked, tail.seq_num).await?;
    if args.point <= head {
        return if args.json {
            print(json!({ "head": head, "gone": 0 }))
        } else {
            print(format_args!(
                "{target} begins at {head}: there is nothing before {} to drop",
                args.point
            ))
        };
    }

    let command = CommandRecord::trim(args.point);
    let batch = AppendRecordBatch::try_from_iter([command.into()])
        .map_err(|e| Failure::wrong("client", e))?;
    let mut input = AppendInput::new(batch);
    if let Some(token) = args.fencing_token {
        input = input.with_fencing_token(token);
    }
    let ack = stream.append(input).await.map_err(|e| asked.append(&e))?;
    let (position, gone) = (ack.start.seq_num, args.point - head);
    if args.json {
        return print(json!({ "head": args.point, "gone": gone, "command_seq_num": position }));
    }
    let dropped = match gone {
        1 => format!("record {head} is gone"),
        _ => format!("records {head} to {} are gone", args.point - 1),
    };
    let begins = if args.point == position {
        format!("nothing is left but the trim command itself, at {position}")
    } else {
        format!(
            "it begins at {}; the trim command is record {position}",
            args.point
        )
    };
    print(format_args!("{target}: {dropped}; {begins}"))
}

/// The first sequence number of the stream; that of the next record if it is empty.
pub async fn head(stream: &S2Stream, asked: Asked<'_>, tail: u64) -> Result<u64, Failure> {
    // A read that begins below the head begins at it.
    let first =
        ReadInput::new().with_stop(ReadStop::new().with_limits(ReadLimits::new().with_count(1)));
    match stream.read(first).await {
        Ok(batch) => Ok(batch.records.first().map_or(tail, |record| record.seq_num)),
        Err(ReadError::ReadUnwritten(_)) => Ok(tail),
        Err(error) => Err(asked.read(&error)),
    }
}
