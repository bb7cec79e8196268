//! The position of a stream, for clients that keep state derived from its records.

use esker_partition::Fork;
use s2_common::encryption::EncryptionAlgorithm;
use s2_common::record::{SeqNum, StreamPosition};

use crate::error::{Error, read_error};
use crate::node::Node;

/// The position of a stream at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Position {
    /// First sequence number that readers may see; the tail if there is no record.
    pub head: SeqNum,
    /// The next sequence number, and the last timestamp.
    pub tail: StreamPosition,
    /// When the stream was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The lineage of its partition.
    pub lineage: String,
    /// The forks that cut off earlier histories, oldest first.
    pub forks: Vec<Fork>,
    /// Sequence numbers that were skipped although no history was cut off, oldest first: the first skipped
    /// number, and the number that follows the gap.
    pub passed_over: Vec<(SeqNum, SeqNum)>,
}

/// How many records a stream has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RecordCounts {
    /// Those that readers may see.
    pub all: u64,
    /// Those of them that have at least a timestamp.
    pub since: u64,
    /// Their cipher.
    pub cipher: Option<EncryptionAlgorithm>,
}

impl Node {
    /// The position of a stream. A missing stream is not created, whatever the basin's settings are. Blocks
    /// while the database reads.
    pub fn position(&self, basin: &str, name: &str) -> Result<Position, Error> {
        let handle = self.read_existing(self.basin(basin)?, name)?;
        let view = handle.stream.view();
        if view.gone {
            return Err(handle.not_found());
        }
        let lineage = handle.partition.reader.partition_db().lineage()?;
        Ok(Position {
            head: view.state.head(),
            tail: view.state.tail(),
            created_ms: handle.stream.created_ms,
            lineage: lineage.id().to_string(),
            forks: view.state.forks_seen(&lineage),
            passed_over: view.state.passed_over(),
        })
    }

    /// How many records a stream has, and how many of them have at least this timestamp, in milliseconds since
    /// the epoch. A missing stream is not created. Blocks while the database reads one record.
    ///
    /// # Errors
    ///
    /// [`Error::BasinNotFound`] and [`Error::StreamNotFound`]; [`Error::Storage`] if it cannot be read.
    pub fn record_counts(
        &self,
        basin: &str,
        name: &str,
        timestamp: u64,
    ) -> Result<RecordCounts, Error> {
        let handle = self.read_existing(self.basin(basin)?, name)?;
        let counts = handle
            .partition
            .reader
            .record_counts(&handle.stream, timestamp);
        let (all, since) = counts.map_err(|error| read_error(error, basin, name))?;
        Ok(RecordCounts {
            all,
            since,
            cipher: handle.stream.cipher,
        })
    }
}
