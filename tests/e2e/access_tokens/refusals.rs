//! Requests without a valid token, and what nobody learns of one.

use super::{ROOT, World, all_of};
use crate::support::http::{TRANSPORTS, Transport};
use crate::support::sdk;

#[tokio::test]
async fn no_token_a_wrong_one_and_a_revoked_one_get_the_same_answer_and_open_paths_none() {
    let world = World::with(&["limits.connections=100"]).await;
    let revoked = world.issue("short-lived", all_of("test-basin")).await;
    world.revoke("short-lived").await;
    for transport in TRANSPORTS {
        let plain = world.server.http(transport);
        let missing = plain.get("/v1/basins").send().await;
        let missing = missing.refused(401, "authn");
        assert_eq!(missing.header("www-authenticate"), Some("Bearer"));
        for token in ["wrong", &revoked, &ROOT[1..], "esk_"] {
            let answer = world.http(transport, token).get("/v1/basins").send().await;
            let answer = answer.refused(401, "authn");
            assert_eq!(answer.text(), missing.text(), "{token}");
        }
        plain.get("/health").send().await.expect(200);
        plain.get("/ping").send().await.expect(200);
        for path in ["/metrics", "/esker/v1/status", "/v1/nowhere", "/nowhere"] {
            plain.get(path).send().await.refused(401, "authn");
        }
        let root = world.http(transport, ROOT);
        for path in ["/metrics", "/esker/v1/status", "/v1/basins"] {
            root.get(path).send().await.expect(200);
        }
    }
}

#[tokio::test]
async fn an_address_that_guesses_is_slowed_down_and_valid_tokens_from_there_are_served() {
    let world = World::new().await;
    let http = world.server.http1();
    let mut limited = None;
    for number in 0..200 {
        let guess = format!("Bearer esk_guess-{number}");
        let answer = http.get("/v1/basins").header("authorization", &guess);
        let answer = answer.send().await;
        match answer.status.as_u16() {
            401 => {}
            429 => {
                limited = Some(answer);
                break;
            }
            other => panic!("{other}"),
        }
    }
    let limited = limited.expect("it was slowed down");
    assert_eq!(limited.code(), "rate_limited");
    let wait: u64 = limited.header("retry-after").unwrap().parse().unwrap();
    let milliseconds = limited.header("retry-after-ms").unwrap();
    assert_eq!(milliseconds.parse::<u64>().unwrap(), 1000 * wait);
    assert!(wait >= 1);
    let root = world.http(Transport::Http1, ROOT);
    root.get("/v1/basins").send().await.expect(200);
    let metrics = root.get("/metrics").send().await.text();
    assert!(metrics.contains("esker_auth_failures_total{reason=\"unknown\"}"));
    assert!(metrics.contains("esker_auth_failures_total{reason=\"limited\"} 1"));
}

#[tokio::test]
async fn no_token_appears_in_the_log_the_status_the_metrics_or_an_error() {
    let world = World::with(&["logs.level=trace"]).await;
    let token = world.issue("logged", all_of("test-basin")).await;
    sdk::basin(&world.root(), "test-basin").await;
    for transport in TRANSPORTS {
        let http = world.http(transport, &token);
        http.get("/v1/streams")
            .basin("test-basin")
            .send()
            .await
            .expect(200);
        http.get("/v1/basins")
            .send()
            .await
            .refused(403, "permission_denied");
        let wrong = format!("{token}-and-more");
        let wrong = world.http(transport, &wrong);
        wrong.get("/v1/basins").send().await.refused(401, "authn");
    }
    let root = world.http(Transport::Http1, ROOT);
    let mut shown = Vec::new();
    for path in ["/metrics", "/esker/v1/status", "/v1/access-tokens"] {
        shown.push(root.get(path).send().await.text());
    }
    shown.extend(world.server.log());
    for text in shown {
        assert!(!text.contains(&token) && !text.contains(ROOT), "{text}");
    }
}
