//! Finds, for each partition, the copy to go on from.
//!
//! Nothing of the data directory is changed here but `restore/`, where copies are made ready: fetched,
//! checked byte for byte, and only then offered to the database.

use std::path::{Path, PathBuf};
use std::time::Duration;

use esker_partition::{Checkpoint, Lineage, LineageId, PartitionId, Store, StoreError, checkpoint};
use esker_repository::{CurrentRoot, Error as RepositoryError, Progress, Repository, Which};
use futures::StreamExt as _;

use super::acceptance::Accepted;
use super::attempts::Attempts;
use super::candidates::{
    Candidate, LOG_IS_LOST, LogFacts, Source, best, connects, copy_of, is_whole,
};
use super::contradiction::Witness;
use super::empty_partitions::{Left, begin_empty, no_copy};
use super::inspect::{DatabaseFacts, Facts, PartitionFacts};
use super::plan::{Plan, PlannedFork};
use crate::blocking::blocking;
use crate::clock::past_age;
use crate::data_dir::DataDir;
use crate::error::StartError;
use crate::snapshots::{Archive, log_tail, restored};

/// Partitions that are restored at a time. Each has eight files under way.
const PARALLEL: usize = 4;
/// A lineage without a snapshot is taken for one that is just being begun for so long.
const BEGINNING: Duration = Duration::from_secs(60);
/// What is to be done where the log contradicts copies, and no other one is of use.
const CONTRADICTED: &str = "What the log contradicts is of another copy of this data directory, or the log is: bring back what belongs together. Or give up what only the log has: keep a copy of this directory, move its log/ away, and start with --bootstrap restore, which goes on from the newest copy, be it the database or a snapshot; to restore the repository's snapshots instead, move db/ and checkpoints/ away as well";
/// How often a long restore says how far it is.
const REPORT_EVERY: Duration = Duration::from_secs(5);

/// A copy to go on from.
pub(super) struct RecoverySource {
    pub partition: u64,
    pub source: Source,
    /// Files for the database to take, unless it is the database itself.
    pub ready: Option<Checkpoint>,
    /// The lineage that begins there, because something may be lost.
    pub fork: Option<PlannedFork>,
    /// Whether the repository has a root that is to be forked.
    pub has_root: bool,
    /// The lineage of the log, if that began where the copy ends: the copy is of its parent.
    pub adopt: Option<Lineage>,
    /// Whether a snapshot in the repository was found damaged.
    pub damage: bool,
    /// Whether the database has files of the partition that the log contradicts: they are put aside, as a
    /// checkpoint.
    pub keeps_database: bool,
}

/// Finds a way for each partition, and writes down which lineages begin.
pub(super) async fn find(
    facts: &Facts,
    data_dir: &DataDir,
    raft: &esker_raft::Node,
    archive: &Archive,
    plan: &mut Plan,
    attempts: &Attempts,
    accepted: &Accepted,
) -> Result<Vec<RecoverySource>, StartError> {
    let planned: &Plan = plan;
    let store = facts.store.as_ref().ok();
    let finding = facts.partitions.iter().map(|facts| {
        let search = Search {
            store,
            planned: planned.forks.get(&facts.partition),
            ..Search::lossless(facts, data_dir, raft, archive, attempts, accepted)
        };
        search.find()
    });
    // Made first: closures in streams are not proven to live long enough.
    let finding: Vec<_> = finding.collect();
    let mut finding = futures::stream::iter(finding).buffer_unordered(PARALLEL);
    let (mut ways, mut lacking) = (Vec::new(), Vec::new());
    while let Some(found) = finding.next().await {
        match found {
            Ok(way) => ways.push(way),
            // All of them are named at once. What is fetched of the others meanwhile is there for the next
            // start.
            Err(StartError::NoCopy {
                partitions, tried, ..
            }) => lacking.push((partitions, tried)),
            Err(error) => return Err(error),
        }
    }
    drop(finding);
    if !lacking.is_empty() {
        return Err(no_copy(lacking, facts.partitions.len()));
    }
    ways.sort_by_key(|way| way.partition);
    if facts.partitions.iter().any(|facts| facts.log.is_none()) {
        tracing::warn!(
            "{LOG_IS_LOST}: no copy leads to the present, and of each partition the one that loses least is taken"
        );
    }
    let before = plan.clone();
    for way in &ways {
        if let Some(fork) = &way.fork {
            plan.forks.insert(way.partition, fork.clone());
        }
    }
    if *plan != before {
        plan.write(data_dir.path())?;
    }
    Ok(ways)
}

pub(super) struct Search<'a> {
    pub(super) facts: &'a PartitionFacts,
    /// The database, if it is of use.
    pub(super) store: Option<&'a Store>,
    pub(super) data_dir: &'a DataDir,
    pub(super) archive: &'a Archive,
    pub(super) planned: Option<&'a PlannedFork>,
    pub(super) attempts: &'a Attempts,
    accepted: &'a Accepted,
    /// What the log has, unless it turns out to be too short.
    pub(super) log: Option<LogFacts>,
    /// The log as it is, which contradicts copies even if it is too short.
    pub(super) witness: Option<Witness>,
    /// Whether the log contradicts the database.
    keeps_database: bool,
    /// Whether it contradicts any copy.
    pub(super) contradicted: bool,
    /// Copies that are not usable, and why.
    pub(super) tried: Vec<String>,
    /// Those of them of which nothing is known, because they could not be read now. What could be read
    /// is used if it loses nothing; no loss is accepted for their sake.
    pub(super) unreadable: Vec<String>,
    /// Whether a snapshot in the repository is damaged.
    damage: bool,
}

/// The lineages of a partition's history as the repository has them, the newest first, each with the last LSN
/// that is a part of it; none if there is no root.
fn ancestry_of(root: Option<&CurrentRoot>) -> Vec<(LineageId, u64)> {
    let ancestry = root.map(|root| root.ancestry()).unwrap_or_default();
    let lineages = ancestry.into_iter();
    lineages
        .map(|(lineage, lsn)| (LineageId(lineage.0), lsn.0))
        .collect()
}

impl<'a> Search<'a> {
    /// A search for copies that lead to the present, among those outside of the database.
    pub(super) fn lossless(
        facts: &'a PartitionFacts,
        data_dir: &'a DataDir,
        raft: &esker_raft::Node,
        archive: &'a Archive,
        attempts: &'a Attempts,
        accepted: &'a Accepted,
    ) -> Search<'a> {
        Search {
            facts,
            store: None,
            data_dir,
            archive,
            planned: None,
            attempts,
            accepted,
            witness: facts
                .log
                .clone()
                .map(|log| Witness::new(raft, facts.partition, log)),
            log: facts.log.clone(),
            keeps_database: false,
            contradicted: false,
            tried: Vec::new(),
            unreadable: Vec::new(),
            damage: false,
        }
    }

    pub(super) async fn find(self) -> Result<RecoverySource, StartError> {
        let partition = self.facts.partition;
        // What an earlier start has decided is gone on with.
        let is_begun = self.planned.is_some_and(|planned| planned.empty);
        let is_named = self.accepted.empty.contains(&partition) && !is_begun;
        let way = self.search().await?;
        match is_named && way.source != Source::Empty {
            true => Err(StartError::CopyLeft {
                partition,
                copy: way.source.to_string(),
            }),
            false => Ok(way),
        }
    }

    async fn search(mut self) -> Result<RecoverySource, StartError> {
        if let Some(way) = self.database().await? {
            return Ok(way);
        }
        let locals = self.locals().await?;
        for checkpoint in &locals {
            self.look_for_a_cut(&copy_of(checkpoint));
        }
        for checkpoint in &locals {
            if let Some(way) = self.local(checkpoint).await? {
                return Ok(way);
            }
        }
        let repository = self
            .archive
            .repository(&self.data_dir.identity, self.facts.partition);
        let whole = is_whole(self.log.as_ref());
        let root = match repository.root().await {
            Ok(root) => Some(root),
            Err(RepositoryError::NoRoot { others: false, .. }) => {
                self.tried
                    .push(format!("{} has no snapshot of it", self.archive.shown()));
                None
            }
            // Nothing is needed from there.
            Err(error) if whole => {
                self.tried
                    .push(format!("{}: {error}", self.archive.shown()));
                None
            }
            Err(error) => return Err(self.unreadable(&error)),
        };
        let archived = match &root {
            Some(root) => self.archived(&repository, root).await?,
            None => Vec::new(),
        };
        for copy in &archived {
            self.look_for_a_cut(copy);
        }
        for copy in &archived {
            if let Err(why) = connects(self.log.as_ref(), copy) {
                self.tried.push(format!("{}: {why}", copy.source));
            } else if let Some(ready) = self.fetch(&repository, copy).await? {
                return Ok(self.way(copy, Some(ready), None, true));
            }
        }
        if is_whole(self.log.as_ref()) && !self.is_ruled_out(&Source::Log) {
            let partition = PartitionId(self.facts.partition);
            let first = LineageId::first(&self.data_dir.identity.cluster_id, partition);
            let nothing = Candidate::at(Source::Log, first, 0);
            return Ok(self.way(&nothing, None, None, root.is_some()));
        }
        self.all_was_read()?;
        // What reaches beyond the log may be another copy's of this directory: no loss is accepted unknowingly.
        if let Some(root) = root.as_ref()
            && let Err(error) = repository.check_writer(root)
        {
            self.tried.push(error.to_string());
        }
        if !self.accepted.loss && !self.is_pending() {
            let is_lost = self.facts.database.is_err();
            let remedy = match (is_lost, locals.is_empty(), archived.is_empty()) {
                (true, true, true) => match self.state_left(&ancestry_of(root.as_ref())).await? {
                    Some(state) => state.into(),
                    None => format!(
                        "There is no copy to go on from: bring back what is missing; or {}",
                        begin_empty(&[self.facts.partition])
                    )
                    .into(),
                },
                _ if self.contradicted => CONTRADICTED.into(),
                (true, true, false) if self.damage => "Bring back what is missing or damaged, from versions or a backup; or accept the loss of everything after the newest copy that is whole with --bootstrap restore, which names the way out if none is".into(),
                _ => "Bring back what is missing; or accept the loss of everything after the newest copy with --bootstrap restore".into(),
            };
            return Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy,
            });
        }
        self.with_a_loss(&repository, root.as_ref(), &locals, &archived)
            .await
    }

    /// Whether an earlier start was told to begin a lineage here, decided after which LSN, and did not
    /// get to the end. No more than that was accepted.
    fn is_pending(&self) -> bool {
        self.planned.is_some_and(|planned| {
            let log = self.facts.log.as_ref();
            planned.id() != log.map(|log| log.lineage.id())
        })
    }

    fn all_was_read(&self) -> Result<(), StartError> {
        match self.unreadable.is_empty() {
            true => Ok(()),
            false => Err(StartError::unreadable(
                format!("a copy that partition {} needs", self.facts.partition),
                &self.unreadable.join("; "),
            )),
        }
    }

    /// A log that ends before something that was applied from it has lost entries, and nobody knows
    /// how many: it leads nowhere.
    fn look_for_a_cut(&mut self, copy: &Candidate) {
        if let Some(log) = &self.log
            && log.lineage.id() == copy.lineage
            && copy.lsn > log.last
        {
            self.tried.push(format!(
                "log: it ends at LSN {}, and the {} has LSN {}: it was cut or replaced",
                log.last, copy.source, copy.lsn
            ));
            self.log = None;
        }
    }

    /// The database, if the log goes on where it ends.
    async fn database(&mut self) -> Result<Option<RecoverySource>, StartError> {
        let found = match &self.facts.database {
            Ok(found) => found,
            Err(why) => {
                self.tried.push(format!("database: {why}"));
                return Ok(None);
            }
        };
        let copy = copy_in(found);
        if self.is_contradicted(&copy).await? {
            self.keeps_database = true;
            return Ok(None);
        }
        self.look_for_a_cut(&copy);
        match connects(self.log.as_ref(), &copy) {
            Ok(()) => Ok(Some(self.way(&copy, None, None, true))),
            Err(why) => {
                self.tried.push(format!("database: {why}"));
                Ok(None)
            }
        }
    }

    /// Whether the log has other entries than those that led to a copy: then it is of another history.
    pub(super) async fn is_contradicted(&mut self, copy: &Candidate) -> Result<bool, StartError> {
        let Some(witness) = &self.witness else {
            return Ok(false);
        };
        let (witness, compared) = (witness.clone(), copy.clone());
        let why = blocking(move || witness.contradicts(&compared)).await?;
        let Some(why) = why else {
            return Ok(false);
        };
        tracing::error!(
            partition = self.facts.partition,
            copy = %copy.source,
            why,
            "a copy is not used: it is of another copy of this data directory, or the log is"
        );
        self.tried.push(format!("{}: {why}", copy.source));
        self.contradicted = true;
        Ok(true)
    }

    /// Checkpoints on this disk that are whole, newest first.
    async fn locals(&mut self) -> Result<Vec<Checkpoint>, StartError> {
        let base = self
            .data_dir
            .checkpoints()
            .join(self.facts.partition.to_string());
        let mut whole = Vec::new();
        let there = checkpoint::all(&base).unwrap_or_else(|error| {
            self.unreadable.push(format!("local snapshots: {error}"));
            Vec::new()
        });
        for dir in there {
            let at = dir.clone();
            let opened = blocking(move || {
                let checkpoint = Checkpoint::open(&dir)?;
                checkpoint.verify()?;
                Ok::<_, StoreError>(checkpoint)
            });
            match opened.await {
                Ok(checkpoint) if self.is_ruled_out(&copy_of(&checkpoint).source) => {}
                Ok(checkpoint) => {
                    if !self.is_contradicted(&copy_of(&checkpoint)).await? {
                        whole.push(checkpoint);
                    }
                }
                Err(error) => self.local_is_not_usable(&at, &error),
            }
        }
        Ok(whole)
    }

    fn local_is_not_usable(&mut self, dir: &Path, error: &StoreError) {
        let why = format!("local snapshot: {error}");
        match error.is_unreadable() {
            true => self.unreadable.push(why.clone()),
            false => self.attempts.local_is_damaged(dir),
        }
        self.tried.push(why);
    }

    /// Whether a source turned out damaged when an earlier attempt used it.
    fn is_ruled_out(&mut self, source: &Source) -> bool {
        let why = self.attempts.why_not(self.facts.partition, source);
        if let Some(why) = &why {
            let why = format!("{source}: it was found damaged when it was used: {why}");
            self.tried.push(why);
        }
        if let (Some(_), Source::Local(dir)) = (&why, source) {
            self.attempts.local_is_damaged(dir);
        }
        why.is_some()
    }

    /// Checks the blocks of a copy whose file checksums are right: they were computed when it was made,
    /// maybe of a block that was damaged already. It costs reading it once more, so it is done where
    /// damage was found, where files of a database are about to be replaced by it, or where a new lineage
    /// may begin with it.
    async fn blocks(&self, checkpoint: &Checkpoint) -> Result<(), StoreError> {
        let facts = self.facts;
        let may_fork = self.accepted.loss || self.is_pending();
        if !facts.is_damaged && facts.database.is_err() && !may_fork {
            return Ok(());
        }
        let (checkpoint, scratch) = (checkpoint.clone(), self.place("check"));
        blocking(move || checkpoint.verify_blocks(&scratch)).await
    }

    async fn local(
        &mut self,
        checkpoint: &Checkpoint,
    ) -> Result<Option<RecoverySource>, StartError> {
        let copy = copy_of(checkpoint);
        if let Err(why) = connects(self.log.as_ref(), &copy) {
            self.tried.push(format!("local snapshot: {why}"));
            return Ok(None);
        }
        let ready = self.link(checkpoint).await?;
        Ok(ready.map(|ready| self.way(&copy, Some(ready), None, true)))
    }

    /// The same files, for the database to use up; `None` if they are damaged.
    async fn link(&mut self, checkpoint: &Checkpoint) -> Result<Option<Checkpoint>, StartError> {
        if let Err(error) = self.blocks(checkpoint).await {
            self.local_is_not_usable(&checkpoint.dir, &error);
            return Ok(None);
        }
        let to = self.place("local");
        remove(&to)?;
        Ok(Some(checkpoint.link_to(&to)?))
    }

    /// Where a copy is made ready.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.data_dir
            .restore()
            .join(self.facts.partition.to_string())
            .join(name)
    }

    /// What the repository retains, newest first.
    async fn archived(
        &mut self,
        repository: &Repository,
        root: &CurrentRoot,
    ) -> Result<Vec<Candidate>, StartError> {
        let mut copies = Vec::new();
        for retained in &root.retained_snapshots {
            let dir = retained.dir();
            let metadata = match repository.describe(&dir).await {
                Ok(metadata) => metadata,
                Err(error) if error.is_damage() => {
                    self.damage = true;
                    tracing::warn!(partition = self.facts.partition, snapshot = %dir, %error, "a snapshot is damaged: an older one is tried");
                    self.tried
                        .push(format!("repository snapshot {dir}: {error}"));
                    continue;
                }
                Err(error) => return Err(self.unreadable(&error)),
            };
            let Some(lineage) = metadata.lineage else {
                self.tried
                    .push(format!("repository snapshot {dir}: it has no lineage"));
                continue;
            };
            let tail = match log_tail(&metadata) {
                Ok(tail) => tail,
                Err(why) => {
                    self.snapshot_is_damaged(&Source::Repository(dir), &why);
                    continue;
                }
            };
            let copy = Candidate {
                source: Source::Repository(dir),
                lineage: LineageId(lineage.0),
                lsn: metadata.min_applied_lsn.0,
                term: metadata.term,
                tail,
            };
            if !self.is_contradicted(&copy).await? {
                copies.push(copy);
            }
        }
        Ok(copies)
    }

    /// Fetches a snapshot and checks it; `None` if it is damaged.
    async fn fetch(
        &mut self,
        repository: &Repository,
        copy: &Candidate,
    ) -> Result<Option<Checkpoint>, StartError> {
        let fetched = self.fetch_files(repository, copy).await?;
        let Some(checkpoint) = fetched else {
            return Ok(None);
        };
        let Err(error) = self.blocks(&checkpoint).await else {
            return Ok(Some(checkpoint));
        };
        if error.is_unreadable() {
            return Err(StartError::unreadable(copy.source.to_string(), &error));
        }
        self.snapshot_is_damaged(&copy.source, &error);
        Ok(None)
    }

    fn snapshot_is_damaged(&mut self, source: &Source, error: &dyn std::fmt::Display) {
        self.damage = true;
        let partition = self.facts.partition;
        tracing::warn!(partition, snapshot = %source, %error, "a snapshot is damaged: an older one is tried");
        metrics::counter!("esker_partition_store_snapshots_download_fallback_total").increment(1);
        self.tried.push(format!("{source}: {error}"));
    }

    async fn fetch_files(
        &mut self,
        repository: &Repository,
        copy: &Candidate,
    ) -> Result<Option<Checkpoint>, StartError> {
        let Source::Repository(dir) = &copy.source else {
            return Ok(None);
        };
        if self.is_ruled_out(&copy.source) {
            self.damage = true;
            return Ok(None);
        }
        let partition = self.facts.partition;
        let to = self.place(&dir.to_string());
        let metadata = match repository.describe(dir).await {
            Ok(metadata) => metadata,
            Err(error) => return Err(self.unreadable(&error)),
        };
        if to.exists() {
            // Fetched by a start that did not get further.
            let whole = restored(&to, &metadata);
            if let Ok(checkpoint) = whole
                && blocking({
                    let checkpoint = checkpoint.clone();
                    move || checkpoint.verify().is_ok()
                })
                .await
            {
                return Ok(Some(checkpoint));
            }
            remove(&to)?;
        }
        if let Some(parent) = to.parent() {
            std::fs::create_dir_all(parent).map_err(|source| StartError::Io {
                operation: "creating",
                path: parent.to_owned(),
                source,
            })?;
        }
        tracing::info!(partition, snapshot = %dir, "Loading snapshot from {}", self.archive.shown());
        let progress = Progress::new();
        let which = Which::Exactly(dir.clone());
        let result = tokio::select! {
            result = repository.restore(&which, &to, &progress) => result,
            never = report_on(partition, &progress) => match never {},
        };
        match result {
            Ok(found) => {
                let checkpoint = restored(found.dir(), found.metadata());
                match checkpoint {
                    Ok(checkpoint) => Ok(Some(checkpoint)),
                    Err(why) => {
                        self.tried.push(format!("repository snapshot {dir}: {why}"));
                        Ok(None)
                    }
                }
            }
            Err(
                error @ (RepositoryError::Damaged { .. }
                | RepositoryError::Missing { .. }
                | RepositoryError::NoSnapshot(_)
                | RepositoryError::Unusable(_)),
            ) => {
                let error = match error {
                    // Of this one alone.
                    RepositoryError::Unusable(mut tried) if tried.len() == 1 => *tried.remove(0).1,
                    other => other,
                };
                self.snapshot_is_damaged(&copy.source, &error);
                Ok(None)
            }
            Err(error) => Err(self.unreadable(&error)),
        }
    }

    /// The copy that loses least.
    async fn with_a_loss(
        mut self,
        repository: &Repository,
        root: Option<&CurrentRoot>,
        locals: &[Checkpoint],
        archived: &[Candidate],
    ) -> Result<RecoverySource, StartError> {
        let planned = self.planned;
        let lineage_there = root.and_then(|root| root.lineage).map(|l| LineageId(l.0));
        let swapped = planned.is_some_and(|p| p.id().is_some() && p.id() == lineage_there);
        if let (Some(planned), Ok(found)) = (planned, &self.facts.database)
            && planned.id() == Some(found.lineage)
        {
            // An earlier start has got so far.
            let copy = copy_in(found);
            return Ok(self.way(&copy, None, Some(planned.clone()), root.is_some()));
        }
        let mut copies: Vec<Candidate> = Vec::new();
        if let (Ok(found), false) = (&self.facts.database, self.keeps_database) {
            copies.push(copy_in(found));
        }
        copies.extend(locals.iter().map(copy_of));
        copies.extend_from_slice(archived);
        let mut ancestry = ancestry_of(root);
        if let (true, Some(planned)) = (swapped, planned) {
            // An earlier start has begun it: the same copy, and forks counted from its parent. If that copy
            // has turned out damaged and a loss is accepted, the fork is followed by another one.
            let is_there = copies.iter().any(|copy| copy.lsn == planned.lsn);
            if is_there || !self.accepted.loss {
                ancestry.remove(0);
                copies.retain(|copy| copy.lsn == planned.lsn);
            }
        }
        if let (false, Some(planned)) = (self.accepted.loss, planned) {
            copies.retain(|copy| copy.lsn >= planned.lsn);
        }
        while let Some((copy, skipped)) = best(&copies, &ancestry) {
            let copy = copy.clone();
            // What this start has begun itself is nobody else's restore.
            if let (true, Some(root)) = (skipped > 0 && !swapped, root)
                && let Some(wait) = still_beginning(root)
            {
                return Err(StartError::LineageBegins {
                    partition: self.facts.partition,
                    repository: self.archive.shown().to_owned(),
                    wait: wait.as_secs() + 1,
                });
            }
            let ready = match &copy.source {
                Source::Database if !self.database_is_whole().await? => {
                    copies.retain(|other| *other != copy);
                    continue;
                }
                Source::Database | Source::Log | Source::State(_) | Source::Empty => None,
                Source::Local(dir) => match locals.iter().find(|c| c.dir == *dir) {
                    Some(checkpoint) => match self.link(checkpoint).await? {
                        Some(ready) => Some(ready),
                        None => {
                            copies.retain(|other| *other != copy);
                            let mut others = copies.iter().filter(|o| o.lineage == copy.lineage);
                            if !others.any(|other| other.lsn >= copy.lsn) {
                                // It may be whole, and could only not be read now.
                                self.all_was_read()?;
                            }
                            continue;
                        }
                    },
                    None => None,
                },
                Source::Repository(_) => match self.fetch(repository, &copy).await? {
                    Some(ready) => Some(ready),
                    None => {
                        copies.retain(|other| *other != copy);
                        continue;
                    }
                },
            };
            let parent = ancestry.first().map_or(copy.lineage, |(newest, _)| *newest);
            let same = planned.filter(|p| p.parent() == Some(parent) && p.lsn == copy.lsn);
            let between = ancestry.iter().take(skipped as usize).skip(1).rev();
            let between = between.map(|(lineage, _)| lineage.to_string()).collect();
            let fork = same.cloned().unwrap_or_else(|| PlannedFork {
                lineage: LineageId(rand::random()).to_string(),
                parent: parent.to_string(),
                lsn: copy.lsn,
                skipped,
                between,
                empty: false,
            });
            return Ok(self.way(&copy, ready, Some(fork), root.is_some()));
        }
        let accepts_loss = self.accepted.loss;
        let loses_more = |way: &RecoverySource| {
            let after = way.fork.as_ref().map_or(0, |fork| fork.lsn);
            !accepts_loss && planned.is_some_and(|planned| after < planned.lsn)
        };
        let of_state = self.state(&ancestry, root.is_some()).await?;
        // A newer one may be among what could not be read: no loss is accepted for its sake.
        self.all_was_read()?;
        let is_begun = planned.is_some_and(|planned| planned.empty);
        let is_named = self.accepted.empty.contains(&self.facts.partition);
        match of_state {
            Some(way) if !loses_more(&way) => Ok(way),
            _ if self.contradicted => Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy: CONTRADICTED.into(),
            }),
            None if is_begun || is_named => self.empty(&ancestry, root, swapped),
            None if accepts_loss => Err(StartError::NoCopy {
                partitions: vec![self.facts.partition],
                tried: format!(
                    "tried for partition {}: {}",
                    self.facts.partition,
                    self.tried.join("; ")
                ),
                remedy: String::new(),
            }),
            _ => Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy: "The copy that an earlier start has decided on is gone: bring it back; or accept a greater loss with --bootstrap restore".into(),
            }),
        }
    }

    /// An empty partition instead of one of which nothing is left.
    fn empty(
        &self,
        ancestry: &[(LineageId, u64)],
        root: Option<&CurrentRoot>,
        swapped: bool,
    ) -> Result<RecoverySource, StartError> {
        let partition = self.facts.partition;
        if !swapped
            && let Some(root) = root
            && let Some(wait) = still_beginning(root)
        {
            return Err(StartError::LineageBegins {
                partition,
                repository: self.archive.shown().to_owned(),
                wait: wait.as_secs() + 1,
            });
        }
        let cluster = &self.data_dir.identity.cluster_id;
        let left = Left {
            first: LineageId::first(cluster, PartitionId(partition)),
            log: self.facts.log.as_ref().map(|log| &log.lineage),
            root: root.and_then(|root| root.lineage).map(|l| LineageId(l.0)),
            ancestors: (ancestry.len() as u64).saturating_sub(1),
        };
        let nothing = Candidate::at(Source::Empty, left.first, 0);
        let fork = left.fork(self.planned, swapped);
        Ok(self.way(&nothing, None, Some(fork), root.is_some()))
    }

    pub(super) fn way(
        &self,
        copy: &Candidate,
        ready: Option<Checkpoint>,
        fork: Option<PlannedFork>,
        has_root: bool,
    ) -> RecoverySource {
        let log = self.log.as_ref();
        // That there is no log was said once, and not of each copy.
        let tried = self.tried.iter();
        for tried in tried.filter(|tried| !tried.ends_with(LOG_IS_LOST)) {
            tracing::warn!(partition = self.facts.partition, "not usable: {tried}");
        }
        RecoverySource {
            partition: self.facts.partition,
            source: copy.source.clone(),
            ready,
            adopt: log
                .filter(|log| fork.is_none() && log.lineage.id() != copy.lineage)
                .map(|log| log.lineage.clone()),
            fork,
            has_root,
            damage: self.damage,
            keeps_database: self.keeps_database && copy.source != Source::Database,
        }
    }

    fn unreadable(&self, error: &RepositoryError) -> StartError {
        StartError::RepositoryUnreadable {
            repository: self.archive.shown().to_owned(),
            why: format!(
                "{error} (it was needed for partition {}: {})",
                self.facts.partition,
                self.tried.join("; ")
            ),
        }
    }
}

/// How long whoever began the newest lineage has yet to put a snapshot of it. Until then it is taken
/// for alive: of two restores at once, the later one does not take over. (Clocks that differ make this
/// shorter, and nothing else: one begun in the future was begun by a clock that was ahead.)
fn still_beginning(root: &CurrentRoot) -> Option<Duration> {
    let begun_at = root.parent.as_ref()?.begun_at()?;
    let Some(age) = past_age(begun_at) else {
        tracing::warn!(%begun_at, "the newest lineage was begun in the future, by a clock that was ahead or by another one than this: it is not waited for");
        return None;
    };
    BEGINNING.checked_sub(age).filter(|wait| !wait.is_zero())
}

fn copy_in(database: &DatabaseFacts) -> Candidate {
    Candidate {
        source: Source::Database,
        lineage: database.lineage,
        lsn: database.lsn,
        term: Some(database.term),
        tail: database.tail.clone(),
    }
}

pub(super) fn remove(dir: &Path) -> Result<(), StartError> {
    match std::fs::remove_dir_all(dir) {
        Ok(()) => Ok(()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(source) => Err(StartError::Io {
            operation: "removing",
            path: dir.to_owned(),
            source,
        }),
    }
}

/// Says from time to time how far it is.
async fn report_on(partition: u64, progress: &Progress) -> std::convert::Infallible {
    loop {
        tokio::time::sleep(REPORT_EVERY).await;
        tracing::info!(
            partition,
            files = progress.files_done(),
            of_files = progress.files(),
            bytes = progress.bytes_done(),
            of_bytes = progress.bytes(),
            "Loading snapshot"
        );
    }
}
