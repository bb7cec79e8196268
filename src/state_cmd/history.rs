//! `esker state history`.

use std::collections::VecDeque;
use std::io::{self, BufWriter, Write as _};

use esker_proto::Struct;
use esker_proto::state::v1::{Agent, ReplayRequest};
use serde::Serialize;
use serde_json::value::RawValue;

use super::NamespaceArg;
use super::connection::State;
use super::render;
use crate::failure::Failure;
use crate::output::{Written, written};
use crate::term::{Paint, moment, plain, rfc3339};

/// List the versions of a key, oldest first: version, commit, time, value.
///
/// It shows what the history holds that is kept. A deletion is a version, too.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state history agent-1 memory
  esker state history agent-1 memory --last 5
  esker state history agent-1 memory --json | jq -c .value")]
pub struct Args {
    /// The agent
    agent: String,

    /// The key
    key: String,

    #[command(flatten)]
    of: NamespaceArg,

    /// Only this many of the last ones
    #[arg(long, value_name = "COUNT")]
    last: Option<usize>,

    /// Only up to this commit
    #[arg(long, value_name = "COMMIT_TS")]
    at: Option<u64>,

    /// Print one JSON object a line: version, commit_ts, committed_at, committed_at_ms, txn_id, and value or deleted
    #[arg(long)]
    json: bool,
}

struct Version {
    version: u64,
    commit_ts: u64,
    committed_at_ms: u64,
    txn_id: String,
    value: Option<Struct>,
}

#[derive(Serialize)]
struct Shown<'a> {
    version: u64,
    commit_ts: u64,
    committed_at: Option<String>,
    committed_at_ms: u64,
    txn_id: &'a str,
    #[serde(skip_serializing_if = "Option::is_none")]
    value: Option<Box<RawValue>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    deleted: bool,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    let request = ReplayRequest {
        agent: Some(Agent {
            namespace: args.of.namespace.clone(),
            agent_id: args.agent.clone(),
        }),
        start_ts: None,
        end_ts: args.at,
        key: Some(args.key.clone()),
    };
    let events = state.client.replay(request).await;
    let mut events = events.map_err(|e| state.failure(&e))?.into_inner();
    let mut out = Output::new(&args);
    let mut kept: VecDeque<Version> = VecDeque::new();
    while let Some(event) = events.message().await.map_err(|e| state.failure(&e))? {
        for operation in event.operations {
            let version = Version {
                version: operation.version,
                commit_ts: event.commit_ts,
                committed_at_ms: event.committed_at_ms,
                txn_id: event.txn_id.clone(),
                value: operation.value,
            };
            match args.last {
                None => {
                    if let Written::NobodyReads = out.print(&version)? {
                        return Ok(());
                    }
                }
                Some(0) => {}
                Some(last) => {
                    if kept.len() == last {
                        kept.pop_front();
                    }
                    kept.push_back(version);
                }
            }
        }
    }
    for version in &kept {
        if let Written::NobodyReads = out.print(version)? {
            return Ok(());
        }
    }
    written(out.out.flush())?;
    if out.none && args.last != Some(0) {
        return Err(Failure::wrong(
            "key_not_found",
            format!(
                "the history that is kept has no version of key `{}` of agent `{}` in namespace `{}`",
                plain(&args.key),
                plain(&args.agent),
                plain(&args.of.namespace)
            ),
        ));
    }
    Ok(())
}

const HEAD: &str = "VERSION     COMMIT  TIME                         VALUE";

struct Output {
    out: BufWriter<io::Stdout>,
    json: bool,
    none: bool,
}

impl Output {
    fn new(args: &Args) -> Output {
        Output {
            out: BufWriter::new(io::stdout()),
            json: args.json,
            none: true,
        }
    }

    fn print(&mut self, it: &Version) -> Result<Written, Failure> {
        if self.none && !self.json {
            written(writeln!(self.out, "{}", Paint::stdout().dim(HEAD)))?;
        }
        self.none = false;
        let line = if self.json {
            render::line(&Shown {
                version: it.version,
                commit_ts: it.commit_ts,
                committed_at: rfc3339(it.committed_at_ms),
                committed_at_ms: it.committed_at_ms,
                txn_id: &it.txn_id,
                value: render::raw(it.value.as_ref())?,
                deleted: it.value.is_none(),
            })?
        } else {
            let time = moment(it.committed_at_ms).unwrap_or_default();
            let value = match &it.value {
                Some(value) => render::json(value)?,
                None => Paint::stdout().dim("(deleted)"),
            };
            format!("{:>7}  {:>9}  {time:27}  {value}", it.version, it.commit_ts)
        };
        written(writeln!(self.out, "{line}"))
    }
}
