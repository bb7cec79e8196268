//! Digests of a partition's replicas, compared through the log; a replica that differs is stopped.
//!
//! ```text
//!  leader ──AskDigest──▶ log ──▶ each member computes its digest as of that entry, beside what it applies
//!  leader ──(call)─────▶ members: their digests
//!  leader ──NoteDigests▶ log ──▶ each member compares its own with that of the majority
//!                                └▶ it differs: see `replica_watch`
//! ```
//!
//! If the leadership moves before `NoteDigests` is in the log, the next leader finds an `AskDigest` without it, asks the
//! members for those digests, and records them; or asks for others, where too few are left.
//!
//! Nobody stops another member: each decides about itself, by what the log has recorded. So a member that was
//! away, or whose digest takes longer, comes to the same end later. See `docs/design/0008-compared-digests.md`.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_partition::Origin;
use esker_partition::command::{AskDigest, Kind, MemberDigest, NoteDigests, Outcome};
use esker_partition::digest::{Compared, DIGEST_FORMAT, OwnDigest, Verdict};
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::peers::Peers;
use super::trust::close_for_sole_member;
use super::wire::{AskedDigest, CHANGE, ChangeCluster, DIGEST, DigestOf, OriginOf, READS_ORIGINS};
use crate::clock::now_ms;
use crate::core::Inner;

/// How often a due check is looked for.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// How often members are asked for digests that they compute.
const ASK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a member may take to answer.
const ASK_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a check waits for members that do not answer, or have not applied the entry. They compare
/// themselves when they come back.
const ABSENT_TIMEOUT: Duration = Duration::from_secs(10);
/// How long a check waits for digests. At the default rate that is enough for 56 GiB; larger ones come later,
/// and are compared then by the members themselves.
const DIGEST_TIMEOUT: Duration = Duration::from_secs(60 * 60);
/// How long a partition that was never checked is led before it is, at most.
const FIRST_CHECK: Duration = Duration::from_secs(10 * 60);
/// How soon a check is made again that has shown a difference and not who is wrong, or that came to no end.
const REPEAT_INTERVAL: Duration = Duration::from_secs(60);
/// How long the checks are tried that the log has asked for and that came to no end: from the first of them on...
const UNFINISHED_TIMEOUT: Duration = Duration::from_secs(2 * 60 * 60);
/// ...and how many of them in a row. Later ones are made as they are due.
const MAX_UNFINISHED: u32 = 5;
/// How long a node that does not lead a partition any more looks for one that takes over a check of it.
const PASS_ON_TIMEOUT: Duration = Duration::from_secs(30);

/// Makes the checks of the partitions that this node leads, one at a time, until the node stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let stopping = inner.stopping.clone();
    let mut led_since = HashMap::new();
    let mut not_before = HashMap::new();
    let mut resumed = HashMap::new();
    let mut renewed = HashMap::new();
    let mut counted = 0;
    loop {
        tokio::select! {
            () = stopping.cancelled() => return,
            () = inner.replicas.checks.wake.notified() => {}
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let read = inner.replicas.digests.bytes_read();
        metrics::counter!("esker_digest_read_bytes_total").increment(read - counted);
        counted = read;
        for partition in 0..=u64::from(inner.options.partitions) {
            if !inner.group(partition).is_serving() {
                // The next leader tries at once.
                not_before.remove(&partition);
                if led_since.remove(&partition).is_some() {
                    inner.replicas.checks.failed.lock().remove(&partition);
                }
                if let Some(since) = inner.replicas.checks.wanted_since(partition) {
                    pass_on(&inner, &peers, partition, since).await;
                }
                continue;
            }
            let since = *led_since.entry(partition).or_insert_with(Instant::now);
            renew_snapshot(&inner, partition, &mut renewed);
            close_for_sole_member(&inner, partition).await;
            let may_be_due = not_before
                .get(&partition)
                .is_none_or(|at| *at <= Instant::now());
            let is_wanted = inner.replicas.checks.wanted_since(partition).is_some();
            let is_needed = || is_unfinished(&inner, partition) || is_due(&inner, partition, since);
            if !(is_wanted || may_be_due && is_needed()) {
                continue;
            }
            *inner.replicas.checks.under_way.lock() = Some(partition);
            inner.replicas.checks.take(partition);
            let checked = tokio::select! {
                () = stopping.cancelled() => return,
                checked = check(&inner, &peers, partition, &mut resumed) => checked,
            };
            match checked {
                Ok(compared) => {
                    not_before.remove(&partition);
                    inner.replicas.checks.failed.lock().remove(&partition);
                    let group = inner.group(partition);
                    group.withhold_snapshots(inner.is_withheld(partition));
                    report(partition, &compared);
                }
                Err(why) if !inner.group(partition).is_serving() => {
                    tracing::debug!(partition, why, "the next leader is to compare digests");
                    // It finds what the log has asked for by itself.
                    if is_wanted && inner.replicas.digests.unfinished(partition).is_none() {
                        inner.replicas.checks.want(partition);
                    }
                }
                Err(why) => {
                    not_before.insert(partition, Instant::now() + REPEAT_INTERVAL);
                    note_failure(&inner, partition, why);
                }
            }
            *inner.replicas.checks.under_way.lock() = None;
        }
    }
}

/// Wants a whole snapshot of a partition if the repository's newest one may have been made of a replica that has
/// diverged: whoever restores it, or joins, would have the wrong state again.
fn renew_snapshot(inner: &Inner, partition: u64, renewed: &mut HashMap<u64, Instant>) {
    let diverged_at = inner.replicas.diverged_at(partition);
    if diverged_at == 0 || inner.replicas.digests.divergence(partition).is_some() {
        return;
    }
    let tried = renewed.get(&partition).map(Instant::elapsed);
    if tried.is_some_and(|ago| ago < REPEAT_INTERVAL) {
        return;
    }
    let mut known = inner.snapshots.known[partition as usize].lock();
    if !known.looked || (known.newest()).is_none_or(|newest| newest.lsn > diverged_at) {
        return;
    }
    tracing::warn!(
        partition,
        diverged_at,
        "the newest snapshot in the repository may have been made of a replica that has diverged: another one is put"
    );
    known.force_full = true;
    // Nobody waits for it.
    drop(known.ask());
    drop(known);
    inner.snapshots.wake.notify_one();
    renewed.insert(partition, Instant::now());
}

fn note_failure(inner: &Inner, partition: u64, why: String) {
    tracing::debug!(partition, why, "digests were not compared");
    metrics::counter!("esker_digest_comparisons_total", "outcome" => "failed").increment(1);
    inner.replicas.checks.failed.lock().insert(partition, why);
}

fn report(partition: u64, compared: &Compared) {
    let (lsn, replicas) = (compared.lsn, compared.answers.len());
    let outcome = match compared.verdict() {
        Verdict::Equal => {
            tracing::info!(partition, lsn, replicas, "digests of replicas are equal");
            "equal"
        }
        Verdict::Diverged(nodes) => {
            tracing::error!(
                partition,
                lsn,
                ?nodes,
                "replicas have diverged from the majority: they stop, and have to be replaced"
            );
            "diverged"
        }
        Verdict::Undecided => {
            tracing::error!(
                partition,
                lsn,
                replicas,
                "digests of replicas differ, and it is not known which is right: bring back the nodes that are gone, or name \
                 the right one with `esker cluster trust`"
            );
            "undecided"
        }
    };
    metrics::counter!("esker_digest_comparisons_total", "outcome" => outcome).increment(1);
}

/// Whether a partition that this node has led since then is to be checked without being asked.
fn is_due(inner: &Inner, partition: u64, since: Instant) -> bool {
    let options = inner.options.cluster.as_ref();
    let Some(interval) = options.and_then(|options| options.check_interval) else {
        return false;
    };
    if inner.group(partition).membership().members().count() < 2 {
        return false;
    }
    // What an earlier release has recorded does not say which replicas are copies.
    let last = inner.replicas.digests.compared(partition);
    let Some(last) = last.filter(Compared::has_origins) else {
        return since.elapsed() >= interval.min(FIRST_CHECK);
    };
    let pause = match last.is_open() {
        true => interval.min(REPEAT_INTERVAL),
        false => interval,
    };
    let pause = u64::try_from(pause.as_millis()).unwrap_or(u64::MAX);
    // A time in the future comes from a clock that was ahead.
    now_ms().abs_diff(last.at_ms) >= pause
}

/// Whether the log has asked for digests that it has not recorded: whoever asked does not lead any more, or had too few
/// answers.
fn is_unfinished(inner: &Inner, partition: u64) -> bool {
    let unfinished = inner.replicas.digests.unfinished(partition);
    let has_others = inner.group(partition).membership().members().count() > 1;
    unfinished.filter(|_| has_others).is_some_and(|asked| {
        asked.times <= MAX_UNFINISHED && asked.since.elapsed() < UNFINISHED_TIMEOUT
    })
}

/// Passes a check that is wanted on to the node that leads the partition now.
async fn pass_on(inner: &Inner, peers: &Peers, partition: u64, since: Instant) {
    let checks = &inner.replicas.checks;
    let leader = inner.group(partition).leader().map(|leader| leader.0);
    let leader = inner.replicas.leader_elsewhere(partition).or(leader);
    if let Some(leader) = leader.filter(|leader| *leader != peers.me())
        && let Ok(body) = serde_json::to_vec(&ChangeCluster::Check { partition })
        && (peers.transport)
            .call(NodeId(leader), CHANGE, body.into(), ASK_TIMEOUT)
            .await
            .is_ok()
    {
        checks.take(partition);
    } else if since.elapsed() >= PASS_ON_TIMEOUT {
        checks.take(partition);
        let why = "this node does not lead the partition any more, and no other one has taken the comparison over";
        note_failure(inner, partition, why.to_owned());
    }
}

/// Has the digests of a partition's replicas computed and recorded. What the log has asked for in an earlier term is
/// gone on with, once: `resumed` has the entries of which that is done.
async fn check(
    inner: &Inner,
    peers: &Peers,
    partition: u64,
    resumed: &mut HashMap<u64, u64>,
) -> Result<Compared, String> {
    let group = inner.group(partition);
    let members: BTreeSet<u64> = group.membership().members().map(|node| node.0).collect();
    if members.len() < 2 {
        return Err("the partition has one replica, so there is nothing to compare".to_owned());
    }
    if let Some(node) = inner.member_not_reading(partition, READS_ORIGINS) {
        return Err(format!(
            "node {node} runs a release that does not tell which replicas were copied from each other: upgrade it"
        ));
    }
    let digests = &inner.replicas.digests;
    let unfinished = digests.unfinished(partition).map(|asked| asked.lsn);
    // What was asked long ago says little about now.
    let unfinished = unfinished.filter(|_| is_unfinished(inner, partition));
    let unfinished = unfinished.filter(|lsn| {
        resumed.get(&partition) != Some(lsn) && digests.own(partition, *lsn) != OwnDigest::Unknown
    });
    let lsn = match unfinished {
        Some(lsn) => lsn,
        None => {
            let ask = Kind::AskDigest(AskDigest {
                format: DIGEST_FORMAT,
            });
            let asked = inner.execute(group, ask).await.map_err(|e| e.to_string())?;
            let Outcome::DigestAsked(lsn) = asked else {
                return Err(format!("the answer was {asked:?}"));
            };
            lsn
        }
    };
    resumed.insert(partition, lsn);
    let answers = gather(inner, peers, AskedDigest { partition, lsn }, &members).await?;
    if answers.len() < 2 {
        return Err(format!(
            "of {} replicas, {} had a digest as of LSN {lsn}: look at `esker cluster status` for nodes that do not \
             answer, and at the logs of the others",
            members.len(),
            answers.len()
        ));
    }
    let answers = answers
        .into_iter()
        .map(|(node, (digest, origin))| MemberDigest {
            node,
            digest: digest.to_be_bytes().to_vec(),
            origin,
        });
    let note = Kind::NoteDigests(NoteDigests {
        lsn,
        at_ms: now_ms(),
        answers: answers.collect(),
        has_origins: true,
    });
    inner
        .execute(group, note)
        .await
        .map_err(|e| e.to_string())?;
    let compared = inner.replicas.digests.compared(partition);
    compared.ok_or_else(|| "the comparison was not recorded".to_owned())
}

/// The digests of the members that have one in time.
async fn gather(
    inner: &Inner,
    peers: &Peers,
    asked: AskedDigest,
    members: &BTreeSet<u64>,
) -> Result<BTreeMap<u64, (u128, Option<Origin>)>, String> {
    let mut answers = BTreeMap::new();
    let mut waiting = members.clone();
    let begun = Instant::now();
    loop {
        let asking = waiting
            .iter()
            .map(|node| async move { (*node, digest_of(inner, peers, *node, asked).await) });
        let mut computes = false;
        let said = futures::future::join_all(asking).await;
        for (node, said) in said {
            match said {
                Ok(DigestOf::Computed { digits, origin }) => {
                    waiting.remove(&node);
                    // What is no number counts as no answer.
                    if let Ok(digest) = u128::from_str_radix(&digits, 16) {
                        answers.insert(node, (digest, origin.map(Origin::from)));
                    }
                }
                Ok(DigestOf::Unknown) => {
                    waiting.remove(&node);
                }
                Ok(DigestOf::Computing) => computes = true,
                Ok(DigestOf::Behind) | Err(_) => {}
            }
        }
        let longest = match computes {
            true => DIGEST_TIMEOUT,
            false => ABSENT_TIMEOUT,
        };
        if waiting.is_empty() || begun.elapsed() >= longest {
            return Ok(answers);
        }
        if !inner.group(asked.partition).is_serving() {
            return Err("another node leads by now".to_owned());
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}

async fn digest_of(
    inner: &Inner,
    peers: &Peers,
    node: u64,
    asked: AskedDigest,
) -> Result<DigestOf, CallError> {
    if node == peers.me() {
        return inner.own_digest(asked);
    }
    let unreadable = |e: serde_json::Error| CallError::Refused(e.to_string());
    let body = serde_json::to_vec(&asked).map_err(unreadable)?;
    let transport = &peers.transport;
    let answer = transport.call(NodeId(node), DIGEST, body.into(), ASK_TIMEOUT);
    serde_json::from_slice(&answer.await?).map_err(unreadable)
}

impl Inner {
    /// The digest of the replica here.
    pub(crate) fn own_digest(&self, asked: AskedDigest) -> Result<DigestOf, CallError> {
        if asked.partition > u64::from(self.options.partitions) {
            return Err(CallError::Refused(format!(
                "there is no partition {}",
                asked.partition
            )));
        }
        let own = self.replicas.digests.own(asked.partition, asked.lsn);
        Ok(match own {
            OwnDigest::Computing => DigestOf::Computing,
            OwnDigest::Computed(digest) => DigestOf::Computed {
                digits: format!("{digest:032x}"),
                origin: (self.replicas.digests)
                    .origin_of_own(asked.partition, asked.lsn)
                    .map(OriginOf::from),
            },
            OwnDigest::Unknown => {
                let group = self.group(asked.partition);
                // One that has halted never gets there.
                match group.status().applied.0 < asked.lsn && group.halted().is_none() {
                    true => DigestOf::Behind,
                    false => DigestOf::Unknown,
                }
            }
        })
    }

    /// Wants a check of a partition that this node leads.
    pub(crate) fn want_check(&self, partition: u64) -> Result<(), CallError> {
        self.check_leads(partition)?;
        self.replicas.checks.want(partition);
        Ok(())
    }

    pub(super) fn check_leads(&self, partition: u64) -> Result<(), CallError> {
        if partition > u64::from(self.options.partitions) {
            return Err(CallError::Refused(format!(
                "there is no partition {partition}"
            )));
        }
        if !self.group(partition).is_serving() {
            return Err(CallError::Unavailable(format!(
                "this node does not lead partition {partition} any more"
            )));
        }
        Ok(())
    }
}
