use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use futures::FutureExt as _;
use futures::future::join_all;
use s2_common::config::{BasinConfig, OptionalStreamConfig};
use s2_common::read_extent::{ReadLimit, ReadUntil};
use s2_common::record::{EnvelopeRecord, Record};
use s2_common::stream::{AppendInput, AppendRecord, AppendRecordParts, ReadFrom};

use super::*;
use crate::admission::Client;
use crate::basins::Create;
use crate::lookups::MAX_STARTS;
use crate::node::Node;
use crate::options::NodeOptions;
use crate::read_budget::MAX_SCANNING;
use crate::streams::CreateOn;

async fn started(dir: &std::path::Path) -> (Node, StreamHandle) {
    let mut options = NodeOptions::new(dir);
    options.partitions = 1;
    let node = Node::start(options).await.unwrap();
    let config = BasinConfig::default();
    let basin = node.provision_basin("test-basin", &config, &Create::Ensure);
    basin.await.unwrap();
    let settings = OptionalStreamConfig::default();
    let stream = node.provision_stream("test-basin", "followed", &settings, &Create::Ensure);
    stream.await.unwrap();
    let (client, on) = (Client::default(), CreateOn::Read);
    let handle = node.open_stream(client, "test-basin", "followed", on, &settings);
    (node.clone(), handle.await.unwrap())
}

/// Appends so many records of one byte.
async fn append(handle: &StreamHandle, count: usize) {
    let record = || {
        let body = Bytes::from_static(b"x");
        let record = EnvelopeRecord::try_from_parts(Vec::new(), body).unwrap();
        let parts = AppendRecordParts {
            timestamp: None,
            record: Record::Envelope(record).into(),
        };
        AppendRecord::try_from(parts).unwrap()
    };
    let records: Vec<_> = (0..count).map(|_| record()).collect();
    let input = AppendInput {
        records: records.try_into().unwrap(),
        match_seq_num: None,
        fencing_token: None,
    };
    handle.append(input).await.unwrap().done().await.unwrap();
}

fn unbounded() -> ReadEnd {
    ReadEnd {
        limit: ReadLimit::Unbounded,
        until: ReadUntil::Unbounded,
        wait: None,
    }
}

/// A session that has reached the tail.
async fn follower(handle: &StreamHandle, end: ReadEnd) -> ReadSession {
    let start = ReadStart {
        from: ReadFrom::TailOffset(0),
        clamp: false,
    };
    let mut session = handle.read(start, end).await.unwrap();
    let output = session.next().await.unwrap();
    assert!(
        matches!(output, Some(ReadOutput::Heartbeat(_))),
        "{output:?}"
    );
    session
}

async fn batch(session: &mut ReadSession) -> ReadRecords {
    loop {
        match session.next().await.unwrap() {
            Some(ReadOutput::Batch(records, _)) => return records,
            Some(ReadOutput::Heartbeat(_) | ReadOutput::Waiting(_)) => {}
            None => panic!("the session has ended"),
        }
    }
}

/// The numbers of the records of the next outputs, as many as there are up to `end`.
async fn numbers(session: &mut ReadSession, end: u64) -> Vec<u64> {
    let mut numbers = Vec::new();
    while numbers.last().is_none_or(|last| last + 1 < end) {
        let records = batch(session).await;
        let first = records.first_position().unwrap().seq_num;
        numbers.extend(first..first + records.len() as u64);
    }
    numbers
}

fn shared(records: &ReadRecords) -> &Arc<SharedRecords> {
    match &records.content {
        ReadContent::Shared(shared) => shared,
        other => panic!("not shared: {other:?}"),
    }
}

#[tokio::test]
async fn followers_at_the_tail_cost_one_scan_and_one_encoding_of_each_batch() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    // Few, which are woken at once, and many, which have turns.
    for followers in [8, 400] {
        let mut sessions = Vec::new();
        for _ in 0..followers {
            sessions.push(follower(&handle, unbounded()).await);
        }
        let scans = &node.inner.shared_scans;
        let (made, encoded) = (scans.made(), AtomicUsize::new(0));
        for round in 1..=3 {
            let (_, found) = tokio::join!(
                append(&handle, 3),
                join_all(sessions.iter_mut().map(async |session| {
                    let records = batch(session).await;
                    let form = shared(&records).form(7, |records, _| {
                        encoded.fetch_add(1, Ordering::Relaxed);
                        Ok::<_, Error>(Bytes::from(vec![0; records.len()]))
                    });
                    (records.tail, form.unwrap())
                }))
            );
            let tail = Some(handle.tail());
            assert!(
                found
                    .iter()
                    .all(|(at, form)| *at == tail && form.len() == 3)
            );
            assert_eq!(
                scans.made() - made,
                round,
                "scans for {followers} followers"
            );
            assert_eq!(encoded.load(Ordering::Relaxed) as u64, round);
        }
    }
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_read_waits_for_a_turn_only_if_its_first_record_is_looked_up_by_time() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    append(&handle, 3).await;
    let turns = node.inner.starts.turns.clone();
    let all = turns.try_take(Client::default(), MAX_STARTS).unwrap();
    let read = |from| handle.read(ReadStart { from, clamp: false }, unbounded());
    for from in [
        ReadFrom::SeqNum(1),
        ReadFrom::TailOffset(2),
        ReadFrom::TailOffset(0),
    ] {
        // It needs no other thread, and no turn.
        let begun = read(from).now_or_never();
        drop(begun.expect("it does not wait").unwrap());
    }
    let beyond = ReadStart {
        from: ReadFrom::Timestamp(u64::MAX),
        clamp: true,
    };
    let begun = handle.read(beyond, unbounded()).now_or_never();
    drop(begun.expect("it does not wait").unwrap());
    let by_time = read(ReadFrom::Timestamp(0));
    tokio::pin!(by_time);
    let early = tokio::time::timeout(Duration::from_millis(100), &mut by_time).await;
    assert!(early.is_err(), "it was read without a turn");
    drop(all);
    let mut by_time = by_time.await.unwrap();
    assert_eq!(numbers(&mut by_time, 3).await, [0, 1, 2]);
    assert_eq!(turns.free(), MAX_STARTS);
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_scan_of_the_database_has_a_thread_in_turn_and_gives_it_back() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    append(&handle, 3).await;
    let from = ReadFrom::SeqNum(0);
    let start = ReadStart { from, clamp: false };
    let session = handle.read(start, unbounded()).await.unwrap();
    let reads = &node.inner.reads;
    let scan = || {
        let permit = reads.try_claim(Client::default(), false).unwrap();
        session.scan_database(ReadLimit::Unbounded, permit)
    };
    let all = reads.scanning().try_take(Client::default(), MAX_SCANNING);
    let all = all.unwrap();
    let gone = scan();
    let mut waits = scan();
    let early = tokio::time::timeout(Duration::from_millis(100), waits.next()).await;
    assert!(early.is_err(), "it has read without a turn");
    // One whose session has ended waits for none.
    drop(gone);
    while reads.scanning().waiting() > 1 {
        tokio::task::yield_now().await;
    }
    drop(all);
    let (found, _permit) = waits.next().await.expect("it has read");
    assert_eq!(found.unwrap().records.len(), 3);
    drop(waits);
    while reads.scanning().taken() > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn a_session_whose_disk_does_not_answer_shows_that_it_waits_and_goes_on_when_it_does() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    append(&handle, 3).await;
    let from = ReadFrom::SeqNum(0);
    let start = ReadStart { from, clamp: false };
    let mut session = handle.read(start, unbounded()).await.unwrap();
    let (run, hangs) = Run::hanging();
    session.ahead = Some(run);
    for _ in 0..2 {
        // A heartbeat is due.
        session.heartbeat = Instant::now();
        session.timer.as_mut().reset(Instant::now());
        let waits = tokio::time::timeout(Duration::from_secs(60), session.next()).await;
        let output = waits.expect("it does not wait for ever").unwrap();
        let waits_for_disk = matches!(output, Some(ReadOutput::Waiting(WaitsFor::Disk)));
        assert!(waits_for_disk, "{output:?}");
    }
    drop(hangs);
    assert_eq!(numbers(&mut session, 3).await, [0, 1, 2]);
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn what_is_shared_keeps_within_the_limits_of_each_session() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    append(&handle, 3).await;
    let limited = |limit, until| ReadEnd {
        limit,
        until,
        wait: Some(Duration::from_secs(60)),
    };
    let mut plain = follower(&handle, unbounded()).await;
    let mut other = follower(&handle, unbounded()).await;
    let mut two = follower(&handle, limited(ReadLimit::Count(2), ReadUntil::Unbounded)).await;
    let mut five = follower(&handle, limited(ReadLimit::Count(5), ReadUntil::Unbounded)).await;
    let mut bytes = follower(&handle, limited(ReadLimit::Bytes(9), ReadUntil::Unbounded)).await;
    let past = ReadUntil::Timestamp(1);
    let mut until = follower(&handle, limited(ReadLimit::Unbounded, past)).await;
    append(&handle, 3).await;
    assert_eq!(batch(&mut plain).await.len(), 3);
    assert_eq!(batch(&mut other).await.len(), 3);
    assert_eq!(batch(&mut two).await.len(), 2);
    assert!(two.next().await.unwrap().is_none());
    assert_eq!(batch(&mut five).await.len(), 3);
    assert_eq!(batch(&mut bytes).await.len(), 1, "a record has 9 bytes");
    assert!(bytes.next().await.unwrap().is_none());
    assert!(until.next().await.unwrap().is_none());
    append(&handle, 3).await;
    assert_eq!(batch(&mut plain).await.len(), 3);
    assert_eq!(batch(&mut five).await.len(), 2);
    assert!(five.next().await.unwrap().is_none());
    // One that begins within what is shared, and one that is alone.
    append(&handle, 3).await;
    assert_eq!(numbers(&mut other, 12).await, [6, 7, 8, 9, 10, 11]);
    drop((other, two, five, bytes, until));
    let alone = batch(&mut plain).await;
    assert!(matches!(alone.content, ReadContent::Stored(_)));
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn followers_in_turns_get_every_record_once_whether_many_come_or_go() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    let mut sessions = Vec::new();
    for _ in 0..300 {
        sessions.push(follower(&handle, unbounded()).await);
    }
    let appends = async {
        for _ in 0..20 {
            append(&handle, 1).await;
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    let reads = join_all(sessions.iter_mut().map(|session| numbers(session, 20)));
    let (found, ()) = tokio::join!(reads, appends);
    let all: Vec<u64> = (0..20).collect();
    assert!(found.iter().all(|found| *found == all));
    // Their turns end when few are left, which wait for the next record.
    let mut left = sessions.split_off(290);
    let reads = join_all(left.iter_mut().map(|session| numbers(session, 21)));
    let fewer = async {
        tokio::task::yield_now().await;
        drop(sessions);
        append(&handle, 1).await;
    };
    let (found, ()) = tokio::join!(reads, fewer);
    assert!(found.iter().all(|found| *found == [20]));
    node.stop(Duration::from_secs(30)).await;
}

#[tokio::test]
async fn followers_in_turns_end_with_their_wait_and_with_their_stream() {
    let dir = tempfile::tempdir().unwrap();
    let (node, handle) = started(dir.path()).await;
    let waits = ReadEnd {
        wait: Some(Duration::from_millis(300)),
        ..unbounded()
    };
    let (mut waiting, mut sessions) = (Vec::new(), Vec::new());
    for _ in 0..150 {
        waiting.push(follower(&handle, waits).await);
        sessions.push(follower(&handle, unbounded()).await);
    }
    let ends = join_all(waiting.iter_mut().map(ReadSession::next));
    assert!(ends.await.iter().all(|end| matches!(end, Ok(None))));
    let ends = join_all(sessions.iter_mut().map(ReadSession::next));
    let deleted = async {
        tokio::task::yield_now().await;
        node.delete_stream("test-basin", "followed").await.unwrap();
    };
    let (ends, ()) = tokio::join!(ends, deleted);
    assert!(ends.iter().all(|end| end.is_err()));
    node.stop(Duration::from_secs(30)).await;
}
