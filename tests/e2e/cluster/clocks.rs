//! Clocks that jump, forwards and back, on each node by itself. No decision of the cluster may rest on them: elections
//! and leases count ticks of a clock that only goes on, timestamps of records never decrease, and what expires goes by
//! the clocks of a majority.
//!
//! The clocks are those of [`crate::support::clocks`]; where `libfaketime` is not installed, the tests print that and pass.
//! `scripts/setup` installs it on CI.

use std::time::Duration;

use super::writer::{Follower, Writer, caught_up, create, has_all, stream};
use crate::support::clocks::Clocks;
use crate::support::{Cluster, Setup, eventually, in_time, sdk};

/// Three nodes, each with its clock; `None` where that is not possible.
async fn with_clocks() -> Option<(Clocks, Cluster)> {
    let clocks = Clocks::new()?;
    let mut cluster = Cluster::empty(&Setup::default().partitions(1));
    for at in 0..3 {
        cluster.add(|setup| clocks.give(at, setup)).await;
    }
    cluster.voting().await;
    cluster.settle_leaders().await;
    Some((clocks, cluster))
}

/// Restarts a node with its clock off by so much, and has it lead the partition of the streams.
async fn leads_with_clock(cluster: &mut Cluster, clocks: &Clocks, at: usize, by: &str) {
    cluster.kill(at);
    clocks.set_off(at, by);
    cluster.restart(at).await;
    cluster.voting_as_of(at, 3).await;
    cluster.lead(1, at).await;
}

/// The number of records of a stream after several rounds of retention.
async fn count_later(cluster: &Cluster, name: &str) -> usize {
    tokio::time::sleep(Duration::from_secs(4)).await;
    sdk::read_all(&stream(cluster, 0, name)).await.len()
}

/// By default records are kept for seven days.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_clock_is_days_off_makes_no_record_expire_early_here_or_under_another_leader()
 {
    let Some((clocks, mut cluster)) = with_clocks().await else {
        return;
    };
    create(&cluster, 0, "ahead").await;
    sdk::append(&stream(&cluster, 0, "ahead"), ["a", "b", "c"]).await;
    leads_with_clock(&mut cluster, &clocks, 1, "+8d").await;
    assert_eq!(
        count_later(&cluster, "ahead").await,
        3,
        "its clock is ahead"
    );
    eventually("the status shows it", async || {
        let status = cluster.http(1).get("/esker/v1/status").send().await;
        let status = status.expect(200).json();
        let mut problems = status["problems"].as_array()?.iter();
        problems.find(|problem| problem["code"] == "clock_differs")?;
        Some(())
    })
    .await;

    leads_with_clock(&mut cluster, &clocks, 1, "-8d").await;
    let basin = cluster.client(1).basin(sdk::basin_name("test-basin"));
    sdk::stream(&basin, "behind").await;
    sdk::append(&stream(&cluster, 1, "behind"), ["a", "b", "c"]).await;
    cluster.lead(1, 0).await;
    assert_eq!(
        count_later(&cluster, "behind").await,
        3,
        "its clock was behind"
    );
    assert_eq!(count_later(&cluster, "ahead").await, 3);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clocks_that_jump_move_no_leader_lose_no_append_and_turn_no_timestamp_back() {
    let Some((clocks, mut cluster)) = with_clocks().await else {
        return;
    };
    create(&cluster, 0, "orders").await;
    // It keeps the leadership, so that only an election could end its term.
    let first_leader = cluster.keeper_of(1, 0).await;
    let other = (first_leader + 1) % 3;
    let writer = Writer::start(&cluster, "orders", other);
    let follower = Follower::start(&cluster, "orders");
    // A stall of the machine may cause an election, too.
    in_time("nobody campaigns", async |attempt| {
        cluster.lead(1, first_leader).await;
        let first = of_last_record(&cluster, "before").await;
        let before = cluster.terms(2).await;
        writer.goes_on(20).await;
        // An hour more each time, so that nothing expires.
        let hours = attempt + 1;
        clocks.set_off(first_leader, &format!("+{hours}h"));
        clocks.set_off(other, &format!("-{hours}h"));
        eventually("the clock of the leader has jumped", async || {
            let now = of_last_record(&cluster, "after").await;
            (now > first + 3_000_000).then_some(())
        })
        .await;
        writer.goes_on(20).await;
        match cluster.terms(2).await {
            after if after == before => Ok(()),
            after => Err(format!("terms {before:?} became {after:?}")),
        }
    })
    .await;

    // A leader with an earlier clock takes over, and the other clock goes back.
    cluster.kill(first_leader);
    writer.goes_on(20).await;
    let leader = eventually("another node leads", async || {
        let leader = cluster.leader_of(1, other).await;
        (leader != first_leader).then_some(leader)
    })
    .await;
    clocks.set_off(first_leader, "-1h");
    clocks.set_off(leader, "-2h");
    cluster.restart(first_leader).await;
    tokio::time::sleep(Duration::from_millis(1500)).await;
    writer.goes_on(20).await;
    let written = writer.finish().await;
    follower.finish(written.next).await;
    caught_up(&cluster, other).await;
    for at in cluster.all() {
        has_all(&cluster, at, "orders", written.next).await;
    }
    let records = sdk::read_all(&stream(&cluster, other, "orders")).await;
    let times: Vec<u64> = records.iter().map(|record| record.timestamp).collect();
    assert!(times.is_sorted(), "timestamps never decrease: {times:?}");
}

/// Appends a record to a stream of its own, and returns its timestamp.
async fn of_last_record(cluster: &Cluster, name: &str) -> u64 {
    let name = format!("{name}-{}", rand::random::<u32>());
    let basin = cluster.client(0).basin(sdk::basin_name("test-basin"));
    let stream = sdk::stream(&basin, &name).await;
    let ack = sdk::append(&stream, ["now"]).await;
    ack.start.timestamp
}
