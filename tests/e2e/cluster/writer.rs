//! A writer that goes on across failures. It appends one record at a time, each with its number as the body and on the
//! condition that it gets that number. When an answer is lost, it looks where the stream ends. So the stream has all
//! numbers, each once and in order, and what the writer knows of each append is checked as it goes.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use s2_sdk::S2Stream;
use s2_sdk::error::AppendError;
use s2_sdk::types::{ReadFrom, ReadInput, ReadSessionConfig, ReadStart};
use tokio::task::JoinHandle;

use crate::support::{Cluster, SOON, eventually, sdk, soon};

const BASIN: &str = "test-basin";

/// A running writer.
pub struct Writer {
    task: JoinHandle<Written>,
    shared: Arc<Shared>,
}

#[derive(Default)]
struct Shared {
    stop: AtomicBool,
    /// The node that it sends to.
    node: AtomicUsize,
    acked: AtomicU64,
}

/// What a writer did.
#[derive(Clone, Copy, Debug, Default)]
pub struct Written {
    /// Numbers below this one are in the stream.
    pub next: u64,
    /// Answers that left it open whether the append was made.
    pub unknown: u64,
    /// The longest time between two acknowledgements.
    pub longest: Duration,
}

/// A stream of the test's basin, by way of a node.
pub fn stream(cluster: &Cluster, at: usize, name: &str) -> S2Stream {
    let basin = cluster.client(at).basin(sdk::basin_name(BASIN));
    basin.stream(sdk::stream_name(name))
}

/// Makes the basin and a stream by way of a node.
pub async fn create(cluster: &Cluster, at: usize, name: &str) {
    let basin = sdk::basin(&cluster.client(at), BASIN).await;
    sdk::stream(&basin, name).await;
}

impl Writer {
    /// Starts to append to an empty stream by way of this node.
    pub fn start(cluster: &Cluster, name: &str, node: usize) -> Writer {
        Writer::start_at(cluster, name, node, 0)
    }

    /// The same, to a stream that has the numbers below `next`.
    pub fn start_at(cluster: &Cluster, name: &str, node: usize, next: u64) -> Writer {
        let shared = Arc::new(Shared {
            node: AtomicUsize::new(node),
            ..Shared::default()
        });
        let streams: Vec<S2Stream> = cluster
            .all()
            .map(|at| {
                let basin = cluster.server(at).sdk().basin(sdk::basin_name(BASIN));
                basin.stream(sdk::stream_name(name))
            })
            .collect();
        let task = tokio::spawn(work(streams, shared.clone(), next));
        Writer { task, shared }
    }

    /// From now on it sends to this node.
    pub fn use_node(&self, node: usize) {
        self.shared.node.store(node, Ordering::Relaxed);
    }

    /// Waits until so many more appends are acknowledged.
    pub async fn goes_on(&self, more: u64) {
        let acked = || self.shared.acked.load(Ordering::Relaxed);
        let wanted = acked() + more;
        eventually("appends go on", async || {
            assert!(!self.task.is_finished(), "the writer has failed");
            (acked() >= wanted).then_some(())
        })
        .await;
    }

    /// Ends it after the append under way.
    pub async fn finish(self) -> Written {
        self.shared.stop.store(true, Ordering::Relaxed);
        self.task.await.unwrap()
    }
}

async fn work(streams: Vec<S2Stream>, shared: Arc<Shared>, next: u64) -> Written {
    let mut written = Written {
        next,
        ..Written::default()
    };
    let mut last = Instant::now();
    while !shared.stop.load(Ordering::Relaxed) {
        let stream = &streams[shared.node.load(Ordering::Relaxed)];
        let input = sdk::input([written.next.to_string()]).with_match_seq_num(written.next);
        match stream.append(input).await {
            Ok(ack) => assert_eq!(ack.start.seq_num, written.next, "elsewhere than demanded"),
            Err(error) => {
                if is_unknown(&error) {
                    written.unknown += 1;
                }
                let tail = tail(&streams, &shared).await;
                if tail == written.next {
                    continue;
                }
                assert_eq!(tail, written.next + 1, "{error}");
                assert!(is_unknown(&error), "made, though refused: {error}");
            }
        }
        written.next += 1;
        shared.acked.fetch_add(1, Ordering::Relaxed);
        written.longest = written.longest.max(last.elapsed());
        last = Instant::now();
    }
    written
}

fn is_unknown(error: &AppendError) -> bool {
    !error.has_no_side_effects() && !matches!(error, AppendError::ConditionFailed(_))
}

/// Where the stream ends, once that is known.
async fn tail(streams: &[S2Stream], shared: &Shared) -> u64 {
    let began = Instant::now();
    loop {
        let stream = &streams[shared.node.load(Ordering::Relaxed)];
        match stream.check_tail().await {
            Ok(tail) => return tail.seq_num,
            Err(error) => assert!(began.elapsed() < SOON, "{error}"),
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

/// Checks that a stream has the numbers below `next`, by way of a node.
pub async fn has_all(cluster: &Cluster, at: usize, name: &str, next: u64) {
    let stream = stream(cluster, at, name);
    let read = soon("the stream is read", sdk::read_all(&stream)).await;
    let read = sdk::bodies(&read);
    let expected: Vec<String> = (0..next).map(|number| number.to_string()).collect();
    assert!(
        read == expected,
        "by way of n{at}: {} records of {next}, or others",
        read.len()
    );
}

/// Waits until all nodes answer, and have applied what had been applied anywhere when this was called, as node `at`
/// shows it.
pub async fn caught_up(cluster: &Cluster, at: usize) {
    let mut wanted: Option<Vec<u64>> = None;
    eventually("all nodes have caught up", async || {
        let view = cluster.view(at).await.ok()?;
        let applied = view["partitions"].as_array()?.iter().map(|of| {
            let replicas = of["replicas"].as_array()?.iter();
            let applied = replicas.filter_map(|it| it["applied"].as_u64());
            Some(applied.collect::<Vec<_>>())
        });
        let applied: Vec<_> = applied.collect::<Option<_>>()?;
        let most = |of: &Vec<u64>| of.iter().copied().max().unwrap_or_default();
        let wanted = wanted.get_or_insert_with(|| applied.iter().map(most).collect());
        let have_all = applied.iter().zip(wanted).all(|(of, wanted)| {
            of.len() == cluster.count() && of.iter().all(|applied| *applied >= *wanted)
        });
        have_all.then_some(())
    })
    .await;
}

/// The first and the last entry of the log that the leader of a partition has, as node `at` knows who leads.
pub async fn log_of_leader(cluster: &Cluster, at: usize, partition: u64) -> (u64, u64) {
    eventually("the leader shows its log", async || {
        let leader = cluster.leader_of(partition, at).await;
        let http = cluster.http(leader);
        let status = http.get("/esker/v1/status").try_send().await.ok()?.json();
        let mut partitions = status["partitions"].as_array()?.iter();
        let of = partitions.find(|of| of["partition"] == partition)?;
        if of["role"] != "leader" {
            return None;
        }
        Some((of["log_head"].as_u64()?, of["last"].as_u64()?))
    })
    .await
}

/// Waits until the log that the leader of a partition has begins after an entry: a node that has nothing after that one needs
/// a snapshot. The log is trimmed in the background, some time after it was written.
pub async fn log_begins_after(cluster: &Cluster, at: usize, partition: u64, lsn: u64) {
    let what = format!("the log of partition {partition} begins after {lsn}");
    eventually(&what, async || {
        let (head, _) = log_of_leader(cluster, at, partition).await;
        (head > lsn).then_some(())
    })
    .await;
}

/// A follower of a stream that goes on from where it was, by way of the next node, whenever its session ends.
pub struct Follower {
    task: JoinHandle<()>,
    seen: Arc<AtomicU64>,
}

impl Follower {
    /// Follows a stream whose records are numbers, and checks that each comes once and in order.
    pub fn start(cluster: &Cluster, name: &str) -> Follower {
        let streams: Vec<S2Stream> = cluster
            .all()
            .map(|at| {
                let basin = cluster.server(at).sdk().basin(sdk::basin_name(BASIN));
                basin.stream(sdk::stream_name(name))
            })
            .collect();
        let seen = Arc::new(AtomicU64::new(0));
        let task = tokio::spawn(follow(streams, seen.clone()));
        Follower { task, seen }
    }

    /// Waits until it has seen everything below `next`, and ends it.
    pub async fn finish(self, next: u64) {
        eventually("the follower has seen everything", async || {
            if self.task.is_finished() {
                panic!("the follower has failed: its panic is above");
            }
            (self.seen.load(Ordering::Relaxed) >= next).then_some(())
        })
        .await;
        self.task.abort();
    }
}

async fn follow(streams: Vec<S2Stream>, seen: Arc<AtomicU64>) {
    for stream in streams.iter().cycle() {
        let from = seen.load(Ordering::Relaxed);
        let start = ReadStart::new().with_from(ReadFrom::SeqNum(from));
        let input = ReadInput::new().with_start(start);
        if let Ok(mut session) = stream.read_session(input, ReadSessionConfig::new()).await {
            while let Some(Ok(batch)) = session.next().await {
                for record in &batch.records {
                    let next = seen.load(Ordering::Relaxed);
                    assert_eq!(record.seq_num, next, "a hole, or a record twice");
                    assert_eq!(record.body, next.to_string(), "another record");
                    seen.store(next + 1, Ordering::Relaxed);
                }
            }
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
