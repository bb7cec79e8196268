//! `esker state get`.

use esker_proto::state::v1::{GetStateRequest, get_state_request::At};
use serde::Serialize;
use serde_json::value::RawValue;

use super::NamespaceArg;
use super::connection::State;
use super::render;
use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::term::plain;

/// Print the value of a key.
///
/// The value goes to standard output, its version and commit to standard error. A key that does not
/// exist is `key_not_found`, and exits with 1.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state get agent-1 memory
  esker state get agent-1 memory --at 12340        as it was after that commit
  esker state get agent-1 memory --version 4
  esker state get agent-1 memory --json | jq .version")]
pub struct Args {
    /// The agent
    agent: String,

    /// The key
    key: String,

    #[command(flatten)]
    of: NamespaceArg,

    /// As it was after this commit
    #[arg(long, value_name = "COMMIT_TS", conflicts_with = "version")]
    at: Option<u64>,

    /// Its version of this number
    #[arg(long, value_name = "VERSION")]
    version: Option<u64>,

    /// Print one JSON object: exists, version, commit_ts and value
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Shown<'a> {
    namespace: &'a str,
    agent_id: &'a str,
    key: &'a str,
    exists: bool,
    version: u64,
    commit_ts: u64,
    value: Option<Box<RawValue>>,
}

pub async fn run(mut state: State, args: Args) -> Result<(), Failure> {
    let namespace = &args.of.namespace;
    let request = GetStateRequest {
        namespace: namespace.clone(),
        agent_id: args.agent.clone(),
        key: args.key.clone(),
        at: args.version.map(At::Version).or(args.at.map(At::CommitTs)),
    };
    let read = state.client.get_state(request).await;
    let read = read.map_err(|e| state.failure(&e))?.into_inner();
    let found = match &read.value {
        Some(value) => Ok(value),
        None => Err(not_found(&args, read.version, read.commit_ts)),
    };
    if args.json {
        let document = Shown {
            namespace,
            agent_id: &args.agent,
            key: &args.key,
            exists: read.exists,
            version: read.version,
            commit_ts: read.commit_ts,
            value: render::raw(read.value.as_ref())?,
        };
        return json::print_line_with(&document, found.map(drop));
    }
    let value = found?;
    let remark = format!("version {}, commit {}", read.version, read.commit_ts);
    remark!("{remark}");
    print(render::pretty(&render::json(value)?))
}

fn not_found(args: &Args, version: u64, commit_ts: u64) -> Failure {
    let (key, agent) = (plain(&args.key), plain(&args.agent));
    let namespace = plain(&args.of.namespace);
    let of = format!("key `{key}` of agent `{agent}` in namespace `{namespace}`");
    let message = match (version, args.version, args.at) {
        (0, Some(version), _) => format!("{of} has no version {version}"),
        (0, None, Some(at)) => format!("{of} did not exist after commit {at}"),
        (0, None, None) => format!(
            "{of} does not exist; `esker state keys {agent} --namespace {namespace}` shows those that do"
        ),
        (version, ..) => {
            format!("{of} was deleted by commit {commit_ts}, which gave it version {version}")
        }
    };
    Failure::wrong("key_not_found", message)
}
