//! Calls and routes by way of a node that leads nothing: it answers as the node that leads what they are about.
//!
//! Those of S2 and Statehouse are called by the official clients in [`clients`](super::clients); these are the others.

use bytes::Bytes;
use esker_proto::Struct;
use esker_proto::state::v1::{
    BeginTransactionRequest, CommitRequest, ExportRequest, GetStateRequest, ImportOptions,
    ImportRequest, ListSnapshotsRequest, ReplayRequest, ScanRequest, SnapshotRequest,
    StatusRequest, VerifyRequest, WatchRequest, WriteRequest, import_request::Part,
    state_service_client::StateServiceClient,
};
use serde_json::{Value, json};
use tonic::Streaming;
use tonic::transport::{Channel, Endpoint};

use super::writer::{create, stream};
use crate::support::events::Events;
use crate::support::http::Answer;
use crate::support::{Cluster, Setup, eventually, sdk, soon};

const BASIN: &str = "test-basin";
const NAMESPACE: &str = "n";
const AGENT: &str = "a";

/// Three nodes: one keeps leading the catalog, one everything else, and the third one nothing.
struct Three {
    cluster: Cluster,
    leader: usize,
    third: usize,
    _repository: tempfile::TempDir,
}

async fn three() -> Three {
    let repository = tempfile::tempdir().unwrap();
    let destination = format!("snapshots.destination={}", repository.path().display());
    let setup = Setup::default().partitions(1).set(&destination);
    let cluster = Cluster::start(&setup).await;
    let (catalog, leader) = (cluster.keeper_of(0, 0).await, cluster.keeper_of(1, 0).await);
    Three {
        third: 3 - catalog - leader,
        cluster,
        leader,
        _repository: repository,
    }
}

type Client = StateServiceClient<Channel>;

fn state(cluster: &Cluster, at: usize) -> Client {
    let endpoint = Endpoint::from_shared(cluster.server(at).url().to_owned()).unwrap();
    StateServiceClient::new(endpoint.connect_lazy())
}

/// Commits a write of a key. Returns the number of the commit.
async fn put(client: &Client, key: &str) -> u64 {
    let mut client = client.clone();
    let begun = client.begin_transaction(BeginTransactionRequest::default());
    let txn_id = begun.await.unwrap().into_inner().txn_id;
    let write = WriteRequest {
        txn_id: txn_id.clone(),
        namespace: NAMESPACE.to_owned(),
        agent_id: AGENT.to_owned(),
        key: key.to_owned(),
        value: Some(Struct::default()),
        ..WriteRequest::default()
    };
    client.write(write).await.unwrap();
    let commit = CommitRequest {
        txn_id,
        ..CommitRequest::default()
    };
    client.commit(commit).await.unwrap().into_inner().commit_ts
}

async fn collect<T>(mut stream: Streaming<T>) -> Vec<T> {
    let mut all = Vec::new();
    while let Some(message) = stream.message().await.unwrap() {
        all.push(message);
    }
    all
}

async fn export(client: &Client, commit: u64) -> Vec<u8> {
    let request = ExportRequest {
        commit_ts: Some(commit),
    };
    let pieces = client.clone().export(request).await.unwrap().into_inner();
    let pieces = collect(pieces).await;
    pieces.into_iter().flat_map(|it| it.data).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_call_of_the_state_store_is_answered_by_a_node_that_leads_nothing() {
    let of = three().await;
    let (third, leader) = (state(&of.cluster, of.third), state(&of.cluster, of.leader));
    assert_eq!(put(&third, "k1").await, 1);
    let request = WatchRequest {
        start_ts: Some(1),
        ..WatchRequest::default()
    };
    let mut watch = third.clone().watch(request).await.unwrap().into_inner();
    let mut seen = async || {
        let event = soon("a commit is seen", watch.message()).await;
        event.unwrap().expect("it goes on").commit_ts
    };
    assert_eq!(seen().await, 1);
    assert_eq!(put(&leader, "k2").await, 2);
    assert_eq!(seen().await, 2, "made by way of another node");

    let scan = ScanRequest {
        namespace: NAMESPACE.to_owned(),
        agent_id: AGENT.to_owned(),
        ..ScanRequest::default()
    };
    let scanned = third.clone().scan(scan.clone()).await.unwrap().into_inner();
    let scanned = collect(scanned).await;
    let keys: Vec<_> = scanned.iter().flat_map(|it| &it.entries).collect();
    let keys: Vec<_> = keys.iter().map(|it| it.key.as_str()).collect();
    assert_eq!(keys, ["k1", "k2"]);
    let by_leader = leader.clone().scan(scan).await.unwrap().into_inner();
    assert_eq!(scanned, collect(by_leader).await);

    let request = ReplayRequest::default;
    let replayed = third.clone().replay(request()).await.unwrap().into_inner();
    let replayed = collect(replayed).await;
    assert_eq!(replayed.len(), 2);
    let by_leader = leader.clone().replay(request()).await.unwrap().into_inner();
    assert_eq!(replayed, collect(by_leader).await);

    let made = third.clone().snapshot(SnapshotRequest {}).await.unwrap();
    let made = made.into_inner().snapshot.unwrap();
    assert_eq!(made.commit_ts, 2);
    let list = ListSnapshotsRequest {};
    let listed = leader.clone().list_snapshots(list).await.unwrap();
    let listed = listed.into_inner().snapshots;
    let newest = listed.first().map(|it| &it.name);
    assert_eq!(newest, Some(&made.name), "the leader has it");
    let list = ListSnapshotsRequest {};
    let by_third = third.clone().list_snapshots(list).await.unwrap();
    let by_third = by_third.into_inner().snapshots;
    assert_eq!(by_third.first().map(|it| &it.name), newest);

    let text = export(&third, 2).await;
    assert!(!text.is_empty());
    assert_eq!(text, export(&leader, 2).await);

    let verify = VerifyRequest::default;
    let verified = third.clone().verify(verify()).await.unwrap().into_inner();
    assert_eq!(verified.differences, Vec::<String>::new());
    assert_eq!((verified.snapshot_commit_ts, verified.keys), (2, 2));
    let status = third.clone().status(StatusRequest {}).await.unwrap();
    assert_eq!(status.into_inner().commit_ts, 2);

    // What was there is replaced by what was exported.
    put(&third, "k3").await;
    let options = Part::Options(ImportOptions { replace: true });
    let pieces = text.chunks(100).map(Bytes::copy_from_slice).map(Part::Data);
    let parts = std::iter::once(options).chain(pieces);
    let messages = parts.map(|part| ImportRequest { part: Some(part) });
    let messages: Vec<_> = messages.collect();
    let import = third.clone().import(futures::stream::iter(messages)).await;
    let imported = import.unwrap().into_inner();
    assert_eq!((imported.imported_commit_ts, imported.keys), (2, 2));
    for client in [&third, &leader] {
        let exists = async |key: &str| {
            let get = GetStateRequest {
                namespace: NAMESPACE.to_owned(),
                agent_id: AGENT.to_owned(),
                key: key.to_owned(),
                ..GetStateRequest::default()
            };
            let read = client.clone().get_state(get).await.unwrap();
            read.into_inner().exists
        };
        assert!(exists("k1").await && exists("k2").await);
        assert!(!exists("k3").await, "it was not exported");
    }
}

async fn get(cluster: &Cluster, at: usize, path: &str) -> Value {
    let http = cluster.http(at);
    http.get(path).basin(BASIN).send().await.expect(200).json()
}

async fn post(cluster: &Cluster, at: usize, path: &str, body: Value) -> Answer {
    let http = cluster.http(at);
    http.post(path).json(&body).send().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn routes_about_streams_and_snapshots_are_answered_by_a_node_that_leads_nothing() {
    let of = three().await;
    let (cluster, third, leader) = (&of.cluster, of.third, of.leader);
    create(cluster, third, "orders").await;
    let orders = stream(cluster, third, "orders");
    sdk::append(&orders, ["a", "b", "c"]).await;

    let path = "/esker/v1/streams/orders/position";
    let position = get(cluster, third, path).await;
    assert_eq!(position["tail"], 3, "{position:#}");
    assert_eq!(position, get(cluster, leader, path).await);
    // The leader alone has counted the appends.
    let path = "/esker/v1/streams/orders/activity";
    let counts = |it: Value| (it["records"].clone(), it["records_last_minute"].clone());
    let (here, there) = (
        counts(get(cluster, third, path).await),
        counts(get(cluster, leader, path).await),
    );
    assert_eq!(here, there);
    assert_eq!(here.0, 3);

    // Server-sent events come from the replica.
    let http = cluster.http(third);
    let mut session = Events::open(&http, BASIN, "orders", "seq_num=0", None).await;
    assert_eq!(session.batch().await.seq_nums(), [0, 1, 2]);
    sdk::append(&stream(cluster, leader, "orders"), ["d"]).await;
    assert_eq!(session.batch().await.seq_nums(), [3]);

    // The leader puts a snapshot, and the repository is common.
    let snapshots = "/esker/v1/partitions/1/snapshots";
    let created = eventually("a snapshot is put", async || {
        let answer = post(cluster, third, snapshots, json!({})).await;
        (answer.status == 200).then(|| answer.json())
    })
    .await;
    let directory = created["snapshot"].as_str().unwrap();
    let name = directory.trim_end_matches('/').rsplit('/').next().unwrap();
    let path = format!("{snapshots}/{name}");
    let described = get(cluster, third, &path).await;
    assert_eq!(described, get(cluster, leader, &path).await);
    let verify = format!("{snapshots}/verify");
    let verified = post(cluster, third, &verify, json!({"data": true})).await;
    verified.expect(200);
    // It is restored here, and compared with the replica that is here.
    let prove = format!("{snapshots}/{name}/prove");
    let proven = post(cluster, third, &prove, json!({})).await;
    let proven = proven.expect(200).json();
    assert_eq!(proven["lsn"], created["lsn"], "{proven:#}");
    let sweep = "/esker/v1/partitions/1/sweep";
    eventually("the sweep of the leader is shown", async || {
        let swept = get(cluster, third, sweep).await;
        let is_it = swept == get(cluster, leader, sweep).await;
        (is_it && swept["last"].is_object()).then_some(())
    })
    .await;
    // Only a plan: nothing is deleted.
    let prune = "/esker/v1/partitions/1/prune";
    let plan = post(cluster, third, prune, json!({})).await.expect(200);
    let by_leader = post(cluster, leader, prune, json!({})).await.expect(200);
    assert_eq!(plan.json()["generation"], by_leader.json()["generation"]);

    // The catalog refuses it, whichever node is asked.
    let adopt = format!("/esker/v1/basins/{BASIN}/adopt");
    let id = json!({"id": 1_000_000});
    let refused = post(cluster, third, &adopt, id.clone()).await;
    let by_leader = post(cluster, leader, &adopt, id).await;
    assert!(refused.status.is_client_error(), "{}", refused.text());
    assert_eq!(refused.status, by_leader.status);
    assert_eq!(refused.code(), by_leader.code());
}
