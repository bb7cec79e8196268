//! Leaderships move away from a node whose disk hangs, is slow, or is full.
//!
//! Such a leader still sends heartbeats, so no other member campaigns. But what it appends is applied and answered
//! only once it is in its own log: everything that it leads would wait for its disk. The others need it for nothing,
//! because a transfer of the leadership writes nothing on the node that gives it away.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_partition::command::Outcome;
use esker_raft::engine::{PeerState, PeerStatus, Role};
use esker_raft::{Group, Membership, NodeId};

use crate::core::Inner;

/// How often the disk is looked at.
const INTERVAL: Duration = Duration::from_millis(250);
/// A write of the log that has taken so long hangs: as long as an election takes at least, so that a short stall
/// costs no more than moving away from it would.
const HANGING_WRITE: Duration = Duration::from_secs(1);
/// Writes that take so long on average are slow: a hundred times what a sync takes on a common disk.
const SLOW_WRITE: Duration = Duration::from_millis(300);
/// The writes of this time are averaged...
const WINDOW: Duration = Duration::from_secs(3);
/// ...if there were so many.
const MIN_WRITES: u64 = 4;
/// How long it takes at least from one attempt to give a leadership away to the next. The member that gets it may be
/// no better off.
const RETRY_INTERVAL: Duration = Duration::from_secs(5);
/// Ticks without a message after which a peer is not given a leadership: an election timeout.
const GONE_TICKS: u64 = 10;

/// Runs until the node stops.
pub(crate) async fn run(inner: Arc<Inner>) {
    let Some(peers) = inner.peers.clone() else {
        return;
    };
    let me = NodeId(peers.me());
    let mut watch = DiskWatch::default();
    let mut tried: HashMap<u64, Instant> = HashMap::new();
    while tokio::time::timeout(INTERVAL, inner.stopping.cancelled())
        .await
        .is_err()
    {
        let now = Instant::now();
        let Some(why) = watch.look(now, inner.disk_sample()) else {
            continue;
        };
        let due = inner.groups().filter(|group| {
            let last = tried.get(&group.id().0);
            let is_due = last.is_none_or(|at| now - *at >= RETRY_INTERVAL);
            is_due && group.status().role == Role::Leader
        });
        let due: Vec<_> = due.collect();
        tried.extend(due.iter().map(|group| (group.id().0, now)));
        let given = due.into_iter().map(|group| give_away(group, me, &why));
        futures::future::join_all(given).await;
    }
}

impl Inner {
    fn disk_sample(&self) -> Sample {
        let writer = self.raft.writer();
        let counts = writer.counts();
        Sample {
            writing_for: writer.writing_for(),
            writes: counts.groups,
            busy: counts.busy,
            refused: writer.stall_cause().or_else(|| self.shortage()),
        }
    }
}

/// Gives the leadership of a group to another voter, if one can take it.
async fn give_away(group: &Group<Outcome>, me: NodeId, why: &str) {
    let partition = group.id().0;
    let details = group.details();
    let Some(to) = successor(&details.membership, &details.peers, me) else {
        return;
    };
    // It waits for two election timeouts at most.
    match group.transfer_leadership(to).await {
        Ok(()) => tracing::warn!(
            partition,
            to = to.0,
            why,
            "this node has given a leadership away, because of its disk"
        ),
        Err(error) => tracing::warn!(
            partition,
            to = to.0,
            why,
            %error,
            "this node could not give a leadership away, which it should because of its disk"
        ),
    }
}

/// The voter that has most of the log, among those that are in contact.
fn successor(membership: &Membership, peers: &[PeerStatus], me: NodeId) -> Option<NodeId> {
    let able = peers.iter().filter(|peer| {
        let is_here = peer.heard_ticks_ago.is_some_and(|ago| ago < GONE_TICKS);
        let votes = membership.voters.contains(&peer.id);
        peer.id != me && votes && is_here && peer.state == PeerState::Replicate
    });
    able.max_by_key(|peer| peer.matched).map(|peer| peer.id)
}

/// What the writer of the log has done so far, and does.
struct Sample {
    /// How long the write under way has taken.
    writing_for: Option<Duration>,
    /// Writes so far.
    writes: u64,
    /// The time that they took.
    busy: Duration,
    /// Why the disk takes no appends, if so.
    refused: Option<String>,
}

/// The writes of the last few seconds.
#[derive(Default)]
struct DiskWatch {
    before: VecDeque<(Instant, u64, Duration)>,
}

impl DiskWatch {
    /// Notes a sample. Returns what is wrong with the disk, if something is.
    fn look(&mut self, now: Instant, sample: Sample) -> Option<String> {
        self.before.push_back((now, sample.writes, sample.busy));
        // The oldest one that is kept is as old as the window, or a little older.
        while (self.before.get(1)).is_some_and(|(at, ..)| now - *at >= WINDOW) {
            self.before.pop_front();
        }
        if let Some(why) = sample.refused {
            return Some(why);
        }
        if let Some(takes) = sample.writing_for.filter(|takes| *takes >= HANGING_WRITE) {
            let millis = takes.as_millis();
            return Some(format!("a write of the log has taken {millis} ms so far"));
        }
        let (_, writes, busy) = self.before.front()?;
        let writes = sample.writes.saturating_sub(*writes);
        let busy = sample.busy.saturating_sub(*busy);
        let mean = busy / u32::try_from(writes.max(1)).unwrap_or(u32::MAX);
        (writes >= MIN_WRITES && mean >= SLOW_WRITE).then(|| {
            let millis = mean.as_millis();
            format!("the last {writes} writes of the log took {millis} ms on average")
        })
    }
}

#[cfg(test)]
mod tests {
    use esker_raft::Lsn;

    use super::*;

    fn sample(writes: u64, busy_ms: u64) -> Sample {
        Sample {
            writing_for: None,
            writes,
            busy: Duration::from_millis(busy_ms),
            refused: None,
        }
    }

    /// Looks after each interval, with a write of so many milliseconds in each.
    fn looks(watch: &mut DiskWatch, from: Instant, each_ms: u64) -> Option<String> {
        let mut last = None;
        for step in 0..20 {
            let now = from + INTERVAL * u32::try_from(step).unwrap();
            last = watch.look(now, sample(step, step * each_ms));
        }
        last
    }

    #[test]
    fn a_disk_that_keeps_up_is_left_alone() {
        let now = Instant::now();
        assert_eq!(looks(&mut DiskWatch::default(), now, 20), None);
        let mut watch = DiskWatch::default();
        let writing_for = Some(Duration::from_millis(900));
        let one = Sample {
            writing_for,
            ..sample(1, 10)
        };
        assert_eq!(watch.look(now, one), None, "one stall is no hanging disk");
        // One slow write among a few.
        assert_eq!(watch.look(now + INTERVAL, sample(5, 1000)), None);
        assert_eq!(watch.look(now + 2 * INTERVAL, sample(0, 0)), None);
    }

    #[test]
    fn a_disk_that_hangs_is_slow_or_refuses_writes_is_found_with_the_cause() {
        let now = Instant::now();
        let slow = looks(&mut DiskWatch::default(), now, 400);
        assert!(slow.unwrap().contains("400 ms on average"));
        let hangs = Sample {
            writing_for: Some(Duration::from_millis(1200)),
            ..sample(7, 10)
        };
        let hangs = DiskWatch::default().look(now, hangs);
        assert!(hangs.unwrap().contains("1200 ms so far"));
        let full = Sample {
            refused: Some("no space left".to_owned()),
            ..sample(7, 10)
        };
        assert_eq!(
            DiskWatch::default().look(now, full).unwrap(),
            "no space left"
        );
    }

    #[test]
    fn what_was_slow_long_ago_does_not_count() {
        let now = Instant::now();
        let mut watch = DiskWatch::default();
        assert!(looks(&mut watch, now, 400).is_some());
        let mut last = None;
        for step in 20..40 {
            let at = now + INTERVAL * u32::try_from(step).unwrap();
            last = watch.look(at, sample(step, 20 * 400 + step));
        }
        assert_eq!(last, None);
        assert!(watch.before.len() <= 14, "{}", watch.before.len());
    }

    #[test]
    fn the_successor_is_a_voter_in_contact_that_has_most_of_the_log() {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        let membership = Membership {
            voters: ids(&[1, 2, 3]),
            learners: ids(&[4]),
            ..Membership::default()
        };
        let peer = |id, matched, ago| PeerStatus {
            id: NodeId(id),
            matched: Lsn(matched),
            state: PeerState::Replicate,
            pending_snapshot: None,
            last_failure: None,
            heard_ticks_ago: ago,
        };
        let of = |peers: &[PeerStatus]| successor(&membership, peers, NodeId(1));
        let peers = [
            peer(2, 90, Some(0)),
            peer(3, 100, Some(2)),
            peer(4, 200, Some(0)),
        ];
        assert_eq!(of(&peers), Some(NodeId(3)));
        let peers = [peer(2, 90, Some(0)), peer(3, 100, Some(20))];
        assert_eq!(of(&peers), Some(NodeId(2)), "the other one is gone");
        let probed = PeerStatus {
            state: PeerState::Probe,
            ..peer(2, 90, Some(0))
        };
        assert_eq!(of(&[probed, peer(3, 100, None)]), None);
    }
}
