//! Which members of a group its leader is in contact with, and since when it is not.

use std::time::Duration;

use esker_raft::NodeId;
use esker_raft::engine::PeerStatus;

/// The time between two ticks of a group.
pub(super) const TICK: Duration = Duration::from_millis(100);
/// Ticks without a message after which a change of the voters does not count on a member: an election timeout.
/// Heartbeats are answered five times as often.
pub(super) const LATELY_TICKS: u64 = 10;
/// Ticks without a message after which a peer counts as gone: a few election timeouts.
pub(super) const GONE_TICKS: u64 = 50;

/// How long ago a peer was heard from; `None` if it was not since this node leads or the peer was added.
pub(super) fn silence(peers: &[PeerStatus], node: NodeId) -> Option<Duration> {
    let peer = peers.iter().find(|peer| peer.id == node)?;
    let ticks = u32::try_from(peer.heard_ticks_ago?).unwrap_or(u32::MAX);
    Some(TICK * ticks)
}

/// Whether a peer was heard from within so many ticks.
pub(super) fn is_heard(peers: &[PeerStatus], node: NodeId, ticks: u64) -> bool {
    let peer = peers.iter().find(|peer| peer.id == node);
    peer.and_then(|peer| peer.heard_ticks_ago)
        .is_some_and(|ago| ago <= ticks)
}

/// `not heard from for 7.2 s`.
pub(super) fn describe_silence(silence: Option<Duration>) -> String {
    match silence {
        Some(silence) => format!("not heard from for {:.1} s", silence.as_secs_f64()),
        None => "not heard from yet".to_owned(),
    }
}
