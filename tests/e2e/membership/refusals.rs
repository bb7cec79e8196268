//! What would make a second history beside that of the cluster, or serve under a number that another process or
//! nobody has: it is refused, with what to do.

use std::fs;
use std::net::TcpListener;

use serde_json::json;

use super::{Nodes, copy, number_of};
use crate::support::{Setup, eventually};

fn restore(setup: &Setup) -> Setup {
    setup.clone().bootstrap("restore")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_has_had_peers_begins_no_history_of_its_own() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    // The first node has not joined.
    nodes.servers[0].kill();
    let data = nodes.data(0);
    let before = fs::read(data.join("node.json")).unwrap();
    let log = nodes.directory.path().join("log-aside");
    fs::rename(data.join("log"), &log).unwrap();
    let (code, said) = restore(&nodes.setups[0]).start_refused(&data).await;
    assert!(code != 0 && said.contains("[member_lost_log]"), "{said}");
    // Without the database there is no membership to read.
    let database = nodes.directory.path().join("db-aside");
    fs::rename(data.join("db"), &database).unwrap();
    let (code, said) = restore(&nodes.setups[0]).start_refused(&data).await;
    assert!(code != 0 && said.contains("[member_lost_log]"), "{said}");
    assert!(!data.join("log").exists());
    // Nor does it without a listener for the others, or as another cluster.
    fs::rename(&log, data.join("log")).unwrap();
    fs::rename(&database, data.join("db")).unwrap();
    let alone = Setup::default().partitions(2).set("logs.level=info");
    let (code, said) = alone.start_refused(&data).await;
    assert!(code != 0 && said.contains("[peers_not_heard]"), "{said}");
    let (code, said) = nodes.setups[0]
        .clone()
        .bootstrap("new")
        .start_refused(&data)
        .await;
    assert!(code != 0 && said.contains("[data_dir_not_empty]"), "{said}");
    // Nothing was changed: it goes on as the node that it was, whatever it is to accept.
    nodes.setups[0] = restore(&nodes.setups[0]);
    nodes.restart(0).await;
    nodes.have_voters(0, 3).await;
    assert_eq!(fs::read(data.join("node.json")).unwrap(), before);
    nodes.append(0, "b").await;
    nodes.have(1, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_is_alone_again_may_accept_a_loss() {
    let mut nodes = Nodes::first().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    let other = nodes.join().await;
    nodes.have_voters(0, 1).await;
    nodes.servers[other].kill();
    let number = number_of(&nodes.data(other));
    let removed = nodes.servers[0].http1();
    let path = format!("/esker/v1/cluster/nodes/{number}/remove");
    removed
        .post(&path)
        .json(&json!({}))
        .send()
        .await
        .expect(200);
    eventually("the node knows that it is alone", async || {
        let identity = fs::read_to_string(nodes.data(0).join("node.json")).ok()?;
        identity.contains("\"has_peers\": false").then_some(())
    })
    .await;
    nodes.servers[0].kill();
    fs::remove_dir_all(nodes.data(0).join("log")).unwrap();
    nodes.setups[0] = restore(&nodes.setups[0]);
    nodes.restart(0).await;
    nodes.append(0, "b").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_a_data_directory_and_its_copy_only_one_belongs_to_the_cluster() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    let copied = nodes.directory.path().join("copy");
    nodes.servers[2].kill();
    copy(&nodes.data(2), &copied);
    nodes.restart(2).await;
    let numbers = nodes.have_voters(0, 3).await;
    let ports = nodes.join_ports();
    let setup = nodes.setups[2].clone().listen(&ports.0).set(&ports.1);
    let twin = setup.start(&copied).await;
    nodes.setups.push(setup);
    nodes.servers.push(twin);
    // Its partitions may have halted before: the others count on what only the directory in use has.
    nodes.servers[3]
        .logged("is a copy, or an older state")
        .await;
    nodes.not_ready(3, "not_ready").await;
    // The cluster goes on with the one that was there, and the copy serves nothing.
    assert_eq!(nodes.have_voters(0, 3).await, numbers);
    nodes.append(2, "b").await;
    nodes.have(2, &["a", "b"]).await;
    let read = nodes.servers[3].http1();
    let read = read.get("/v1/basins").send().await;
    assert!(read.status.is_server_error(), "{}", read.text());
    // Nor does it take the other's place while that is away, also with a node that has restarted since: it lacks what
    // the other has acknowledged.
    nodes.servers[2].kill();
    nodes.append(0, "c").await;
    let why = nodes.not_ready(3, "is a copy, or an older state").await;
    assert!(why.contains("refused_by_cluster"), "{why}");
    // The copy is away until the other has read its catalog: before, it knows of no start of the node.
    nodes.servers[3].kill();
    nodes.servers[0].kill();
    nodes.restart(0).await;
    nodes.append(0, "d").await;
    nodes.restart(3).await;
    let why = nodes.not_ready(3, "is a copy, or an older state").await;
    assert!(why.contains("refused_by_cluster"), "{why}");
    nodes.restart(2).await;
    nodes.servers[3].kill();
    assert_eq!(nodes.have_voters(0, 3).await, numbers);
    nodes.have(2, &["a", "b", "c", "d"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backup_of_a_data_directory_is_not_the_node_any_more() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    let backup = nodes.directory.path().join("backup");
    nodes.servers[2].kill();
    copy(&nodes.data(2), &backup);
    nodes.restart(2).await;
    nodes.have_voters(0, 3).await;
    nodes.append(2, "a").await;
    nodes.servers[2].kill();
    // The disk is lost, and the backup is all that there is of it.
    fs::remove_dir_all(nodes.data(2)).unwrap();
    fs::rename(&backup, nodes.data(2)).unwrap();
    nodes.restart(2).await;
    // Its partitions may have halted before: the others count on what only the directory in use had.
    nodes.servers[2]
        .logged("is a copy, or an older state")
        .await;
    nodes.not_ready(2, "not_ready").await;
    // What to do is what it was told.
    nodes.servers[2].kill();
    fs::remove_dir_all(nodes.data(2)).unwrap();
    nodes.restart(2).await;
    nodes.have_voters(0, 3).await;
    nodes.have(2, &["a"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_removed_node_that_comes_back_is_told_and_serves_nothing() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    let removed = number_of(&nodes.data(2));
    nodes.servers[2].kill();
    let http = nodes.servers[0].http1();
    let path = format!("/esker/v1/cluster/nodes/{removed}/remove");
    eventually("the node is removed", async || {
        let asked = http.post(&path).json(&json!({})).try_send().await.ok()?;
        (asked.status == 200).then_some(())
    })
    .await;
    nodes.have_voters(0, 2).await;
    nodes.append(0, "b").await;
    nodes.restart(2).await;
    let why = nodes.not_ready(2, "refused_by_cluster").await;
    assert!(why.contains("removed"), "{why}");
    let read = nodes.servers[2].http1();
    let read = read.get("/v1/basins").send().await;
    assert!(read.status.is_server_error(), "{}", read.text());
    assert_eq!(nodes.have_voters(0, 2).await.len(), 2);
    // What to do is what it was told: an empty directory joins.
    nodes.servers[2].kill();
    fs::remove_dir_all(nodes.data(2)).unwrap();
    nodes.restart(2).await;
    nodes.have_voters(0, 3).await;
    nodes.have(2, &["a", "b"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_restored_beside_a_cluster_that_runs() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    nodes.servers[2].kill();
    fs::remove_dir_all(nodes.data(2)).unwrap();
    let setup = restore(&nodes.setups[2]);
    let (code, said) = setup.start_refused(&nodes.data(2)).await;
    assert!(code != 0 && said.contains("[cluster_runs]"), "{said}");
    // Once it is given up, it is restored.
    nodes.servers[0].kill();
    nodes.servers[1].kill();
    nodes.setups[2] = setup;
    nodes.restart(2).await;
    nodes.have(2, &["a"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_node_is_not_restored_beside_the_others_that_run() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    nodes.servers[0].kill();
    let data = nodes.data(0);
    fs::remove_dir_all(&data).unwrap();
    nodes.append(1, "b").await;
    // It has no `cluster.join`: the catalog that it restores has the others.
    let (code, said) = restore(&nodes.setups[0]).start_refused(&data).await;
    assert!(code != 0 && said.contains("[cluster_runs]"), "{said}");
    // No root was taken from the others: they go on, and put snapshots.
    nodes.append(1, "c").await;
    nodes.put_snapshots().await;
    // What to do is what it was told.
    fs::remove_dir_all(&data).unwrap();
    nodes.setups[0] = nodes.joining(0, 1);
    nodes.restart(0).await;
    nodes.have_voters(1, 3).await;
    nodes.have(0, &["a", "b", "c"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_interrupted_restore_does_not_go_on_once_the_cluster_is_back() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    for server in &mut nodes.servers {
        server.kill();
    }
    let in_use = TcpListener::bind("127.0.0.1:0").unwrap();
    let peer = in_use.local_addr().unwrap();
    let (listen, _) = nodes.join_ports();
    let plain = nodes
        .base
        .clone()
        .listen(&listen)
        .set(&format!("cluster.peer-listen={peer}"))
        .set(&format!("cluster.join=127.0.0.1:{}", nodes.peers[0]));
    let data = nodes.directory.path().join("restored");
    let (code, said) = restore(&plain).start_refused(&data).await;
    assert!(code != 0 && said.contains("[peer_listen]"), "{said}");
    assert!(data.join("restore.json").exists(), "it has decided");
    drop(in_use);
    for at in 0..3 {
        nodes.restart(at).await;
    }
    nodes.have_voters(0, 3).await;
    // Without `cluster.join` as well, which names one node of those that the catalog has.
    let (listen, peer) = nodes.join_ports();
    let first = nodes.base.clone().listen(&listen).set(&peer);
    for setup in [&plain, &first, &restore(&plain)] {
        let (code, said) = setup.start_refused(&data).await;
        assert!(code != 0 && said.contains("[cluster_runs]"), "{said}");
    }
    nodes.append(0, "b").await;
    nodes.put_snapshots().await;
    nodes.have(1, &["a", "b"]).await;
    // Once the cluster is given up, the restore goes on.
    for server in &mut nodes.servers {
        server.kill();
    }
    nodes.servers[0] = plain.start(&data).await;
    nodes.have(0, &["a", "b"]).await;
}
