//! Finds, for each partition, the copy to continue from.
//!
//! Nothing of the data directory is changed here but `restore/`, where copies are prepared: fetched, checked
//! byte for byte, and only then offered to the database.

use std::path::{Path, PathBuf};

use esker_partition::{Checkpoint, Lineage, LineageId, PartitionId, Store};
use esker_raft::engine::LogFloor;
use esker_raft::{Lsn, Term};
use esker_repository::{CurrentRoot, Error as RepositoryError};
use futures::StreamExt as _;

use super::candidates::{Candidate, LOG_IS_LOST, LogFacts, Source, connects, copy_of, is_whole};
use super::context::Context;
use super::contradiction::Witness;
use super::cut_log::has_begun;
use super::empty_partitions::{begin_empty, no_copy};
use super::inspect::{Facts, PartitionFacts};
use super::members::has_others;
use super::plan::{Plan, PlannedFork};
use crate::blocking::blocking;
use crate::error::{JOIN_AGAIN, StartError};

/// Partitions that are restored at the same time. Each fetches eight files at a time.
const PARALLEL: usize = 4;
/// The remedy where the log contradicts copies, and no other copy can be used.
pub(super) const CONTRADICTED: &str = "What the log contradicts is of another copy of this data directory, or the log is: bring back what belongs together. Or give up what only the log has: keep a copy of this directory, move its log/ away, and start with --bootstrap restore, which goes on from the copy that covers most (database or snapshot) of those that are of the lineage which the repository names, up to where another restore has left it; to restore the repository's snapshots instead, move db/ and checkpoints/ away as well";

/// A copy to continue from.
pub(super) struct RecoverySource {
    pub partition: u64,
    pub source: Source,
    /// Files for the database to take, unless it is the database itself.
    pub ready: Option<Checkpoint>,
    /// The lineage that begins there, because data may be lost.
    pub fork: Option<PlannedFork>,
    /// Whether the repository has a root that has to be forked.
    pub has_root: bool,
    /// The lineage of the log, if that began where the copy ends: the copy is of its parent.
    pub adopt: Option<Lineage>,
    /// Whether a snapshot in the repository was found damaged.
    pub damage: bool,
    /// Whether the database has what is not in this source, or is contradicted by the log: it is put aside, as a
    /// checkpoint.
    pub keeps_database: bool,
    /// Whether the damaged files of the database are kept: they may have what no copy has.
    pub keeps_files: bool,
    /// Where the log is restarted, because the copy covers more than a member's log has.
    pub restarts_log: Option<LogFloor>,
    /// Whether all that the log has is applied: up to the fork before the lineage begins, and then the rest. See
    /// [`super::survivor`].
    pub replays_log: bool,
}

/// Finds a source for each partition, and writes down which lineages begin.
pub(super) async fn find(
    cx: &Context,
    facts: &Facts,
    plan: &mut Plan,
) -> Result<Vec<RecoverySource>, StartError> {
    let planned: &Plan = plan;
    let store = facts.store.as_ref().ok();
    let has_others = has_others(cx, facts)?;
    let cut = &facts.cut;
    let finding = facts.partitions.iter().map(|facts| {
        let search = Search {
            store,
            planned: planned.forks.get(&facts.partition),
            replays_log: planned.replays_log.contains(&facts.partition),
            has_others,
            // The log of a lineage that has begun since is another one.
            cut: cut.as_deref().filter(|_| !has_begun(facts, planned)),
            ..Search::lossless(cx, facts)
        };
        search.find()
    });
    // Collected first: the compiler cannot prove that closures in streams live long enough.
    let finding: Vec<_> = finding.collect();
    let mut finding = futures::stream::iter(finding).buffer_unordered(PARALLEL);
    let (mut sources, mut lacking) = (Vec::new(), Vec::new());
    while let Some(found) = finding.next().await {
        match found {
            Ok(source) => sources.push(source),
            // One error names all of these partitions. What is fetched for the others meanwhile is kept for
            // the next start.
            Err(StartError::NoCopy {
                partitions, tried, ..
            }) => lacking.push((partitions, tried)),
            // What the other searches have begun on other threads goes on: see `Attempts::finish_work`.
            Err(error) => return Err(error),
        }
    }
    drop(finding);
    if !lacking.is_empty() {
        return Err(no_copy(lacking, facts.partitions.len()));
    }
    sources.sort_by_key(|source| source.partition);
    if facts.partitions.iter().any(|facts| facts.log.is_none()) {
        tracing::warn!(
            "{LOG_IS_LOST}: no copy leads to the present, and of each partition the one that loses least is taken"
        );
    }
    let before = plan.clone();
    if let Some(why) = cut {
        tracing::warn!("{why}: all partitions begin new lineages");
        plan.log_is_cut = true;
    }
    for source in &sources {
        if let Some(fork) = &source.fork {
            plan.forks.insert(source.partition, fork.clone());
            match source.replays_log {
                true => plan.replays_log.insert(source.partition),
                false => plan.replays_log.remove(&source.partition),
            };
        }
    }
    if *plan != before {
        let (plan, dir) = (plan.clone(), cx.data_dir.path().to_owned());
        blocking(move || plan.write(&dir)).await?;
    }
    Ok(sources)
}

/// A search for the source of a partition.
pub(super) struct Search<'a> {
    pub(super) cx: &'a Context,
    pub(super) facts: &'a PartitionFacts,
    /// The database, if it can be used.
    pub(super) store: Option<&'a Store>,
    pub(super) planned: Option<&'a PlannedFork>,
    /// Whether what the log has after that fork is applied too, as an earlier start has decided.
    pub(super) replays_log: bool,
    /// What the log has; `None` once it turns out to be too short.
    pub(super) log: Option<LogFacts>,
    /// The log itself, which contradicts copies even if it is too short.
    pub(super) witness: Option<Witness>,
    /// Whether the log contradicts the database.
    pub(super) keeps_database: bool,
    /// Whether the files of the database were found damaged in this search, and put aside.
    pub(super) files_are_aside: bool,
    /// Whether it contradicts any copy.
    pub(super) contradicted: bool,
    /// Copies that are not usable, and why.
    pub(super) tried: Vec<String>,
    /// Those of them that could not be read now, so that nothing is known of them. A copy that could be read
    /// is used if it loses nothing; no loss is accepted while any is unreadable.
    pub(super) unreadable: Vec<String>,
    /// Whether a snapshot in the repository is damaged.
    pub(super) damage: bool,
    /// Whether other nodes may have the partition: see [`super::members`].
    pub(super) has_others: bool,
    /// Why the log may not have everything of the partition, although nothing of the partition shows it.
    pub(super) cut: Option<&'a str>,
    /// The LSN of the newest snapshot of the repository that could not be read now; 0 if all could.
    pub(super) newest_unreadable: u64,
}

/// The lineages of a partition's history that the repository knows, the newest first, each with the last LSN
/// that is part of it; empty if there is no root.
pub(super) fn ancestry_of(root: Option<&CurrentRoot>) -> Vec<(LineageId, u64)> {
    let ancestry = root.map(|root| root.ancestry()).unwrap_or_default();
    let lineages = ancestry.into_iter();
    lineages
        .map(|(lineage, lsn)| (LineageId(lineage.0), lsn.0))
        .collect()
}

impl<'a> Search<'a> {
    /// A search for copies other than the database that lead to the present.
    pub(super) fn lossless(cx: &'a Context, facts: &'a PartitionFacts) -> Search<'a> {
        let log = facts.log.clone();
        let whole = facts.log.clone().filter(|_| facts.cut.is_none());
        Search {
            cx,
            facts,
            store: None,
            planned: None,
            replays_log: false,
            witness: log.map(|log| Witness::new(&cx.raft, facts.partition, log)),
            log: whole,
            keeps_database: false,
            files_are_aside: false,
            contradicted: false,
            tried: facts.cut.iter().cloned().collect(),
            unreadable: Vec::new(),
            damage: false,
            has_others: cx.data_dir.has_peers() && !cx.data_dir.is_new,
            cut: None,
            newest_unreadable: 0,
        }
    }

    /// The source that loses least.
    pub(super) async fn find(mut self) -> Result<RecoverySource, StartError> {
        let partition = self.facts.partition;
        // A decision of an earlier start is continued.
        let is_begun = self.planned.is_some_and(|planned| planned.empty);
        let is_named = self.cx.accepted.empty.contains(&partition) && !is_begun;
        let source = match self.cx.survives {
            true => self.survive().await?,
            false => self.search_in_cut_log().await?,
        };
        match is_named && source.source != Source::Empty {
            true => Err(StartError::CopyLeft {
                partition,
                copy: source.source.to_string(),
            }),
            false => Ok(source),
        }
    }

    pub(super) async fn search(&mut self) -> Result<RecoverySource, StartError> {
        if let Some(source) = self.database().await? {
            return Ok(source);
        }
        let locals = self.locals().await?;
        for checkpoint in &locals {
            self.look_for_a_cut(&copy_of(checkpoint));
        }
        for checkpoint in &locals {
            if let Some(source) = self.local(checkpoint).await? {
                return Ok(source);
            }
        }
        let repository = self
            .cx
            .archive
            .repository(&self.cx.data_dir.identity, self.facts.partition);
        let whole = is_whole(self.log.as_ref());
        let archive = self.cx.archive.shown();
        self.cx.activity.begin(format!("reading {archive}"), 0);
        let root = match repository.root().await {
            Ok(root) => Some(root),
            Err(RepositoryError::NoRoot { others: false, .. }) => {
                self.tried
                    .push(format!("{} has no snapshot of it", self.cx.archive.shown()));
                None
            }
            // The log is whole, so the repository is not needed.
            Err(error) if whole => {
                self.tried
                    .push(format!("{}: {error}", self.cx.archive.shown()));
                None
            }
            Err(error) => return Err(self.unreadable_repository(&error)),
        };
        let archived = match &root {
            Some(root) => self.archived(&repository, root).await?,
            None => Vec::new(),
        };
        for copy in &archived {
            if !self.goes_beyond_log(copy) {
                self.look_for_a_cut(copy);
            }
        }
        for copy in &archived {
            let restarts_log = self.restart_after(copy);
            let connects = match restarts_log {
                Some(_) => Ok(()),
                None => connects(self.log.as_ref(), copy),
            };
            if let Err(why) = connects {
                self.tried.push(format!("{}: {why}", copy.source));
            } else if let Some(ready) = self.fetch(&repository, copy).await? {
                return Ok(RecoverySource {
                    restarts_log,
                    ..self.recovery_source(copy, Some(ready), None, true)
                });
            }
        }
        if is_whole(self.log.as_ref()) && !self.is_ruled_out(&Source::Log) {
            let partition = PartitionId(self.facts.partition);
            let first = LineageId::first(&self.cx.data_dir.identity.cluster_id, partition);
            let nothing = Candidate::at(Source::Log, first, 0);
            return Ok(self.recovery_source(&nothing, None, None, root.is_some()));
        }
        self.all_was_read()?;
        if self.has_others && !self.cx.survives {
            return Err(StartError::NothingUsable {
                partition: self.facts.partition,
                tried: self.tried.join("; "),
                remedy: JOIN_AGAIN.into(),
            });
        }
        // A copy that reaches beyond the log may be of another copy of this directory: the operator has to
        // decide.
        if let Some(root) = root.as_ref()
            && let Err(error) = repository.check_writer(root)
        {
            self.tried.push(error.to_string());
        }
        if !self.cx.accepted.loss && !self.is_pending() {
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

    /// Whether an earlier start has decided to begin a lineage here, after some LSN, and was interrupted. No
    /// greater loss than that was accepted.
    pub(super) fn is_pending(&self) -> bool {
        self.planned.is_some_and(|planned| {
            let log = self.facts.log.as_ref();
            planned.id() != log.map(|log| log.lineage.id())
        })
    }

    pub(super) fn all_was_read(&self) -> Result<(), StartError> {
        match self.unreadable.is_empty() {
            true => Ok(()),
            false => Err(StartError::unreadable(
                format!("a copy that partition {} needs", self.facts.partition),
                &self.unreadable.join("; "),
            )),
        }
    }

    /// Detects a log that ends before an entry that was applied from it: it has lost an unknown number of
    /// entries, and cannot be used.
    pub(super) fn look_for_a_cut(&mut self, copy: &Candidate) {
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

    /// Whether the log has other entries than those that led to a copy: then the copy belongs to another
    /// history.
    pub(super) async fn is_contradicted(&mut self, copy: &Candidate) -> Result<bool, StartError> {
        let Some(witness) = &self.witness else {
            return Ok(false);
        };
        let step = format!("comparing the {} with the log", copy.source);
        self.cx.activity.begin(step, 0);
        let (witness, compared) = (witness.clone(), copy.clone());
        let compared = (self.cx.attempts).blocking(move || witness.contradicts(&compared));
        let why = compared.await?;
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

    /// Whether a source turned out to be damaged when an earlier attempt used it.
    pub(super) fn is_ruled_out(&mut self, source: &Source) -> bool {
        let why = self.cx.attempts.why_not(self.facts.partition, source);
        if let Some(why) = &why {
            let why = format!("{source}: it was found damaged when it was used: {why}");
            self.tried.push(why);
        }
        if let (Some(_), Source::Local(dir)) = (&why, source) {
            self.cx.attempts.local_is_damaged(dir);
        }
        why.is_some()
    }

    /// The directory in which a copy is prepared.
    pub(super) fn place(&self, name: &str) -> PathBuf {
        self.cx
            .data_dir
            .restore()
            .join(self.facts.partition.to_string())
            .join(name)
    }

    /// The copy as a source, with the findings of the search.
    pub(super) fn recovery_source(
        &self,
        copy: &Candidate,
        ready: Option<Checkpoint>,
        fork: Option<PlannedFork>,
        has_root: bool,
    ) -> RecoverySource {
        let log = self.log.as_ref();
        // The absence of a log is logged once, and not for each copy.
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
            keeps_database: copy.source != Source::Database
                && (self.keeps_database || self.has_more(copy, fork.as_ref())),
            keeps_files: copy.source != Source::Database
                && self.facts.is_damaged
                && (fork.is_some() || self.cx.survives || self.cut.is_some()),
            fork,
            has_root,
            damage: self.damage,
            restarts_log: None,
            replays_log: false,
        }
    }

    pub(super) fn unreadable_repository(&self, error: &RepositoryError) -> StartError {
        StartError::RepositoryUnreadable {
            repository: self.cx.archive.shown().to_owned(),
            why: format!(
                "{error} (it was needed for partition {}: {})",
                self.facts.partition,
                self.tried.join("; ")
            ),
        }
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

impl Search<'_> {
    /// Whether a copy may be ahead of a member's log without that having lost anything.
    pub(super) fn goes_beyond_log(&self, copy: &Candidate) -> bool {
        self.restart_after(copy).is_some()
    }

    /// Where the log is restarted if a member goes on from a snapshot of the repository that is ahead of its log; `None`
    /// if the copy is another one. It is ahead if it is of a later term than the last entry of the log, or of the same
    /// and covers more. All that it covers was committed, so entries of the log in its place that are of an earlier
    /// term were not.
    pub(super) fn restart_after(&self, copy: &Candidate) -> Option<LogFloor> {
        let log = self.log.as_ref().filter(|_| self.has_others)?;
        let is_of_log = log.lineage.id() == copy.lineage;
        let is_archived = matches!(copy.source, Source::Repository(_));
        let term = copy.term?;
        let is_ahead = (term, copy.lsn) > (log.last_term, log.last);
        // What was committed is not replaced: then one of the two is of another copy of this data directory.
        let is_ahead = is_ahead && copy.lsn > self.committed();
        (is_archived && is_of_log && is_ahead).then_some(LogFloor {
            lsn: Lsn(copy.lsn),
            term: Term(term),
        })
    }
}

#[cfg(test)]
mod tests;
