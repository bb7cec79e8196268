//! A node that lost its log or its disk has forgotten what it voted for. It joins again under a new number, and the
//! old one is removed: it never votes under that again.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::{Nodes, number_of};

/// Removes what a node loses, and nothing else.
fn lose(data: &Path, what: &[&str]) {
    for what in what {
        match fs::remove_dir_all(data.join(what)) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            removed => removed.unwrap(),
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_lost_its_log_joins_again_under_a_new_number_by_itself() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "before").await;
    let old = number_of(&nodes.data(1));
    for (lost, what) in [(1, &["log"][..]), (1, &["log", "db", "checkpoints"])] {
        let before = number_of(&nodes.data(lost));
        nodes.servers[lost].kill();
        lose(&nodes.data(lost), what);
        nodes.restart(lost).await;
        let numbers = nodes.have_voters(0, 3).await;
        let now = number_of(&nodes.data(lost));
        assert!(now != before && numbers.contains(&now) && !numbers.contains(&before));
    }
    nodes.append(1, "after").await;
    nodes.have(1, &["before", "after"]).await;
    // It counts: with it and one other node there is a majority.
    nodes.servers[2].kill();
    nodes.append(1, "without the third").await;
    nodes
        .have(1, &["before", "after", "without the third"])
        .await;
    // What it had is there, put aside.
    let aside = nodes.data(1).join("damaged");
    assert!(aside.join(format!("node-{old}.json-1")).exists());
    assert!(aside.join("db-1").exists());
    assert!(!nodes.data(1).join("joined.json").exists());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_with_an_empty_disk_takes_the_place_of_the_one_that_had_its_name_and_address() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "before").await;
    let before = number_of(&nodes.data(2));
    nodes.servers[2].kill();
    fs::remove_dir_all(nodes.data(2)).unwrap();
    nodes.restart(2).await;
    let numbers = nodes.have_voters(0, 3).await;
    assert!(!numbers.contains(&before) && numbers.contains(&number_of(&nodes.data(2))));
    nodes.servers[1].kill();
    nodes.append(2, "after").await;
    nodes.have(2, &["before", "after"]).await;
}

/// The first node has not joined, and is a member like any other since others have.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_of_a_cluster_joins_again_like_any_other() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "before").await;
    let before = number_of(&nodes.data(0));
    nodes.servers[0].kill();
    lose(&nodes.data(0), &["log"]);
    // It has nobody to ask.
    let (code, said) = nodes.setups[0].start_refused(&nodes.data(0)).await;
    assert!(code != 0 && said.contains("[member_lost_log]"), "{said}");
    assert!(said.contains("cluster.join"), "{said}");
    nodes.setups[0] = nodes.joining(0, 1);
    nodes.restart(0).await;
    let numbers = nodes.have_voters(1, 3).await;
    assert!(!numbers.contains(&before), "{before} in {numbers:?}");
    nodes.servers[1].kill();
    nodes.append(0, "after").await;
    nodes.have(0, &["before", "after"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_runs_is_not_replaced_nor_one_without_which_the_majority_is_lost() {
    let mut nodes = Nodes::three().await;
    // A directory that claims to be the one of a node that runs.
    let copied = nodes.directory.path().join("copy");
    nodes.servers[2].kill();
    super::copy(&nodes.data(2), &copied);
    lose(&copied, &["log"]);
    nodes.restart(2).await;
    let numbers = nodes.have_voters(0, 3).await;
    let ports = nodes.join_ports();
    let setup = nodes.setups[2].clone().listen(&ports.0).set(&ports.1);
    let mut starting = tokio::spawn({
        let (setup, copied) = (setup.clone(), copied.clone());
        async move { setup.start_refused(&copied).await }
    });
    // It is refused for as long as that runs, and tries for a minute.
    let early = tokio::time::timeout(Duration::from_secs(5), &mut starting).await;
    assert!(early.is_err(), "{early:?}");
    assert_eq!(nodes.have_voters(0, 3).await, numbers);
    starting.abort();
    assert_eq!(number_of(&copied), number_of(&nodes.data(2)));
    // Two of three are lost: the one that is left does not give them up.
    let before = number_of(&nodes.data(2));
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    lose(&nodes.data(2), &["log"]);
    let starting = tokio::spawn({
        let (setup, data) = (nodes.setups[2].clone(), nodes.data(2));
        async move { setup.try_start(&data).await }
    });
    tokio::time::sleep(Duration::from_secs(3)).await;
    assert_eq!(number_of(&nodes.data(2)), before);
    // With the other one there is a majority again.
    nodes.restart(1).await;
    nodes.servers[2] = starting.await.unwrap().unwrap();
    assert!(number_of(&nodes.data(2)) != before);
    nodes.have_voters(0, 3).await;
}

/// Kills while it asks to join, while it puts aside what it had, while it gets its first snapshots, and later. Nothing
/// is written meanwhile: no acknowledgement of an entry shows a leader what the node has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_killed_at_any_moment_of_its_join_joins_in_the_end() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    let large = "x".repeat(200_000);
    for _ in 0..10 {
        nodes.append(0, &large).await;
    }
    nodes.put_snapshots().await;
    let rounds: [&[&str]; 2] = [&["log"], &[""]];
    for what in rounds {
        nodes.servers[2].kill();
        lose(&nodes.data(2), what);
        // Until then it counts as one that is there.
        tokio::time::sleep(Duration::from_secs(5)).await;
        for milliseconds in [20, 40, 80, 120, 160, 200, 250, 300, 400, 500, 700, 1000] {
            let moment = Duration::from_millis(milliseconds);
            nodes.setups[2].start_and_kill(&nodes.data(2), moment).await;
        }
        nodes.restart(2).await;
        let numbers = nodes.have_voters(0, 3).await;
        assert!(numbers.contains(&number_of(&nodes.data(2))));
        assert_eq!(numbers.len(), 3, "what was begun and given up is gone");
    }
    nodes.servers[1].kill();
    let all = vec![large.as_str(); 10];
    nodes.have(2, &all).await;
}
