//! Fast preparation of data, before a row is measured.

use anyhow::Context;
use futures::future::try_join_all;

use super::BASIN;
use crate::client::{Batches, Connection, Kind};

/// Connections of a load: more than one, so that one connection's task in the server is not the bottleneck,
/// and few, because they do not affect the result.
const CONNECTIONS: usize = 4;

/// Appends under way at once.
const WORKERS: usize = 32;

/// Unacknowledged batches of the session that writes one long stream.
const IN_FLIGHT: usize = 16;

/// Many streams with names `PREFIX-0`, `PREFIX-1` and so on.
pub struct Streams<'a> {
    /// URL of the server.
    pub url: &'a str,
    /// The prefix of their names.
    pub prefix: &'a str,
    /// How many there are.
    pub count: usize,
}

impl Streams<'_> {
    /// Name of stream number `index`.
    pub fn name(&self, index: usize) -> String {
        format!("{}-{index}", self.prefix)
    }

    /// Creates the streams.
    ///
    /// # Errors
    ///
    /// If the server refuses or cannot be reached.
    pub async fn create(&self) -> anyhow::Result<()> {
        self.for_all(async |connection, index| connection.create_stream(&self.name(index)).await)
            .await
    }

    /// Appends batch number `round` of `batches` to each stream. Calls for consecutive rounds interleave the
    /// streams.
    ///
    /// # Errors
    ///
    /// If an append fails.
    pub async fn append_round(&self, batches: &Batches, round: usize) -> anyhow::Result<()> {
        self.for_all(async |connection, index| {
            let stream = connection.stream(&self.name(index))?;
            // Neighbouring streams get different contents.
            stream.append(batches.at(round + index)).await?;
            Ok(())
        })
        .await
    }

    /// Runs `work` for the index of each stream, several at a time.
    async fn for_all(
        &self,
        work: impl AsyncFn(&Connection, usize) -> anyhow::Result<()>,
    ) -> anyhow::Result<()> {
        let open = (0..CONNECTIONS).map(|_| Connection::open(Kind::Wire, self.url, BASIN));
        let connections = try_join_all(open).await?;
        let (connections, work) = (&connections, &work);
        let workers = (0..WORKERS).map(|worker| async move {
            for index in (worker..self.count).step_by(WORKERS) {
                work(&connections[worker % CONNECTIONS], index)
                    .await
                    .with_context(|| format!("stream {}", self.name(index)))?;
            }
            anyhow::Ok(())
        });
        try_join_all(workers).await?;
        Ok(())
    }
}

/// Makes one stream and writes `count` batches to it in one append session.
///
/// # Errors
///
/// If the server refuses or cannot be reached.
pub async fn one_stream(
    url: &str,
    name: &str,
    batches: &Batches,
    count: usize,
) -> anyhow::Result<()> {
    let connection = Connection::open(Kind::Wire, url, BASIN).await?;
    connection.create_stream(name).await?;
    let stream = connection.stream(name)?;
    stream
        .append_session(batches, IN_FLIGHT, |submitted| submitted < count, |_| ())
        .await
}
