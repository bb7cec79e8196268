//! The lock of a group's engine, and the events that are stepped when it is released.

use std::ops::{Deref, DerefMut};
use std::sync::atomic::Ordering;
use std::time::Duration;

use parking_lot::MutexGuard;

use super::Shared;
use crate::engine::{Engine, Event, LogRead, ReadFailure, Status, Ticket};

/// How long a report on a group waits for its engine, which is usually busy for microseconds.
const REPORT_WAIT: Duration = Duration::from_millis(2);

/// The engine, locked. What was posted meanwhile is stepped when it is dropped.
pub(in crate::runtime) struct Locked<'a, O: Send + 'static> {
    shared: &'a Shared<O>,
    /// Until the drop.
    engine: Option<MutexGuard<'a, Engine>>,
}

impl<O: Send + 'static> Deref for Locked<'_, O> {
    type Target = Engine;

    fn deref(&self) -> &Engine {
        self.engine.as_ref().expect("it is there until the drop")
    }
}

impl<O: Send + 'static> DerefMut for Locked<'_, O> {
    fn deref_mut(&mut self) -> &mut Engine {
        self.engine.as_mut().expect("it is there until the drop")
    }
}

impl<O: Send + 'static> Drop for Locked<'_, O> {
    fn drop(&mut self) {
        self.engine = None;
        self.shared.step_posted();
    }
}

impl<O: Send + 'static> Shared<O> {
    /// Waits for the engine: for threads of this group alone, and for what is rare.
    pub(in crate::runtime) fn lock(&self) -> Locked<'_, O> {
        Locked {
            shared: self,
            engine: Some(self.engine.lock()),
        }
    }

    /// The engine if nobody has it.
    pub(super) fn try_lock(&self) -> Option<Locked<'_, O>> {
        let engine = self.engine.try_lock()?;
        Some(Locked {
            shared: self,
            engine: Some(engine),
        })
    }

    /// Steps what is in the mailbox, unless somebody has the engine, who then does it.
    pub(super) fn step_posted(&self) {
        while !self.mailbox.is_empty() {
            let Some(mut engine) = self.engine.try_lock() else {
                return;
            };
            loop {
                if self.mailbox.take_proposals() && !self.proposals.log_is_busy() {
                    // Otherwise they are made when the log is not busy any more.
                    self.propose_waiting(&mut engine);
                }
                match self.mailbox.take() {
                    Some(event) => self.step_event(&mut engine, event),
                    None => break,
                }
            }
        }
    }

    fn step_event(&self, engine: &mut Engine, event: Event) {
        let durable = match event {
            Event::Receive(_) | Event::Unreachable(_) | Event::Tick
                if self.stopping.load(Ordering::Relaxed) =>
            {
                return;
            }
            Event::Persisted { number } => Some(number),
            _ => None,
        };
        let actions = engine.step(event);
        self.carry_out(engine, actions);
        if let Some(number) = durable {
            self.proposals.durable(number);
            if self.has_others() && !self.proposals.log_is_busy() {
                self.propose_waiting(engine);
            }
        }
    }

    /// Begins a read that was registered with this ticket.
    pub(in crate::runtime) fn read_index(&self, ticket: Ticket) {
        if self.mailbox.event(Event::ReadIndex { ticket }) {
            self.step_posted();
        } else {
            self.requests.read_answered(ticket, Err(ReadFailure::Busy));
        }
    }

    /// Reads entries for the engine, on a thread for that.
    pub(super) fn read_log(&self, read: LogRead) {
        let (reader, this) = (self.reader.clone(), self.this.clone());
        self.log_fetcher.submit(move || {
            let entries = reader.entries(read.low, read.high, read.max_bytes);
            drop(reader);
            if let Some(this) = this.upgrade() {
                this.mailbox.answer(Event::LogRead { read, entries });
                this.step_posted();
            }
        });
    }

    /// Members, their progress, transfers. If the engine is busy for long: as of the last time that they were known.
    pub(in crate::runtime) fn details(&self) -> Status {
        match self.engine.try_lock_for(REPORT_WAIT) {
            Some(engine) => {
                let engine = Locked {
                    shared: self,
                    engine: Some(engine),
                };
                self.view.refresh(&engine)
            }
            None => self.view.last_details(),
        }
    }
}
