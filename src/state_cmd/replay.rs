//! `esker state replay`.

use std::io::{self, BufWriter, Write as _};
use std::time::Duration;

use esker_proto::state::v1::{Agent, ReplayEvent, ReplayRequest, StatusRequest, WatchRequest};
use tonic::{Status, Streaming};

use super::connection::State;
use super::render::{self, ShownEvent};
use crate::failure::Failure;
use crate::interrupts::{self, Interrupts};
use crate::output::{self, Written, written};
use crate::term::{Paint, moment, plain};

/// Pause before a lost connection is opened again.
const RECONNECT_PAUSE: Duration = Duration::from_millis(500);

/// What an interruption leaves behind.
const INTERRUPTED: &str = "the output is incomplete";

/// Print commits in order: of an agent, or of all.
///
/// Bounds are inclusive. Without --follow it ends at the present; with it, it continues with new
/// commits, and reconnects if the connection is lost.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker state replay agent-1
  esker state replay agent-1 --from 100 --to 200
  esker state replay --all --follow
  esker state replay --all --json | jq -c '.operations[] | {key, version}'")]
pub struct Args {
    /// The agent, unless it is --all
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    agent: Option<String>,

    /// Of all agents, in all namespaces
    #[arg(long, conflicts_with = "namespace")]
    all: bool,

    /// The agent's namespace [default: default]
    #[arg(long, short, value_name = "NAME")]
    namespace: Option<String>,

    /// The first commit [default: the first that is kept]
    #[arg(long, value_name = "COMMIT_TS")]
    from: Option<u64>,

    /// The last commit [default: the newest]
    #[arg(long, value_name = "COMMIT_TS", conflicts_with = "follow")]
    to: Option<u64>,

    /// Continue with new commits, until Ctrl-C
    #[arg(long, short)]
    follow: bool,

    /// Print one JSON object a line: commit_ts, txn_id, committed_at, committed_at_ms, operations
    #[arg(long)]
    json: bool,
}

impl Args {
    /// Whether it runs until it is interrupted.
    pub fn follows(&self) -> bool {
        self.follow
    }
}

pub async fn run(state: State, args: Args) -> Result<(), Failure> {
    let follows = args.follow;
    let mut interrupts = Interrupts::listen(INTERRUPTED)?;
    tokio::select! {
        done = replay(state, args) => done,
        // A command that ends by itself has its own result, even where standard output has no reader.
        () = output::unread(), if follows => Ok(()),
        () = interrupts.next() => match follows {
            true => Ok(()),
            false => Err(interrupts::interrupted(INTERRUPTED)),
        },
    }
}

async fn replay(mut state: State, args: Args) -> Result<(), Failure> {
    let agent = args.agent.clone().map(|agent_id| Agent {
        namespace: args.namespace.clone().unwrap_or_else(|| "default".into()),
        agent_id,
    });
    let mut out = Output {
        out: BufWriter::new(io::stdout()),
        json: args.json,
        all: args.all,
    };
    if !args.follow {
        let request = ReplayRequest {
            agent,
            start_ts: args.from,
            end_ts: args.to,
            key: None,
        };
        let events = state.client.replay(request).await;
        let mut events = events.map_err(|e| state.failure(&e))?.into_inner();
        while let Some(event) = events.message().await.map_err(|e| state.failure(&e))? {
            if let Written::NobodyReads = out.print(event)? {
                return Ok(());
            }
        }
        written(out.out.flush())?;
        return Ok(());
    }
    let mut next = match args.from {
        Some(from) => from,
        None => {
            let standing = state.client.status(StatusRequest {}).await;
            let standing = standing.map_err(|e| state.failure(&e))?.into_inner();
            standing.history_begins.max(1)
        }
    };
    loop {
        let lost = match watch(&mut state, agent.clone(), next).await {
            Ok(mut events) => follow(&mut events, &mut next, &mut out).await?,
            Err(lost) => Some(lost),
        };
        let Some(lost) = lost else {
            return Ok(());
        };
        let failure = state.failure(&lost);
        let draining = failure.code == "server_draining";
        if failure.exit != 3 && !draining {
            return Err(failure);
        }
        let remote = state.remote().clone();
        remark(&format!("[lost {}; waiting for it]", remote.address()));
        state = loop {
            tokio::time::sleep(RECONNECT_PAUSE).await;
            if let Ok(state) = State::open(remote.clone()).await {
                break state;
            }
        };
        remark("[connected again]");
    }
}

async fn watch(
    state: &mut State,
    agent: Option<Agent>,
    next: u64,
) -> Result<Streaming<ReplayEvent>, Status> {
    let request = WatchRequest {
        agent,
        start_ts: Some(next),
        key: None,
    };
    Ok(state.client.watch(request).await?.into_inner())
}

/// Prints commits until standard output has no reader, or until the connection is lost; then it returns the
/// reason.
async fn follow(
    events: &mut Streaming<ReplayEvent>,
    next: &mut u64,
    out: &mut Output,
) -> Result<Option<Status>, Failure> {
    loop {
        let event = match events.message().await {
            Ok(Some(event)) => event,
            Ok(None) => return Ok(Some(Status::unavailable("the stream ended"))),
            Err(lost) => return Ok(Some(lost)),
        };
        *next = event.commit_ts + 1;
        let mut result = out.print(event)?;
        if result == Written::Yes {
            result = written(out.out.flush())?;
        }
        if result == Written::NobodyReads {
            return Ok(None);
        }
    }
}

fn remark(text: &str) {
    remark!("{text}");
}

struct Output {
    out: BufWriter<io::Stdout>,
    json: bool,
    /// Whether lines name the agent.
    all: bool,
}

impl Output {
    fn print(&mut self, event: ReplayEvent) -> Result<Written, Failure> {
        if self.json {
            let line = render::line(&ShownEvent::of(event)?)?;
            return written(writeln!(self.out, "{line}"));
        }
        let paint = Paint::stdout();
        let time = moment(event.committed_at_ms).unwrap_or_default();
        let rest = format!("  {time}  {}", plain(&event.txn_id));
        let mut text = format!(
            "{}{}\n",
            paint.bold(format_args!("commit {}", event.commit_ts)),
            paint.dim(rest)
        );
        for operation in &event.operations {
            let key = plain(&operation.key);
            let key = match self.all {
                false => key,
                true => format!(
                    "{}  {}  {key}",
                    plain(&operation.namespace),
                    plain(&operation.agent_id)
                ),
            };
            let value = match &operation.value {
                Some(value) => render::json(value)?,
                None => paint.dim("(deleted)"),
            };
            text += &format!("  {key}  version {}  {value}\n", operation.version);
        }
        written(self.out.write_all(text.as_bytes()))
    }
}
