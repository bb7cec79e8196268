//! What a catch-up read costs the server: counts, not times.

use futures::StreamExt as _;
use s2_sdk::S2Stream;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, Header, ReadSessionConfig, SequencedRecord,
};

use crate::support::{Setup, in_time, sdk, soon};

const BATCHES: usize = 24;
const RECORDS: usize = 100;
const BODY: usize = 8 * 1024;

/// System calls of the process that wrote something, so far.
fn writes(pid: u32) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{pid}/io")).unwrap();
    let writes = io.lines().find_map(|line| line.strip_prefix("syscw: "));
    writes.unwrap().parse().unwrap()
}

/// Reads so many records in one session of the official client, whose frames are not compressed.
async fn read_session(stream: &S2Stream, count: usize) -> Vec<SequencedRecord> {
    let input = sdk::from_seq(0, count);
    let session = stream.read_session(input, ReadSessionConfig::new());
    let mut session = session.await.unwrap();
    let mut read = Vec::new();
    while let Some(batch) = soon("the next batch", session.next()).await {
        read.extend(batch.unwrap().records);
    }
    assert_eq!(read.len(), count);
    read
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_catch_up_read_is_written_in_pieces_that_are_larger_than_frames_of_http2() {
    let server = Setup::default().start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let mut appended = Vec::new();
    for batch in 0..BATCHES {
        let bodies: Vec<_> = (0..RECORDS)
            .map(|record| vec![(batch * RECORDS + record) as u8; BODY])
            .collect();
        sdk::append(&stream, bodies.clone()).await;
        appended.extend(bodies);
    }
    read_session(&stream, appended.len()).await;
    // A frame has 16 KiB, and was a write of its own.
    let frames = (BATCHES * RECORDS * BODY / (16 * 1024)) as u64;
    // Windows of a client that gets little time, and other threads, such as those that merge files, cause some more.
    in_time("few writes", async |_| {
        let before = writes(server.pid());
        let read = read_session(&stream, appended.len()).await;
        let writes = writes(server.pid()) - before;
        let mut both = read.iter().zip(&appended);
        assert!(both.all(|(read, body)| read.body == *body));
        match writes < frames / 2 {
            true => Ok(()),
            false => Err(format!("{writes} writes for {frames} frames")),
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn records_that_are_passed_on_as_they_are_stored_have_all_their_parts() {
    let server = Setup::default().start_fresh().await;
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let header = |name: usize, value: usize| Header::new(vec![b'n'; name], vec![b'v'; value]);
    let records: [(Vec<Header>, Vec<u8>); 4] = [
        (vec![], vec![]),
        (vec![], vec![1; 300]),
        (vec![header(1, 0), header(300, 70_000)], vec![]),
        ((0..300).map(|n| header(n + 1, n)).collect(), vec![2; 5]),
    ];
    let append = records.iter().map(|(headers, body)| {
        let record = AppendRecord::new(body.clone()).unwrap();
        record.with_headers(headers.clone()).unwrap()
    });
    let batch = AppendRecordBatch::try_from_iter(append).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    let read = read_session(&stream, records.len()).await;
    for (number, (read, (headers, body))) in read.iter().zip(&records).enumerate() {
        assert_eq!(read.seq_num, number as u64);
        assert_eq!((&read.headers, &read.body[..]), (headers, &body[..]));
    }
}
