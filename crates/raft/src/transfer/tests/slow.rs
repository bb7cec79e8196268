//! A sender with a rate limit, and its receivers.

use std::collections::BTreeMap;

use super::*;

const CHUNKS: usize = 8;
const CHUNK: usize = 100;

#[test]
fn receivers_of_a_sender_at_its_slowest_get_all_of_it_and_nothing_twice() {
    // The lowest valid rate: of the most transfers at once, each gets a chunk in half the time after which
    // its receiver would give the sender up. Less than one chunk is in flight.
    let config = ReceiverConfig {
        chunk_bytes: CHUNK as u32,
        window_bytes: 4 * CHUNK as u64,
        ..ReceiverConfig::default()
    };
    let limits = SenderConfig {
        max_bytes_in_flight: 1,
        ..SenderConfig::default()
    };
    let each = config.progress_deadline_ticks / 2 / limits.max_transfers as u64;
    let ids: Vec<_> = (2..).take(limits.max_transfers).map(NodeId).collect();
    let mut sender = Sender::new(limits);
    sender.step(SenderEvent::Publish(Box::new(manifest(&[CHUNKS * CHUNK]))));
    let mut receivers: BTreeMap<NodeId, Receiver> = BTreeMap::new();
    let mut done = BTreeMap::new();
    let mut reads = Vec::new();
    let mut sent = BTreeMap::<_, usize>::new();

    for id in &ids {
        let receiver = Receiver::new(config.clone(), SOURCE, manifest(&[CHUNKS * CHUNK]), &[]);
        receivers.insert(*id, receiver);
    }
    for tick in 0..(each * 4 * (CHUNKS as u64 + 1)) {
        let mut events: Vec<_> = ids
            .iter()
            .map(|id| match tick {
                0 => (*id, ReceiverEvent::Start),
                _ => (*id, ReceiverEvent::Tick),
            })
            .collect();
        sender.step(SenderEvent::Tick);
        let mut sending = Vec::new();
        if tick % each == 0 && !reads.is_empty() {
            let (id, fetch) = reads.remove(0);
            let result = Ok(chunk_of(fetch).bytes);
            sending.extend(sender.step(SenderEvent::Read { id, result }));
            sending.extend(sender.step(SenderEvent::Sent { id }));
        }
        while !events.is_empty() || !sending.is_empty() {
            for action in std::mem::take(&mut sending) {
                match action {
                    SenderAction::ReadChunk {
                        id,
                        checkpoint,
                        file,
                        offset,
                        length,
                    } => {
                        let fetch = Fetch {
                            checkpoint,
                            file,
                            offset,
                            length,
                        };
                        reads.push((id, fetch));
                    }
                    SenderAction::SendChunk { to, chunk, .. } => {
                        *sent.entry((to, chunk.offset)).or_default() += 1;
                        events.push((to, ReceiverEvent::Chunk(chunk)));
                    }
                    other => panic!("{other:?}"),
                }
            }
            let Some((id, event)) = events.pop() else {
                continue;
            };
            for action in receivers.get_mut(&id).unwrap().step(event) {
                match action {
                    ReceiverAction::Fetch(fetch) => {
                        let event = SenderEvent::Fetch { from: id, fetch };
                        sending.extend(sender.step(event));
                    }
                    ReceiverAction::Write { .. } => events.push((id, ReceiverEvent::Written)),
                    ReceiverAction::Verify { file, .. } => {
                        events.push((id, ReceiverEvent::Verified { file, good: true }));
                    }
                    ReceiverAction::Complete => {
                        done.insert(id, tick);
                    }
                    ReceiverAction::Failed(reason) => panic!("{id} gave up: {reason:?}"),
                }
            }
        }
    }
    assert_eq!(done.len(), ids.len(), "{done:?}");
    assert_eq!(sent.len(), ids.len() * CHUNKS);
    assert!(sent.values().all(|times| *times == 1), "{sent:?}");
    let requested_again = receivers.values().map(|r| r.counts().requested_again);
    assert!(requested_again.sum::<u64>() > 0, "they were impatient");
}
