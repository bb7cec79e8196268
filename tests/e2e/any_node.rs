//! Three nodes, and requests to those that do not lead what the requests are about.

use std::time::{Duration, Instant};

use esker_proto::Struct;
use esker_proto::state::v1::{
    AbortRequest, BeginTransactionRequest, CommitRequest, GetStateRequest, WriteRequest,
    state_service_client::StateServiceClient,
};
use s2_sdk::error::ErrorCode;
use s2_sdk::types::{BasinConfig, DeleteBasinInput};
use serde_json::{Value, json};
use tonic::Code;
use tonic::transport::{Channel, Endpoint};

use crate::support::frames::{self, Output};
use crate::support::{Setup, eventually, sdk};
use testkit_server::Cluster;

const BASIN: &str = "test-basin";

/// What the node reports of the cluster.
async fn cluster(nodes: &Cluster, of: usize) -> Value {
    let http = nodes.server(of).http1();
    http.get("/esker/v1/cluster")
        .send()
        .await
        .expect(200)
        .json()
}

/// The node that leads a partition, as another one knows.
async fn leader(nodes: &Cluster, asked: usize, partition: u64) -> usize {
    eventually("the partition has a leader", async || {
        let view = cluster(nodes, asked).await;
        let name = view["partitions"][partition as usize]["leader_name"].as_str()?;
        name.strip_prefix('n')?.parse().ok()
    })
    .await
}

/// The partition of a stream.
async fn partition(nodes: &Cluster, basin: &str, stream: &str) -> u64 {
    let http = nodes.server(0).http1();
    let path = format!("/esker/v1/streams/{stream}/position");
    let position = http.get(&path).basin(basin).send().await.expect(200).json();
    let status = nodes
        .server(0)
        .http1()
        .get("/esker/v1/status")
        .send()
        .await
        .json();
    let partitions = status["partitions"].as_array().expect("partitions");
    let found = partitions
        .iter()
        .find(|one| one["lineage"] == position["lineage"]);
    found.expect("its partition")["partition"].as_u64().unwrap()
}

/// The value of a counter without labels.
async fn counter(nodes: &Cluster, of: usize, name: &str) -> u64 {
    let text = nodes.server(of).http1().get("/metrics").send().await.text();
    let value = text.lines().find_map(|line| line.strip_prefix(name));
    value.expect("the counter").trim().parse().unwrap()
}

fn state(nodes: &Cluster, of: usize) -> StateServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(nodes.server(of).url().to_owned()).unwrap();
    StateServiceClient::new(endpoint.connect_lazy())
}

async fn begin(nodes: &Cluster, of: usize) -> String {
    let request = BeginTransactionRequest {
        timeout_ms: Some(60_000),
    };
    let begun = state(nodes, of).begin_transaction(request).await.unwrap();
    begun.into_inner().txn_id
}

fn write(txn: &str, key: &str) -> WriteRequest {
    WriteRequest {
        txn_id: txn.to_owned(),
        namespace: "n".to_owned(),
        agent_id: "a".to_owned(),
        key: key.to_owned(),
        value: Some(Struct::default()),
        ..WriteRequest::default()
    }
}

fn commit(txn: &str) -> CommitRequest {
    CommitRequest {
        txn_id: txn.to_owned(),
        ..CommitRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_transaction_is_at_one_node_whichever_is_asked_and_ends_with_its_leadership() {
    let mut nodes = Cluster::start(&Setup::default()).await;
    let txn = begin(&nodes, 0).await;
    for (at, key) in ["k0", "k1", "k2"].iter().enumerate() {
        state(&nodes, at).write(write(&txn, key)).await.unwrap();
    }
    let done = state(&nodes, 1).commit(commit(&txn)).await.unwrap();
    assert_eq!(done.into_inner().versions.len(), 3);
    let get = GetStateRequest {
        namespace: "n".to_owned(),
        agent_id: "a".to_owned(),
        key: "k2".to_owned(),
        ..GetStateRequest::default()
    };
    let read = state(&nodes, 2).get_state(get).await.unwrap();
    assert!(read.into_inner().exists);

    // The node that holds it is killed; any other one reports that.
    let partition = partition(&nodes, "esker-state", "default").await;
    let txn = begin(&nodes, 0).await;
    state(&nodes, 1).write(write(&txn, "lost")).await.unwrap();
    let holder = leader(&nodes, 0, partition).await;
    nodes.server_mut(holder).kill();
    let left = [(holder + 1) % 3, (holder + 2) % 3];
    for (at, of) in left.into_iter().enumerate() {
        let refused = eventually("another node leads", async || {
            let refused = match at {
                0 => state(&nodes, of).write(write(&txn, "more")).await.err(),
                _ => state(&nodes, of).commit(commit(&txn)).await.err(),
            };
            let refused = refused.expect("it is not open there");
            (refused.code() != Code::Unavailable).then_some(refused)
        })
        .await;
        assert_eq!(refused.code(), Code::Aborted, "{refused:?}");
        assert!(
            refused.message().contains("may have happened"),
            "{refused:?}"
        );
    }
    // What was never begun is another thing, and begins again on a node that is left.
    let unknown = state(&nodes, left[0]).commit(commit("never")).await;
    assert_eq!(unknown.unwrap_err().code(), Code::NotFound);
    let txn = begin(&nodes, left[1]).await;
    state(&nodes, left[0])
        .write(write(&txn, "k"))
        .await
        .unwrap();
    let abort = AbortRequest { txn_id: txn };
    state(&nodes, left[1]).abort(abort).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_stops_ends_the_sessions_that_others_answer_and_does_not_wait_for_them() {
    let grace = Duration::from_secs(300);
    let setup = Setup::default().set(&format!("shutdown-grace={}s", grace.as_secs()));
    let mut nodes = Cluster::start(&setup).await;
    let basin = sdk::basin(&nodes.client(0), BASIN).await;
    let stream = sdk::stream(&basin, "orders").await;
    let partition = partition(&nodes, BASIN, "orders").await;
    let leader = leader(&nodes, 0, partition).await;
    let (stopped, other) = ((leader + 1) % 3, (leader + 2) % 3);
    let http = nodes.server(stopped).http2();
    let mut appends = frames::append_session(&http, BASIN, "orders").await;
    for number in 0..3u64 {
        let input = frames::input([format!("{number}")]);
        assert!(appends.send(frames::frame(&input)).await);
        let ack = appends.next().await.message();
        assert_eq!(ack.start.unwrap().seq_num, number);
    }
    let mut reads = frames::read_session(&http, BASIN, "orders", "seq_num=0").await;
    assert_eq!(reads.batch().await.records.len(), 3);
    // The last append is on its way when the node is asked to stop, or comes too late: never both.
    let last = frames::input(["last"]);
    assert!(appends.send(frames::frame(&last)).await);
    let began = Instant::now();
    let (mut rest, end) = (Vec::new(), Vec::new());
    {
        let stopping = nodes.server_mut(stopped);
        stopping.signal(rustix::process::Signal::TERM);
    }
    let end = {
        let mut end = end;
        rest.extend(appends.rest().await);
        end.extend(reads.rest().await);
        end
    };
    nodes.server_mut(stopped).wait().await;
    assert!(began.elapsed() < grace / 2, "{:?}", began.elapsed());
    let is_draining = |last: Option<&Value>| {
        let code = last.map(|body| body["code"].clone());
        assert_eq!(code, Some(json!("server_draining")));
    };
    let Some(Output::Error(503, body)) = rest.pop() else {
        panic!("the session has no end: {rest:?}");
    };
    is_draining(Some(&body));
    let Some(Output::Error(503, body)) = end.last() else {
        panic!("the session has no end: {end:?}");
    };
    is_draining(Some(body));
    let acked = rest.len();
    let reader = nodes.client(other).basin(sdk::basin_name(BASIN));
    let all = sdk::read_all(&reader.stream(sdk::stream_name("orders"))).await;
    assert_eq!(
        all.len(),
        3 + acked,
        "what was not acknowledged is not there"
    );
    drop(stream);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn any_node_reads_from_its_own_replica_what_was_acknowledged_anywhere() {
    let nodes = Cluster::start(&Setup::default()).await;
    let basin = sdk::basin(&nodes.client(0), BASIN).await;
    sdk::stream(&basin, "orders").await;
    let partition = partition(&nodes, BASIN, "orders").await;
    let leader = leader(&nodes, 0, partition).await;
    let followers = [(leader + 1) % 3, (leader + 2) % 3];
    let mut follows = Vec::new();
    for of in followers {
        let http = nodes.server(of).http2();
        follows.push(frames::read_session(&http, BASIN, "orders", "seq_num=0").await);
    }
    // Nothing fails meanwhile, so nothing is retried.
    let stream = |of: usize| {
        let basin = nodes.server(of).sdk().basin(sdk::basin_name(BASIN));
        basin.stream(sdk::stream_name("orders"))
    };
    let writer = stream(leader);
    for number in 0..50u64 {
        sdk::append(&writer, [format!("{number}")]).await;
        for of in followers {
            let tail = stream(of).check_tail().await.unwrap();
            assert_eq!(
                tail.seq_num,
                number + 1,
                "an acknowledged record is missing"
            );
            assert_eq!(sdk::read_all(&stream(of)).await.len() as u64, number + 1);
        }
    }
    for mut session in follows {
        let mut next = 0;
        while next < 50 {
            for record in session.batch().await.records {
                assert_eq!(record.seq_num, next);
                next += 1;
            }
        }
    }
    for of in followers {
        let read = counter(&nodes, of, "esker_forward_read_here_total ").await;
        assert!(read >= 100, "{read} were read from the replica");
    }
    // What a replica does not have is left to the leader.
    let missing = stream(followers[0]).check_tail().await.is_ok();
    assert!(missing);
    let http = nodes.server(followers[1]).http1();
    let none = http.get("/v1/streams/none/records/tail").basin(BASIN);
    none.send().await.refused(404, "stream_not_found");
}

/// The code of the answer to an append of one record by way of a node; `None` if it was made.
async fn append_at(nodes: &Cluster, of: usize) -> Option<String> {
    let body = json!({ "records": [{ "body": "x" }] });
    let http = nodes.server(of).http1();
    let append = http.post("/v1/streams/orders/records").basin(BASIN);
    let answer = append.json(&body).send().await;
    (answer.status != 200).then(|| answer.code())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_deletion_is_not_acknowledged_while_a_leader_that_does_not_know_of_it_takes_appends() {
    // The leader of the catalog and that of the streams do not reach each other, and both have the third node: what the
    // catalog has committed comes late to where appends are made.
    let nodes = Cluster::linked(&Setup::default().partitions(1))
        .with_three()
        .await;
    let basin = sdk::basin(&nodes.client(0), BASIN).await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["before"]).await;
    // For as long as the test takes.
    let (catalog, streams) = (nodes.keeper_of(0, 0).await, nodes.keeper_of(1, 0).await);
    assert_eq!(append_at(&nodes, streams).await, None);
    nodes.links().cut([(catalog, streams), (streams, catalog)]);
    let path = format!("/v1/basins/{BASIN}");
    let http = nodes.server(catalog).http1();
    let deleting = http.delete(&path).send();
    let between = async {
        eventually("the catalog has the deletion", async || {
            let http = nodes.server(catalog).http1();
            let page = http.get("/v1/basins").send().await.expect(200).json();
            let basins = page["basins"].as_array()?;
            let is_deleted = |of: &Value| of["name"] == BASIN && of["deleted_at"].is_string();
            basins.iter().any(is_deleted).then_some(())
        })
        .await;
        assert_eq!(
            append_at(&nodes, streams).await,
            None,
            "it does not know yet"
        );
    };
    let (deleted, ()) = tokio::join!(deleting, between);
    deleted.refused(500, "other");
    assert_eq!(
        append_at(&nodes, streams).await,
        None,
        "it does not know yet"
    );

    nodes.links().heal();
    eventually("it is acknowledged", async || {
        let deleted = http.delete(&path).send().await;
        // All of it is gone by then, or is about to be.
        let is_done = deleted.status == 202 || deleted.code() == "basin_not_found";
        is_done.then_some(())
    })
    .await;
    for of in nodes.all() {
        let code = append_at(&nodes, of).await;
        let code = code.unwrap_or_else(|| panic!("appended by way of n{of} after the deletion"));
        assert!(
            [
                "basin_deletion_pending",
                "basin_not_found",
                "stream_not_found"
            ]
            .contains(&&*code),
            "{code}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_appended_to_a_basin_once_its_deletion_was_acknowledged_anywhere() {
    // A node looks for deleted basins as seldom as by default.
    let nodes = Cluster::start(&Setup::default().set("retention.interval=1s")).await;
    for round in 0..6 {
        let name = format!("test-basin-{round}");
        let config = BasinConfig::new().with_create_stream_on_append(true);
        // Nothing fails meanwhile, so nothing is retried.
        let client = |of: usize| nodes.server(of).sdk();
        sdk::basin_with(&client(0), &name, config).await;
        for stream in ["a", "b", "c", "d"] {
            let basin = client(1).basin(sdk::basin_name(&name));
            sdk::append(&basin.stream(sdk::stream_name(stream)), ["before"]).await;
        }
        let deleted = DeleteBasinInput::new(sdk::basin_name(&name));
        client(round % 3).delete_basin(deleted).await.unwrap();
        for stream in ["a", "b", "c", "d", "e"] {
            for of in 0..3 {
                let path = format!("/v1/streams/{stream}/records");
                let http = nodes.server(of).http1();
                let body = json!({ "records": [{ "body": "after" }] });
                let append = http.post(&path).basin(&name).json(&body).send().await;
                assert_ne!(
                    append.status, 200,
                    "node {of}, stream {stream}, round {round}"
                );
                let code: String = append.code();
                let refused = [
                    "basin_deletion_pending",
                    "basin_not_found",
                    "stream_not_found",
                ];
                assert!(refused.contains(&code.as_str()), "{code}");
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn usage_is_the_same_whichever_node_is_asked() {
    let nodes = Cluster::start(&Setup::default()).await;
    let config = BasinConfig::new().with_create_stream_on_append(true);
    sdk::basin_with(&nodes.client(0), BASIN, config).await;
    let streams = ["a", "b", "c", "d", "e", "f"];
    for (at, stream) in streams.iter().enumerate() {
        for of in 0..3 {
            // A retry would count twice.
            let basin = nodes.server(of).sdk().basin(sdk::basin_name(BASIN));
            sdk::append(&basin.stream(sdk::stream_name(stream)), [format!("{at}")]).await;
        }
    }
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (start, end) = (now - 7200, now);
    for (path, count) in [
        (format!("/v1/metrics/{BASIN}?set=append-ops"), Some(18.0)),
        (format!("/v1/metrics/{BASIN}?set=storage"), None),
        ("/v1/metrics?set=active-basins".to_owned(), None),
        (format!("/v1/metrics/{BASIN}/a?set=storage"), None),
    ] {
        let path = format!("{path}&start={start}&end={end}");
        let mut answers = Vec::new();
        for of in 0..3 {
            let http = nodes.server(of).http1();
            answers.push(http.get(&path).send().await.expect(200).json());
        }
        assert_eq!(answers[0], answers[1], "{path}");
        assert_eq!(answers[0], answers[2], "{path}");
        if let Some(count) = count {
            let values = &answers[0]["values"][0]["accumulation"]["values"];
            let values = values.as_array().expect("an accumulation").iter();
            let sum: f64 = values.map(|at| at[1].as_f64().unwrap()).sum();
            assert_eq!(sum, count);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_was_removed_refuses_requests_and_says_why() {
    let nodes = Cluster::start(&Setup::default()).await;
    let basin = sdk::basin(&nodes.client(0), BASIN).await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["one"]).await;
    for partition in 0..=2 {
        nodes.lead(partition, 0).await;
    }
    let http = nodes.server(0).http1();
    eventually("the node is removed", async || {
        let removed = http.post("/esker/v1/cluster/nodes/n2/remove");
        let removed = removed.try_send().await.ok()?;
        (removed.status == 200).then_some(())
    })
    .await;
    let http = nodes.server(2).http1();
    let health = eventually("it knows", async || {
        let health = http.get("/health/ready").send().await;
        let code = health.json()["reasons"][0]["code"].clone();
        (health.status == 503 && code == "refused_by_cluster").then_some(health)
    })
    .await;
    assert_eq!(health.status, 503);
    assert!(health.text().contains("removed"), "{}", health.text());
    let body = json!({ "records": [{ "body": "x" }] });
    let append = http.post("/v1/streams/orders/records").basin(BASIN);
    let append = append.json(&body).send().await;
    assert_eq!(append.status, 503, "{}", append.text());
    let code: ErrorCode = append.code().parse().unwrap();
    assert!(code.has_no_side_effects(), "{code}");
    assert!(
        append.text().contains("does not take this node"),
        "{}",
        append.text()
    );
    for path in [
        "/v1/streams/orders/records/tail",
        "/v1/streams/orders",
        "/v1/basins",
        "/v1/streams",
    ] {
        let read = http.get(path).basin(BASIN).send().await;
        assert_eq!(read.status, 503, "{path}: {}", read.text());
        assert_eq!(read.code(), "server_draining", "{path}");
    }
    // The others go on.
    sdk::append(&stream, ["two"]).await;
}
