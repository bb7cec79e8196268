//! Addresses of the cluster at which somebody else answers: a node of another cluster, or one that has moved. What they
//! answer is not the cluster's answer.

use std::time::Duration;

use serde_json::{Value, json};

use super::{Nodes, STREAMS, number_of};
use crate::support::{Server, Setup, eventually};

/// Longer than a node goes without a leader before it asks the others whether they still take it, and a few answers.
const LEADERLESS: Duration = Duration::from_secs(8);

/// A node of another cluster, with the peer address that a port has.
async fn another_cluster(nodes: &Nodes, port: u16) -> Server {
    let directory = nodes.directory.path().join("another");
    let destination = directory.join("repository");
    let (listen, _) = nodes.join_ports();
    let setup = Setup::default()
        .partitions(2)
        .listen(&listen)
        .set(&format!("cluster.peer-listen=127.0.0.1:{port}"))
        .set(&format!("snapshots.destination={}", destination.display()));
    setup.start(&directory.join("data")).await
}

/// The codes of the reasons for which a node is not ready.
async fn reasons(server: &Server) -> Option<Vec<String>> {
    let answer = server.http1().get("/health/ready").try_send().await.ok()?;
    let ready: Value = answer.json();
    let reasons = ready["reasons"].as_array().cloned().unwrap_or_default();
    let codes = reasons.iter().filter_map(|one| one["code"].as_str());
    Some(codes.map(str::to_owned).collect())
}

/// A problem that a node shows, in words; empty if it does not have it.
async fn problem(server: &Server, code: &str) -> Option<String> {
    let status = server.http1().get("/esker/v1/status").try_send().await;
    let status = status.ok().filter(|status| status.status == 200)?.json();
    let problems = status["problems"].as_array()?.iter();
    let mut found = problems.filter(|problem| problem["code"] == code);
    let what = found.next().map(ToString::to_string);
    Some(what.unwrap_or_default())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_is_ready_again_after_a_time_without_a_leader_in_which_another_cluster_refused_it() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    let (_, peer) = nodes.join_ports();
    let port: u16 = peer.rsplit(':').next().unwrap().parse().unwrap();
    let _another = another_cluster(&nodes, port).await;
    // An address of `cluster.join` that belongs to another cluster by now.
    let known = format!("cluster.join=127.0.0.1:{},127.0.0.1:{port}", nodes.peers[0]);
    nodes.setups[1] = nodes.setups[1].clone().set(&known);
    nodes.servers[1].kill();
    nodes.restart(1).await;
    nodes.have_voters(1, 3).await;
    nodes.servers[0].kill();
    nodes.servers[2].kill();
    nodes.not_ready(1, "no_leader").await;
    tokio::time::sleep(LEADERLESS).await;
    let during = reasons(&nodes.servers[1]).await.unwrap();
    nodes.restart(0).await;
    nodes.restart(2).await;
    nodes.have_voters(1, 3).await;
    eventually("it is ready", async || {
        reasons(&nodes.servers[1]).await?.is_empty().then_some(())
    })
    .await;
    nodes.append(1, "b").await;
    nodes.have(1, &["a", "b"]).await;
    assert_eq!(during, ["no_leader"], "what was wrong meanwhile");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_starts_while_another_cluster_is_where_a_node_was_that_is_given_up() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.have_voters(0, 3).await;
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    let _another = another_cluster(&nodes, nodes.peers[1]).await;
    assert!(super::survivor::recover(&nodes.data(0)).status.success());
    nodes.restart(0).await;
    nodes.have(0, &["a"]).await;
    nodes.append(0, "b").await;
    let log = nodes.servers[0].log().join("\n");
    assert!(log.contains("is not of this cluster"), "{log}");
    // What it has kept is not said to be lost.
    assert!(log.contains("goes on in it"), "{log}");
    assert!(!log.contains("whatever was acknowledged after"), "{log}");
}

/// The limits of the log are small, and appends are refused beyond them.
const LOG: [&str; 5] = [
    "log.segment-size=1MiB",
    "log.purge-threshold=2MiB",
    "log.flush-after=1MiB",
    "snapshots.max-log-bytes=6MiB",
    "snapshots.on-log-full=refuse-appends",
];

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_the_address_of_one_that_is_gone_says_what_to_do_and_its_log_keeps_its_bound() {
    let mut nodes = Nodes::three_with(&LOG.map(str::to_owned)).await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.have_voters(0, 3).await;
    // Node 1 is gone for good, and node 2 comes back with its address.
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    let taken = format!("cluster.peer-listen=127.0.0.1:{}", nodes.peers[1]);
    nodes.setups[2] = nodes.setups[2].clone().set(&taken);
    nodes.restart(2).await;
    let what = eventually("the problem is shown", async || {
        let what = problem(&nodes.servers[2], "not_registered").await?;
        (!what.is_empty()).then_some(what)
    })
    .await;
    assert!(what.contains("esker cluster remove n1"), "{what}");
    nodes.lead(1, 2).await;
    // Who asks for a snapshot gets an answer.
    let http = nodes.servers[2].http1();
    let asked = http.post("/esker/v1/partitions/1/snapshots");
    let asked = asked.json(&json!({})).send().await;
    assert!(!asked.status.is_success(), "{}", asked.text());
    assert!(asked.text().contains("not registered"), "{}", asked.text());
    // Nothing is archived, so the log fills up to its bound, and no further.
    let body = "x".repeat(200 * 1024);
    let append = async |stream: &str| {
        let append = http.post(&format!("/v1/streams/{stream}/records"));
        let append = append.basin("test-basin");
        let body = json!({ "records": [{ "body": body }] });
        append.json(&body).send().await.status
    };
    let mut refused = 0;
    for _ in 0..200 {
        // After ten seconds the leadership may move to a node that archives.
        nodes.lead(1, 2).await;
        for stream in STREAMS {
            refused += usize::from(append(stream).await == 429);
        }
        if refused > 0 {
            break;
        }
    }
    assert!(
        refused > 0,
        "40 MB in each partition, and a log of at most 6 MiB"
    );
    // The way out is that which the problem has.
    let gone = number_of(&nodes.data(1));
    let path = format!("/esker/v1/cluster/nodes/{gone}/remove");
    eventually("the node is removed", async || {
        let http = nodes.servers[0].http1();
        let removed = http.post(&path).json(&json!({})).try_send().await.ok()?;
        (removed.status == 200).then_some(())
    })
    .await;
    eventually("the problem is gone", async || {
        let what = problem(&nodes.servers[2], "not_registered").await?;
        what.is_empty().then_some(())
    })
    .await;
    nodes.put_snapshots().await;
    eventually("appends are taken again", async || {
        for stream in STREAMS {
            if append(stream).await != 200 {
                return None;
            }
        }
        Some(())
    })
    .await;
}
