//! One step of apply: commands change an overlay of the streams that they touch, which is then written in
//! one batch.
//!
//! Until [`Step::write`] has succeeded, nothing is visible and nothing in memory has changed, so a failed
//! step can be applied again.

use std::collections::HashMap;
use std::sync::Arc;

use esker_raft::{Committed, Lsn, Term};
use prost::Message as _;
use s2_common::config::{StreamConfig, TimestampingMode};
use s2_common::encryption::EncryptionAlgorithm;
use s2_common::record::{CommandRecord, StreamPosition};

use super::behind_fork::BehindFork;
use super::counters::Counters;
use super::directory::{Directory, Done, Published};
use super::failed::{FailedSessions, Refusal};
use super::name_index::{NameEntry, name_entry};
use crate::applied::Archived;
use crate::batch::StoredBatch;
use crate::command::{
    Append, AppendRefusal, Appended, Change as Provision, DeleteIfEmpty, DeleteStream, Expire,
    Kind, Mode, Outcome, ProvisionRefusal, ProvisionStream, Provisioned, SetStreamSettings,
    SettingsSet,
};
use crate::digest::DigestStep;
use crate::encryption::{MAX_AES_256_GCM_RECORDS, cipher_number, cipher_of};
use crate::ids::{BasinId, STATE_BASIN_ID, StreamId};
use crate::keys;
use crate::lineage::Lineage;
use crate::settings::StreamSettings;
use crate::state::Published as PublishedState;
use crate::state::step::StateStep;
use crate::store::{Applied, PartitionBatch, PartitionDb, StoreError};
use crate::stream::{Change, Stream, StreamMeta, StreamState};

/// Bytes that a command writes beyond its own: the keys of a batch and of its row, the state of its stream.
const WRITTEN_WITH_COMMAND: usize = 256;

/// A stream that the step has touched.
pub(crate) struct Touched {
    /// `None` if the step created it.
    stream: Option<Arc<Stream>>,
    basin: BasinId,
    name: String,
    pub(crate) state: StreamState,
    config: Arc<StreamConfig>,
    settings_version: u64,
    cipher: Option<EncryptionAlgorithm>,
    /// The settings, if they are new or changed.
    meta: Option<StreamMeta>,
    gone: bool,
    pub(crate) trimmed: bool,
    /// The batches that were appended. They are kept even without followers: a reader that begins to
    /// follow while the step is applied gets them from memory.
    batches: Vec<StoredBatch>,
}

impl Touched {
    /// Whether the settings are still those by which something is due. Commands of earlier builds name none.
    fn has_settings(&self, version: Option<u64>) -> bool {
        version.is_none_or(|version| version == self.settings_version)
    }
}

pub(crate) struct Step<'a> {
    pub(crate) part: &'a PartitionDb,
    directory: &'a Directory,
    /// Sessions with refusals before this step.
    failed: &'a FailedSessions,
    /// Sessions with refusals in this step.
    newly_failed: FailedSessions,
    pub(crate) batch: PartitionBatch,
    pub(crate) counters: Counters,
    pub(crate) behind: BehindFork,
    counters_changed: bool,
    touched: HashMap<StreamId, Touched>,
    /// Names that this step has added, or removed (`None`).
    names: HashMap<(BasinId, String), Option<NameEntry>>,
    dropped: Vec<BasinId>,
    archived: Option<Archived>,
    lineage: Option<Lineage>,
    digests: DigestStep,
    pub(crate) state: StateStep<'a>,
}

impl<'a> Step<'a> {
    pub fn new(
        part: &'a PartitionDb,
        directory: &'a Directory,
        failed: &'a FailedSessions,
        state: &'a PublishedState,
        counters: Counters,
    ) -> Self {
        Step {
            part,
            directory,
            failed,
            newly_failed: failed.added(),
            batch: part.batch(),
            counters,
            behind: BehindFork::default(),
            counters_changed: false,
            touched: HashMap::new(),
            names: HashMap::new(),
            dropped: Vec::new(),
            archived: None,
            lineage: None,
            digests: DigestStep::default(),
            state: StateStep::new(state),
        }
    }

    /// Number of forks that new streams and versions have seen.
    pub(crate) fn forks(&self) -> u64 {
        self.counters.forks.max(self.behind.forks)
    }

    /// Reserves the capacity that the writes of these entries need. To be called before any is applied.
    pub fn with_capacity_for(mut self, entries: &[Committed]) -> Self {
        let commands = entries.iter().filter_map(|entry| entry.command.as_ref());
        let bytes = commands.map(|command| command.len() + WRITTEN_WITH_COMMAND);
        self.batch = self.part.batch_with_capacity(bytes.sum());
        self
    }

    /// Applies the command of the entry at `lsn`, which was proposed in `term`.
    pub fn apply(&mut self, lsn: Lsn, term: Term, command: Kind) -> Result<Outcome, StoreError> {
        match command {
            Kind::Append(append) => {
                let outcome = self.append_of_session(lsn, term, append)?;
                Ok(Outcome::Appended(outcome))
            }
            Kind::NoteArchived(note) => {
                self.archived = self.part.archived_by(&note.lineage, note.lsn, lsn)?;
                Ok(Outcome::ArchivedNoted)
            }
            Kind::AskDigest(ask) => Ok(self.digests.ask(lsn.0, ask)),
            Kind::NoteDigests(note) => Ok(self.digests.note(lsn.0, note)),
            Kind::TrustReplica(trust) => self.digests.trust(&trust, self.part),
            Kind::BeginLineage(begin) => {
                let begun = self.part.lineage()?.begun_by(&begin, lsn.0 - 1);
                if let Some(lineage) = &begun {
                    self.counters.see_forks(lineage.forks);
                    self.counters_changed = true;
                }
                self.lineage = begun;
                Ok(Outcome::LineageBegun(self.lineage.is_some()))
            }
            Kind::ProvisionStream(p) => Ok(Outcome::StreamProvisioned(self.provision(p)?)),
            Kind::SetStreamSettings(s) => Ok(Outcome::SettingsSet(self.set_settings(s)?)),
            Kind::DeleteStream(d) => Ok(Outcome::StreamDeleted(self.delete(&d)?)),
            Kind::DeleteIfEmpty(d) => Ok(Outcome::StreamDeleted(self.delete_if_empty(&d)?)),
            Kind::Expire(e) => {
                self.expire(&e)?;
                Ok(Outcome::Expired)
            }
            Kind::DropBasin(d) => {
                self.drop_basin(BasinId(d.basin));
                Ok(Outcome::BasinDropped)
            }
            Kind::StateCommit(c) => Ok(Outcome::StateCommitted(self.state_commit(&c)?)),
            Kind::StatePrune(p) => {
                self.state_prune(&p)?;
                Ok(Outcome::StatePruned)
            }
            Kind::StateImport(i) => Ok(Outcome::StateImported(self.state_import(i)?)),
            Kind::ProvisionBasin(_)
            | Kind::SetBasinSettings(_)
            | Kind::DeleteBasin(_)
            | Kind::ForgetBasin(_)
            | Kind::IssueToken(_)
            | Kind::RevokeToken(_)
            | Kind::ConfirmTokens(_)
            | Kind::RemoveExpiredTokens(_)
            | Kind::RegisterNode(_)
            | Kind::SetNodeState(_) => Err(self
                .part
                .malformed("a command", &"it belongs to the catalog")),
        }
    }

    /// Writes all changes in one batch, with the position in the log.
    pub fn write(mut self, applied: &mut Applied) -> Result<Done, StoreError> {
        applied.archived = self.archived.or(applied.archived);
        self.batch.put(keys::APPLIED, applied.encode_to_vec());
        if let Some(lineage) = &self.lineage {
            self.batch.put(keys::LINEAGE, lineage.to_bytes());
        }
        let replicas = &self.directory.options().digests;
        let digests = (self.digests).finish(&applied.membership(), self.part, replicas)?;
        digests.add_to(&mut self.batch);
        self.failed
            .write(&self.newly_failed, applied.lsn, &mut self.batch);
        if self.counters_changed {
            self.batch
                .put(keys::COUNTERS, self.counters.encode_to_vec());
        }
        if let Some(meta) = &self.state.meta {
            self.batch.put(keys::STATE_META, meta.encode_to_vec());
        }
        let mut published = Vec::with_capacity(self.touched.len());
        let mut to_reclaim = Vec::new();
        for (id, touched) in self.touched {
            if touched.gone {
                self.batch.delete(keys::stream_meta(id));
                self.batch.delete(keys::stream_state(id));
            } else {
                self.batch
                    .put(keys::stream_state(id), touched.state.encode_to_vec());
                if let Some(meta) = &touched.meta {
                    self.batch.put(keys::stream_meta(id), meta.encode_to_vec());
                }
            }
            if touched.gone || touched.trimmed {
                self.batch.put(keys::reclaim(id), []);
                to_reclaim.push(id);
            }
            let settings = touched
                .meta
                .as_ref()
                .map(|meta| (meta.settings.clone(), meta.settings_version));
            published.push(Published {
                id,
                stream: touched.stream,
                meta: touched.meta,
                change: Change {
                    state: touched.state,
                    settings,
                    gone: touched.gone,
                    batches: touched.batches,
                },
            });
        }
        for ((basin, name), entry) in &self.names {
            let key = keys::stream_name(*basin, name);
            match entry {
                Some(entry) => self.batch.put(key, entry.encode()),
                None => self.batch.delete(key),
            }
        }
        for basin in &self.dropped {
            self.batch.put(keys::dropped_basin(*basin), []);
        }
        let bytes = self.batch.bytes();
        self.batch.write()?;
        Ok(Done {
            names: self.names.into_iter().collect(),
            bytes,
            lineage: self.lineage,
            digests,
            counters: self.counters,
            touched: published,
            dropped: self.dropped,
            to_reclaim,
            failed: self.newly_failed,
            commits: self.state.commits,
            state: self.state.meta,
            garbage: self.state.garbage,
            forgotten: self.state.forgotten,
        })
    }

    /// The stream, unless it is gone.
    pub(crate) fn touch(&mut self, id: StreamId) -> Result<Option<&mut Touched>, StoreError> {
        if !self.touched.contains_key(&id) {
            let Some(stream) = self.directory.by_id(id)? else {
                return Ok(None);
            };
            let view = stream.view();
            self.touched.insert(
                id,
                Touched {
                    basin: stream.basin,
                    name: stream.name.clone(),
                    state: view.state,
                    config: view.config,
                    settings_version: view.settings_version,
                    cipher: stream.cipher,
                    meta: None,
                    gone: view.gone,
                    trimmed: false,
                    batches: Vec::new(),
                    stream: Some(stream),
                },
            );
        }
        let dropped = &self.dropped;
        Ok(self
            .touched
            .get_mut(&id)
            .filter(|t| !t.gone && !dropped.contains(&t.basin)))
    }

    /// Applies an append, unless an earlier one of its session was refused. Remembers a refusal.
    fn append_of_session(
        &mut self,
        lsn: Lsn,
        term: Term,
        append: Append,
    ) -> Result<Result<Appended, AppendRefusal>, StoreError> {
        let (stream, session) = (StreamId(append.stream), append.session);
        let has_failed = session != 0
            && (self.failed.has(stream, session, lsn.0)
                || self.newly_failed.has(stream, session, lsn.0));
        let changed = append.session_term != 0 && append.session_term != term.0;
        let outcome = match changed && !has_failed && self.touch(stream)?.is_some() {
            true => Err(AppendRefusal::LeaderChanged),
            false => self.append(append, has_failed)?,
        };
        // Later appends to a stream that is gone are refused without this.
        let is_news = !matches!(outcome, Ok(_) | Err(AppendRefusal::StreamGone));
        if session != 0 && !has_failed && is_news {
            self.newly_failed.insert(Refusal {
                lsn: lsn.0,
                stream,
                session,
            });
        }
        Ok(outcome)
    }

    pub(crate) fn append(
        &mut self,
        append: Append,
        session_failed: bool,
    ) -> Result<Result<Appended, AppendRefusal>, StoreError> {
        let id = StreamId(append.stream);
        let malformed = |e: &dyn std::fmt::Display| self.part.malformed("an append", e);
        let records = append.records();
        records.check().map_err(|e| malformed(&e))?;
        let commands = records.commands().map_err(|e| malformed(&e))?;
        let behind = self.behind;
        let Some(stream) = self.touch(id)? else {
            return Ok(Err(AppendRefusal::StreamGone));
        };
        if session_failed {
            return Ok(Err(AppendRefusal::SessionFailed));
        }
        // A stream's cipher never changes, so only an append that a build without ciphers proposed differs.
        if append.cipher != cipher_number(stream.cipher) {
            return Ok(Err(AppendRefusal::CipherMismatch));
        }
        if let Some(token) = &append.fencing_token
            && *token != stream.state.fencing_token
        {
            let actual = stream.state.fencing_token();
            return Ok(Err(AppendRefusal::FencingTokenMismatch(actual)));
        }
        let first_seq = stream.state.tail_seq;
        if let Some(expected) = append.match_seq_num
            && expected != behind.expected_seq(first_seq)
        {
            return Ok(Err(AppendRefusal::SeqNumMismatch(first_seq)));
        }
        let Some(end_seq) = first_seq.checked_add(u64::from(append.count)) else {
            return Ok(Err(AppendRefusal::SeqNumsExhausted));
        };
        let config = stream.config.timestamping;
        let mut latest = stream.state.tail_timestamp;
        let mut timestamps = Vec::with_capacity(append.count as usize);
        for i in 0..append.count as usize {
            let wanted = match (config.mode, records.timestamp(i)) {
                (TimestampingMode::Arrival, _) => append.arrival_ms,
                (_, Some(timestamp)) if config.uncapped => timestamp,
                (_, Some(timestamp)) => timestamp.min(append.arrival_ms),
                (TimestampingMode::ClientPrefer, None) => append.arrival_ms,
                (TimestampingMode::ClientRequire, None) => {
                    return Ok(Err(AppendRefusal::TimestampMissing));
                }
            };
            latest = latest.max(wanted);
            timestamps.push(latest);
        }
        let start = StreamPosition {
            seq_num: first_seq,
            timestamp: timestamps.first().copied().unwrap_or(latest),
        };
        let encrypted = match stream.cipher {
            None => 0,
            Some(_) => stream.state.encrypted + u64::from(append.count) - commands.len() as u64,
        };
        if stream.cipher == Some(EncryptionAlgorithm::Aes256Gcm)
            && encrypted > stream.state.encrypted.max(MAX_AES_256_GCM_RECORDS)
        {
            return Ok(Err(AppendRefusal::CipherExhausted));
        }
        let state = &mut stream.state;
        state.encrypted = encrypted;
        state.tail_seq = end_seq;
        state.tail_timestamp = latest;
        state.active_ms = state.active_ms.max(append.arrival_ms);
        for (i, command) in commands {
            let seq = first_seq + u64::from(i);
            match command {
                CommandRecord::Fence(token) => state.fencing_token = token.to_string(),
                CommandRecord::Trim(point) => {
                    stream.trimmed |= state.trim_to(point.min(seq + 1));
                }
            }
        }
        let tail = stream.state.tail();
        let arrival_ms = stream.state.active_ms;
        let value = records.store(arrival_ms, &timestamps);
        let batch = StoredBatch::parse(first_seq, value.clone()).map_err(|e| malformed(&e))?;
        stream.batches.push(batch);
        self.batch.append(id, first_seq, end_seq, value);
        self.batch.put(keys::by_time(id, latest, first_seq), []);
        Ok(Ok(Appended {
            start,
            end: tail,
            tail,
        }))
    }

    fn stream_of(&self, basin: BasinId, name: &str) -> Result<Option<StreamId>, StoreError> {
        if self.dropped.contains(&basin) || self.directory.is_dropped(basin) {
            return Ok(None);
        }
        match self.names.get(&(basin, name.to_owned())) {
            Some(entry) => Ok(entry.map(|entry| entry.id)),
            None => Ok(name_entry(self.part, basin, name)?.map(|entry| entry.id)),
        }
    }

    /// The stored settings of a touched stream.
    fn meta(&self, id: StreamId) -> Result<StreamMeta, StoreError> {
        if let Some(meta) = self.touched.get(&id).and_then(|t| t.meta.clone()) {
            return Ok(meta);
        }
        self.part
            .get::<StreamMeta>(keys::stream_meta(id), "a stream's settings")?
            .ok_or_else(|| {
                self.part
                    .malformed("a stream's settings", &"they are missing")
            })
    }

    pub(crate) fn provision(
        &mut self,
        command: ProvisionStream,
    ) -> Result<Result<Provisioned<StreamId>, ProvisionRefusal>, StoreError> {
        let basin = BasinId(command.basin);
        if self.dropped.contains(&basin) || self.directory.is_dropped(basin) {
            return Ok(Err(ProvisionRefusal::BasinDropped));
        }
        let ensure = command.mode() == Mode::Ensure;
        if let Some(id) = self.stream_of(basin, &command.name)? {
            self.touch(id)?;
            let meta = self.meta(id)?;
            let cipher = cipher_of(meta.cipher)
                .map_err(|e| self.part.malformed("a stream's settings", &e))?;
            let mut provisioned = Provisioned {
                change: Provision::Nothing,
                id,
                created_ms: meta.created_ms,
                cipher,
            };
            if ensure {
                if meta.settings != command.settings {
                    self.change_settings(id, meta, command.settings, command.at_ms);
                    provisioned.change = Provision::Updated;
                }
                return Ok(Ok(provisioned));
            }
            let same =
                !command.request_hash.is_empty() && command.request_hash == meta.request_hash;
            return Ok(if same {
                Ok(provisioned)
            } else {
                Err(ProvisionRefusal::Exists)
            });
        }
        let cipher = cipher_of(command.cipher).map_err(|e| self.part.malformed("a command", &e))?;
        let id = StreamId(self.counters.next_stream);
        self.counters.next_stream += 1;
        self.counters_changed = true;
        let mut state = StreamState {
            active_ms: command.at_ms,
            forks: self.forks(),
            ..StreamState::default()
        };
        if basin == STATE_BASIN_ID {
            // The first commit creates this stream. A fork may have cut off an earlier stream of the
            // store, so this one skips the sequence numbers that it may have given out.
            state.forks = 0;
            state.see_forks(self.forks());
        }
        let meta = StreamMeta {
            basin: basin.0,
            name: command.name.clone(),
            settings: command.settings,
            settings_version: 1,
            created_ms: command.at_ms,
            request_hash: command.request_hash,
            cipher: command.cipher,
        };
        let entry = NameEntry {
            id,
            created_ms: command.at_ms,
            cipher,
        };
        self.names
            .insert((basin, command.name.clone()), Some(entry));
        self.touched.insert(
            id,
            Touched {
                stream: None,
                basin,
                name: command.name,
                state,
                config: Arc::new(StreamConfig::from(&meta.settings)),
                settings_version: 1,
                cipher,
                meta: Some(meta),
                gone: false,
                trimmed: false,
                batches: Vec::new(),
            },
        );
        Ok(Ok(Provisioned {
            change: Provision::Created,
            id,
            created_ms: command.at_ms,
            cipher,
        }))
    }

    fn change_settings(
        &mut self,
        id: StreamId,
        meta: StreamMeta,
        settings: StreamSettings,
        at_ms: u64,
    ) {
        if let Some(stream) = self.touched.get_mut(&id) {
            stream.config = Arc::new(StreamConfig::from(&settings));
            stream.settings_version = meta.settings_version + 1;
            stream.state.active_ms = stream.state.active_ms.max(at_ms);
            stream.meta = Some(StreamMeta {
                settings,
                settings_version: meta.settings_version + 1,
                ..meta
            });
        }
    }

    fn set_settings(&mut self, command: SetStreamSettings) -> Result<SettingsSet, StoreError> {
        let id = StreamId(command.stream);
        let Some(stream) = self.touch(id)? else {
            return Ok(SettingsSet::Gone);
        };
        if stream.settings_version != command.if_version {
            return Ok(SettingsSet::Conflict);
        }
        let meta = self.meta(id)?;
        self.change_settings(id, meta, command.settings, command.at_ms);
        Ok(SettingsSet::Done)
    }

    fn delete(&mut self, command: &DeleteStream) -> Result<bool, StoreError> {
        match self.stream_of(BasinId(command.basin), &command.name)? {
            Some(id) => self.remove(id),
            None => Ok(false),
        }
    }

    fn delete_if_empty(&mut self, command: &DeleteIfEmpty) -> Result<bool, StoreError> {
        let id = StreamId(command.stream);
        match self.touch(id)? {
            Some(stream)
                if stream.state.is_empty()
                    && stream.state.active_ms == command.since_ms
                    && stream.has_settings(command.if_settings_version) =>
            {
                self.remove(id)
            }
            _ => Ok(false),
        }
    }

    fn remove(&mut self, id: StreamId) -> Result<bool, StoreError> {
        let Some(stream) = self.touch(id)? else {
            return Ok(false);
        };
        stream.gone = true;
        let name = (stream.basin, stream.name.clone());
        self.names.insert(name, None);
        Ok(true)
    }

    fn expire(&mut self, command: &Expire) -> Result<(), StoreError> {
        if let Some(stream) = self.touch(StreamId(command.stream))?
            && stream.has_settings(command.if_settings_version)
        {
            let state = &mut stream.state;
            if state.trim_to(command.up_to.min(state.tail_seq)) {
                state.active_ms = state.active_ms.max(command.at_ms);
                stream.trimmed = true;
            }
        }
        Ok(())
    }

    /// Streams of the basin are refused from here on; their space is reclaimed later.
    fn drop_basin(&mut self, basin: BasinId) {
        if !self.dropped.contains(&basin) && !self.directory.is_dropped(basin) {
            self.dropped.push(basin);
        }
    }
}
