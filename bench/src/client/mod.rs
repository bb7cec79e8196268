//! The clients that the load comes from.
//!
//! There are two kinds, and a row uses the same one against both servers:
//!
//! - [`Kind::Sdk`], the official S2 SDK: what a user of either server runs.
//! - [`Kind::Wire`], a plain HTTP/2 client that sends requests encoded beforehand and only counts
//!   what comes back. Client and server share the processors of one machine, and where the SDK
//!   would use most of them, the row would measure the SDK.
//!
//! A [`Connection`] is one client with a connection of its own, a [`Stream`] one stream seen
//! through it. Neither retries: an error fails the row.

pub mod batch;
pub mod scan;
pub mod sdk;
pub mod wire;

use std::fmt;

pub use batch::{Batch, Batches};
use clap::ValueEnum;

/// Which client carries the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Kind {
    /// The official S2 SDK.
    Sdk,
    /// Plain HTTP/2 with requests encoded beforehand.
    Wire,
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Sdk => "S2 SDK",
            Self::Wire => "plain HTTP/2",
        })
    }
}

/// Sequence numbers that an append was given: `start..end`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Acked {
    /// Sequence number of the first record.
    pub start: u64,
    /// Sequence number after the last record.
    pub end: u64,
}

/// The totals of a read.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct ReadTotals {
    /// Number of records.
    pub records: u64,
    /// Bytes in their bodies.
    pub body_bytes: u64,
}

/// Makes `basin` on the server at `url`.
///
/// # Errors
///
/// If the server refuses or cannot be reached.
pub async fn create_basin(url: &str, basin: &str) -> anyhow::Result<()> {
    sdk::create_basin(&sdk::client(url, sdk::REQUEST_TIMEOUT)?, basin).await
}

/// A client with one connection to one server, for one basin.
pub enum Connection {
    /// Through the SDK.
    Sdk(Box<sdk::Connection>),
    /// Plain HTTP/2.
    Wire(wire::Connection),
}

impl Connection {
    /// Connects to the server at `url`.
    ///
    /// # Errors
    ///
    /// If the server cannot be reached. The SDK connects with its first request only.
    pub async fn open(kind: Kind, url: &str, basin: &str) -> anyhow::Result<Self> {
        Ok(match kind {
            Kind::Sdk => Self::Sdk(Box::new(sdk::Connection::open(url, basin)?)),
            Kind::Wire => Self::Wire(wire::Connection::open(url, basin).await?),
        })
    }

    /// Makes a stream.
    ///
    /// # Errors
    ///
    /// If the server refuses or cannot be reached.
    pub async fn create_stream(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Sdk(connection) => connection.create_stream(name).await,
            Self::Wire(connection) => connection.create_stream(name).await,
        }
    }

    /// Deletes a stream.
    ///
    /// # Errors
    ///
    /// If the server refuses it.
    pub async fn delete_stream(&self, name: &str) -> anyhow::Result<()> {
        match self {
            Self::Sdk(connection) => connection.delete_stream(name).await,
            Self::Wire(connection) => connection.delete_stream(name).await,
        }
    }

    /// A handle on a stream, which need not exist.
    ///
    /// # Errors
    ///
    /// If `name` is no stream's name.
    pub fn stream(&self, name: &str) -> anyhow::Result<Stream> {
        Ok(match self {
            Self::Sdk(connection) => Stream::Sdk(Box::new(connection.stream(name)?)),
            Self::Wire(connection) => Stream::Wire(connection.stream(name)),
        })
    }
}

/// A stream, seen through a [`Connection`].
pub enum Stream {
    /// Through the SDK.
    Sdk(Box<sdk::Stream>),
    /// Plain HTTP/2.
    Wire(wire::Stream),
}

impl Stream {
    /// Appends one batch and waits until it is durable.
    ///
    /// # Errors
    ///
    /// If the server refuses, cannot be reached, or acknowledges another number of records.
    pub async fn append(&self, batch: &Batch) -> anyhow::Result<Acked> {
        let acked = match self {
            Self::Sdk(stream) => stream.append(batch).await?,
            Self::Wire(stream) => stream.append(batch).await?,
        };
        check_count(acked, batch.records())?;
        Ok(acked)
    }

    /// Appends batches in one append session, at most `in_flight` of them unacknowledged. `go_on` is called
    /// before each batch with the number submitted so far, and returns whether to submit it; `on_ack` is
    /// called after each acknowledgement with the number of its records. Returns when everything submitted is
    /// acknowledged.
    ///
    /// # Errors
    ///
    /// If the session fails, or an acknowledgement does not continue the one before it.
    pub async fn append_session(
        &self,
        batches: &Batches,
        in_flight: usize,
        go_on: impl FnMut(usize) -> bool,
        on_ack: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        match self {
            Self::Sdk(stream) => stream.session(batches, in_flight, go_on, on_ack).await,
            Self::Wire(stream) => stream.session(batches, in_flight, go_on, on_ack).await,
        }
    }

    /// Position after the last record.
    ///
    /// # Errors
    ///
    /// If the server refuses or cannot be reached.
    pub async fn tail(&self) -> anyhow::Result<u64> {
        match self {
            Self::Sdk(stream) => stream.tail().await,
            Self::Wire(stream) => stream.tail().await,
        }
    }

    /// Reads `count` records from `start` on in one read session, checking that no sequence number
    /// is left out.
    ///
    /// # Errors
    ///
    /// If the session fails or ends early, or a sequence number is not the expected one.
    pub async fn read(&self, start: u64, count: u64) -> anyhow::Result<ReadTotals> {
        match self {
            Self::Sdk(stream) => stream.read(start, count).await,
            Self::Wire(stream) => stream.read(start, count).await,
        }
    }

    /// Reads from the first record on and follows the tail until `go_on` returns false; it is called first
    /// and after each batch, with the number of records so far. Checks that no sequence number is left out.
    ///
    /// # Errors
    ///
    /// If the session fails or ends, or a sequence number is not the expected one.
    pub async fn follow(&self, go_on: impl FnMut(u64) -> bool) -> anyhow::Result<()> {
        match self {
            Self::Sdk(stream) => stream.follow(go_on).await,
            Self::Wire(stream) => stream.follow(go_on).await,
        }
    }
}

fn check_count(acked: Acked, records: usize) -> anyhow::Result<()> {
    anyhow::ensure!(
        acked.end.checked_sub(acked.start) == Some(records as u64),
        "a batch of {records} records was acknowledged as {}..{}",
        acked.start,
        acked.end
    );
    Ok(())
}
