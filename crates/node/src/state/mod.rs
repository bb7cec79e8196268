//! The state store: transactional keys with versions, over a log of commits.
//!
//! | module | what it holds |
//! |---|---|
//! | [`types`], [`error`] | requests, answers, options; errors |
//! | [`transactions`] | staged operations, in memory |
//! | [`shared`], [`progress`] | what a node keeps for its store; which snapshots there are, and failures |
//! | [`document`], [`files`], [`archive`] | a JSON snapshot: as text, on this disk, in the repository |
//! | [`lineage`], [`inventory`] | which history a JSON snapshot is of; which files on this disk are snapshots of this store |
//! | [`background`] | background tasks: snapshots, expiry of transactions, removal of history |
//! | [`archiver`] | the task that puts snapshots into the repository |
//! | [`replay`], [`import`], [`verify`] | reading commits in order; importing a snapshot; proving one |
//! | [`imports`] | the imports that are under way |
//! | [`newer`] | JSON snapshots that are newer than the store after a restore |
//! | [`rebuild`] | rebuilding the store when what the database has of it cannot be used |
//!
//! There is one store, `default`, in the partition of its stream `esker-state/default`. A transaction is
//! staged in memory, and committed by one command: atomic, visible only when durable. Every commit is also a
//! record of the stream, so replaying the store is reading the stream. A JSON snapshot is written after
//! every so many commits; from a snapshot and the commits after it, the store can be rebuilt anywhere.

pub(crate) mod archive;
mod archiver;
pub(crate) mod background;
pub(crate) mod document;
pub(crate) mod error;
pub(crate) mod files;
mod import;
mod imports;
mod inventory;
pub(crate) mod lineage;
pub(crate) mod newer;
mod progress;
pub(crate) mod rebuild;
mod replay;
mod shared;
mod transactions;
mod types;
mod verify;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::Outcome;
use esker_partition::state::command::StateRefusal;
use esker_partition::state::read::{At, StateReadError, StateView};
use esker_raft::ProposeError;
use futures::stream::BoxStream;
use parking_lot::MutexGuard;

pub use error::StateError;
use error::unexpected;
pub use imports::Importing;
pub use types::{
    Committed, Expected, ImportSummary, MAX_NAME_BYTES, Operation, Permitted, ReadAt, Replay,
    ReplayEvent, Scan, Scanned, StateEntry, StateKey, StateOptions, StateRead, StateSnapshot,
    StateStatus, StateVerification, ValueCheck,
};

use crate::admission::{ADMISSION_TIMEOUT, Caller, Client, admit, in_time, unless_stopping};
use crate::core::Inner;
use crate::error::Error;
use crate::space::SpaceUse;
use crate::stages::{self, Stage};
pub(crate) use shared::Shared;
use transactions::{Committing, Transactions, check_operation, is_of_node};

/// Bytes that a commit takes from the budget of bytes in flight beside its own, so that many small commits
/// count.
const OVERHEAD: usize = 256;
/// The store among the streams of its partition, for the turns of a client. No stream has this id.
const STATE_STREAM_PATH: u64 = u64::MAX;

/// The state store of a node. Cheap to clone.
#[derive(Clone)]
pub struct StateStore {
    inner: Arc<Inner>,
}

impl Inner {
    /// Drops transactions that were begun in another term than that in which this node leads the store, if it does.
    fn follow_term(&self) {
        // Alone, a node keeps them through whatever elects it again.
        if self.peers.is_none() {
            return;
        }
        let term = self.state_group().serving_term().map(|term| term.0);
        self.state.transactions.lock().follow_term(term);
    }
}

impl StateStore {
    pub(crate) fn new(inner: Arc<Inner>) -> StateStore {
        StateStore { inner }
    }

    fn shared(&self) -> &Shared {
        &self.inner.state
    }

    fn takes_changes(&self) -> Result<(), StateError> {
        if self.inner.draining.load(Ordering::Relaxed) {
            return Err(StateError::Stopping);
        }
        Ok(())
    }

    /// Begins a transaction. Returns its id, a UUID v4. A `timeout` of `None` is the default; it is capped
    /// by [`StateOptions::max_timeout`].
    ///
    /// # Errors
    ///
    /// [`StateError::Exhausted`] with too many transactions open, [`StateError::Stopping`].
    pub fn begin(&self, client: Client, timeout: Option<Duration>) -> Result<String, StateError> {
        self.takes_changes()?;
        let principal = client.principal;
        self.transactions()
            .begin(principal, timeout, Instant::now())
    }

    /// The open transactions, as of the term in which this node leads.
    fn transactions(&self) -> MutexGuard<'_, Transactions> {
        self.inner.follow_term();
        self.shared().transactions.lock()
    }

    /// Why a transaction is not open here: it is lost if another node of the cluster has begun it, for the node that
    /// leads answers requests about it.
    fn explained(&self, error: StateError) -> StateError {
        let id = match (error, &self.inner.peers) {
            (StateError::TransactionNotFound(id), Some(_)) => id,
            (error, _) => return error,
        };
        let (identity, nodes) = (&self.inner.identity, self.inner.catalog_reader.nodes());
        let mut others = nodes.keys().filter(|node| **node != identity.node_id);
        match others.any(|node| is_of_node(&id, &identity.cluster_id, *node)) {
            true => StateError::TransactionLost(id),
            false => StateError::TransactionNotFound(id),
        }
    }

    /// Stages a write. `value` is a JSON object; `expected` is the version that the key must have when
    /// the transaction commits, 0 for a key that does not exist.
    ///
    /// # Errors
    ///
    /// [`StateError::TransactionNotFound`], [`StateError::TransactionLost`], [`StateError::TransactionExpired`],
    /// [`StateError::Invalid`], [`StateError::Exhausted`].
    pub fn write(
        &self,
        txn: &str,
        key: StateKey,
        value: Bytes,
        expected: Option<u64>,
    ) -> Result<(), StateError> {
        self.stage(txn, key, Some(value), expected)
    }

    /// Stages a deletion; otherwise like [`StateStore::write`].
    pub fn delete(
        &self,
        txn: &str,
        key: StateKey,
        expected: Option<u64>,
    ) -> Result<(), StateError> {
        self.stage(txn, key, None, expected)
    }

    fn stage(
        &self,
        txn: &str,
        key: StateKey,
        value: Option<Bytes>,
        expected: Option<u64>,
    ) -> Result<(), StateError> {
        check_operation(&key, value.as_ref())?;
        let staged = (self.transactions()).stage(txn, key, value, expected, Instant::now());
        staged.map_err(|error| self.explained(error))
    }

    /// Commits a transaction; returns when it is durable and visible. `expected` has further expected
    /// versions, of keys that the transaction need not write, and that the caller has checked. `client` is whose
    /// turn it is where many commit. What is staged has to be `permitted`: it is checked in one step with taking
    /// it, so that nothing is staged in between, and once more when its turn has come.
    ///
    /// # Errors
    ///
    /// [`StateError::NotPermitted`], after which the transaction is as before.
    /// Those of [`StateStore::write`]; [`StateError::VersionMismatch`], after which nothing happened and the
    /// transaction no longer exists; [`StateError::Unavailable`] and [`StateError::Stopping`] if nothing
    /// happened and it can be committed again, [`StateError::Unknown`] if it may have happened.
    pub async fn commit(
        &self,
        txn: &str,
        expected: Vec<Expected>,
        client: Client,
        permitted: Permitted<'_>,
    ) -> Result<Committed, StateError> {
        self.takes_changes()?;
        if self.inner.refuses_appends.load(Ordering::Relaxed) {
            return Err(StateError::Unavailable(
                "the log is full: commits are refused until a snapshot is archived".to_owned(),
            ));
        }
        for one in &expected {
            one.key.check().map_err(StateError::Invalid)?;
        }
        let shared = self.shared();
        self.inner.follow_term();
        self.inner.clocks_compared().await;
        let begun = Committing::begin(&shared.transactions, txn, expected, permitted);
        let mut committing = begun.map_err(|error| self.explained(error))?;
        committing.stamp(self.inner.stamp_ms());
        let only_deletes = match committing.command() {
            esker_partition::command::Kind::StateCommit(commit) => {
                commit.operations.iter().all(|op| op.value.is_none())
            }
            _ => false,
        };
        // Deleting a key releases space when its history is removed.
        let usage = match only_deletes {
            true => SpaceUse::Keeps,
            false => SpaceUse::Takes,
        };
        let bytes = committing.command().to_bytes();
        let part = self.inner.partition_db(self.inner.state.partition.0);
        self.inner
            .wait_for_space(part, usage)
            .await
            .map_err(|error| StateError::Unavailable(error.to_string()))?;
        let taken = bytes.len() + OVERHEAD;
        let options = &self.inner.options;
        let path = client.path(STATE_STREAM_PATH);
        let admitted = async {
            let gate = &self.inner.partitions[self.inner.state.partition.0 as usize - 1].gate;
            // In this order, as for appends: what waits for a partition takes nothing from others.
            let passed = gate.pass(&path, taken, Caller::Request).await?;
            let bytes = admit(&self.inner.admission, taken.min(options.append_inflight)).await?;
            Ok((passed, bytes))
        };
        let admitted = in_time(ADMISSION_TIMEOUT, admitted);
        let permits = unless_stopping(&self.inner.stopping, admitted)
            .await
            .map_err(|error| match error {
                Error::Stopping => StateError::Stopping,
                other => StateError::Unavailable(other.to_string()),
            })?;
        stages::note(Stage::Admitted);
        self.takes_changes()?;
        // It may have waited for seconds.
        committing.check(permitted)?;
        // If the client disconnects from here on, the transaction is not opened again.
        committing.proposed();
        let group = self.inner.state_group();
        let answered = match stages::propose(group, bytes, Some(Box::new(permits)), None) {
            Ok(answer) => match self.inner.answer_in_time(group, answer).await {
                Ok(answered) => answered,
                Err(why) => return Err(StateError::Unknown(why)),
            },
            Err(refused) => Err(refused),
        };
        let outcome = match answered {
            Ok(outcome) => outcome,
            Err(error) => {
                if error.has_no_side_effects() {
                    committing.nothing_happened();
                }
                return Err(not_committed(error));
            }
        };
        match outcome {
            Outcome::StateCommitted(Ok(done)) => {
                metrics::counter!("esker_state_commits_total").increment(1);
                metrics::counter!("esker_state_operations_total")
                    .increment(done.versions.len() as u64);
                shared.committed(done.commit_ts);
                Ok(Committed {
                    commit_ts: done.commit_ts,
                    versions: done.versions,
                })
            }
            Outcome::StateCommitted(Err(StateRefusal::VersionMismatch {
                key,
                expected,
                actual,
            })) => {
                metrics::counter!("esker_state_refused_commits_total").increment(1);
                Err(StateError::VersionMismatch {
                    key,
                    expected,
                    actual,
                })
            }
            Outcome::StateCommitted(Err(StateRefusal::Exhausted)) => Err(StateError::Exhausted(
                "the store has no numbers left for commits, or one of the keys none for versions"
                    .to_owned(),
            )),
            other => Err(unexpected(&other)),
        }
    }

    /// Drops a transaction. An unknown one counts as dropped.
    ///
    /// # Errors
    ///
    /// [`StateError::NotPermitted`], after which the transaction is as before.
    pub fn abort(&self, txn: &str, permitted: Permitted<'_>) -> Result<(), StateError> {
        self.shared().transactions.lock().abort(txn, permitted)
    }

    /// Reads the store as of one moment, and counts the rows that were read for it.
    fn view<T>(
        &self,
        look: impl FnOnce(&StateView<'_>) -> Result<T, StateReadError>,
    ) -> Result<T, StateError> {
        let counted = |view: &StateView<'_>| {
            let found = look(view);
            metrics::counter!("esker_state_rows_read_total").increment(view.rows_read());
            found
        };
        Ok(self.shared().reader.view(counted)?)
    }

    /// Reads one key. The answer for a key that never existed, or did not exist yet, is
    /// [`StateRead::absent`]. Blocks on the database for as long as a disk takes.
    ///
    /// # Errors
    ///
    /// [`StateError::HistoryBegins`] for a version or commit below the history that is kept.
    pub fn get(&self, key: &StateKey, at: ReadAt) -> Result<StateRead, StateError> {
        key.check().map_err(StateError::Invalid)?;
        let reader = &self.shared().reader;
        let at = match at {
            ReadAt::Latest => None,
            ReadAt::Version(version) => Some(At::Version(version)),
            ReadAt::Commit(commit_ts) => {
                self.must_have(commit_ts)?;
                Some(At::Commit(commit_ts))
            }
        };
        let entry = match at {
            None => reader.get(key)?,
            Some(at) => self.view(|view| view.get(key, at))?,
        };
        Ok(read_of(entry))
    }

    /// The same for the present, if that needs no disk; `None` if it does.
    pub fn get_cached(&self, key: &StateKey) -> Option<Result<StateRead, StateError>> {
        if let Err(why) = key.check() {
            return Some(Err(StateError::Invalid(why)));
        }
        match self.shared().reader.get_cached(key) {
            Ok(found) => found.map(|entry| Ok(read_of(entry))),
            Err(error) => Some(Err(error.into())),
        }
    }

    /// The newest commit. It is kept in memory.
    pub fn commit_ts(&self) -> u64 {
        self.shared().reader.meta().commit_ts
    }

    /// Refuses a commit that has not happened.
    fn must_have(&self, commit_ts: u64) -> Result<(), StateError> {
        let newest = self.commit_ts();
        if commit_ts > newest {
            return Err(StateError::Invalid(format!(
                "commit_ts {commit_ts} is in the future: the newest commit is {newest}"
            )));
        }
        Ok(())
    }

    /// Reads an agent's keys, in order, without deleted ones, all as of one moment. Blocking.
    ///
    /// # Errors
    ///
    /// [`StateError::Exhausted`] if the answer would exceed [`Scan::max_bytes`];
    /// [`StateError::HistoryBegins`].
    pub fn scan(&self, scan: &Scan) -> Result<Vec<StateEntry>, StateError> {
        let mut found = Vec::new();
        self.visit(scan, |entry| {
            found.push(entry);
            true
        })?;
        Ok(found)
    }

    /// The same, but passes one key at a time to `each`, until it returns false; only one key is held. Returns what
    /// was read for it. Blocking.
    ///
    /// # Errors
    ///
    /// Those of [`scan`](StateStore::scan); some keys may have been visited by then.
    pub fn visit(
        &self,
        scan: &Scan,
        mut each: impl FnMut(StateEntry) -> bool,
    ) -> Result<Scanned, StateError> {
        let at = match scan.at {
            None => At::Latest,
            Some(commit_ts) => {
                self.must_have(commit_ts)?;
                At::Commit(commit_ts)
            }
        };
        let mut count = 0;
        let mut bytes = 0;
        let mut take = |key: String, entry: Option<esker_partition::state::StateEntry>| {
            let Some((entry, value)) = entry.and_then(|mut entry| {
                let value = entry.value.take()?;
                Some((entry, value))
            }) else {
                return false;
            };
            let value = if scan.keys_only { Bytes::new() } else { value };
            let more = bytes + key.len() + value.len();
            if scan.limit.is_some() && more > scan.max_bytes && count > 0 {
                return true;
            }
            bytes = more;
            count += 1;
            let goes_on = each(StateEntry {
                key,
                value,
                version: entry.version,
                commit_ts: entry.commit_ts,
            });
            !goes_on || bytes > scan.max_bytes || scan.limit.is_some_and(|limit| count >= limit)
        };
        let (namespace, agent_id) = (&scan.namespace, &scan.agent_id);
        let after = scan.after.as_deref();
        let max_rows = scan.max_rows.unwrap_or(u64::MAX);
        let scanned = self.view(|view| {
            let mut ended_at = None;
            let mut take_some = |key: String, entry: Option<_>| {
                if view.rows_read() < max_rows {
                    return take(key, entry);
                }
                let last = key.clone();
                if !take(key, entry) {
                    ended_at = Some(last);
                }
                true
            };
            view.scan(namespace, agent_id, &scan.prefix, after, at, &mut take_some)?;
            let rows = view.rows_read();
            Ok(Scanned { rows, ended_at })
        })?;
        if bytes > scan.max_bytes && scan.limit.is_none() {
            return Err(StateError::Exhausted(format!(
                "the answer has more than {} bytes: ask for a longer prefix",
                scan.max_bytes
            )));
        }
        Ok(scanned)
    }

    /// Passes the agents after `start_after` (namespace and agent) that have keys, deleted ones included, to `take`,
    /// in order, until it returns true. Blocking: it reads one key of each.
    ///
    /// # Errors
    ///
    /// The database could not be read.
    pub fn agents(
        &self,
        start_after: Option<(&str, &str)>,
        mut take: impl FnMut(String, String) -> bool,
    ) -> Result<(), StateError> {
        self.view(|view| Ok(view.agents(start_after, &mut take)?))
    }

    /// Returns commits in order, in constant memory; without [`Replay::follow`] it ends at the present.
    ///
    /// # Errors
    ///
    /// [`StateError::HistoryBegins`] if `start` is set and below the history that is kept.
    pub fn replay(
        &self,
        replay: Replay,
    ) -> Result<BoxStream<'static, Result<ReplayEvent, StateError>>, StateError> {
        replay::replay(&self.inner, replay)
    }

    /// Makes sure that a JSON snapshot covers every commit before this call, and returns it. One is written
    /// unless there is one already.
    pub async fn snapshot(&self) -> Result<StateSnapshot, StateError> {
        let commit_ts = self.shared().reader.meta().commit_ts;
        if commit_ts == 0 {
            return Err(StateError::NothingCommitted);
        }
        let answered = self.shared().ask_snapshot(commit_ts);
        tokio::select! {
            answer = answered => answer.unwrap_or(Err(StateError::Stopping)),
            () = self.inner.stopping.cancelled() => Err(StateError::Stopping),
        }
    }

    /// The existing JSON snapshots, newest first; those on this disk are checked.
    pub async fn snapshots(&self) -> Result<Vec<StateSnapshot>, StateError> {
        verify::list(&self.inner).await
    }

    /// The text of a JSON snapshot, in pieces: that of the snapshot with this `commit_ts`, or of a new one
    /// of the present that is not kept. `place` is dropped when the thread that reads the snapshot has
    /// ended, which may be later than the stream.
    pub fn export(
        &self,
        commit_ts: Option<u64>,
        place: impl Send + 'static,
    ) -> Result<BoxStream<'static, Result<Bytes, StateError>>, StateError> {
        verify::export(&self.inner, commit_ts, place)
    }

    /// Begins an import, in turn: to be called before anything of the snapshot is taken. It counts until what this
    /// returns is dropped.
    ///
    /// # Errors
    ///
    /// [`StateError::Unavailable`] if its turn has not come within 10 s, and [`StateError::Stopping`].
    pub async fn begin_import(&self, client: Client) -> Result<Importing, StateError> {
        tokio::select! {
            begun = self.inner.state.imports.begin(client, rand::random()) => begun,
            () = self.inner.stopping.cancelled() => Err(StateError::Stopping),
        }
    }

    /// Imports the state of a JSON snapshot, given in pieces; nothing may follow its last piece. A store
    /// that has had commits is replaced only with `replace`; its counters continue from the larger of both,
    /// with a gap. All of it is checked before anything is written, each value with
    /// [`NodeOptions::check_value`](crate::NodeOptions::check_value).
    ///
    /// `importing` is of [`StateStore::begin_import`].
    ///
    /// # Errors
    ///
    /// [`StateError::Invalid`] if it is not a valid snapshot, [`StateError::NotEmpty`].
    pub async fn import(
        &self,
        importing: Importing,
        pieces: BoxStream<'static, Result<Bytes, StateError>>,
        replace: bool,
    ) -> Result<ImportSummary, StateError> {
        import::import(&self.inner, importing, pieces, replace).await
    }

    /// Proves the newest valid JSON snapshot, or that of a `commit_ts`: folds the commits after it onto it,
    /// and compares the result with the live state, by digest.
    pub async fn verify(&self, commit_ts: Option<u64>) -> Result<StateVerification, StateError> {
        verify::verify(&self.inner, commit_ts).await
    }

    /// The store's status. Blocking: right after a start, the JSON snapshots on this disk are read first.
    pub fn status(&self) -> Result<StateStatus, StateError> {
        let shared = self.shared();
        if !shared.progress.lock().looked {
            shared.inspect_files();
        }
        let meta = shared.reader.meta();
        let (open, bytes) = shared.transactions.lock().open();
        let progress = shared.progress.lock();
        let newest = progress.newest.unwrap_or(0);
        Ok(StateStatus {
            commit_ts: meta.commit_ts,
            history_begins: meta.history_begins(),
            keys: meta.keys,
            open_transactions: open as u64,
            open_transaction_bytes: bytes as u64,
            commits_since_snapshot: meta.commit_ts.saturating_sub(newest),
            newest_snapshot: progress.newest,
            snapshots_failed: progress.failed,
            last_failure: progress.last_failure.clone(),
            ignored_snapshots: progress.ignored.clone(),
        })
    }
}

fn read_of(entry: Option<esker_partition::state::StateEntry>) -> StateRead {
    entry.map_or_else(StateRead::absent, |entry| StateRead {
        value: entry.value,
        version: entry.version,
        commit_ts: entry.commit_ts,
    })
}

/// The error of a commit whose command was refused, or whose answer is unknown.
fn not_committed(error: ProposeError) -> StateError {
    match error.has_no_side_effects() {
        true => StateError::Unavailable(error.to_string()),
        false => StateError::Unknown(error.to_string()),
    }
}
