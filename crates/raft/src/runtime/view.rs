//! What is known of a group without its engine's lock: role, leader and position as of the last step. Whoever
//! looks at them, which every request does, never waits for a step.

use std::sync::Arc;

use parking_lot::Mutex;

use crate::engine::{Engine, Membership, Role, Status};
use crate::ids::{Lsn, NodeId, Term};

/// Role, leader and position.
#[derive(Clone, Copy)]
pub(super) struct Position {
    pub role: Role,
    pub leader: Option<NodeId>,
    pub term: Term,
    /// The term in which this member leads, if it does.
    pub leading_term: Option<Term>,
    pub is_transferring: bool,
    pub has_unconfirmed_change: bool,
    pub last: Lsn,
    pub committed: Lsn,
    pub applied: Lsn,
    pub floor: Lsn,
    pub log_start: Lsn,
    pub log_bytes: u64,
    pub alarm: bool,
    pub needs_ticks: bool,
}

impl Position {
    fn of(engine: &Engine) -> Position {
        Position {
            role: engine.role(),
            leader: engine.leader(),
            term: engine.term(),
            leading_term: engine.leading_term(),
            is_transferring: engine.is_transferring(),
            has_unconfirmed_change: engine.has_unconfirmed_change(),
            last: engine.last(),
            committed: engine.committed(),
            applied: engine.applied(),
            floor: engine.floor(),
            log_start: engine.log_start(),
            log_bytes: engine.log_bytes(),
            alarm: engine.alarm(),
            needs_ticks: engine.needs_ticks(),
        }
    }
}

/// See the [module's head](self).
pub(super) struct View {
    now: Mutex<(Position, Arc<Membership>)>,
    /// The last details that were asked for, for those who ask while the engine is busy.
    details: Mutex<Status>,
}

impl View {
    pub fn new(engine: &Engine) -> View {
        let membership = Arc::new(engine.membership().clone());
        View {
            now: Mutex::new((Position::of(engine), membership)),
            details: Mutex::new(engine.status()),
        }
    }

    /// After a step, before anybody is woken by what it has done.
    pub fn publish(&self, engine: &Engine) {
        let position = Position::of(engine);
        if position.role != self.position().role {
            self.refresh(engine);
        }
        let mut now = self.now.lock();
        now.0 = position;
        if *now.1 != *engine.membership() {
            now.1 = Arc::new(engine.membership().clone());
        }
    }

    pub fn position(&self) -> Position {
        self.now.lock().0
    }

    pub fn membership(&self) -> Arc<Membership> {
        self.now.lock().1.clone()
    }

    /// Details as of now.
    pub fn refresh(&self, engine: &Engine) -> Status {
        let status = engine.status();
        self.details.lock().clone_from(&status);
        status
    }

    /// The last known details, with what is known of now.
    pub fn last_details(&self) -> Status {
        let (now, membership) = {
            let now = self.now.lock();
            (now.0, now.1.clone())
        };
        let mut status = self.details.lock().clone();
        if now.role != Role::Leader {
            status.peers.clear();
        }
        Status {
            role: now.role,
            leader: now.leader,
            term: now.term,
            last: now.last,
            committed: now.committed,
            applied: now.applied,
            floor: now.floor,
            log_start: now.log_start,
            entries_above_floor: now.last.0.saturating_sub(now.floor.0),
            membership: Membership::clone(&membership),
            has_unconfirmed_change: now.has_unconfirmed_change,
            ..status
        }
    }
}
