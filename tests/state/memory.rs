//! The memory that reads of the state store hold: it is bounded, whatever the values are and whether or not
//! clients take the answers.

use std::time::Duration;

use esker_proto::state::v1::{
    ExportRequest, ReplayRequest, SnapshotRequest, StatusRequest, VerifyRequest, WatchRequest,
};
use esker_proto::statehouse::v1::{GetStateRequest, ScanPrefixRequest};
use prost::Message;
use tonic::Code;

use crate::client::{State, collect, key};
use crate::support::{Http, Setup, eventually, soon};

const MIB: u64 = 1024 * 1024;
/// Elements of a list of nulls that has about 1 MB as JSON and takes 11 times that as a tree of messages.
const NULLS: usize = 200_000;
const KEYS: usize = 40;

/// A store whose values are small as text and large as trees of messages.
async fn store_of_trees(stall_timeout: &str) -> State {
    let setup = Setup::default()
        .set(&format!("limits.stall-timeout={stall_timeout}"))
        // Freed memory is returned to the system at once, so that only memory in use is measured.
        .variable("MALLOC_ARENA_MAX", "2")
        .variable("MALLOC_MMAP_THRESHOLD_", "65536")
        .variable("MALLOC_TRIM_THRESHOLD_", "65536");
    let state = State::of(setup.start_fresh().await);
    let value = format!("{{\"n\":[{}null]}}", "null,".repeat(NULLS - 1));
    for index in 0..KEYS {
        state.put(key(&format!("k{index:02}")), &value).await;
    }
    state
}

/// A message framed as the body of a gRPC call.
fn framed(message: &impl Message) -> Vec<u8> {
    let mut body = vec![0];
    body.extend_from_slice(&(message.encoded_len() as u32).to_be_bytes());
    body.extend_from_slice(&message.encode_to_vec());
    body
}

fn scan_all() -> ScanPrefixRequest {
    ScanPrefixRequest {
        namespace: "default".into(),
        agent_id: "a".into(),
        prefix: String::new(),
    }
}

/// Calls a method and reads nothing of its answer.
async fn unread(http: &Http, path: &str, message: &impl Message) -> crate::support::http::Exchange {
    let call = http
        .post(path)
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(framed(message));
    call.ask().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_scan_holds_its_answer_twice_at_most_and_not_its_tree() {
    let state = store_of_trees("5s").await;
    let before = state.server.resident_bytes();
    let answer = state
        .statehouse
        .clone()
        .scan_prefix(scan_all())
        .await
        .unwrap();
    let answer = answer.into_inner();
    assert_eq!(answer.entries.len(), KEYS);
    let size = answer.encoded_len() as u64;
    assert!(size > 20 * MIB, "{size}");
    let grown = peak_bytes(&state).saturating_sub(before);
    // The answer while it is written and once more as a message; the tree of one value; the database's
    // blocks and what the allocator keeps.
    let tree = 11 * size / KEYS as u64;
    assert!(
        grown < 2 * size + 2 * tree + 64 * MIB,
        "{} MiB of {} MiB",
        grown / MIB,
        size / MIB
    );
}

/// The peak of the resident memory, in bytes.
fn peak_bytes(state: &State) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", state.server.pid())).unwrap();
    let line = status
        .lines()
        .find(|line| line.starts_with("VmHWM:"))
        .unwrap();
    let kib: u64 = line.split_whitespace().nth(1).unwrap().parse().unwrap();
    kib * 1024
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn answers_that_nobody_takes_hold_a_bounded_amount_of_memory_and_are_given_up() {
    let state = store_of_trees("5s").await;
    let before = state.server.resident_bytes();
    let http = Http::with_window(state.server.address(), 1024);
    let scan = scan_all();
    let path = "/statehouse.v1.StatehouseService/ScanPrefix";
    let scans = (0..12).map(|_| unread(&http, path, &scan));
    // Others wait until the first ones are given up, and are made then, or refused.
    let scans = soon("heads of all answers", futures::future::join_all(scans)).await;
    let held = scans
        .iter()
        .filter(|it| it.headers.get("grpc-status").is_none());
    assert!(held.count() >= 2, "answers are held");
    let grown = peak_bytes(&state).saturating_sub(before);
    let size = (KEYS * (NULLS * 5)) as u64;
    // Answers that are held, three quarters for one principal, with those that are being made; these once more as
    // messages; two trees, and the allocator.
    let held = (128 + 2 * 64) / 4 * 3 * MIB;
    let bound = held + 2 * size + 2 * 11 * size / KEYS as u64 + 96 * MIB;
    assert!(grown < bound, "{} MiB of {} MiB", grown / MIB, bound / MIB);
    // A client that reads its answer gets it as soon as there is memory.
    let answer = eventually("an answer", async || {
        match state.statehouse.clone().scan_prefix(scan.clone()).await {
            Ok(answer) => Some(answer.into_inner()),
            Err(refused) => {
                assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
                None
            }
        }
    })
    .await;
    assert_eq!(answer.entries.len(), KEYS);
    drop(scans);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn values_that_nobody_takes_are_held_as_bytes_and_refused_beyond_their_bound() {
    let state = store_of_trees("1h").await;
    let before = state.server.resident_bytes();
    let http = Http::with_window(state.server.address(), 1024);
    let get = GetStateRequest {
        namespace: "default".into(),
        agent_id: "a".into(),
        key: "k00".into(),
    };
    let path = "/statehouse.v1.StatehouseService/GetState";
    // Each answer has some 800 KB, and 128 MiB of them are held; a slow machine takes a while to write them.
    let mut held = 0;
    let mut gets = Vec::new();
    while held == gets.len() {
        assert!(held < 300, "{held} answers are held");
        let more = (0..20).map(|_| unread(&http, path, &get));
        gets.extend(soon("heads of all answers", futures::future::join_all(more)).await);
        let refused = gets.iter().filter_map(|it| it.headers.get("grpc-status"));
        let refused: Vec<_> = refused.map(|it| it.to_str().unwrap()).collect();
        // UNAVAILABLE, for what does not fit.
        assert!(refused.iter().all(|it| *it == "14"), "{refused:?}");
        held = gets.len() - refused.len();
    }
    assert!(held > 100, "{held} answers are held");
    let grown = state.server.resident_bytes().saturating_sub(before);
    assert!(grown < (128 + 96) * MIB, "{} MiB", grown / MIB);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn exports_that_nobody_reads_leave_threads_to_others_and_are_ended() {
    let mut state = store_of_trees("1h").await;
    let http = Http::with_window(state.server.address(), 1024);
    let export = ExportRequest { commit_ts: None };
    let path = "/esker.state.v1.StateService/Export";
    let exports = (0..1000).map(|_| unread(&http, path, &export));
    let exports = soon("heads of all answers", futures::future::join_all(exports)).await;
    let refused = exports
        .iter()
        .filter_map(|it| it.headers.get("grpc-status"));
    let refused: Vec<_> = refused.map(|it| it.to_str().unwrap()).collect();
    // UNAVAILABLE: the condition is temporary.
    assert!(refused.iter().all(|it| *it == "14"), "{refused:?}");
    // One principal has all places but one.
    assert_eq!(refused.len(), 1000 - 3);
    let status = state.server.http1().get("/esker/v1/status").send().await;
    status.expect(200);
    // Answers are ended when nothing of them was taken for a while, and another scan may run.
    state.server.kill();
    let mut server = state.server;
    let impatient = Setup::default().set("limits.stall-timeout=1s");
    server.restart(&impatient).await;
    let state = State::of(server);
    let http = Http::with_window(state.server.address(), 1024);
    let exports = (0..8).map(|_| unread(&http, path, &export));
    let exports = soon("heads of all answers", futures::future::join_all(exports)).await;
    let running = |it: &&crate::support::http::Exchange| !it.headers.contains_key("grpc-status");
    assert!(exports.iter().filter(running).count() >= 4);
    let mut client = state.esker.clone();
    // On a machine that stands still for a second, the export of a client that reads is ended, too.
    let exported = eventually("an export", async || {
        let exported = match client.export(export).await {
            Ok(pieces) => collect(pieces.into_inner()).await,
            Err(refused) => Err(refused),
        };
        match exported {
            Ok(pieces) => Some(pieces),
            Err(refused) => {
                assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
                tokio::time::sleep(Duration::from_millis(50)).await;
                None
            }
        }
    });
    let bytes: usize = exported.await.iter().map(|piece| piece.data.len()).sum();
    assert!(bytes > KEYS * NULLS * 5, "{bytes}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_of_which_nothing_is_taken_end_with_a_status_that_invites_to_ask_again() {
    let state = store_of_trees("500ms").await;
    let http = Http::with_window(state.server.address(), 1024);
    let watch = WatchRequest {
        start_ts: Some(1),
        ..WatchRequest::default()
    };
    let replay = ReplayRequest::default();
    let service = "/esker.state.v1.StateService";
    let streams = [
        unread(&http, &format!("{service}/Watch"), &watch).await,
        unread(&http, &format!("{service}/Replay"), &replay).await,
    ];
    eventually("both are ended", async || {
        let metrics = state.server.http1().get("/metrics").send().await.text();
        let ended = metrics.contains("esker_http_answers_stalled_total 2");
        ended.then_some(())
    })
    .await;
    for stream in streams {
        let trailers = stream.trailers().await;
        // UNAVAILABLE.
        assert_eq!(trailers["grpc-status"], "14", "{trailers:?}");
        assert_eq!(trailers["esker-code"], "server_draining");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn verifications_whose_clients_are_gone_keep_their_places_until_they_end() {
    let state = store_of_trees("5s").await;
    let mut client = state.esker.clone();
    client.snapshot(SnapshotRequest {}).await.unwrap();
    let verify = VerifyRequest { commit_ts: None };
    // Each reads 40 MB, three at a time. Their clients disconnect before the answers arrive. How long after
    // the request that is depends on the machine, so several delays are tried.
    let mut limit = Duration::from_millis(1);
    eventually("they run without their clients", async || {
        let asked = (0..3).map(|_| {
            let mut client = client.clone();
            async move { tokio::time::timeout(limit, client.verify(verify)).await }
        });
        let answers = futures::future::join_all(asked).await;
        limit = (limit * 3 / 2).max(limit + Duration::from_millis(1));
        if limit > Duration::from_secs(4) {
            limit = Duration::from_millis(1);
        }
        if answers.iter().any(Result::is_ok) {
            // Not all clients disconnected before their answers.
            return None;
        }
        // The server has noticed that they are gone by then.
        client.status(StatusRequest {}).await.unwrap();
        tokio::time::sleep(Duration::from_millis(20)).await;
        let metrics = state.server.http1().get("/metrics").send().await.text();
        let running = metrics.contains("\nesker_state_exports_running 3\n");
        running.then_some(())
    })
    .await;
    // One more has a place when one of them has ended, which may take longer than it waits at a time.
    let ended = eventually("a place", async || match client.verify(verify).await {
        Ok(verified) => Some(verified),
        Err(refused) => {
            assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
            None
        }
    });
    ended.await;
}
