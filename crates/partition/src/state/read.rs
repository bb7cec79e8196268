//! Reading the state store: keys as of now or earlier, commits, everything as of one moment.
//!
//! All of it blocks on the database for as long as a disk takes.

use prost::Message as _;
use rust_rocksdb::{ErrorKind, ReadOptions, ReadTier, SnapshotWithThreadMode};
use s2_common::record::Record;
use xxhash_rust::xxh3::Xxh3;

use super::names::{after, agent_names, prefix_names};
use super::record::CommitRecord;
use super::{Published, StateEntry, StateKey, StateMeta};
use crate::batch::StoredBatch;
use crate::ids::StreamId;
use crate::keys;
use crate::lineage::GAP;
use crate::store::{Applied, Db, PartitionDb, RawIterator, StoreError};
use crate::stream::StreamState;

/// Why something of the state cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum StateReadError {
    /// It is below the history that is kept.
    #[error("history begins at commit_ts {commit_ts}")]
    HistoryBegins {
        /// The first commit that is kept, or as of which states are known.
        commit_ts: u64,
        /// The first version of the key that is kept.
        version: Option<u64>,
    },
    /// The database.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// As of when a key is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum At {
    /// Now.
    Latest,
    /// Its version of this number.
    Version(u64),
    /// What it was after this commit.
    Commit(u64),
}

/// A digest of a state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateDigest {
    /// The sum of xxh3-128 of each key with its version, commit and value.
    pub digest: u128,
    /// Keys, deleted ones included.
    pub keys: u64,
}

/// Computes a [`StateDigest`] from entries in any order.
#[derive(Default)]
pub struct StateDigester {
    sum: u128,
    keys: u64,
}

impl StateDigester {
    /// Adds a key.
    pub fn add(&mut self, key: &StateKey, version: u64, commit_ts: u64, value: Option<&[u8]>) {
        self.add_hash(StateDigester::hash_of(key, version, commit_ts, value));
    }

    /// Adds a key of which only the hash is known.
    pub fn add_hash(&mut self, hash: u128) {
        self.sum = self.sum.wrapping_add(hash);
        self.keys += 1;
    }

    /// What a key adds to the digest.
    pub fn hash_of(key: &StateKey, version: u64, commit_ts: u64, value: Option<&[u8]>) -> u128 {
        let mut hash = Xxh3::new();
        for name in [&key.namespace, &key.agent_id, &key.key] {
            hash.update(&(name.len() as u64).to_be_bytes());
            hash.update(name.as_bytes());
        }
        hash.update(&version.to_be_bytes());
        hash.update(&commit_ts.to_be_bytes());
        match value {
            Some(value) => {
                hash.update(&(value.len() as u64).to_be_bytes());
                hash.update(value);
            }
            None => hash.update(&u64::MAX.to_be_bytes()),
        }
        hash.digest128()
    }

    /// What came of it.
    pub fn finish(self) -> StateDigest {
        StateDigest {
            digest: self.sum,
            keys: self.keys,
        }
    }
}

/// Reads the state store of a partition. Cheap to clone.
#[derive(Clone)]
pub struct StateReader {
    part: PartitionDb,
    published: Published,
}

impl StateReader {
    pub(crate) fn new(part: PartitionDb, published: Published) -> StateReader {
        StateReader { part, published }
    }

    /// Where the store stands.
    pub fn meta(&self) -> StateMeta {
        self.published.get()
    }

    /// Commits that were applied since the partition was opened: right after that, those that are replayed.
    pub fn commits_applied(&self) -> u64 {
        self.published.commits()
    }

    /// The newest commit, and each that comes.
    pub fn newest(&self) -> tokio::sync::watch::Receiver<u64> {
        self.published.newest()
    }

    /// The partition's part of the database.
    pub fn part(&self) -> &PartitionDb {
        &self.part
    }

    /// What a key has now.
    pub fn get(&self, key: &StateKey) -> Result<Option<StateEntry>, StoreError> {
        let names = key.encode();
        let mut generation = self.published.get().generation;
        loop {
            let key = keys::state_key(generation, &names);
            let found = self.part.get(key, "a key of the state")?;
            // An import puts another generation in force with the write that removes this one, and is
            // published only then.
            let now = match found {
                Some(_) => generation,
                None => self.part.state_meta()?.unwrap_or_default().generation,
            };
            if now == generation {
                return Ok(found);
            }
            generation = now;
        }
    }

    /// The same, if neither a file nor the system has to be asked; `None` if it has.
    pub fn get_cached(&self, key: &StateKey) -> Result<Option<Option<StateEntry>>, StoreError> {
        let generation = self.published.get().generation;
        let key = keys::state_key(generation, &key.encode());
        let found = self.value_cached(&key, "a key of the state")?;
        if !matches!(found, Some(None)) {
            return Ok(found);
        }
        // As in `get`.
        let meta =
            self.value_cached::<StateMeta>(&keys::STATE_META, "where the state store stands")?;
        let is_absent = meta.is_some_and(|m| m.unwrap_or_default().generation == generation);
        Ok(is_absent.then_some(None))
    }

    fn value_cached<M: prost::Message + Default>(
        &self,
        key: &[u8],
        what: &str,
    ) -> Result<Option<Option<M>>, StoreError> {
        let mut options = ReadOptions::default();
        options.set_read_tier(ReadTier::BlockCache);
        let db = self.part.store().db();
        match db.get_pinned_cf_opt(&self.part.cf(), key, &options) {
            Ok(None) => Ok(Some(None)),
            Ok(Some(value)) => M::decode(&value[..])
                .map(|value| Some(Some(value)))
                .map_err(|e| self.part.malformed(what, &e)),
            Err(error) if error.kind() == ErrorKind::Incomplete => Ok(None),
            Err(error) => Err(self.part.error(what, error)),
        }
    }

    /// Everything as of one moment. Writers go on; what they delete stays on the disk meanwhile.
    pub fn view<T>(
        &self,
        look: impl FnOnce(&StateView<'_>) -> Result<T, StateReadError>,
    ) -> Result<T, StateReadError> {
        let snapshot = self.part.store().db().snapshot();
        let mut view = StateView {
            part: &self.part,
            snapshot: &snapshot,
            meta: StateMeta::default(),
            applied: Applied::default(),
        };
        view.applied = view.value(&keys::APPLIED)?.unwrap_or_default();
        view.meta = view.value(&keys::STATE_META)?.unwrap_or_default();
        look(&view)
    }

    /// Commits after `from` and up to `to`, those of one agent if one is given: at most `most`, and no
    /// more once `most_bytes` are read. With them, up to which commit that is.
    ///
    /// # Errors
    ///
    /// [`StateReadError::HistoryBegins`] if the first of them is not kept.
    pub fn commits(
        &self,
        agent: Option<(&str, &str)>,
        from: u64,
        to: u64,
        most: usize,
        most_bytes: usize,
    ) -> Result<(Vec<CommitRecord>, u64), StateReadError> {
        let meta = self.published.get();
        let begins = meta.history_begins();
        if from + 1 < begins {
            return Err(StateReadError::HistoryBegins {
                commit_ts: begins,
                version: None,
            });
        }
        let to = to.min(meta.commit_ts);
        if to <= from || meta.stream == 0 {
            return Ok((Vec::new(), from.max(to)));
        }
        let stream = StreamId(meta.stream);
        let mut found = Vec::new();
        let mut bytes = 0;
        let mut enough = |found: &mut Vec<CommitRecord>, commit: CommitRecord, size: usize| {
            bytes += size;
            found.push(commit);
            found.len() >= most || bytes >= most_bytes
        };
        match agent {
            None => {
                Commits::new(&self.part, stream, from, to).scan(from, to, &mut |commit, size| {
                    enough(&mut found, commit, size)
                })?
            }
            Some((namespace, agent_id)) => {
                let names = agent_names(namespace, agent_id);
                let first = keys::state_agent(&names, from + 1);
                let end = keys::state_agent(&names, to.saturating_add(1));
                let mut commits = Commits::new(&self.part, stream, from, to);
                let mut it = self.part.iterate(&first, &end, true);
                it.seek_to_first();
                while let Some(key) = it.key() {
                    let ts = keys::last_number(key).unwrap_or_default();
                    let mut ended = false;
                    commits.scan(ts - 1, ts, &mut |mut commit, size| {
                        let of_agent =
                            |key: &StateKey| key.namespace == namespace && key.agent_id == agent_id;
                        commit.operations.retain(|o| of_agent(&o.key));
                        ended = enough(&mut found, commit, size);
                        ended
                    })?;
                    if ended {
                        break;
                    }
                    it.next();
                }
                it.status()
                    .map_err(|e| self.part.error("reading commits of an agent", e))?;
            }
        }
        // It may have been cut while it was read, with a write that is published only later.
        let meta = self.part.state_meta()?.unwrap_or_default();
        let begins = meta.history_begins();
        if from + 1 < begins {
            return Err(StateReadError::HistoryBegins {
                commit_ts: begins,
                version: None,
            });
        }
        let full = found.len() >= most || bytes >= most_bytes;
        let up_to = match found.last() {
            Some(last) if full => last.commit_ts,
            _ => to,
        };
        Ok((found, up_to))
    }

    /// The first commit after `from` that arrived at or after `at_ms`; one after the last that was looked
    /// at if none did. Looks at `most` commits, and at none after `to`. Commits arrive in order.
    pub fn first_arrived(
        &self,
        from: u64,
        to: u64,
        at_ms: u64,
        most: usize,
    ) -> Result<u64, StoreError> {
        let meta = self.published.get();
        let mut ts = from + 1;
        let mut looked = 0;
        if meta.stream == 0 {
            return Ok(ts);
        }
        let to = to.min(meta.commit_ts);
        if to <= from {
            return Ok(ts);
        }
        let mut commits = Commits::new(&self.part, StreamId(meta.stream), from, to);
        commits.scan(from, to, &mut |commit, _| {
            ts = commit.commit_ts;
            looked += 1;
            if commit.at_ms >= at_ms {
                return true;
            }
            ts += 1;
            looked >= most
        })?;
        Ok(ts)
    }
}

/// Commits after `from` and up to `to`: at most `most`, and no more once `most_bytes` are read. With
/// them, up to which commit that is.
pub(crate) fn commits(
    part: &PartitionDb,
    stream: StreamId,
    from: u64,
    to: u64,
    (most, most_bytes): (usize, usize),
) -> Result<(Vec<CommitRecord>, u64), StoreError> {
    let mut found: Vec<CommitRecord> = Vec::new();
    let (mut bytes, mut full) = (0, false);
    Commits::new(part, stream, from, to).scan(from, to, &mut |commit, size| {
        found.push(commit);
        bytes += size;
        full = found.len() >= most || bytes >= most_bytes;
        full
    })?;
    let up_to = match found.last() {
        Some(last) if full => last.commit_ts,
        _ => to,
    };
    Ok((found, up_to))
}

/// The commits in a store's stream, between two of them.
struct Commits<'a> {
    part: &'a PartitionDb,
    stream: StreamId,
    it: RawIterator<'a>,
}

impl<'a> Commits<'a> {
    fn new(part: &'a PartitionDb, stream: StreamId, from: u64, to: u64) -> Commits<'a> {
        // The commit of number t is at t − 1.
        let (first, end) = (keys::data(stream, from), keys::data(stream, to));
        part.cache_border(&keys::data(stream, 0), &first);
        Commits {
            part,
            stream,
            it: part.iterate(&first, &end, false),
        }
    }

    /// Gives commits after `from` and up to `to`, with their sizes, until `take` has enough.
    fn scan(
        &mut self,
        from: u64,
        to: u64,
        take: &mut dyn FnMut(CommitRecord, usize) -> bool,
    ) -> Result<(), StoreError> {
        let part = self.part;
        self.it.seek(keys::data(self.stream, from));
        while let (Some(key), Some(value)) = (self.it.key(), self.it.value()) {
            let first_seq = keys::first_seq_of(key)
                .ok_or_else(|| part.malformed("a commit's key", &"its length"))?;
            if first_seq >= to {
                break;
            }
            let batch = StoredBatch::parse(first_seq, bytes::Bytes::copy_from_slice(value))
                .map_err(|e| part.malformed("a commit", &e))?;
            for record in batch.records(first_seq) {
                let record = record.map_err(|e| part.malformed("a commit", &e))?;
                let (position, record) = record.into_inner().into_parts();
                let Record::Envelope(record) = record else {
                    continue;
                };
                let commit = CommitRecord::parse(record.body())
                    .map_err(|e| part.malformed("a commit", &e))?;
                if commit.commit_ts != position.seq_num + 1 {
                    let why = format!(
                        "commit {} is at sequence number {}",
                        commit.commit_ts, position.seq_num
                    );
                    return Err(part.malformed("a commit", &why));
                }
                if take(commit, value.len()) {
                    return Ok(());
                }
            }
            // To move on is to read the next one.
            if batch.end_seq() >= to {
                return Ok(());
            }
            self.it.next();
        }
        self.it
            .status()
            .map_err(|e| part.error("reading commits", e))
    }
}

/// The state store as of one moment.
pub struct StateView<'a> {
    part: &'a PartitionDb,
    snapshot: &'a SnapshotWithThreadMode<'a, Db>,
    /// Where it stands.
    pub meta: StateMeta,
    /// What the partition has applied.
    pub applied: Applied,
}

impl StateView<'_> {
    fn value<M: prost::Message + Default>(&self, key: &[u8]) -> Result<Option<M>, StoreError> {
        let value = self
            .snapshot
            .get_pinned_cf(&self.part.cf(), key)
            .map_err(|e| self.part.error("reading the state", e))?;
        value
            .map(|bytes| M::decode(&bytes[..]).map_err(|e| self.part.malformed("the state", &e)))
            .transpose()
    }

    fn iterate(&self, from: &[u8], to: &[u8], cache: bool) -> RawIterator<'_> {
        let mut options = ReadOptions::default();
        options.set_iterate_lower_bound(from);
        options.set_iterate_upper_bound(to);
        options.fill_cache(cache);
        self.snapshot.raw_iterator_cf_opt(&self.part.cf(), options)
    }

    /// How many forks the newest commit has seen: one that nothing was committed after is not among them.
    pub fn commit_forks(&self) -> Result<u64, StoreError> {
        let key = keys::stream_state(StreamId(self.meta.stream));
        let stream = self.value::<StreamState>(&key)?.unwrap_or_default();
        let since = stream.tail_seq.saturating_sub(self.meta.commit_ts) / GAP;
        Ok(stream.forks.saturating_sub(since))
    }

    /// What a key has, or had.
    pub fn get(&self, key: &StateKey, at: At) -> Result<Option<StateEntry>, StateReadError> {
        let names = key.encode();
        self.known_at(at)?;
        let present = self.value(&keys::state_key(self.meta.generation, &names))?;
        self.entry_at(&names, present, at)
    }

    /// Whether anything is known of that moment.
    fn known_at(&self, at: At) -> Result<(), StateReadError> {
        let begins = self.meta.history_begins();
        match at {
            At::Commit(ts) if ts + 1 < begins => Err(StateReadError::HistoryBegins {
                commit_ts: begins - 1,
                version: None,
            }),
            _ => Ok(()),
        }
    }

    fn entry_at(
        &self,
        names: &[u8],
        present: Option<StateEntry>,
        at: At,
    ) -> Result<Option<StateEntry>, StateReadError> {
        let Some(present) = present else {
            // Deleted keys have an entry: it never was.
            return Ok(None);
        };
        match at {
            At::Latest => Ok(Some(present)),
            At::Version(version) if version == present.version => Ok(Some(present)),
            At::Version(version) if version > present.version || version == 0 => Ok(None),
            At::Version(version) => {
                let key = keys::state_history(self.meta.generation, names, version);
                match self.value(&key)? {
                    Some(entry) => Ok(Some(entry)),
                    None => self.missing(names, &present, |oldest| version < oldest.version),
                }
            }
            At::Commit(ts) if ts >= present.commit_ts => Ok(Some(present)),
            At::Commit(ts) => match self.newest_up_to(names, &present, ts)? {
                Some(entry) => Ok(Some(entry)),
                None => self.missing(names, &present, |_| true),
            },
        }
    }

    /// Nothing was found: because it never was, or because it is no longer kept?
    fn missing(
        &self,
        names: &[u8],
        present: &StateEntry,
        is_before: impl Fn(&StateEntry) -> bool,
    ) -> Result<Option<StateEntry>, StateReadError> {
        let oldest = self.oldest(names)?.unwrap_or_else(|| present.clone());
        if oldest.first || !is_before(&oldest) {
            return Ok(None);
        }
        Err(StateReadError::HistoryBegins {
            commit_ts: oldest.commit_ts,
            version: Some(oldest.version),
        })
    }

    fn oldest(&self, names: &[u8]) -> Result<Option<StateEntry>, StoreError> {
        let from = keys::state_history(self.meta.generation, names, 0);
        self.first_from(names, &from)
    }

    fn first_from(&self, names: &[u8], from: &[u8]) -> Result<Option<StateEntry>, StoreError> {
        let to = keys::state_history(self.meta.generation, names, u64::MAX);
        let mut it = self.iterate(from, &to, true);
        it.seek_to_first();
        let found = it.value().map(StateEntry::decode).transpose();
        it.status()
            .map_err(|e| self.part.error("reading versions of a key", e))?;
        found.map_err(|e| self.part.malformed("a version of a key", &e))
    }

    /// The newest of a key's earlier entries that a commit up to `ts` gave: versions rise with commits,
    /// so what is left is halved until it is one.
    fn newest_up_to(
        &self,
        names: &[u8],
        present: &StateEntry,
        ts: u64,
    ) -> Result<Option<StateEntry>, StoreError> {
        let mut best: Option<StateEntry> = None;
        // The first version that may be later than `ts`, and the first that is.
        let (mut low, mut high) = (0, present.version);
        while low < high {
            let middle = low + (high - low) / 2;
            let from = keys::state_history(self.meta.generation, names, middle);
            match self.first_from(names, &from)? {
                Some(entry) if entry.version >= high => high = middle,
                Some(entry) if entry.commit_ts <= ts => {
                    low = entry.version + 1;
                    best = Some(entry);
                }
                // Later than `ts`, or nothing before the present one.
                _ => high = middle,
            }
        }
        Ok(best)
    }

    /// Gives an agent's keys that begin with `prefix`, in order, deleted ones included, until `take` has
    /// enough.
    pub fn scan(
        &self,
        namespace: &str,
        agent_id: &str,
        prefix: &str,
        start_after: Option<&str>,
        at: At,
        take: &mut dyn FnMut(String, StateEntry) -> bool,
    ) -> Result<(), StateReadError> {
        self.known_at(at)?;
        let begin = prefix_names(namespace, agent_id, prefix);
        let end = keys::state_key(self.meta.generation, &after(&begin));
        let from = match start_after {
            None => keys::state_key(self.meta.generation, &begin),
            Some(last) => {
                let last = StateKey::new(namespace, agent_id, last).encode();
                let mut from = keys::state_key(self.meta.generation, last.as_slice().max(&begin));
                if last >= begin {
                    // Just after it.
                    from.push(0);
                }
                from
            }
        };
        let mut it = self.iterate(&from, &end, true);
        it.seek_to_first();
        while let Some((key, present)) = self.entry_of(&it)? {
            let entry = match at {
                At::Latest => Some(present),
                at => self.entry_at(&key.encode(), Some(present), at)?,
            };
            if let Some(entry) = entry
                && take(key.key, entry)
            {
                break;
            }
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading keys", e))?;
        Ok(())
    }

    /// Gives every key in order, deleted ones included, until `take` fails.
    pub fn entries<E: From<StoreError>>(
        &self,
        take: &mut dyn FnMut(StateKey, StateEntry) -> Result<(), E>,
    ) -> Result<(), E> {
        let [(from, to), _] = keys::state_generation(self.meta.generation);
        let mut it = self.iterate(&from, &to, false);
        it.seek_to_first();
        while let Some((key, entry)) = self.entry_of(&it)? {
            take(key, entry)?;
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading keys", e))?;
        Ok(())
    }

    /// The state in short.
    pub fn digest(&self) -> Result<StateDigest, StoreError> {
        let mut digester = StateDigester::default();
        self.entries(&mut |key, entry| {
            digester.add(&key, entry.version, entry.commit_ts, entry.value.as_deref());
            Ok::<_, StoreError>(())
        })?;
        Ok(digester.finish())
    }

    fn entry_of(&self, it: &RawIterator<'_>) -> Result<Option<(StateKey, StateEntry)>, StoreError> {
        let (Some(key), Some(value)) = (it.key(), it.value()) else {
            return Ok(None);
        };
        let names = keys::state_names(key).and_then(StateKey::decode);
        let names = names.ok_or_else(|| self.part.malformed("a key of the state", &"its names"))?;
        let entry =
            StateEntry::decode(value).map_err(|e| self.part.malformed("a key of the state", &e))?;
        Ok(Some((names, entry)))
    }
}
