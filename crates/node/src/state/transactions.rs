//! Open transactions: staged operations, in memory.
//!
//! They are bounded in number, operations, bytes and time. An id is a UUID v4 whose first bits name the node
//! and its run, so a transaction that a restart has lost is recognised as lost.

use std::collections::{HashMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

use bytes::Bytes;
use esker_partition::command::Kind;
use esker_partition::state::command::{ExpectedVersion, StagedOperation, StateCommit};
use esker_partition::state::record::{operation_bound, record_bound};
use esker_partition::state::{MAX_RECORD_BYTES, StateKey};
use parking_lot::Mutex;
use serde_json::value::RawValue;
use uuid::Uuid;
use xxhash_rust::xxh3::xxh3_64;

use super::error::StateError;
use super::types::{Expected, Permitted, StateOptions};
use crate::clock::now_ms;

/// Expired transactions whose ids are remembered, so that a late request gets the reason.
const EXPIRED: usize = 10_000;
/// Memory of an operation beside its names and its value, in bytes.
const OVERHEAD: usize = 128;

/// The staged operations of a transaction.
#[derive(Debug)]
pub(crate) struct Staged {
    pub operations: Vec<StagedOperation>,
    pub expected: Vec<ExpectedVersion>,
    bytes: usize,
    /// Most bytes of its record.
    record: usize,
    expires: Instant,
    timeout: Duration,
}

/// The open transactions of a node.
#[derive(Debug)]
pub(crate) struct Transactions {
    options: StateOptions,
    /// The first six bytes of every id.
    run: [u8; 6],
    open: HashMap<String, Staged>,
    /// Transactions that are being committed, with namespace and agent of what is staged in them; they count as
    /// open ones.
    committing: HashMap<String, Vec<(String, String)>>,
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
            committing: HashMap::new(),
            bytes: 0,
            expired: VecDeque::new(),
        }
    }

    /// The number of open transactions, and the bytes that they hold.
    pub fn open(&self) -> (usize, usize) {
        (self.open.len() + self.committing.len(), self.bytes)
    }

    pub fn begin(&mut self, timeout: Option<Duration>, now: Instant) -> Result<String, StateError> {
        let timeout = timeout.unwrap_or(self.options.default_timeout);
        if timeout.is_zero() {
            return Err(StateError::Invalid(
                "a timeout of 0 ms: a transaction would expire before its first write".to_owned(),
            ));
        }
        let timeout = timeout.min(self.options.max_timeout);
        if self.open().0 >= self.options.max_transactions {
            self.sweep(now);
        }
        if self.open().0 >= self.options.max_transactions {
            return Err(StateError::Exhausted(format!(
                "{} transactions are open, and no more are allowed: commit or abort some",
                self.open().0
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
                record: record_bound(&id, &[]),
                expires: now + timeout,
                timeout,
            },
        );
        Ok(id)
    }

    /// Stages an operation that [`check_operation`] has accepted.
    pub fn stage(
        &mut self,
        id: &str,
        key: StateKey,
        value: Option<Bytes>,
        expected: Option<u64>,
        now: Instant,
    ) -> Result<(), StateError> {
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
        let StateKey {
            namespace,
            agent_id,
            key,
        } = key;
        let operation = StagedOperation {
            namespace,
            agent_id,
            key,
            value,
        };
        let record = staged.record + operation_bound(&operation);
        if record > MAX_RECORD_BYTES {
            return Err(too_large(id, record));
        }
        let bytes = names + value_bytes + OVERHEAD;
        if all + bytes > most_all {
            return Err(StateError::Exhausted(format!(
                "open transactions hold {all} bytes, and {most_all} are allowed: commit or abort some"
            )));
        }
        if let Some(version) = expected {
            staged.expected.push(ExpectedVersion {
                namespace: operation.namespace.clone(),
                agent_id: operation.agent_id.clone(),
                key: operation.key.clone(),
                version,
            });
        }
        staged.operations.push(operation);
        staged.record = record;
        staged.bytes += bytes;
        self.bytes += bytes;
        Ok(())
    }

    /// Removes a transaction from the open ones, to commit it; its bytes stay counted. One that is not
    /// permitted stays as it is.
    fn take(
        &mut self,
        id: &str,
        now: Instant,
        permitted: Permitted<'_>,
    ) -> Result<Staged, StateError> {
        self.find(id, now)?.check(permitted)?;
        let staged = self.open.remove(id);
        let staged = staged.ok_or_else(|| StateError::TransactionNotFound(id.to_owned()))?;
        self.committing.insert(id.to_owned(), staged.agents());
        Ok(staged)
    }

    /// Drops a transaction. One that is being committed is not open again if the commit fails.
    ///
    /// # Errors
    ///
    /// [`StateError::NotPermitted`]: it stays as it is.
    pub fn abort(&mut self, id: &str, permitted: Permitted<'_>) -> Result<(), StateError> {
        if let Some(staged) = self.open.get(id) {
            staged.check(permitted)?;
        }
        if let Some(agents) = self.committing.get(id) {
            let agents = agents.iter();
            check_agents(
                agents.map(|(namespace, agent)| (&**namespace, &**agent)),
                permitted,
            )?;
            self.committing.remove(id);
        }
        if let Some(staged) = self.open.remove(id) {
            self.bytes -= staged.bytes;
        }
        Ok(())
    }

    /// Drops expired transactions. Returns their number.
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

    /// Why an id is not that of an open transaction.
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

impl Staged {
    /// Namespace and agent of what is staged, without repetition: most is of one agent.
    fn distinct_agents(&self) -> HashSet<(&str, &str)> {
        let operations = self.operations.iter();
        let operations = operations.map(|it| (&*it.namespace, &*it.agent_id));
        let expected = self.expected.iter();
        let expected = expected.map(|it| (&*it.namespace, &*it.agent_id));
        operations.chain(expected).collect()
    }

    fn agents(&self) -> Vec<(String, String)> {
        let agents = self.distinct_agents().into_iter();
        agents
            .map(|(namespace, agent)| (namespace.to_owned(), agent.to_owned()))
            .collect()
    }

    /// Fails unless all that is staged is of agents that are permitted.
    fn check(&self, permitted: Permitted<'_>) -> Result<(), StateError> {
        match permitted {
            None => Ok(()),
            Some(_) => check_agents(self.distinct_agents().into_iter(), permitted),
        }
    }
}

fn check_agents<'a>(
    mut agents: impl Iterator<Item = (&'a str, &'a str)>,
    permitted: Permitted<'_>,
) -> Result<(), StateError> {
    let Some(permitted) = permitted else {
        return Ok(());
    };
    match agents.all(|(namespace, agent)| permitted(namespace, agent)) {
        true => Ok(()),
        false => Err(StateError::NotPermitted),
    }
}

/// A transaction that is being committed. It counts towards the bounds until this is dropped. After that it
/// is open again, unless its command had an effect or may have had one.
pub(crate) struct Committing<'a> {
    all: &'a Mutex<Transactions>,
    /// A [`Kind::StateCommit`].
    command: Kind,
    /// The number of its expectations that were not staged.
    more: usize,
    /// The staged transaction, without the parts that are in the command.
    staged: Option<Staged>,
    was_proposed: bool,
}

impl<'a> Committing<'a> {
    /// Removes a transaction from the open ones.
    ///
    /// # Errors
    ///
    /// There is no such transaction; or it is too large or not permitted, and stays open.
    pub fn begin(
        all: &'a Mutex<Transactions>,
        id: &str,
        expected: Vec<Expected>,
        permitted: Permitted<'_>,
    ) -> Result<Committing<'a>, StateError> {
        let more = expected.len();
        let (mut staged, most) = {
            let mut all = all.lock();
            (
                all.take(id, Instant::now(), permitted)?,
                all.options.max_operations,
            )
        };
        let mut all_expected = std::mem::take(&mut staged.expected);
        all_expected.extend(expected.into_iter().map(|one| ExpectedVersion {
            namespace: one.key.namespace,
            agent_id: one.key.agent_id,
            key: one.key.key,
            version: one.version,
        }));
        let command = StateCommit {
            txn_id: id.to_owned(),
            operations: std::mem::take(&mut staged.operations),
            expected: all_expected,
            at_ms: now_ms(),
        };
        // If a check fails from here on, it is open again.
        let too_large = too_large_for_a_commit(&command, most);
        let committing = Committing {
            all,
            command: Kind::StateCommit(command),
            more,
            staged: Some(staged),
            was_proposed: false,
        };
        match too_large {
            Some(error) => Err(error),
            None => Ok(committing),
        }
    }

    /// The command to propose.
    pub fn command(&self) -> &Kind {
        &self.command
    }

    /// Notes that its command is in the log, or may be.
    pub fn proposed(&mut self) {
        self.was_proposed = true;
    }

    /// Notes that its command was proposed, and certainly had no effect.
    pub fn nothing_happened(mut self) {
        self.was_proposed = false;
    }
}

impl Drop for Committing<'_> {
    fn drop(&mut self) {
        let (Some(mut staged), Kind::StateCommit(command)) =
            (self.staged.take(), &mut self.command)
        else {
            return;
        };
        let mut all = self.all.lock();
        let was_aborted = all.committing.remove(&command.txn_id).is_none();
        if self.was_proposed || was_aborted {
            all.bytes -= staged.bytes;
            return;
        }
        staged.operations = std::mem::take(&mut command.operations);
        staged.expected = std::mem::take(&mut command.expected);
        let staged_ones = staged.expected.len() - self.more;
        staged.expected.truncate(staged_ones);
        all.open.insert(std::mem::take(&mut command.txn_id), staged);
    }
}

/// Why a command does not fit into one record, or has too many expectations; `None` if it can be proposed.
fn too_large_for_a_commit(command: &StateCommit, most: usize) -> Option<StateError> {
    if command.expected.len() > most {
        return Some(StateError::Exhausted(format!(
            "transaction {} expects {} versions, and {most} are allowed",
            command.txn_id,
            command.expected.len()
        )));
    }
    let names = |one: &ExpectedVersion| one.namespace.len() + one.agent_id.len() + one.key.len();
    let expected: usize = command.expected.iter().map(names).sum();
    if expected > MAX_RECORD_BYTES {
        return Some(too_large(&command.txn_id, expected));
    }
    // The operations were measured when they were staged.
    None
}

fn too_large(id: &str, bytes: usize) -> StateError {
    StateError::Exhausted(format!(
        "transaction {id} has {bytes} bytes, and a commit may have {MAX_RECORD_BYTES}: it is one record, applied as a whole; split it"
    ))
}

/// Checks that an operation is valid.
///
/// # Errors
///
/// [`StateError::Invalid`]
pub(crate) fn check_operation(key: &StateKey, value: Option<&Bytes>) -> Result<(), StateError> {
    key.check().map_err(StateError::Invalid)?;
    value.map_or(Ok(()), check_value)
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
        let error = all.take(&id, later, None).unwrap_err();
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
        let lost = all.take(&id, now, None).unwrap_err();
        assert!(matches!(lost, StateError::TransactionLost(_)), "{lost}");
        for id in ["", "nonsense", &Uuid::new_v4().to_string()] {
            let unknown = all.take(id, now, None).unwrap_err();
            assert!(matches!(unknown, StateError::TransactionNotFound(_)));
        }
        // An aborted or committed transaction is not known either.
        let id = all.begin(None, now).unwrap();
        all.abort(&id, None).unwrap();
        let unknown = all.take(&id, now, None).unwrap_err();
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
        // Expired transactions release their share of the bound.
        let later = now + Duration::from_secs(2);
        let id = all.begin(None, later).unwrap();
        let error = all.stage(&id, key("k"), value(6_000), None, later);
        assert!(error.unwrap_err().to_string().contains("5000 are allowed"));
        let name = key(&"k".repeat(5_000));
        let error = check_operation(&name, None).unwrap_err();
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
        let all = Mutex::new(all);
        assert!(Committing::begin(&all, &id, Vec::new(), None).is_ok());

        // The names are longer in a record than in memory.
        let id = all.lock().begin(None, now).unwrap();
        let long = |n: usize| key(&format!("{n}{}", "\u{1}".repeat(1000)));
        let stage = |n| all.lock().stage(&id, long(n), None, None, now);
        let staged = (0..200).take_while(|n| stage(*n).is_ok()).count();
        let error = stage(staged).unwrap_err();
        assert!(error.to_string().contains("split it"), "{error}");
        // The staged operations fill a record.
        let all = all.lock();
        let operations = &all.open[&id].operations;
        let bound = record_bound(&id, operations);
        assert!(bound <= MAX_RECORD_BYTES);
        assert!(bound + operation_bound(&operations[0]) + 10 > MAX_RECORD_BYTES);
    }

    #[test]
    fn as_many_operations_as_are_allowed_fit_into_a_transaction() {
        let all = Mutex::new(transactions(StateOptions::default()));
        let most = StateOptions::default().max_operations;
        let now = Instant::now();
        let id = all.lock().begin(None, now).unwrap();
        for n in 0..most {
            let staged = all.lock().stage(&id, key(&n.to_string()), None, None, now);
            staged.unwrap_or_else(|e| panic!("operation {n}: {e}"));
        }
        let error = all.lock().stage(&id, key("more"), None, None, now);
        let error = error.unwrap_err().to_string();
        assert!(error.contains("10000 operations"), "{error}");
        assert!(Committing::begin(&all, &id, Vec::new(), None).is_ok());
    }

    fn expected(count: usize) -> Vec<Expected> {
        let one = |n| Expected {
            key: key(&format!("k{n}")),
            version: 0,
        };
        (0..count).map(one).collect()
    }

    #[test]
    fn a_commit_expects_no_more_versions_than_a_transaction_may_have_operations() {
        let all = Mutex::new(transactions(StateOptions {
            max_operations: 3,
            ..StateOptions::default()
        }));
        let now = Instant::now();
        let id = all.lock().begin(None, now).unwrap();
        all.lock().stage(&id, key("k"), None, Some(1), now).unwrap();
        let error = Committing::begin(&all, &id, expected(3), None)
            .err()
            .unwrap();
        assert!(error.to_string().contains("expects 4 versions"), "{error}");
        assert!(Committing::begin(&all, &id, expected(2), None).is_ok());
    }

    #[test]
    fn a_transaction_that_is_being_committed_holds_its_place_and_is_open_again_if_nothing_happened()
    {
        let all = Mutex::new(transactions(StateOptions::default()));
        let now = Instant::now();
        let id = all.lock().begin(None, now).unwrap();
        all.lock()
            .stage(&id, key("k"), value(100), Some(7), now)
            .unwrap();
        let before = all.lock().open();

        // The client disconnected before the command was proposed.
        let committing = Committing::begin(&all, &id, expected(2), None).unwrap();
        assert_eq!(all.lock().open(), before);
        let unknown = Committing::begin(&all, &id, Vec::new(), None)
            .err()
            .unwrap();
        assert!(matches!(unknown, StateError::TransactionNotFound(_)));
        drop(committing);
        assert_eq!(all.lock().open(), before);
        assert_eq!(all.lock().open[&id].expected.len(), 1);

        // The command was refused without an effect.
        let mut committing = Committing::begin(&all, &id, expected(1), None).unwrap();
        committing.proposed();
        committing.nothing_happened();
        assert_eq!(all.lock().open[&id].operations.len(), 1);

        // The transaction was aborted meanwhile.
        let committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
        all.lock().abort(&id, None).unwrap();
        drop(committing);
        assert_eq!(all.lock().open(), (0, 0));

        // The command is in the log.
        let id = all.lock().begin(None, now).unwrap();
        all.lock()
            .stage(&id, key("k"), value(100), None, now)
            .unwrap();
        let mut committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
        committing.proposed();
        assert_eq!(all.lock().open(), before);
        drop(committing);
        assert_eq!(all.lock().open(), (0, 0));
    }

    #[test]
    fn a_transaction_with_changes_of_an_agent_that_is_not_permitted_is_neither_committed_nor_dropped()
     {
        let all = Mutex::new(transactions(StateOptions::default()));
        let now = Instant::now();
        let of = |agent: &str| StateKey::new("default", agent, "k");
        let only = |namespace: &str, agent: &str| namespace == "default" && agent == "mine";
        let mine: Permitted<'_> = Some(&only);

        let id = all.lock().begin(None, now).unwrap();
        all.lock()
            .stage(&id, of("mine"), value(100), None, now)
            .unwrap();
        // What is staged last counts as well, and so does what is expected only.
        for (agent, expected) in [("other", None), ("another", Some(7))] {
            let id = all.lock().begin(None, now).unwrap();
            all.lock()
                .stage(&id, of("mine"), value(1), None, now)
                .unwrap();
            all.lock()
                .stage(&id, of(agent), value(1), expected, now)
                .unwrap();
            let before = all.lock().open();
            let refused = Committing::begin(&all, &id, Vec::new(), mine)
                .err()
                .unwrap();
            assert!(matches!(refused, StateError::NotPermitted), "{refused}");
            let refused = all.lock().abort(&id, mine).unwrap_err();
            assert!(matches!(refused, StateError::NotPermitted), "{refused}");
            assert_eq!(all.lock().open(), before);
            // That is so as well while it is being committed.
            let committing = Committing::begin(&all, &id, Vec::new(), None).unwrap();
            let refused = all.lock().abort(&id, mine).unwrap_err();
            assert!(matches!(refused, StateError::NotPermitted), "{refused}");
            drop(committing);
            assert_eq!(all.lock().open(), before, "it is open again");
            all.lock().abort(&id, None).unwrap();
        }
        let mut committing = Committing::begin(&all, &id, Vec::new(), mine).unwrap();
        committing.proposed();
        drop(committing);
        let id = all.lock().begin(None, now).unwrap();
        all.lock()
            .stage(&id, of("mine"), value(1), None, now)
            .unwrap();
        // One that is dropped while it is being committed is not open again.
        let committing = Committing::begin(&all, &id, Vec::new(), mine).unwrap();
        all.lock().abort(&id, mine).unwrap();
        drop(committing);
        assert_eq!(all.lock().open(), (0, 0));
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
