//! Tokens after a restart, and after a restore with a loss.

use serde_json::json;

use super::{ROOT, World, root_token_file};
use crate::support::http::Transport;
use crate::support::{Setup, eventually};

#[tokio::test]
async fn tokens_survive_a_restart_and_revoked_ones_do_not_come_back() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root-token");
    root_token_file(&file, ROOT, 0o600);
    let setup = Setup::default().set(&format!("root-token-file={}", file.display()));
    let world = World {
        server: setup.start(&dir.path().join("data")).await,
        dir,
    };
    let kept = world.issue("kept", json!({"ops": ["list-basins"]})).await;
    let gone = world.issue("gone", json!({"ops": ["list-basins"]})).await;
    world.revoke("gone").await;
    let data = world.server.data_dir().to_owned();
    let World {
        mut server,
        dir: _dir,
    } = world;
    server.kill();
    let server = setup.start(&data).await;
    let http = |token: &str| server.http1().with_token(token);
    eventually("the token is known", async || {
        let answer = http(&kept).get("/v1/basins").send().await;
        (answer.status == 200).then_some(())
    })
    .await;
    http(&gone)
        .get("/v1/basins")
        .send()
        .await
        .refused(401, "authn");
}

#[tokio::test]
async fn a_restore_with_a_loss_suspends_tokens_until_they_are_confirmed() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root-token");
    root_token_file(&file, ROOT, 0o600);
    let backups = dir.path().join("backups");
    let setup = Setup::default()
        .set(&format!("root-token-file={}", file.display()))
        .set(&format!("snapshots.destination={}", backups.display()));
    let data = dir.path().join("data");
    let world = World {
        server: setup.start(&data).await,
        dir,
    };
    let kept = world.issue("kept", json!({"ops": ["list-basins"]})).await;
    let gone = world.issue("gone", json!({"ops": ["list-basins"]})).await;
    let root = world.http(Transport::Http1, ROOT);
    for partition in 0..=world.server_partitions().await {
        let path = format!("/esker/v1/partitions/{partition}/snapshots");
        root.post(&path).json(&json!({})).send().await.expect(200);
    }
    // The revocation is what is lost.
    world.revoke("gone").await;
    let World {
        mut server,
        dir: _dir,
    } = world;
    server.kill();
    std::fs::remove_dir_all(&data).unwrap();

    let server = setup.clone().bootstrap("restore").start(&data).await;
    let http = |token: &str| server.http1().with_token(token);
    let ask = async |token: &str| http(token).get("/v1/basins").send().await;
    for token in [&kept, &gone] {
        // A start may not know the tokens at once.
        let refused = eventually("the token is suspended", async || {
            let refused = ask(token).await;
            assert_ne!(refused.status, 200, "{}", refused.text());
            (refused.status == 403).then_some(refused)
        })
        .await;
        assert!(
            refused.text().contains("confirm"),
            "it says what to do: {}",
            refused.text()
        );
        refused.refused(403, "permission_denied");
    }
    let root = http(ROOT);
    let shows_problem = async || {
        let status = root.get("/esker/v1/status").send().await.expect(200);
        status.text().contains("access_tokens_suspended")
    };
    eventually("the status shows it", async || {
        shows_problem().await.then_some(())
    })
    .await;
    let gone_again = root.delete("/v1/access-tokens/gone").send().await;
    gone_again.expect(204);
    let confirm = "/esker/v1/access-tokens/confirm";
    // No token lifts its own suspension.
    let own = http(&kept).post(confirm).json(&json!({})).send().await;
    own.refused(403, "permission_denied");
    root.post(confirm).json(&json!({})).send().await.expect(200);
    ask(&kept).await.expect(200);
    ask(&gone).await.refused(401, "authn");
    eventually("the problem is over", async || {
        (!shows_problem().await).then_some(())
    })
    .await;
}
