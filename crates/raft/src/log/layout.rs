//! The layout of the log in raft-engine: the number of each group, the keys beside its entries, and their
//! encodings. All of it is a promised format.

use raft::eraftpb::Entry;
use raft_engine::{Command, LogBatch, MessageExt};

use crate::engine::LogFloor;
use crate::ids::{GroupId, Lsn, Term};

pub(super) const KEY_HARD_STATE: &[u8] = b"hard-state";
/// The log start. The key is older than the distinction between floor and log start.
pub(super) const KEY_START: &[u8] = b"floor";
pub(super) const KEY_TAG: &[u8] = b"tag";
/// The last entry that changes the membership; absent if there never was one.
pub(super) const KEY_LAST_CHANGE: &[u8] = b"last-change";
/// raft-engine's number for keys that belong to no group.
pub(super) const NODE_REGION: u64 = u64::MAX - 1;
pub(super) const KEY_FORMAT: &[u8] = b"format";
/// Version of what this module writes into raft-engine.
pub(super) const FORMAT: u8 = 1;

/// raft-engine's number for a group. Its own tools print 0 as "none", so these start at 1.
pub(super) fn region(group: GroupId) -> u64 {
    group.0 + 1
}

/// Removes everything of a group except its tag, and lets its log begin after `start`. The caller adds a
/// hard state.
pub(super) fn fill_restart(
    batch: &mut LogBatch,
    region: u64,
    start: LogFloor,
    tag: Option<&[u8]>,
) -> raft_engine::Result<()> {
    // First, because it removes everything of the group, including its keys.
    batch.add_command(region, Command::Clean);
    batch.put(region, KEY_START.to_vec(), encode_floor(start))?;
    match tag {
        Some(tag) => batch.put(region, KEY_TAG.to_vec(), tag.to_vec()),
        None => Ok(()),
    }
}

pub(super) fn encode_floor(floor: LogFloor) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(16);
    bytes.extend_from_slice(&floor.lsn.0.to_be_bytes());
    bytes.extend_from_slice(&floor.term.0.to_be_bytes());
    bytes
}

pub(super) fn decode_floor(bytes: &[u8]) -> Option<LogFloor> {
    let (lsn, term) = bytes.split_first_chunk::<8>()?;
    Some(LogFloor {
        lsn: Lsn(u64::from_be_bytes(*lsn)),
        term: Term(u64::from_be_bytes(term.try_into().ok()?)),
    })
}

/// Tells raft-engine where an entry's index is.
#[derive(Clone)]
pub(crate) struct EntryIndex;

impl MessageExt for EntryIndex {
    type Entry = Entry;

    fn index(entry: &Entry) -> u64 {
        entry.index
    }
}
