//! Access tokens: issued, used, listed, revoked, and enforced over every transport.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use futures::StreamExt as _;
use s2_sdk::S2;
use s2_sdk::types::{
    AccessTokenScopeInput, BasinMatcher, CreateStreamInput, IssueAccessTokenInput,
    ListAccessTokensInput, ListBasinsInput, ListStreamsInput, Operation, OperationGroupPermissions,
    ReadInput, ReadSessionConfig, ReadWritePermissions, StreamMatcher,
};
use serde_json::{Value, json};

use crate::support::http::{Http, TRANSPORTS, Transport};
use crate::support::sdk::{self, stream_name};
use crate::support::{Server, Setup, events, eventually, frames, soon};

const ROOT: &str = "root-token-of-the-end-to-end-tests-0123456789";

/// A revocation ends what is under way within this time; the tests add what a busy machine takes.
const REVOCATION: Duration = Duration::from_secs(2);

/// Another root token is used within this time; the tests add what a busy machine takes.
const ROTATION: Duration = Duration::from_secs(2);

struct World {
    server: Server,
    dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        World::with(&[]).await
    }

    async fn with(settings: &[&str]) -> World {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("root-token");
        root_token_file(&file, ROOT, 0o600);
        let setup = Setup::default().set(&format!("root-token-file={}", file.display()));
        let setup = settings.iter().fold(setup, |setup, it| setup.set(it));
        World {
            server: setup.start(&dir.path().join("data")).await,
            dir,
        }
    }

    fn root(&self) -> S2 {
        sdk::client_with_token(self.server.url(), ROOT)
    }

    fn http(&self, transport: Transport, token: &str) -> Http {
        self.server.http(transport).with_token(token)
    }

    /// Issues a token with a scope by way of the holder of another one.
    async fn issue_as(&self, issuer: &str, id: &str, scope: Value, more: Value) -> String {
        let mut body = json!({"id": id, "scope": scope});
        for (key, value) in more.as_object().unwrap() {
            body[key] = value.clone();
        }
        let http = self.http(Transport::Http1, issuer);
        let answer = http.post("/v1/access-tokens").json(&body).send().await;
        let answer = answer.expect(201).json();
        answer["access_token"].as_str().unwrap().to_owned()
    }

    async fn issue(&self, id: &str, scope: Value) -> String {
        self.issue_as(ROOT, id, scope, json!({})).await
    }

    /// Number of partitions of streams.
    async fn server_partitions(&self) -> u64 {
        let status = self.http(Transport::Http1, ROOT);
        let status = status.get("/esker/v1/status").send().await.expect(200);
        status.json()["partitions"].as_array().unwrap().len() as u64 - 1
    }

    async fn revoke(&self, id: &str) {
        let http = self.http(Transport::Http1, ROOT);
        let path = format!("/v1/access-tokens/{id}");
        http.delete(&path).send().await.expect(204);
    }
}

fn root_token_file(path: &Path, token: &str, mode: u32) {
    std::fs::write(path, format!("{token}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
}

/// Everything of one basin's streams.
fn all_of(basin: &str) -> Value {
    json!({
        "basins": {"exact": basin},
        "streams": {"prefix": ""},
        "op_groups": {"basin": {"read": true, "write": true}, "stream": {"read": true, "write": true}},
    })
}

#[tokio::test]
async fn the_official_client_issues_lists_uses_and_revokes_tokens() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    let orders = sdk::stream(&basin, "team-a/orders").await;
    sdk::stream(&basin, "team-b/orders").await;
    sdk::append(&orders, ["one", "two"]).await;

    let scope = AccessTokenScopeInput::from_op_group_perms(
        OperationGroupPermissions::new().with_stream(ReadWritePermissions::read_only()),
    )
    .with_ops([Operation::ListStreams])
    .with_basins(BasinMatcher::Exact(sdk::basin_name("test-basin")))
    .with_streams(StreamMatcher::Prefix("team-a/".parse().unwrap()));
    let input = IssueAccessTokenInput::new("reader".parse().unwrap(), scope);
    let token = root.issue_access_token(input.clone()).await.unwrap();
    assert_eq!(token.len(), "esk_".len() + 43);
    let again = root.issue_access_token(input).await.unwrap_err();
    let code = again.server_error().unwrap().code.clone();
    assert_eq!(code, "resource_already_exists");
    let listed = root
        .list_access_tokens(ListAccessTokensInput::new())
        .await
        .unwrap();
    assert_eq!(listed.values.len(), 1);
    assert_eq!(&*listed.values[0].id, "reader");
    assert!(!listed.values[0].auto_prefix_streams);

    let reader = sdk::client_with_token(world.server.url(), &token);
    let of_reader = reader.basin(sdk::basin_name("test-basin"));
    let streams = of_reader.list_streams(ListStreamsInput::new()).await;
    let streams: Vec<_> = streams.unwrap().values;
    let names: Vec<_> = streams.iter().map(|it| it.name.as_ref()).collect();
    assert_eq!(names, ["team-a/orders"]);
    let stream = of_reader.stream(stream_name("team-a/orders"));
    assert_eq!(sdk::bodies(&sdk::read_all(&stream).await), ["one", "two"]);
    let refused = stream.append(sdk::input(["three"])).await.unwrap_err();
    assert!(refused.to_string().contains("append"), "{refused}");
    let other = of_reader.stream(stream_name("team-b/orders"));
    other.check_tail().await.unwrap_err();
    reader
        .list_basins(ListBasinsInput::new())
        .await
        .unwrap_err();

    root.revoke_access_token("reader".parse().unwrap())
        .await
        .unwrap();
    let unauthenticated = stream.check_tail().await.unwrap_err();
    let error = unauthenticated.request_error().unwrap();
    assert_eq!(error.server_error().unwrap().code, "authn");
    let unknown = root.revoke_access_token("reader".parse().unwrap()).await;
    let code = unknown.unwrap_err().server_error().unwrap().code.clone();
    assert_eq!(code, "access_token_not_found");
}

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
async fn a_token_grants_no_more_than_its_issuer_has() {
    let world = World::new().await;
    let later = "2100-01-01T00:00:00Z";
    let mut scope = all_of("test-basin");
    scope["streams"] = json!({"prefix": "team/"});
    scope["ops"] = json!([
        "issue-access-token",
        "revoke-access-token",
        "list-access-tokens"
    ]);
    scope["access_tokens"] = json!({"prefix": "team/"});
    scope["state"] = json!({
        "namespaces": {"exact": "default"}, "agents": {"prefix": "team/"}, "read": true,
    });
    let more = json!({"expires_at": later, "auto_prefix_streams": true});
    let issuer = world.issue_as(ROOT, "issuer", scope.clone(), more).await;
    let http = world.http(Transport::Http1, &issuer);
    let ask = async |id: &str, change: &dyn Fn(&mut Value)| {
        let mut body = json!({"id": id, "scope": {
            "basins": {"exact": "test-basin"},
            "streams": {"prefix": "sub/"},
            "op_groups": {"stream": {"read": true}},
        }});
        change(&mut body);
        http.post("/v1/access-tokens").json(&body).send().await
    };
    ask("team/plain", &|_| {}).await.expect(201);
    type Change<'a> = &'a dyn Fn(&mut Value);
    let refused: [(&str, Change); 9] = [
        ("elsewhere", &|_| {}),
        ("team/1", &|b| {
            b["scope"]["basins"] = json!({"prefix": "test-"})
        }),
        ("team/2", &|b| {
            b["scope"]["op_groups"]["account"] = json!({"read": true})
        }),
        ("team/3", &|b| b["scope"]["ops"] = json!(["delete-basin"])),
        ("team/4", &|b| {
            b["scope"]["access_tokens"] = json!({"prefix": ""})
        }),
        ("team/5", &|b| b["scope"]["admin"] = json!({"read": true})),
        ("team/6", &|b| b["scope"]["state"] = json!({"write": true})),
        ("team/7", &|b| {
            b["scope"]["state"] = json!({"agents": {"prefix": ""}, "read": true})
        }),
        ("team/8", &|b| {
            b["expires_at"] = json!("2100-01-01T00:00:01Z")
        }),
    ];
    for (id, change) in refused {
        let answer = ask(id, change).await;
        answer.refused(403, "permission_denied");
    }
    for (id, change) in [
        (
            "team/past",
            (&|b: &mut Value| b["expires_at"] = json!("2001-01-01T00:00:00Z"))
                as &dyn Fn(&mut Value),
        ),
        ("team/nothing", &|b| b["scope"] = json!({})),
        ("team/prefix", &|b| {
            b["auto_prefix_streams"] = json!(true);
            b["scope"]["streams"] = json!({"exact": "x"});
        }),
    ] {
        ask(id, change).await.refused(422, "invalid");
    }
    // It inherits expiry and prefix.
    let list = http
        .get("/v1/access-tokens")
        .send()
        .await
        .expect(200)
        .json();
    let tokens = list["access_tokens"].as_array().unwrap();
    assert_eq!(tokens.len(), 1, "{list}");
    assert_eq!(tokens[0]["id"], "team/plain");
    assert_eq!(tokens[0]["expires_at"], later);
    assert_eq!(tokens[0]["auto_prefix_streams"], true);
    assert_eq!(
        tokens[0]["scope"]["streams"],
        json!({"prefix": "team/sub/"})
    );
    // It revokes what it may name alone.
    http.delete("/v1/access-tokens/issuer")
        .send()
        .await
        .refused(403, "permission_denied");
    http.delete("/v1/access-tokens/team%2Fplain")
        .send()
        .await
        .expect(204);
}

#[tokio::test]
async fn a_revocation_and_an_expiry_end_live_sessions() {
    let world = World::new().await;
    let root = world.root();
    let basin = sdk::basin(&root, "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["one"]).await;
    for transport in TRANSPORTS {
        for how in ["revoked", "expired"] {
            let more = match how {
                "expired" => {
                    let at = time::OffsetDateTime::now_utc() + REVOCATION;
                    let at = at.format(&time::format_description::well_known::Rfc3339);
                    json!({"expires_at": at.unwrap()})
                }
                _ => json!({}),
            };
            let id = format!("{how}-{transport:?}");
            let token = world.issue_as(ROOT, &id, all_of("test-basin"), more).await;
            let http = || world.http(transport, &token);
            let (for_events, for_reads, for_appends) = (http(), http(), http());
            let mut events =
                events::Events::open(&for_events, "test-basin", "orders", "seq_num=0", None).await;
            events.batch().await;
            let mut reads =
                frames::read_session(&for_reads, "test-basin", "orders", "seq_num=0").await;
            reads.batch().await;
            let mut appends = frames::append_session(&for_appends, "test-basin", "orders").await;
            appends.send(frames::frame(&frames::input(["x"]))).await;
            appends.next().await.message();
            let began = Instant::now();
            if how == "revoked" {
                world.revoke(&id).await;
            }
            let end = events.rest().await;
            let end = end.last().unwrap();
            assert_eq!(end.event, "error", "{end:?}");
            assert_eq!(end.json()["code"], "authn");
            for end in [reads.rest().await.pop(), appends_end(&mut appends).await] {
                let Some(frames::Output::Error(status, body)) = end else {
                    panic!("it ends with an error");
                };
                assert_eq!((status, &body["code"]), (401, &json!("authn")));
            }
            let took = began.elapsed();
            assert!(
                took < 2 * REVOCATION + Duration::from_secs(5),
                "{how}: {took:?}"
            );
        }
    }
    // The official client's session ends, too.
    let token = world.issue("live", all_of("test-basin")).await;
    let live = sdk::client_with_token(world.server.url(), &token);
    let live = live.basin(sdk::basin_name("test-basin"));
    let live = live.stream(stream_name("orders"));
    let mut session = live
        .read_session(ReadInput::new(), ReadSessionConfig::new())
        .await
        .unwrap();
    soon("a batch", session.next()).await.unwrap().unwrap();
    world.revoke("live").await;
    let ended = soon("the end", async {
        while let Some(next) = session.next().await {
            if let Err(error) = next {
                return Some(error);
            }
        }
        None
    });
    let error = ended.await.expect("an error");
    assert!(error.to_string().contains("access token"), "{error}");
}

/// The end of an append session, in the form of a read session's.
async fn appends_end(
    session: &mut frames::AppendSession,
) -> Option<frames::Output<s2_api::v1::stream::proto::ReadBatch>> {
    match session.rest().await.pop()? {
        frames::Output::Error(status, body) => Some(frames::Output::Error(status, body)),
        _ => None,
    }
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

#[tokio::test]
async fn without_a_root_token_every_token_is_taken_and_none_can_be_issued() {
    let server = Server::fresh().await;
    let root = sdk::client_with_token(server.url(), "anything");
    root.list_basins(ListBasinsInput::new()).await.unwrap();
    let error = root
        .list_access_tokens(ListAccessTokensInput::new())
        .await
        .unwrap_err();
    assert_eq!(error.server_error().unwrap().code, "permission_denied");
    assert!(error.to_string().contains("root-token-file"), "{error}");
}

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
        let refused = ask(token).await;
        assert!(
            refused.text().contains("confirm"),
            "it says what to do: {}",
            refused.text()
        );
        refused.refused(403, "permission_denied");
    }
    let root = http(ROOT);
    let status = root.get("/esker/v1/status").send().await.expect(200);
    let status = status.text();
    assert!(status.contains("access_tokens_suspended"), "{status}");
    let gone_again = root.delete("/v1/access-tokens/gone").send().await;
    gone_again.expect(204);
    let confirm = "/esker/v1/access-tokens/confirm";
    // No token lifts its own suspension.
    let own = http(&kept).post(confirm).json(&json!({})).send().await;
    own.refused(403, "permission_denied");
    root.post(confirm).json(&json!({})).send().await.expect(200);
    ask(&kept).await.expect(200);
    ask(&gone).await.refused(401, "authn");
    let status = root.get("/esker/v1/status").send().await.text();
    assert!(!status.contains("access_tokens_suspended"), "{status}");
}
