//! Access tokens in a cluster: issued by one node, used by way of another, revoked by way of a third.

use std::os::unix::fs::PermissionsExt as _;
use std::time::{Duration, Instant};

use serde_json::json;

use crate::support::{Cluster, Http, Setup, in_time};

const ROOT: &str = "root-token-of-the-end-to-end-tests-0123456789";
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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_is_valid_and_revoked_on_all_nodes_within_two_seconds() {
    let dir = tempfile::tempdir().unwrap();
    let private = |name: &str, text: &str| {
        let file = dir.path().join(name);
        std::fs::write(&file, format!("{text}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        file.display().to_string()
    };
    let token = private("root-token", ROOT);
    let secret = private("secret", "a-secret-of-the-nodes-of-this-test-0123456789");
    let base = Setup::default()
        .partitions(1)
        .set(&format!("root-token-file={token}"))
        .set(&format!("cluster.secret-file={secret}"));
    let mut cluster = Cluster::empty(&base).with_token(ROOT).with_three().await;
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
        assert_eq!(status(&cluster, at, &last).await, 401, "n{at}");
    }
}
