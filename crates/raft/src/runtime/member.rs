//! What a group needs when there are others: who it is to them, where its snapshots are, what it
//! fetches. And how such a group is opened.

use std::sync::Arc;

use parking_lot::Mutex;

use super::error::NodeError;
use super::snapshot_receiver::{FetchHost, FetchSetup, Fetches};
use super::snapshot_sender::SnapshotSender;
use super::state_machine::{SnapshotError, SnapshotSink, StateMachine};
use crate::engine::{LogFloor, Membership};
use crate::ids::{GroupId, Lineage, NodeId};
use crate::log::SharedLog;
use crate::message::{EndReason, Envelope, Gate, Identity, Payload};
use crate::store::{DiskFaults, SnapshotStore, Stored, StoredSnapshot};
use crate::transfer::{Manifest, OFFER_FORMAT, ReceiverConfig, ReceiverEvent};
use crate::transport::Transport;

/// What is said of a group when it is opened among others.
#[derive(Clone)]
pub struct GroupOptions {
    /// Its number, the same on all its members.
    pub id: GroupId,
    /// Its history.
    pub lineage: Lineage,
    /// What it means if the node's log knows nothing of the group.
    pub founding: ClusterInit,
    /// Hears of the snapshots that this member takes.
    pub sink: Option<Arc<dyn SnapshotSink>>,
    /// For tests: faults of the disk under the snapshots.
    pub faults: DiskFaults,
}

/// What it means if a node's log knows nothing of a group. If it does, none of this counts: a member goes
/// on from what its log says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterInit {
    /// This is the first start: the group is founded here and now, by these; or by nobody, and this node
    /// is to be added to a group that there is.
    By(Vec<NodeId>),
    /// This member has been opened before, so its log is lost, and with it what it has promised others:
    /// it is not opened.
    Never,
}

impl GroupOptions {
    /// A group that these voters found together; each of them says the same. For the very first start
    /// alone, and for another try if that one was interrupted; from then on it is
    /// [`GroupOptions::reopening`]. A voter that says this again after all of its disk was lost, or
    /// replaced, votes a second time under its number, and what a majority had agreed on may be undone:
    /// nothing on the new disk tells this library that there was another one.
    pub fn founded_by(id: GroupId, founders: &[NodeId]) -> GroupOptions {
        let mut founders = founders.to_vec();
        founders.sort_unstable();
        founders.dedup();
        GroupOptions {
            id,
            lineage: Lineage::default(),
            founding: ClusterInit::By(founders),
            sink: None,
            faults: DiskFaults::default(),
        }
    }

    /// A group that there is: its leader is told to add this node. Once it votes, it is
    /// [`GroupOptions::reopening`] as well.
    pub fn joining(id: GroupId) -> GroupOptions {
        GroupOptions::founded_by(id, &[])
    }

    /// A group that this node is a member of since an earlier start. Without a log of it, it is
    /// [`NodeError::LogLost`]: remove the member, and let it join under a new number.
    pub fn reopening(id: GroupId) -> GroupOptions {
        GroupOptions {
            founding: ClusterInit::Never,
            ..GroupOptions::founded_by(id, &[])
        }
    }
}

pub(super) struct Member {
    pub identity: Identity,
    pub store: Arc<SnapshotStore>,
    pub snapshot_sender: Arc<SnapshotSender>,
    pub transport: Arc<dyn Transport>,
    pub receiver: ReceiverConfig,
    pub fetches: Fetches,
    /// For what does not reach the engine.
    gate: Mutex<Gate>,
}

impl Member {
    pub fn new(
        identity: Identity,
        store: Arc<SnapshotStore>,
        snapshot_sender: Arc<SnapshotSender>,
        transport: Arc<dyn Transport>,
        receiver: ReceiverConfig,
    ) -> Member {
        Member {
            identity,
            store,
            snapshot_sender,
            transport,
            receiver,
            fetches: Fetches::default(),
            gate: Mutex::new(Gate::new(identity)),
        }
    }

    /// What is the transfers'. Answers what is the engine's.
    pub fn receive(&self, message: Envelope) -> Option<Envelope> {
        let from = message.sender.node;
        match &message.payload {
            Payload::Fetch(_) | Payload::Chunk(_) | Payload::Ended(_) | Payload::NewerOffer(_) => {
                if self.gate.lock().admit(&message).is_err() {
                    return None;
                }
            }
            Payload::Progress(progress) => {
                let mine = progress.source == self.identity.node;
                if mine && self.gate.lock().admit(&message).is_ok() {
                    self.snapshot_sender
                        .note_progress(from, progress.checkpoint);
                }
                return Some(message);
            }
            _ => return Some(message),
        }
        match message.payload {
            Payload::Fetch(fetch) => self.snapshot_sender.fetch(self.identity, from, fetch),
            Payload::Chunk(chunk) => self.fetches.deliver(from, ReceiverEvent::Chunk(chunk)),
            Payload::NewerOffer(offer) => {
                let group = self.identity.group;
                tracing::warn!(
                    %group, %from, format = offer.format, known = OFFER_FORMAT,
                    "refusing a snapshot of a newer format: upgrade this node, or it cannot catch up"
                );
                return Some(message);
            }
            Payload::Ended(ended) => {
                if ended.reason == EndReason::NewerFormat {
                    let group = self.identity.group;
                    tracing::warn!(
                        %group, %from, format = OFFER_FORMAT,
                        "a member cannot read this version's snapshots: upgrade it, or it cannot catch up"
                    );
                }
                self.snapshot_sender.ended(from, ended);
                self.fetches.deliver(from, ReceiverEvent::Ended(ended));
                return Some(message);
            }
            _ => {}
        }
        None
    }

    /// Begins to fetch what `from` offers; false if that cannot be. `host` is this member's group.
    #[must_use]
    pub fn begin_fetch(&self, host: Arc<dyn FetchHost>, from: NodeId, offer: Manifest) -> bool {
        self.fetches.begin(FetchSetup {
            host,
            identity: self.identity,
            store: self.store.clone(),
            transport: self.transport.clone(),
            config: self.receiver.clone(),
            from,
            offer,
        })
    }

    pub fn publish(&self, stored: &Stored) {
        self.snapshot_sender
            .publish(self.identity, &self.store, stored);
    }

    /// What is stored when the group is opened may be fetched.
    pub fn publish_found(&self) {
        self.snapshot_sender
            .publish_found(self.identity, &self.store);
    }

    /// Stores a snapshot of this member's, and offers it from now on instead of those before.
    pub fn store(&self, snapshot: &StoredSnapshot) -> Result<(), SnapshotError> {
        let stored = self.store.store(snapshot);
        let stored = stored.map_err(|e| SnapshotError(e.to_string()))?;
        self.publish(&stored);
        Ok(())
    }
}

/// What a state machine and a log are when they have been made to fit.
pub(super) struct Ready {
    pub membership: Membership,
    /// What was being fetched.
    pub fetching: Option<Manifest>,
}

/// Lets a state machine be as its newest snapshot if that is ahead of it, and lets the log follow a
/// state that a peer's snapshot has replaced.
pub(super) fn make_ready<S: StateMachine>(
    log: &SharedLog,
    options: &GroupOptions,
    store: &Arc<SnapshotStore>,
    machine: &mut S,
) -> Result<Ready, NodeError> {
    let group = options.id;
    let failed = |what: String| NodeError::Recovery { group, what };
    let tag = log.tag(group).as_deref().and_then(Tag::decode);
    let tag = tag.ok_or_else(|| failed("the log's tag is not one of this library's".to_owned()))?;
    if tag.lineage != options.lineage {
        return Err(failed(format!(
            "the log is of lineage {}, and {} was asked for",
            tag.lineage, options.lineage
        )));
    }
    restore_newest(store, machine).map_err(failed)?;
    let applied = machine.applied();
    let mut fetching = store.fetch_under_way();
    let mut unfinished = None;
    if let Some(offer) = fetching.take_if(|f| f.last_included_index == applied) {
        // The state was replaced by it, and the process ended before that was noted. Or entries have
        // brought the member as far as that, and it is not complete.
        let whole = store.is_whole(offer.checkpoint).unwrap_or_else(|error| {
            tracing::warn!(%group, %error, "what was fetched cannot be verified");
            false
        });
        if whole {
            let kept = store.keep_fetched(offer.checkpoint);
            kept.map_err(|e| failed(e.to_string()))?;
        } else {
            unfinished = Some(offer);
        }
    }
    let fetched =
        (store.all().into_iter()).find(|s| s.fetched && s.manifest.last_included_index == applied);
    let term = fetched.map(|s| s.manifest.term);
    if let Some(term) = term.or(unfinished.as_ref().map(|f| f.term)) {
        let at = LogFloor { lsn: applied, term };
        if !log.state(group)?.continues(at, &*log.reader(group)) {
            tracing::info!(%group, lsn = %applied, "the log begins anew after an installed snapshot");
            log.restart_group(group, at)?;
        }
    }
    if let Some(offer) = unfinished {
        // Not before: of a state that it has replaced, nothing else knows the term.
        let discarded = store.discard_fetch(offer.checkpoint);
        discarded.map_err(|e| failed(e.to_string()))?;
    }
    let membership = match applied.0 {
        0 => {
            let founders = Membership {
                voters: tag.founders,
                ..Membership::default()
            };
            machine.create(&founders);
            founders
        }
        _ => machine.membership(),
    };
    Ok(Ready {
        membership,
        fetching,
    })
}

/// The newest snapshot that can be read, if the state machine is behind it. One that cannot is none from
/// then on: if it were offered, and said to the engine, the older one that the state comes from would be
/// removed, and the log behind it go, and after a crash there would be nothing to open from.
fn restore_newest<S: StateMachine>(store: &SnapshotStore, machine: &mut S) -> Result<(), String> {
    let mut last = None;
    for stored in store.all().iter().rev() {
        if stored.manifest.last_included_index <= machine.applied() {
            return Ok(());
        }
        let lsn = stored.manifest.last_included_index;
        let restored = store.load(stored).map_err(|e| e.to_string());
        match restored.and_then(|s| machine.restore(s).map_err(|e| e.to_string())) {
            Ok(()) => {
                tracing::info!(%lsn, bytes = stored.manifest.total_bytes(), "restored from a snapshot");
                return Ok(());
            }
            Err(error) => {
                tracing::error!(%lsn, error, "a stored snapshot cannot be restored");
                store.forget(stored.manifest.checkpoint);
                last = Some(error);
            }
        }
    }
    last.map_or(Ok(()), Err)
}

/// What a group's log says of the group itself: that it was begun here, by whom, and its lineage.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Tag {
    pub lineage: Lineage,
    pub founders: Vec<NodeId>,
}

const TAG: &[u8; 8] = b"ESKRGRP1";

impl Tag {
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = TAG.to_vec();
        bytes.extend_from_slice(&self.lineage.0);
        for founder in &self.founders {
            bytes.extend_from_slice(&founder.0.to_be_bytes());
        }
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Option<Tag> {
        let rest = bytes.strip_prefix(TAG)?;
        let (lineage, founders) = rest.split_first_chunk::<16>()?;
        let (founders, rest) = founders.as_chunks::<8>();
        let founders = founders.iter().map(|f| NodeId(u64::from_be_bytes(*f)));
        rest.is_empty().then(|| Tag {
            lineage: Lineage(*lineage),
            founders: founders.collect(),
        })
    }
}
