//! What a removed node says, and what becomes of its replicas.

use std::fs;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::{Nodes, number_of};
use crate::support::eventually;

/// How long some rounds of questions of a removed node take: a minute each.
const ROUNDS: Duration = Duration::from_secs(300);

impl Nodes {
    /// Removes a node, as the first one is asked to.
    async fn remove(&self, number: u64) {
        let http = self.servers[0].http1();
        let path = format!("/esker/v1/cluster/nodes/{number}/remove");
        eventually("the node is removed", async || {
            let asked = http.post(&path).json(&json!({})).try_send().await.ok()?;
            (asked.status == 200).then_some(())
        })
        .await;
    }

    /// How far the deletion of a node's replicas is, as its note has it.
    fn stage(&self, at: usize) -> Option<String> {
        let note = fs::read(self.data(at).join("removed.json")).ok()?;
        let note: Value = serde_json::from_slice(&note).unwrap();
        Some(note["stage"].as_str().unwrap().to_owned())
    }

    /// Waits for a stage. A removed node asks more and more seldom, up to once a minute.
    async fn have_stage(&self, at: usize, stage: &str) {
        let began = Instant::now();
        while self.stage(at).as_deref() != Some(stage) {
            assert!(began.elapsed() < ROUNDS, "the note never has {stage}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_replicas_of_a_removed_node_go_once_all_others_have_everything() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    let removed = number_of(&nodes.data(2));
    nodes.remove(removed).await;
    nodes.have_voters(0, 2).await;
    nodes.have_stage(2, "may_go").await;
    let why = nodes.not_ready(2, "refused_by_cluster").await;
    assert!(why.contains("was removed from the cluster at 20"), "{why}");
    // Whoever is asked has when it was removed.
    for at in 0..2 {
        let shown = nodes.shown(at).await.unwrap();
        assert_eq!(shown["removed_count"], 1, "{shown}");
        let of = &shown["removed"][0];
        assert_eq!(
            (of["node"].as_u64(), &of["name"]),
            (Some(removed), &json!("n2"))
        );
        assert!(of["removed_at"].as_str().unwrap().starts_with("20"), "{of}");
    }
    // A stop keeps the replicas, and so does the next start until it has asked again.
    nodes.servers[2].stop().await;
    assert_eq!(nodes.stage(2).as_deref(), Some("may_go"));
    assert!(nodes.data(2).join("log").exists() && nodes.data(2).join("db").exists());
    nodes.restart(2).await;
    nodes.not_ready(2, "deletes them").await;
    // That was the first round of this process; after the second one, a minute later, it ends by itself. If another node
    // was late with its answer, that minute begins anew.
    let ended = nodes.servers[2].wait_within(ROUNDS).await;
    assert_eq!(ended.code(), Some(2), "{ended}");
    for gone in ["log", "db", "checkpoints", "raft"] {
        assert!(!nodes.data(2).join(gone).exists(), "{gone}");
    }
    assert_eq!(nodes.stage(2).as_deref(), Some("deleted"));
    // It never serves again, and does not join by itself.
    for _ in 0..2 {
        let (code, said) = nodes.setups[2].start_refused(&nodes.data(2)).await;
        assert!(
            code == 2 && said.contains("[node_removed]"),
            "{code}: {said}"
        );
    }
    nodes.append(1, "b").await;
    nodes.have(0, &["a", "b"]).await;
    fs::remove_dir_all(nodes.data(2)).unwrap();
    nodes.restart(2).await;
    nodes.have_voters(0, 3).await;
    nodes.have(2, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_keeps_its_replicas_while_another_voter_is_away_and_says_when_it_was_removed()
 {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    let removed = number_of(&nodes.data(2));
    nodes.servers[2].kill();
    nodes.remove(removed).await;
    nodes.have_voters(0, 2).await;
    // It was away, and what it has may be needed: of two voters one is away.
    nodes.servers[1].kill();
    nodes.restart(2).await;
    nodes.have_stage(2, "noted").await;
    let why = nodes.not_ready(2, "refused_by_cluster").await;
    assert!(
        why.contains("was removed from the cluster at 20") && why.contains("are kept until"),
        "{why}"
    );
    nodes.servers[2].stop().await;
    assert_eq!(nodes.stage(2).as_deref(), Some("noted"));
    assert!(nodes.data(2).join("log").exists() && nodes.data(2).join("db").exists());
    // What was noted is said at once, also if nobody is there.
    nodes.servers[0].kill();
    nodes.restart(2).await;
    nodes.not_ready(2, "refused_by_cluster").await;
    nodes.restart(0).await;
    nodes.restart(1).await;
    nodes.have_stage(2, "may_go").await;
    // Before its end it is killed, and another voter goes: what it has is needed again.
    nodes.servers[2].kill();
    nodes.servers[1].kill();
    nodes.restart(2).await;
    let why = nodes.not_ready(2, "are kept until").await;
    assert!(why.contains("refused_by_cluster"), "{why}");
    nodes.servers[2].stop().await;
    assert!(nodes.data(2).join("log").exists() && nodes.data(2).join("db").exists());
    nodes.restart(1).await;
    nodes.append(0, "b").await;
    nodes.have(1, &["a", "b"]).await;
}
