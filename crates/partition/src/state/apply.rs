//! Applies commands of the state store as a part of a step.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use s2_common::record::{EnvelopeRecord, Record};

use super::command::{
    ImportBegin, ImportEntries, ImportFinish, ImportStep, MAX_NUMBER, PRUNE_BYTES, PRUNE_COMMITS,
    StateCommit, StateCommitted, StateImport, StateImportRefusal, StateImported, StatePrune,
    StateRefusal,
};
use super::names::{StateKey, agent_names};
use super::record::{CommitRecord, compose};
use super::{
    Importing, Replaced, STATE_STREAM, StateEntry, StateMeta, VersionFloor, read, stream_settings,
};
use crate::batch::Unsequenced;
use crate::command::{Append, Mode, ProvisionStream};
use crate::ids::{STATE_BASIN_ID, StreamId};
use crate::keys;
use crate::lineage::GAP;
use crate::store::StoreError;
use crate::streams::step::Step;

impl Step<'_> {
    /// Number of forks that versions given out now have seen; an import that replaced the store counts as
    /// one.
    fn state_forks(&self, meta: &StateMeta) -> u64 {
        self.forks() + meta.replaced
    }

    fn state_entry(
        &mut self,
        generation: u32,
        names: &[u8],
    ) -> Result<Option<StateEntry>, StoreError> {
        if let Some(entry) = self.state.entries.get(names) {
            return Ok(entry.clone());
        }
        let key = keys::state_key(generation, names);
        let entry = self.part.get::<StateEntry>(key, "a key of the state")?;
        self.state.entries.insert(names.to_vec(), entry.clone());
        Ok(entry)
    }

    /// The store's stream, which the first commit or import creates.
    fn state_stream(&mut self, meta: &mut StateMeta, at_ms: u64) -> Result<StreamId, StoreError> {
        if meta.stream != 0 {
            return Ok(StreamId(meta.stream));
        }
        let provision = ProvisionStream {
            basin: STATE_BASIN_ID.0,
            name: STATE_STREAM.to_owned(),
            settings: stream_settings(),
            mode: Mode::CreateOnly as i32,
            request_hash: Vec::new(),
            at_ms,
            cipher: 0,
        };
        let made = self.provision(provision)?;
        let id = made
            .map_err(|e| {
                self.part
                    .malformed("the stream of the state store", &format!("{e:?}"))
            })?
            .id;
        meta.stream = id.0;
        Ok(id)
    }

    /// Applies a commit: all of it, or nothing.
    pub(crate) fn state_commit(
        &mut self,
        command: &StateCommit,
    ) -> Result<Result<StateCommitted, StateRefusal>, StoreError> {
        let mut meta = self.state.meta();
        let forks = self.state_forks(&meta);
        let behind = self.behind;
        for expected in &command.expected {
            let key = expected.key();
            let entry = self.state_entry(meta.generation, &key.encode())?;
            let entry = entry.map(|entry| behind.expected_entry(entry, forks));
            if let Some(actual) = mismatch(entry.as_ref(), expected.version) {
                return Ok(Err(StateRefusal::VersionMismatch {
                    key,
                    expected: expected.version,
                    actual,
                }));
            }
        }
        let mut versions = Vec::with_capacity(command.operations.len());
        let mut latest: HashMap<Vec<u8>, u64> = HashMap::new();
        let mut names = Vec::with_capacity(command.operations.len());
        for operation in &command.operations {
            let of_operation = operation.key().encode();
            let version = match latest.get(&of_operation) {
                Some(version) => version.checked_add(1),
                None => {
                    let entry = self.state_entry(meta.generation, &of_operation)?;
                    StateEntry::next_version(entry.as_ref(), forks, meta.floor)
                }
            };
            let Some(version) = version.filter(|version| *version <= MAX_NUMBER) else {
                return Ok(Err(StateRefusal::Exhausted));
            };
            latest.insert(of_operation.clone(), version);
            versions.push(version);
            names.push(of_operation);
        }
        let stream = self.state_stream(&mut meta, command.at_ms)?;
        let commit_ts = self.touched_state(stream)?.tail_seq.checked_add(1);
        let Some(commit_ts) = commit_ts.filter(|ts| *ts <= MAX_NUMBER) else {
            return Ok(Err(StateRefusal::Exhausted));
        };
        let json = compose(
            commit_ts,
            &command.txn_id,
            command.at_ms,
            &command.operations,
            versions.iter().copied(),
        );
        self.append_commit(stream, json, command.at_ms)?;
        let mut agents = BTreeSet::new();
        for ((operation, names), version) in command.operations.iter().zip(names).zip(&versions) {
            agents.insert(agent_names(&operation.namespace, &operation.agent_id));
            let replaced = self.state_entry(meta.generation, &names)?;
            let entry = StateEntry {
                version: *version,
                commit_ts,
                forks,
                value: operation.value.clone(),
                first: replaced.is_none(),
            };
            if let Some(replaced) = replaced {
                let key = keys::state_history(meta.generation, &names, replaced.version);
                self.batch
                    .put(key, prost::Message::encode_to_vec(&replaced));
            }
            meta.keys += u64::from(entry.first);
            let key = keys::state_key(meta.generation, &names);
            self.batch.put(key, prost::Message::encode_to_vec(&entry));
            self.state.entries.insert(names, Some(entry));
        }
        for agent in agents {
            self.batch.put(keys::state_agent(&agent, commit_ts), []);
        }
        meta.commit_ts = commit_ts;
        self.state.meta = Some(meta);
        self.state.commits += 1;
        Ok(Ok(StateCommitted {
            commit_ts,
            versions,
        }))
    }

    fn touched_state(
        &mut self,
        stream: StreamId,
    ) -> Result<&mut crate::stream::StreamState, StoreError> {
        let part = self.part;
        match self.touch(stream)? {
            Some(touched) => Ok(&mut touched.state),
            None => Err(part.malformed("the stream of the state store", &"it is missing")),
        }
    }

    fn append_commit(
        &mut self,
        stream: StreamId,
        json: Vec<u8>,
        at_ms: u64,
    ) -> Result<(), StoreError> {
        let malformed = |e: &dyn std::fmt::Display| self.part.malformed("a commit", e);
        let record =
            EnvelopeRecord::try_from_parts(Vec::new(), json.into()).map_err(|e| malformed(&e))?;
        let records = Unsequenced::single(Record::Envelope(record));
        let appended = self.append(Append::new(stream, records, at_ms), false)?;
        appended
            .map(|_| ())
            .map_err(|e| self.part.malformed("a commit", &format!("{e:?}")))
    }

    /// Removes a bounded part of the history that the command names. It has to be the first command of
    /// its step.
    pub(crate) fn state_prune(&mut self, command: &StatePrune) -> Result<(), StoreError> {
        let mut meta = self.state.meta();
        if meta.stream == 0 {
            return Ok(());
        }
        if command.keep_versions > 0 {
            self.prune_versions(&mut meta, command)?;
        }
        if command.history_below > 0 {
            self.prune_history(&mut meta, command)?;
        }
        self.state.meta = Some(meta);
        Ok(())
    }

    fn prune_versions(
        &mut self,
        meta: &mut StateMeta,
        command: &StatePrune,
    ) -> Result<(), StoreError> {
        let from = meta.versions_cut.max(meta.history_begins() - 1);
        let to = command.versions_to.min(meta.commit_ts);
        let (commits, cut) = self.some_commits(meta, from, to)?;
        for (names, version) in changed(&commits) {
            // The present entry counts as one that is kept.
            let kept = command.keep_versions - 1;
            self.forget_versions(meta.generation, &names, version, kept)?;
        }
        meta.versions_cut = meta.versions_cut.max(cut);
        Ok(())
    }

    fn prune_history(
        &mut self,
        meta: &mut StateMeta,
        command: &StatePrune,
    ) -> Result<(), StoreError> {
        let from = meta.history_begins() - 1;
        let to = (command.history_below - 1).min(meta.commit_ts);
        let (commits, cut) = self.some_commits(meta, from, to)?;
        if cut <= from {
            return Ok(());
        }
        for (names, version) in changed(&commits) {
            self.forget_versions(meta.generation, &names, version, 0)?;
        }
        for commit in &commits {
            let agents: BTreeSet<_> = commit.operations.iter().map(agent_of).collect();
            for agent in agents {
                self.batch
                    .delete(keys::state_agent(&agent, commit.commit_ts));
            }
        }
        meta.history_cut = cut;
        let stream = StreamId(meta.stream);
        if let Some(touched) = self.touch(stream)? {
            // Commit n is the record at sequence number n - 1, so the first record that is kept is at
            // `cut`.
            touched.trimmed |= touched.state.trim_to(cut);
            touched.state.active_ms = touched.state.active_ms.max(command.at_ms);
        }
        Ok(())
    }

    /// Commits after `from` and up to `to`, within the limits of one command; and up to which commit they
    /// go.
    fn some_commits(
        &self,
        meta: &StateMeta,
        from: u64,
        to: u64,
    ) -> Result<(Vec<CommitRecord>, u64), StoreError> {
        if to <= from {
            return Ok((Vec::new(), from));
        }
        let most = (PRUNE_COMMITS as usize, PRUNE_BYTES);
        read::commits(self.part, StreamId(meta.stream), from, to, most)
    }

    /// Applies one step of an import. It has to be the first command of its step of apply.
    pub(crate) fn state_import(
        &mut self,
        command: StateImport,
    ) -> Result<Result<StateImported, StateImportRefusal>, StoreError> {
        let (id, at_ms) = (command.id, command.at_ms);
        let done = match command.step {
            Some(ImportStep::Begin(begin)) => self.begin_import(id, &begin)?,
            Some(ImportStep::Entries(entries)) => self.import_entries(id, entries),
            Some(ImportStep::Finish(finish)) => self.finish_import(id, &finish, at_ms)?,
            Some(ImportStep::Abort(_)) => self.abort_import(id)?,
            None => Err(StateImportRefusal::Invalid("it has no step".to_owned())),
        };
        Ok(done.map(|commit_ts| StateImported { commit_ts }))
    }

    fn begin_import(
        &mut self,
        id: u64,
        begin: &ImportBegin,
    ) -> Result<Result<u64, StateImportRefusal>, StoreError> {
        let mut meta = self.state.meta();
        if meta.commit_ts > 0 && !begin.replace {
            return Ok(Err(StateImportRefusal::NotEmpty(meta.commit_ts)));
        }
        let abandoned = meta.importing.map(|importing| importing.generation);
        if let Some(abandoned) = abandoned {
            self.drop_generation(abandoned)?;
        }
        meta.importing = Some(Importing {
            id,
            generation: abandoned.unwrap_or(meta.generation).saturating_add(1),
            keys: 0,
            replace: begin.replace,
        });
        self.state.meta = Some(meta);
        Ok(Ok(0))
    }

    /// Deletes the entries of a generation.
    fn drop_generation(&mut self, generation: u32) -> Result<(), StoreError> {
        self.count_generation(generation)?;
        for (from, to) in keys::state_generation(generation) {
            self.batch.delete_range(&from, &to);
        }
        Ok(())
    }

    /// Adds the entries of a generation that is deleted to the garbage. Those of earlier generations were
    /// added when they were deleted, and files may still have them.
    fn count_generation(&mut self, generation: u32) -> Result<(), StoreError> {
        for (from, to) in keys::state_generation(generation) {
            self.state.garbage += self.part.approximate_bytes(&from, &to)?;
        }
        Ok(())
    }

    fn importing(&self, id: u64) -> Result<(StateMeta, Importing), StateImportRefusal> {
        let meta = self.state.meta();
        match meta.importing {
            Some(importing) if importing.id == id => Ok((meta, importing)),
            _ => Err(StateImportRefusal::Superseded),
        }
    }

    fn import_entries(
        &mut self,
        id: u64,
        command: ImportEntries,
    ) -> Result<u64, StateImportRefusal> {
        let (mut meta, mut importing) = self.importing(id)?;
        let seen = self.state_forks(&meta);
        importing.keys += command.entries.len() as u64;
        for imported in command.entries {
            let key = StateKey::new(imported.namespace, imported.agent_id, imported.key);
            check_imported("a version", imported.version)?;
            check_imported("a commit_ts", imported.commit_ts)?;
            let entry = StateEntry {
                version: imported.version,
                commit_ts: imported.commit_ts,
                // An entry of another store may have seen more.
                forks: imported.forks.min(seen),
                value: imported.value,
                first: imported.version == 1,
            };
            let key = keys::state_key(importing.generation, &key.encode());
            self.batch.put(key, prost::Message::encode_to_vec(&entry));
        }
        meta.importing = Some(importing);
        self.state.meta = Some(meta);
        Ok(0)
    }

    /// What versions exceed that are given out after the present state was replaced. It reads all present
    /// entries: of a key, no earlier one has a larger version, and a deleted key has one, too. `None` if no number
    /// is left.
    fn version_floor(&self, meta: &StateMeta) -> Result<Option<VersionFloor>, StoreError> {
        let forks = self.state_forks(meta);
        let of_before = meta.floor.map_or(Some(0), |floor| floor.after(forks));
        let Some(mut version) = of_before else {
            return Ok(None);
        };
        let [(from, to), _] = keys::state_generation(meta.generation);
        let mut it = self.part.iterate(&from, &to, false);
        it.seek_to_first();
        while let Some(value) = it.value() {
            let entry = <StateEntry as prost::Message>::decode(value);
            let entry = entry.map_err(|e| self.part.malformed("a key of the state", &e))?;
            let of_entry = VersionFloor {
                version: entry.version,
                forks: entry.forks,
            };
            let Some(of_entry) = of_entry.after(forks) else {
                return Ok(None);
            };
            version = version.max(of_entry);
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading keys of the state", e))?;
        Ok(Some(VersionFloor { version, forks }))
    }

    /// Removes the entries that an aborted import has written.
    fn abort_import(&mut self, id: u64) -> Result<Result<u64, StateImportRefusal>, StoreError> {
        let (mut meta, importing) = match self.importing(id) {
            Ok(importing) => importing,
            Err(refusal) => return Ok(Err(refusal)),
        };
        self.drop_generation(importing.generation)?;
        meta.importing = None;
        self.state.meta = Some(meta);
        Ok(Ok(0))
    }

    fn finish_import(
        &mut self,
        id: u64,
        finish: &ImportFinish,
        at_ms: u64,
    ) -> Result<Result<u64, StateImportRefusal>, StoreError> {
        let (mut meta, importing) = match self.importing(id) {
            Ok(importing) => importing,
            Err(refusal) => return Ok(Err(refusal)),
        };
        if let Err(refusal) = check_imported("a commit_ts", finish.commit_ts) {
            return Ok(Err(refusal));
        }
        let replaces = meta.commit_ts > 0;
        if replaces && !importing.replace {
            return Ok(Err(StateImportRefusal::NotEmpty(meta.commit_ts)));
        }
        if replaces && finish.raises_versions {
            let floor = self.version_floor(&meta)?;
            // One fork more, for this import.
            let next = floor.and_then(|floor| floor.after(floor.forks + 1));
            if next.is_none_or(|next| next >= MAX_NUMBER) {
                return Ok(Err(StateImportRefusal::Invalid(
                    "a version of the state that is replaced is so large that none is left after it"
                        .to_owned(),
                )));
            }
            meta.floor = floor;
        }
        let stream = self.state_stream(&mut meta, at_ms)?;
        let state = self.touched_state(stream)?;
        let from = state.tail_seq.max(finish.commit_ts);
        let commit_ts = if replaces {
            from.saturating_add(GAP)
        } else {
            from
        };
        if let Err(refusal) = check_imported("the store's commit_ts after it", commit_ts) {
            return Ok(Err(refusal));
        }
        state.skip_to(commit_ts);
        meta.replaced += u64::from(replaces);
        meta.commit_ts = commit_ts;
        meta.imported_at = commit_ts;
        self.count_generation(meta.generation)?;
        meta.generation = importing.generation;
        meta.keys = importing.keys;
        meta.importing = None;
        for (from, to) in keys::state_before(importing.generation) {
            self.batch.delete_range(&from, &to);
        }
        let (from, to) = keys::all_state_agents();
        self.batch.delete_range(&from, &to);
        let replaced = Replaced {
            imported_at: meta.imported_at,
            times: meta.replaced,
            floor: meta.floor,
        };
        self.batch.put(
            keys::STATE_REPLACED,
            prost::Message::encode_to_vec(&replaced),
        );
        self.state.entries.clear();
        self.state.meta = Some(meta);
        Ok(Ok(commit_ts))
    }
}

/// The version that a key has, if it is not the expected one. For a deleted key, both 0 (it must not
/// exist) and the version of its deletion are right.
fn mismatch(entry: Option<&StateEntry>, expected: u64) -> Option<u64> {
    let Some(entry) = entry else {
        return (expected != 0).then_some(0);
    };
    let as_expected = expected == entry.version || (expected == 0 && entry.value.is_none());
    (!as_expected).then_some(entry.version)
}

fn check_imported(what: &str, number: u64) -> Result<(), StateImportRefusal> {
    if (1..=MAX_NUMBER).contains(&number) {
        return Ok(());
    }
    Err(StateImportRefusal::Invalid(format!(
        "{what} of {number}: 1 to {MAX_NUMBER} are possible"
    )))
}

fn agent_of(operation: &super::CommittedOperation) -> Vec<u8> {
    agent_names(&operation.key.namespace, &operation.key.agent_id)
}

/// Keys that commits changed, each with the newest version that it got.
fn changed(commits: &[CommitRecord]) -> BTreeMap<Vec<u8>, u64> {
    let mut changed = BTreeMap::new();
    for operation in commits.iter().flat_map(|commit| &commit.operations) {
        let newest = changed.entry(operation.key.encode()).or_insert(0);
        *newest = operation.version.max(*newest);
    }
    changed
}
