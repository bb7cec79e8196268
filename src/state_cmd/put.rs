//! `esker state put` and `esker state delete`: a transaction of one operation.

use esker_proto::state::v1::{
    AbortRequest, BeginTransactionRequest, CommitRequest, CommitResponse, DeleteRequest,
    WriteRequest,
};
use esker_proto::{Struct, value};
use serde_json::json;

use super::NamespaceArg;
use super::connection::State;
use crate::failure::Failure;
use crate::input;
use crate::output::print;

/// Give a key a value.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state put agent-1 memory '{\"fact\": \"water is wet\"}'
  esker state put agent-1 memory - <memory.json
  esker state put agent-1 memory '{}' --expect 4    only if it has version 4
  esker state put agent-1 lock '{}' --expect 0      only if it does not exist")]
pub struct PutArgs {
    /// The agent
    agent: String,

    /// The key
    key: String,

    /// The value, a JSON object; `-` reads it from standard input
    #[arg(value_name = "JSON")]
    json_value: String,

    #[command(flatten)]
    of: NamespaceArg,

    /// Only if the key has this version; 0: only if it does not exist
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,

    /// Print one JSON object: commit_ts and version
    #[arg(long)]
    json: bool,
}

/// Delete a key.
///
/// Its versions go on counting: what it is given later has a higher one.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state delete agent-1 memory
  esker state delete agent-1 memory --expect 4    only if it has version 4")]
pub struct DeleteArgs {
    /// The agent
    agent: String,

    /// The key
    key: String,

    #[command(flatten)]
    of: NamespaceArg,

    /// Only if the key has this version
    #[arg(long, value_name = "VERSION")]
    expect: Option<u64>,

    /// Print one JSON object: commit_ts and version
    #[arg(long)]
    json: bool,
}

impl PutArgs {
    /// Reads and checks the value.
    ///
    /// # Errors
    ///
    /// `invalid`, with the place in the value.
    pub async fn value(&self) -> Result<Struct, Failure> {
        let mut text = self.json_value.clone().into_bytes();
        if self.json_value == "-" {
            let read = input::read_to_end().await;
            text = read.map_err(|e| Failure::wrong("io", format!("reading the value: {e}")))?;
        }
        let value = value::from_json(&text)
            .map_err(|e| Failure::usage("invalid", format!("bad value: {e}")))?;
        match inexact(&serde_json::from_slice(&text).unwrap_or_default()) {
            None => Ok(value),
            Some(number) => Err(Failure::usage(
                "invalid",
                format!(
                    "{number} cannot be kept exactly: integers are exact up to 9007199254740992 (2^53); \
                     write it as a string"
                ),
            )),
        }
    }
}

/// An integer of the value that a 64-bit float cannot represent.
fn inexact(value: &serde_json::Value) -> Option<String> {
    match value {
        serde_json::Value::Number(number) => {
            let exact = match (number.as_i64(), number.as_u64()) {
                (Some(whole), _) => whole as f64 as i128 == i128::from(whole),
                (None, Some(whole)) => whole as f64 as i128 == i128::from(whole),
                (None, None) => true,
            };
            (!exact).then(|| number.to_string())
        }
        serde_json::Value::Array(values) => values.iter().find_map(inexact),
        serde_json::Value::Object(fields) => fields.values().find_map(inexact),
        _ => None,
    }
}

pub async fn put(mut state: State, args: PutArgs, value: Struct) -> Result<(), Failure> {
    let txn_id = begin(&mut state).await?;
    let request = WriteRequest {
        txn_id: txn_id.clone(),
        namespace: args.of.namespace,
        agent_id: args.agent,
        key: args.key,
        value: Some(value),
        expected_version: args.expect,
    };
    if let Err(error) = state.client.write(request).await {
        abort(&mut state, txn_id).await;
        return Err(state.failure(&error));
    }
    let committed = commit(&mut state, txn_id).await?;
    say(&committed, args.json)
}

pub async fn delete(mut state: State, args: DeleteArgs) -> Result<(), Failure> {
    let txn_id = begin(&mut state).await?;
    let request = DeleteRequest {
        txn_id: txn_id.clone(),
        namespace: args.of.namespace,
        agent_id: args.agent,
        key: args.key,
        expected_version: args.expect,
    };
    if let Err(error) = state.client.delete(request).await {
        abort(&mut state, txn_id).await;
        return Err(state.failure(&error));
    }
    let committed = commit(&mut state, txn_id).await?;
    say(&committed, args.json)
}

async fn begin(state: &mut State) -> Result<String, Failure> {
    let begun = state
        .client
        .begin_transaction(BeginTransactionRequest::default())
        .await;
    Ok(begun.map_err(|e| state.failure(&e))?.into_inner().txn_id)
}

/// Aborts the transaction, so that it does not count against the limits until it expires.
async fn abort(state: &mut State, txn_id: String) {
    // If this fails, the transaction expires.
    let _ = state.client.abort(AbortRequest { txn_id }).await;
}

async fn commit(state: &mut State, txn_id: String) -> Result<CommitResponse, Failure> {
    let request = CommitRequest {
        txn_id,
        expectations: Vec::new(),
    };
    let committed = state.client.commit(request).await;
    Ok(committed.map_err(|e| state.failure(&e))?.into_inner())
}

fn say(committed: &CommitResponse, json: bool) -> Result<(), Failure> {
    let commit_ts = committed.commit_ts;
    let version = committed.versions.first().copied();
    if json {
        return print(json!({ "commit_ts": commit_ts, "version": version }));
    }
    match version {
        Some(version) => print(format_args!("version {version}, commit {commit_ts}")),
        None => print(format_args!("commit {commit_ts}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_integer_that_no_float_holds_is_found_wherever_it_is() {
        let found = |text: &str| inexact(&serde_json::from_str(text).unwrap());
        assert_eq!(found("[9007199254740992, -9007199254740992, 1.5]"), None);
        assert_eq!(found("[18014398509481984, 1e300]"), None);
        let inside = found(r#"{"a":[{"b":9007199254740993}]}"#);
        assert_eq!(inside.as_deref(), Some("9007199254740993"));
        assert_eq!(
            found("18446744073709551615").as_deref(),
            Some("18446744073709551615")
        );
        assert_eq!(
            found("9223372036854775807").as_deref(),
            Some("9223372036854775807")
        );
    }
}
