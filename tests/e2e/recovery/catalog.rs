//! Basins and the streams in them: a stream is found through its basin, which is in another partition.

use serde_json::{Value, json};

use super::contents::{records, stream};
use super::history::quiet;
use super::target::{Kind, Node, PARTITIONS};
use crate::support::{Server, eventually, sdk};

/// The stream of these tests. No snapshot has its basin at first.
const STREAM: &str = "late-basin/orders";

async fn status(server: &Server) -> Value {
    let status = server.http1().get("/esker/v1/status").send().await;
    status.expect(200).json()
}

/// Creates a basin, and a stream in it with three records. Returns the stream's partition.
async fn append(server: &Server) -> u64 {
    let before = ends(&status(server).await);
    let basin = sdk::basin(&server.sdk(), "late-basin").await;
    sdk::append(&sdk::stream(&basin, "orders").await, ["a", "b", "c"]).await;
    let after = ends(&status(server).await);
    (1..=PARTITIONS)
        .find(|p| after[*p as usize] > before[*p as usize])
        .unwrap()
}

fn ends(status: &Value) -> Vec<u64> {
    let partitions = status["partitions"].as_array().unwrap().iter();
    partitions
        .map(|one| one["last"].as_u64().unwrap())
        .collect()
}

async fn put_snapshot(server: &Server, partition: u64) {
    let path = format!("/esker/v1/partitions/{partition}/snapshots");
    let put = server.http1().post(&path).json(&json!({})).send().await;
    put.expect(200);
}

/// A server on which every partition has its first snapshot, and none is due.
async fn started(node: &Node) -> Server {
    let server = node.setup.start(&node.data()).await;
    node.target.roots().await;
    server
}

#[tokio::test]
async fn a_stream_survives_the_disk_once_its_own_partition_has_a_snapshot() {
    for kind in [Kind::Directory, Kind::S3] {
        let node = Node::new(kind, quiet()).await;
        let mut server = started(&node).await;
        let partition = append(&server).await;
        put_snapshot(&server, partition).await;
        server.kill();
        std::fs::remove_dir_all(node.data()).unwrap();
        let restore = node.setup.clone().bootstrap("restore");
        let server = restore.start(&node.data()).await;
        let found = records(&stream(&server.sdk(), STREAM)).await;
        assert_eq!(found.len(), 3, "{kind:?}");
    }
}

#[tokio::test]
async fn a_stream_whose_basin_no_snapshot_has_is_at_risk() {
    let node = Node::new(Kind::Directory, quiet()).await;
    let mut server = started(&node).await;
    // No snapshot of the catalog can be put.
    let root = node.target.get("0/latest.json").unwrap();
    node.target.remove("0/latest.json");
    let partition = append(&server).await;
    put_snapshot(&server, partition).await;
    let of = |status: &Value, name: &str| status["partitions"][partition as usize][name].as_u64();
    let at_risk = of(&status(&server).await, "entries_at_risk").unwrap();
    // The stream, and its records.
    assert!(at_risk >= 2, "{at_risk}");
    // The snapshot is put as soon as possible, also after a restart.
    server.kill();
    node.target.replace("0/latest.json", root);
    server.restart(&node.setup).await;
    eventually("nothing is at risk", async || {
        let status = status(&server).await;
        let known = !status["partitions"][partition as usize]["newest"].is_null();
        (known && of(&status, "entries_at_risk") == Some(0)).then_some(())
    })
    .await;
}

#[tokio::test]
async fn streams_whose_basin_is_unknown_after_a_restore_are_reported_and_come_back() {
    let node = Node::new(Kind::Directory, quiet()).await;
    let mut server = started(&node).await;
    let before: Vec<_> = node.target.all().into_iter().collect();
    let partition = append(&server).await;
    put_snapshot(&server, partition).await;
    server.kill();
    // The catalog as of before the basin's creation, as an earlier release left it.
    for key in node
        .target
        .keys()
        .iter()
        .filter(|key| key.starts_with("0/"))
    {
        node.target.remove(key);
    }
    for (key, content) in before.iter().filter(|(key, _)| key.starts_with("0/")) {
        node.target.replace(key, content.clone());
    }
    std::fs::remove_dir_all(node.data()).unwrap();
    let mut server = {
        let restore = node.setup.clone().bootstrap("restore");
        restore.start(&node.data()).await
    };
    let problem = async |server: &Server| {
        let status = status(server).await;
        let problems = status["problems"].as_array().unwrap();
        let unknown = problems.iter().find(|p| p["code"] == "basin_unknown");
        unknown.cloned()
    };
    for restarts in 0..2 {
        let found = problem(&server).await;
        let found = found.unwrap_or_else(|| panic!("after {restarts} restarts"));
        assert_eq!(found["partitions"], json!([partition]));
        let what = found["what"].as_str().unwrap();
        assert!(
            what.contains("1 stream is in, such as \"orders\""),
            "{what}"
        );
        server.kill();
        server.restart(&node.setup).await;
    }
    let found = problem(&server).await.unwrap();
    let what = found["what"].as_str().unwrap();
    let id: u64 = what
        .split_once("know basin ")
        .and_then(|(_, rest)| rest.split_once(','))
        .and_then(|(id, _)| id.parse().ok())
        .unwrap();
    // A new basin of that name would not have the stream, and other basins do not get its id.
    sdk::basin(&server.sdk(), "other-basin").await;
    let adopt = async |basin: &str, id: u64| {
        let path = format!("/esker/v1/basins/{basin}/adopt");
        let http = server.http1();
        http.post(&path).json(&json!({ "id": id })).send().await
    };
    adopt("other-basin", id).await.expect(409);
    adopt("late-basin", id + 1).await.expect(422);
    for _ in 0..2 {
        adopt("late-basin", id).await.expect(200);
    }
    assert_eq!(problem(&server).await, None);
    let found = records(&stream(&server.sdk(), STREAM)).await;
    assert_eq!(found.len(), 3);
    sdk::append(&stream(&server.sdk(), STREAM), ["d"]).await;
    server.kill();
    server.restart(&node.setup).await;
    assert_eq!(problem(&server).await, None);
    let found = records(&stream(&server.sdk(), STREAM)).await;
    assert_eq!(found.len(), 4);
}
