//! A partition's state machine on RocksDB.
//!
//! | module | what it holds |
//! |---|---|
//! | [`command`] | commands in a partition's log, and the answer to each |
//! | [`store`] | the node's RocksDB: one column family per partition, flushing, what is durable |
//! | [`catalog`] | partition 0: basins, access tokens, and the nodes of the cluster |
//! | [`token`] | access tokens as they are stored: hash, scope |
//! | [`streams`] | partitions 1…N: streams and their records |
//! | [`stream`] | one stream as readers see it: tail, trim point |
//! | [`recent`] | the newest batches of followed streams, in memory, within a budget |
//! | [`encryption`] | encryption and decryption of records, with the key of a request |
//! | [`lineage`], [`fork`] | the identity of a partition's history; what its forks did to a stream |
//! | [`log_tail`] | checksums of the entries that led to a position |
//! | `applied`, [`members`] | the applied position and the members of a group, as they are stored |
//! | [`Origin`] | whose work the state of a replica is |
//! | [`checkpoint`] | a partition's files as of an LSN; importing them |
//! | [`reader`] | reading records, from memory at the tail and from the database behind it |
//! | [`state`] | the state store: keys with versions, and the commits that made them |
//! | [`reclaim`] | reclaiming the space of what was trimmed, expired or deleted |
//!
//! The apply thread of a partition is its only writer. Its decisions depend on the log alone:
//! no clock, no randomness; arrival times and the like are stamped into commands before they are
//! proposed. Readers see applied data, which is committed and durable.
//!
//! This crate must not depend on the network or on object storage.

mod applied;
pub mod batch;
mod batches;
pub mod catalog;
pub mod checkpoint;
pub mod command;
pub mod digest;
pub mod encryption;
pub mod fork;
mod ids;
mod keys;
pub mod lineage;
pub mod log_tail;
pub mod members;
mod origin;
#[cfg(test)]
mod random_cases;
mod raw_record;
pub mod reader;
pub mod recent;
pub mod reclaim;
mod row;
pub mod settings;
pub mod state;
pub mod store;
mod stored_records;
pub mod stream;
pub mod streams;
pub mod token;

pub use catalog::{Basin, Catalog, CatalogReader, ClusterNode, MAX_NODES, MAX_REMEMBERED_NODES};
pub use checkpoint::Checkpoint;
pub use fork::Fork;
pub use ids::{
    BasinId, LineageId, PartitionId, STATE_BASIN, STATE_BASIN_ID, StreamId, partition_of,
};
pub use lineage::Lineage;
pub use log_tail::LogTail;
pub use members::Members;
pub use origin::Origin;
pub use raw_record::{RawContent, RawHeaders, RawRecord};
pub use reader::{Cursor, ReadError, Reader, Scan};
pub use recent::RecentBudget;
pub use store::{ClusterInit, Store, StoreError, StoreOptions};
pub use stored_records::StoredRecords;
pub use stream::Stream;
pub use streams::StreamPartition;
