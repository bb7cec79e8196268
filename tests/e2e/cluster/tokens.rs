//! Access tokens in a cluster: issued by one node, used by way of another, revoked by way of a third; and after
//! a majority was lost.

use std::os::unix::fs::PermissionsExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use serde_json::json;
use testkit::process::{program, without_configuration};

use crate::support::{Cluster, Http, Setup, events, eventually, frames, in_time, within};

pub(super) const ROOT: &str = "root-token-of-the-end-to-end-tests-0123456789";
/// What one node has answered about tokens holds on all others within this time.
const EVERYWHERE: Duration = Duration::from_secs(2);

/// A request that needs a token.
async fn status(cluster: &Cluster, at: usize, token: &str) -> u16 {
    let http = cluster.server(at).http1().with_token(token);
    let answer = http.get("/v1/streams").basin("test-basin").send().await;
    answer.status.as_u16()
}

/// Waits until every node answers with this status. The error is how long that took, if too long.
async fn everywhere(cluster: &Cluster, token: &str, wanted: u16) -> Result<(), String> {
    let began = Instant::now();
    for at in cluster.all() {
        while status(cluster, at, token).await != wanted {
            let took = began.elapsed();
            if took > EVERYWHERE * 20 {
                panic!("n{at} does not answer {wanted} after {took:?}");
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }
    match began.elapsed() {
        took if took <= EVERYWHERE => Ok(()),
        took => Err(format!("{wanted} on all nodes after {took:?}")),
    }
}

/// What all nodes have, with files in the directory: a root token and a secret.
pub(super) fn setup(dir: &std::path::Path) -> Setup {
    let private = |name: &str, text: &str| {
        let file = dir.join(name);
        std::fs::write(&file, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let token = private("root-token", ROOT);
    let secret = private("secret", "a-secret-of-the-nodes-of-this-test-0123456789");
    Setup::default()
        .partitions(1)
        .set(&format!("root-token-file={token}"))
        .set(&format!("cluster.secret-file={secret}"))
}

/// The status and the code of the answer to an append of one record by way of a node.
async fn append(cluster: &Cluster, at: usize, token: &str) -> (u16, String) {
    let http = cluster.server(at).http1().with_token(token);
    let append = http.post("/v1/streams/orders/records").basin("test-basin");
    let append = append.json(&json!({"records": [{"body": "x"}]}));
    let answer = append.send().await;
    match answer.status.as_u16() {
        200 => (200, String::new()),
        status => (status, answer.code()),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_that_does_not_hear_of_revocations_takes_the_root_token_alone() {
    const PROBLEM: &str = "access_tokens_unchecked";
    let dir = tempfile::tempdir().unwrap();
    let cluster = Cluster::linked(&setup(dir.path()))
        .with_token(ROOT)
        .with_three()
        .await;
    let root = |at: usize| cluster.server(at).http1().with_token(ROOT);
    // One node leads the catalog and another one the streams, for as long as the test takes; only the third one will reach
    // both.
    let (catalog, streams) = (cluster.keeper_of(0, 0).await, cluster.keeper_of(1, 0).await);
    let third = 3 - catalog - streams;
    let post = async |path: &str, basin: &str, body: serde_json::Value| {
        let http = root(streams);
        let request = http.post(path).basin(basin).json(&body);
        request.send().await.expect(201).json()
    };
    post("/v1/basins", "test-basin", json!({"basin": "test-basin"})).await;
    post("/v1/streams", "test-basin", json!({"stream": "orders"})).await;
    let scope = json!({
        "basins": {"exact": "test-basin"}, "streams": {"prefix": ""},
        "op_groups": {"stream": {"read": true, "write": true}},
    });
    let leaked = json!({"id": "leaked", "scope": scope});
    let leaked = post("/v1/access-tokens", "test-basin", leaked).await;
    let leaked = leaked["access_token"].as_str().unwrap();
    let monitor = json!({"id": "monitor", "scope": {"admin": {"read": true}}});
    let monitor = post("/v1/access-tokens", "test-basin", monitor).await;
    let monitor = monitor["access_token"].as_str().unwrap();
    assert_eq!(append(&cluster, streams, leaked).await.0, 200);
    let http = cluster.server(streams).http1().with_token(leaked);
    let mut session = events::Events::open(&http, "test-basin", "orders", "seq_num=0", None).await;
    session.batch().await;

    cluster
        .links()
        .cut([(streams, catalog), (catalog, streams)]);
    let revoked = root(catalog)
        .delete("/v1/access-tokens/leaked")
        .send()
        .await;
    revoked.expect(204);
    let began = Instant::now();
    let code = eventually(
        "the token is refused where its revocation is not known",
        async || {
            let (status, code) = append(&cluster, streams, leaked).await;
            (status != 200).then_some((status, code))
        },
    )
    .await;
    assert_eq!(
        code,
        (503, "unavailable".to_owned()),
        "{:?}",
        began.elapsed()
    );
    for _ in 0..5 {
        let (status, _) = append(&cluster, streams, leaked).await;
        assert_ne!(status, 200, "it is not taken again");
    }
    let end = session.rest().await.pop().unwrap();
    assert_eq!(end.event, "error", "{end:?}");
    assert_eq!(end.json()["code"], "unavailable");
    // Nodes that reach the catalog know it.
    for at in [third, catalog] {
        assert_eq!(append(&cluster, at, leaked).await.0, 401, "n{at}");
    }
    assert_eq!(append(&cluster, streams, ROOT).await.0, 200);
    let problems = async || {
        let status = root(streams)
            .get("/esker/v1/status")
            .send()
            .await
            .expect(200);
        status.text()
    };
    // It is shown while issued tokens are in use.
    eventually("the status shows it", async || {
        assert_ne!(append(&cluster, streams, leaked).await.0, 200);
        problems().await.contains(PROBLEM).then_some(())
    })
    .await;
    // Whoever looks for the cause sees it with an issued token, and a balancer without one.
    let http = cluster.server(streams).http1().with_token(monitor);
    for path in ["/metrics", "/esker/v1/status", "/esker/v1/cluster"] {
        http.get(path).send().await.expect(200);
    }
    let ready = cluster.server(streams).http1();
    eventually("a balancer sees it", async || {
        assert_ne!(append(&cluster, streams, leaked).await.0, 200);
        let ready = ready.get("/health/ready").send().await.json();
        let mut notes = ready["notes"].as_array()?.iter();
        notes.any(|note| note["code"] == PROBLEM).then_some(())
    })
    .await;

    cluster.links().heal();
    eventually("the node knows of the revocation", async || {
        (append(&cluster, streams, leaked).await.0 == 401).then_some(())
    })
    .await;
    eventually("the problem is over", async || {
        (!problems().await.contains(PROBLEM)).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_valid_and_revoked_on_all_nodes_within_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let mut cluster = Cluster::empty(&setup(dir.path()))
        .with_token(ROOT)
        .with_three()
        .await;
    let root =
        |at: usize, cluster: &Cluster| -> Http { cluster.server(at).http1().with_token(ROOT) };
    let created = root(0, &cluster);
    let created = created
        .post("/v1/basins")
        .json(&json!({"basin": "test-basin"}));
    created.send().await.expect(201);
    let mut last = String::new();
    in_time("tokens are the same on all nodes", async |attempt| {
        for (issuer, revoker) in [(0, 2), (1, 0), (2, 1)] {
            let id = format!("token-{attempt}-{issuer}");
            let scope = json!({
                "basins": {"exact": "test-basin"},
                "op_groups": {"basin": {"read": true}},
            });
            let issued = root(issuer, &cluster);
            let issued = issued
                .post("/v1/access-tokens")
                .json(&json!({"id": id, "scope": scope}));
            let issued = issued.send().await.expect(201).json();
            let token = issued["access_token"].as_str().unwrap();
            everywhere(&cluster, token, 200).await?;
            let revoked = root(revoker, &cluster);
            let revoked = revoked.delete(&format!("/v1/access-tokens/{id}"));
            revoked.send().await.expect(204);
            everywhere(&cluster, token, 401).await?;
            token.clone_into(&mut last);
        }
        Ok(())
    })
    .await;
    // The next leader of the catalog does not let it in again.
    let leader = cluster.leader_of(0, 0).await;
    cluster.kill(leader);
    let others = cluster.all().filter(|at| *at != leader);
    for at in others {
        eventually(&format!("n{at} knows that it is revoked"), async || {
            let status = status(&cluster, at, &last).await;
            assert_ne!(status, 200, "n{at}");
            if status != 401 {
                // Until there is a next leader, it may be unknown. Few attempts: an address that guesses is slowed down.
                tokio::time::sleep(Duration::from_millis(300)).await;
            }
            (status == 401).then_some(())
        })
        .await;
    }
}

/// A revocation may be among what the lost nodes had acknowledged.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn after_a_majority_was_lost_issued_tokens_are_suspended_until_root_confirms_them() {
    let dir = tempfile::tempdir().unwrap();
    let repository = dir.path().join("repository");
    let setup = setup(dir.path()).set(&format!("snapshots.destination={}", repository.display()));
    let mut cluster = Cluster::empty(&setup).with_token(ROOT).with_three().await;
    let root = |at: usize, cluster: &Cluster| cluster.server(at).http1().with_token(ROOT);
    let basin = root(0, &cluster);
    let basin = basin
        .post("/v1/basins")
        .json(&json!({"basin": "test-basin"}));
    basin.send().await.expect(201);
    let scope = json!({
        "basins": {"exact": "test-basin"},
        "op_groups": {"basin": {"read": true}},
    });
    let mut texts = Vec::new();
    for id in ["app", "leaked"] {
        let issued = root(0, &cluster);
        let issued = issued.post("/v1/access-tokens");
        let issued = issued.json(&json!({"id": id, "scope": scope}));
        let issued = issued.send().await.expect(201).json();
        texts.push(issued["access_token"].as_str().unwrap().to_owned());
    }
    let (app, leaked) = (&texts[0], &texts[1]);
    eventually("the survivor has the tokens", async || {
        let both = (
            status(&cluster, 1, app).await,
            status(&cluster, 1, leaked).await,
        );
        (both == (200, 200)).then_some(())
    })
    .await;
    for at in cluster.all() {
        cluster.kill(at);
    }
    let mut recover = without_configuration(Command::new(program()));
    recover.args(["cluster", "recover", "--yes"]);
    let recovered = recover
        .arg(cluster.directory().join("n1"))
        .output()
        .unwrap();
    assert!(recovered.status.success(), "{recovered:?}");
    let said = String::from_utf8_lossy(&recovered.stdout);
    assert!(said.contains("`esker token confirm`"), "{said}");

    cluster.restart(1).await;
    let refused = eventually("the survivor answers", async || {
        let http = cluster.server(1).http1().with_token(app);
        let asked = http.get("/v1/streams").basin("test-basin");
        let answer = asked.try_send().await.ok()?;
        (answer.status != 503).then_some(answer)
    })
    .await;
    let refused = refused.expect(403);
    assert_eq!(refused.code(), "permission_denied");
    let text = refused.text();
    for what in [
        "suspended",
        "`esker cluster recover`",
        "`esker token confirm`",
    ] {
        assert!(text.contains(what), "{text}");
    }
    let survivor = root(1, &cluster);
    let revoked = survivor.delete("/v1/access-tokens/leaked").send().await;
    revoked.expect(204);
    let confirmed = survivor.post("/esker/v1/access-tokens/confirm").send();
    confirmed.await.expect(200);
    assert_eq!(status(&cluster, 1, app).await, 200);
    assert_eq!(status(&cluster, 1, leaked).await, 401);
}

/// Issues a token by way of node 0, and waits until all nodes take it.
pub(super) async fn issued(cluster: &Cluster, id: &str, more: serde_json::Value) -> String {
    let mut asked = json!({
        "id": id,
        "scope": {
            "basins": {"exact": "test-basin"}, "streams": {"prefix": "tenant-1/"},
            "op_groups": {
                "basin": {"read": true, "write": true}, "stream": {"read": true, "write": true},
            },
        },
    });
    for (key, value) in more.as_object().unwrap() {
        asked[key] = value.clone();
    }
    let root = cluster.server(0).http1().with_token(ROOT);
    let answer = root.post("/v1/access-tokens").json(&asked).send().await;
    let answer = answer.expect(201).json();
    let token = answer["access_token"].as_str().unwrap().to_owned();
    for at in cluster.all() {
        eventually(&format!("n{at} takes the token"), async || {
            (status(cluster, at, &token).await == 200).then_some(())
        })
        .await;
    }
    token
}

/// Three nodes with a basin.
pub(super) async fn with_a_basin(setup: &Setup) -> Cluster {
    let cluster = Cluster::empty(setup).with_token(ROOT).with_three().await;
    let root = cluster.server(0).http1().with_token(ROOT);
    let basin = root.post("/v1/basins");
    let basin = basin.json(&json!({"basin": "test-basin"}));
    basin.send().await.expect(201);
    cluster
}

/// One node answers the sessions of its clients, and the others pass them on or answer from their own replicas.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revocation_ends_sessions_by_way_of_every_node_within_two_seconds() {
    const STREAM: &str = "tenant-1%2Forders";
    let dir = tempfile::tempdir().unwrap();
    let cluster = with_a_basin(&setup(dir.path())).await;
    let root = cluster.server(1).http1().with_token(ROOT);
    let made = root.post("/v1/streams").basin("test-basin");
    let made = made.json(&json!({"stream": "tenant-1/orders"}));
    made.send().await.expect(201);
    in_time("sessions end by way of every node", async |attempt| {
        let id = format!("sessions-{attempt}");
        let token = issued(&cluster, &id, json!({})).await;
        let mut sessions = Vec::new();
        for at in cluster.all() {
            let http = cluster.server(at).http2().with_token(&token);
            let appends = frames::append_session(&http, "test-basin", STREAM).await;
            assert!(appends.send(frames::frame(&frames::input(["x"]))).await);
            sessions.push((at, http, appends));
        }
        let mut reads = Vec::new();
        for (at, http, appends) in &mut sessions {
            appends.next().await.message();
            let mut events =
                events::Events::open(http, "test-basin", STREAM, "seq_num=0", None).await;
            events.batch().await;
            let mut batches = frames::read_session(http, "test-basin", STREAM, "seq_num=0").await;
            batches.batch().await;
            reads.push((*at, events, batches));
        }
        let revoked = root.delete(&format!("/v1/access-tokens/{id}"));
        revoked.send().await.expect(204);
        let began = Instant::now();
        let is_refused = |status: u16, body: &serde_json::Value| {
            assert_eq!((status, &body["code"]), (401, &json!("authn")));
        };
        for (at, mut events, mut batches) in reads {
            let end = events.rest().await.pop().unwrap();
            assert_eq!(end.event, "error", "n{at}: {end:?}");
            assert_eq!(end.json()["code"], "authn", "n{at}");
            match batches.rest().await.pop().unwrap() {
                frames::Output::Error(status, body) => is_refused(status, &body),
                other => panic!("n{at}: {other:?}"),
            }
        }
        for (at, _http, mut appends) in sessions {
            match appends.rest().await.pop().unwrap() {
                frames::Output::Error(status, body) => is_refused(status, &body),
                other => panic!("n{at}: {other:?}"),
            }
        }
        within(began.elapsed(), EVERYWHERE)
    })
    .await;
}

/// Each node counts the failures of the clients that talk to it, before it asks the catalog for an unknown token.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn guesses_are_limited_on_every_node_and_valid_tokens_are_not() {
    // More than an address may send at once, and than are allowed again meanwhile.
    const ATTEMPTS: usize = 60;
    let dir = tempfile::tempdir().unwrap();
    let cluster = with_a_basin(&setup(dir.path())).await;
    let token = issued(&cluster, "app", json!({})).await;
    for at in cluster.all() {
        let mut statuses = Vec::new();
        for number in 0..ATTEMPTS {
            statuses.push(status(&cluster, at, &format!("esk_guess-{number}")).await);
        }
        assert!(statuses.contains(&429), "n{at}: {statuses:?}");
        // An election may come in between.
        let is_refused = |status: &u16| [401, 429, 503].contains(status);
        assert!(statuses.iter().all(is_refused), "n{at}: {statuses:?}");
        for token in [&*token, ROOT] {
            assert_eq!(status(&cluster, at, token).await, 200, "n{at}");
        }
    }
}
