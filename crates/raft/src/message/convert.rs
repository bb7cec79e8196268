//! Between the encoding and what it means. Every check that needs no context is here.

use bytes::Bytes;
use prost::Message as _;
use raft::eraftpb;
use raft::eraftpb::MessageType as Kind;

use super::wire;
use super::{
    Chunk, DecodeError, ENVELOPE_FORMAT, EndReason, Ended, Envelope, Fetch, Identity,
    MAX_CHUNK_BYTES, NewerOffer, Payload, PeerMessage, Progress,
};
use crate::ids::{CheckpointId, ClusterId, GroupId, Incarnation, Lineage, Lsn, NodeId, Term};
use crate::membership::Membership;
use crate::transfer::{Checksum, Content, FileEntry, Manifest, OFFER_FORMAT};

type Decoded<T> = Result<T, DecodeError>;

/// Kinds that travel, with their numbers.
const KINDS: [(u32, Kind); 11] = [
    (3, Kind::MsgAppend),
    (4, Kind::MsgAppendResponse),
    (5, Kind::MsgRequestVote),
    (6, Kind::MsgRequestVoteResponse),
    (8, Kind::MsgHeartbeat),
    (9, Kind::MsgHeartbeatResponse),
    (14, Kind::MsgTimeoutNow),
    (15, Kind::MsgReadIndex),
    (16, Kind::MsgReadIndexResp),
    (17, Kind::MsgRequestPreVote),
    (18, Kind::MsgRequestPreVoteResponse),
];

/// Most bytes of a message's or an entry's context: what a read carries, or an election by transfer.
const MAX_CONTEXT_BYTES: usize = 64;

impl From<&Envelope> for wire::Envelope {
    fn from(envelope: &Envelope) -> Self {
        let sender = &envelope.sender;
        wire::Envelope {
            format: ENVELOPE_FORMAT,
            cluster: Bytes::copy_from_slice(&sender.cluster.0),
            group: sender.group.0,
            lineage: Bytes::copy_from_slice(&sender.lineage.0),
            from: sender.node.0,
            incarnation: sender.incarnation.0,
            to: envelope.to.0,
            log_is_full: envelope.log_is_full,
            payload: Some(match &envelope.payload {
                Payload::Raft(message) => wire::Payload::Raft(raft_to_wire(&message.0)),
                Payload::Offer(manifest) => wire::Payload::Offer(offer_to_wire(manifest)),
                Payload::NewerOffer(newer) => wire::Payload::Offer(newer_offer_to_wire(newer)),
                Payload::Wanted => wire::Payload::Wanted(wire::Wanted {}),
                Payload::Progress(p) => wire::Payload::Progress(wire::Progress {
                    checkpoint: id_to_wire(p.checkpoint),
                    source: p.source.0,
                    last_included_index: p.last_included_index.0,
                    bytes_done: p.bytes_done,
                    bytes_total: p.bytes_total,
                }),
                Payload::Ended(ended) => wire::Payload::Ended(wire::Ended {
                    checkpoint: id_to_wire(ended.checkpoint),
                    reason: reason_to_wire(ended.reason),
                }),
                Payload::Fetch(fetch) => wire::Payload::Fetch(wire::Fetch {
                    checkpoint: id_to_wire(fetch.checkpoint),
                    file: fetch.file,
                    offset: fetch.offset,
                    length: fetch.length,
                }),
                Payload::Chunk(chunk) => wire::Payload::Chunk(wire::Chunk {
                    checkpoint: id_to_wire(chunk.checkpoint),
                    file: chunk.file,
                    offset: chunk.offset,
                    bytes: chunk.bytes.clone(),
                    checksum: checksum_to_wire(chunk.checksum),
                }),
            }),
        }
    }
}

impl TryFrom<wire::Envelope> for Envelope {
    type Error = DecodeError;

    fn try_from(envelope: wire::Envelope) -> Decoded<Envelope> {
        if envelope.format > ENVELOPE_FORMAT {
            return Err(DecodeError::NewerFormat(envelope.format));
        }
        let sender = Identity {
            cluster: ClusterId(sixteen(&envelope.cluster, "cluster")?),
            group: GroupId(envelope.group),
            lineage: Lineage(sixteen(&envelope.lineage, "lineage")?),
            node: node(envelope.from, "sender")?,
            incarnation: Incarnation(envelope.incarnation),
        };
        let to = node(envelope.to, "receiver")?;
        let payload = envelope.payload.ok_or(DecodeError::Field("payload"))?;
        let payload = match payload {
            wire::Payload::Raft(message) => {
                Payload::Raft(PeerMessage(raft_from_wire(message, sender.node, to)?))
            }
            wire::Payload::Offer(offer) if offer.format > OFFER_FORMAT => {
                Payload::NewerOffer(NewerOffer {
                    checkpoint: id_from_wire(&offer.checkpoint)?,
                    format: offer.format,
                })
            }
            wire::Payload::Offer(offer) => Payload::Offer(Box::new(offer_from_wire(offer)?)),
            wire::Payload::Wanted(_) => Payload::Wanted,
            wire::Payload::Progress(p) => Payload::Progress(Progress {
                checkpoint: id_from_wire(&p.checkpoint)?,
                source: node(p.source, "source")?,
                last_included_index: Lsn(p.last_included_index),
                bytes_done: p.bytes_done,
                bytes_total: p.bytes_total,
            }),
            wire::Payload::Ended(ended) => Payload::Ended(Ended {
                checkpoint: id_from_wire(&ended.checkpoint)?,
                reason: reason_from_wire(ended.reason),
            }),
            wire::Payload::Fetch(fetch) => {
                if fetch.length == 0 || fetch.length > MAX_CHUNK_BYTES {
                    return Err(DecodeError::Field("length"));
                }
                Payload::Fetch(Fetch {
                    checkpoint: id_from_wire(&fetch.checkpoint)?,
                    file: fetch.file,
                    offset: fetch.offset,
                    length: fetch.length,
                })
            }
            wire::Payload::Chunk(chunk) => {
                if chunk.bytes.is_empty() || chunk.bytes.len() > MAX_CHUNK_BYTES as usize {
                    return Err(DecodeError::Field("length"));
                }
                Payload::Chunk(Chunk {
                    checkpoint: id_from_wire(&chunk.checkpoint)?,
                    file: chunk.file,
                    offset: chunk.offset,
                    checksum: checksum_from_wire(&chunk.checksum)?,
                    bytes: chunk.bytes,
                })
            }
        };
        Ok(Envelope {
            sender,
            to,
            log_is_full: envelope.log_is_full,
            payload,
        })
    }
}

impl From<wire::OfferEnvelope> for wire::Envelope {
    fn from(envelope: wire::OfferEnvelope) -> Self {
        wire::Envelope {
            format: envelope.format,
            cluster: envelope.cluster,
            group: envelope.group,
            lineage: envelope.lineage,
            from: envelope.from,
            incarnation: envelope.incarnation,
            to: envelope.to,
            log_is_full: false,
            payload: envelope.offer.map(|head| {
                wire::Payload::Offer(wire::Offer {
                    format: head.format,
                    checkpoint: head.checkpoint,
                    ..wire::Offer::default()
                })
            }),
        }
    }
}

fn raft_to_wire(message: &eraftpb::Message) -> wire::RaftMessage {
    let entry = |e: &eraftpb::Entry| wire::Entry {
        kind: match e.get_entry_type() {
            eraftpb::EntryType::EntryNormal => 0,
            eraftpb::EntryType::EntryConfChange => 1,
            eraftpb::EntryType::EntryConfChangeV2 => 2,
        },
        term: e.term,
        index: e.index,
        data: e.data.clone(),
        context: e.context.clone(),
    };
    wire::RaftMessage {
        kind: message.get_msg_type() as u32,
        term: message.term,
        log_term: message.log_term,
        index: message.index,
        entries: message.entries.iter().map(entry).collect(),
        commit: message.commit,
        commit_term: message.commit_term,
        reject: message.reject,
        reject_hint: message.reject_hint,
        context: message.context.clone(),
        priority: message.priority,
    }
}

fn raft_from_wire(
    message: wire::RaftMessage,
    from: NodeId,
    to: NodeId,
) -> Decoded<eraftpb::Message> {
    let kind = KINDS.iter().find(|(number, _)| *number == message.kind);
    let Some((_, kind)) = kind else {
        return Err(DecodeError::Kind(message.kind));
    };
    // raft-rs sends a read without a term; everything else has one, and 0 means "from inside".
    if (message.term == 0) != (*kind == Kind::MsgReadIndex) {
        return Err(DecodeError::Field("term"));
    }
    if message.context.len() > MAX_CONTEXT_BYTES {
        return Err(DecodeError::Field("context"));
    }
    let of_a_read = matches!(kind, Kind::MsgReadIndex | Kind::MsgReadIndexResp);
    match message.entries.as_slice() {
        [read] if of_a_read => {
            if read.data.is_empty() || read.data.len() > MAX_CONTEXT_BYTES {
                return Err(DecodeError::Field("read"));
            }
        }
        _ if of_a_read => return Err(DecodeError::Field("read")),
        [] => {}
        entries if *kind == Kind::MsgAppend => contiguous(&message, entries)?,
        _ => return Err(DecodeError::Field("entries")),
    }
    let mut raft = eraftpb::Message::default();
    raft.set_msg_type(*kind);
    raft.from = from.0;
    raft.to = to.0;
    raft.term = message.term;
    raft.log_term = message.log_term;
    raft.index = message.index;
    raft.commit = message.commit;
    raft.commit_term = message.commit_term;
    raft.reject = message.reject;
    raft.reject_hint = message.reject_hint;
    raft.context = message.context;
    raft.priority = message.priority;
    let entries: Decoded<Vec<_>> = message.entries.into_iter().map(entry_from_wire).collect();
    raft.set_entries(entries?.into());
    Ok(raft)
}

/// Entries follow the message's position one by one, in terms that never fall: raft-rs takes that
/// for granted.
fn contiguous(message: &wire::RaftMessage, entries: &[wire::Entry]) -> Decoded<()> {
    let (mut index, mut term) = (message.index, message.log_term);
    for entry in entries {
        let follows = Some(entry.index) == index.checked_add(1);
        if !follows || entry.term < term || entry.term == 0 || entry.term > message.term {
            return Err(DecodeError::Field("entries"));
        }
        (index, term) = (entry.index, entry.term);
    }
    Ok(())
}

fn entry_from_wire(entry: wire::Entry) -> Decoded<eraftpb::Entry> {
    let kind = match entry.kind {
        0 => eraftpb::EntryType::EntryNormal,
        2 => {
            conf_change(&entry.data)?;
            eraftpb::EntryType::EntryConfChangeV2
        }
        _ => return Err(DecodeError::Field("entry kind")),
    };
    if entry.context.len() > MAX_CONTEXT_BYTES {
        return Err(DecodeError::Field("context"));
    }
    let mut raft = eraftpb::Entry::default();
    raft.set_entry_type(kind);
    raft.term = entry.term;
    raft.index = entry.index;
    raft.data = entry.data;
    raft.context = entry.context;
    Ok(raft)
}

/// Most changes in one change of the membership; ours have one, and none to leave a joint one.
const MAX_CHANGES: usize = 64;

/// A change of the membership, as an entry holds it.
pub fn conf_change(data: &Bytes) -> Decoded<eraftpb::ConfChangeV2> {
    if data.len() > 32 * MAX_CHANGES {
        return Err(DecodeError::Field("membership change"));
    }
    let change = wire::ConfChange::decode(data.clone())
        .map_err(|_| DecodeError::Field("membership change"))?;
    let mut raft = eraftpb::ConfChangeV2::default();
    raft.set_transition(match change.transition {
        0 => eraftpb::ConfChangeTransition::Auto,
        1 => eraftpb::ConfChangeTransition::Implicit,
        2 => eraftpb::ConfChangeTransition::Explicit,
        _ => return Err(DecodeError::Field("membership change")),
    });
    raft.context = change.context;
    for single in change.changes {
        let mut one = eraftpb::ConfChangeSingle::default();
        one.set_change_type(match single.change_type {
            0 => eraftpb::ConfChangeType::AddNode,
            1 => eraftpb::ConfChangeType::RemoveNode,
            2 => eraftpb::ConfChangeType::AddLearnerNode,
            _ => return Err(DecodeError::Field("membership change")),
        });
        one.node_id = node(single.node_id, "membership change")?.0;
        raft.mut_changes().push(one);
    }
    Ok(raft)
}

fn offer_to_wire(manifest: &Manifest) -> wire::Offer {
    let file = |name: &str, size, checksum| wire::File {
        name: name.to_owned(),
        size,
        checksum: checksum_to_wire(checksum),
    };
    let (bytes, files) = match &manifest.content {
        Content::Bytes { size, checksum } => (Some(file("", *size, *checksum)), Vec::new()),
        Content::Files(files) => {
            let files = files.iter().map(|f| file(&f.name, f.size, f.checksum));
            (None, files.collect())
        }
    };
    let numbers = |nodes: &[NodeId]| nodes.iter().map(|n| n.0).collect();
    wire::Offer {
        format: manifest.format,
        checkpoint: id_to_wire(manifest.checkpoint),
        source: manifest.source.0,
        last_included_index: manifest.last_included_index.0,
        term: manifest.term.0,
        peers: Some(wire::Membership {
            voters: numbers(&manifest.peers.voters),
            learners: numbers(&manifest.peers.learners),
            voters_outgoing: numbers(&manifest.peers.voters_outgoing),
            learners_next: numbers(&manifest.peers.learners_next),
            to_promote: numbers(&manifest.peers.to_promote),
        }),
        bytes,
        files,
    }
}

fn newer_offer_to_wire(newer: &NewerOffer) -> wire::Offer {
    wire::Offer {
        format: newer.format,
        checkpoint: id_to_wire(newer.checkpoint),
        ..wire::Offer::default()
    }
}

fn offer_from_wire(offer: wire::Offer) -> Decoded<Manifest> {
    let peers = offer.peers.unwrap_or_default();
    let nodes = |numbers: Vec<u64>| {
        let mut nodes: Vec<_> = numbers.into_iter().map(NodeId).collect();
        nodes.sort_unstable();
        nodes.dedup();
        nodes
    };
    let content = match (offer.bytes, offer.files) {
        (Some(bytes), files) if files.is_empty() => Content::Bytes {
            size: bytes.size,
            checksum: checksum_from_wire(&bytes.checksum)?,
        },
        (None, files) => {
            let file = |f: wire::File| {
                Ok(FileEntry {
                    checksum: checksum_from_wire(&f.checksum)?,
                    name: f.name,
                    size: f.size,
                })
            };
            Content::Files(files.into_iter().map(file).collect::<Decoded<_>>()?)
        }
        _ => return Err(DecodeError::Field("content")),
    };
    let manifest = Manifest {
        format: offer.format,
        checkpoint: id_from_wire(&offer.checkpoint)?,
        source: node(offer.source, "source")?,
        last_included_index: Lsn(offer.last_included_index),
        term: Term(offer.term),
        peers: Membership {
            voters: nodes(peers.voters),
            learners: nodes(peers.learners),
            voters_outgoing: nodes(peers.voters_outgoing),
            learners_next: nodes(peers.learners_next),
            to_promote: Vec::new(),
        }
        .promoting(nodes(peers.to_promote)),
        content,
    };
    manifest.validate()?;
    Ok(manifest)
}

const REASONS: [(u32, EndReason); 11] = [
    (1, EndReason::Installed),
    (2, EndReason::NotNeeded),
    (3, EndReason::NotAMember),
    (4, EndReason::Refused),
    (5, EndReason::Busy),
    (6, EndReason::Vanished),
    (7, EndReason::Unreadable),
    (8, EndReason::Corrupt),
    (9, EndReason::Silent),
    (10, EndReason::NotInstalled),
    (11, EndReason::NewerFormat),
];

fn reason_to_wire(reason: EndReason) -> u32 {
    let known = REASONS.iter().find(|(_, r)| *r == reason);
    known.map_or(0, |(number, _)| *number)
}

/// A reason that a newer version knows is a refusal like any other.
fn reason_from_wire(number: u32) -> EndReason {
    let known = REASONS.iter().find(|(n, _)| *n == number);
    known.map_or(EndReason::Refused, |(_, reason)| *reason)
}

fn sixteen(bytes: &Bytes, what: &'static str) -> Decoded<[u8; 16]> {
    bytes
        .as_ref()
        .try_into()
        .map_err(|_| DecodeError::Field(what))
}

fn node(number: u64, what: &'static str) -> Decoded<NodeId> {
    match number {
        0 => Err(DecodeError::Field(what)),
        number => Ok(NodeId(number)),
    }
}

fn id_to_wire(id: CheckpointId) -> Bytes {
    Bytes::copy_from_slice(&id.0)
}

fn id_from_wire(bytes: &Bytes) -> Decoded<CheckpointId> {
    sixteen(bytes, "checkpoint").map(CheckpointId)
}

fn checksum_to_wire(checksum: Checksum) -> Bytes {
    Bytes::copy_from_slice(&checksum.0.to_be_bytes())
}

fn checksum_from_wire(bytes: &Bytes) -> Decoded<Checksum> {
    sixteen(bytes, "checksum").map(|bytes| Checksum(u128::from_be_bytes(bytes)))
}
