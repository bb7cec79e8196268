//! The operations on a stream that following it and snapshotting into it need: the boundary between this
//! library and a server.
//!
//! [`s2`] connects to real servers. Simulations have a stream of their own behind the same trait, in
//! which answers get lost and trims take effect late.

pub mod position;
pub mod s2;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use async_trait::async_trait;
use futures::stream::BoxStream;
use s2_sdk::types::{AppendRecord, SequencedRecord};
use tokio::sync::mpsc;

pub use crate::identity::{Fork, Gap, Identity};
use crate::snapshot::OtherFold;

/// A stream.
#[async_trait]
pub trait Endpoint: Send + Sync + 'static {
    /// For messages: `s2://basin/stream`.
    fn shown(&self) -> String;

    /// Which stream it is, as far as the server reports it.
    async fn identity(&self) -> Result<Identity, EndpointError>;

    /// The next sequence number.
    async fn tail(&self) -> Result<u64, EndpointError>;

    /// Appends a batch of at most 1000 records and 1 MiB metered; if `at` is given, only at that sequence
    /// number. Returns the sequence number of its first record.
    async fn append(&self, batch: Vec<AppendRecord>, at: Option<u64>) -> Result<u64, AppendFailed>;

    /// Appends batches in order, without waiting for each. Records may be appended twice (a batch is sent
    /// again after its answer was lost), but never out of order. Returns when the last one is durable.
    /// `sharing` is kept up to date meanwhile.
    async fn append_all(
        &self,
        batches: mpsc::Receiver<Vec<AppendRecord>>,
        sharing: &Sharing,
    ) -> Result<(), AppendFailed>;

    /// Reads from a sequence number, and follows. If that is below the head, reading begins at the head.
    /// The returned stream ends with an error, and may end without one at any time.
    fn read(&self, from: u64) -> BoxStream<'static, Result<Piece, EndpointError>>;
}

/// Whether others append to the stream, as far as an append of many batches notices. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub struct Sharing(Arc<AtomicBool>);

impl Sharing {
    /// Notes whether others append.
    pub fn set(&self, is_shared: bool) {
        self.0.store(is_shared, Ordering::Relaxed);
    }

    /// Whether others append.
    pub fn is_shared(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

/// What a read returns: some records, or the fact that there are no more.
#[derive(Clone, Debug)]
pub struct Piece {
    /// In order.
    pub records: Vec<SequencedRecord>,
    /// The next sequence number of the stream, if these are its last records.
    pub tail: Option<u64>,
}

/// Why the stream could not be accessed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum EndpointError {
    /// It may work later.
    #[error("{0}")]
    Unavailable(String),
    /// It will not work until something is changed.
    #[error("{0}")]
    Refused(String),
    /// The server does not permit this client to see which stream it is, or how long it keeps records.
    #[error("{0}")]
    Denied(String),
    /// The stream ends before the position that was asked for.
    #[error("it ends at {tail}")]
    BeyondTail {
        /// The next sequence number.
        tail: u64,
    },
}

/// Why records were not appended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum AppendFailed {
    /// The condition did not hold. Nothing was appended by this attempt; an earlier one whose answer was
    /// lost may have been.
    #[error("the next sequence number is {tail}")]
    Elsewhere {
        /// The next sequence number.
        tail: u64,
    },
    /// Another fencing token is in force.
    #[error("the stream is fenced with `{0}`")]
    Fenced(String),
    /// It is unknown whether the batch was appended, or will be.
    #[error("{0}")]
    Unknown(String),
    /// Nothing was appended.
    #[error("{0}")]
    Refused(String),
    /// Nothing was appended: the trim in the batch would have destroyed this snapshot.
    #[error("the trim would destroy {0}")]
    OtherFold(Box<OtherFold>),
}
