//! Each path of `docs/guides/cluster.md`, with the commands that it shows.

use std::process::Output;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use testkit::ports::free_port;
use testkit::process::esker;

use super::writer::{Follower, Writer, caught_up, create, has_all};
use crate::support::{Cluster, SOON, Setup, eventually, sdk};

fn setup() -> Setup {
    Setup::default().partitions(1)
}

/// Runs `esker cluster …` against a node, while the tasks of the test go on.
async fn command(cluster: &Cluster, at: usize, words: &[&str]) -> Output {
    let mut command = esker();
    command.arg("cluster").args(words);
    command.arg("--server").arg(cluster.server(at).url());
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    run.await.unwrap()
}

/// The same; it is expected to work, as soon as the cluster is ready for it.
async fn done(cluster: &Cluster, at: usize, words: &[&str]) {
    let began = Instant::now();
    loop {
        let output = command(cluster, at, words).await;
        if output.status.success() {
            return;
        }
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(began.elapsed() < SOON, "{words:?}: {error}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// What `esker cluster status --json` prints.
async fn status(cluster: &Cluster, at: usize) -> Value {
    let output = command(cluster, at, &["status", "--json"]).await;
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    serde_json::from_slice(&output.stdout).unwrap_or_else(|e| panic!("{e}: {error}"))
}

/// Waits until a node leads no partition, as node `at` shows it.
async fn leads_nothing(cluster: &Cluster, at: usize, node: usize) {
    let name = format!("n{node}");
    eventually("the drained node leads nothing", async || {
        let status = status(cluster, at).await;
        let partitions = status["partitions"].as_array()?.iter();
        let mut leaders = partitions.map(|of| &of["leader_name"]);
        leaders
            .all(|it| it.is_string() && *it != name.as_str())
            .then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_server_that_was_alone_becomes_the_first_node_and_the_others_have_its_records() {
    let cluster = Cluster::empty(&setup());
    let mut alone = setup().start(&cluster.directory().join("n0")).await;
    let basin = sdk::basin(&alone.sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    for number in 0..20 {
        sdk::append(&stream, [number.to_string()]).await;
    }
    alone.stop().await;

    let mut cluster = cluster.with_three().await;
    let status = status(&cluster, 2).await;
    let names: Vec<_> = status["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|it| &it["name"])
        .collect();
    assert_eq!(names.len(), 3, "{names:?}");
    caught_up(&cluster, 0).await;
    cluster.kill(0);
    has_all(&cluster, 1, "orders", 20).await;
    let writer = Writer::start_at(&cluster, "orders", 2, 20);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    has_all(&cluster, 1, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_whose_disk_is_lost_is_replaced_by_one_with_another_name() {
    let mut cluster = Cluster::start(&setup()).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(20).await;
    cluster.kill(2);
    let lost = cluster.server(2).data_dir().to_owned();
    std::fs::remove_dir_all(lost).unwrap();
    writer.goes_on(20).await;

    let new = cluster.add(|setup| setup).await;
    done(&cluster, 0, &["remove", "n2", "--yes"]).await;
    cluster.voting_as_of(0, 3).await;
    eventually("the removed node is shown no more", async || {
        let view = cluster.view(new).await.ok()?;
        let nodes = view["nodes"].as_array()?;
        nodes.iter().all(|node| node["name"] != "n2").then_some(())
    })
    .await;
    // The new one counts: without it, one of two that are left has no majority.
    cluster.kill(1);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    has_all(&cluster, new, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_drained_and_removed_while_appends_go_on() {
    let mut cluster = Cluster::start(&setup()).await;
    cluster.add(|setup| setup).await;
    cluster.voting_as_of(0, 4).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 1);
    writer.goes_on(20).await;
    let leader = cluster.leader_of(1, 1).await;
    let asked = (leader + 1) % 4;
    writer.use_node(asked);
    let name = format!("n{leader}");
    done(&cluster, asked, &["drain", &name]).await;
    leads_nothing(&cluster, asked, leader).await;
    writer.goes_on(20).await;
    done(&cluster, asked, &["remove", &name, "--yes"]).await;
    writer.goes_on(20).await;
    let written = writer.finish().await;
    assert_eq!(
        written.unknown, 0,
        "a planned move leaves no append in doubt"
    );
    cluster.kill(leader);
    cluster.voting_as_of(asked, 3).await;
    for at in cluster.all().filter(|at| *at != leader) {
        has_all(&cluster, at, "orders", written.next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leadership_moves_to_each_node_by_command_and_no_append_is_in_doubt() {
    let cluster = Cluster::start(&setup()).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    let mut longest = Duration::ZERO;
    for to in [1, 2, 0, 2] {
        writer.goes_on(20).await;
        let began = Instant::now();
        done(&cluster, 0, &["transfer-leader", "1", &format!("n{to}")]).await;
        longest = longest.max(began.elapsed());
        eventually(&format!("n{to} leads"), async || {
            (cluster.leader_of(1, to).await == to).then_some(())
        })
        .await;
    }
    writer.goes_on(20).await;
    let written = writer.finish().await;
    println!(
        "longest pause {:?}, longest command {longest:?}",
        written.longest
    );
    assert_eq!(
        written.unknown, 0,
        "a planned move leaves no append in doubt"
    );
    has_all(&cluster, 1, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_that_come_back_at_other_addresses_are_found_by_the_others() {
    let mut cluster = Cluster::start(&setup()).await;
    create(&cluster, 0, "orders").await;
    for at in cluster.all() {
        cluster.stop(at).await;
        let (client, peer) = (free_port().unwrap(), free_port().unwrap());
        cluster.set_up(at, |setup| {
            setup
                .listen(&format!("127.0.0.1:{client}"))
                .set(&format!("cluster.peer-listen=127.0.0.1:{peer}"))
                .set(&format!("cluster.peer-advertise=127.0.0.1:{peer}"))
        });
        cluster.restart(at).await;
        let address = format!("127.0.0.1:{peer}");
        let asked = (at + 1) % 3;
        eventually("the others know the new address", async || {
            let view = cluster.view(asked).await.ok()?;
            let nodes = view["nodes"].as_array()?.iter();
            let mut moved = nodes.filter(|node| node["peer_address"] == address.as_str());
            moved.next()?["unreachable"].is_null().then_some(())
        })
        .await;
    }
    // Each is needed now.
    cluster.kill(0);
    let writer = Writer::start(&cluster, "orders", 1);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    cluster.restart(0).await;
    caught_up(&cluster, 2).await;
    cluster.kill(1);
    has_all(&cluster, 0, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_nodes_that_restart_at_once_elect_leaders_and_have_everything() {
    let mut cluster = Cluster::start(&setup()).await;
    create(&cluster, 0, "orders").await;
    let follower = Follower::start(&cluster, "orders");
    let mut next = 0;
    for _ in 0..2 {
        let writer = Writer::start_at(&cluster, "orders", 0, next);
        writer.goes_on(20).await;
        next = writer.finish().await.next;
        cluster.all().for_each(|at| cluster.kill(at));
        cluster.restart_all().await;
        for at in cluster.all() {
            has_all(&cluster, at, "orders", next).await;
        }
    }
    follower.finish(next).await;
}

/// As the guide says it: drain, stop, start, activate, one node after the other.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_leaves_no_append_in_doubt() {
    let mut cluster = Cluster::start(&setup()).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    let follower = Follower::start(&cluster, "orders");
    for at in cluster.all() {
        let other = (at + 1) % 3;
        let name = format!("n{at}");
        writer.use_node(other);
        writer.goes_on(10).await;
        done(&cluster, other, &["drain", &name]).await;
        leads_nothing(&cluster, other, at).await;
        cluster.stop(at).await;
        writer.goes_on(10).await;
        cluster.restart(at).await;
        done(&cluster, other, &["activate", &name]).await;
        cluster.voting_as_of(other, 3).await;
    }
    let written = writer.finish().await;
    println!(
        "{} records, longest pause {:?}",
        written.next, written.longest
    );
    assert_eq!(
        written.unknown, 0,
        "a planned move leaves no append in doubt"
    );
    follower.finish(written.next).await;
    has_all(&cluster, 0, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_not_removed_where_a_majority_would_be_lost() {
    let mut cluster = Cluster::start(&setup()).await;
    // What it led would have no leader for a while, and nobody who could answer for it.
    for partition in [0, 1] {
        cluster.lead(partition, 0).await;
    }
    cluster.kill(2);
    // At once: the leaders have not missed its heartbeats yet.
    for wait in [Duration::ZERO, Duration::from_secs(8)] {
        tokio::time::sleep(wait).await;
        let output = command(&cluster, 0, &["remove", "n1", "--yes"]).await;
        let error = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(!output.status.success(), "{error}");
        assert!(error.contains("majority"), "{error}");
        assert!(
            error.contains("n2 does not answer (not heard from"),
            "{error}"
        );
    }
    let unknown = command(&cluster, 0, &["drain", "n7"]).await;
    assert!(!unknown.status.success());
    let answer = cluster
        .change(0, "partitions/1/leader", &json!({"to": "n7"}))
        .await;
    assert!(answer.status.is_client_error(), "{}", answer.text());
}
