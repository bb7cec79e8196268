//! Read sessions: they begin at once, catch up, follow, and send heartbeats.

use std::time::{Duration, Instant};

use futures::StreamExt as _;
use s2_api::v1::stream::proto::ReadBatch;
use s2_sdk::S2Stream;
use s2_sdk::error::{ReadError, ReadSessionError};
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, ReadFrom, ReadInput,
    ReadSessionConfig, ReadStart,
};

use crate::support::events::Events;
use crate::support::frames::{self, Output, ReadSession};
use crate::support::http::TRANSPORTS;
use crate::support::sdk;
use crate::support::{Http, Server, Setup, eventually, in_time, soon, within};

async fn orders(server: &Server) -> S2Stream {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    sdk::stream(&basin, "orders").await
}

async fn follow(http: &Http, query: &str) -> ReadSession {
    frames::read_session(http, "test-basin", "orders", query).await
}

fn from(seq_num: u64) -> ReadInput {
    ReadInput::new().with_start(ReadStart::new().with_from(ReadFrom::SeqNum(seq_num)))
}

#[tokio::test]
async fn a_session_begins_at_once_and_says_where_the_tail_is_when_it_gets_there() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let tail = stream.check_tail().await.unwrap().seq_num;
        for query in ["seq_num=0", "", "tail_offset=0", "seq_num=999&clamp=true"] {
            let mut session = in_time("a session begins", async |_| {
                let started = Instant::now();
                let session = follow(&http, query).await;
                within(started.elapsed(), Duration::from_secs(2)).map(|()| session)
            })
            .await;
            if query == "seq_num=0" && tail > 0 {
                let batch = session.next().await.message();
                assert_eq!(batch.records.len() as u64, tail);
                assert_eq!(batch.tail.unwrap().seq_num, tail);
            }
            let heartbeat = session.next().await.message();
            assert!(heartbeat.records.is_empty());
            assert_eq!(heartbeat.tail.unwrap().seq_num, tail, "{query}");
        }
        sdk::append(&stream, ["x"]).await;
    }
}

#[tokio::test]
async fn a_quiet_follower_hears_a_heartbeat_every_5_to_15_seconds() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["x"]).await;
    let http = server.http2();
    // A stall of the machine delays a heartbeat of one try.
    in_time("heartbeats", async |_| {
        let by_frames = async {
            let opened = Instant::now();
            let mut session = follow(&http, "tail_offset=0").await;
            let first = session.next().await.message();
            let received = Instant::now();
            let next = session.next().await.message();
            assert_eq!(next, first);
            (opened.elapsed(), received.elapsed())
        };
        let by_events = async {
            let opened = Instant::now();
            let mut events =
                Events::open(&http, "test-basin", "orders", "tail_offset=0", None).await;
            assert_eq!(events.next().await.unwrap().event, "ping");
            let received = Instant::now();
            let ping = events.next().await.unwrap();
            assert_eq!(ping.event, "ping");
            assert_eq!(ping.json()["tail"]["seq_num"], 1);
            (opened.elapsed(), received.elapsed())
        };
        let (by_frames, by_events) = tokio::join!(by_frames, by_events);
        for (since_opened, since_first) in [by_frames, by_events] {
            let least = Duration::from_secs(5);
            assert!(since_opened >= least, "{since_opened:?}");
            // Clients give up after 20 seconds.
            within(since_first, Duration::from_secs(19))?;
        }
        Ok(())
    })
    .await;
}

#[tokio::test]
async fn many_followers_of_many_kinds_all_see_everything_in_order() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    let total = 600u64;
    let http = server.http2();
    let http = &http;
    let by_frames = (0..12u64).map(|i| async move {
        // The readers begin at different times, some of them behind the tail.
        tokio::time::sleep(Duration::from_millis(15 * i)).await;
        let mut session = follow(http, "seq_num=0").await;
        let mut next = 0;
        while next < total {
            for record in session.next().await.message().records {
                assert_eq!(record.seq_num, next);
                assert_eq!(record.body, next.to_string());
                next += 1;
            }
        }
    });
    let by_events = (0..6u64).map(|i| async move {
        tokio::time::sleep(Duration::from_millis(20 * i)).await;
        let mut events = Events::open(http, "test-basin", "orders", "seq_num=0", None).await;
        let mut seen = Vec::new();
        while (seen.len() as u64) < total {
            let event = events.next().await.unwrap();
            if event.event == "batch" {
                seen.extend(event.seq_nums());
            }
        }
        assert_eq!(seen, (0..total).collect::<Vec<_>>());
    });
    let append = async {
        for i in 0..total {
            sdk::append(&stream, [format!("{i}")]).await;
        }
    };
    tokio::join!(
        futures::future::join_all(by_frames),
        futures::future::join_all(by_events),
        append
    );
}

#[tokio::test]
async fn a_slow_follower_falls_out_of_memory_and_still_gets_everything() {
    // Memory keeps 64 KiB of recent records; the reader is megabytes behind, catches up, and falls behind
    // again.
    let server = Setup::default()
        .set("limits.follower-buffer=64KiB")
        .start_fresh()
        .await;
    let stream = orders(&server).await;
    let http = Http::with_window(server.address(), 70_000);
    let mut session = follow(&http, "seq_num=0").await;
    let mut next = 0u64;
    let mut read = async |session: &mut ReadSession, up_to: u64| {
        while next < up_to {
            for record in session.next().await.message().records {
                assert_eq!(record.seq_num, next);
                assert_eq!(record.body.len(), 10_000);
                assert!(record.body.starts_with(format!("{next} ").as_bytes()));
                next += 1;
            }
        }
    };
    let mut total = 0;
    for round in 0..4 {
        for _ in 0..30 {
            let bodies: Vec<Vec<u8>> = (total..total + 20)
                .map(|i| {
                    let mut body = format!("{i} ").into_bytes();
                    body.resize(10_000, b'x');
                    body
                })
                .collect();
            sdk::append(&stream, bodies).await;
            total += 20;
        }
        // In the last round it reads everything, before that only a part.
        let up_to = if round == 3 { total } else { total - 300 };
        soon("what the reader is to get", read(&mut session, up_to)).await;
    }
    // From here on, it follows the tail.
    loop {
        let batch = session.next().await.message();
        if batch.records.is_empty() {
            assert_eq!(batch.tail.unwrap().seq_num, total);
            break;
        }
    }
    let of_database = read_of_database(&http).await;
    assert!((1..=total).contains(&of_database), "{of_database}");
    // At the tail, records come from memory.
    for _ in 0..20 {
        sdk::append(&stream, [vec![b'x'; 10_000]]).await;
        total += 1;
        let batch = session.batch().await;
        assert_eq!(batch.records.last().unwrap().seq_num + 1, total);
    }
    assert_eq!(read_of_database(&http).await, of_database);
}

/// Records that read sessions read from the database, according to the metrics.
async fn read_of_database(http: &Http) -> u64 {
    let metrics = http.get("/metrics").send().await.expect(200).text();
    let count = |line: &str| {
        let count = line.strip_prefix("esker_read_database_records_total ")?;
        count.parse().ok()
    };
    metrics.lines().find_map(count).expect("the counter")
}

#[tokio::test]
async fn limits_of_a_follower_hold_over_a_lag() {
    let server = Setup::default()
        .set("limits.follower-buffer=64KiB")
        .start_fresh()
        .await;
    let stream = orders(&server).await;
    sdk::append(&stream, ["0"]).await;
    let size = 10_008;
    let queries = [
        ("count=500", 500),
        (&*format!("bytes={}", 321 * size + 5), 321),
        ("count=1200&bytes=99999999", 1200),
    ];
    let mut sessions = Vec::new();
    for (query, expected) in queries {
        let query = format!("seq_num=1&wait=60&{query}");
        // Each session has its own connection; otherwise they would share its window.
        let http = Http::with_window(server.address(), 70_000);
        let mut session = follow(&http, &query).await;
        assert!(session.next().await.message().records.is_empty());
        sessions.push((session, expected));
    }
    for _ in 0..75 {
        sdk::append(&stream, vec![vec![b'x'; 10_000]; 20]).await;
    }
    for (mut session, expected) in sessions {
        let mut outputs = session.rest().await;
        assert_eq!(outputs.pop(), Some(Output::End));
        let records: Vec<u64> = outputs
            .into_iter()
            .flat_map(|output| output.message().records)
            .map(|record| record.seq_num)
            .collect();
        assert_eq!(records, (1..=expected).collect::<Vec<_>>());
    }
}

#[tokio::test]
async fn a_reader_whose_place_is_trimmed_away_goes_on_at_the_head() {
    let server = Setup::default()
        .set("limits.follower-buffer=64KiB")
        .start_fresh()
        .await;
    let stream = orders(&server).await;
    for i in 0..40 {
        let bodies = (0..10).map(|j| format!("{} {}", i * 10 + j, "x".repeat(20_000)));
        sdk::append(&stream, bodies).await;
    }
    let http = Http::with_window(server.address(), 70_000);
    let mut session = follow(&http, "seq_num=0").await;
    let first: ReadBatch = session.next().await.message();
    assert_eq!(first.records[0].seq_num, 0);
    let trim: AppendRecord = CommandRecord::trim(395).into();
    let batch = AppendRecordBatch::try_from_iter([trim]).unwrap();
    stream.append(AppendInput::new(batch)).await.unwrap();
    let mut seen: Vec<u64> = first.records.iter().map(|r| r.seq_num).collect();
    while *seen.last().unwrap() < 400 {
        let batch = session.next().await.message();
        for record in batch.records {
            if record.seq_num < 400 {
                let number = format!("{} ", record.seq_num);
                assert!(record.body.starts_with(number.as_bytes()));
            }
            seen.push(record.seq_num);
        }
    }
    assert!(seen.is_sorted_by(|a, b| a < b));
    // Records in transit may still arrive; what was read after the trim begins at the head.
    let gaps: Vec<_> = seen.windows(2).filter(|w| w[1] != w[0] + 1).collect();
    assert_eq!(gaps.len(), 1, "{seen:?}");
    assert_eq!(gaps[0][1], 395);
}

/// Two records, a trim of everything up to them, and another record.
fn message(first: u64) -> AppendInput {
    let record = |body: &str| AppendRecord::new(body.to_owned()).unwrap();
    let trim: AppendRecord = CommandRecord::trim(first + 3).into();
    let records = [record("a"), record("b"), trim, record("c")];
    AppendInput::new(AppendRecordBatch::try_from_iter(records).unwrap())
}

#[tokio::test]
async fn followers_of_every_kind_get_a_batch_whole_that_trims_itself() {
    let server = Server::fresh().await;
    let stream = orders(&server).await;
    for transport in TRANSPORTS {
        let http = server.http(transport);
        let first = stream.check_tail().await.unwrap().seq_num;
        let mut session = follow(&http, "tail_offset=0").await;
        assert!(session.next().await.message().records.is_empty());
        let mut events = Events::open(&http, "test-basin", "orders", "tail_offset=0", None).await;
        assert_eq!(events.next().await.unwrap().event, "ping");
        let mut next = first;
        for _ in 0..20 {
            stream.append(message(next)).await.unwrap();
            let expected: Vec<u64> = (next..next + 4).collect();
            let batch: ReadBatch = session.batch().await;
            let by_frames: Vec<_> = batch.records.iter().map(|r| r.seq_num).collect();
            assert_eq!(by_frames, expected, "{transport:?}");
            let by_events = events.batch().await.seq_nums();
            assert_eq!(by_events, expected, "{transport:?}");
            next += 4;
        }
        // The appends are concurrent: a reader at the tail misses nothing.
        let appends = (0..50).map(|_| stream.append(message(next + 1_000)));
        for appended in futures::future::join_all(appends).await {
            appended.unwrap();
        }
        let end = next + 200;
        let mut seen = Vec::new();
        while seen.last().is_none_or(|last| last + 1 < end) {
            let batch: ReadBatch = session.next().await.message();
            seen.extend(batch.records.iter().map(|r| r.seq_num));
        }
        assert_eq!(seen, (next..end).collect::<Vec<_>>());
        // A reader that begins now sees what the last trim left.
        let rest = sdk::read_all(&stream).await;
        assert_eq!(sdk::seq_nums(&rest), [end - 1]);
    }
}

mod official {
    //! The same through the official client.

    use super::*;

    #[tokio::test]
    async fn a_session_tells_when_it_has_caught_up() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let ack = sdk::append(&stream, ["first", "second"]).await;
        let start = ReadStart::new().with_from(ReadFrom::TailOffset(2));
        let input = ReadInput::new().with_start(start);
        let mut session = stream
            .read_session(input, ReadSessionConfig::new())
            .await
            .unwrap();
        let mut caught_up = session.caught_up();
        let mut seen = Vec::new();
        let tail = soon("the tail", async {
            loop {
                tokio::select! {
                    tail = &mut caught_up => break tail.unwrap(),
                    batch = session.next() => {
                        seen.extend(sdk::seq_nums(&batch.unwrap().unwrap().records));
                    }
                }
            }
        })
        .await;
        assert_eq!(tail, ack.tail);
        assert_eq!(seen, [0, 1]);
        assert_eq!(session.resume_seq_num(), Some(2));
        let ack = sdk::append(&stream, ["third"]).await;
        let batch = soon("a batch", session.next()).await.unwrap().unwrap();
        assert_eq!(sdk::seq_nums(&batch.records), [2]);
        assert_eq!(batch.tail, Some(ack.tail));
        assert!(session.is_caught_up());
    }

    #[tokio::test]
    async fn a_session_beyond_the_tail_is_refused_unless_it_may_be_moved() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let ack = sdk::append(&stream, ["first"]).await;
        let error = stream
            .read_session(from(10), ReadSessionConfig::new())
            .await
            .err()
            .unwrap();
        let ReadSessionError::Read(ReadError::ReadUnwritten(tail)) = error else {
            panic!("{error}");
        };
        assert_eq!(tail, ack.tail);
        let start = ReadStart::new()
            .with_from(ReadFrom::SeqNum(10))
            .with_clamp_to_tail(true);
        let mut session = stream
            .read_session(ReadInput::new().with_start(start), ReadSessionConfig::new())
            .await
            .unwrap();
        // No record arrives, but at some time it learns the tail.
        eventually("it is at the tail", async || {
            let quiet = tokio::time::timeout(Duration::from_millis(50), session.next()).await;
            assert!(quiet.is_err());
            (session.resume_seq_num() == Some(1)).then_some(())
        })
        .await;
        let quiet = tokio::time::timeout(Duration::from_millis(500), session.next()).await;
        assert!(quiet.is_err());
        assert_eq!(session.resume_seq_num(), Some(1));
        sdk::append(&stream, ["second"]).await;
        let batch = soon("a batch", session.next()).await.unwrap().unwrap();
        assert_eq!(sdk::bodies(&batch.records), ["second"]);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_long_backlog_is_read_whole() {
        let server = Server::fresh().await;
        let stream = orders(&server).await;
        let total = 20_000u64;
        for i in 0..total / 500 {
            sdk::append(&stream, (0..500).map(|j| format!("{}", i * 500 + j))).await;
        }
        let mut session = stream
            .read_session(from(0), ReadSessionConfig::new())
            .await
            .unwrap();
        let mut next = 0;
        soon("the backlog", async {
            while next < total {
                for record in session.next().await.unwrap().unwrap().records {
                    assert_eq!(record.seq_num, next);
                    assert_eq!(record.body, next.to_string());
                    next += 1;
                }
            }
        })
        .await;
    }
}
