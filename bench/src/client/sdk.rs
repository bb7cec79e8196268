//! Load through the official S2 SDK.

use std::{collections::VecDeque, num::NonZeroU32, time::Duration};

use anyhow::{Context, ensure};
use futures::StreamExt;
use s2_sdk::{
    S2, S2Basin, S2Stream,
    append_session::{AppendSessionConfig, BatchSubmitTicket},
    types::{
        AppendInput, BasinName, CreateBasinInput, CreateStreamInput, DeleteStreamInput, ReadFrom,
        ReadInput, ReadLimits, ReadSessionConfig, ReadStart, ReadStop, RetryConfig, S2Config,
        S2Endpoints, StreamName,
    },
};

use super::{Acked, Batch, Batches, ReadTotals, check_count};

/// Time limit of a measured request. It is long, because a loaded server is measured; the row has a separate
/// time limit.
pub const REQUEST_TIMEOUT: Duration = Duration::from_secs(60);

/// An SDK client for the server at `url` that tries each request once.
///
/// # Errors
///
/// If `url` is no URL.
pub fn client(url: &str, request_timeout: Duration) -> anyhow::Result<S2> {
    let config = S2Config::new("bench")
        .with_endpoints(S2Endpoints::for_endpoint(url)?)
        .with_request_timeout(request_timeout)
        .with_retry(RetryConfig::new().with_max_attempts(NonZeroU32::MIN))
        // There is no TLS here; without this option each client would load the system's certificates.
        .with_insecure_skip_cert_verification(true);
    Ok(S2::new(config)?)
}

/// Makes a basin.
///
/// # Errors
///
/// If the server refuses or cannot be reached.
pub async fn create_basin(client: &S2, basin: &str) -> anyhow::Result<()> {
    let name: BasinName = basin.parse()?;
    client
        .create_basin(CreateBasinInput::new(name))
        .await
        .with_context(|| format!("cannot create the basin {basin}"))?;
    Ok(())
}

/// An SDK client with a connection pool of its own.
pub struct Connection {
    basin: S2Basin,
}

impl Connection {
    pub fn open(url: &str, basin: &str) -> anyhow::Result<Self> {
        Ok(Self {
            basin: client(url, REQUEST_TIMEOUT)?.basin(basin.parse()?),
        })
    }

    pub async fn delete_stream(&self, name: &str) -> anyhow::Result<()> {
        let input = DeleteStreamInput::new(name.parse::<StreamName>()?);
        self.basin.delete_stream(input).await?;
        Ok(())
    }

    pub async fn create_stream(&self, name: &str) -> anyhow::Result<()> {
        let input = CreateStreamInput::new(name.parse::<StreamName>()?);
        self.basin
            .create_stream(input)
            .await
            .with_context(|| format!("cannot create the stream {name}"))?;
        Ok(())
    }

    pub fn stream(&self, name: &str) -> anyhow::Result<Stream> {
        Ok(Stream(self.basin.stream(name.parse()?)))
    }
}

/// A stream, seen through the SDK. Its operations are those of [`super::Stream`].
pub struct Stream(S2Stream);

impl Stream {
    pub async fn tail(&self) -> anyhow::Result<u64> {
        Ok(self.0.check_tail().await?.seq_num)
    }

    pub async fn append(&self, batch: &Batch) -> anyhow::Result<Acked> {
        let ack = self.0.append(AppendInput::new(batch.sdk())).await?;
        Ok(Acked {
            start: ack.start.seq_num,
            end: ack.end.seq_num,
        })
    }

    pub async fn session(
        &self,
        batches: &Batches,
        in_flight: usize,
        mut go_on: impl FnMut(usize) -> bool,
        mut on_ack: impl FnMut(usize),
    ) -> anyhow::Result<()> {
        let limit = NonZeroU32::new(in_flight.try_into()?).context("nothing may be in flight")?;
        let session = self
            .0
            .append_session(AppendSessionConfig::new().with_max_unacked_batches(limit));
        let mut tickets: VecDeque<(usize, BatchSubmitTicket)> = VecDeque::new();
        let mut submitted = 0;
        let mut open = true;
        let mut next = None;
        loop {
            while open && tickets.len() < in_flight {
                open = go_on(submitted);
                if open {
                    let batch = batches.at(submitted);
                    let ticket = session.submit(AppendInput::new(batch.sdk())).await?;
                    tickets.push_back((batch.records(), ticket));
                    submitted += 1;
                }
            }
            let Some((records, ticket)) = tickets.pop_front() else {
                break;
            };
            let ack = ticket.await?;
            let acked = Acked {
                start: ack.start.seq_num,
                end: ack.end.seq_num,
            };
            check_count(acked, records)?;
            ensure!(
                next.is_none_or(|next| next == acked.start),
                "an acknowledgement begins at {}, not at {next:?}",
                acked.start
            );
            next = Some(acked.end);
            on_ack(records);
        }
        session.close().await?;
        Ok(())
    }

    pub async fn read(&self, start: u64, count: u64) -> anyhow::Result<ReadTotals> {
        let limits = ReadLimits::new().with_count(count.try_into()?);
        let input = ReadInput::new()
            .with_start(ReadStart::new().with_from(ReadFrom::SeqNum(start)))
            .with_stop(ReadStop::new().with_limits(limits));
        let mut session = self.0.read_session(input, ReadSessionConfig::new()).await?;
        let mut totals = ReadTotals::default();
        while totals.records < count {
            let batch = session.next().await.context("the read ended early")??;
            for record in &batch.records {
                let expected = start + totals.records;
                ensure!(
                    record.seq_num == expected,
                    "read sequence number {} where {expected} was due",
                    record.seq_num
                );
                totals.records += 1;
                totals.body_bytes += record.body.len() as u64;
            }
        }
        Ok(totals)
    }

    pub async fn follow(&self, mut go_on: impl FnMut(u64) -> bool) -> anyhow::Result<()> {
        let input = ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::SeqNum(0)));
        let mut session = self.0.read_session(input, ReadSessionConfig::new()).await?;
        let mut records = 0;
        while go_on(records) {
            let batch = session.next().await.context("the read ended early")??;
            for record in &batch.records {
                ensure!(
                    record.seq_num == records,
                    "read sequence number {} where {records} was due",
                    record.seq_num
                );
                records += 1;
            }
        }
        Ok(())
    }
}
