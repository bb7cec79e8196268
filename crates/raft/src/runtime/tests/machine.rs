//! A state machine that remembers the commands it was given, and a store that survives it.

use std::sync::Arc;

use parking_lot::{Condvar, Mutex, MutexGuard};

use super::*;
use crate::MAINTENANCE_INTERVAL;
use crate::engine::{Committed, Membership};
use crate::ids::Term;

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
pub struct Store(Arc<(Mutex<Inner>, Condvar)>);

#[derive(Default)]
struct Inner {
    live: State,
    flushed: State,
    /// Applies, or the writing of snapshots, wait until this is over.
    hold_applies: bool,
    hold_snapshots: bool,
    /// What becomes of the next snapshots; they succeed after that.
    snapshots: Vec<Fate>,
    /// How often it was given time for maintenance.
    maintained: usize,
    /// How long maintenance may wait, if not as long as by default.
    maintenance_interval: Option<Duration>,
    /// How many were begun, and how many are being written.
    begun: usize,
    writing: usize,
    /// What the sink heard.
    heard: Vec<Result<Lsn, String>>,
    /// So many calls of apply fail; their entries are noted.
    failures: usize,
    refused: Vec<Vec<Lsn>>,
}

#[derive(Clone, Default)]
struct State {
    applied: Lsn,
    term: Term,
    commands: Vec<String>,
}

/// How a snapshot fails.
#[derive(Clone, Copy)]
pub enum Fate {
    Error,
    Panic,
}

impl Store {
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.0.0.lock()
    }

    /// Changes something that a test may wait for.
    fn change(&self, change: impl FnOnce(&mut Inner)) {
        change(&mut self.lock());
        self.0.1.notify_all();
    }

    fn wait_while(&self, held: impl Fn(&Inner) -> bool) -> MutexGuard<'_, Inner> {
        let mut inner = self.lock();
        while held(&inner) {
            self.0.1.wait(&mut inner);
        }
        inner
    }

    pub fn hold_applies(&self, hold: bool) {
        self.change(|inner| inner.hold_applies = hold);
    }

    pub fn hold_snapshots(&self, hold: bool) {
        self.change(|inner| inner.hold_snapshots = hold);
    }

    /// The next snapshots fail like this, the last one first.
    pub fn fail_snapshots(&self, fates: &[Fate]) {
        self.lock().snapshots = fates.to_vec();
    }

    /// How many snapshots were begun, and how many are being written.
    pub fn snapshots(&self) -> (usize, usize) {
        let inner = self.lock();
        (inner.begun, inner.writing)
    }

    /// How often it was given time for maintenance.
    pub fn maintained(&self) -> usize {
        self.lock().maintained
    }

    /// Maintenance may wait for so long from now on.
    pub fn maintain_every(&self, interval: Duration) {
        self.lock().maintenance_interval = Some(interval);
    }

    /// Calls of the sink: what is covered, or the error.
    pub fn heard(&self) -> Vec<Result<Lsn, String>> {
        self.lock().heard.clone()
    }

    /// What survives, and its term.
    pub fn flushed(&self) -> (Lsn, Term) {
        let inner = self.lock();
        (inner.flushed.applied, inner.flushed.term)
    }

    /// Opens a state machine on what was flushed.
    pub fn machine(&self) -> Machine {
        let mut inner = self.lock();
        inner.live = inner.flushed.clone();
        Machine(self.clone())
    }

    /// All commands applied so far, in order.
    pub fn commands(&self) -> Vec<String> {
        self.lock().live.commands.clone()
    }

    pub fn applied(&self) -> Lsn {
        self.lock().live.applied
    }

    /// What is applied now survives; returns up to where.
    pub fn flush(&self) -> Lsn {
        let mut inner = self.lock();
        inner.flushed = inner.live.clone();
        inner.live.applied
    }

    /// The next so many calls of apply fail.
    pub fn fail_applies(&self, times: usize) {
        self.lock().failures = times;
    }

    /// What the calls of apply that failed were given.
    pub fn refused(&self) -> Vec<Vec<Lsn>> {
        self.lock().refused.clone()
    }
}

/// The state machine.
pub struct Machine(Store);

impl StateMachine for Machine {
    type Output = Answer;
    type Capture = Captured;

    fn maintain(&mut self) {
        self.0.lock().maintained += 1;
    }

    fn maintenance_interval(&self) -> Duration {
        let interval = self.0.lock().maintenance_interval;
        interval.unwrap_or(MAINTENANCE_INTERVAL)
    }

    fn applied(&self) -> Lsn {
        self.0.applied()
    }

    fn membership(&self) -> Membership {
        Membership {
            voters: vec![NodeId(1)],
            ..Membership::default()
        }
    }

    fn apply(
        &mut self,
        entries: &[Committed],
        outputs: &mut Vec<Answer>,
    ) -> Result<(), ApplyError> {
        let mut inner = self.0.wait_while(|inner| inner.hold_applies);
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
            inner.live.term = entry.term;
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

    fn begin_snapshot(&mut self) -> Captured {
        let mut inner = self.0.lock();
        inner.begun += 1;
        Captured {
            store: self.0.clone(),
            state: inner.live.clone(),
        }
    }
}

/// A state at one moment. To write it is to flush the store up to there.
pub struct Captured {
    store: Store,
    state: State,
}

impl Capture for Captured {
    fn write(self) -> Result<StoredSnapshot, SnapshotError> {
        self.store.change(|inner| inner.writing += 1);
        let mut inner = self.store.wait_while(|inner| inner.hold_snapshots);
        inner.writing -= 1;
        match inner.snapshots.pop() {
            Some(Fate::Error) => return Err(SnapshotError("no space for it".to_owned())),
            Some(Fate::Panic) => panic!("writing a snapshot: a panic, on purpose"),
            None => {}
        }
        let snapshot = StoredSnapshot {
            last_included_index: self.state.applied,
            term: self.state.term,
            peers: Membership {
                voters: vec![NodeId(1)],
                ..Membership::default()
            },
            data: self.state.commands.join(",").into_bytes().into(),
        };
        if self.state.applied > inner.flushed.applied {
            inner.flushed = self.state;
        }
        Ok(snapshot)
    }
}

impl SnapshotSink for Store {
    fn taken(&self, _group: GroupId, snapshot: &StoredSnapshot) {
        self.change(|inner| inner.heard.push(Ok(snapshot.last_included_index)));
    }

    fn failed(&self, _group: GroupId, error: &SnapshotError) {
        self.change(|inner| inner.heard.push(Err(error.to_string())));
    }
}
