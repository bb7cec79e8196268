//! Waits for the answer to a proposal, no longer than a client does.
//!
//! A proposal that was accepted is answered once it is durable and applied. On a disk that takes no writes
//! that may be hours later, and a client that has stopped waiting by then never receives the cause. So a
//! proposal that waits for such a disk is answered early: its outcome is unknown, and the answer has the
//! cause.

use std::time::Duration;

use esker_partition::command::Outcome;
use esker_raft::{Group, ProposeError};
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::core::Inner;
use crate::error::Error;
use crate::stages::{self, Stage};

/// How long a proposal waits while the disk refuses writes: within the 5 s that the official clients wait.
const REFUSED_TIMEOUT: Duration = Duration::from_secs(2);
/// How long a proposal waits while nothing of its partition is applied although the disk refuses nothing:
/// the disk is slow, or hangs. Longer than a slow disk takes, within the 30 s that `esker stream append`
/// waits.
const HANG_TIMEOUT: Duration = Duration::from_secs(20);
/// A write of the log that takes longer than this makes the node unhealthy.
const HEALTHY_WRITE: Duration = Duration::from_secs(10);
/// How often a waiting proposal checks for a cause.
pub(crate) const LOOK_INTERVAL: Duration = Duration::from_millis(250);

type Answer = oneshot::Receiver<Result<Outcome, ProposeError>>;

impl Inner {
    /// Waits for the answer to a proposal of a group.
    ///
    /// # Errors
    ///
    /// Those of the proposal; [`Error::Unknown`] with the cause if the disk prevents an answer.
    pub(crate) async fn answered(
        &self,
        group: &Group<Outcome>,
        answer: Answer,
    ) -> Result<Outcome, Error> {
        let began = Instant::now();
        let answered = self.answer_in_time(group, answer).await;
        let took = began.elapsed();
        self.latencies.note(took);
        self.sampled_latencies.note(took);
        match answered {
            Ok(answered) => Ok(answered?),
            Err(why) => Err(Error::Unknown(why)),
        }
    }

    /// Waits for the answer to a proposal. The error is the reason why it is not waited for any longer; the
    /// command may still be applied.
    pub(crate) async fn answer_in_time(
        &self,
        group: &Group<Outcome>,
        mut answer: Answer,
    ) -> Result<Result<Outcome, ProposeError>, String> {
        let mut refused_since = None;
        let mut applied = None;
        loop {
            tokio::select! {
                biased;
                answered = &mut answer => {
                    stages::note(Stage::Applied);
                    return Ok(answered.unwrap_or(Err(ProposeError::Unknown)));
                }
                () = self.looks.next() => {}
            }
            let now = Instant::now();
            let status = group.status();
            match status.stalled {
                true if now - *refused_since.get_or_insert(now) >= REFUSED_TIMEOUT => {
                    let why = self.stall_cause(group.id().0);
                    return Err(unknown(&why));
                }
                true => {}
                false => refused_since = None,
            }
            match applied {
                Some((lsn, since)) if lsn == status.applied => {
                    if now - since >= HANG_TIMEOUT {
                        let why = self.hanging_write();
                        let why = why.unwrap_or_else(|| {
                            format!("nothing was applied for {} s", HANG_TIMEOUT.as_secs())
                        });
                        return Err(unknown(&why));
                    }
                }
                _ => applied = Some((status.applied, now)),
            }
        }
    }

    /// The message that a write of the log takes long, if it does.
    pub(crate) fn hanging_write(&self) -> Option<String> {
        let takes = self.raft.writer().writing_for()?;
        (takes >= HEALTHY_WRITE).then(|| {
            format!(
                "the disk of {} has not answered to a write of the log for {} s",
                self.data_dir.log().display(),
                takes.as_secs()
            )
        })
    }
}

fn unknown(why: &str) -> String {
    format!(
        "not known to have happened: {why}. It is written as soon as that is over, also if nobody waits for it: \
         look before it is repeated"
    )
}
