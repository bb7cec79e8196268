//! `esker stream check-tail`.

use serde_json::json;

use super::connection::Connection;
use super::target::{self, StreamTarget};
use crate::failure::Failure;
use crate::output::print;
use crate::term::{moment, rfc3339};

/// Show where a stream ends: the sequence number that comes next, and the last timestamp.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream check-tail my-basin/orders
  esker stream check-tail my-basin/orders --json | jq .seq_num")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// Print a JSON object: seq_num comes next, timestamp and time are the last record's
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let tail = connection
        .stream(&args.stream)
        .check_tail()
        .await
        .map_err(|e| connection.asked_stream(&args.stream).read(&e))?;
    if args.json {
        let time = rfc3339(tail.timestamp).filter(|_| tail.seq_num > 0);
        return print(json!({
            "seq_num": tail.seq_num,
            "timestamp": tail.timestamp,
            "time": time,
        }));
    }
    if tail.seq_num == 0 {
        return print(format_args!(
            "{}: no record yet, the first will have sequence number 0",
            args.stream
        ));
    }
    let time = moment(tail.timestamp).map_or_else(String::new, |time| format!(" ({time})"));
    print(format_args!(
        "{}: the next sequence number is {}, the last timestamp {}{time}",
        args.stream, tail.seq_num, tail.timestamp
    ))
}
