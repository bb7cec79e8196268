//! Keys of a partition's two column families.
//!
//! The *rows* column family has all but the batches of streams. The first byte of its keys is the kind;
//! numbers are big-endian, so that keys sort by them.
//!
//! | kind | key | value |
//! |---|---|---|
//! | `00` | – | [`Applied`](crate::store::Applied) |
//! | `01` | – | counters |
//! | `02` | – | [`Lineage`](crate::lineage::Lineage) |
//! | `03` | – | the present segment and the number of changes, see [`crate::store`] |
//! | `04` | – | [`Compared`](crate::digest::Compared): the last comparison of digests |
//! | `05` | – | [`Origin`](crate::origin::Origin): whose work the state is. Not the same on all members |
//! | `10` | stream id | `StreamMeta` |
//! | `11` | stream id | `StreamState` |
//! | `12` | basin id, name | stream id |
//! | `13` | basin id | empty: the basin was dropped, its id is refused |
//! | `14` | stream id | empty: has space to be reclaimed |
//! | `15` | LSN of an append that was refused | stream id, session: its later appends are refused |
//! | `20` | stream id, first sequence number | a batch that an earlier build wrote, see [`crate::batch`] |
//! | `21` | stream id, last timestamp, first sequence number | empty: index of batches by time |
//! | `22` | stream id, last sequence number | [`Row`](crate::row::Row): batches of the stream in one segment |
//! | `23` | segment | [`Usage`](crate::row::Usage) of the segment |
//! | `30` | basin name | `BasinMeta` (catalog) |
//! | `31` | basin id | empty: the basin is gone, and its name is free (catalog) |
//! | `32` | access token's id | `TokenMeta` (catalog) |
//! | `33` | – | `Confirmation`: up to which fork tokens are confirmed (catalog) |
//! | `40` | – | [`StateMeta`](crate::state::StateMeta) |
//! | `41` | generation, names | the present entry of a key of the state store |
//! | `42` | generation, names, version | an entry that a later one replaced |
//! | `43` | namespace, agent, `commit_ts` | empty: index of the commits that touched an agent |
//! | `44` | – | [`Replaced`](crate::state::Replaced) |
//!
//! Generations have four bytes; names of the state store are in [`crate::state::names`].
//!
//! The *segments* column family has the batches: segment, stream id, first sequence number → a batch.

use crate::ids::{BasinId, StreamId};

pub const APPLIED: [u8; 1] = [0x00];
pub const COUNTERS: [u8; 1] = [0x01];
pub const LINEAGE: [u8; 1] = [0x02];
pub const SEGMENTS: [u8; 1] = [0x03];
pub const COMPARED: [u8; 1] = [0x04];
pub const ORIGIN: [u8; 1] = [0x05];
const STREAM_META: u8 = 0x10;
const STREAM_STATE: u8 = 0x11;
const STREAM_NAME: u8 = 0x12;
const DROPPED_BASIN: u8 = 0x13;
const RECLAIM: u8 = 0x14;
const REFUSAL: u8 = 0x15;
const DATA: u8 = 0x20;
const BY_TIME: u8 = 0x21;
const ROW: u8 = 0x22;
const USAGE: u8 = 0x23;
const BASIN: u8 = 0x30;
const FORGOTTEN_BASIN: u8 = 0x31;
const TOKEN: u8 = 0x32;
pub const CONFIRMATION: [u8; 1] = [0x33];
const NODE: u8 = 0x34;
pub const STATE_META: [u8; 1] = [0x40];
const STATE_KEY: u8 = 0x41;
const STATE_HISTORY: u8 = 0x42;
const STATE_AGENT: u8 = 0x43;
pub const STATE_REPLACED: [u8; 1] = [0x44];

/// A refusal is remembered for this many entries of the log: four times as many as a leader has proposals
/// pending (16 Ki). No append of the session can be further behind the refusal, because the leader
/// accepts none from the session once it knows of the refusal.
///
/// An entry is refused at most once, so a partition remembers at most this many refusals: 25 bytes each
/// in the database, which makes 1.6 MiB, and some 5 MiB in memory. A change of this number is a change of
/// the format, because all replicas must refuse the same appends.
pub const REMEMBER_FAILED: u64 = 1 << 16;

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

/// All keys of a kind.
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

pub fn token(id: &str) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + id.len());
    key.push(TOKEN);
    key.extend_from_slice(id.as_bytes());
    key
}

pub fn all_tokens() -> (Vec<u8>, Vec<u8>) {
    range_of(TOKEN)
}

/// All tokens and their confirmation.
pub fn all_of_tokens() -> (Vec<u8>, Vec<u8>) {
    (vec![TOKEN], vec![CONFIRMATION[0] + 1])
}

pub fn node(id: u64) -> [u8; 9] {
    with_id(NODE, id)
}

pub fn all_nodes() -> (Vec<u8>, Vec<u8>) {
    range_of(NODE)
}

/// The id or LSN in a key that consists of a kind and one number.
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

/// The first sequence number in a data key of the stream; `None` for any other key.
pub fn first_seq_in(id: StreamId, key: &[u8]) -> Option<u64> {
    let (of_stream, seq) = key.split_at_checked(9)?;
    let seq = u64::from_be_bytes(seq.try_into().ok()?);
    (*of_stream == with_id(DATA, id.0)).then_some(seq)
}

pub fn by_time(id: StreamId, last_timestamp: u64, first_seq: u64) -> [u8; 25] {
    let mut key = [BY_TIME; 25];
    key[1..9].copy_from_slice(&id.0.to_be_bytes());
    key[9..17].copy_from_slice(&last_timestamp.to_be_bytes());
    key[17..].copy_from_slice(&first_seq.to_be_bytes());
    key
}

/// The key of a row whose last sequence number this is; [`OPEN`] while the row grows.
pub fn row(id: StreamId, last: u64) -> [u8; 17] {
    let mut key = [ROW; 17];
    key[1..9].copy_from_slice(&id.0.to_be_bytes());
    key[9..].copy_from_slice(&last.to_be_bytes());
    key
}

/// In the key of a stream's last row, which grows.
pub const OPEN: u64 = u64::MAX;

/// End of a stream's rows, exclusive.
pub fn rows_end(id: StreamId) -> Vec<u8> {
    after(ROW, id)
}

pub fn all_rows() -> (Vec<u8>, Vec<u8>) {
    range_of(ROW)
}

/// The last sequence number in a row's key.
pub fn last_of(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(key.get(9..17)?.try_into().ok()?))
}

pub fn usage(segment: u64) -> [u8; 9] {
    with_id(USAGE, segment)
}

pub fn all_usages() -> (Vec<u8>, Vec<u8>) {
    range_of(USAGE)
}

/// The key of a batch in a segment.
pub fn batch(segment: u64, id: StreamId, first_seq: u64) -> [u8; 24] {
    let mut key = [0; 24];
    key[..8].copy_from_slice(&segment.to_be_bytes());
    key[8..16].copy_from_slice(&id.0.to_be_bytes());
    key[16..].copy_from_slice(&first_seq.to_be_bytes());
    key
}

/// Segment, stream and first sequence number in the key of a batch.
pub fn parts_of_batch(key: &[u8]) -> Option<(u64, StreamId, u64)> {
    let key: &[u8; 24] = key.try_into().ok()?;
    let number = |at: usize| u64::from_be_bytes(std::array::from_fn(|i| key[at + i]));
    Some((number(0), StreamId(number(8)), number(16)))
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

fn in_generation(kind: u8, generation: u32, names: &[u8], more: usize) -> Vec<u8> {
    let mut key = Vec::with_capacity(5 + names.len() + more);
    key.push(kind);
    key.extend_from_slice(&generation.to_be_bytes());
    key.extend_from_slice(names);
    key
}

/// The key of a present entry of the state store. With a prefix of encoded names, the start of the range
/// of all keys that have this prefix.
pub fn state_key(generation: u32, names: &[u8]) -> Vec<u8> {
    in_generation(STATE_KEY, generation, names, 0)
}

/// An earlier version of a key of the state store.
pub fn state_history(generation: u32, names: &[u8], version: u64) -> Vec<u8> {
    let mut key = in_generation(STATE_HISTORY, generation, names, 8);
    key.extend_from_slice(&version.to_be_bytes());
    key
}

/// The key of the index by which a commit of an agent is found.
pub fn state_agent(agent: &[u8], commit_ts: u64) -> Vec<u8> {
    let mut key = Vec::with_capacity(9 + agent.len());
    key.push(STATE_AGENT);
    key.extend_from_slice(agent);
    key.extend_from_slice(&commit_ts.to_be_bytes());
    key
}

/// The names in a key of the state store.
pub fn state_names(key: &[u8]) -> Option<&[u8]> {
    key.get(5..)
}

/// The number at the end of a key: the version of an earlier entry, or the `commit_ts` in the index of
/// agents.
pub fn last_number(key: &[u8]) -> Option<u64> {
    Some(u64::from_be_bytes(*key.last_chunk::<8>()?))
}

/// All entries, present and earlier ones, of the generations before this one.
pub fn state_before(generation: u32) -> [(Vec<u8>, Vec<u8>); 2] {
    [STATE_KEY, STATE_HISTORY].map(|kind| {
        (
            in_generation(kind, 0, &[], 0),
            in_generation(kind, generation, &[], 0),
        )
    })
}

/// The present entries, and the earlier ones, of one generation.
pub fn state_generation(generation: u32) -> [(Vec<u8>, Vec<u8>); 2] {
    [STATE_KEY, STATE_HISTORY].map(|kind| {
        let end = match generation.checked_add(1) {
            Some(next) => in_generation(kind, next, &[], 0),
            None => vec![kind + 1],
        };
        (in_generation(kind, generation, &[], 0), end)
    })
}

/// The index of all agents' commits.
pub fn all_state_agents() -> (Vec<u8>, Vec<u8>) {
    range_of(STATE_AGENT)
}

/// All keys of the state store.
pub fn all_state() -> (Vec<u8>, Vec<u8>) {
    (STATE_META.to_vec(), vec![STATE_REPLACED[0] + 1])
}

/// The generation of an entry's key.
pub fn generation_of(key: &[u8]) -> Option<u32> {
    Some(u32::from_be_bytes(key.get(1..5)?.try_into().ok()?))
}

/// All present entries, or all earlier ones, of all generations.
pub fn all_state_entries() -> [(Vec<u8>, Vec<u8>); 2] {
    [STATE_KEY, STATE_HISTORY].map(range_of)
}
