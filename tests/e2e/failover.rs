//! Three nodes: requests to any of them, and nodes that are killed in the middle of work.
//!
//! In each round writers and followers of three streams talk to nodes at random, and at a random moment one node is
//! killed, stopped, or paused, or all are killed at once. Then each stream is read whole, from a node at random,
//! and compared with every answer that clients got; at last the replicas are compared with each other. `ESKER_FAILOVER_ROUNDS` is the number of rounds; `make soak-cluster`
//! runs hundreds.

use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use rustix::process::Signal;
use s2_sdk::types::BasinConfig;
use testkit::seeds;

use crate::kill_loop::workload::{Stop, Streams, follow};
use crate::support::{Cluster, Setup, eventually, sdk};

/// Rounds, unless `ESKER_FAILOVER_ROUNDS` has another number: each fault occurs in them.
const ROUNDS: u64 = 6;
/// Rounds after which new streams are used, because each check reads whole streams.
const ROUNDS_PER_STREAM: u64 = 12;
/// Fewest acknowledged records; with fewer, the test shows nothing.
const ENOUGH: u64 = 150;

/// Waits until each node leads a partition: each has a vote in all of them then.
async fn settled(cluster: &Cluster) {
    eventually("each node leads a partition", async || {
        for at in cluster.all() {
            let http = cluster.server(at).http1();
            let status = http.get("/esker/v1/status").try_send().await.ok()?;
            let status = status.json();
            let partitions = status["partitions"].as_array()?;
            partitions.iter().find(|one| one["role"] == "leader")?;
        }
        Some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_one_node_acknowledges_every_other_one_has() {
    let nodes = Cluster::start(&Setup::default().partitions(2)).await;
    settled(&nodes).await;
    let basin = sdk::basin(&nodes.client(0), "test-basin").await;
    drop(basin);
    for name in ["a", "b", "c", "d"] {
        for maker in 0..3 {
            let name = format!("{name}-{maker}");
            let basin = |at: usize| nodes.client(at).basin(sdk::basin_name("test-basin"));
            let made = sdk::stream(&basin(maker), &name).await;
            drop(made);
            let mut bodies = Vec::new();
            for writer in 0..3 {
                let body = format!("{name} by {writer}");
                let stream = basin(writer).stream(sdk::stream_name(&name));
                sdk::append(&stream, [&body]).await;
                bodies.push(body);
                for reader in 0..3 {
                    let stream = basin(reader).stream(sdk::stream_name(&name));
                    let read = sdk::bodies(&sdk::read_all(&stream).await);
                    assert_eq!(read, bodies, "read from {reader}");
                }
            }
        }
    }
}

/// What happens to a node in a round.
#[derive(Clone, Copy, Debug)]
enum Fault {
    /// It is killed, and started again after the streams were read, or before.
    Kill { back_first: bool },
    /// It is paused for longer than an election takes, and goes on: it may believe that it leads.
    Pause,
    /// It stops as an operator stops it.
    Stop,
    /// All are killed at once.
    KillAll,
}

impl Fault {
    fn of(round: u64, rng: &mut StdRng) -> Fault {
        match round % 6 {
            0 | 3 => Fault::Kill {
                back_first: rng.random(),
            },
            1 | 4 => Fault::Pause,
            2 => Fault::Stop,
            _ => Fault::KillAll,
        }
    }
}

/// The fault happens to a node while clients work. Returns the node.
async fn suffer(nodes: &mut Cluster, fault: Fault, rng: &mut StdRng) -> usize {
    let node = rng.random_range(0..3);
    match fault {
        Fault::Kill { .. } => nodes.kill(node),
        Fault::Pause => {
            nodes.signal(node, Signal::STOP);
            let paused = rng.random_range(1_500..4_000);
            tokio::time::sleep(Duration::from_millis(paused)).await;
            nodes.signal(node, Signal::CONT);
        }
        Fault::Stop => nodes.stop(node).await,
        Fault::KillAll => nodes.all().for_each(|node| nodes.kill(node)),
    }
    node
}

/// Brings back what the fault has ended.
async fn heal(nodes: &mut Cluster, fault: Fault, node: usize) {
    match fault {
        Fault::Kill { .. } | Fault::Stop => nodes.restart(node).await,
        Fault::Pause => {}
        Fault::KillAll => {
            for node in nodes.all() {
                nodes.restart(node).await;
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_are_killed_or_paused_lose_nothing_that_was_acknowledged_and_repeat_nothing() {
    let rounds = std::env::var("ESKER_FAILOVER_ROUNDS");
    let rounds = rounds.map_or(ROUNDS, |rounds| rounds.parse().unwrap());
    let seed = seeds::one(1, "--test e2e failover::nodes_that_are_killed");
    let mut rng = StdRng::seed_from_u64(seed);
    let setup = Setup::default()
        .partitions(2)
        .set("log.flush-after=64KiB")
        .set("log.segment-size=1MiB")
        .set("log.purge-threshold=1MiB");
    let mut nodes = Cluster::start(&setup).await;
    settled(&nodes).await;
    let config = BasinConfig::new()
        .with_create_stream_on_append(true)
        .with_create_stream_on_read(true);
    sdk::basin_with(&nodes.client(0), "test-basin", config).await;
    let mut streams = Streams::new(0, seed);
    let began = Instant::now();
    let mut acked = 0;
    let mut round = 0;
    // On a busy machine more rounds are needed.
    while round < rounds || (acked + streams.acked() <= ENOUGH && round < 10 * rounds) {
        if round > 0 && round % ROUNDS_PER_STREAM == 0 {
            acked += streams.acked();
            streams = Streams::new(round / ROUNDS_PER_STREAM, seed ^ round);
        }
        let fault = Fault::of(round, &mut rng);
        let context = format!("seed {seed}, round {round}, {fault:?}");
        let stop = Stop::default();
        let mut anyone = || nodes.server(rng.random_range(0..3)).sdk();
        let writers = streams.start(round, &stop, &mut anyone);
        let followers: Vec<_> = streams
            .subjects()
            .into_iter()
            .flat_map(|subject| [(subject, 0), (subject, u64::MAX)])
            .map(|(subject, from)| tokio::spawn(follow(subject.clone(), anyone(), from)))
            .collect();
        tokio::time::sleep(Duration::from_millis(rng.random_range(50..1500))).await;
        let node = suffer(&mut nodes, fault, &mut rng).await;
        // Some writers go on through the change of leaders.
        tokio::time::sleep(Duration::from_millis(rng.random_range(0..3000))).await;
        stop.stop();
        streams.collect(writers).await;
        for follower in followers {
            follower.abort();
        }
        let is_healed_later = matches!(fault, Fault::Kill { back_first: false });
        if !is_healed_later {
            heal(&mut nodes, fault, node).await;
        }
        // Two nodes are enough to read everything.
        let reader = (node + rng.random_range(1..3)) % 3;
        for subject in streams.subjects() {
            subject.check(&nodes.client(reader), &context).await;
        }
        if is_healed_later {
            heal(&mut nodes, fault, node).await;
        }
        round += 1;
    }
    acked += streams.acked();
    nodes.replicas_are_equal(0).await;
    println!(
        "{round} faults in {:?}, {acked} records, seed {seed}",
        began.elapsed()
    );
    assert!(acked > ENOUGH, "too little was going on: {acked}");
}
