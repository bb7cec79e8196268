//! `/state`: what the state store has, for people who look at it. Programs use the state service.
//!
//! Listings have no values, only their sizes; a value is read alone. Each answer is a page of bounded size. Who
//! may read an agent's keys through the state service may read them here, and nothing else of the store.

use std::time::Duration;

use axum::Json;
use axum::extract::State;
use bytes::Bytes;
use esker_node::state::{ReadAt, Replay, ReplayEvent, Scan, StateKey, StateRead};
use esker_node::{Client, Error, StateError, StateStore};
use futures::{TryStream, TryStreamExt as _};
use http::StatusCode;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use time::OffsetDateTime;
use utoipa::{IntoParams, ToSchema};

use super::error::Failures;
use super::request::{InQuery, page_limit};
use super::{Admin, AdminError};
use crate::auth::Access;
use crate::auth::access::Granted;
use crate::auth::operation::Effect;
use crate::client::OfClient;
use crate::timestamp::timestamp;

/// Most agents that are examined for a page: a token may be permitted few of many.
const MAX_EXAMINED: usize = 10_000;
/// Most rows of the database that are read for a page of keys, some 20 ms of work: of many keys few may be there, where
/// the others are deleted or were not written by the commit as of which they are read.
const MAX_ROWS: u64 = 10_000;
/// Most bytes of names and values that are read for a page; only the sizes of values are returned.
const MAX_PAGE_BYTES: usize = 16 << 20;
/// Most operations of commits on a page, beyond which it ends after the commit: a commit has at most 10,000.
const MAX_PAGE_OPERATIONS: usize = 2000;
/// Longest time until a page of commits is read. Its replay waits for memory behind other replays of its principal,
/// which last as long as their clients take.
const COMMITS_TIMEOUT: Duration = Duration::from_secs(10);

/// The state store as of now.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct StoreStatus {
    /// The newest commit; 0 if there was none.
    pub commit_ts: u64,
    /// The first commit that is kept: earlier ones cannot be replayed, and states before it cannot be read.
    pub history_begins: u64,
    /// Keys, deleted ones included.
    pub keys: u64,
    /// Open transactions.
    pub open_transactions: u64,
    /// Bytes that they hold.
    pub open_transaction_bytes: u64,
    /// The commit of the newest JSON snapshot.
    pub newest_snapshot: Option<u64>,
    /// Commits since then.
    pub commits_since_snapshot: u64,
    /// Why the last JSON snapshot failed, if it did.
    pub last_failure: Option<String>,
}

/// Agents of the store.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Agents {
    /// In the order of namespaces, then of agents.
    pub agents: Vec<Agent>,
    /// Where the next page begins, in `after_namespace` and `after_agent`; absent if there is none.
    pub next: Option<Agent>,
}

/// An agent.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Agent {
    /// Its namespace.
    pub namespace: String,
    /// Its id.
    pub agent: String,
}

/// Keys of an agent.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Keys {
    /// The commit as of which they were read.
    pub commit_ts: u64,
    /// In their order, without deleted ones.
    pub keys: Vec<Key>,
    /// Where the next page begins, in `after`; absent if there is none.
    pub next: Option<String>,
}

/// A key.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Key {
    /// Its name.
    pub key: String,
    /// Its version.
    pub version: u64,
    /// The commit that wrote it.
    pub commit_ts: u64,
    /// Bytes of the value, as JSON.
    pub bytes: u64,
}

/// A key's value.
#[derive(Debug, Deserialize, Serialize, ToSchema)]
pub struct Value {
    /// Whether the key exists; otherwise it was never written, or is deleted.
    pub exists: bool,
    /// The value, a JSON object.
    #[schema(value_type = Option<Object>)]
    pub value: Option<Box<RawValue>>,
    /// Its version, or that of the deletion; 0 if it was never written.
    pub version: u64,
    /// The commit that wrote it.
    pub commit_ts: u64,
}

/// Versions of a key.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Versions {
    /// The newest first.
    pub versions: Vec<Version>,
    /// Where the next page begins, in `before`; absent if there is none, or earlier ones are not kept.
    pub next: Option<u64>,
}

/// A version of a key.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Version {
    /// Its number.
    pub version: u64,
    /// The commit that wrote it.
    pub commit_ts: u64,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Bytes of the value, as JSON.
    pub bytes: u64,
}

/// Commits of the store.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Commits {
    /// The newest commit of the store.
    pub newest: u64,
    /// In the order in which they happened.
    pub commits: Vec<Commit>,
    /// Where the next page begins, in `start`; absent if there is none.
    pub next: Option<u64>,
}

/// A commit.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct Commit {
    /// Its place in the order of commits.
    pub commit_ts: u64,
    /// The transaction.
    pub txn_id: String,
    /// When the server received it.
    #[serde(with = "time::serde::rfc3339")]
    pub at: OffsetDateTime,
    /// What it wrote and deleted, in its order.
    pub operations: Vec<CommitOperation>,
}

/// An operation of a commit.
#[derive(Clone, Debug, Deserialize, Serialize, ToSchema)]
pub struct CommitOperation {
    /// The namespace.
    pub namespace: String,
    /// The agent.
    pub agent: String,
    /// The key.
    pub key: String,
    /// The version that the key got.
    pub version: u64,
    /// Whether it is a deletion.
    pub deleted: bool,
    /// Bytes of the value, as JSON.
    pub bytes: u64,
}

/// Which agents.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichAgents {
    /// Only agents after this one, with its namespace.
    after_namespace: Option<String>,
    /// Only agents after this one.
    after_agent: Option<String>,
    /// Most agents to return, 1 to 1000; 100 by default.
    limit: Option<usize>,
}

/// Which keys.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichKeys {
    /// The namespace.
    namespace: String,
    /// The agent.
    agent: String,
    /// What the names begin with.
    prefix: Option<String>,
    /// Only keys after this one.
    after: Option<String>,
    /// The commit as of which to read; the newest by default.
    commit_ts: Option<u64>,
    /// Most keys to return, 1 to 1000; 100 by default.
    limit: Option<usize>,
}

/// Which value.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichValue {
    /// The namespace.
    namespace: String,
    /// The agent.
    agent: String,
    /// The key.
    key: String,
    /// The version to read; not together with `commit_ts`.
    version: Option<u64>,
    /// The commit as of which to read; the newest by default.
    commit_ts: Option<u64>,
}

/// Which versions.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichVersions {
    /// The namespace.
    namespace: String,
    /// The agent.
    agent: String,
    /// The key.
    key: String,
    /// Only versions below this one, which is one of the key.
    before: Option<u64>,
    /// Most versions to return, 1 to 1000; 100 by default.
    limit: Option<usize>,
}

/// Which commits.
#[derive(Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
pub(super) struct WhichCommits {
    /// The first commit; by default, the page ends with the newest one.
    start: Option<u64>,
    /// Most commits to return, 1 to 1000; 100 by default.
    limit: Option<usize>,
    /// Only operations on keys of this namespace and `agent`.
    namespace: Option<String>,
    /// Only operations on keys of this agent.
    agent: Option<String>,
}

impl Admin {
    fn store(&self, granted: &Granted) -> StateStore {
        self.node.open(granted).state().clone()
    }

    /// Answers with what is read of the store.
    async fn read_store<T: Send + 'static>(
        &self,
        client: Client,
        granted: &Granted,
        read: impl FnOnce(&StateStore) -> Result<T, AdminError> + Send + 'static,
    ) -> Result<T, AdminError> {
        let store = self.store(granted);
        self.pages.run(client, move || read(&store)).await?
    }
}

/// A page while it is filled. One entry more than fits shows that there is a next one.
struct Page<T> {
    entries: Vec<T>,
    limit: usize,
    bytes: usize,
    max_bytes: usize,
    has_more: bool,
}

impl<T> Page<T> {
    fn new(limit: usize, max_bytes: usize) -> Page<T> {
        Page {
            entries: Vec::new(),
            limit,
            bytes: 0,
            max_bytes,
            has_more: false,
        }
    }

    /// Adds an entry for which so much was read, if it fits; one always does. Returns whether it does.
    fn add(&mut self, bytes: usize, entry: impl FnOnce() -> T) -> bool {
        self.bytes += bytes;
        let is_full = self.bytes > self.max_bytes && !self.entries.is_empty();
        self.has_more = is_full || self.entries.len() == self.limit;
        if !self.has_more {
            self.entries.push(entry());
        }
        !self.has_more
    }

    /// Where the next page begins, given by the last entry of this one; `None` if there is none.
    fn next<N>(&self, after: impl FnOnce(&T) -> N) -> Option<N> {
        self.entries.last().filter(|_| self.has_more).map(after)
    }
}

/// Where the state store stands.
#[utoipa::path(
    get,
    path = "/esker/v1/state",
    operation_id = "state_status",
    tag = "state",
    responses((status = 200, description = "As of now", body = StoreStatus), Failures)
)]
pub(super) async fn status(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
) -> Result<Json<StoreStatus>, AdminError> {
    let granted = access.any_state(Effect::Read)?;
    let status = admin
        .read_store(client, &granted, |store| Ok(store.status()?))
        .await?;
    Ok(Json(StoreStatus {
        commit_ts: status.commit_ts,
        history_begins: status.history_begins,
        keys: status.keys,
        open_transactions: status.open_transactions,
        open_transaction_bytes: status.open_transaction_bytes,
        newest_snapshot: status.newest_snapshot,
        commits_since_snapshot: status.commits_since_snapshot,
        last_failure: status.last_failure,
    }))
}

/// The agents that have keys, deleted ones included.
///
/// A token sees those that it may read. The page may be empty and have a next one: the store has many agents
/// that the token may not read.
#[utoipa::path(
    get,
    path = "/esker/v1/state/agents",
    operation_id = "state_agents",
    tag = "state",
    params(WhichAgents),
    responses((status = 200, description = "A page", body = Agents), Failures)
)]
pub(super) async fn agents(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InQuery(which): InQuery<WhichAgents>,
) -> Result<Json<Agents>, AdminError> {
    let granted = access.any_state(Effect::Read)?;
    let limit = page_limit(which.limit)?;
    let after = match (which.after_namespace, which.after_agent) {
        (None, None) => None,
        (Some(namespace), Some(agent)) => Some((namespace, agent)),
        _ => {
            return Err(AdminError::invalid(
                "after_namespace and after_agent go together",
            ));
        }
    };
    let read = move |store: &StateStore| {
        let mut found = Agents {
            agents: Vec::new(),
            next: None,
        };
        let (mut examined, mut last) = (0, None);
        let after = after
            .as_ref()
            .map(|(namespace, agent)| (&**namespace, &**agent));
        store.agents(after, |namespace, agent| {
            // There is one more than the page has.
            if found.agents.len() == limit || examined == MAX_EXAMINED {
                found.next = last.take();
                return true;
            }
            examined += 1;
            let one = Agent { namespace, agent };
            last = Some(one.clone());
            let permitted = access.agent(Effect::Read, &one.namespace, &one.agent);
            if permitted.is_ok() {
                found.agents.push(one);
            }
            false
        })?;
        Ok(found)
    };
    admin.read_store(client, &granted, read).await.map(Json)
}

/// The keys of an agent, without deleted ones, all as of one commit.
///
/// The page may be empty and have a next one: the agent has many keys that are deleted, or were not written by then.
#[utoipa::path(
    get,
    path = "/esker/v1/state/keys",
    operation_id = "state_keys",
    tag = "state",
    params(WhichKeys),
    responses((status = 200, description = "A page", body = Keys), Failures)
)]
pub(super) async fn keys(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InQuery(which): InQuery<WhichKeys>,
) -> Result<Json<Keys>, AdminError> {
    let granted = access.agent(Effect::Read, &which.namespace, &which.agent)?;
    let limit = page_limit(which.limit)?;
    let read = move |store: &StateStore| {
        let commit_ts = which.commit_ts.unwrap_or_else(|| store.commit_ts());
        let scan = Scan {
            namespace: which.namespace,
            agent_id: which.agent,
            prefix: which.prefix.unwrap_or_default(),
            at: Some(commit_ts),
            keys_only: false,
            after: which.after,
            // One more shows whether there is a next page.
            limit: Some(limit + 1),
            max_bytes: MAX_PAGE_BYTES,
            max_rows: Some(MAX_ROWS),
        };
        // Half of what the scan may read: the rest is for the key that does not fit.
        let mut page = Page::new(limit, MAX_PAGE_BYTES / 2);
        let scanned = store.visit(&scan, |entry| {
            let bytes = entry.key.len() + entry.value.len();
            page.add(bytes, || Key {
                key: entry.key,
                version: entry.version,
                commit_ts: entry.commit_ts,
                bytes: entry.value.len() as u64,
            })
        })?;
        Ok(Keys {
            commit_ts,
            next: page.next(|last| last.key.clone()).or(scanned.ended_at),
            keys: page.entries,
        })
    };
    admin.read_store(client, &granted, read).await.map(Json)
}

/// The value of a key: now, of a version, or as of a commit.
#[utoipa::path(
    get,
    path = "/esker/v1/state/value",
    operation_id = "state_value",
    tag = "state",
    params(WhichValue),
    responses((status = 200, description = "Also if there is no such key", body = Value), Failures)
)]
pub(super) async fn value(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InQuery(which): InQuery<WhichValue>,
) -> Result<Json<Value>, AdminError> {
    let granted = access.agent(Effect::Read, &which.namespace, &which.agent)?;
    let at = match (which.version, which.commit_ts) {
        (None, None) => ReadAt::Latest,
        (Some(version), None) => ReadAt::Version(version),
        (None, Some(commit_ts)) => ReadAt::Commit(commit_ts),
        (Some(_), Some(_)) => {
            return Err(AdminError::invalid(
                "version and commit_ts exclude each other",
            ));
        }
    };
    let key = StateKey::new(which.namespace, which.agent, which.key);
    let get = move |store: &StateStore| Ok(store.get(&key, at)?);
    let read = admin.read_store(client, &granted, get).await?;
    Ok(Json(Value {
        exists: read.value.is_some(),
        value: read.value.as_ref().map(json).transpose()?,
        version: read.version,
        commit_ts: read.commit_ts,
    }))
}

/// The versions of a key that are kept, the newest first.
#[utoipa::path(
    get,
    path = "/esker/v1/state/versions",
    operation_id = "state_versions",
    tag = "state",
    params(WhichVersions),
    responses((status = 200, description = "A page", body = Versions), Failures)
)]
pub(super) async fn versions(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InQuery(which): InQuery<WhichVersions>,
) -> Result<Json<Versions>, AdminError> {
    let granted = access.agent(Effect::Read, &which.namespace, &which.agent)?;
    let limit = page_limit(which.limit)?;
    let key = StateKey::new(which.namespace, which.agent, which.key);
    let read = move |store: &StateStore| {
        let newest = store.get(&key, ReadAt::Latest)?;
        let mut next = match which.before {
            Some(before) if before <= newest.version => {
                let named = kept(store.get(&key, ReadAt::Version(before)))?;
                named.map_or(Ok(None), |named| earlier(store, &key, &named))?
            }
            _ => (newest.version > 0).then_some(newest),
        };
        let mut page = Page::new(limit, MAX_PAGE_BYTES);
        while let Some(read) = next {
            let bytes = size(&read);
            let version = || Version {
                version: read.version,
                commit_ts: read.commit_ts,
                deleted: read.value.is_none(),
                bytes: bytes as u64,
            };
            if !page.add(bytes, version) {
                break;
            }
            next = earlier(store, &key, &read)?;
        }
        Ok(Versions {
            next: page.next(|last| last.version),
            versions: page.entries,
        })
    };
    admin.read_store(client, &granted, read).await.map(Json)
}

/// Commits, in the order in which they happened, without values.
#[utoipa::path(
    get,
    path = "/esker/v1/state/commits",
    operation_id = "state_commits",
    tag = "state",
    params(WhichCommits),
    responses((status = 200, description = "A page", body = Commits), Failures)
)]
pub(super) async fn commits(
    State(admin): State<Admin>,
    OfClient(client): OfClient,
    access: Access,
    InQuery(which): InQuery<WhichCommits>,
) -> Result<Json<Commits>, AdminError> {
    let limit = page_limit(which.limit)?;
    let (granted, agent) = match (which.namespace, which.agent) {
        (None, None) => (access.whole_state(Effect::Read)?, None),
        (Some(namespace), Some(agent)) => {
            let granted = access.agent(Effect::Read, &namespace, &agent)?;
            (granted, Some((namespace, agent)))
        }
        _ => return Err(AdminError::invalid("namespace and agent go together")),
    };
    let status = admin.read_store(client, &granted, |store| Ok(store.status()?));
    let begins = status.await?.history_begins;
    let store = admin.store(&granted);
    let newest = store.commit_ts();
    let last_page = newest.saturating_sub(limit as u64 - 1).max(begins);
    let start = which.start.unwrap_or(last_page);
    let mut found = Commits {
        newest,
        commits: Vec::new(),
        next: None,
    };
    if start > newest {
        return Ok(Json(found));
    }
    let events = store.replay(Replay {
        agent,
        start: Some(start),
        end: Some(newest),
        follow: false,
        client,
    })?;
    fill_in_time(&mut found, limit, events).await?;
    Ok(Json(found))
}

/// Fills a page with commits.
async fn fill_in_time(
    page: &mut Commits,
    limit: usize,
    commits: impl TryStream<Ok = ReplayEvent, Error = StateError> + Unpin,
) -> Result<(), AdminError> {
    let filled = tokio::time::timeout(COMMITS_TIMEOUT, fill(page, limit, commits)).await;
    filled.unwrap_or_else(|_| {
        Err(AdminError::from(Error::TryLater(format!(
            "the commits were not read within {} s: replays and watches with your token, or from your address, keep \
             the memory for these, or the disk is slow",
            COMMITS_TIMEOUT.as_secs()
        ))))
    })
}

async fn fill(
    page: &mut Commits,
    limit: usize,
    mut commits: impl TryStream<Ok = ReplayEvent, Error = StateError> + Unpin,
) -> Result<(), AdminError> {
    let mut operations = 0;
    while let Some(event) = commits.try_next().await? {
        if page.commits.len() == limit || operations >= MAX_PAGE_OPERATIONS {
            page.next = Some(event.commit_ts);
            break;
        }
        operations += event.operations.len();
        page.commits.push(Commit {
            commit_ts: event.commit_ts,
            txn_id: event.txn_id,
            at: timestamp(event.at_ms).map_err(AdminError::invalid)?,
            operations: event.operations.into_iter().map(Into::into).collect(),
        });
    }
    Ok(())
}

impl From<esker_node::state::Operation> for CommitOperation {
    fn from(of: esker_node::state::Operation) -> CommitOperation {
        CommitOperation {
            namespace: of.key.namespace,
            agent: of.key.agent_id,
            key: of.key.key,
            version: of.version,
            deleted: of.value.is_none(),
            bytes: of.value.map_or(0, |value| value.len() as u64),
        }
    }
}

/// What was read; `None` if there is no such version, or it is not kept.
fn kept(read: Result<StateRead, StateError>) -> Result<Option<StateRead>, AdminError> {
    match read {
        Ok(read) => Ok((read.version > 0).then_some(read)),
        Err(StateError::HistoryBegins { .. }) => Ok(None),
        Err(error) => Err(error.into()),
    }
}

/// The version of a key before another one. After a restore with a loss, numbers go on 2^40 higher: the gap is
/// passed by the commit.
fn earlier(
    store: &StateStore,
    key: &StateKey,
    version: &StateRead,
) -> Result<Option<StateRead>, AdminError> {
    let (number, commit) = (
        version.version.saturating_sub(1),
        version.commit_ts.saturating_sub(1),
    );
    if number == 0 {
        return Ok(None);
    }
    if let Some(read) = kept(store.get(key, ReadAt::Version(number)))? {
        return Ok(Some(read));
    }
    let read = kept(store.get(key, ReadAt::Commit(commit)))?;
    Ok(read.filter(|read| read.version < version.version))
}

fn size(read: &StateRead) -> usize {
    read.value.as_ref().map_or(0, Bytes::len)
}

/// A stored value, as it is.
fn json(value: &Bytes) -> Result<Box<RawValue>, AdminError> {
    serde_json::from_slice(value).map_err(|error| {
        AdminError::new(
            StatusCode::INTERNAL_SERVER_ERROR,
            "storage",
            format!("the stored value is not JSON: {error}"),
        )
    })
}

#[cfg(test)]
mod tests {
    use axum::response::IntoResponse as _;
    use futures::stream;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_page_of_commits_that_finds_no_memory_is_refused_in_time() {
        let mut page = Commits {
            newest: 1,
            commits: Vec::new(),
            next: None,
        };
        let waits = stream::pending::<Result<ReplayEvent, StateError>>();
        let filled = tokio::time::timeout(2 * COMMITS_TIMEOUT, fill_in_time(&mut page, 10, waits));
        let refused = filled.await.expect("it does not wait for ever");
        let refused = refused.unwrap_err().into_response();
        assert_eq!(refused.status(), StatusCode::SERVICE_UNAVAILABLE);
    }
}
