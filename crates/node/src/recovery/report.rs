//! What a recovery did, for the log and for `esker status`.

use std::time::Duration;

use super::candidates::Source;

/// What the last start did.
#[derive(Clone, Debug, Default)]
pub struct RecoveryReport {
    /// Entries that were replayed.
    pub entries: u64,
    /// Commits of the state store that were replayed when its partition was rebuilt from a JSON snapshot.
    pub state_commits: u64,
    /// Bytes that came from checkpoints and snapshots.
    pub restored_bytes: u64,
    /// Reading the log; zero if the log was too small to measure it.
    pub scan: Duration,
    /// Finding, fetching, checking and importing copies.
    pub restore: Duration,
    /// Replaying the log.
    pub replay: Duration,
    /// From the beginning to serving.
    pub total: Duration,
    /// A JSON snapshot that has a newer state store than the restored one: its name, and its place.
    pub newer_state: Option<String>,
    /// What each partition came from, the catalog first.
    pub partitions: Vec<PartitionRecovery>,
}

/// What a partition came from.
#[derive(Clone, Debug)]
pub struct PartitionRecovery {
    /// The partition.
    pub partition: u64,
    /// The copy that it came from.
    pub source: Source,
    /// The last LSN that the copy covered.
    pub lsn: u64,
    /// Entries that were replayed on the copy.
    pub replayed: u64,
    /// The LSN after which data may be lost: a new lineage began there.
    pub lost_after: Option<u64>,
}

impl RecoveryReport {
    /// Notes a partition that did not come from its database.
    pub(super) fn came_from(&mut self, partition: u64, source: Source, lost_after: Option<u64>) {
        self.partitions.push(PartitionRecovery {
            partition,
            source,
            lsn: 0,
            replayed: 0,
            lost_after,
        });
    }

    /// Notes where a partition begins to replay.
    pub(super) fn note(&mut self, partition: u64, applied: u64, last: u64) {
        let replayed = last.saturating_sub(applied);
        self.entries += replayed;
        let known = self
            .partitions
            .iter_mut()
            .find(|one| one.partition == partition);
        match known {
            Some(one) => (one.lsn, one.replayed) = (applied, replayed),
            None => self.partitions.push(PartitionRecovery {
                partition,
                source: Source::Database,
                lsn: applied,
                replayed,
                lost_after: None,
            }),
        }
        self.partitions.sort_by_key(|one| one.partition);
    }

    /// The source of a partition.
    pub(super) fn source_of(&self, partition: u64) -> &Source {
        let mut of = self.partitions.iter();
        of.find(|one| one.partition == partition)
            .map_or(&Source::Database, |one| &one.source)
    }

    /// Whether a partition has begun a new lineage, because data may be lost.
    pub(super) fn lost_some(&self, partition: u64) -> bool {
        let mut of = self.partitions.iter();
        of.any(|one| one.partition == partition && one.lost_after.is_some())
    }

    /// The sources of all partitions, in short.
    pub(super) fn source(&self) -> String {
        let of = |wanted: fn(&Source) -> bool| {
            self.partitions
                .iter()
                .filter(|one| wanted(&one.source))
                .count()
        };
        let of_state = of(|s| matches!(s, Source::State(_)));
        let empty = of(|s| *s == Source::Empty);
        let counts = [
            (of(|s| *s == Source::Database), "local database"),
            (of(|s| matches!(s, Source::Local(_))), "local snapshots"),
            (of(|s| matches!(s, Source::Repository(_))), "repository"),
            (of(|s| *s == Source::Log), "log alone"),
            (of_state, "state snapshot"),
            (empty, "nothing"),
        ];
        let used: Vec<_> = counts.iter().filter(|(count, _)| *count > 0).collect();
        match used.as_slice() {
            [] => "nothing".to_owned(),
            [(_, only)] => (*only).to_owned(),
            several => several
                .iter()
                .map(|(count, what)| format!("{what} ({count} partitions)"))
                .collect::<Vec<_>>()
                .join(", "),
        }
    }
}
