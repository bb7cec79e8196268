//! Proposes what becomes due with time: age retention, delete-on-empty, deletion of basins, removal of
//! expired access tokens.
//!
//! A partition that does not answer, because its disk does not, does not delay the others: a round waits for
//! [`ANSWERS_TIMEOUT`] at most, and proposes nothing to a partition that has not answered yet.
//!
//! A partition is read only if something of it may be due ([`visits`]).

mod visits;

use std::collections::HashMap;
use std::sync::Weak;
use std::time::{Duration, Instant};

use esker_partition::BasinId;
use esker_partition::command::{
    DeleteIfEmpty, DropBasin, Expire, ForgetBasin, Kind, Outcome, RemoveExpiredTokens,
};
use esker_partition::reader::{Due, DueBySettings};
use esker_raft::{Group, ProposeError};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::cluster::READS_SETTINGS_VERSIONS;
use crate::core::Inner;
use crate::signal::Signal;
use visits::Visits;

/// Longest that a round waits for answers.
const ANSWERS_TIMEOUT: Duration = Duration::from_secs(2);
/// How often a waiting round checks for answers.
const LOOK_INTERVAL: Duration = Duration::from_millis(5);
/// How long an expired access token stays in the list, where its owner sees why it is refused.
const EXPIRED_TOKEN_RETENTION: Duration = Duration::from_secs(24 * 3600);
/// How often expired access tokens are looked for: each time, all are examined.
const EXPIRED_TOKENS_INTERVAL: Duration = Duration::from_secs(60);
/// Most access tokens that one command removes: some 100 KiB of ids.
const MAX_EXPIRED_TOKENS: usize = 1000;

type Answer = oneshot::Receiver<Result<Outcome, ProposeError>>;

/// Answers of a partition that did not come in time. Their commands are due again, so the outcomes are
/// ignored.
#[derive(Default)]
struct Late(Vec<Answer>);

impl Late {
    /// Whether all answers have come.
    fn have_come(&mut self) -> bool {
        self.0
            .retain_mut(|answer| matches!(answer.try_recv(), Err(TryRecvError::Empty)));
        self.0.is_empty()
    }

    /// Waits for an answer until the deadline; `None` if it is late or lost.
    fn wait(&mut self, mut answer: Answer, deadline: Instant) -> Option<Outcome> {
        loop {
            match answer.try_recv() {
                Ok(outcome) => return outcome.ok(),
                Err(TryRecvError::Closed) => return None,
                Err(TryRecvError::Empty) if Instant::now() < deadline => {
                    std::thread::sleep(LOOK_INTERVAL);
                }
                Err(TryRecvError::Empty) => {
                    self.0.push(answer);
                    return None;
                }
            }
        }
    }
}

/// The state of the thread.
#[derive(Default)]
struct Retention {
    /// When partitions are scanned, by partition.
    visits: Vec<Visits>,
    /// Late answers by partition, the catalog first.
    late: Vec<Late>,
    /// By basin that is being deleted, which partitions have dropped it.
    dropped: HashMap<BasinId, Vec<bool>>,
    /// When expired access tokens were last looked for.
    tokens_examined: Option<Instant>,
}

pub(crate) fn look_after_due(inner: &Weak<Inner>, signal: &Signal, interval: Duration) {
    let mut retention = Retention::default();
    while signal.wait(interval) {
        let Some(inner) = inner.upgrade() else {
            return;
        };
        let partitions = inner.partitions.len();
        retention.visits.resize_with(partitions, || Visits::Due);
        retention.late.resize_with(partitions + 1, Late::default);
        retention.propose_due(&inner);
        retention.finish_deleted_basins(&inner);
        retention.remove_expired_tokens(&inner);
    }
}

impl Retention {
    fn propose_due(&mut self, inner: &Inner) {
        let mut proposed = Vec::new();
        let now = Instant::now();
        let mut pages = 0;
        for (at, partition) in inner.partitions.iter().enumerate() {
            let visits = &mut self.visits[at];
            if !inner.leads(at as u64 + 1) {
                visits.restart();
                continue;
            }
            if !self.late[at + 1].have_come() {
                continue;
            }
            let Some(now_ms) = inner.ms_for_ages() else {
                continue;
            };
            let changes = partition.reader.due_changes();
            let Some(after) = visits.begin(now_ms, changes, now) else {
                continue;
            };
            pages += 1;
            let count = inner.options.streams_per_round;
            match partition.reader.due(after, count, now_ms) {
                Ok(page) => {
                    visits.scanned(&page, now);
                    if !page.due.is_empty() {
                        inner.release_reserve();
                        let answers = propose_all(inner, &partition.group, page.due);
                        proposed.push((at + 1, answers));
                    }
                }
                Err(error) => tracing::warn!(%error, "retention was not looked after"),
            }
        }
        inner.upkeep.scanned(pages);
        let deadline = Instant::now() + ANSWERS_TIMEOUT;
        for (partition, answers) in proposed {
            for answer in answers {
                self.late[partition].wait(answer, deadline);
            }
        }
    }

    /// Removes access tokens that expired some time ago. They have not been valid since.
    fn remove_expired_tokens(&mut self, inner: &Inner) {
        let examined = self.tokens_examined.map(|at| at.elapsed());
        let is_due = examined.is_none_or(|since| since >= EXPIRED_TOKENS_INTERVAL);
        if !is_due || !self.late[0].have_come() || !inner.leads(0) {
            return;
        }
        let Some(now_ms) = inner.ms_for_ages() else {
            return;
        };
        let before = now_ms.saturating_sub(EXPIRED_TOKEN_RETENTION.as_millis() as u64);
        let reader = &inner.catalog_reader;
        let ids = reader.tokens_expired_before(before, MAX_EXPIRED_TOKENS);
        if ids.len() < MAX_EXPIRED_TOKENS {
            self.tokens_examined = Some(Instant::now());
        }
        if ids.is_empty() {
            return;
        }
        inner.release_reserve();
        let command = Kind::RemoveExpiredTokens(RemoveExpiredTokens {
            ids,
            expired_before_ms: before,
        });
        if let Ok(answer) = inner.catalog.propose(command.into_bytes()) {
            let deadline = Instant::now() + ANSWERS_TIMEOUT;
            let outcome = self.late[0].wait(answer, deadline);
            if let Some(Outcome::ExpiredTokensRemoved(removed)) = outcome {
                tracing::info!(removed, "Removed expired access tokens");
            }
        }
    }

    /// Drops deleted basins in every partition that this node leads. Basins that all have dropped are removed
    /// from the catalog by the node that leads it, which sees in its own replicas what others have dropped.
    fn finish_deleted_basins(&mut self, inner: &Inner) {
        let deleting = inner.catalog_reader.deleting();
        let partitions = inner.partitions.len();
        self.dropped
            .retain(|id, _| deleting.iter().any(|basin| basin.id == *id));
        let deadline = Instant::now() + ANSWERS_TIMEOUT;
        for basin in deleting {
            let basin = basin.id;
            let dropped = self.dropped.entry(basin);
            let dropped = dropped.or_insert_with(|| vec![false; partitions]);
            let mut proposed = Vec::new();
            for (at, partition) in inner.partitions.iter().enumerate() {
                dropped[at] |= partition.reader.is_dropped(basin);
                if dropped[at] || !self.late[at + 1].have_come() || !inner.leads(at as u64 + 1) {
                    continue;
                }
                inner.release_reserve();
                let command = Kind::DropBasin(DropBasin { basin: basin.0 });
                // A refused or lost command is proposed again in the next round.
                if let Ok(answer) = partition.group.propose(command.into_bytes()) {
                    proposed.push((at, answer));
                }
            }
            for (at, answer) in proposed {
                let outcome = self.late[at + 1].wait(answer, deadline);
                dropped[at] = matches!(outcome, Some(Outcome::BasinDropped));
            }
            let all_have = dropped.iter().all(|is_dropped| *is_dropped);
            if all_have && inner.leads(0) && self.late[0].have_come() {
                let command = Kind::ForgetBasin(ForgetBasin { basin: basin.0 });
                if let Ok(answer) = inner.catalog.propose(command.into_bytes()) {
                    self.late[0].wait(answer, deadline);
                }
            }
        }
    }
}

/// Proposes what is due. A refused or lost command is due again in a later round.
fn propose_all(inner: &Inner, group: &Group<Outcome>, due: Vec<DueBySettings>) -> Vec<Answer> {
    let partition = group.id().0;
    let is_read = inner.peers.is_none()
        || (inner.member_not_reading(partition, READS_SETTINGS_VERSIONS)).is_none();
    let at_ms = inner.stamp_ms();
    let commands = due
        .into_iter()
        .map(|one| command_for(one.due, is_read.then_some(one.settings_version), at_ms));
    commands
        .filter_map(|command| group.propose(command.into_bytes()).ok())
        .collect()
}

fn command_for(due: Due, if_settings_version: Option<u64>, at_ms: u64) -> Kind {
    match due {
        Due::Expire { stream, up_to } => Kind::Expire(Expire {
            stream: stream.0,
            up_to,
            at_ms,
            if_settings_version,
        }),
        Due::DeleteIfEmpty { stream, since_ms } => Kind::DeleteIfEmpty(DeleteIfEmpty {
            stream: stream.0,
            since_ms,
            if_settings_version,
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_that_does_not_come_is_waited_for_until_the_deadline_and_owed_from_then_on() {
        let mut late = Late::default();
        let (answers, answer) = oneshot::channel();
        let started = Instant::now();
        let deadline = started + Duration::from_millis(50);
        assert!(late.wait(answer, deadline).is_none());
        assert!(Instant::now() >= deadline);
        assert!(!late.have_come());
        // The next answer of the round takes no more time, and one that has come is taken all the same.
        let (there, answer) = oneshot::channel();
        there.send(Ok(Outcome::BasinDropped)).unwrap();
        let outcome = late.wait(answer, deadline);
        assert!(matches!(outcome, Some(Outcome::BasinDropped)));
        answers.send(Ok(Outcome::BasinDropped)).unwrap();
        assert!(late.have_come());
        let (lost, answer) = oneshot::channel();
        drop(lost);
        assert!(late.wait(answer, deadline).is_none());
        assert!(late.have_come());
    }
}
