//! Open transactions: staged operations, in memory.
//!
//! They are bounded in number, operations, bytes and time. An id is a UUID v4 whose first bits name the node
//! and its run, so a transaction that a restart has lost is recognised as lost. In a cluster, a run is a term in
//! which the node leads the partition of the store: what is open ends with it.

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

/// Most transactions of a principal, and most bytes of them, as a multiple of those that are free: one alone has three
/// quarters, and one that holds nothing always gets something.
const MAX_OVER_FREE: usize = 3;

/// What a principal holds.
#[derive(Clone, Copy, Debug, Default)]
struct Share {
    transactions: usize,
    bytes: usize,
}

/// The staged operations of a transaction.
#[derive(Debug)]
pub(crate) struct Staged {
    /// Who has begun it.
    principal: u64,
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
    /// The first six bytes of every id: those of the node, and two by chance.
    run: [u8; 6],
    /// The term in which the node leads, in a cluster.
    term: Option<u64>,
    open: HashMap<String, Staged>,
    /// Transactions that are being committed, with namespace and agent of what is staged in them; they count as
    /// open ones.
    committing: HashMap<String, Vec<(String, String)>>,
    bytes: usize,
    held: HashMap<u64, Share>,
    expired: VecDeque<(String, Duration)>,
}

impl Transactions {
    pub fn new(options: StateOptions, cluster_id: &str, node_id: u64) -> Transactions {
        let node = of_node(cluster_id, node_id);
        let chance = rand::random::<u16>().to_be_bytes();
        Transactions {
            options,
            run: [node[0], node[1], node[2], node[3], chance[0], chance[1]],
            term: None,
            open: HashMap::new(),
            committing: HashMap::new(),
            bytes: 0,
            held: HashMap::new(),
            expired: VecDeque::new(),
        }
    }

    /// The number of open transactions, and the bytes that they hold.
    pub fn open(&self) -> (usize, usize) {
        (self.open.len() + self.committing.len(), self.bytes)
    }

    /// Takes the term in which this node of a cluster leads the partition, if it does. What was begun in another one
    /// is lost: another node may have committed since, and clients have been told so.
    pub fn follow_term(&mut self, term: Option<u64>) {
        if self.term == term {
            return;
        }
        self.term = term;
        for staged in std::mem::take(&mut self.open).into_values() {
            self.release(&staged);
        }
        // Not the same by chance.
        let before = u16::from_be_bytes([self.run[4], self.run[5]]);
        let run = before.wrapping_add(rand::random_range(1..=u16::MAX));
        self.run[4..].copy_from_slice(&run.to_be_bytes());
    }

    /// A transaction is over: what it held is free.
    fn release(&mut self, staged: &Staged) {
        self.bytes -= staged.bytes;
        if let Some(share) = self.held.get_mut(&staged.principal) {
            share.bytes -= staged.bytes;
            share.transactions -= 1;
            if share.transactions == 0 {
                self.held.remove(&staged.principal);
            }
        }
    }

    pub fn begin(
        &mut self,
        principal: u64,
        timeout: Option<Duration>,
        now: Instant,
    ) -> Result<String, StateError> {
        let timeout = timeout.unwrap_or(self.options.default_timeout);
        if timeout.is_zero() {
            return Err(StateError::Invalid(
                "a timeout of 0 ms: a transaction would expire before its first write".to_owned(),
            ));
        }
        let timeout = timeout.min(self.options.max_timeout);
        if self.refuses(principal).is_some() {
            self.sweep(now);
        }
        if let Some(refused) = self.refuses(principal) {
            return Err(refused);
        }
        self.held.entry(principal).or_default().transactions += 1;
        let mut id = *Uuid::new_v4().as_bytes();
        id[..6].copy_from_slice(&self.run);
        let id = Uuid::from_bytes(id).to_string();
        self.open.insert(
            id.clone(),
            Staged {
                principal,
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

    /// Why a principal may not begin one more.
    fn refuses(&self, principal: u64) -> Option<StateError> {
        let (open, most) = (self.open().0, self.options.max_transactions);
        let held = self.held.get(&principal).map_or(0, |it| it.transactions);
        let left = most.saturating_sub(open + 1);
        let why = if open >= most {
            format!("{open} transactions are open, and no more are allowed: commit or abort some")
        } else if held > 0 && held + 1 > left.saturating_mul(MAX_OVER_FREE) {
            format!(
                "{held} of your transactions are open, and {} of all: no more of yours are allowed, for others have to \
                 have some; commit or abort some",
                open
            )
        } else {
            return None;
        };
        Some(StateError::Exhausted(why))
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
        let principal = self.find(id, now)?.principal;
        let share = self.held.get(&principal).copied().unwrap_or_default();
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
        let (left, held) = (most_all - all - bytes, share.bytes);
        // The only one of a principal may be as large as any.
        if share.transactions > 1 && held + bytes > left.saturating_mul(MAX_OVER_FREE) {
            return Err(StateError::Exhausted(format!(
                "your open transactions hold {held} of {most_all} bytes: no more of yours are allowed, for others have \
                 to have some; commit or abort some"
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
        self.held.entry(principal).or_default().bytes += bytes;
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
            self.release(&staged);
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
                self.release(&staged);
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
        let is_of_another_run = Uuid::parse_str(id).is_ok_and(|uuid| {
            let bytes = uuid.as_bytes();
            bytes[..4] == self.run[..4] && bytes[4..6] != self.run[4..]
        });
        match is_of_another_run {
            true => StateError::TransactionLost(id.to_owned()),
            false => StateError::TransactionNotFound(id.to_owned()),
        }
    }
}

/// What the ids of transactions begin with that a node has begun.
fn of_node(cluster_id: &str, node_id: u64) -> [u8; 4] {
    let hash = xxh3_64(format!("{cluster_id}/{node_id}").as_bytes()).to_be_bytes();
    [hash[0], hash[1], hash[2], hash[3]]
}

/// Whether an id is one that a node has begun, or would begin.
pub(crate) fn is_of_node(id: &str, cluster_id: &str, node_id: u64) -> bool {
    let of_node = of_node(cluster_id, node_id);
    Uuid::parse_str(id).is_ok_and(|uuid| uuid.as_bytes()[..4] == of_node)
}

impl Staged {
    fn distinct_agents(&self) -> HashSet<(&str, &str)> {
        distinct_agents(&self.operations, &self.expected)
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

/// Namespace and agent of what is staged, without repetition: most is of one agent.
fn distinct_agents<'a>(
    operations: &'a [StagedOperation],
    expected: &'a [ExpectedVersion],
) -> HashSet<(&'a str, &'a str)> {
    let operations = operations.iter();
    let operations = operations.map(|it| (&*it.namespace, &*it.agent_id));
    let expected = expected.iter();
    let expected = expected.map(|it| (&*it.namespace, &*it.agent_id));
    operations.chain(expected).collect()
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

    /// Fails unless all of it is of agents that are permitted now.
    ///
    /// # Errors
    ///
    /// [`StateError::NotPermitted`].
    pub fn check(&self, permitted: Permitted<'_>) -> Result<(), StateError> {
        match (&self.command, permitted) {
            (Kind::StateCommit(commit), Some(_)) => {
                let agents = distinct_agents(&commit.operations, &commit.expected);
                check_agents(agents.into_iter(), permitted)
            }
            _ => Ok(()),
        }
    }

    /// Sets the time of the commit, in milliseconds since the epoch.
    pub fn stamp(&mut self, at_ms: u64) {
        if let Kind::StateCommit(commit) = &mut self.command {
            commit.at_ms = at_ms;
        }
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
        let is_of_another_run =
            Uuid::parse_str(&command.txn_id).is_ok_and(|uuid| uuid.as_bytes()[..6] != all.run);
        if self.was_proposed || was_aborted || is_of_another_run {
            all.release(&staged);
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
mod tests;
