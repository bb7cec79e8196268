//! Floods of one token: scans, exports and imports of another one beside them.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use esker_proto::state::v1::import_request::Part;
use esker_proto::state::v1::state_service_client::StateServiceClient;
use esker_proto::state::v1::{ExportRequest, ImportOptions, ImportRequest};
use esker_proto::statehouse::v1::{
    BeginTransactionRequest, CommitRequest, ScanPrefixRequest, WriteRequest,
};
use futures::StreamExt as _;
use futures::stream;
use prost::Message;
use serde_json::json;
use tokio::task::JoinSet;
use tonic::Code;

use crate::client::{channel, collect, object};
use crate::support::{Http, Server, Setup, Transport, eventually, soon};
use crate::tokens::{Client, ROOT, issue, server, server_with, with};

const SCAN: &str = "/statehouse.v1.StatehouseService/ScanPrefix";
const EXPORT: &str = "/esker.state.v1.StateService/Export";

/// Writes so many keys of an agent, each some 500 KB.
async fn fill(client: &mut Client, agent: &str, keys: usize) {
    let value = format!("{{\"a\":\"{}\"}}", "x".repeat(500_000));
    for number in 0..keys {
        let begun = client.begin_transaction(with(ROOT, BeginTransactionRequest::default()));
        let txn_id = begun.await.unwrap().into_inner().txn_id;
        let write = WriteRequest {
            txn_id: txn_id.clone(),
            namespace: "default".into(),
            agent_id: agent.into(),
            key: format!("k{number:03}"),
            value: Some(object(&value)),
        };
        client.write(with(ROOT, write)).await.unwrap();
        let commit = client.commit(with(ROOT, CommitRequest { txn_id }));
        commit.await.unwrap();
    }
}

/// A message framed as the body of a gRPC call.
fn framed(message: &impl Message) -> Bytes {
    let mut body = vec![0];
    body.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    body.extend_from_slice(&message.encode_to_vec());
    body.into()
}

fn scan_of(agent: &str) -> ScanPrefixRequest {
    ScanPrefixRequest {
        namespace: "default".into(),
        agent_id: agent.into(),
        prefix: String::new(),
    }
}

/// The value of a gauge.
async fn gauge(server: &Server, name: &str) -> f64 {
    let http = server.http1().with_token(ROOT);
    let metrics = http.get("/metrics").send().await.expect(200).text();
    let start = format!("{name} ");
    let line = metrics.lines().find_map(|line| line.strip_prefix(&start));
    line.expect("it exists").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn scans_that_one_token_has_queued_hold_up_no_scan_of_another() {
    const QUEUED: usize = 64;
    let file = tempfile::NamedTempFile::new().unwrap();
    let (server, mut client) = server(&file).await;
    fill(&mut client, "big", 12).await;
    fill(&mut client, "small", 1).await;
    let scope = json!({
        "namespaces": {"prefix": ""},
        "agents": {"exact": "big"},
        "read": true,
    });
    let token = issue(&server, "flood", scope).await;
    let http = Arc::new(Http::new(server.address(), Transport::Http2).with_token(&token));
    let ends = Arc::new(AtomicBool::new(false));
    let done = Arc::new(AtomicUsize::new(0));
    let mut flood = JoinSet::new();
    let body = framed(&scan_of("big"));
    for _ in 0..QUEUED {
        let (http, body) = (http.clone(), body.clone());
        let (ends, done) = (ends.clone(), done.clone());
        flood.spawn(async move {
            while !ends.load(Ordering::Relaxed) {
                let call = http
                    .post(SCAN)
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(body.clone());
                call.send().await;
                done.fetch_add(1, Ordering::Relaxed);
            }
        });
    }
    eventually("scans wait", async || {
        let waiting = gauge(&server, "esker_state_scans_waiting").await;
        (waiting >= (QUEUED / 2) as f64 && done.load(Ordering::Relaxed) > 0).then_some(())
    })
    .await;
    // How many of the flood end during one of the other: in the order of arrival, nearly all that wait.
    let mut waited = Vec::new();
    for _ in 0..5 {
        let before = done.load(Ordering::Relaxed);
        let scan = client.scan_prefix(with(ROOT, scan_of("small")));
        let answer = soon("a scan", scan).await.unwrap().into_inner();
        assert_eq!(answer.entries.len(), 1);
        waited.push(done.load(Ordering::Relaxed) - before);
    }
    waited.sort_unstable();
    assert!(waited[2] <= QUEUED / 2, "{waited:?} of {QUEUED}");
    ends.store(true, Ordering::Relaxed);
    while let Some(ended) = flood.join_next().await {
        ended.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_that_one_token_does_not_take_keep_no_export_of_another_away() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // The slow ones keep their places until the end.
    let patient = Setup::default().set("limits.stall-timeout=1h");
    let (server, mut client) = server_with(patient, &file).await;
    // More than connections and pieces that are ready hold.
    fill(&mut client, "big", 40).await;
    let everything = json!({"prefix": ""});
    let scope = json!({"namespaces": everything, "agents": everything, "read": true});
    let token = issue(&server, "slow", scope).await;
    let http = Arc::new(Http::with_window(server.address(), 1024).with_token(&token));
    let export = ExportRequest { commit_ts: None };
    let mut slow = JoinSet::new();
    for _ in 0..8 {
        let (http, body) = (http.clone(), framed(&export));
        slow.spawn(async move {
            loop {
                let call = http
                    .post(EXPORT)
                    .header("content-type", "application/grpc")
                    .header("te", "trailers")
                    .body(body.clone());
                let unread = call.ask().await;
                if !unread.headers.contains_key("grpc-status") {
                    std::future::pending::<()>().await;
                }
                // It was refused after its wait, and asks again.
            }
        });
    }
    eventually("its exports run, and others of it wait", async || {
        let running = gauge(&server, "esker_state_exports_running").await;
        let waiting = gauge(&server, "esker_state_exports_waiting").await;
        (running >= 3.0 && waiting >= 1.0).then_some(())
    })
    .await;
    assert!(gauge(&server, "esker_state_exports_running").await <= 3.0);
    let mut backup = StateServiceClient::new(channel(server.url()));
    for _ in 0..3 {
        let export = soon("an export", backup.export(with(ROOT, export))).await;
        let mut pieces = export.expect("it has a place").into_inner();
        let mut bytes = 0;
        while let Some(piece) = soon("a piece", pieces.message()).await.unwrap() {
            bytes += piece.data.len();
        }
        assert!(bytes > 40 * 500_000, "{bytes}");
    }
    // What waits for its share is refused in time, and may be tried again.
    let refused = backup.export(with(&token, export));
    let refused = soon("a refusal", refused).await.unwrap_err();
    assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    drop(slow);
}

/// The beginning of an import that replaces what there is.
fn begins() -> ImportRequest {
    ImportRequest {
        part: Some(Part::Options(ImportOptions { replace: true })),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn imports_that_one_token_sends_slowly_keep_no_import_of_another_away() {
    let file = tempfile::NamedTempFile::new().unwrap();
    // The slow ones keep their places until the end.
    let patient = Setup::default().set("limits.header-timeout=1h");
    let (server, mut client) = server_with(patient, &file).await;
    fill(&mut client, "big", 2).await;
    let everything = json!({"prefix": ""});
    let scope = json!({
        "namespaces": everything,
        "agents": everything,
        "read": true,
        "write": true,
    });
    let token = issue(&server, "slow", scope).await;
    let service = || StateServiceClient::new(channel(server.url()));
    let mut slow = JoinSet::new();
    for _ in 0..6 {
        let (mut service, token) = (service(), token.clone());
        slow.spawn(async move {
            loop {
                // It begins, and sends nothing more.
                let messages = stream::iter([begins()]).chain(stream::pending());
                let refused = service.import(with(&token, messages)).await.unwrap_err();
                assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            }
        });
    }
    eventually("two run, and others wait", async || {
        let running = gauge(&server, "esker_state_imports_running").await;
        let waiting = gauge(&server, "esker_state_imports_waiting").await;
        (running == 2.0 && waiting >= 1.0).then_some(())
    })
    .await;
    let mut backup = service();
    let export = ExportRequest { commit_ts: None };
    let exported = backup.export(with(ROOT, export)).await.unwrap();
    let text = collect(exported.into_inner()).await.unwrap();
    for _ in 0..3 {
        let pieces = text.iter().map(|piece| ImportRequest {
            part: Some(Part::Data(piece.data.clone())),
        });
        let messages: Vec<_> = std::iter::once(begins()).chain(pieces).collect();
        let import = backup.import(with(ROOT, stream::iter(messages)));
        let done = soon("an import", import).await.expect("it has a place");
        assert_eq!(done.into_inner().keys, 2);
    }
    drop(slow);
}
