//! Nodes that join after a loss, and members that go on from the repository.

use std::fs;

use super::Nodes;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_join_a_node_that_was_restored_with_a_loss() {
    let mut nodes = Nodes::first().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    // Twice: the second lineage has ancestors.
    for _ in 0..2 {
        nodes.servers[0].kill();
        for lost in ["log", "db"] {
            fs::remove_dir_all(nodes.data(0).join(lost)).unwrap();
        }
        let restore = nodes.setups[0].clone().bootstrap("restore");
        nodes.servers[0].restart(&restore).await;
        nodes.put_snapshots().await;
        nodes.servers[0].stop().await;
        // The option counts once; a start without it lets it count again.
        nodes.restart(0).await;
    }
    nodes.append(0, "b").await;
    nodes.join().await;
    nodes.join().await;
    let numbers = nodes.have_voters(0, 3).await;
    assert_eq!(numbers.len(), 3);
    nodes.append(1, "c").await;
    for at in 0..3 {
        nodes.have(at, &["a", "b", "c"]).await;
    }
    // The one that was restored is not needed any more.
    nodes.servers[0].kill();
    nodes.append(1, "d").await;
    nodes.have(2, &["a", "b", "c", "d"]).await;
    nodes.restart(0).await;
    nodes.servers[1].kill();
    nodes.append(0, "e").await;
    nodes.restart(1).await;
    nodes.have_voters(1, 3).await;
    for at in 0..3 {
        nodes.have(at, &["a", "b", "c", "d", "e"]).await;
    }
}

/// The repository's newest snapshot covers more than the log of a member that was away. That is no loss, and what
/// the snapshot has is committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_goes_on_from_a_snapshot_that_covers_more_than_its_log() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    for lost in [2, 1] {
        let number = super::number_of(&nodes.data(lost));
        nodes.servers[lost].kill();
        for _ in 0..3 {
            nodes.append(0, "b").await;
        }
        nodes.put_snapshots().await;
        // Its database and local snapshots are lost, and its log is not.
        for what in ["db", "checkpoints", "raft"] {
            fs::remove_dir_all(nodes.data(lost).join(what)).ok();
        }
        nodes.restart(lost).await;
        let numbers = nodes.have_voters(0, 3).await;
        assert!(numbers.contains(&number), "it is the same node");
    }
    nodes.servers[0].kill();
    let all = ["a", "b", "b", "b", "b", "b", "b"];
    nodes.have(1, &all).await;
    nodes.have(2, &all).await;
}
