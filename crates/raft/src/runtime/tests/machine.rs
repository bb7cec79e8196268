//! A state machine that remembers the commands it was given, and a store that survives it.

use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::engine::{Committed, Membership};

/// A command with so many bytes behind it, which the machine does not keep.
pub fn padded(command: &str, padding: usize) -> Vec<u8> {
    [command, &".".repeat(padding)].concat().into_bytes()
}

/// What a command is answered.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Answer {
    /// The command itself.
    pub command: String,
    /// How many commands were applied before it, ever.
    pub position: usize,
    /// Its place in the log.
    pub lsn: Lsn,
}

/// The database below a [`Machine`]; clones share it. Of what was applied, a new machine finds what
/// was flushed.
#[derive(Clone, Default)]
pub struct Store(Arc<Mutex<Inner>>);

#[derive(Default)]
struct Inner {
    live: State,
    flushed: State,
    /// So many times apply fails; what it was given is noted.
    failures: usize,
    refused: Vec<Vec<Lsn>>,
}

#[derive(Clone, Default)]
struct State {
    applied: Lsn,
    commands: Vec<String>,
}

impl Store {
    /// Opens a state machine on what was flushed.
    pub fn machine(&self) -> Machine {
        let mut inner = self.0.lock();
        inner.live = inner.flushed.clone();
        Machine(self.clone())
    }

    /// All commands applied so far, in order.
    pub fn commands(&self) -> Vec<String> {
        self.0.lock().live.commands.clone()
    }

    pub fn applied(&self) -> Lsn {
        self.0.lock().live.applied
    }

    /// What is applied now survives; returns up to where.
    pub fn flush(&self) -> Lsn {
        let mut inner = self.0.lock();
        inner.flushed = inner.live.clone();
        inner.live.applied
    }

    /// The next so many calls of apply fail.
    pub fn fail_applies(&self, times: usize) {
        self.0.lock().failures = times;
    }

    /// What the calls of apply that failed were given.
    pub fn refused(&self) -> Vec<Vec<Lsn>> {
        self.0.lock().refused.clone()
    }
}

/// The state machine.
pub struct Machine(Store);

impl StateMachine for Machine {
    type Output = Answer;

    fn applied(&self) -> Lsn {
        self.0.applied()
    }

    fn membership(&self) -> Membership {
        Membership {
            voters: vec![NodeId(1)],
            learners: Vec::new(),
        }
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Answer>,
    ) -> Result<(), ApplyError> {
        let mut inner = self.0.0.lock();
        if inner.failures > 0 {
            inner.failures -= 1;
            inner.refused.push(entries.iter().map(|e| e.lsn).collect());
            // A failed apply may have got half-way with its answers.
            outputs.push(Answer {
                command: "half-way".to_owned(),
                position: 0,
                lsn: Lsn(0),
            });
            return Err(ApplyError("no space left in the database".to_owned()));
        }
        for entry in entries {
            assert_eq!(entry.lsn, inner.live.applied.next(), "no gap, none twice");
            inner.live.applied = entry.lsn;
            if let Some(command) = &entry.command {
                let command = String::from_utf8(command.to_vec()).unwrap();
                let command = command.trim_end_matches('.').to_owned();
                outputs.push(Answer {
                    command: command.clone(),
                    position: inner.live.commands.len(),
                    lsn: entry.lsn,
                });
                inner.live.commands.push(command);
            }
        }
        Ok(())
    }
}
