//! Networks that carry messages one way, or not at all.
//!
//! A way that is cut carries nothing, and its connections stay open ([`crate::support::peer_links`]).

use std::time::Duration;

use s2_sdk::S2Stream;

use super::writer::{Follower, Writer, caught_up, create, has_all};
use crate::support::peer_links::Way;
use crate::support::{Cluster, Setup, eventually, in_time, sdk};

/// Longer than two election timeouts: whoever hears nobody has noticed it.
const LONG: Duration = Duration::from_secs(4);

async fn cluster() -> Cluster {
    let cluster = Cluster::linked(&Setup::default().partitions(1))
        .with_three()
        .await;
    create(&cluster, 0, "orders").await;
    cluster
}

/// The ways from some nodes to others.
fn ways(from: &[usize], to: &[usize]) -> Vec<Way> {
    from.iter()
        .flat_map(|from| to.iter().map(|to| (*from, *to)))
        .collect()
}

/// Asks a node that is cut off for the tail, without a retry: it refuses, or waits, or its answer is current.
async fn is_not_stale(stream: &S2Stream, acked: u64, context: &str) {
    let asked = tokio::time::timeout(Duration::from_secs(3), stream.check_tail()).await;
    if let Ok(Ok(tail)) = asked {
        assert!(
            tail.seq_num >= acked,
            "{context}: {} of {acked} records",
            tail.seq_num
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_cut_off_in_any_direction_is_replaced_and_answers_nothing_stale() {
    let cluster = cluster().await;
    let follower = Follower::start(&cluster, "orders");
    let mut next = 0;
    for round in ["it is heard by nobody", "it hears nobody", "both"] {
        let leader = cluster.leader_of(1, 0).await;
        let others: Vec<usize> = cluster.all().filter(|at| *at != leader).collect();
        let cut = match round {
            "it is heard by nobody" => ways(&[leader], &others),
            "it hears nobody" => ways(&others, &[leader]),
            _ => [ways(&[leader], &others), ways(&others, &[leader])].concat(),
        };
        let context = format!("n{leader} led; {round}");
        println!("{context}");
        cluster.links().cut(cut);
        let writer = Writer::start_at(&cluster, "orders", others[0], next);
        writer.goes_on(20).await;
        next = writer.finish().await.next;
        assert_ne!(cluster.leader_of(1, others[0]).await, leader, "{context}");
        let basin = cluster
            .server(leader)
            .sdk()
            .basin(sdk::basin_name("test-basin"));
        let of_old = basin.stream(sdk::stream_name("orders"));
        is_not_stale(&of_old, next, &context).await;
        cluster.links().heal();
        caught_up(&cluster, others[1]).await;
        for at in cluster.all() {
            has_all(&cluster, at, "orders", next).await;
        }
    }
    follower.finish(next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn two_nodes_that_do_not_reach_each_other_but_a_third_one_do_not_disturb_appends() {
    let cluster = cluster().await;
    // It keeps the leadership, so that only an election could end its term.
    let leader = cluster.keeper_of(1, 0).await;
    let (follower, third) = ((leader + 1) % 3, (leader + 2) % 3);
    let mut next = 0;
    // A stall of the machine may cause an election, too.
    in_time("nobody campaigns, and no append is in doubt", async |_| {
        cluster.lead(1, leader).await;
        let writer = Writer::start_at(&cluster, "orders", third, next);
        writer.goes_on(20).await;
        let before = term(&cluster, third).await;
        // The leader and one of its followers; the third node reaches both.
        cluster
            .links()
            .cut([(leader, follower), (follower, leader)]);
        tokio::time::sleep(LONG).await;
        writer.goes_on(20).await;
        cluster.links().heal();
        caught_up(&cluster, third).await;
        writer.goes_on(20).await;
        let written = writer.finish().await;
        next = written.next;
        has_all(&cluster, follower, "orders", next).await;
        let leads = cluster.leader_of(1, third).await;
        let after = term(&cluster, third).await;
        match (leads, after, written.unknown) == (leader, before, 0) {
            true => Ok(()),
            false => Err(format!(
                "term {before} became {after}, n{leader} led and n{leads} does, {} in doubt",
                written.unknown
            )),
        }
    })
    .await;
}

/// The term of the partition, once all nodes have answered.
async fn term(cluster: &Cluster, as_of: usize) -> u64 {
    eventually("all nodes show their terms", async || {
        let view = cluster.view(as_of).await.ok()?;
        let mut partitions = view["partitions"].as_array()?.iter();
        let of = partitions.find(|of| of["partition"] == 1)?;
        let replicas = of["replicas"].as_array()?.iter();
        let terms: Vec<u64> = replicas.filter_map(|it| it["term"].as_u64()).collect();
        (terms.len() == cluster.count()).then(|| terms.into_iter().max())?
    })
    .await
}

/// A leader that is paused believes that it leads when it goes on; so do the connections of its clients.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_is_stopped_for_a_while_and_goes_on_answers_nothing_stale() {
    use rustix::process::Signal;

    let cluster = cluster().await;
    let mut next = 0;
    for _ in 0..2 {
        let leader = cluster.leader_of(1, 0).await;
        let other = (leader + 1) % 3;
        let basin = cluster
            .server(leader)
            .sdk()
            .basin(sdk::basin_name("test-basin"));
        let of_old = basin.stream(sdk::stream_name("orders"));
        of_old.check_tail().await.unwrap();
        cluster.signal(leader, Signal::STOP);
        let writer = Writer::start_at(&cluster, "orders", other, next);
        writer.goes_on(20).await;
        next = writer.finish().await.next;
        // The request is there when it goes on.
        let asked = tokio::spawn(async move {
            is_not_stale(&of_old, next, "paused").await;
        });
        tokio::time::sleep(Duration::from_millis(200)).await;
        cluster.signal(leader, Signal::CONT);
        asked.await.unwrap();
        caught_up(&cluster, other).await;
    }
    has_all(&cluster, 2, "orders", next).await;
}
