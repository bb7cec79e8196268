//! Reads commits in order, in constant memory.
//!
//! What was read and is not taken yet counts as memory of read sessions ([`ReadBudget`](crate::ReadBudget)). It is
//! released when all of a page is taken, and the next page is asked for: then the connection has sent all but the last
//! messages of it. A replay that waits for memory, or for new commits, holds nothing; one that gets no memory in time
//! ends with the commit to continue with.

use std::collections::VecDeque;
use std::sync::Arc;

use esker_partition::state::CommitRecord;
use esker_partition::state::read::StateReadError;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use tokio::sync::watch;

use super::error::StateError;
use super::types::{Operation, Replay, ReplayEvent};
use crate::admission::{Client, NoTurn};
use crate::blocking::blocking;
use crate::core::Inner;
use crate::read_budget::{PAGE_TIMEOUT, PagePermit};

/// Most commits that are read at a time, and their bytes; one commit, of up to 1 MiB, is always read. Pages of 64 KiB
/// are read nearly as fast as larger ones, and a client that takes nothing keeps no more.
const COMMITS: usize = 256;
const BYTES: usize = 64 * 1024;
/// Bytes that an operation takes beside its key and value.
const OPERATION: usize = 256;
/// What the messages of a page take, as a multiple of its commits: as they were read, and encoded.
const COPIES: usize = 2;

struct Replaying {
    inner: Arc<Inner>,
    agent: Option<(String, String)>,
    /// The last commit that was read.
    at: u64,
    /// The last commit to read; by default, the newest one at the beginning.
    end: u64,
    follow: bool,
    /// Whether it begins at the beginning of history, and has not begun yet.
    begins_anywhere: bool,
    ready: VecDeque<ReplayEvent>,
    /// The memory of what is ready.
    permit: Option<PagePermit>,
    client: Client,
    newest: watch::Receiver<u64>,
}

pub(super) fn replay(
    inner: &Arc<Inner>,
    replay: Replay,
) -> Result<BoxStream<'static, Result<ReplayEvent, StateError>>, StateError> {
    let reader = &inner.state.reader;
    let newest = reader.newest();
    let meta = reader.meta();
    let begins = meta.history_begins();
    let start = match replay.start {
        None => begins,
        // Commits begin at 1.
        Some(start) if start.max(1) < begins => {
            return Err(StateError::HistoryBegins {
                commit_ts: begins,
                version: None,
            });
        }
        Some(start) => start.max(1),
    };
    let end = match (replay.end, replay.follow) {
        (Some(end), true) => end,
        (None, true) => u64::MAX,
        (end, false) => end.unwrap_or(u64::MAX).min(meta.commit_ts),
    };
    let replaying = Replaying {
        inner: inner.clone(),
        agent: replay.agent,
        at: start - 1,
        end,
        follow: replay.follow,
        begins_anywhere: replay.start.is_none(),
        ready: VecDeque::new(),
        permit: None,
        client: replay.client,
        newest,
    };
    Ok(futures::stream::try_unfold(replaying, next).boxed())
}

async fn next(mut it: Replaying) -> Result<Option<(ReplayEvent, Replaying)>, StateError> {
    loop {
        if let Some(event) = it.ready.pop_front() {
            return Ok(Some((event, it)));
        }
        it.permit = None;
        if it.at >= it.end {
            return Ok(None);
        }
        let newest = *it.newest.borrow_and_update();
        if it.at >= newest {
            if !it.follow {
                return Ok(None);
            }
            let stopping = it.inner.stopping.clone();
            tokio::select! {
                changed = it.newest.changed() => {
                    if changed.is_err() {
                        return Err(StateError::Stopping);
                    }
                }
                () = stopping.cancelled() => return Err(StateError::Stopping),
            }
            continue;
        }
        if it.inner.stopping.is_cancelled() {
            return Err(StateError::Stopping);
        }
        let stopping = it.inner.stopping.clone();
        let budget = it.inner.reads.clone();
        let at_tail = it.follow && newest - it.at <= COMMITS as u64;
        let permit = tokio::select! {
            permit = budget.claim_page(it.client, at_tail) => permit,
            () = stopping.cancelled() => return Err(StateError::Stopping),
        };
        let mut permit = permit.map_err(|why| no_memory(why, it.at))?;
        let reader = it.inner.state.reader.clone();
        let (agent, at, end) = (it.agent.clone(), it.at, it.end);
        let read = blocking(move || {
            let agent = agent.as_ref().map(|(n, a)| (n.as_str(), a.as_str()));
            reader.commits(agent, at, end, COMMITS, BYTES)
        });
        let (commits, up_to) = match read.await {
            // History was removed after its beginning was read.
            Err(StateReadError::HistoryBegins { commit_ts, .. })
                if it.begins_anywhere && commit_ts > at + 1 =>
            {
                it.at = commit_ts - 1;
                continue;
            }
            read => read?,
        };
        it.begins_anywhere = false;
        it.at = up_to;
        permit.shrink(commits.iter().map(bytes_of).sum::<usize>() * COPIES);
        it.permit = Some(permit);
        it.ready.extend(commits.into_iter().map(event_of));
    }
}

/// Why a replay ends whose commits up to `at` were sent.
fn no_memory(why: NoTurn, at: u64) -> StateError {
    let who = match why {
        NoTurn::OwnShare => {
            "replays and watches of your token, or from your address, hold what one principal may have"
        }
        NoTurn::Others => "replays, watches and read sessions hold all",
    };
    StateError::Unavailable(format!(
        "{who} of `limits.read-sessions`, and their clients have taken too little of it for {} s: continue with \
         start_ts {}",
        PAGE_TIMEOUT.as_secs(),
        at + 1
    ))
}

fn bytes_of(commit: &CommitRecord) -> usize {
    let of = commit.operations.iter().map(|operation| {
        let key = &operation.key;
        let names = key.namespace.len() + key.agent_id.len() + key.key.len();
        OPERATION + names + operation.value.as_ref().map_or(0, |value| value.len())
    });
    OPERATION + of.sum::<usize>()
}

fn event_of(commit: CommitRecord) -> ReplayEvent {
    let operations = commit.operations.into_iter().map(|operation| Operation {
        key: operation.key,
        value: operation.value,
        version: operation.version,
    });
    ReplayEvent {
        txn_id: commit.txn_id,
        commit_ts: commit.commit_ts,
        at_ms: commit.at_ms,
        operations: operations.collect(),
    }
}
