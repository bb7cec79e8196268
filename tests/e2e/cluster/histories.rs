//! A stream is one log for all clients at any time, also while the nodes that lead it are killed and paused, are cut off,
//! have a full disk or a clock that jumps. At last all replicas are equal.
//!
//! Clients append (with and without conditions), ask for the tail and read, each by way of a node at random, and note
//! the moments of requests and answers; then a checker searches for an order of events that explains all answers.
//! Others fence the stream against each other: no append may be there under a token that another one has replaced.
//!
//! The faults are those of [`leader_faults`](crate::support::leader_faults).

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use s2_sdk::S2Stream;
use s2_sdk::error::{AppendConditionFailed, AppendError, ReadError};
use s2_sdk::types::{AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, FencingToken};
use testkit::seeds;

use super::writer::{caught_up, create, stream};
use crate::support::history::linearizability::{Answer, Event, check};
use crate::support::leader_faults::{ClientRun, Faults, faults_of_runs};
use crate::support::{Cluster, Setup, sdk};

const CLIENTS: u64 = 6;
/// Answers that are counted.
const APPENDED: &str = "appended";
const REFUSED: &str = "refused";
const FENCED: &str = "appended under a token";
/// Fewest answers of each kind; with fewer, a run shows nothing.
const ENOUGH: [(&str, u64); 3] = [(APPENDED, 100), (REFUSED, 20), (FENCED, 20)];

/// One client's operations. Each node is reached by a client of its own.
async fn client(streams: Vec<S2Stream>, run: Arc<ClientRun>, seed: u64) -> Vec<Event> {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut events = Vec::new();
    let mut believed_tail = 0;
    while run.goes_on() {
        let stream = streams.choose(&mut rng).unwrap();
        let asked = run.elapsed();
        let answer = match rng.random_range(0..10) {
            0..5 => {
                let id = run.id();
                let input = sdk::input([id.to_string()]).with_match_seq_num(believed_tail);
                Some(append(stream, input, id, Some(believed_tail)).await)
            }
            5 => {
                let id = run.id();
                let input = sdk::input([id.to_string()]);
                Some(append(stream, input, id, None).await)
            }
            6..8 => {
                let tail = stream.check_tail().await.ok();
                tail.map(|tail| Answer::Tail { tail: tail.seq_num })
            }
            _ => {
                let from = believed_tail.saturating_sub(rng.random_range(0..4));
                read(stream, from).await
            }
        };
        let answered = run.elapsed();
        let Some(answer) = answer else {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        };
        if let Some(tail) = answer.tail_seen() {
            believed_tail = believed_tail.max(tail);
        }
        match answer {
            Answer::Appended { .. } => run.count(APPENDED),
            Answer::Refused { .. } => run.count(REFUSED),
            _ => {}
        }
        events.push(Event {
            asked,
            answered,
            answer,
        });
        let pause = rng.random_range(0..3000);
        tokio::time::sleep(Duration::from_micros(pause)).await;
    }
    events
}

/// Appends a record, on the condition that it gets the number `expected`, if there is one.
async fn append(stream: &S2Stream, input: AppendInput, id: u64, expected: Option<u64>) -> Answer {
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
        Err(error) if error.has_no_side_effects() => Answer::NotMade { id },
        Err(_) => Answer::Unknown { id },
    }
}

async fn read(stream: &S2Stream, from: u64) -> Option<Answer> {
    match stream.read(sdk::from_seq(from, 50)).await {
        Ok(batch) => Some(Answer::Read {
            from,
            ids: sdk::bodies(&batch.records)
                .iter()
                .map(|body| body.parse().unwrap())
                .collect(),
            reached: batch.tail.map(|tail| tail.seq_num),
        }),
        Err(ReadError::ReadUnwritten(tail)) => Some(Answer::Tail { tail: tail.seq_num }),
        Err(_) => None,
    }
}

/// Fences the stream, and appends under its token until another client has fenced it.
async fn fencer(streams: Vec<S2Stream>, run: Arc<ClientRun>, seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    while run.goes_on() {
        let token = format!("token-{}", run.id());
        let parsed: FencingToken = token.parse().unwrap();
        let fence: AppendRecord = CommandRecord::fence(parsed.clone()).into();
        let fence = AppendRecordBatch::try_from_iter([fence]).unwrap();
        let stream = streams.choose(&mut rng).unwrap();
        if stream.append(AppendInput::new(fence)).await.is_err() {
            tokio::time::sleep(Duration::from_millis(20)).await;
            continue;
        }
        for number in 0..rng.random_range(2..20) {
            let stream = streams.choose(&mut rng).unwrap();
            let input = sdk::input([format!("{token} {number}")]);
            match stream
                .append(input.with_fencing_token(parsed.clone()))
                .await
            {
                Ok(_) => run.count(FENCED),
                Err(AppendError::ConditionFailed(_)) => break,
                // It may be made later, or never.
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    }
}

/// A record of the stream that is fenced.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Fenced {
    By(String),
    Appended { under: String, body: String },
}

/// Checks that each append is there once, under the token that was in force at its place.
fn check_fences(records: &[Fenced]) -> Result<usize, String> {
    let mut token = "";
    let mut seen = HashSet::new();
    for (at, record) in records.iter().enumerate() {
        match record {
            Fenced::By(new) => token = new,
            Fenced::Appended { under, .. } if under != token => {
                return Err(format!("{at}: {record:?}, and the token is {token}"));
            }
            Fenced::Appended { .. } => {}
        }
        if !seen.insert(record) {
            return Err(format!("{at}: {record:?} is there twice"));
        }
    }
    Ok(seen.len())
}

async fn fenced(stream: &S2Stream) -> Vec<Fenced> {
    let records = sdk::read_all(stream).await;
    let records = records.iter().map(|record| {
        let body = String::from_utf8(record.body.to_vec()).unwrap();
        match record.is_command_record() {
            true => Fenced::By(body),
            false => {
                let (under, _) = body.split_once(' ').unwrap();
                let under = under.to_owned();
                Fenced::Appended { under, body }
            }
        }
    });
    records.collect()
}

/// The same stream by way of each node.
fn by_each(cluster: &Cluster, name: &str) -> Vec<S2Stream> {
    let by = |at: usize| {
        let basin = cluster
            .server(at)
            .sdk()
            .basin(sdk::basin_name("test-basin"));
        basin.stream(sdk::stream_name(name))
    };
    cluster.all().map(by).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_order_of_events_explains_every_answer_although_leaders_are_lost() {
    let first = seeds::one(1, "--test e2e cluster::histories::one_order");
    for (seed, faults) in (first..).zip(faults_of_runs()) {
        lose_leaders(seed, faults).await;
    }
}

async fn lose_leaders(seed: u64, faults: u64) {
    println!("seed {seed}, {faults} faults");
    let mut rng = StdRng::seed_from_u64(seed);
    let (lose, mut cluster) = Faults::cluster(&Setup::default().partitions(1)).await;
    create(&cluster, 0, "orders").await;
    let basin = cluster.client(0).basin(sdk::basin_name("test-basin"));
    sdk::stream(&basin, "fenced").await;
    let run = Arc::new(ClientRun::default());
    let clients: Vec<_> = (0..CLIENTS)
        .map(|number| {
            let streams = by_each(&cluster, "orders");
            tokio::spawn(client(streams, run.clone(), seed ^ number))
        })
        .collect();
    let fencers: Vec<_> = (0..3)
        .map(|number| {
            let streams = by_each(&cluster, "fenced");
            tokio::spawn(fencer(streams, run.clone(), seed ^ (100 + number)))
        })
        .collect();
    lose.happen(&mut cluster, 1, faults, &mut rng).await;
    run.enough(&ENOUGH).await;
    run.stop();
    let mut events = Vec::new();
    for client in clients {
        events.extend(client.await.unwrap());
    }
    for fencer in fencers {
        fencer.await.unwrap();
    }
    caught_up(&cluster, 0).await;
    let records = sdk::read_all(&stream(&cluster, 0, "orders")).await;
    let contents: Vec<u64> = sdk::bodies(&records)
        .iter()
        .map(|body| body.parse().unwrap())
        .collect();
    let count = |which: fn(&Answer) -> bool| events.iter().filter(|e| which(&e.answer)).count();
    let appended = count(|a| matches!(a, Answer::Appended { .. }));
    let refused = count(|a| matches!(a, Answer::Refused { .. }));
    let unknown = count(|a| matches!(a, Answer::Unknown { .. }));
    println!(
        "{appended} appended, {refused} refused, {unknown} unknown, of {}",
        events.len()
    );
    if let Err(why) = check(&events, &contents) {
        panic!("seed {seed}: {why}");
    }
    match check_fences(&fenced(&stream(&cluster, 1, "fenced")).await) {
        Ok(records) => assert!(records > 20, "{records} records under tokens"),
        Err(why) => panic!("seed {seed}: {why}"),
    }
    let times: Vec<u64> = records.iter().map(|record| record.timestamp).collect();
    assert!(times.is_sorted(), "timestamps never decrease: {times:?}");
    cluster.replicas_are_equal(0).await;
}

#[test]
fn an_append_under_a_token_that_was_replaced_and_one_that_is_there_twice_are_found() {
    let by = |token: &str| Fenced::By(token.to_owned());
    let appended = |under: &str, number: u32| Fenced::Appended {
        under: under.to_owned(),
        body: format!("{under} {number}"),
    };
    let good = [
        by("a"),
        appended("a", 0),
        by("b"),
        appended("b", 0),
        appended("b", 1),
    ];
    assert_eq!(check_fences(&good), Ok(5));
    let late = [by("a"), by("b"), appended("a", 0)];
    assert!(check_fences(&late).is_err());
    let twice = [by("a"), appended("a", 0), appended("a", 0)];
    assert!(check_fences(&twice).is_err());
}
