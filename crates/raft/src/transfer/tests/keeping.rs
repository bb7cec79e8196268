//! How long a sender keeps a checkpoint that a receiver may still need.

use super::*;

const IDLE: u64 = 10;
const IT: CheckpointId = CheckpointId([9; 16]);

/// A sender that has published the checkpoint, or found it at its start.
fn sender(how: fn(Box<Manifest>) -> SenderEvent) -> Sender {
    let mut sender = Sender::new(SenderConfig {
        max_transfers: 1,
        max_bytes_in_flight: 100,
        idle_ticks: IDLE,
    });
    sender.step(how(Box::new(manifest(&[1000]))));
    sender
}

/// The answer to a receiver that requests part of it; `None` for the part.
fn asks(sender: &mut Sender, from: u64) -> Option<EndReason> {
    let fetch = Fetch {
        checkpoint: IT,
        file: 0,
        offset: 30,
        length: 10,
    };
    let from = NodeId(from);
    let mut actions = sender.step(SenderEvent::Fetch { from, fetch });
    match actions.pop() {
        Some(SenderAction::ReadChunk { id, .. }) => {
            let result = Ok(chunk_of(fetch).bytes);
            sender.step(SenderEvent::Read { id, result });
            sender.step(SenderEvent::Sent { id });
            None
        }
        Some(SenderAction::SendEnded { ended, .. }) => Some(ended.reason),
        other => panic!("{other:?}"),
    }
}

fn report_progress(sender: &mut Sender, from: u64) {
    sender.step(SenderEvent::Progress {
        from: NodeId(from),
        checkpoint: IT,
    });
}

/// So many ticks pass. Returns whether it may be removed.
fn released(sender: &mut Sender, ticks: u64) -> bool {
    let mut actions = (0..ticks).flat_map(|_| sender.step(SenderEvent::Tick));
    actions.any(|a| a == SenderAction::Release(IT))
}

#[test]
fn a_checkpoint_whose_fetch_is_reported_is_kept_without_requests() {
    let mut sender = sender(SenderEvent::Publish);
    assert_eq!(asks(&mut sender, 2), None);
    sender.step(SenderEvent::Retire(IT));
    for _ in 0..5 {
        assert!(!released(&mut sender, IDLE - 1));
        report_progress(&mut sender, 2);
    }
    assert_eq!(sender.transfers().count(), 0, "its place is for others");
    assert_eq!(asks(&mut sender, 2), None, "and it goes on");
    assert!(released(&mut sender, 2 * IDLE), "once it is silent");
    assert_eq!(asks(&mut sender, 2), Some(EndReason::Vanished));
}

#[test]
fn what_a_receiver_was_offered_is_kept_until_its_first_request() {
    let mut sender = sender(SenderEvent::Publish);
    assert_eq!(asks(&mut sender, 2), None);
    report_progress(&mut sender, 3);
    assert_eq!(asks(&mut sender, 3), Some(EndReason::Busy));
    sender.step(SenderEvent::Retire(IT));
    let reason = EndReason::Installed;
    sender.step(SenderEvent::Ended {
        from: NodeId(2),
        ended: Ended {
            checkpoint: IT,
            reason,
        },
    });
    assert_eq!(asks(&mut sender, 3), None);
}

#[test]
fn a_retired_checkpoint_is_not_kept_for_new_receivers() {
    let mut sender = sender(SenderEvent::Publish);
    assert_eq!(asks(&mut sender, 2), None);
    sender.step(SenderEvent::Retire(IT));
    for _ in 0..2 * IDLE {
        report_progress(&mut sender, 3);
        assert_eq!(asks(&mut sender, 3), Some(EndReason::Vanished));
        sender.step(SenderEvent::Tick);
    }
    assert!(!sender.holds(IT));
}

#[test]
fn what_was_found_at_the_start_is_kept_until_its_receivers_had_time_to_go_on() {
    let mut node = sender(SenderEvent::Found);
    sender_retires(&mut node);
    assert!(!released(&mut node, IDLE - 1), "nobody has asked yet");
    assert_eq!(asks(&mut node, 2), None, "who was in the middle goes on");
    assert!(!released(&mut node, 2), "and is waited for from now on");
    assert_eq!(asks(&mut node, 3), Some(EndReason::Vanished));
    assert!(released(&mut node, 2 * IDLE));

    let mut node = sender(SenderEvent::Found);
    sender_retires(&mut node);
    assert!(released(&mut node, IDLE + 1), "nobody came");
}

fn sender_retires(sender: &mut Sender) {
    let actions = sender.step(SenderEvent::Retire(IT));
    assert_eq!(actions, [], "not at once");
}

#[test]
fn a_transfer_that_has_ended_keeps_nothing() {
    for reason in [EndReason::Installed, EndReason::Corrupt] {
        let mut sender = sender(SenderEvent::Publish);
        assert_eq!(asks(&mut sender, 2), None);
        report_progress(&mut sender, 2);
        sender.step(SenderEvent::Retire(IT));
        let ended = Ended {
            checkpoint: IT,
            reason,
        };
        let from = NodeId(2);
        let actions = sender.step(SenderEvent::Ended { from, ended });
        assert_eq!(actions, [SenderAction::Release(IT)]);
    }
}
