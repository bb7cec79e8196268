//! `esker cluster remove` and `drain` end once no partition counts on the node, or say which ones do.

use std::time::Instant;

use serde_json::{Value, json};
use testkit::process::esker;

use super::{Nodes, number_of};
use crate::support::{SOON, eventually};

/// How a command has ended.
struct Ended {
    code: i32,
    /// The JSON that it has printed.
    said: Value,
    error: String,
}

impl Nodes {
    /// Runs `esker cluster … --json` against a node. What the cluster cannot do at the moment is tried again.
    async fn run(&self, at: usize, words: &[&str]) -> Ended {
        let began = Instant::now();
        loop {
            let mut command = esker();
            command.arg("cluster").args(words).arg("--json");
            command.arg("--server").arg(self.servers[at].url());
            let run = tokio::task::spawn_blocking(move || command.output().unwrap());
            let output = run.await.unwrap();
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let said: Value = serde_json::from_slice(&output.stdout)
                .unwrap_or_else(|e| panic!("{words:?}: {e}: {error}"));
            if said["error"]["code"] == "cluster_unavailable" && began.elapsed() < SOON {
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
            let code = output.status.code().unwrap();
            return Ended { code, said, error };
        }
    }

    /// Waits until so many nodes are active, as node 0 shows.
    async fn have_active(&self, count: usize) {
        eventually(&format!("{count} nodes are active"), async || {
            let shown = self.shown(0).await?;
            let nodes = shown["nodes"].as_array()?.iter();
            let active = nodes.filter(|node| node["state"] == "active").count();
            (active == count).then_some(())
        })
        .await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_may_be_killed_as_soon_as_the_command_has_ended_and_the_last_voter_restarts()
{
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "three vote").await;
    // Node 0 would not learn whether anybody still counts on its vote.
    let itself = nodes.run(0, &["remove", "n0", "--yes"]).await;
    assert_eq!(itself.code, 2, "{}", itself.said);
    let said = &itself.said["error"];
    assert!(
        said["what_to_do"].as_str().unwrap().contains("--server"),
        "{said}"
    );
    nodes.have_active(3).await;
    // After the first removal two vote, and without the second one's vote there would be no majority.
    for (at, body) in [(2, "two vote"), (1, "one votes")] {
        let number = number_of(&nodes.data(at));
        let name = format!("n{at}");
        let removed = nodes.run(0, &["remove", &name, "--yes"]).await;
        nodes.servers[at].kill();
        let expected = json!({ "removed": number, "name": name, "pending": [] });
        assert_eq!(
            (removed.code, &removed.said),
            (0, &expected),
            "{}",
            removed.error
        );
        if at == 1 {
            // Nothing is appended between the removal and the restart, and nobody else is left who votes.
            nodes.servers[0].kill();
            nodes.restart(0).await;
        }
        nodes.append(0, body).await;
        // Whoever asks again gets the same answer.
        for said in [name, number.to_string()] {
            let again = nodes.run(0, &["remove", &said, "--yes"]).await;
            assert_eq!((again.code, again.said), (0, expected.clone()));
        }
    }
    nodes
        .have(0, &["three vote", "two vote", "one votes"])
        .await;
    // A name that no node ever had is none.
    let unknown = nodes.run(0, &["remove", "n7", "--yes"]).await;
    assert_eq!(unknown.said["error"]["code"], "node_not_found");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_without_a_leader_knows_a_removed_node_by_its_number_alone() {
    let mut nodes = Nodes::three().await;
    let removed = nodes.run(0, &["remove", "n2", "--yes"]).await;
    assert_eq!(removed.code, 0, "{}", removed.error);
    let number = number_of(&nodes.data(2)).to_string();
    nodes.servers[2].kill();
    nodes.servers[1].kill();
    let remove = async |said: &str| {
        let path = format!("/esker/v1/cluster/nodes/{said}/remove");
        nodes.servers[0].http1().post(&path).try_send().await.ok()
    };
    // As far as it knows, another node may have joined by this name since.
    eventually("it does not answer for the name", async || {
        let answer = remove("n2").await?;
        let code = answer.json()["code"].clone();
        (answer.status == 503 && code == "cluster_unavailable").then_some(())
    })
    .await;
    let again = eventually("it answers", async || remove(&number).await).await;
    assert_eq!(again.expect(200).json()["name"], "n2");
}

/// Its vote is to go to a node that is away at the moment.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removal_that_takes_long_ends_with_who_counts_on_the_node_and_can_be_waited_for_again() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    let fourth = nodes.join().await;
    nodes.have_active(4).await;
    nodes.have_voters(0, 3).await;
    nodes.append(0, "a").await;
    nodes.servers[fourth].kill();
    let remove = ["remove", "n2", "--yes", "--timeout", "5"];
    // On a slow machine, a look of it may find no leader that answers in time; it is waited for again then.
    eventually("it ends with who counts on the node", async || {
        let ended = nodes.run(0, &remove).await;
        assert_eq!(ended.code, 1, "{}", ended.said);
        let error = &ended.said["error"];
        assert_eq!(error["code"], "removal_incomplete", "{error}");
        let message = error["message"].as_str().unwrap();
        let pending = ended.said["pending"].as_array();
        let progress = "Waiting until no partition counts on n2: partition ";
        let is_complete = message.contains("partition 0: it still votes")
            && pending.is_some_and(|of| of.len() == super::PARTITIONS)
            && ended.error.contains(progress);
        if !is_complete {
            eprintln!("{}: {}", ended.said, ended.error);
        }
        is_complete.then_some(())
    })
    .await;
    // It was recorded all the same.
    let at_once = nodes.run(0, &["remove", "n2", "--yes", "--no-wait"]).await;
    assert_eq!(at_once.code, 0, "{}", at_once.error);
    let number = number_of(&nodes.data(2));
    assert_eq!(at_once.said, json!({ "removed": number, "name": "n2" }));
    nodes.restart(fourth).await;
    let ended = nodes
        .run(0, &["remove", &number.to_string(), "--yes"])
        .await;
    nodes.servers[2].kill();
    assert_eq!(ended.code, 0, "{}", ended.error);
    assert_eq!(ended.said["pending"], json!([]));
    nodes.append(0, "b").await;
    nodes.have(fourth, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drain_ends_once_the_node_leads_nothing_and_says_where_it_keeps_its_vote() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.lead(1, 2).await;
    let number = number_of(&nodes.data(2));
    let drained = nodes.run(0, &["drain", "n2"]).await;
    let expected = json!({
        "draining": number, "name": "n2", "pending": [], "keeps_vote": [0, 1, 2],
    });
    assert_eq!(
        (drained.code, drained.said),
        (0, expected),
        "{}",
        drained.error
    );
    let shown = nodes.shown(0).await.unwrap();
    let mut leaders = shown["partitions"].as_array().unwrap().iter();
    assert!(leaders.all(|it| it["leader_name"] != "n2"), "{shown}");
    // Another one can take its votes.
    nodes.join().await;
    let last = eventually("the node keeps no vote", async || {
        let drained = nodes.run(0, &["drain", "n2"]).await;
        assert_eq!(drained.code, 0, "{}", drained.error);
        (drained.said["keeps_vote"] == json!([])).then_some(drained.said)
    })
    .await;
    assert_eq!(last["pending"], json!([]));
    // It goes on as a learner, and is not needed.
    nodes.append(0, "b").await;
    eventually("the drained node follows", async || {
        let shown = nodes.shown(0).await?;
        let mut partitions = shown["partitions"].as_array()?.iter();
        let follows = |of: &Value| {
            let learners = of["members"]["learners"].as_array();
            let mut replicas = of["replicas"].as_array().unwrap().iter();
            learners.is_some_and(|learners| learners.contains(&json!(number)))
                && replicas.any(|it| it["name"] == "n2" && it["lag"] == 0)
        };
        partitions.all(follows).then_some(())
    })
    .await;
    nodes.servers[2].kill();
    nodes.servers[1].kill();
    nodes.append(0, "c").await;
    nodes.have(3, &["a", "b", "c"]).await;
}
