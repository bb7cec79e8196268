//! Scopes: operations, names, and prefixes of names.

use s2_sdk::types::{CreateStreamInput, ListStreamsInput};
use serde_json::json;

use super::{ROOT, World, all_of};
use crate::support::http::{TRANSPORTS, Transport};
use crate::support::sdk::{self, stream_name};

#[tokio::test]
async fn an_auto_prefix_is_added_to_names_and_stripped_from_answers() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    sdk::stream(&basin, "tenant-1/a").await;
    sdk::stream(&basin, "tenant-2/a").await;
    sdk::stream(&basin, "tenant-1/").await;
    // Without the prefix, these are no names.
    sdk::stream(&basin, "tenant-1/.").await;
    sdk::stream(&basin, "tenant-1/..").await;
    let mut scope = all_of("test-basin");
    scope["streams"] = json!({"prefix": "tenant-1/"});
    let more = json!({"auto_prefix_streams": true});
    let token = world.issue_as(ROOT, "tenant", scope.clone(), more).await;

    let tenant = sdk::client_with_token(world.server.url(), &token);
    let own = tenant.basin(sdk::basin_name("test-basin"));
    let made = own
        .create_stream(CreateStreamInput::new(stream_name("b")))
        .await
        .unwrap();
    assert_eq!(made.name.as_ref(), "b");
    sdk::append(&own.stream(stream_name("b")), ["x"]).await;
    let listed = async |input| {
        let page = own.list_streams(input).await.unwrap();
        let names = page.values.iter().map(|it| it.name.to_string());
        (names.collect::<Vec<_>>(), page.has_more)
    };
    let (names, has_more) = listed(ListStreamsInput::new()).await;
    assert_eq!((names, has_more), (vec!["a".into(), "b".into()], false));
    let after = ListStreamsInput::new().with_start_after("a".parse().unwrap());
    assert_eq!(listed(after).await.0, ["b"]);
    let limited = ListStreamsInput::new().with_limit(1);
    assert_eq!(listed(limited).await, (vec!["a".into()], true));
    // It is the stream with the prefix, and there is no way out of it.
    let whole = basin.stream(stream_name("tenant-1/b"));
    assert_eq!(sdk::bodies(&sdk::read_all(&whole).await), ["x"]);
    let outside = own.stream(stream_name("../tenant-2/a"));
    outside.check_tail().await.unwrap_err();
    // Nor do errors have the prefix: of a request, of one whose body is not read, and of one that changes something.
    let raw = world.http(Transport::Http1, &token);
    for path in [
        "/v1/streams/missing",
        "/v1/streams/missing/records?seq_num=0",
        "/v1/streams/missing/records/tail",
        "/esker/v1/streams/missing/position",
        "/esker/v1/streams/missing/activity",
    ] {
        let answer = raw.get(path).basin("test-basin").send().await.expect(404);
        let text = answer.text();
        assert!(text.contains("`missing`"), "{path}: {text}");
        assert!(!text.contains("tenant-1"), "{path}: {text}");
    }
    let again = raw.post("/v1/streams").basin("test-basin");
    let again = again.json(&json!({"stream": "b"})).send().await;
    let text = again.expect(409).text();
    assert!(text.contains("`b`") && !text.contains("tenant-1"), "{text}");
    // What it issues is within the prefix.
    let mut wider = all_of("test-basin");
    wider["op_groups"]["account"] = json!({"write": true});
    let http = world.http(Transport::Http1, &token);
    http.post("/v1/access-tokens")
        .json(&json!({"id": "x", "scope": wider}))
        .send()
        .await
        .refused(403, "permission_denied");
    // The name with the prefix has to be valid, too.
    let long = "x".repeat(512);
    let too_long = http.get(&format!("/v1/streams/{long}/records/tail"));
    let too_long = too_long.basin("test-basin").send().await;
    too_long.refused(422, "invalid");
}

#[tokio::test]
async fn commands_need_their_own_operations_alone_and_in_batches() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    sdk::stream(&basin, "orders").await;
    let data = json!({"body": "x"});
    let trim =
        json!({"headers": [["", "trim"]], "body": "\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}\u{0}"});
    let fence = json!({"headers": [["", "fence"]], "body": ""});
    let kinds = [("append", &data), ("trim", &trim), ("fence", &fence)];
    for permitted in 0..8usize {
        let has = |index: usize| permitted >> index & 1 == 1;
        let ops: Vec<_> = (0..3).filter(|it| has(*it)).map(|it| kinds[it].0).collect();
        if ops.is_empty() {
            continue;
        }
        let id = ops.join("-");
        let scope = json!({
            "basins": {"exact": "test-basin"}, "streams": {"exact": "orders"}, "ops": ops,
        });
        let token = world.issue(&id, scope).await;
        let http = world.http(Transport::Http1, &token);
        for sent in 1..8usize {
            let indices = (0..3).filter(|it| sent >> it & 1 == 1);
            let records: Vec<_> = indices.map(|it| kinds[it].1.clone()).collect();
            let answer = http.post("/v1/streams/orders/records").basin("test-basin");
            let answer = answer.json(&json!({"records": records})).send().await;
            match sent & !permitted {
                0 => answer.expect(200),
                _ => answer.refused(403, "permission_denied"),
            };
        }
    }
}

#[tokio::test]
async fn names_are_compared_as_they_are_executed() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    for name in ["team/a", "secret", "team%2Fb", "team/../secret"] {
        sdk::stream(&basin, name).await;
    }
    let mut scope = all_of("test-basin");
    scope["streams"] = json!({"prefix": "team/"});
    let token = world.issue("team", scope).await;
    for transport in TRANSPORTS {
        let http = world.http(transport, &token);
        let tail = async |name: &str| {
            let path = format!("/v1/streams/{name}/records/tail");
            http.get(&path).basin("test-basin").send().await
        };
        tail("team%2Fa").await.expect(200);
        tail("team%2fa").await.expect(200);
        // A stream of that very name, which is not `secret`.
        tail("team%2F..%2Fsecret").await.expect(200);
        tail("team%2F..%2Fmissing")
            .await
            .refused(404, "stream_not_found");
        for outside in [
            "secret",
            // Decoded once, its name has a percent sign.
            "team%252Fb",
            "team%252Fa",
            "%74eam",
            "TEAM%2Fa",
            "%D1%82eam%2Fa",
            "%EF%BC%B4eam%2Fa",
            "missing",
        ] {
            let answer = tail(outside).await;
            answer.refused(403, "permission_denied");
        }
        for malformed in ["team%2Fa%00", "team%2F%FF", ".."] {
            let answer = tail(malformed).await;
            assert!(answer.status.is_client_error(), "{malformed}: {answer:?}");
        }
        // Two basins, or two tokens, in one request.
        let two = http.get("/v1/streams").basin("test-basin");
        let two = two.header("s2-basin", "other-basin").send().await;
        assert_ne!(two.status.as_u16(), 200);
        let both = http.get("/v1/streams").basin("test-basin");
        let both = both.header("authorization", &format!("Bearer {ROOT}"));
        assert_ne!(both.send().await.status.as_u16(), 200);
    }
}
