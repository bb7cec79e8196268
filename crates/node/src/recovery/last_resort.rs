//! The last resort: a JSON snapshot of the state store, where no copy of its partition is left.
//!
//! It has the store's state, and nothing else of the partition. If the log continues where the snapshot
//! ends, the commits in the log are not lost either. Snapshots on this disk and archived ones are tried
//! together, newest first; an archived one is fetched beside the others, checked, and only then renamed to
//! its place among them.

use std::collections::BTreeSet;
use std::io;

use esker_partition::state::state_partition;
use esker_partition::{LineageId, PartitionId};

use super::candidates::{best, connects};
use super::contradiction::Witness;
use super::plan::PlannedFork;
use super::search::{RecoverySource, Search, remove};
use crate::blocking::blocking;
use crate::error::StartError;
use crate::state::archive::StateArchive;
use crate::state::document::Header;
use crate::state::error::FileError;
use crate::state::files::{Files, name_of};
use crate::state::lineage::copy_of;

/// Reads the JSON snapshots of a directory: those that are whole, newest first; and those that cannot be
/// read now.
fn inspect(files: &Files) -> (Vec<Header>, Vec<String>) {
    let (mut whole, mut unreadable) = (Vec::new(), Vec::new());
    let listed = files.list().unwrap_or_else(|error| {
        unreadable.push(format!("{}: {error}", files.dir().display()));
        Vec::new()
    });
    for one in listed {
        match files.check(one.commit_ts) {
            Ok((written, _)) => whole.push(written.header),
            Err(FileError::Unreadable(error)) if error.kind() != io::ErrorKind::NotFound => {
                unreadable.push(format!("{}: {error}", one.path.display()));
            }
            Err(_) => {}
        }
    }
    (whole, unreadable)
}

impl Search<'_> {
    /// The newest JSON snapshot that is part of the history, if this is the store's partition.
    pub(super) async fn state(
        &mut self,
        ancestry: &[(LineageId, u64)],
        has_root: bool,
    ) -> Result<Option<RecoverySource>, StartError> {
        if self.facts.partition != state_partition(self.cx.data_dir.identity.partitions).0 {
            return Ok(None);
        }
        let dir = self.cx.data_dir.snapshots();
        let opened = (self.cx.attempts).blocking(move || {
            let files = Files::open(dir)?;
            let local = files.list()?.iter().map(|one| one.commit_ts).collect();
            Ok::<_, io::Error>((files, local))
        });
        let (files, local): (Files, BTreeSet<u64>) = match opened.await {
            Ok(opened) => opened,
            Err(error) => {
                self.is_unreadable(format!("state snapshots: {error}"));
                return Ok(None);
            }
        };
        let archive = StateArchive::new(self.cx.archive.destination());
        let archived: BTreeSet<u64> = match archive.list().await {
            Ok(listed) => listed.iter().map(|one| one.commit_ts).collect(),
            Err(error) => {
                let shown = archive.shown();
                self.is_unreadable(format!("state snapshots in {shown}: {error}"));
                BTreeSet::new()
            }
        };
        let all: BTreeSet<u64> = &local | &archived;
        for commit_ts in all.into_iter().rev() {
            let mut in_the_way = false;
            if local.contains(&commit_ts)
                && let Some(header) = self.check(&files, commit_ts).await
            {
                let source = self.source_from_state(&header, ancestry, has_root).await?;
                if source.is_some() {
                    return Ok(source);
                }
                // The local file is whole, so it is kept.
                in_the_way = true;
            }
            if archived.contains(&commit_ts)
                && let Some(header) = self
                    .fetch_state(&archive, &files, commit_ts, in_the_way)
                    .await?
            {
                let source = self.source_from_state(&header, ancestry, has_root).await?;
                if source.is_some() {
                    return Ok(source);
                }
            }
        }
        Ok(None)
    }

    async fn check(&mut self, files: &Files, commit_ts: u64) -> Option<Header> {
        let files = files.clone();
        let attempts = &self.cx.attempts;
        match attempts.blocking(move || files.check(commit_ts)).await {
            Ok((written, _)) => Some(written.header),
            Err(why) => {
                self.not_usable(name_of(commit_ts), &why);
                None
            }
        }
    }

    /// Notes that a snapshot cannot be used. One that is damaged, or was removed since it was listed, is
    /// passed over; one that cannot be read now is noted as unreadable.
    fn not_usable(&mut self, name: String, why: &FileError) {
        match why {
            FileError::Unreadable(error) if error.kind() != io::ErrorKind::NotFound => {
                self.is_unreadable(format!("{name}: {why}"));
            }
            _ => self.tried.push(format!("{name}: {why}")),
        }
    }

    fn is_unreadable(&mut self, what: String) {
        self.unreadable.push(what.clone());
        self.tried.push(what);
    }

    /// Fetches an archived snapshot into the directory of those on this disk; a file that is `in_the_way`
    /// there is renamed. A snapshot that the log contradicts stays in the repository.
    async fn fetch_state(
        &mut self,
        archive: &StateArchive,
        files: &Files,
        commit_ts: u64,
        in_the_way: bool,
    ) -> Result<Option<Header>, StartError> {
        let dir = self.place("state");
        let fetched = async {
            remove(&dir).map_err(|e| FileError::Unreadable(io::Error::other(e)))?;
            archive.fetch(commit_ts, &dir).await?;
            let fetched = Files::open(dir.clone())?;
            blocking(move || {
                let header = fetched.check(commit_ts)?.0.header;
                Ok::<_, FileError>((fetched, header))
            })
            .await
        };
        let adopted = match fetched.await {
            Ok((_, header)) if self.contradicts_state(&header).await? => return Ok(None),
            Ok((fetched, header)) => {
                let files = files.clone();
                blocking(move || {
                    if in_the_way {
                        files.set_aside(commit_ts)?;
                    }
                    files.adopt(&fetched, commit_ts)?;
                    Ok::<_, FileError>(header)
                })
                .await
            }
            Err(why) => Err(why),
        };
        Ok(match adopted {
            Ok(header) => Some(header),
            Err(why) => {
                let (name, shown) = (name_of(commit_ts), archive.shown());
                self.not_usable(format!("{name} in {shown}"), &why);
                None
            }
        })
    }

    async fn contradicts_state(&mut self, header: &Header) -> Result<bool, StartError> {
        match copy_of(header) {
            Some(copy) => self.is_contradicted(&copy).await,
            None => Ok(false),
        }
    }

    /// The place of the newest JSON snapshot that a restore with a loss would take, and what that would
    /// lose; `None` if this is not the store's partition, or there is none. Changes nothing.
    ///
    /// # Errors
    ///
    /// None was found, and one that is there cannot be read now: it may be usable.
    pub(super) async fn state_left(
        &self,
        ancestry: &[(LineageId, u64)],
    ) -> Result<Option<String>, StartError> {
        if self.facts.partition != state_partition(self.cx.data_dir.identity.partitions).0 {
            return Ok(None);
        }
        let dir = self.cx.data_dir.snapshots();
        let looked = (self.cx.attempts).blocking(move || inspect(&Files::at(dir)));
        let looked = looked.await;
        let (local, mut unreadable) = looked;
        let mut local = local.into_iter();
        let local = local.find(|header| self.takes(header, ancestry));
        let archive = StateArchive::new(self.cx.archive.destination());
        let newest_here = local.as_ref().map_or(0, |header| header.commit_ts);
        let archived = self.newest_archived(&archive, newest_here, ancestry).await;
        let archived = archived.unwrap_or_else(|why| {
            unreadable.push(why);
            None
        });
        let (header, place) = match (archived, local) {
            (Some(header), _) => (header, format!("{}/state/default", archive.shown())),
            (None, Some(header)) => (header, self.cx.data_dir.snapshots().display().to_string()),
            (None, None) if !unreadable.is_empty() => {
                return Err(StartError::unreadable(
                    format!("a copy that partition {} needs", self.facts.partition),
                    &unreadable.join("; "),
                ));
            }
            (None, None) => return Ok(None),
        };
        let name = name_of(header.commit_ts);
        Ok(Some(format!(
            "{name} in {place} has the state store as of commit_ts {}, and nothing else of the partition. Bring \
             back what is missing; or go on from it, with the commits that the log has after it, with --bootstrap \
             restore: the other streams of the partition are lost then, and earlier versions of keys",
            header.commit_ts
        )))
    }

    /// The newest archived JSON snapshot of this history that is newer than a commit. The error is the
    /// reason why that is not known now.
    async fn newest_archived(
        &self,
        archive: &StateArchive,
        than: u64,
        ancestry: &[(LineageId, u64)],
    ) -> Result<Option<Header>, String> {
        let shown = archive.shown();
        let listed = archive.list().await;
        for one in listed.map_err(|error| format!("state snapshots in {shown}: {error}"))? {
            if one.commit_ts <= than {
                break;
            }
            let name = name_of(one.commit_ts);
            let head = archive.head(&one).await;
            match head.map_err(|error| format!("{name} in {shown}: {error}"))? {
                Ok(header) if self.takes(&header, ancestry) => return Ok(Some(header)),
                _ => {}
            }
        }
        Ok(None)
    }

    /// Whether a snapshot belongs to this history, as far as that is known.
    fn takes(&self, header: &Header, ancestry: &[(LineageId, u64)]) -> bool {
        let Some(copy) = copy_of(header) else {
            return false;
        };
        let is_known = !ancestry.is_empty() || self.may_be_ours(copy.lineage, header);
        let contradicts = |witness: &Witness| matches!(witness.contradicts(&copy), Ok(Some(_)));
        is_known
            && !self.witness.as_ref().is_some_and(contradicts)
            && best(std::slice::from_ref(&copy), ancestry).is_some()
    }

    /// Whether a snapshot may belong to this node's history, where the repository has no lineages of the
    /// partition: the log knows those that it descends from, and the first lineage is derived from the
    /// cluster.
    fn may_be_ours(&self, lineage: LineageId, header: &Header) -> bool {
        if let Some(log) = &self.facts.log {
            let ancestry = log.lineage.ancestry();
            if lineage == log.lineage.id() || ancestry.iter().any(|(one, _)| *one == lineage) {
                return true;
            }
            if ancestry.len() as u64 >= log.lineage.forks {
                return false;
            }
        }
        let partition = PartitionId(self.facts.partition);
        let first = LineageId::first(&self.cx.data_dir.identity.cluster_id, partition);
        // Ids of lineages that forks have begun are random.
        lineage == first || header.forks > 0
    }

    async fn source_from_state(
        &mut self,
        header: &Header,
        ancestry: &[(LineageId, u64)],
        has_root: bool,
    ) -> Result<Option<RecoverySource>, StartError> {
        let name = name_of(header.commit_ts);
        let Some(mut copy) = copy_of(header) else {
            self.tried.push(format!("{name}: it says no lineage"));
            return Ok(None);
        };
        if ancestry.is_empty() && !self.may_be_ours(copy.lineage, header) {
            self.tried.push(format!("{name}: it is of another history"));
            return Ok(None);
        }
        if self.is_contradicted(&copy).await? {
            return Ok(None);
        }
        let copies = [copy.clone()];
        let Some((_, skipped)) = best(&copies, ancestry) else {
            self.tried
                .push(format!("{name}: it is of a stale lineage, above its fork"));
            return Ok(None);
        };
        match (connects(self.log.as_ref(), &copy), &self.log) {
            (Ok(()), Some(log)) if log.lineage.id() == copy.lineage => copy.lsn = log.last,
            (Err(why), _) => self.tried.push(format!("{name}: {why}")),
            _ => {}
        }
        let parent = ancestry.first().map_or(copy.lineage, |(newest, _)| *newest);
        let same = self.planned.filter(|planned| planned.lsn == copy.lsn);
        let fork = same.cloned().unwrap_or_else(|| PlannedFork {
            lineage: LineageId(rand::random()).to_string(),
            parent: parent.to_string(),
            lsn: copy.lsn,
            // The lineages up to the snapshot's own are in the snapshot.
            skipped,
            between: Vec::new(),
            empty: false,
        });
        Ok(Some(self.recovery_source(
            &copy,
            None,
            Some(fork),
            has_root,
        )))
    }
}
