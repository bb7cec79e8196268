//! `esker stream fence`.

use s2_sdk::types::{AppendInput, AppendRecordBatch, CommandRecord, FencingToken};
use serde_json::json;

use super::connection::Connection;
use super::target::{self, StreamTarget};
use crate::failure::Failure;
use crate::output::print;
use crate::term::plain;

/// Fence a stream: from then on, appends that name another fencing token are refused.
///
/// This appends a fence command, which takes a sequence number of its own. Appends that name no token are
/// taken all the same. A writer that takes over fences with a token of its own, so that the one before it
/// is refused.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker stream fence my-basin/orders writer-2
  esker stream fence my-basin/orders writer-3 --fencing-token writer-2
  esker stream fence my-basin/orders --lift")]
pub struct Args {
    /// The stream
    #[arg(value_name = "BASIN/STREAM", value_parser = target::stream)]
    stream: StreamTarget,

    /// The new token, 36 bytes at most
    #[arg(
        value_name = "TOKEN",
        required_unless_present = "lift",
        conflicts_with = "lift"
    )]
    token: Option<FencingToken>,

    /// Lift the fence
    #[arg(long)]
    lift: bool,

    /// Fence only if the stream is fenced with this token
    #[arg(long, value_name = "TOKEN")]
    fencing_token: Option<FencingToken>,

    /// Print a JSON object
    #[arg(long)]
    json: bool,
}

pub async fn run(connection: &Connection, args: Args) -> Result<(), Failure> {
    let target = &args.stream;
    let asked = connection.asked_stream(target);
    let token = match args.token {
        Some(token) => token,
        // The empty token lifts the fence.
        None => "".parse().map_err(|e| Failure::wrong("client", e))?,
    };
    let shown = token.to_string();
    let command = CommandRecord::fence(token);
    let batch = AppendRecordBatch::try_from_iter([command.into()])
        .map_err(|e| Failure::wrong("client", e))?;
    let mut input = AppendInput::new(batch);
    if let Some(token) = args.fencing_token {
        input = input.with_fencing_token(token);
    }
    let ack = connection.stream(target).append(input).await;
    let position = ack.map_err(|e| asked.append(&e))?.start.seq_num;
    if args.json {
        return print(json!({ "fencing_token": shown, "command_seq_num": position }));
    }
    match shown.as_str() {
        "" => print(format_args!(
            "{target}: the fence is lifted; the command is record {position}"
        )),
        token => print(format_args!(
            "{target} is fenced with `{}`; the command is record {position}",
            plain(token)
        )),
    }
}
