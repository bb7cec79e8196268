//! How hosts take snapshots of their own and install those of peers.

use super::host::Host;
use super::mutants::Mutant;
use super::state::{State, Stored};
use super::world::{Happening, World};
use crate::engine::{Event, LogFloor, Membership};
use crate::ids::{Lsn, Term};
use crate::transfer::{Manifest, SenderEvent};

impl World {
    /// A host begins a snapshot by itself.
    pub fn begin_by_itself(&mut self, id: u64) {
        let host = self.host(id);
        if host.engine.is_none() || host.capture.is_some() || host.state.at.lsn.0 == 0 {
            return;
        }
        self.begin_capture(id);
        self.step(id, Event::SnapshotBegun);
    }

    /// Between two applies: captures the state, index and content.
    pub fn begin_capture(&mut self, id: u64) {
        let most = match self.between(0, 5) {
            0 if !self.faults_ended => 600,
            _ => 20,
        };
        let delay = self.between(1, most);
        let host = self.host_mut(id);
        host.capture = Some(host.state.clone());
        let boot = host.boot;
        self.later(delay, Happening::Captured { id, boot });
    }

    /// The snapshot is written, or not.
    pub fn captured(&mut self, id: u64) {
        let fails = !self.faults_ended && self.chance(5);
        let mutant = self.mutant;
        let files = self.scenario.files;
        let host = self.host_mut(id);
        let Some(mut state) = host.capture.take() else {
            return;
        };
        match mutant {
            // The index is that of the beginning, the content that of the end; or the reverse.
            Some(Mutant::CaptureAfterApply) => {
                state.lines = host.state.lines.clone();
            }
            Some(Mutant::IndexAfterCapture) => {
                state.at = host.state.at;
                state.membership = host.state.membership.clone();
            }
            Some(Mutant::DropMembership) => state.membership = Membership::default(),
            Some(Mutant::BootstrapInSnapshot) if !host.bootstrap.voters.is_empty() => {
                state.membership = host.bootstrap.clone();
            }
            Some(Mutant::ForgetPromotions) => state.membership.to_promote.clear(),
            Some(Mutant::SenderNotInSnapshot) => {
                state.membership.voters.retain(|v| v.0 != id);
            }
            _ => {}
        }
        // A snapshot that covers more was installed meanwhile.
        let overtaken = state.at.lsn < host.durable.at.lsn;
        if fails || host.full || overtaken {
            self.reached.failed_snapshots += 1;
            return self.step(id, Event::SnapshotFailed);
        }
        self.reached.snapshots += 1;
        if !files && self.chance(2) {
            // The engine adds term and membership, which must be those of the state.
            let last_included_index = state.at.lsn;
            let bytes = Stored::of(&state, id, 0, false).files.concat().into();
            self.host_mut(id).described = Some(state);
            self.step(
                id,
                Event::SnapshotBytes {
                    last_included_index,
                    bytes,
                },
            );
            self.host_mut(id).described = None;
            return;
        }
        let manifest = self.store(id, state, files);
        let taken = self.taken(&manifest);
        self.step(id, taken);
    }

    /// The engine has completed the description of the captured bytes.
    pub fn store_bytes(
        &mut self,
        id: u64,
        lsn: Lsn,
        term: Term,
        peers: &Membership,
    ) -> Option<Event> {
        let state = self.host_mut(id).described.take()?;
        if self.mutant.is_none() && (state.at, &state.membership) != (LogFloor { lsn, term }, peers)
        {
            let what = format!("{id} describes its snapshot of {lsn} as {term}, {peers:?}");
            self.judge(Err(what));
        }
        let manifest = self.store(id, state, false);
        Some(self.taken(&manifest))
    }

    fn store(&mut self, id: u64, state: State, files: bool) -> Manifest {
        let host = self.host_mut(id);
        let stored = Stored::of(&state, id, host.next_checkpoint, files);
        host.next_checkpoint += 1;
        let restored = State::restore(&stored.manifest, &stored.files);
        host.durable = restored.unwrap_or(state);
        let older: Vec<_> = host.stored.iter().map(|s| s.manifest.checkpoint).collect();
        let manifest = stored.manifest.clone();
        host.stored.push(stored);
        self.sender(id, SenderEvent::Publish(Box::new(manifest.clone())));
        for checkpoint in older {
            self.sender(id, SenderEvent::Retire(checkpoint));
        }
        manifest
    }

    /// The event for a stored snapshot.
    pub fn taken(&self, manifest: &Manifest) -> Event {
        Event::SnapshotTaken {
            last_included_index: manifest.last_included_index,
            term: manifest.term,
            peers: (!manifest.peers.voters.is_empty()).then(|| manifest.peers.clone()),
        }
    }

    /// An install ends: the fetched snapshot becomes the state, or not.
    pub fn installed(&mut self, id: u64) {
        // The mistake of this mutant has an effect only when an install fails.
        let one_in = match self.is(Mutant::ForgetBeforeInstalled) {
            true => 2,
            false => 12,
        };
        let fails = !self.faults_ended && self.chance(one_in);
        let host = self.host_mut(id);
        let Some(offer) = host.installing.take() else {
            return;
        };
        let checkpoint = offer.checkpoint;
        if fails && self.mutant != Some(Mutant::StepBeforeTheFiles) {
            self.end_fetch(id);
            return self.step(id, Event::InstallFailed { checkpoint });
        }
        let host = self.host_mut(id);
        let files = host.partial.as_ref().map(|p| p.contents());
        let Some(mut state) = files.and_then(|files| State::restore(&offer, &files)) else {
            let what = format!("{id} installs what is not all there");
            return self.judge(Err(what));
        };
        let verdict = self.oracle.state(id, &state, "installed");
        self.judge(verdict);
        self.end_fetch(id);
        self.reached.installs += 1;
        let keeps_membership = self.is(Mutant::InstallWithoutMembership);
        let host = self.host_mut(id);
        if keeps_membership {
            state.membership = host.state.membership.clone();
        }
        host.partial = None;
        host.become_state(state.clone());
        self.step(id, Event::SnapshotInstalled { checkpoint });
        // In half of the cases the installed snapshot is stored as a snapshot of this host.
        if self.broken.is_none() && self.host(id).engine.is_some() && self.chance(2) {
            let files = self.scenario.files;
            // A snapshot that is being written has ended, because it covers less.
            self.host_mut(id).capture = None;
            let manifest = self.store(id, state, files);
            let taken = self.taken(&manifest);
            self.step(id, taken);
        }
    }
}

impl Host {
    /// Replaces the state, and drops queued entries, which it covers.
    fn become_state(&mut self, state: State) {
        self.to_apply.clear();
        self.waiters.skipped(state.at.lsn);
        self.set_handed(state.at.lsn.0);
        self.durable = state.clone();
        self.state = state;
    }
}
