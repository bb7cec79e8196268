//! How votes move: from one voter to three, and from a node to the one that takes its place, in one change; and
//! what keeps a vote from moving is shown.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use super::{Nodes, number_of};
use crate::support::eventually;

/// The numbers of voters that the leaders of partitions were seen with: of a partition, and during a change of those
/// before it.
type Counts = BTreeSet<usize>;

/// Looks at what a node shows of the cluster, many times a second, until it is stopped.
fn watch(nodes: &Nodes, asked: usize, ends: Arc<AtomicBool>) -> tokio::task::JoinHandle<Counts> {
    let http = nodes.servers[asked].http1();
    tokio::spawn(async move {
        let mut counts = Counts::new();
        while !ends.load(Ordering::Relaxed) {
            if let Ok(answer) = http.get("/esker/v1/cluster").try_send().await
                && answer.status == 200
            {
                let shown: Value = answer.json();
                for partition in shown["partitions"].as_array().unwrap() {
                    for voters in ["voters", "voters_before"] {
                        let voters = partition["members"][voters].as_array();
                        counts.extend(voters.map(Vec::len).filter(|count| *count > 0));
                    }
                }
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        counts
    })
}

/// Looks whether a node belongs to all partitions, many times a second, until it is stopped. Returns where it did
/// not, once.
fn watch_member(
    nodes: &Nodes,
    asked: usize,
    node: u64,
    ends: Arc<AtomicBool>,
) -> tokio::task::JoinHandle<Option<Value>> {
    let http = nodes.servers[asked].http1();
    tokio::spawn(async move {
        let is_member = |members: &Value| {
            let mut of = ["voters", "voters_before", "learners"]
                .iter()
                .filter_map(|which| members[which].as_array());
            of.any(|nodes| nodes.contains(&json!(node)))
        };
        while !ends.load(Ordering::Relaxed) {
            if let Ok(answer) = http.get("/esker/v1/cluster").try_send().await
                && answer.status == 200
            {
                let shown: Value = answer.json();
                let partitions = shown["partitions"].as_array().unwrap().iter();
                let mut members = partitions.map(|of| &of["members"]);
                if let Some(without) = members.find(|it| it.is_object() && !is_member(it)) {
                    return Some(without.clone());
                }
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        None
    })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn partitions_go_from_one_voter_to_three_and_pass_a_vote_on_without_having_two() {
    let mut nodes = Nodes::first().await;
    nodes.create(0).await;
    let ends = Arc::new(AtomicBool::new(false));
    let watching = watch(&nodes, 0, ends.clone());
    nodes.join().await;
    nodes.join().await;
    nodes.have_voters(0, 3).await;
    nodes.append(0, "three").await;
    // The fourth one takes the vote of the third.
    nodes.join().await;
    nodes.have_voters(0, 3).await;
    let drained = number_of(&nodes.data(2));
    let stays = watch_member(&nodes, 0, drained, ends.clone());
    let http = nodes.servers[0].http1();
    let path = format!("/esker/v1/cluster/nodes/{drained}/drain");
    eventually("the node is to be drained", async || {
        let asked = http.post(&path).json(&json!({})).try_send().await.ok()?;
        (asked.status == 200).then_some(())
    })
    .await;
    eventually("the drained node votes nowhere", async || {
        let shown = nodes.shown(0).await?;
        let partitions = shown["partitions"].as_array()?;
        let votes = |partition: &Value| {
            let members = &partition["members"];
            let of = |which: &str| members[which].as_array().cloned().unwrap_or_default();
            let all = [of("voters"), of("voters_before")].concat();
            all.is_empty() || all.contains(&json!(drained))
        };
        (!partitions.iter().any(votes)).then_some(())
    })
    .await;
    ends.store(true, Ordering::Relaxed);
    let counts = watching.await.unwrap();
    assert_eq!(counts, Counts::from([1, 3]), "numbers of voters");
    assert_eq!(
        stays.await.unwrap(),
        None,
        "the drained node is a learner in the end, and belongs to the partitions all the time"
    );
    nodes.append(0, "four").await;
    nodes.have(3, &["three", "four"]).await;
}

/// The plain way to another machine: start the new node, drain the old one, remove it.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_only_node_that_votes_drains_onto_the_one_that_has_joined_and_is_removed() {
    let mut nodes = Nodes::first().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.join().await;
    nodes.have_voters(0, 1).await;
    let old = number_of(&nodes.data(0));
    let ask = async |at: usize, what: &str| {
        let path = format!("/esker/v1/cluster/nodes/{old}/{what}");
        let http = nodes.servers[at].http1();
        http.post(&path).json(&json!({})).try_send().await.ok()
    };
    eventually("it is refused with what to do", async || {
        let refused = ask(0, "remove").await?;
        assert_ne!(refused.status, 200, "{}", refused.text());
        let says = refused.text().contains("esker cluster drain n0");
        says.then_some(())
    })
    .await;
    eventually("the node is to be drained", async || {
        (ask(0, "drain").await?.status == 200).then_some(())
    })
    .await;
    eventually("the other one leads everything", async || {
        let shown = nodes.shown(1).await?;
        let mut partitions = shown["partitions"].as_array()?.iter();
        partitions.all(|it| it["leader_name"] == "n1").then_some(())
    })
    .await;
    eventually("the old one is removed", async || {
        (ask(1, "remove").await?.status == 200).then_some(())
    })
    .await;
    // It votes until then.
    let new = number_of(&nodes.data(1));
    eventually("no partition counts on the old one's vote", async || {
        let shown = nodes.shown(1).await?;
        let mut partitions = shown["partitions"].as_array()?.iter();
        let alone = |it: &Value| {
            it["members"]["voters"] == json!([new]) && it["members"]["voters_before"] == json!([])
        };
        partitions.all(alone).then_some(())
    })
    .await;
    nodes.servers[0].kill();
    nodes.append(1, "b").await;
    nodes.have(1, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_keeps_a_partition_from_having_its_voters_is_shown() {
    let mut nodes = Nodes::first().await;
    nodes.join().await;
    eventually("the second node is active", async || {
        let shown = nodes.shown(0).await?;
        let node = shown["nodes"]
            .as_array()?
            .iter()
            .find(|it| it["name"] == "n1")
            .cloned()?;
        (node["state"] == "active").then_some(())
    })
    .await;
    nodes.servers[1].kill();
    nodes.join().await;
    // With the one that is away there are three, and one of them keeps the others waiting.
    eventually("what the voters wait for is shown", async || {
        let shown = nodes.shown(0).await?;
        let waits = &shown["partitions"][1]["members"]["waits"];
        let why = waits["why"].as_str()?;
        // Before it is missed, it is shown to lack entries.
        let is_missed = why.contains("n1 ") && why.contains("not heard from");
        (is_missed && waits["problem"] == true).then_some(())
    })
    .await;
    nodes.restart(1).await;
    nodes.have_voters(0, 3).await;
    // A leader looks a few times a second.
    eventually("nothing is waited for any more", async || {
        let shown = nodes.shown(0).await?;
        let mut partitions = shown["partitions"].as_array()?.iter();
        let is_over = |it: &Value| it["members"].is_object() && it["members"]["waits"].is_null();
        partitions.all(is_over).then_some(())
    })
    .await;
}
