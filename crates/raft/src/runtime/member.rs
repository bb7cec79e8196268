//! A member of a group with others: its identity, its stored snapshots, the transfers from and to it; and
//! how its state, its snapshots and its log are made consistent at an open.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::Mutex;

use super::error::NodeError;
use super::snapshot_receiver::{FetchHost, FetchSetup, Fetches};
use super::snapshot_sender::SnapshotSender;
use super::state_machine::{SnapshotError, SnapshotSink, StateMachine};
use crate::engine::{LogFloor, Membership};
use crate::ids::{GroupId, Lineage, Lsn, NodeId};
use crate::log::SharedLog;
use crate::message::{EndReason, Envelope, Gate, Identity, Payload};
use crate::store::{DiskFaults, SnapshotStore, Stored, StoredSnapshot};
use crate::transfer::{Manifest, OFFER_FORMAT, ReceiverConfig, ReceiverEvent};
use crate::transport::Transport;

/// How a group with other members is opened.
#[derive(Clone)]
pub struct GroupOptions {
    /// Its number, the same on all its members.
    pub id: GroupId,
    /// Its history.
    pub lineage: Lineage,
    /// What it means if the node's log has nothing of the group.
    pub cluster_init: ClusterInit,
    /// The host has begun the log with a tag of its own ([`SharedLog::begin_group`]), has checked that it is of
    /// this lineage, and its state machine has the membership from before the first entry on. So a group of one
    /// member that was opened with [`Node::open_group`](super::Node::open_group) gets other members.
    pub has_host_tag: bool,
    /// Callback for the snapshots that this member takes.
    pub sink: Option<Arc<dyn SnapshotSink>>,
    /// For tests: faults of the disk under the snapshots.
    pub faults: DiskFaults,
}

/// What it means if a node's log has nothing of a group. A log that has the group decides alone: the member
/// goes on from it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ClusterInit {
    /// This is the first start of this member. These voters found the group; an empty list means that the
    /// group exists and this node waits to be added.
    By(Vec<NodeId>),
    /// This member was opened before. A log without the group is a lost log, with its votes and
    /// acknowledgements: the member is not opened.
    Never,
}

impl GroupOptions {
    /// A group that these voters found together; each of them is opened with the same list. Only for the
    /// very first start, or to repeat one that was interrupted; every later start uses
    /// [`GroupOptions::reopening`]. A voter that is opened with this again after its disk was lost or
    /// replaced votes a second time under its number, and a decision of a majority may be undone: nothing
    /// on the new disk shows that there was another one.
    pub fn founded_by(id: GroupId, founders: &[NodeId]) -> GroupOptions {
        let mut founders = founders.to_vec();
        founders.sort_unstable();
        founders.dedup();
        GroupOptions {
            id,
            lineage: Lineage::default(),
            cluster_init: ClusterInit::By(founders),
            has_host_tag: false,
            sink: None,
            faults: DiskFaults::default(),
        }
    }

    /// A group that exists and that this node joins. Its leader adds the node, for instance with
    /// [`Group::add_peer`](super::Group::add_peer). Every later start uses [`GroupOptions::reopening`].
    pub fn joining(id: GroupId) -> GroupOptions {
        GroupOptions::founded_by(id, &[])
    }

    /// A group that this node is a member of since an earlier start. If the log has nothing of it, opening
    /// fails with [`NodeError::LogLost`]: remove the member, and let it join under a new number.
    pub fn reopening(id: GroupId) -> GroupOptions {
        GroupOptions {
            cluster_init: ClusterInit::Never,
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
    /// No peer is to get this member's state: see [`Group::withhold_snapshots`](super::Group::withhold_snapshots).
    withheld: AtomicBool,
    /// Admits the messages that do not reach the engine, which has a gate of its own.
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
            withheld: AtomicBool::new(false),
            gate: Mutex::new(Gate::new(identity)),
        }
    }

    /// Lets no peer fetch the snapshots of this member from now on, or lets them again. A transfer that is under way ends
    /// with the next request of its receiver.
    pub fn withhold(&self, withheld: bool) {
        self.withheld.store(withheld, Ordering::Relaxed);
    }

    /// Handles messages of transfers. Returns the message if the engine needs it too.
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
            Payload::Fetch(fetch) if self.withheld.load(Ordering::Relaxed) => {
                let checkpoint = fetch.checkpoint;
                self.snapshot_sender.refuse(self.identity, from, checkpoint);
            }
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

    /// Lets peers fetch the snapshots that are stored when the group is opened.
    pub fn publish_found(&self) {
        self.snapshot_sender
            .publish_found(self.identity, &self.store);
    }

    /// Stores a snapshot that this member took, and lets peers fetch it instead of older ones.
    pub fn store(&self, snapshot: &StoredSnapshot) -> Result<(), SnapshotError> {
        let stored = self.store.store(snapshot);
        let stored = stored.map_err(|e| SnapshotError(e.to_string()))?;
        self.publish(&stored);
        Ok(())
    }
}

/// What [`make_ready`] finds.
pub(super) struct Ready {
    pub membership: Membership,
    /// The fetch that was under way, to be resumed.
    pub fetching: Option<Manifest>,
}

/// Makes state, snapshots and log consistent after a start: restores the newest snapshot if it is ahead of
/// the state machine, and restarts the log after a state that a peer's snapshot has replaced.
pub(super) fn make_ready<S: StateMachine>(
    log: &SharedLog,
    options: &GroupOptions,
    store: &Arc<SnapshotStore>,
    machine: &mut S,
) -> Result<Ready, NodeError> {
    let group = options.id;
    let failed = |what: String| NodeError::Recovery { group, what };
    let founders = match options.has_host_tag {
        true => None,
        false => {
            let tag = log.tag(group).as_deref().and_then(Tag::decode);
            let no_tag = || failed("the log's tag is not one of this library's".to_owned());
            let tag = tag.ok_or_else(no_tag)?;
            if tag.lineage != options.lineage {
                return Err(failed(format!(
                    "the log is of lineage {}, and the options name {}",
                    tag.lineage, options.lineage
                )));
            }
            Some(tag.founders)
        }
    };
    restore_newest(group, store, machine)?;
    let applied = machine.applied();
    let fetching = complete_install(log, group, store, applied)?;
    let membership = match founders {
        Some(voters) if applied == Lsn(0) => {
            let founders = Membership {
                voters,
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

/// Completes an install that a crash interrupted after it had replaced the state, which is as of `applied`:
/// lists the fetched snapshot as stored, and restarts the log after it. Returns the fetch that is to be resumed.
pub(super) fn complete_install(
    log: &SharedLog,
    group: GroupId,
    store: &Arc<SnapshotStore>,
    applied: Lsn,
) -> Result<Option<Manifest>, NodeError> {
    let of_store = |source| NodeError::Store { group, source };
    let mut fetching = store.fetch_under_way().map_err(of_store)?;
    let mut unfinished = None;
    if let Some(offer) = fetching.take_if(|f| f.last_included_index == applied) {
        // Either the fetched snapshot has replaced the state, and the process ended before it was listed as
        // stored; or entries have brought the state to the same LSN, and the fetch is incomplete.
        let whole = match store.is_whole(offer.checkpoint) {
            Err(source) if source.is_unreadable() => return Err(of_store(source)),
            Err(error) => {
                tracing::warn!(%group, %error, "a fetch cannot be verified");
                false
            }
            Ok(whole) => whole,
        };
        if whole {
            store.keep_fetched(offer.checkpoint).map_err(of_store)?;
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
            tracing::info!(%group, lsn = %applied, "the log is restarted after an installed snapshot");
            log.restart_group(group, at)?;
        }
    }
    if let Some(offer) = unfinished {
        // Only now: until the log was restarted, only the manifest had the term of the state's last entry.
        store.discard_fetch(offer.checkpoint).map_err(of_store)?;
    }
    Ok(fetching)
}

/// Restores the newest snapshot if the state machine is behind it. One that is damaged, or that the state
/// machine refuses, is not listed any more, and an older one is tried: if it were offered and reported to the
/// engine, the older snapshot that the state comes from would be removed and the log compacted, and after a
/// crash nothing would be left to open from. One that cannot be read now ends the start.
fn restore_newest<S: StateMachine>(
    group: GroupId,
    store: &SnapshotStore,
    machine: &mut S,
) -> Result<(), NodeError> {
    let mut last = None;
    for stored in store.all().iter().rev() {
        if stored.manifest.last_included_index <= machine.applied() {
            return Ok(());
        }
        let lsn = stored.manifest.last_included_index;
        let restored = match store.load(stored) {
            Err(source) if source.is_unreadable() => {
                return Err(NodeError::Store { group, source });
            }
            loaded => loaded.map_err(|e| e.to_string()),
        };
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
    last.map_or(Ok(()), |what| Err(NodeError::Recovery { group, what }))
}

/// The description of a group in its log: its lineage and its founders. Its presence proves that the group
/// was begun on this node.
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
