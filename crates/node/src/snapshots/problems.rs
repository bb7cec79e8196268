//! What is wrong with a node, and what to do about it.

use std::time::{Duration, Instant};

use esker_repository::env::steady_now;

use super::failure::Failure;
use super::state::RepositoryState;
use super::status::{NodeStatus, PartitionStatus};
use crate::clock::{age_of, past_age};
use crate::cluster::{ClockProblem, DIFFERING_REMEDY};
use crate::core::Inner;
use crate::problem::Problem;

/// A proof older than this has to be renewed.
const PROOF_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// Snapshots are late when the newest is this many intervals old and something came after it.
const LATE: u32 = 3;

impl Inner {
    /// The problems that a status shows.
    pub(super) fn problems(&self, status: &NodeStatus) -> Vec<Problem> {
        let inner = self;
        let mut problems = Problems::default();
        let options = &inner.options.snapshots;
        if status.repository_is_local {
            problems.add(
                "repository_on_this_disk",
                None,
                format!(
                    "snapshots are kept in {} and do not survive this disk",
                    status.repository
                ),
                "set snapshots.destination to another disk or to object storage",
            );
        }
        if options.num_retained.is_none() {
            problems.add(
                "one_snapshot_retained",
                None,
                "only the newest snapshot is retained: there is none to fall back to".to_owned(),
                "set snapshots.num-retained to 3 or so",
            );
        }
        if inner.log_is_full() {
            problems.add(
                "log_full",
                None,
                format!(
                    "the log has {} bytes, more than max-log-bytes = {}",
                    status.log_bytes, status.max_log_bytes
                ),
                "see whether snapshots are put; raise snapshots.max-log-bytes",
            );
        }
        for ignored in &inner.state.progress.lock().ignored {
            problems.add(
                "state_snapshot_ignored",
                Some(inner.state.partition.0),
                format!("a file in snapshots/ does not count: {ignored}"),
                "move it away; esker state import takes its state over, if that is wanted",
            );
        }
        let (_, ahead) = steady_now();
        if !ahead.is_zero() {
            problems.add(
                "clock_jumped",
                None,
                format!(
                    "the machine's clock has jumped ahead by {} s: until a day has passed since, nothing is deleted for its age because of that",
                    ahead.as_secs()
                ),
                "if the clock is wrong, put it right before that; if it is right now, do nothing",
            );
        }
        match inner.clock_problem() {
            Some(ClockProblem::Differs(what)) => problems.add(
                "clock_differs",
                None,
                what,
                "set the clocks of the nodes: run chrony or systemd-timesyncd on each",
            ),
            Some(ClockProblem::Unknown(what)) => problems.add(
                "clocks_unknown",
                None,
                what,
                "look whether the nodes run, reach each other, and are of one release",
            ),
            None => {}
        }
        if let Some(why) = inner
            .restarts
            .held_back()
            .or_else(|| inner.restarts.unread())
        {
            problems.add(
                "restart_held_back",
                None,
                why,
                "bring back a copy that the cause names, or look for a failing disk or memory; then restart the server",
            );
        }
        if let Some(what) = inner.restarts.lately() {
            problems.add(
                "restarted",
                None,
                what,
                "look at the disk and the memory of the machine; what was damaged is recovered",
            );
        }
        if let Some(why) = inner.refused_by_cluster() {
            problems.add(
                "refused_by_cluster",
                None,
                why,
                "if this node was removed, move its data directory away and start it with an empty one and cluster.join; if another process runs with a copy of the directory, stop the copy; if the directory is a copy or an older state, use the right one, or an empty one and cluster.join",
            );
        }
        if let Some(peers) = &inner.peers
            && peers.refusal().is_none()
            && let Some(why) = peers.why_not_registered()
        {
            problems.add(
                "not_registered",
                None,
                format!(
                    "the catalog does not have this node as it is, so it puts no snapshots, and its log grows to max-log-bytes: {why}"
                ),
                "mend what the cause names; a node that is gone for good is removed with esker cluster remove",
            );
        }
        for unknown in inner.unknown_basins() {
            let counted = unknown.streams;
            let what = format!(
                "the catalog does not know basin {}, which {counted} stream{} in, such as {:?}: it was restored as of before the basin was made",
                unknown.id,
                if counted == 1 { " is" } else { "s are" },
                unknown.example,
            );
            for partition in unknown.partitions {
                problems.add(
                    "basin_unknown",
                    Some(partition),
                    what.clone(),
                    "esker stream adopt BASIN ID makes the basin again, and its streams are there as they were",
                );
            }
        }
        let (_, suspended) = inner.catalog_reader.count_tokens();
        if suspended > 0 {
            problems.add(
                "access_tokens_suspended",
                Some(0),
                format!(
                    "{suspended} access token{} suspended: the catalog was restored with a loss, and revocations may be among what is lost",
                    if suspended == 1 { " is" } else { "s are" },
                ),
                "with the root token, look through esker token list and revoke what must not be valid, then run esker token confirm",
            );
        }
        let shortage = inner.shortage();
        for one in &status.partitions {
            let partition = one.partition;
            let known = inner.snapshots.known[partition as usize].lock();
            known_problems(&mut problems, partition, &known, one);
            drop(known);
            if let Some(why) = inner.snapshots.local.failure(partition) {
                problems.add(
                    "local_snapshot_failed",
                    Some(partition),
                    why,
                    "the log is kept meanwhile; look at free space in the data directory",
                );
            }
            if let Some(why) = inner.damage(partition) {
                problems.add(
                    "database_damaged",
                    Some(partition),
                    why,
                    "the server makes a copy ready and restarts itself, unless the problem restart_held_back tells why not",
                );
            }
            if let Some(why) = inner.replicas.diverged.why(partition) {
                problems.add(
                    "replica_diverged",
                    Some(partition),
                    why,
                    "replace this node: stop it, move its data directory away, and start it again with cluster.join: it takes its own place",
                );
            } else if let Some(halted) = inner.group(partition).halted() {
                problems.add(
                    "partition_halted",
                    Some(partition),
                    halted.why,
                    match halted.reopens {
                        true => "mend the cause: it is tried again after 1 s to 60 s, and the partition then continues",
                        false => "mend the cause, then start the server again: what was acknowledged is in the log",
                    },
                );
            }
            if let Some(why) = inner.replicas.transfers.wait_for_space(partition) {
                problems.add(
                    "replica_waits_for_space",
                    Some(partition),
                    why,
                    "make room on the disk of the data directory: the transfer then goes on by itself, from where it is",
                );
            }
            if let Some(why) = inner.replicas.waiting.problem(partition, Instant::now()) {
                problems.add(
                    "members_wait",
                    Some(partition),
                    why,
                    "bring back the nodes that are named; remove one that is lost for good with esker cluster remove",
                );
            }
            if let Some(why) = inner.undecided(partition) {
                problems.add("replicas_differ", Some(partition), why, DIFFERING_REMEDY);
            }
            if let Some(why) = &shortage {
                problems.add(
                    "disk_takes_no_writes",
                    Some(partition),
                    why.clone(),
                    "make room on the disk of the data directory, trim streams, or delete them",
                );
            } else if inner.group(partition).status().stalled {
                problems.add(
                    "disk_takes_no_writes",
                    Some(partition),
                    format!("appends are refused: {}", inner.stall_cause(partition)),
                    "mend what the cause names: space, permissions or open files of the data directory",
                );
            }
            // Where appends are refused because of it, another problem reports it already.
            let writes = inner.group(partition).status();
            if let Some(why) = inner.store.write_failure()
                && !writes.stalled
                && shortage.is_none()
            {
                problems.add(
                    "database_not_written",
                    Some(partition),
                    format!("the log is kept meanwhile: {why}"),
                    "mend what the cause names: open files, permissions or space of the data directory",
                );
            }
            let is_trimmed = inner.is_log_trimmed(partition);
            let known = inner.snapshots.known[partition as usize].lock();
            let why_none_is_put = known.failure.is_some();
            drop(known);
            if is_trimmed {
                problems.add(
                    "log_trimmed",
                    Some(partition),
                    "the log no longer reaches back to the oldest retained snapshot: that one can be restored, and not brought up to date".to_owned(),
                    "raise snapshots.max-log-bytes, or put snapshots more often; each esker snapshot create takes the place of the oldest one",
                );
            }
            if let Some(newest) = &one.newest
                && past_age(newest.created_at).is_none()
            {
                problems.add(
                    "snapshot_from_future",
                    Some(partition),
                    "the newest snapshot is from the future: a clock was ahead when it was made, or this machine's is behind".to_owned(),
                    "put the clock right; the next snapshot is due as soon as there is anything new, and ages are right from then on",
                );
            }
            if let (Some(interval), Some(newest)) = (options.interval, &one.newest)
                && one.entries_at_risk > 0
                && options.interval_records.is_none()
                // Where the reason is known, that is the problem.
                && !why_none_is_put
                && age_of(newest.created_at) > interval * LATE
            {
                problems.add(
                    "snapshots_late",
                    Some(partition),
                    format!(
                        "the newest snapshot is {} s old",
                        age_of(newest.created_at).as_secs()
                    ),
                    "see the server's log for why none was put",
                );
            }
        }
        problems.list.extend(inner.options.host_problems.list());
        problems.list
    }
}

fn known_problems(
    problems: &mut Problems,
    partition: u64,
    known: &RepositoryState,
    one: &PartitionStatus,
) {
    let partition = Some(partition);
    if let Some(Failure { code, what, remedy }) = &known.failure {
        problems.add(code, partition, what.clone(), remedy);
    }
    if let Some(why) = known.sweep_failure() {
        problems.add(
            "sweep_failing",
            partition,
            why.to_owned(),
            "nothing is deleted meanwhile, so storage grows; esker snapshot verify says what is damaged",
        );
    }
    if let Some(why) = &known.proof_failure {
        problems.add(
            "proof_failed",
            partition,
            why.clone(),
            "do not rely on this snapshot: esker snapshot create makes another, esker snapshot verify --restore tests it",
        );
    }
    for archived in &known.retained {
        let Some((count, key, why)) = &archived.damaged else {
            continue;
        };
        let objects = match count {
            1 => "1 object".to_owned(),
            n => format!("{n} objects"),
        };
        problems.add(
            "snapshot_damaged",
            partition,
            format!(
                "{objects} of snapshot {} at LSN {} cannot be used, such as {key}: {why}",
                archived.id, archived.lsn
            ),
            "newer snapshots do not use what is damaged, and a restore passes over this one; to save it, bring the object back from a version or a backup of the bucket, then run esker snapshot verify --data --repair",
        );
    }
    if let Some(why) = &known.scrub.failure {
        problems.add(
            "scrub_failing",
            partition,
            why.clone(),
            "it is read again by itself, and damage is not found meanwhile; see whether the repository answers",
        );
    }
    if known.abandoned > 0 {
        problems.add(
            "abandoned_snapshots",
            partition,
            format!("{} snapshots of stale lineages are kept", known.abandoned),
            "when nothing in them is wanted any more: esker snapshot prune --abandoned",
        );
    }
    if known.failure.is_none() && known.proof_failure.is_none() && one.newest.is_some() {
        let proven = known.proven.as_ref();
        if proven.is_none_or(|proof| past_age(proof.at).is_none_or(|age| age > PROOF_AGE)) {
            problems.add(
                "unproven",
                partition,
                "no snapshot was restored and compared since the start, or for a month".to_owned(),
                "esker snapshot verify --restore, or set snapshots.restore-test-interval",
            );
        }
    }
}

#[derive(Default)]
struct Problems {
    list: Vec<Problem>,
}

impl Problems {
    /// Adds a problem. The same problem of several partitions is one problem.
    fn add(
        &mut self,
        code: &'static str,
        partition: Option<u64>,
        what: String,
        remedy: &'static str,
    ) {
        let same = |p: &&mut Problem| p.code == code && p.what == what;
        match (self.list.iter_mut().find(same), partition) {
            (Some(known), Some(partition)) => known.partitions.push(partition),
            _ => self.list.push(Problem {
                code,
                partitions: partition.into_iter().collect(),
                what,
                remedy,
            }),
        }
    }
}
