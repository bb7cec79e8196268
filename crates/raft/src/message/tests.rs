//! What is encoded is decoded; what is not, is refused.

use proptest::prelude::*;
use prost::Message as _;
use raft::eraftpb::{Entry, EntryType, Message, MessageType};

use super::*;
use crate::engine::Membership;
use crate::ids::Term;
use crate::transfer::Checksum;
use crate::transfer::{Content, FileEntry, MAX_FILES, OFFER_FORMAT};

fn identity() -> Identity {
    Identity {
        cluster: ClusterId([1; 16]),
        group: GroupId(7),
        lineage: Lineage([2; 16]),
        node: NodeId(3),
        incarnation: Incarnation(4),
    }
}

fn manifest() -> Manifest {
    let file = |name: &str, size| FileEntry {
        name: name.to_owned(),
        size,
        checksum: Checksum::of(name.as_bytes()),
    };
    Manifest {
        format: OFFER_FORMAT,
        checkpoint: CheckpointId([5; 16]),
        source: NodeId(3),
        last_included_index: Lsn(100),
        term: Term(9),
        peers: Membership {
            voters: vec![NodeId(1), NodeId(3)],
            learners: vec![NodeId(4)],
            voters_outgoing: vec![NodeId(1), NodeId(2)],
            learners_next: vec![NodeId(2)],
            to_promote: vec![NodeId(4)],
        },
        content: Content::Files(vec![file("000001.sst", 10), file("sub/MANIFEST-1", 0)]),
    }
}

fn append() -> Message {
    let mut message = Message::default();
    message.set_msg_type(MessageType::MsgAppend);
    (message.from, message.to) = (3, 1);
    (
        message.term,
        message.log_term,
        message.index,
        message.commit,
    ) = (9, 8, 41, 40);
    let entry = |index, term, data: &[u8]| Entry {
        index,
        term,
        data: data.to_vec().into(),
        ..Entry::default()
    };
    let mut change = entry(43, 9, b"");
    change.set_entry_type(EntryType::EntryConfChangeV2);
    message.set_entries(vec![entry(42, 8, b"command"), change].into());
    message
}

fn seal(payload: Payload) -> Envelope {
    identity().seal(NodeId(1), payload)
}

fn every_payload() -> Vec<Payload> {
    let checkpoint = CheckpointId([5; 16]);
    let bytes = Bytes::from_static(b"some bytes");
    let mut opaque = manifest();
    opaque.content = Content::Bytes {
        size: 77,
        checksum: Checksum(u128::MAX - 1),
    };
    vec![
        Payload::Raft(PeerMessage(append())),
        Payload::Offer(Box::new(manifest())),
        Payload::Offer(Box::new(opaque)),
        Payload::Wanted,
        Payload::Progress(Progress {
            checkpoint,
            source: NodeId(2),
            last_included_index: Lsn(100),
            bytes_done: 3,
            bytes_total: u64::MAX,
        }),
        Payload::Ended(Ended {
            checkpoint,
            reason: EndReason::Corrupt,
        }),
        Payload::Fetch(Fetch {
            checkpoint,
            file: 3,
            offset: u64::MAX,
            length: MAX_CHUNK_BYTES,
        }),
        Payload::Chunk(Chunk {
            checkpoint,
            file: 0,
            offset: 12,
            checksum: Checksum::of(&bytes),
            bytes,
        }),
        Payload::NewerOffer(NewerOffer {
            checkpoint,
            format: OFFER_FORMAT + 1,
        }),
    ]
}

#[test]
fn that_the_log_of_the_sender_is_full_travels_with_any_message_and_changes_no_other_one() {
    for payload in every_payload() {
        // What an earlier build writes and reads is the encoding without the field.
        let usual = seal(payload);
        let mut full = usual.clone();
        full.log_is_full = true;
        let (usual_bytes, full_bytes) = (usual.encode(), full.encode());
        assert_eq!(full_bytes.len(), usual_bytes.len() + 2, "one more field");
        assert_eq!(Envelope::decode(usual_bytes).unwrap(), usual);
        // Of an offer of a newer format only the fields are read that are the same in every format.
        full.log_is_full = !matches!(full.payload, Payload::NewerOffer(_));
        assert_eq!(Envelope::decode(full_bytes).unwrap(), full);
    }
}

/// The bytes of an envelope, after something was changed in its encoding.
fn changed(payload: Payload, change: impl FnOnce(&mut wire::Envelope)) -> Vec<u8> {
    let mut encoded = wire::Envelope::from(&seal(payload));
    change(&mut encoded);
    encoded.encode_to_vec()
}

fn raft_changed(change: impl FnOnce(&mut wire::RaftMessage)) -> Vec<u8> {
    changed(Payload::Raft(PeerMessage(append())), |envelope| {
        if let Some(wire::Payload::Raft(message)) = &mut envelope.payload {
            change(message);
        }
    })
}

#[test]
fn what_is_encoded_is_decoded() {
    for payload in every_payload() {
        let envelope = seal(payload);
        let decoded = Envelope::decode(envelope.encode());
        assert_eq!(decoded.as_ref(), Ok(&envelope));
    }
}

#[test]
fn kinds_that_never_travel_are_not_taken_from_the_wire() {
    for kind in [0, 1, 2, 7, 10, 11, 12, 13, 19, u32::MAX] {
        let bytes = raft_changed(|m| m.kind = kind);
        assert_eq!(Envelope::decode(bytes), Err(DecodeError::Kind(kind)));
    }
}

#[test]
fn what_consensus_could_not_digest_is_refused() {
    type Break = fn(&mut wire::RaftMessage);
    let broken: [Break; 9] = [
        |m| m.term = 0,
        |m| m.entries[1].index = 44,
        |m| m.entries[0].index = 41,
        |m| m.entries[1].term = 7,
        |m| m.entries[1].term = 10,
        |m| m.entries[1].kind = 1,
        |m| m.entries[1].data = Bytes::from_static(b"\xff"),
        |m| m.index = u64::MAX,
        // A read with no question in it.
        |m| (m.kind, m.term, m.entries) = (15, 0, Vec::new()),
    ];
    for (n, break_it) in broken.into_iter().enumerate() {
        let bytes = raft_changed(break_it);
        assert!(Envelope::decode(bytes).is_err(), "case {n}");
    }
}

#[test]
fn a_newer_format_is_distinguished_from_damage() {
    let bytes = changed(Payload::Wanted, |e| e.format = ENVELOPE_FORMAT + 1);
    assert_eq!(
        Envelope::decode(bytes),
        Err(DecodeError::NewerFormat(ENVELOPE_FORMAT + 1))
    );
    // Whatever else is in it, and if it is not even an encoding that this version reads.
    let mut bytes = vec![1 << 3, ENVELOPE_FORMAT as u8 + 1];
    bytes.extend(b"\xff\xff\xff\xff\xff\xff");
    assert_eq!(
        Envelope::decode(bytes),
        Err(DecodeError::NewerFormat(ENVELOPE_FORMAT + 1))
    );
}

/// An offer as a newer version may write it: none of what this one knows is promised but its head.
fn newer_offer(files: usize) -> Vec<u8> {
    let mut newer = manifest();
    newer.format = OFFER_FORMAT + 1;
    newer.peers = Membership::default();
    changed(Payload::Offer(Box::new(newer)), |envelope| {
        if let Some(wire::Payload::Offer(offer)) = &mut envelope.payload {
            offer.source = 0;
            offer.files = vec![wire::File::default(); files];
        }
    })
}

#[test]
fn an_offer_of_a_newer_format_is_decoded_to_its_format_and_sender_alone() {
    let newer = NewerOffer {
        checkpoint: manifest().checkpoint,
        format: OFFER_FORMAT + 1,
    };
    // Limits of a newer format are its own; what is not understood is not decoded.
    for files in [0, 1, MAX_FILES + 1] {
        let decoded = Envelope::decode(newer_offer(files));
        assert_eq!(decoded, Ok(seal(Payload::NewerOffer(newer))));
    }
    let encoded = seal(Payload::NewerOffer(newer)).encode();
    assert_eq!(
        Envelope::decode(encoded),
        Ok(seal(Payload::NewerOffer(newer)))
    );
    let nameless = changed(Payload::NewerOffer(newer), |envelope| {
        if let Some(wire::Payload::Offer(offer)) = &mut envelope.payload {
            offer.checkpoint = Bytes::new();
        }
    });
    assert_eq!(
        Envelope::decode(nameless),
        Err(DecodeError::Field("checkpoint"))
    );
}

#[test]
fn whom_an_older_version_does_not_promise_a_vote_stays_a_learner() {
    let with = |to_promote: Vec<u64>| {
        let bytes = changed(Payload::Offer(Box::new(manifest())), |envelope| {
            if let Some(wire::Payload::Offer(offer)) = &mut envelope.payload
                && let Some(peers) = &mut offer.peers
            {
                peers.to_promote = to_promote;
            }
        });
        match Envelope::decode(bytes).unwrap().payload {
            Payload::Offer(offer) => offer.peers,
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(vec![]).to_promote, []);
    assert_eq!(with(vec![]).learners, [NodeId(4)]);
    // Only learners can be promised one.
    assert_eq!(with(vec![4, 3, 9, 4]).to_promote, [NodeId(4)]);
}

#[test]
fn a_reason_that_only_a_newer_version_knows_is_a_refusal() {
    let ended = |reason| {
        changed(every_payload().remove(5), |envelope| {
            if let Some(wire::Payload::Ended(ended)) = &mut envelope.payload {
                ended.reason = reason;
            }
        })
    };
    for (number, reason) in [(11, EndReason::NewerFormat), (12, EndReason::Refused)] {
        match Envelope::decode(ended(number)).unwrap().payload {
            Payload::Ended(ended) => assert_eq!(ended.reason, reason),
            other => panic!("{other:?}"),
        }
    }
}

#[test]
fn ids_of_another_length_and_chunks_of_an_absurd_one_are_refused() {
    type Break = fn(&mut wire::Envelope);
    let short = |e: &mut wire::Envelope| e.cluster = Bytes::from_static(b"short");
    let broken: [Break; 4] = [
        short,
        |e| e.lineage = Bytes::new(),
        |e| e.from = 0,
        |e| e.payload = None,
    ];
    for break_it in broken {
        assert!(Envelope::decode(changed(Payload::Wanted, break_it)).is_err());
    }
    for length in [0, MAX_CHUNK_BYTES + 1] {
        let mut fetch = every_payload().remove(6);
        if let Payload::Fetch(fetch) = &mut fetch {
            fetch.length = length;
        }
        assert!(Envelope::decode(seal(fetch).encode()).is_err());
    }
}

#[test]
fn lists_longer_than_allowed_are_refused_before_they_are_decoded() {
    // Empty entries, of two bytes each.
    let mut inside = Vec::new();
    for _ in 0..=MAX_ENTRIES {
        inside.extend([5 << 3 | 2, 0]);
    }
    let mut bytes = vec![10 << 3 | 2];
    prost::encoding::encode_varint(inside.len() as u64, &mut bytes);
    bytes.extend(inside);
    assert_eq!(
        Envelope::decode(bytes),
        Err(DecodeError::Field("number of entries"))
    );
    let mut inside = Vec::new();
    for _ in 0..=MAX_FILES {
        inside.extend([8 << 3 | 2, 0]);
    }
    let mut bytes = vec![11 << 3 | 2];
    prost::encoding::encode_varint(inside.len() as u64, &mut bytes);
    bytes.extend(inside);
    assert_eq!(
        Envelope::decode(bytes),
        Err(DecodeError::Field("number of files"))
    );
    let large = vec![0; MAX_ENVELOPE_BYTES + 1];
    assert!(matches!(
        Envelope::decode(large),
        Err(DecodeError::TooLarge(_))
    ));
}

#[test]
fn a_gate_remembers_a_bounded_number_of_senders() {
    let mut gate = Gate::new(Identity {
        node: NodeId(1),
        ..identity()
    });
    for node in 2..10_000 {
        let sender = Identity {
            node: NodeId(node),
            ..identity()
        };
        assert_eq!(gate.admit(&sender.seal(NodeId(1), Payload::Wanted)), Ok(()));
    }
    let to_another = identity().seal(NodeId(2), Payload::Wanted);
    assert_eq!(gate.admit(&to_another), Err(Refusal::Recipient));
    assert_eq!(gate.refused()[&Refusal::Recipient], 1);
}

proptest! {
    #[test]
    fn any_bytes_are_decoded_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..512)) {
        let _ = Envelope::decode(bytes);
    }

    #[test]
    fn a_damaged_message_is_decoded_or_refused(
        which in 0..9_usize,
        damage in proptest::collection::vec((any::<proptest::sample::Index>(), any::<u8>()), 1..8),
        cut in any::<proptest::sample::Index>(),
    ) {
        let mut bytes = seal(every_payload().remove(which)).encode();
        for (at, value) in damage {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        if let Ok(envelope) = Envelope::decode(bytes.clone()) {
            // What was taken for good is good.
            prop_assert_eq!(Envelope::decode(envelope.encode()), Ok(envelope));
        }
        bytes.truncate(cut.index(bytes.len() + 1));
        let _ = Envelope::decode(bytes);
    }
}
