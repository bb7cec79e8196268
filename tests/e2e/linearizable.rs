//! A stream is linearizable: it is one log for all clients at any time.
//!
//! Many clients append (with and without an expected sequence number), request the tail and read, all at
//! once, and record the moments of requests and answers. The checker then searches for an order of events
//! that explains all answers.

use std::sync::Arc;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::S2Stream;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError};
use testkit::seeds;

use crate::support::history::linearizability::{Answer, Event, check};
use crate::support::sdk;
use crate::support::{Server, Setup};

const CLIENTS: u64 = 8;
const OPERATIONS: u64 = 250;

/// One client's operations.
async fn client(stream: S2Stream, began: Instant, client: u64, seed: u64) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(seed ^ client);
    let mut events = Vec::new();
    let mut believed_tail = 0;
    for i in 0..OPERATIONS {
        let id = client * OPERATIONS + i;
        let asked = began.elapsed();
        let answer = match rng.random_range(0..10) {
            0..5 => {
                // Mostly at the tail that it assumes.
                let expected = believed_tail + u64::from(rng.random_ratio(1, 10));
                let input = sdk::input([id.to_string()]).with_match_seq_num(expected);
                append(&stream, input, id, Some(expected)).await
            }
            5 => append(&stream, sdk::input([id.to_string()]), id, None).await,
            6..8 => Answer::Tail {
                tail: stream.check_tail().await.unwrap().seq_num,
            },
            _ => {
                let from = believed_tail.saturating_sub(rng.random_range(0..4));
                read(&stream, from).await
            }
        };
        let answered = began.elapsed();
        if let Some(tail) = answer.tail_seen() {
            believed_tail = believed_tail.max(tail);
        }
        events.push(Event {
            asked,
            answered,
            answer,
        });
        if rng.random_ratio(1, 8) {
            tokio::time::sleep(Duration::from_micros(rng.random_range(0..2000))).await;
        }
    }
    events
}

/// Appends a record, on the condition that it gets the number `expected`, if there is one.
async fn append(
    stream: &S2Stream,
    input: s2_sdk::types::AppendInput,
    id: u64,
    expected: Option<u64>,
) -> Answer {
    match stream.append(input).await {
        Ok(ack) => Answer::Appended {
            id,
            at: ack.start.seq_num,
            tail: ack.tail.seq_num,
            expected,
        },
        Err(AppendError::ConditionFailed(AppendConditionFailed::SeqNumMismatch(tail))) => {
            Answer::Refused { id, tail, expected }
        }
        Err(error) => panic!("{error}"),
    }
}

async fn read(stream: &S2Stream, from: u64) -> Answer {
    match stream.read(sdk::from_seq(from, 50)).await {
        Ok(batch) => Answer::Read {
            from,
            ids: sdk::bodies(&batch.records)
                .iter()
                .map(|body| body.parse().unwrap())
                .collect(),
            reached: batch.tail.map(|tail| tail.seq_num),
        },
        Err(ReadError::ReadUnwritten(tail)) => Answer::Tail { tail: tail.seq_num },
        Err(error) => panic!("{error}"),
    }
}

async fn history(server: &Server, seed: u64) -> (Vec<Event>, Vec<u64>) {
    let basin = sdk::basin(&server.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let began = Instant::now();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            // Each client has its own connection.
            let s2 = Arc::new(server.sdk());
            let stream = s2
                .basin(sdk::basin_name("test-basin"))
                .stream(sdk::stream_name("orders"));
            tokio::spawn(client(stream, began, number, seed))
        })
        .collect();
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.await.unwrap());
    }
    let contents = sdk::bodies(&sdk::read_all(&stream).await)
        .iter()
        .map(|body| body.parse().unwrap())
        .collect();
    (events, contents)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_order_of_events_explains_every_answer() {
    let seed = seeds::one(1, "--test e2e linearizable::one_order");
    let server = Setup::default().start_fresh().await;
    let (events, contents) = history(&server, seed).await;
    let count = |which: fn(&Answer) -> bool| events.iter().filter(|e| which(&e.answer)).count();
    let appended = count(|a| matches!(a, Answer::Appended { .. }));
    let refused = count(|a| matches!(a, Answer::Refused { .. }));
    assert!(appended > 200, "{appended} of {} appended", events.len());
    assert!(refused > 50, "{refused} of {} refused", events.len());
    if let Err(why) = check(&events, &contents) {
        panic!("seed {seed}: {why}");
    }
}
