//! The sending end.

use super::*;

fn sender(max_transfers: usize, max_bytes_in_flight: u64) -> Sender {
    let mut sender = Sender::new(SenderConfig {
        max_transfers,
        max_bytes_in_flight,
        idle_ticks: 10,
    });
    sender.step(SenderEvent::Publish(Box::new(manifest(&[1000, 50]))));
    sender
}

fn fetch(from: u64, offset: u64) -> SenderEvent {
    SenderEvent::Fetch {
        from: NodeId(from),
        fetch: Fetch {
            checkpoint: CheckpointId([9; 16]),
            file: 0,
            offset,
            length: 10,
        },
    }
}

fn reads(actions: &[SenderAction]) -> Vec<(ReadId, u64)> {
    let read = |a: &SenderAction| match a {
        SenderAction::ReadChunk { id, offset, .. } => Some((*id, *offset)),
        _ => None,
    };
    actions.iter().filter_map(read).collect()
}

fn ended(actions: &[SenderAction]) -> Option<EndReason> {
    actions.iter().find_map(|a| match a {
        SenderAction::SendEnded { ended, .. } => Some(ended.reason),
        _ => None,
    })
}

fn done(id: ReadId, offset: usize) -> SenderEvent {
    SenderEvent::Read {
        id,
        result: Ok(content(0, offset + 10)[offset..].to_vec().into()),
    }
}

#[test]
fn a_fetch_is_answered_with_the_bytes_and_their_checksum() {
    let mut sender = sender(1, 100);
    let (id, _) = reads(&sender.step(fetch(2, 30)))[0];
    let actions = sender.step(done(id, 30));
    let [SenderAction::SendChunk { to, chunk, .. }] = &actions[..] else {
        panic!("{actions:?}");
    };
    assert_eq!(*to, NodeId(2));
    assert_eq!(chunk.bytes, content(0, 40)[30..]);
    assert_eq!(chunk.checksum, Checksum::of(&chunk.bytes));
    assert_eq!(sender.bytes_in_flight(), 10);
    sender.step(SenderEvent::Sent { id });
    assert_eq!(sender.bytes_in_flight(), 0);
}

#[test]
fn no_more_bytes_are_in_flight_than_allowed_and_receivers_take_turns() {
    let mut sender = sender(4, 30);
    let mut reading = Vec::new();
    for from in [2, 3] {
        for n in 0..4 {
            // The offset identifies the receiver.
            reading.extend(reads(&sender.step(fetch(from, from * 100 + n * 10))));
        }
    }
    let mut served = Vec::new();
    while !reading.is_empty() {
        assert!(sender.bytes_in_flight() <= 30);
        let (id, offset) = reading.remove(0);
        served.push(offset / 100);
        sender.step(done(id, offset as usize));
        reading.extend(reads(&sender.step(SenderEvent::Sent { id })));
    }
    assert_eq!(served, [2, 2, 2, 3, 2, 3, 3, 3]);
    assert_eq!(sender.bytes_in_flight(), 0);
}

#[test]
fn too_many_receivers_get_a_busy_answer() {
    let mut sender = sender(2, 100);
    assert_eq!(ended(&sender.step(fetch(2, 0))), None);
    assert_eq!(ended(&sender.step(fetch(3, 0))), None);
    assert_eq!(ended(&sender.step(fetch(4, 0))), Some(EndReason::Busy));
    let checkpoint = CheckpointId([9; 16]);
    let reason = EndReason::Installed;
    sender.step(SenderEvent::Ended {
        from: NodeId(2),
        ended: Ended { checkpoint, reason },
    });
    assert_eq!(ended(&sender.step(fetch(4, 0))), None);
    assert_eq!(sender.counts().installed, 1);
}

#[test]
fn a_fetch_outside_of_a_file_or_of_an_unknown_checkpoint_is_refused() {
    let mut sender = sender(2, 100);
    for (file, offset, length, reason) in [
        (0, 995, 10, EndReason::Refused),
        (0, u64::MAX, 10, EndReason::Refused),
        (2, 0, 10, EndReason::Refused),
        (u32::MAX, 0, 10, EndReason::Refused),
        (0, 0, 0, EndReason::Refused),
    ] {
        let checkpoint = CheckpointId([9; 16]);
        let fetch = Fetch {
            checkpoint,
            file,
            offset,
            length,
        };
        let from = NodeId(2);
        let actions = sender.step(SenderEvent::Fetch { from, fetch });
        assert_eq!(ended(&actions), Some(reason), "{fetch:?}");
        let fetch = Fetch {
            checkpoint: CheckpointId([8; 16]),
            ..fetch
        };
        let actions = sender.step(SenderEvent::Fetch { from, fetch });
        assert_eq!(ended(&actions), Some(EndReason::Vanished));
    }
    assert_eq!(sender.transfers().count(), 0);
}

#[test]
fn a_file_that_vanished_ends_the_transfer() {
    for (error, reason) in [
        (ReadError::Gone, EndReason::Vanished),
        (ReadError::Failed, EndReason::Unreadable),
    ] {
        let mut sender = sender(2, 100);
        let (id, _) = reads(&sender.step(fetch(2, 0)))[0];
        let result = Err(error);
        let actions = sender.step(SenderEvent::Read { id, result });
        assert_eq!(ended(&actions), Some(reason));
        assert_eq!(
            (sender.bytes_in_flight(), sender.transfers().count()),
            (0, 0)
        );
    }
}

#[test]
fn a_retired_checkpoint_is_released_when_no_receiver_fetches_it_any_more() {
    let mut sender = sender(2, 100);
    let checkpoint = CheckpointId([9; 16]);
    let released =
        |actions: &[SenderAction]| actions.contains(&SenderAction::Release(CheckpointId([9; 16])));
    let (id, _) = reads(&sender.step(fetch(2, 0)))[0];
    assert!(!released(&sender.step(SenderEvent::Retire(checkpoint))));
    sender.step(done(id, 0));
    sender.step(SenderEvent::Sent { id });
    assert_eq!(ended(&sender.step(fetch(2, 10))), None, "who began goes on");
    assert_eq!(
        ended(&sender.step(fetch(3, 0))),
        Some(EndReason::Vanished),
        "nobody new begins"
    );
    let (id, _) = (ReadId(id.0 + 1), 10);
    sender.step(done(id, 10));
    sender.step(SenderEvent::Sent { id });
    let mut ticks = 0;
    while !released(&sender.step(SenderEvent::Tick)) {
        ticks += 1;
        assert!(ticks < 20, "its receiver was not heard of for long");
    }
    assert!(!sender.holds(checkpoint));
}

#[test]
fn an_impatient_receiver_does_not_fill_the_sender() {
    let mut sender = sender(2, 10);
    for n in 0..10_000 {
        sender.step(fetch(2, n % 900));
    }
    assert!(sender.counts().dropped > 9000);
    assert_eq!(sender.bytes_in_flight(), 10);
}

#[test]
fn a_repeated_request_for_an_unread_chunk_is_not_read_twice() {
    let mut sender = sender(1, 20);
    let (first, _) = reads(&sender.step(fetch(2, 0)))[0];
    sender.step(fetch(2, 10));
    sender.step(fetch(2, 20));
    for offset in [0, 10, 20] {
        assert_eq!(sender.step(fetch(2, offset)), []);
    }
    assert_eq!(sender.counts().dropped, 3);
    sender.step(done(first, 0));
    assert_eq!(
        reads(&sender.step(SenderEvent::Sent { id: first })).len(),
        1
    );

    // That one may have been lost since.
    sender.step(fetch(2, 0));
    assert_eq!(sender.counts().dropped, 3);
}

#[test]
fn a_read_that_waits_for_a_transfer_that_is_over_can_be_left() {
    let mut sender = sender(2, 10);
    let (id, _) = reads(&sender.step(fetch(2, 0)))[0];
    assert!(sender.wants(id));
    assert_eq!(sender.step(fetch(3, 0)), [], "it waits for its turn");
    sender.step(SenderEvent::Ended {
        from: NodeId(2),
        ended: Ended {
            checkpoint: CheckpointId([9; 16]),
            reason: EndReason::NotNeeded,
        },
    });
    assert!(!sender.wants(id));
    let next = reads(&sender.step(SenderEvent::Sent { id }));
    assert_eq!(next.len(), 1, "the next one's turn");
    assert!(sender.wants(next[0].0));

    // Requested again, it is read again.
    assert_eq!(ended(&sender.step(fetch(2, 0))), None);
    assert_eq!(sender.counts().dropped, 0);
}
