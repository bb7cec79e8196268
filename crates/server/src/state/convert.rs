//! Values and events, from the store's form into messages, and back.

use esker_node::state::{
    Operation, ReplayEvent, StateEntry, StateKey, StateRead, StateSnapshot, StateStatus,
    StateVerification,
};
use esker_proto::{Struct, state::v1 as esker, statehouse::v1 as statehouse, value};
use tonic::Status;

use super::status::{bad_value, unfit};

/// The JSON text of a value that a client sent. A missing value is an empty one, as in Statehouse.
pub(super) fn sent(value: Option<Struct>) -> Result<bytes::Bytes, Status> {
    let json = value::to_json(&value.unwrap_or_default());
    json.map(Into::into).map_err(|error| bad_value(&error))
}

/// A stored value as a message.
pub(super) fn stored(key: &str, json: &[u8]) -> Result<Struct, Status> {
    value::from_json(json).map_err(|error| unfit(key, &error))
}

/// The value of a key in a list: `None` if it does not fit into a message, so that it does not hide the
/// other keys. Reading the key alone returns the reason.
fn listed(entry: &StateEntry) -> Option<Struct> {
    let value = value::from_json(&entry.value);
    value
        .inspect_err(|error| {
            tracing::debug!(key = entry.key, %error, "a stored value does not fit into a message");
        })
        .ok()
}

/// The three names of a key.
pub(super) fn key(namespace: String, agent_id: String, key: String) -> StateKey {
    StateKey {
        namespace,
        agent_id,
        key,
    }
}

/// The answer of both services to a read.
pub(super) struct Read {
    pub value: Option<Struct>,
    pub version: u64,
    pub commit_ts: u64,
}

impl Read {
    /// The answer to a read of a key.
    pub(super) fn of(key: &str, read: StateRead) -> Result<Read, Status> {
        let value = read.value.map(|json| stored(key, &json)).transpose()?;
        Ok(Read {
            value,
            version: read.version,
            commit_ts: read.commit_ts,
        })
    }
}

impl From<Read> for statehouse::GetStateResponse {
    fn from(read: Read) -> Self {
        statehouse::GetStateResponse {
            exists: read.value.is_some(),
            value: read.value,
            version: read.version,
            commit_ts: read.commit_ts,
        }
    }
}

impl From<Read> for statehouse::GetStateAtVersionResponse {
    fn from(read: Read) -> Self {
        statehouse::GetStateAtVersionResponse {
            exists: read.value.is_some(),
            value: read.value,
            version: read.version,
            commit_ts: read.commit_ts,
        }
    }
}

impl From<Read> for esker::GetStateResponse {
    fn from(read: Read) -> Self {
        esker::GetStateResponse {
            exists: read.value.is_some(),
            value: read.value,
            version: read.version,
            commit_ts: read.commit_ts,
        }
    }
}

/// A key with its value, for Statehouse.
pub(super) fn statehouse_entry(entry: StateEntry) -> Result<statehouse::StateEntry, Status> {
    Ok(statehouse::StateEntry {
        value: listed(&entry),
        key: entry.key,
        version: entry.version,
        commit_ts: entry.commit_ts,
    })
}

/// A key with its value, if there is one.
pub(super) fn esker_entry(entry: StateEntry) -> Result<esker::StateEntry, Status> {
    let value = match entry.value.is_empty() {
        true => None,
        false => listed(&entry),
    };
    Ok(esker::StateEntry {
        value,
        key: entry.key,
        version: entry.version,
        commit_ts: entry.commit_ts,
    })
}

/// A commit, for Statehouse.
pub(super) fn statehouse_event(event: ReplayEvent) -> Result<statehouse::ReplayEvent, Status> {
    let operation = |it: Operation| {
        let json = it.value.as_deref();
        Ok(statehouse::Operation {
            value: json.map(|json| stored(&it.key.key, json)).transpose()?,
            key: it.key.key,
            version: it.version,
        })
    };
    Ok(statehouse::ReplayEvent {
        txn_id: event.txn_id,
        commit_ts: event.commit_ts,
        operations: event
            .operations
            .into_iter()
            .map(operation)
            .collect::<Result<_, Status>>()?,
    })
}

/// A commit.
pub(super) fn esker_event(event: ReplayEvent) -> Result<esker::ReplayEvent, Status> {
    let operation = |it: Operation| {
        let json = it.value.as_deref();
        Ok(esker::Operation {
            value: json.map(|json| stored(&it.key.key, json)).transpose()?,
            namespace: it.key.namespace,
            agent_id: it.key.agent_id,
            key: it.key.key,
            version: it.version,
        })
    };
    Ok(esker::ReplayEvent {
        txn_id: event.txn_id,
        commit_ts: event.commit_ts,
        committed_at_ms: event.at_ms,
        operations: event
            .operations
            .into_iter()
            .map(operation)
            .collect::<Result<_, Status>>()?,
    })
}

/// A JSON snapshot.
pub(super) fn snapshot(it: StateSnapshot) -> esker::SnapshotInfo {
    esker::SnapshotInfo {
        name: it.name,
        commit_ts: it.commit_ts,
        created_at: it.created_at,
        bytes: it.bytes,
        keys: it.keys,
        lineage: it.lineage,
        local: it.local,
        archived: it.archived,
        problem: it.problem,
    }
}

/// What a verification found.
pub(super) fn verification(it: StateVerification) -> esker::VerifyResponse {
    esker::VerifyResponse {
        snapshot: it.snapshot,
        snapshot_commit_ts: it.snapshot_commit_ts,
        commit_ts: it.commit_ts,
        replayed: it.replayed,
        keys: it.keys,
        folded_digest: it.folded_digest,
        live_digest: it.live_digest,
        differences: it.differences,
        passed_over: it.passed_over,
    }
}

/// The status of the store.
pub(super) fn standing(it: StateStatus) -> esker::StatusResponse {
    esker::StatusResponse {
        commit_ts: it.commit_ts,
        history_begins: it.history_begins,
        open_transactions: it.open_transactions,
        open_transaction_bytes: it.open_transaction_bytes,
        commits_since_snapshot: it.commits_since_snapshot,
        newest_snapshot: it.newest_snapshot,
        snapshots_failed: it.snapshots_failed,
        last_failure: it.last_failure,
    }
}
