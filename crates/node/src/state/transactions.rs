//! Transactions that are open: staged operations, in memory.
//!
//! Bounded in number, operations, bytes and time. An id is a UUID v4 whose first bits name the node and
//! the run of it that it was begun in: so that one which a restart has lost is known as such.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::state::command::{ExpectedVersion, StagedOperation};
use esker_partition::state::record::record_bound;
use esker_partition::state::{MOST_RECORD_BYTES, StateKey};
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::error::StateError;
use super::types::StateOptions;

/// Expired transactions whose ids are remembered, so that who comes late hears why.
const EXPIRED: usize = 10_000;
/// What an operation takes beside its names and its value.
const OVERHEAD: usize = 128;

/// A transaction's operations.
#[derive(Debug)]
pub(crate) struct Staged {
    pub operations: Vec<StagedOperation>,
    pub expected: Vec<ExpectedVersion>,
    bytes: usize,
    expires: Instant,
    timeout: Duration,
}

impl Staged {
    /// What it was before it was to be committed, with `more` expectations that came only then.
    pub fn with(
        self,
        operations: Vec<StagedOperation>,
        mut expected: Vec<ExpectedVersion>,
        more: usize,
    ) -> Staged {
        expected.truncate(expected.len() - more);
        Staged {
            operations,
            expected,
            ..self
        }
    }
}

/// The open transactions of a node.
#[derive(Debug)]
pub(crate) struct Transactions {
    options: StateOptions,
    /// The first six bytes of every id.
    run: [u8; 6],
    open: HashMap<String, Staged>,
    bytes: usize,
    expired: VecDeque<(String, Duration)>,
}

impl Transactions {
    pub fn new(options: StateOptions, cluster_id: &str, node_id: u64) -> Transactions {
        let node = xxh3_64(format!("{cluster_id}/{node_id}").as_bytes()).to_be_bytes();
        let chance = rand::random::<u16>().to_be_bytes();
        Transactions {
            options,
            run: [node[0], node[1], node[2], node[3], chance[0], chance[1]],
            open: HashMap::new(),
            bytes: 0,
            expired: VecDeque::new(),
        }
    }

    /// Open ones, and the bytes that they hold.
    pub fn open(&self) -> (usize, usize) {
        (self.open.len(), self.bytes)
    }

    pub fn begin(&mut self, timeout: Option<Duration>, now: Instant) -> Result<String, StateError> {
        let timeout = timeout.unwrap_or(self.options.default_timeout);
        if timeout.is_zero() {
            return Err(StateError::Invalid(
                "a timeout of 0 ms: a transaction would expire before its first write".to_owned(),
            ));
        }
        let timeout = timeout.min(self.options.max_timeout);
        if self.open.len() >= self.options.max_transactions {
            self.sweep(now);
        }
        if self.open.len() >= self.options.max_transactions {
            return Err(StateError::Exhausted(format!(
                "{} transactions are open, and no more are allowed: commit or abort some",
                self.open.len()
            )));
        }
        let mut id = *Uuid::new_v4().as_bytes();
        id[..6].copy_from_slice(&self.run);
        let id = Uuid::from_bytes(id).to_string();
        self.open.insert(
            id.clone(),
            Staged {
                operations: Vec::new(),
                expected: Vec::new(),
                bytes: 0,
                expires: now + timeout,
                timeout,
            },
        );
        Ok(id)
    }

    pub fn stage(
        &mut self,
        id: &str,
        key: StateKey,
        value: Option<Bytes>,
        expected: Option<u64>,
        now: Instant,
    ) -> Result<(), StateError> {
        key.check().map_err(StateError::Invalid)?;
        if let Some(value) = &value {
            check_value(value)?;
        }
        let most = self.options.max_operations;
        let (all, most_all) = (self.bytes, self.options.max_transaction_bytes);
        let staged = self.find(id, now)?;
        if staged.operations.len() >= most {
            return Err(StateError::Exhausted(format!(
                "transaction {id} has {most} operations, and no more are allowed: commit it, and go on in another"
            )));
        }
        let names = key.namespace.len() + key.agent_id.len() + key.key.len();
        let value_bytes = value.as_ref().map_or(0, Bytes::len);
        if staged.bytes + names + value_bytes > MOST_RECORD_BYTES {
            return Err(too_large(id, staged.bytes + names + value_bytes));
        }
        let bytes = names + value_bytes + OVERHEAD;
        if all + bytes > most_all {
            return Err(StateError::Exhausted(format!(
                "open transactions hold {all} bytes, and {most_all} are allowed: commit or abort some"
            )));
        }
        let StateKey {
            namespace,
            agent_id,
            key,
        } = key;
        if let Some(version) = expected {
            staged.expected.push(ExpectedVersion {
                namespace: namespace.clone(),
                agent_id: agent_id.clone(),
                key: key.clone(),
                version,
            });
        }
        staged.operations.push(StagedOperation {
            namespace,
            agent_id,
            key,
            value,
        });
        staged.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// Takes a transaction out, to commit it.
    pub fn take(&mut self, id: &str, now: Instant) -> Result<Staged, StateError> {
        let staged = self.find(id, now)?;
        let bound = record_bound(id, &staged.operations);
        if bound > MOST_RECORD_BYTES {
            return Err(too_large(id, bound));
        }
        let staged = self.open.remove(id);
        let staged = staged.ok_or_else(|| StateError::TransactionNotFound(id.to_owned()))?;
        self.bytes -= staged.bytes;
        Ok(staged)
    }

    /// Puts one back of which nothing happened.
    pub fn put_back(&mut self, id: String, staged: Staged) {
        self.bytes += staged.bytes;
        self.open.insert(id, staged);
    }

    pub fn abort(&mut self, id: &str) {
        if let Some(staged) = self.open.remove(id) {
            self.bytes -= staged.bytes;
        }
    }

    /// Drops what has expired; how many.
    pub fn sweep(&mut self, now: Instant) -> usize {
        let gone: Vec<String> = self
            .open
            .iter()
            .filter(|(_, staged)| staged.expires <= now)
            .map(|(id, _)| id.clone())
            .collect();
        for id in &gone {
            if let Some(staged) = self.open.remove(id) {
                self.bytes -= staged.bytes;
                self.expired.push_back((id.clone(), staged.timeout));
            }
        }
        let surplus = self.expired.len().saturating_sub(EXPIRED);
        self.expired.drain(..surplus);
        gone.len()
    }

    fn find(&mut self, id: &str, now: Instant) -> Result<&mut Staged, StateError> {
        let expires = self.open.get(id).map(|staged| staged.expires);
        if expires.is_some_and(|expires| expires <= now) {
            self.sweep(now);
        }
        if !self.open.contains_key(id) {
            return Err(self.unknown(id));
        }
        let unknown = || StateError::TransactionNotFound(id.to_owned());
        self.open.get_mut(id).ok_or_else(unknown)
    }

    /// Why there is no such transaction.
    fn unknown(&self, id: &str) -> StateError {
        if let Some((_, timeout)) = self.expired.iter().rev().find(|(one, _)| one == id) {
            return StateError::TransactionExpired {
                txn: id.to_owned(),
                timeout_ms: timeout.as_millis() as u64,
            };
        }
        let of_node = Uuid::parse_str(id).is_ok_and(|uuid| {
            let bytes = uuid.as_bytes();
            bytes[..4] == self.run[..4] && bytes[4..6] != self.run[4..]
        });
        match of_node {
            true => StateError::TransactionLost(id.to_owned()),
            false => StateError::TransactionNotFound(id.to_owned()),
        }
    }
}

fn too_large(id: &str, bytes: usize) -> StateError {
    StateError::Exhausted(format!(
        "transaction {id} has {bytes} bytes, and a commit may have {MOST_RECORD_BYTES}: it is one record, applied as a whole; split it"
    ))
}

/// A value has to be a JSON object.
fn check_value(value: &Bytes) -> Result<(), StateError> {
    let invalid =
        |why: String| StateError::Invalid(format!("the value is not a JSON object: {why}"));
    let parsed: &RawValue = serde_json::from_slice(value).map_err(|e| invalid(e.to_string()))?;
    if parsed.get().len() != value.len() {
        return Err(invalid("there is space around it".to_owned()));
    }
    match parsed.get().starts_with('{') {
        true => Ok(()),
        false => Err(invalid("it is of another kind".to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(name: &str) -> StateKey {
        StateKey::new("n", "a", name)
    }

    fn transactions(options: StateOptions) -> Transactions {
        Transactions::new(options, "a cluster", 7)
    }

    fn value(bytes: usize) -> Option<Bytes> {
        Some(format!("{{\"v\":\"{}\"}}", "x".repeat(bytes)).into())
    }

    #[test]
    fn an_expired_transaction_says_so_and_holds_nothing() {
        let mut all = transactions(StateOptions::default());
        let now = Instant::now();
        let id = all.begin(Some(Duration::from_millis(5)), now).unwrap();
        all.stage(&id, key("k"), value(100), None, now).unwrap();
        let later = now + Duration::from_millis(5);
        let error = all.stage(&id, key("k"), None, None, later).unwrap_err();
        assert!(
            matches!(error, StateError::TransactionExpired { timeout_ms: 5, .. }),
            "{error}"
        );
        assert_eq!(all.open(), (0, 0));
        let error = all.take(&id, later).unwrap_err();
        assert!(matches!(error, StateError::TransactionExpired { .. }));
    }

    #[test]
    fn a_transaction_of_an_earlier_run_is_lost_and_any_other_unknown() {
        let now = Instant::now();
        let mut before = transactions(StateOptions::default());
        let id = before.begin(None, now).unwrap();
        assert_eq!(Uuid::parse_str(&id).unwrap().get_version_num(), 4);
        let mut all = transactions(StateOptions::default());
        all.run[5] = before.run[5].wrapping_add(1);
        let lost = all.take(&id, now).unwrap_err();
        assert!(matches!(lost, StateError::TransactionLost(_)), "{lost}");
        for id in ["", "nonsense", &Uuid::new_v4().to_string()] {
            let unknown = all.take(id, now).unwrap_err();
            assert!(matches!(unknown, StateError::TransactionNotFound(_)));
        }
        // One that was aborted or committed is not known either.
        let id = all.begin(None, now).unwrap();
        all.abort(&id);
        let unknown = all.take(&id, now).unwrap_err();
        assert!(matches!(unknown, StateError::TransactionNotFound(_)));
    }

    #[test]
    fn every_bound_is_kept() {
        let mut all = transactions(StateOptions {
            max_transactions: 2,
            max_operations: 3,
            max_transaction_bytes: 5_000,
            max_timeout: Duration::from_secs(1),
            ..StateOptions::default()
        });
        let now = Instant::now();
        let id = all.begin(Some(Duration::from_secs(9)), now).unwrap();
        assert_eq!(all.open[&id].timeout, Duration::from_secs(1));
        all.begin(None, now).unwrap();
        let error = all.begin(None, now).unwrap_err();
        assert!(error.to_string().starts_with("2 transactions are open"));
        for _ in 0..3 {
            all.stage(&id, key("k"), value(10), None, now).unwrap();
        }
        let error = all.stage(&id, key("k"), None, None, now).unwrap_err();
        assert!(error.to_string().contains("has 3 operations"), "{error}");
        // Those that have expired make room.
        let later = now + Duration::from_secs(2);
        let id = all.begin(None, later).unwrap();
        let error = all.stage(&id, key("k"), value(6_000), None, later);
        assert!(error.unwrap_err().to_string().contains("5000 are allowed"));
        let name = key(&"k".repeat(5_000));
        let error = all.stage(&id, name, None, None, later).unwrap_err();
        assert!(matches!(error, StateError::Invalid(_)), "{error}");
    }

    #[test]
    fn a_commit_that_is_too_large_for_one_record_is_refused_and_stays_open() {
        let mut all = transactions(StateOptions::default());
        let now = Instant::now();
        let id = all.begin(None, now).unwrap();
        all.stage(&id, key("k"), value(1_000_000), None, now)
            .unwrap();
        let error = all.stage(&id, key("k"), value(60_000), None, now);
        assert!(matches!(error, Err(StateError::Exhausted(_))));
        assert!(all.take(&id, now).is_ok());
    }

    #[test]
    fn a_value_is_a_json_object() {
        for bad in ["", "[]", "1", "{", "{}x", " {}", "{\"a\":}"] {
            let bad = Bytes::copy_from_slice(bad.as_bytes());
            assert!(check_value(&bad).is_err(), "{bad:?}");
        }
        assert!(check_value(&Bytes::from_static(b"{\"a\":[{}]}")).is_ok());
    }
}
