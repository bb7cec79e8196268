//! Partition 0: the basins, the access tokens, and the nodes of the cluster.
//!
//! All basins are in memory, in order of their names: there are far fewer basins than streams. So are all
//! tokens (see [`tokens`]): each request looks one up. So are the nodes ([`nodes`]).
//!
//! A basin is deleted in two commands: [`Kind::DeleteBasin`] marks it (it can no longer be used,
//! but still has its name), and once every partition has dropped it, [`Kind::ForgetBasin`] frees
//! the name. Absence from the catalog deletes nothing anywhere.

mod nodes;
mod restore;
mod tokens;

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use esker_raft::{
    ApplyError, Committed, Lsn, Membership, SnapshotError, StateMachine, StoredSnapshot,
};
use parking_lot::RwLock;
use prost::Message as _;
use s2_common::config::BasinConfig;

use crate::applied::Archived;
use crate::checkpoint::Capture;
use crate::command::{
    Change, Kind, Mode, Outcome, ProvisionBasin, ProvisionRefusal, Provisioned, SettingsSet,
};
use crate::digest::{DigestStep, ReplicaDigests};
use crate::encryption::UnknownCipher;
use crate::ids::{BasinId, PartitionId, STATE_BASIN, STATE_BASIN_ID};
use crate::keys;
use crate::lineage::{GAP, Lineage};
use crate::settings::BasinSettings;
use crate::store::{Applied, PartitionDb, Store, StoreError};
use crate::streams;
pub use nodes::{ClusterNode, MAX_NODES, MAX_REMEMBERED_NODES};
use nodes::{NodeStep, Nodes};
use tokens::{TokenStep, Tokens};

#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Counters {
    #[prost(uint64, tag = "1")]
    next_basin: u64,
    /// Number of the partition's forks that the ids take into account.
    #[prost(uint64, tag = "2")]
    forks: u64,
}

impl Counters {
    /// Skips the ids that stale lineages may have given out.
    fn see_forks(&mut self, forks: u64) {
        let missed = forks.saturating_sub(self.forks);
        self.next_basin = self.next_basin.saturating_add(missed.saturating_mul(GAP));
        self.forks = self.forks.max(forks);
    }
}

#[derive(Clone, PartialEq, Eq, prost::Message)]
struct BasinMeta {
    #[prost(uint64, tag = "1")]
    id: u64,
    #[prost(message, required, tag = "2")]
    settings: BasinSettings,
    #[prost(uint64, tag = "3")]
    settings_version: u64,
    #[prost(uint64, tag = "4")]
    created_ms: u64,
    #[prost(uint64, optional, tag = "5")]
    deleted_ms: Option<u64>,
    #[prost(bytes = "vec", tag = "6")]
    request_hash: Vec<u8>,
}

/// A basin.
#[derive(Clone, Debug)]
pub struct Basin {
    /// Its id.
    pub id: BasinId,
    /// Its name.
    pub name: String,
    /// Its settings.
    pub config: BasinConfig,
    /// Increases with every change of the settings.
    pub settings_version: u64,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// Since when it is being deleted, in milliseconds since the epoch.
    pub deleted_ms: Option<u64>,
}

/// A command that requests an id at or above this one is refused, so that the counter has numbers left
/// for every fork.
const MAX_WANTED_ID: u64 = 1 << 62;

type Basins = BTreeMap<String, Arc<Basin>>;

/// Reads the catalog. Cheap to clone.
#[derive(Clone)]
pub struct CatalogReader {
    part: PartitionDb,
    basins: Arc<RwLock<Basins>>,
    tokens: Arc<RwLock<Tokens>>,
    nodes: Arc<RwLock<Nodes>>,
}

impl CatalogReader {
    /// The catalog's part of the database.
    pub fn partition_db(&self) -> &PartitionDb {
        &self.part
    }

    /// The basin of this name, also one that is being deleted.
    pub fn basin(&self, name: &str) -> Option<Arc<Basin>> {
        self.basins.read().get(name).cloned()
    }

    /// Basins in order of their names, which begin with `prefix` and come after `start_after`; at
    /// most `limit`.
    pub fn list(&self, prefix: &str, start_after: &str, limit: usize) -> Vec<Arc<Basin>> {
        let from = if start_after >= prefix && !start_after.is_empty() {
            Bound::Excluded(start_after)
        } else {
            Bound::Included(prefix)
        };
        self.basins
            .read()
            .range::<str, _>((from, Bound::Unbounded))
            .take_while(|(name, _)| name.starts_with(prefix))
            .take(limit)
            .map(|(_, basin)| basin.clone())
            .collect()
    }

    /// All basins that every partition has dropped; their ids are refused for good.
    pub fn forgotten(&self) -> Result<Vec<BasinId>, StoreError> {
        let (from, to) = keys::all_forgotten_basins();
        let mut it = self.part.iterate(&from, &to, false);
        it.seek_to_first();
        let mut ids = Vec::new();
        while let Some(key) = it.key() {
            ids.extend(keys::id_of(key).map(BasinId));
            it.next();
        }
        it.status()
            .map_err(|e| self.part.error("reading deleted basins", e))?;
        Ok(ids)
    }

    /// Whether a basin has this id, also one that is being deleted.
    pub fn has(&self, id: BasinId) -> bool {
        self.basins.read().values().any(|basin| basin.id == id)
    }

    /// Basins that are being deleted.
    pub fn deleting(&self) -> Vec<Arc<Basin>> {
        self.basins
            .read()
            .values()
            .filter(|b| b.deleted_ms.is_some())
            .cloned()
            .collect()
    }
}

/// The catalog's state machine.
pub struct Catalog {
    part: PartitionDb,
    applied: Applied,
    counters: Counters,
    basins: Arc<RwLock<Basins>>,
    tokens: Arc<RwLock<Tokens>>,
    nodes: Arc<RwLock<Nodes>>,
    digests: ReplicaDigests,
    /// Answers of the steps of a call before the one that failed: the next call has the same entries again.
    unanswered: Option<Vec<Outcome>>,
}

impl Catalog {
    /// Opens it on the state in the database.
    ///
    /// # Errors
    ///
    /// The database cannot be read, or lacks the catalog.
    pub fn open(store: &Store) -> Result<Catalog, StoreError> {
        Catalog::open_with(store, ReplicaDigests::default())
    }

    /// The same, with what computes the digests that the log asks for.
    ///
    /// # Errors
    ///
    /// Those of [`Catalog::open`].
    pub fn open_with(store: &Store, digests: ReplicaDigests) -> Result<Catalog, StoreError> {
        let part = store.partition_db(PartitionId(0));
        let contents = Contents::read(&part)?;
        digests.open(&part)?;
        Ok(Catalog {
            part,
            applied: contents.applied,
            counters: contents.counters,
            basins: Arc::new(RwLock::new(contents.basins)),
            tokens: Arc::new(RwLock::new(contents.tokens)),
            nodes: Arc::new(RwLock::new(contents.nodes)),
            digests,
            unanswered: None,
        })
    }

    /// A reader of the catalog.
    pub fn reader(&self) -> CatalogReader {
        CatalogReader {
            part: self.part.clone(),
            basins: self.basins.clone(),
            tokens: self.tokens.clone(),
            nodes: self.nodes.clone(),
        }
    }
}

/// What memory has of the catalog.
struct Contents {
    applied: Applied,
    counters: Counters,
    basins: Basins,
    tokens: Tokens,
    nodes: Nodes,
}

impl Contents {
    fn read(part: &PartitionDb) -> Result<Contents, StoreError> {
        let applied = part
            .applied()?
            .ok_or_else(|| part.malformed("the position", &"it is missing"))?;
        let mut counters = part
            .get::<Counters>(keys::COUNTERS, "the counters")?
            .unwrap_or(Counters {
                next_basin: STATE_BASIN_ID.0 + 1,
                forks: 0,
            });
        // The ids that stale lineages may have given out are skipped.
        let forks = part.forks()?;
        counters.see_forks(forks);
        let mut basins = Basins::new();
        {
            let (from, to) = keys::all_basins();
            let mut it = part.iterate(&from, &to, false);
            it.seek_to_first();
            while let (Some(key), Some(value)) = (it.key(), it.value()) {
                let name = std::str::from_utf8(&key[1..])
                    .map_err(|e| part.malformed("a basin's name", &e))?;
                let meta = BasinMeta::decode(value).map_err(|e| part.malformed("a basin", &e))?;
                let basin = basin_of(name, &meta).map_err(|e| part.malformed("a basin", &e))?;
                basins.insert(name.to_owned(), Arc::new(basin));
                it.next();
            }
            it.status().map_err(|e| part.error("reading basins", e))?;
        }
        let tokens = Tokens::read(part, forks)?;
        let nodes = Nodes::read(part, forks)?;
        Ok(Contents {
            applied,
            counters,
            basins,
            tokens,
            nodes,
        })
    }
}

fn basin_of(name: &str, meta: &BasinMeta) -> Result<Basin, UnknownCipher> {
    Ok(Basin {
        id: BasinId(meta.id),
        name: name.to_owned(),
        config: BasinConfig::try_from(&meta.settings)?,
        settings_version: meta.settings_version,
        created_ms: meta.created_ms,
        deleted_ms: meta.deleted_ms,
    })
}

/// One step of apply: commands change an overlay, as in a stream partition.
struct Step<'a> {
    part: &'a PartitionDb,
    basins: &'a RwLock<Basins>,
    counters: Counters,
    changed: HashMap<String, Option<BasinMeta>>,
    /// Basins that are gone. Their ids are stored, so that a partition that is restored to a time when it
    /// had them can drop them again.
    forgotten: Vec<BasinId>,
    tokens: TokenStep<'a>,
    nodes: NodeStep<'a>,
    archived: Option<Archived>,
    lineage: Option<Lineage>,
    digests: DigestStep,
}

impl Step<'_> {
    fn get(&self, name: &str) -> Result<Option<BasinMeta>, StoreError> {
        match self.changed.get(name) {
            Some(meta) => Ok(meta.clone()),
            None => self.part.get(keys::basin(name), "a basin"),
        }
    }

    /// The name of the basin with this id, if it is being deleted. Changes of this step count: when a log
    /// is replayed, one step may create the basin and delete it.
    fn deleting(&self, id: u64) -> Option<String> {
        let changed = self.changed.iter().find(|(_, meta)| {
            meta.as_ref()
                .is_some_and(|m| m.id == id && m.deleted_ms.is_some())
        });
        if let Some((name, _)) = changed {
            return Some(name.clone());
        }
        let basins = self.basins.read();
        basins
            .values()
            .find(|b| b.id.0 == id && b.deleted_ms.is_some())
            .filter(|b| !self.changed.contains_key(&b.name))
            .map(|b| b.name.clone())
    }

    fn apply(&mut self, lsn: Lsn, command: Kind) -> Result<Outcome, StoreError> {
        match command {
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
                }
                self.lineage = begun;
                Ok(Outcome::LineageBegun(self.lineage.is_some()))
            }
            Kind::ProvisionBasin(p) => Ok(Outcome::BasinProvisioned(self.provision(p)?)),
            Kind::SetBasinSettings(s) => {
                let Some(meta) = self.get(&s.name)?.filter(|m| m.deleted_ms.is_none()) else {
                    return Ok(Outcome::SettingsSet(SettingsSet::Gone));
                };
                if meta.settings_version != s.if_version {
                    return Ok(Outcome::SettingsSet(SettingsSet::Conflict));
                }
                let changed = BasinMeta {
                    settings: s.settings,
                    settings_version: meta.settings_version + 1,
                    ..meta
                };
                self.changed.insert(s.name, Some(changed));
                Ok(Outcome::SettingsSet(SettingsSet::Done))
            }
            Kind::DeleteBasin(d) => {
                let Some(meta) = self.get(&d.name)? else {
                    return Ok(Outcome::BasinDeleted(None));
                };
                let id = BasinId(meta.id);
                let deleted_ms = meta.deleted_ms.or(Some(d.at_ms));
                self.changed
                    .insert(d.name, Some(BasinMeta { deleted_ms, ..meta }));
                Ok(Outcome::BasinDeleted(Some(id)))
            }
            Kind::ForgetBasin(f) => {
                if let Some(name) = self.deleting(f.basin) {
                    self.changed.insert(name, None);
                    self.forgotten.push(BasinId(f.basin));
                }
                Ok(Outcome::BasinForgotten)
            }
            Kind::IssueToken(issue) => {
                let hash = issue.hash.as_slice().try_into();
                let hash = hash.map_err(|e| self.part.malformed("the hash of a token", &e))?;
                let issuer = issue.issuer.as_deref().map(<[u8; 32]>::try_from);
                let issuer = issuer
                    .transpose()
                    .map_err(|e| self.part.malformed("the hash of an issuer", &e))?;
                Ok(Outcome::TokenIssued(self.tokens.issue(issue, hash, issuer)))
            }
            Kind::RevokeToken(revoke) => Ok(Outcome::TokenRevoked(self.tokens.revoke(&revoke.id))),
            Kind::ConfirmTokens(c) => Ok(Outcome::TokensConfirmed(self.tokens.confirm(c.forks))),
            Kind::RemoveExpiredTokens(expired) => Ok(Outcome::ExpiredTokensRemoved(
                self.tokens.remove_expired(&expired),
            )),
            Kind::RegisterNode(register) => Ok(Outcome::NodeSet(self.nodes.register(register))),
            Kind::SetNodeState(set) => Ok(Outcome::NodeSet(self.nodes.set_state(&set))),
            _ => Err(self
                .part
                .malformed("a command", &"it belongs to a stream partition")),
        }
    }

    /// Why no new basin can have this id, if none can: another one has it, or it was deleted.
    fn refuse_id(&self, id: u64) -> Result<Option<ProvisionRefusal>, StoreError> {
        if id == STATE_BASIN_ID.0 || id >= MAX_WANTED_ID {
            return Ok(Some(ProvisionRefusal::Exists));
        }
        let is_forgotten = self.forgotten.contains(&BasinId(id))
            || self
                .part
                .get_bytes(keys::forgotten_basin(BasinId(id)), "a deleted basin")?
                .is_some();
        if is_forgotten {
            return Ok(Some(ProvisionRefusal::BasinDropped));
        }
        let changed = self.changed.values().flatten();
        let known = self.basins.read();
        let mut known = known.values().map(|basin| basin.id.0);
        let is_taken = changed.into_iter().any(|meta| meta.id == id) || known.any(|of| of == id);
        Ok(is_taken.then_some(ProvisionRefusal::Exists))
    }

    fn provision(
        &mut self,
        command: ProvisionBasin,
    ) -> Result<Result<Provisioned<BasinId>, ProvisionRefusal>, StoreError> {
        let ensure = command.mode() == Mode::Ensure;
        if command.name == STATE_BASIN {
            return Ok(Err(ProvisionRefusal::Exists));
        }
        let Some(meta) = self.get(&command.name)? else {
            let id = match command.id {
                0 => self.counters.next_basin,
                wanted => match self.refuse_id(wanted)? {
                    Some(refusal) => return Ok(Err(refusal)),
                    None => wanted,
                },
            };
            let meta = BasinMeta {
                id,
                settings: command.settings,
                settings_version: 1,
                created_ms: command.at_ms,
                deleted_ms: None,
                request_hash: command.request_hash,
            };
            self.counters.next_basin = self.counters.next_basin.max(id + 1);
            let id = BasinId(id);
            self.changed.insert(command.name, Some(meta));
            return Ok(Ok(Provisioned {
                change: Change::Created,
                id,
                created_ms: command.at_ms,
                cipher: None,
            }));
        };
        if meta.deleted_ms.is_some() {
            return Ok(Err(ProvisionRefusal::BasinDropped));
        }
        if command.id != 0 && command.id != meta.id {
            return Ok(Err(ProvisionRefusal::Exists));
        }
        let mut provisioned = Provisioned {
            change: Change::Nothing,
            id: BasinId(meta.id),
            created_ms: meta.created_ms,
            cipher: None,
        };
        if ensure {
            if meta.settings != command.settings {
                provisioned.change = Change::Updated;
                let changed = BasinMeta {
                    settings: command.settings,
                    settings_version: meta.settings_version + 1,
                    ..meta
                };
                self.changed.insert(command.name, Some(changed));
            }
            return Ok(Ok(provisioned));
        }
        let same = !command.request_hash.is_empty() && command.request_hash == meta.request_hash;
        Ok(if same {
            Ok(provisioned)
        } else {
            Err(ProvisionRefusal::Exists)
        })
    }
}

impl StateMachine for Catalog {
    type Output = Outcome;
    type Capture = Capture;

    fn applied(&self) -> Lsn {
        Lsn(self.applied.lsn)
    }

    fn membership(&self) -> Membership {
        self.applied.membership()
    }

    fn begin_snapshot(&mut self) -> Capture {
        self.part.begin_checkpoint()
    }

    fn restore(&mut self, snapshot: StoredSnapshot) -> Result<(), SnapshotError> {
        self.replace_by(&snapshot)
            .map_err(|e| SnapshotError(e.to_string()))
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Outcome>,
    ) -> Result<(), ApplyError> {
        let mut commands = Vec::with_capacity(entries.len());
        for entry in entries {
            let command = entry.command.clone().map(Kind::from_bytes).transpose();
            commands.push(command.map_err(|e| ApplyError(format!("LSN {}: {e}", entry.lsn)))?);
        }
        // What follows the beginning of a lineage finds it written, however entries are divided into steps. A digest
        // is of the state as of its entry.
        let begins = |c: &Option<Kind>| {
            matches!(
                c,
                Some(
                    Kind::BeginLineage(_)
                        | Kind::AskDigest(_)
                        | Kind::NoteDigests(_)
                        | Kind::TrustReplica(_)
                )
            )
        };
        if let Some(answers) = self.unanswered.take() {
            let done = entries.iter().take_while(|e| e.lsn.0 <= self.applied.lsn);
            commands.drain(..done.count());
            outputs.extend(answers);
        }
        let mut rest = &entries[entries.len() - commands.len()..];
        while !rest.is_empty() {
            let count = match commands.iter().position(begins) {
                Some(0) => 1,
                Some(first) => first,
                None => commands.len(),
            };
            let (step, after) = rest.split_at(count);
            let mut answers = Vec::with_capacity(count);
            if let Err(error) = self.apply_step(step, commands.drain(..count), &mut answers) {
                self.unanswered = Some(std::mem::take(outputs));
                return Err(error);
            }
            outputs.append(&mut answers);
            rest = after;
        }
        Ok(())
    }
}

impl Catalog {
    /// Applies entries in one write. If it fails, nothing has changed.
    fn apply_step(
        &mut self,
        entries: &[Committed],
        commands: impl Iterator<Item = Option<Kind>>,
        outputs: &mut Vec<Outcome>,
    ) -> Result<(), ApplyError> {
        let mut step = Step {
            part: &self.part,
            basins: &self.basins,
            counters: self.counters,
            changed: HashMap::new(),
            forgotten: Vec::new(),
            tokens: TokenStep::new(&self.tokens),
            nodes: NodeStep::new(&self.nodes),
            archived: None,
            lineage: None,
            digests: DigestStep::default(),
        };
        for (entry, command) in entries.iter().zip(commands) {
            if let Some(command) = command {
                let outcome = step
                    .apply(entry.lsn, command)
                    .map_err(|e| ApplyError(format!("LSN {}: {e}", entry.lsn)))?;
                outputs.push(outcome);
            }
        }
        let Step {
            counters,
            changed,
            forgotten,
            tokens,
            nodes,
            archived,
            lineage,
            digests,
            ..
        } = step;
        let (tokens, nodes) = (tokens.into_changes(), nodes.into_changes());
        let mut applied = self.applied.after(entries);
        applied.archived = archived.or(applied.archived);
        let mut published = Vec::with_capacity(changed.len());
        for (name, meta) in &changed {
            let basin = meta.as_ref().map(|meta| basin_of(name, meta)).transpose();
            let basin = basin.map_err(|e| ApplyError(format!("LSN {}: {e}", applied.lsn)))?;
            published.push((name.clone(), basin.map(Arc::new)));
        }
        let mut batch = self.part.batch();
        batch.put(keys::APPLIED, applied.encode_to_vec());
        batch.put(keys::COUNTERS, counters.encode_to_vec());
        for (name, meta) in &changed {
            match meta {
                Some(meta) => batch.put(keys::basin(name), meta.encode_to_vec()),
                None => batch.delete(keys::basin(name)),
            }
        }
        for basin in forgotten {
            batch.put(keys::forgotten_basin(basin), []);
        }
        if let Some(lineage) = &lineage {
            batch.put(keys::LINEAGE, lineage.to_bytes());
        }
        tokens.add_to(&mut batch);
        nodes.add_to(&mut batch);
        let digests = digests.finish(&applied.membership(), &self.part, &self.digests);
        let digests = digests.map_err(|e| streams::failed(&self.part, &e))?;
        digests.add_to(&mut batch);
        batch.write().map_err(|e| streams::failed(&self.part, &e))?;
        self.applied = applied;
        self.counters = counters;
        tokens.apply_to(&mut self.tokens.write());
        nodes.apply_to(&self.nodes);
        if let Some(lineage) = lineage {
            self.tokens.write().see_forks(lineage.forks);
            self.nodes.write().see_forks(lineage.forks);
            self.part.note_lineage(lineage);
        }
        let mut basins = self.basins.write();
        for (name, basin) in published {
            match basin {
                Some(basin) => {
                    basins.insert(name, basin);
                }
                None => {
                    basins.remove(&name);
                }
            }
        }
        drop(basins);
        digests.carry_out(&self.digests, &self.part);
        Ok(())
    }
}

#[cfg(test)]
mod tests;
