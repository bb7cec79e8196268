//! Compares the document with the handlers on a real node, and tests what is refused.

mod schema;
mod state;

use std::collections::BTreeSet;
use std::num::NonZeroU32;
use std::path::Path;

use axum::body::Body;
use axum::response::IntoResponse as _;
use axum::{Extension, Router};
use esker_node::{Bootstrap, Create, Error, Node, NodeOptions};
use http::{Method, Request, StatusCode};
use http_body_util::BodyExt as _;
use s2_common::config::{BasinConfig, OptionalStreamConfig};
use serde_json::{Value, json};
use tower::ServiceExt as _;

use crate::auth::{Access, Guarded};
use crate::sample_history::History;
use crate::usage::Usage;

use super::{AdminError, BODY, PROBLEMS, open_api};

/// The basin that all requests name; few of them access it.
const BASIN: &str = "my-basin";

struct World {
    node: Node,
    router: Router,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        World::on(tempfile::tempdir().unwrap(), None).await
    }

    async fn on(dir: tempfile::TempDir, bootstrap: Option<Bootstrap>) -> World {
        let mut options = NodeOptions {
            partitions: 2,
            bootstrap,
            ..NodeOptions::new(dir.path().join("data"))
        };
        options.snapshots.num_retained = NonZeroU32::new(9);
        options.snapshots.destination = Some(shown(&dir.path().join("backups")));
        let node = Node::start(options).await.unwrap();
        World {
            router: super::router(
                Guarded::new(node.clone()),
                3,
                (History::default(), Usage::default()),
            )
            .layer(Extension(Access::unrestricted())),
            node,
            dir,
        }
    }

    /// The same, restored after its data directory was lost.
    async fn lost(self) -> World {
        self.node.stop(std::time::Duration::from_secs(5)).await;
        drop((self.node, self.router));
        std::fs::remove_dir_all(self.dir.path().join("data")).unwrap();
        World::on(self.dir, Some(Bootstrap::Restore)).await
    }

    /// Makes a stream of [`BASIN`].
    async fn stream(&self, name: &str) {
        let config = BasinConfig {
            create_stream_on_read: true,
            ..BasinConfig::default()
        };
        let made = self.node.provision_basin(BASIN, &config, &Create::Ensure);
        made.await.unwrap();
        let config = OptionalStreamConfig::default();
        let made = self
            .node
            .provision_stream(BASIN, name, &config, &Create::Ensure);
        made.await.unwrap();
    }

    /// Commits a value of a key of the agent `n`, `a`.
    async fn commit(&self, key: &str, value: &'static str) {
        let store = self.node.state();
        let txn = store.begin(esker_node::Client::default(), None).unwrap();
        let value = bytes::Bytes::from_static(value.as_bytes());
        let key = esker_node::state::StateKey::new("n", "a", key);
        store.write(&txn, key, value, None).unwrap();
        let client = esker_node::Client::default();
        store.commit(&txn, vec![], client, None).await.unwrap();
    }

    async fn ask(&self, method: Method, path: &str, body: &str) -> (StatusCode, Value) {
        self.ask_in(Some(BASIN), method, path, body).await
    }

    async fn ask_in(
        &self,
        basin: Option<&str>,
        method: Method,
        path: &str,
        body: &str,
    ) -> (StatusCode, Value) {
        let mut request = Request::builder()
            .method(method)
            .uri(format!("/esker/v1{path}"));
        if let Some(basin) = basin {
            request = request.header("s2-basin", basin);
        }
        let request = request.body(Body::from(body.to_owned())).unwrap();
        let answer = self.router.clone().oneshot(request).await.unwrap();
        let status = answer.status();
        let bytes = answer.into_body().collect().await.unwrap().to_bytes();
        let value = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        (status, value)
    }

    async fn get(&self, path: &str) -> Value {
        let (status, value) = self.ask(Method::GET, path, "").await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    async fn post(&self, path: &str, body: Value) -> Value {
        let (status, value) = self.ask(Method::POST, path, &body.to_string()).await;
        assert_eq!(status, StatusCode::OK, "{path}: {value}");
        value
    }

    /// The request must be refused with this status and code, in the documented form.
    async fn refused(&self, method: Method, path: &str, body: &str, expected: (u16, &str)) {
        let (status, value) = self.ask(method, path, body).await;
        let code = value["code"].as_str().unwrap_or_default();
        assert_eq!((status.as_u16(), code), expected, "{path}: {value}");
        assert!(value["message"].as_str().is_some_and(|m| !m.is_empty()));
    }

    async fn stop(self) {
        self.node.stop(std::time::Duration::from_secs(5)).await;
    }
}

fn shown(path: &Path) -> String {
    path.display().to_string()
}

/// The operations of a document: id, method and path.
fn operations(document: &Value) -> Vec<(String, String, String)> {
    let mut found = Vec::new();
    for (path, methods) in document["paths"].as_object().unwrap() {
        for (method, operation) in methods.as_object().unwrap() {
            let id = operation["operationId"].as_str().unwrap().to_owned();
            found.push((id, method.clone(), path.clone()));
        }
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn every_documented_operation_answers_as_its_schema_says() {
    let world = World::new().await;
    let document = world.get("/openapi.json").await;
    assert_eq!(document["openapi"], "3.1.0");

    // A snapshot, so that there is one to describe. One of the same content replaces it.
    let created = world.post("/partitions/1/snapshots", json!({})).await;
    let new = created["snapshot"].as_str().unwrap();
    world.stream("a/b").await;
    world.commit("k", r#"{"a":1}"#).await;
    let mut called = BTreeSet::new();
    for (id, method, path) in operations(&document) {
        let filled = path
            .strip_prefix("/esker/v1")
            .unwrap()
            .replace("{partition}", "1")
            .replace("{snapshot}", "newest")
            .replace("{stream}", "a%2Fb");
        let asked: Vec<(String, Value)> = match id.as_str() {
            "openapi"
            | "status"
            | "history"
            | "state_status"
            | "state_agents"
            | "state_commits"
            | "list_snapshots"
            | "create_snapshot"
            | "show_snapshot"
            | "prove_snapshot"
            | "snapshot_files"
            | "last_sweep"
            | "stream_position"
            | "stream_activity"
            | "confirm_access_tokens" => vec![(filled, json!({}))],
            "state_keys" => vec![(format!("{filled}?namespace=n&agent=a"), json!({}))],
            "state_value" | "state_versions" => {
                let of = format!("{filled}?namespace=n&agent=a&key=k");
                let absent = format!("{filled}?namespace=n&agent=a&key=absent");
                vec![(of, json!({})), (absent, json!({}))]
            }
            // This node is in no cluster. The success is shown with three nodes, end to end.
            "cluster" | "remove_node" | "drain_node" | "activate_node" | "transfer_leader"
            | "check_replicas" | "trust_replica" => {
                let path = filled.replace("{node}", "n1");
                let method = Method::from_bytes(method.to_uppercase().as_bytes()).unwrap();
                let body = match id.as_str() {
                    "trust_replica" => r#"{"node": "n1"}"#,
                    _ => r#"{"to": "n1"}"#,
                };
                world
                    .refused(method, &path, body, (409, "not_in_cluster"))
                    .await;
                vec![]
            }
            // The basin exists and its streams are not lost, so this is refused. Tests of restores cover
            // the success.
            "adopt_basin" => {
                let path = filled.replace("{basin}", BASIN);
                world
                    .refused(Method::POST, &path, r#"{"id": 9}"#, (422, "invalid"))
                    .await;
                vec![]
            }
            "diff_snapshots" => {
                // The snapshot that is there now: another operation may have replaced the first one.
                let created = world.post("/partitions/1/snapshots", json!({})).await;
                let there = created["snapshot"].as_str().unwrap();
                let filled = filled.replace("{old}", there).replace("{new}", there);
                vec![(filled, json!({}))]
            }
            "verify_snapshots" => vec![
                (filled.clone(), json!({})),
                (filled.clone(), json!({ "data": true })),
                (filled, json!({ "data": true, "repair": true })),
            ],
            "why" => ["latest.json", "nothing", &format!("{new}/metadata.json")]
                .map(|key| (format!("{filled}?key={key}"), json!({})))
                .into(),
            "prune" => vec![
                (filled.clone(), json!({ "keep": 1, "min_age_seconds": 0 })),
                (filled, json!({ "apply": true, "min_age_seconds": 0.0 })),
            ],
            other => panic!("{other} is documented, and this test does not call it"),
        };
        let operation = &document["paths"][&path][&method];
        let schema = &operation["responses"]["200"]["content"]["application/json"]["schema"];
        for (path, body) in asked {
            let answer = match method.as_str() {
                "get" => world.get(&path).await,
                _ => world.post(&path, body).await,
            };
            let checked = schema::check(&document, schema, &answer, &id);
            checked.unwrap_or_else(|problem| panic!("{problem}\n{answer:#}"));
        }
        called.insert(id);
    }
    assert_eq!(called.len(), 30, "{called:?}");
    world.stop().await;
}

#[test]
fn every_operation_is_explained_and_says_how_it_fails() {
    let (_, document) = open_api().split_for_parts();
    let document = serde_json::to_value(document).unwrap();
    for (id, method, path) in operations(&document) {
        let operation = &document["paths"][&path][&method];
        assert!(operation["summary"].is_string(), "{id}");
        let failures = operation["responses"].as_object().unwrap();
        for (status, answer) in failures.iter().filter(|(status, _)| *status != "200") {
            let schema = &answer["content"]["application/json"]["schema"]["$ref"];
            assert_eq!(schema, "#/components/schemas/ErrorBody", "{id} {status}");
        }
        assert!(id == "openapi" || failures.len() > 1, "{id}");
    }
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        assert!(schema["description"].is_string(), "{name} is not explained");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_says_why_with_a_stable_code() {
    let world = World::new().await;
    world.post("/partitions/1/snapshots", json!({})).await;
    let (get, post) = (Method::GET, Method::POST);
    let list = "/partitions/9/snapshots";
    let not_found = (404, "partition_not_found");
    world.refused(get.clone(), list, "", not_found).await;
    world.refused(post.clone(), list, "", not_found).await;
    let prove = "/partitions/9/snapshots/newest/prove";
    world.refused(post.clone(), prove, "", not_found).await;
    let path = "/partitions/one/snapshots";
    world
        .refused(get.clone(), path, "", (400, "bad_path"))
        .await;
    let path = "/partitions/1/objects/why";
    world
        .refused(get.clone(), path, "", (400, "bad_query"))
        .await;
    let unknown = (404, "no_snapshot");
    for path in ["999", "999/diff/newest"] {
        let path = format!("/partitions/1/snapshots/{path}");
        world.refused(get.clone(), &path, "", unknown).await;
    }
    let prove = "/partitions/1/snapshots/999/prove";
    world.refused(post.clone(), prove, "", unknown).await;

    let prune = "/partitions/1/prune";
    for (body, expected) in [
        ("{", (400, "bad_json")),
        (r#"{"aply": true}"#, (400, "bad_json")),
        (r#"{"keep": 0}"#, (400, "bad_json")),
        (r#"{"min_age_seconds": -1}"#, (422, "invalid")),
        (r#"{"apply": true, "keep": 1}"#, (422, "invalid")),
        (r#"{"apply": true, "generation": 1}"#, (409, "root_moved")),
        (&" ".repeat(BODY + 1), (413, "bad_json")),
    ] {
        world.refused(post.clone(), prune, body, expected).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_lists_forks_as_its_schema_says() {
    let world = World::new().await;
    world.stream("a/b").await;
    let path = "/streams/a%2Fb/position";
    let before = world.get(path).await;
    assert_eq!((&before["tail"], &before["forks"]), (&json!(0), &json!([])));
    for partition in 0..=2 {
        let path = format!("/partitions/{partition}/snapshots");
        world.post(&path, json!({})).await;
    }
    let world = world.lost().await;
    let after = world.get(path).await;
    let gap = 1_u64 << 40;
    let fork = json!({ "parent": before["lineage"], "seq_num": 0, "resumes_at": gap });
    assert_eq!(after["forks"], json!([fork]), "{after}");
    assert_eq!((&after["head"], &after["tail"]), (&json!(gap), &json!(gap)));
    assert_eq!(after["created_at"], before["created_at"]);
    // The numbers that were passed over are no records.
    let activity = world.get("/streams/a%2Fb/activity?size=true").await;
    assert_eq!(activity["records"], 0, "{activity}");
    assert_eq!(activity["records_last_minute"], 0, "{activity}");
    assert_ne!(after["lineage"], before["lineage"]);
    let document = world.get("/openapi.json").await;
    let schema = json!({ "$ref": "#/components/schemas/StreamPosition" });
    schema::check(&document, &schema, &after, "position").unwrap();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_position_is_of_a_stream_that_there_is_and_makes_none() {
    let world = World::new().await;
    world.stream("there").await;
    let refused = async |basin, path, expected: (u16, &str)| {
        let (status, value) = world.ask_in(basin, Method::GET, path, "").await;
        let code = value["code"].as_str().unwrap_or_default();
        assert_eq!((status.as_u16(), code), expected, "{path}: {value}");
        assert!(value["message"].as_str().is_some_and(|m| !m.is_empty()));
    };
    let path = "/streams/there/position";
    refused(None, path, (400, "bad_header")).await;
    refused(Some("No Basin"), path, (400, "bad_header")).await;
    refused(Some("no-basin"), path, (404, "basin_not_found")).await;
    let too_long = format!("/streams/{}/position", "n".repeat(513));
    refused(Some(BASIN), &too_long, (400, "bad_path")).await;
    let not_found = (404, "stream_not_found");
    for _ in 0..2 {
        refused(Some(BASIN), "/streams/missing/position", not_found).await;
    }
    let (streams, _) = world.node.list_streams(BASIN, "", "", 10).unwrap();
    assert_eq!(streams.len(), 1, "{streams:?}");
    world.node.delete_stream(BASIN, "there").await.unwrap();
    refused(Some(BASIN), path, not_found).await;
    world.stop().await;
}

#[tokio::test]
async fn a_basin_that_is_being_deleted_is_refused_as_the_s2_api_refuses_it() {
    let error = || Error::BasinDeletionPending(BASIN.to_owned());
    let theirs = crate::api::ServiceError::from(error()).into_response();
    let ours = AdminError::from(error()).into_response();
    assert_eq!(ours.status(), theirs.status());
    let [ours, theirs] = [ours, theirs].map(|answer| answer.into_body().collect());
    let ours = ours.await.unwrap().to_bytes();
    assert_eq!(ours, theirs.await.unwrap().to_bytes());
    assert!(String::from_utf8_lossy(&ours).contains("basin_deletion_pending"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_plan_is_carried_out_while_its_generation_holds() {
    let world = World::new().await;
    world.post("/partitions/2/snapshots", json!({})).await;
    let plan = world
        .post("/partitions/2/prune", json!({ "keep": 1 }))
        .await;
    let generation = &plan["plan"]["generation"];
    let apply = json!({ "apply": true, "keep": 1, "generation": generation });
    let done = world.post("/partitions/2/prune", apply.clone()).await;
    assert_eq!(done["done"]["failed"], 0, "{done}");
    world.post("/partitions/2/snapshots", json!({})).await;
    let body = apply.to_string();
    let moved = (409, "root_moved");
    let prune = "/partitions/2/prune";
    world.refused(Method::POST, prune, &body, moved).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_that_was_proven_is_in_the_status() {
    let world = World::new().await;
    let created = world.post("/partitions/0/snapshots", json!({})).await;
    assert!(created["archived_lsn"].as_u64() <= created["lsn"].as_u64());
    let prove = "/partitions/0/snapshots/newest/prove";
    let proven = world.post(prove, json!({})).await;
    assert_eq!(proven["snapshot"], created["snapshot"]);
    let status = world.get("/status").await;
    let catalog = &status["partitions"][0];
    assert_eq!(catalog["proven"]["digest"], proven["digest"]);
    assert_eq!(status["serving"], true);
    let problems = status["problems"].as_array().unwrap();
    let unproven = problems.iter().find(|p| p["code"] == "unproven");
    let partitions = unproven.map_or(json!([]), |p| p["partitions"].clone());
    assert!(!partitions.as_array().unwrap().contains(&json!(0)));
    world.stop().await;
}

#[test]
fn every_problem_that_a_node_reports_is_listed() {
    let directory = concat!(env!("CARGO_MANIFEST_DIR"), "/../node/src/snapshots");
    let files = std::fs::read_dir(directory).unwrap();
    let text = |file: std::io::Result<std::fs::DirEntry>| {
        std::fs::read_to_string(file.unwrap().path()).unwrap()
    };
    let source: String = files.map(text).collect();
    let calls = source.split("problems.add(").skip(1);
    // One call passes on the code of a failure of the repository; those codes are in a file of their own.
    let named = calls.filter(|call| call.trim_start().starts_with('"'));
    let mut reported: BTreeSet<_> = named.map(|call| call.split('"').nth(1).unwrap()).collect();
    let failures = include_str!("../../../../node/src/snapshots/failure.rs");
    let words = failures.split('"').skip(1).step_by(2);
    reported.extend(words.filter(|word| word.starts_with("repository_")));
    let advice = PROBLEMS.iter().filter(|(_, advice, _)| *advice);
    let advice: BTreeSet<_> = advice.map(|(code, ..)| *code).collect();
    assert_eq!(advice, BTreeSet::from(esker_node::ADVICE));
    reported.extend(crate::tls::PROBLEMS);
    reported.insert(crate::auth::root_token_reload::NOT_RELOADED);
    reported.insert(crate::auth::catalog_check::PROBLEM);
    reported.insert(crate::server::peer_secret::NOT_RELOADED);
    {
        use crate::server::peer_certificates::{EXPIRED, EXPIRES_SOON, NOT_RELOADED};
        reported.extend([NOT_RELOADED, EXPIRES_SOON, EXPIRED]);
    }
    let listed: BTreeSet<_> = PROBLEMS.iter().map(|(code, ..)| *code).collect();
    assert!(reported.len() > 10, "{reported:?}");
    assert_eq!(reported, listed);
}
