//! The official client, and helpers of the tests.

use std::num::NonZeroU32;
use std::time::Duration;

use s2_sdk::types::{
    AppendAck, AppendInput, AppendRecord, AppendRecordBatch, AppendRetryPolicy, BasinConfig,
    BasinName, CreateBasinInput, CreateStreamInput, ReadFrom, ReadInput, ReadLimits, ReadStart,
    ReadStop, RetryConfig, S2Config, S2Endpoints, SequencedRecord, StreamConfig, StreamName,
};
use s2_sdk::{S2, S2Basin, S2Stream};

use crate::SOON;

/// A client that tries every request up to `attempts` times.
pub fn client(url: &str, attempts: u32) -> S2 {
    S2::new(config(url, attempts)).unwrap()
}

/// A client that retries for a minute or more everything that certainly had no effect, such as an append that
/// the server refuses because space is not free yet.
pub fn persistent_client(url: &str) -> S2 {
    let retry = RetryConfig::new()
        .with_max_attempts(NonZeroU32::new(100).unwrap())
        .with_min_base_delay(Duration::from_millis(20))
        .with_append_retry_policy(AppendRetryPolicy::NoSideEffects);
    S2::new(config(url, 1).with_retry(retry)).unwrap()
}

/// A client with an access token, which tries every request once.
pub fn client_with_token(url: &str, token: &str) -> S2 {
    S2::new(config_with_token(url, token, 1)).unwrap()
}

/// The configuration of a client that tries every request up to `attempts` times.
pub fn config(url: &str, attempts: u32) -> S2Config {
    config_with_token(url, "token", attempts)
}

fn config_with_token(url: &str, token: &str, attempts: u32) -> S2Config {
    S2Config::new(token)
        // The official client trusts the system's authorities alone.
        .with_insecure_skip_cert_verification(url.starts_with("https://"))
        .with_endpoints(S2Endpoints::for_endpoint(url).unwrap())
        // The same time limit as in the tests: a slow machine is no reason for a retry.
        .with_connection_timeout(SOON)
        .with_request_timeout(SOON)
        .with_retry(
            RetryConfig::new()
                .with_max_attempts(NonZeroU32::new(attempts).unwrap())
                .with_min_base_delay(Duration::from_millis(20)),
        )
}

/// A basin's name.
pub fn basin_name(name: &str) -> BasinName {
    name.parse().unwrap()
}

/// A stream's name.
pub fn stream_name(name: &str) -> StreamName {
    name.parse().unwrap()
}

/// Creates a basin.
pub async fn basin(s2: &S2, name: &str) -> S2Basin {
    basin_with(s2, name, BasinConfig::new()).await
}

/// Creates a basin with a configuration.
pub async fn basin_with(s2: &S2, name: &str, config: BasinConfig) -> S2Basin {
    let name = basin_name(name);
    s2.create_basin(CreateBasinInput::new(name.clone()).with_config(config))
        .await
        .unwrap();
    s2.basin(name)
}

/// Creates a stream.
pub async fn stream(basin: &S2Basin, name: &str) -> S2Stream {
    stream_with(basin, name, StreamConfig::new()).await
}

/// Creates a stream with a configuration.
pub async fn stream_with(basin: &S2Basin, name: &str, config: StreamConfig) -> S2Stream {
    let name = stream_name(name);
    basin
        .create_stream(CreateStreamInput::new(name.clone()).with_config(config))
        .await
        .unwrap();
    basin.stream(name)
}

/// Records with these bodies, as a batch.
pub fn batch<B: AsRef<[u8]>>(bodies: impl IntoIterator<Item = B>) -> AppendRecordBatch {
    AppendRecordBatch::try_from_iter(
        bodies
            .into_iter()
            .map(|body| AppendRecord::new(body.as_ref().to_vec()).unwrap()),
    )
    .unwrap()
}

/// An append of records with these bodies.
pub fn input<B: AsRef<[u8]>>(bodies: impl IntoIterator<Item = B>) -> AppendInput {
    AppendInput::new(batch(bodies))
}

/// Appends records with these bodies.
pub async fn append<B: AsRef<[u8]>>(
    stream: &S2Stream,
    bodies: impl IntoIterator<Item = B>,
) -> AppendAck {
    stream.append(input(bodies)).await.unwrap()
}

/// A read from a sequence number on, up to a number of records.
pub fn from_seq(seq_num: u64, count: usize) -> ReadInput {
    ReadInput::new()
        .with_start(ReadStart::new().with_from(ReadFrom::SeqNum(seq_num)))
        .with_stop(ReadStop::new().with_limits(ReadLimits::new().with_count(count)))
}

/// Reads all records of a stream.
pub async fn read_all(stream: &S2Stream) -> Vec<SequencedRecord> {
    let tail = stream.check_tail().await.unwrap().seq_num;
    let mut records = Vec::new();
    let mut next = 0;
    while next < tail {
        let batch = stream.read(from_seq(next, 1000)).await.unwrap();
        // Everything was trimmed.
        let Some(last) = batch.records.last() else {
            break;
        };
        next = last.seq_num + 1;
        records.extend(batch.records);
    }
    records
}

/// The bodies of records, as text.
pub fn bodies(records: &[SequencedRecord]) -> Vec<String> {
    records
        .iter()
        .map(|record| String::from_utf8(record.body.to_vec()).unwrap())
        .collect()
}

/// The sequence numbers of records.
pub fn seq_nums(records: &[SequencedRecord]) -> Vec<u64> {
    records.iter().map(|record| record.seq_num).collect()
}
