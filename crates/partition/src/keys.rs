//! Keys of a partition's column family.
//!
//! The first byte is the kind; numbers are big-endian, so that keys sort by them.
//!
//! | kind | key | value |
//! |---|---|---|
//! | `00` | – | [`Applied`](crate::store::Applied) |
//! | `01` | – | counters |
//! | `02` | – | [`Lineage`](crate::lineage::Lineage) |
//! | `10` | stream id | `StreamMeta` |
//! | `11` | stream id | `StreamState` |
//! | `12` | basin id, name | stream id |
//! | `13` | basin id | empty: the basin was dropped, its id is refused |
//! | `14` | stream id | empty: has space to be reclaimed |
//! | `15` | LSN of an append that was refused | stream id, session: nothing more of it is taken |
//! | `20` | stream id, first sequence number | a batch, see [`crate::batch`] |
//! | `21` | stream id, last timestamp, first sequence number | empty: index of batches by time |
//! | `30` | basin name | `BasinMeta` (catalog) |
//! | `31` | basin id | empty: the basin is gone, and its name is free (catalog) |

use crate::ids::{BasinId, StreamId};

pub const APPLIED: [u8; 1] = [0x00];
pub const COUNTERS: [u8; 1] = [0x01];
pub const LINEAGE: [u8; 1] = [0x02];
const STREAM_META: u8 = 0x10;
const STREAM_STATE: u8 = 0x11;
const STREAM_NAME: u8 = 0x12;
const DROPPED_BASIN: u8 = 0x13;
const RECLAIM: u8 = 0x14;
const REFUSAL: u8 = 0x15;
const DATA: u8 = 0x20;
const BY_TIME: u8 = 0x21;
const BASIN: u8 = 0x30;
const FORGOTTEN_BASIN: u8 = 0x31;

fn with_id(kind: u8, id: u64) -> [u8; 9] {
    let mut key = [kind; 9];
    key[1..].copy_from_slice(&id.to_be_bytes());
    key
}

pub fn stream_meta(id: StreamId) -> [u8; 9] {
    with_id(STREAM_META, id.0)
}

pub fn stream_state(id: StreamId) -> [u8; 9] {
    with_id(STREAM_STATE, id.0)
}

pub fn dropped_basin(id: BasinId) -> [u8; 9] {
    with_id(DROPPED_BASIN, id.0)
}

pub fn reclaim(id: StreamId) -> [u8; 9] {
    with_id(RECLAIM, id.0)
}

pub fn refusal(lsn: u64) -> [u8; 9] {
    with_id(REFUSAL, lsn)
}

/// Refusals at or after an LSN.
pub fn refusals(from: u64) -> ([u8; 9], [u8; 1]) {
    (refusal(from), [REFUSAL + 1])
}

/// All keys of a kind that is followed by one id.
fn range_of(kind: u8) -> (Vec<u8>, Vec<u8>) {
    (vec![kind], vec![kind + 1])
}

pub fn all_stream_metas() -> (Vec<u8>, Vec<u8>) {
    range_of(STREAM_META)
}

pub fn all_stream_names() -> (Vec<u8>, Vec<u8>) {
    range_of(STREAM_NAME)
}

pub fn all_data() -> (Vec<u8>, Vec<u8>) {
    range_of(DATA)
}

pub fn all_reclaims() -> (Vec<u8>, Vec<u8>) {
    range_of(RECLAIM)
}

pub fn all_dropped_basins() -> (Vec<u8>, Vec<u8>) {
    range_of(DROPPED_BASIN)
}

pub fn forgotten_basin(id: BasinId) -> [u8; 9] {
    with_id(FORGOTTEN_BASIN, id.0)
}

pub fn all_forgotten_basins() -> (Vec<u8>, Vec<u8>) {
    range_of(FORGOTTEN_BASIN)
}

pub fn all_basins() -> (Vec<u8>, Vec<u8>) {
    range_of(BASIN)
}

/// The id, or the LSN, in a key that is a kind and one number.
pub fn id_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(1..9)?.try_into().ok()?))
}

pub fn stream_name(basin: BasinId, name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + name.len());
    key.extend_from_slice(&with_id(STREAM_NAME, basin.0));
    key.extend_from_slice(name.as_bytes());
    key
}

/// Names of a basin that are at or after `from`.
pub fn stream_names(basin: BasinId, from: &str) -> (Vec<u8>, Vec<u8>) {
    let end = match basin.0.checked_add(1) {
        Some(next) => with_id(STREAM_NAME, next).to_vec(),
        None => vec![STREAM_NAME + 1],
    };
    (stream_name(basin, from), end)
}

/// The name in a name key.
pub fn name_of(key: &[u8]) -> Option<&str> {
    std::str::from_utf8(key.get(9..)?).ok()
}

pub fn basin(name: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + name.len());
    key.push(BASIN);
    key.extend_from_slice(name.as_bytes());
    key
}

pub fn data(id: StreamId, first_seq: u64) -> [u8; 17] {
    let mut key = [DATA; 17];
    key[1..9].copy_from_slice(&id.0.to_be_bytes());
    key[9..].copy_from_slice(&first_seq.to_be_bytes());
    key
}

/// The first sequence number in a data key.
pub fn first_seq_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(9..17)?.try_into().ok()?))
}

pub fn by_time(id: StreamId, last_timestamp: u64, first_seq: u64) -> [u8; 25] {
    let mut key = [BY_TIME; 25];
    key[1..9].copy_from_slice(&id.0.to_be_bytes());
    key[9..17].copy_from_slice(&last_timestamp.to_be_bytes());
    key[17..].copy_from_slice(&first_seq.to_be_bytes());
    key
}

/// Last timestamp and first sequence number in an index key.
pub fn time_and_seq_of(key: &[u8]) -> Option<(u64, u64)> {
    let time = u64::from_be_bytes(key.get(9..17)?.try_into().ok()?);
    let seq = u64::from_be_bytes(key.get(17..25)?.try_into().ok()?);
    Some((time, seq))
}

/// End of a stream's data keys, exclusive.
pub fn data_end(id: StreamId) -> Vec<u8> {
    after(DATA, id)
}

/// End of a stream's index keys, exclusive.
pub fn by_time_end(id: StreamId) -> Vec<u8> {
    after(BY_TIME, id)
}

fn after(kind: u8, id: StreamId) -> Vec<u8> {
    match id.0.checked_add(1) {
        Some(next) => with_id(kind, next).to_vec(),
        None => vec![kind + 1],
    }
}
