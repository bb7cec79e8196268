//! When a request's command passed each stage, for traces.
//!
//! Whoever wants to know runs the request within [`Stages::watch`]: the stages that its task passes are noted
//! there. Without it nothing is noted. Of several commands of one request, the last is noted; appends of
//! sessions are proposed by tasks of their own, and not noted.

use std::sync::Arc;
use std::time::SystemTime;

use esker_partition::command::Outcome;
use esker_raft::{Attached, Group, Guard, Observer, ProposeError, Sequence};
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What a command passes, in this order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stage {
    /// It has its part of the budgets of what is in flight.
    Admitted,
    /// It is in the queue of the log's writer.
    Proposed,
    /// It is durable in the log, committed, and applied next.
    Committed,
    /// It is applied and answered.
    Applied,
}

const STAGES: usize = 4;

/// When each stage was passed.
#[derive(Clone, Default)]
pub struct Stages(Arc<Mutex<[Option<SystemTime>; STAGES]>>);

tokio::task_local! {
    static WATCHED: Stages;
}

impl Stages {
    /// Runs a request, and notes the stages that its task passes.
    pub async fn watch<T>(&self, request: impl Future<Output = T>) -> T {
        WATCHED.scope(self.clone(), request).await
    }

    /// When a stage was passed, if it was.
    pub fn time_of(&self, stage: Stage) -> Option<SystemTime> {
        self.0.lock()[stage as usize]
    }

    fn note(&self, stage: Stage) {
        self.0.lock()[stage as usize] = Some(SystemTime::now());
    }
}

/// Notes that this task's command has passed a stage, if somebody wants to know.
pub(crate) fn note(stage: Stage) {
    let _ = WATCHED.try_with(|stages| stages.note(stage));
}

/// Proposes a command, and notes when it is proposed and when it is committed.
pub(crate) fn propose(
    group: &Group<Outcome>,
    command: Vec<u8>,
    guard: Option<Guard>,
    sequence: Option<Arc<Sequence>>,
) -> Result<oneshot::Receiver<Result<Outcome, ProposeError>>, ProposeError> {
    let observer = WATCHED.try_with(|stages| {
        let stages = stages.clone();
        Box::new(move || stages.note(Stage::Committed)) as Observer
    });
    // Before the command is in the queue: it may be committed before the call returns.
    note(Stage::Proposed);
    group.propose_with(
        command,
        Attached {
            guard,
            observer: observer.ok(),
            sequence,
        },
    )
}
