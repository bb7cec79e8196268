//! What a start knows from attempts that met damage.
//!
//! A start reads a few rows of the database before it decides that it can be used, and much more
//! afterwards: directories, and whatever replay needs. Damage that is met there, or in a copy that is
//! used, ends the attempt: it is noted durably, everything is closed, and the next attempt takes the
//! next source of that partition. An attempt is only followed by another if it has ruled out a source,
//! so there are at most as many attempts as there are sources. A crash in between costs nothing: the
//! note stays, and damage that it does not name is found again.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

use esker_partition::Store;
use esker_partition::command::Outcome;
use esker_partition::store::DamageReport;
use esker_raft::Group;
use parking_lot::Mutex;

use super::candidates::Source;
use crate::data_dir::DataDir;
use crate::error::StartError;

/// What is known of sources, in this start.
#[derive(Debug, Default)]
pub(super) struct Attempts {
    /// What the database of the present attempt meets.
    pub met: DamageReport,
    known: Mutex<Known>,
}

#[derive(Debug, Default)]
struct Known {
    /// What the partitions of the present attempt are made of, but for those of the database as it was.
    in_use: BTreeMap<u64, Source>,
    /// Sources that are damaged, and how that was found.
    ruled_out: Vec<(u64, Source, String)>,
    /// Whether the present attempt has ruled out any.
    has_ruled_out: bool,
    /// Local snapshots that are damaged.
    damaged_locals: BTreeSet<PathBuf>,
}

impl Attempts {
    /// An attempt begins.
    pub fn begin(&self) {
        self.met.take();
        let mut known = self.known.lock();
        known.in_use.clear();
        known.has_ruled_out = false;
    }

    /// A partition is made of this source.
    pub fn uses(&self, partition: u64, source: &Source) {
        self.known.lock().in_use.insert(partition, source.clone());
    }

    /// This source is damaged: the next attempt takes another.
    pub fn rule_out(&self, partition: u64, source: Source, why: String) {
        let mut known = self.known.lock();
        let is_known = |(p, s, _): &(u64, Source, String)| *p == partition && *s == source;
        if !known.ruled_out.iter().any(is_known) {
            known.ruled_out.push((partition, source, why));
            known.has_ruled_out = true;
        }
    }

    /// Why a source is not to be used, if it was ruled out.
    pub fn why_not(&self, partition: u64, source: &Source) -> Option<String> {
        let known = self.known.lock();
        let mut ruled_out = known.ruled_out.iter();
        let found = ruled_out.find(|(p, s, _)| *p == partition && s == source);
        found.map(|(_, _, why)| why.clone())
    }

    /// A local snapshot is damaged: the log is not shortened because of it.
    pub fn local_is_damaged(&self, dir: &Path) {
        self.known.lock().damaged_locals.insert(dir.to_owned());
    }

    pub fn is_damaged_local(&self, dir: &Path) -> bool {
        self.known.lock().damaged_locals.contains(dir)
    }

    /// Notes durably what the attempt has met. Whether another attempt has anything else to try.
    pub fn note(&self, data_dir: &DataDir) -> Result<bool, StartError> {
        for (partition, why) in self.met.take() {
            let partition = partition.0;
            data_dir.report_damage(partition, &why)?;
            let in_use = self.known.lock().in_use.get(&partition).cloned();
            let source = in_use.unwrap_or(Source::Database);
            tracing::error!(
                partition,
                %source,
                why,
                "a file of the database is damaged: another copy of the partition is tried"
            );
            self.rule_out(partition, source, why);
        }
        Ok(self.known.lock().has_ruled_out)
    }
}

/// What an attempt has open. It is closed when this is dropped, unless the attempt succeeded: then the node
/// owns it.
#[derive(Default)]
pub(super) struct Opened {
    pub raft: Option<esker_raft::Node>,
    pub groups: Vec<Group<Outcome>>,
    pub store: Option<Store>,
}

impl Opened {
    /// The node has it now.
    pub fn hand_over(mut self) {
        self.raft = None;
        self.groups.clear();
        self.store = None;
    }
}

impl Drop for Opened {
    fn drop(&mut self) {
        for group in self.groups.drain(..) {
            group.stop();
        }
        if let Some(raft) = self.raft.take() {
            raft.stop();
        }
        if let Some(store) = self.store.take() {
            store.close();
        }
    }
}
