//! The file of the root token, and another token in it.

use std::time::{Duration, Instant};

use serde_json::json;

use super::{REVOCATION, ROOT, ROTATION, World, all_of, appends_end, root_token_file};
use crate::support::http::{Http, TRANSPORTS, Transport};
use crate::support::{Setup, events, eventually, frames, sdk};

#[tokio::test]
async fn a_root_token_file_that_is_not_fit_is_refused_and_a_created_one_is_taken() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("root-token");
    let setup = || Setup::default().set(&format!("root-token-file={}", file.display()));
    let (code, log) = setup().start_refused(&dir.path().join("data")).await;
    assert_eq!(code, 1);
    assert!(log.contains("does not exist"), "{log}");
    root_token_file(&file, ROOT, 0o644);
    let (_, log) = setup().start_refused(&dir.path().join("data")).await;
    assert!(log.contains("mode 644"), "{log}");
    root_token_file(&file, "guess-me", 0o600);
    let (_, log) = setup().start_refused(&dir.path().join("data")).await;
    assert!(
        log.contains("8 characters") && !log.contains("guess-me"),
        "{log}"
    );
    assert!(!dir.path().join("data").exists(), "nothing was begun");

    root_token_file(&file, ROOT, 0o600);
    // With authentication, other machines may reach it.
    let server = setup()
        .listen("0.0.0.0:0")
        .start(&dir.path().join("data"))
        .await;
    let port = server.address().rsplit_once(':').unwrap().1.to_owned();
    let http = Http::new(&format!("127.0.0.1:{port}"), Transport::Http1);
    http.get("/v1/basins").send().await.refused(401, "authn");
    let http = http.with_token(ROOT);
    http.get("/v1/basins").send().await.expect(200);
}

#[tokio::test]
async fn another_root_token_in_the_file_replaces_the_one_of_before_and_ends_its_sessions() {
    const NEXT: &str = "another-root-token-of-the-end-to-end-tests-0123456789";
    let world = World::new().await;
    let basin = sdk::basin(&world.root(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["one"]).await;
    let issued = world.issue("stays", all_of("test-basin")).await;
    let file = world.dir.path().join("root-token");
    let mut tokens = [ROOT, NEXT];
    for transport in TRANSPORTS {
        let [old, new] = tokens;
        let http = || world.http(transport, old);
        let (for_events, for_reads, for_appends) = (http(), http(), http());
        let mut events =
            events::Events::open(&for_events, "test-basin", "orders", "seq_num=0", None).await;
        events.batch().await;
        let mut reads = frames::read_session(&for_reads, "test-basin", "orders", "seq_num=0").await;
        reads.batch().await;
        let mut appends = frames::append_session(&for_appends, "test-basin", "orders").await;
        appends.send(frames::frame(&frames::input(["x"]))).await;
        appends.next().await.message();
        let of_issued = world.http(transport, &issued);
        let mut stays = frames::append_session(&of_issued, "test-basin", "orders").await;

        // As an editor does, and as `mv` does.
        match transport {
            Transport::Http1 => root_token_file(&file, new, 0o600),
            Transport::Http2 => {
                let beside = file.with_extension("new");
                root_token_file(&beside, new, 0o600);
                std::fs::rename(&beside, &file).unwrap();
            }
        }
        let began = Instant::now();
        eventually("the new token is used", async || {
            let answer = world.http(transport, new).get("/v1/basins").send().await;
            // Few attempts: an address that guesses is slowed down.
            tokio::time::sleep(Duration::from_millis(300)).await;
            (answer.status == 200).then_some(())
        })
        .await;
        let took = began.elapsed();
        assert!(took < ROTATION + Duration::from_secs(5), "{took:?}");
        world
            .http(transport, old)
            .get("/v1/basins")
            .send()
            .await
            .expect(401);
        let end = events.rest().await;
        let end = end.last().unwrap();
        assert_eq!(
            (&*end.event, &end.json()["code"]),
            ("error", &json!("authn"))
        );
        for end in [reads.rest().await.pop(), appends_end(&mut appends).await] {
            let Some(frames::Output::Error(status, body)) = end else {
                panic!("it ends with an error");
            };
            assert_eq!((status, &body["code"]), (401, &json!("authn")));
        }
        let took = began.elapsed();
        assert!(
            took < ROTATION + REVOCATION + Duration::from_secs(5),
            "{took:?}"
        );
        // An issued token outlives the root token that has issued it.
        stays.send(frames::frame(&frames::input(["y"]))).await;
        stays.next().await.message();
        tokens.reverse();
    }
    let metrics = world
        .http(Transport::Http1, tokens[0])
        .get("/metrics")
        .send()
        .await;
    let count = format!(
        "esker_root_token_reloads_total{{result=\"ok\"}} {}",
        TRANSPORTS.len()
    );
    let metrics = metrics.expect(200).text();
    assert!(metrics.contains(&count), "{metrics}");
}
