//! Every route of every service, with every permission: who is answered, and who is refused.
//!
//! The routes are those of the routers, so that a new one without a rule fails here.

mod names;

use std::sync::Arc;

use axum::body::Body;
use axum::{Extension, Router};
use esker_node::{
    Issuer, NameSet, NewToken, Node, NodeOptions, OPERATIONS, StoredToken, TokenScope,
};
use http::{Request, StatusCode, header};
use s2_common::access::Operation;
use tower::ServiceExt as _;

use super::{AppParts, Limits, open_routes, v1_routes};
use crate::auth::authority::tests::{Issued, authority, stored};
use crate::auth::operation::{Effect, name};
use crate::auth::rules::{GRPC_RULES, RULES, Rule};
use crate::auth::token::hash;
use crate::auth::{Access, Principal};
use crate::config::LimitsConfig;
use crate::identification::identify;
use crate::telemetry;

mod late_revocations;

const BASIN: &str = "test-basin";
const STREAM: &str = "team/stream";
const TOKEN: &str = "team-token";
const ROOT: &str = "a root token of this test";
/// As it is in a path.
const STREAM_IN_PATH: &str = "team%2Fstream";

struct World {
    router: Router,
    node: Node,
    _dir: tempfile::TempDir,
}

impl World {
    async fn new() -> World {
        let dir = tempfile::tempdir().unwrap();
        let options = NodeOptions {
            partitions: 1,
            ..NodeOptions::new(dir.path().join("data"))
        };
        let node = Node::start(options).await.unwrap();
        // A token is issued by a holder of one that is stored.
        let holder = stored("x", everywhere());
        let issuer = NewToken {
            id: "x".parse().unwrap(),
            hash: holder.hash,
            expires_at: None,
            auto_prefix_streams: false,
            scope: holder.scope,
            issuer: Issuer::Root,
        };
        node.tokens().issue(issuer).await.unwrap();
        let limits = Limits::new(&LimitsConfig::default());
        let app = AppParts::new(
            node.clone(),
            telemetry::metrics(),
            limits,
            "test:local".parse().unwrap(),
        );
        World {
            router: super::router(app.into()),
            node,
            _dir: dir,
        }
    }

    /// The status of a request of this principal.
    async fn ask(&self, principal: Principal, method: &str, path: &str) -> StatusCode {
        let router = self.router.clone().layer(Extension(access(principal)));
        router
            .oneshot(request(method, path))
            .await
            .unwrap()
            .status()
    }

    /// The status of a call of this principal: a number of gRPC, if it is in the head.
    async fn call(&self, principal: Principal, path: &str) -> Option<i32> {
        let router = self.router.clone().layer(Extension(access(principal)));
        let response = router.oneshot(call(path)).await.unwrap();
        let status = response.headers().get("grpc-status")?;
        status.to_str().ok()?.parse().ok()
    }
}

/// The holder of the root token.
fn root() -> Principal {
    Principal::Root(hash(ROOT))
}

/// The access of a principal whose token, if it has one, is valid.
fn access(principal: Principal) -> Access {
    let issued = match &principal {
        Principal::Token(token) => Issued::new(vec![StoredToken::clone(token)]),
        _ => Issued::default(),
    };
    let on = authority(Some(ROOT), &issued);
    Access::new(Arc::new(on), principal)
}

fn request(method: &str, path: &str) -> Request<Body> {
    let body = match (method, path) {
        ("POST", "/v1/basins") => format!(r#"{{"basin":"{BASIN}"}}"#),
        ("POST", "/v1/streams") => format!(r#"{{"stream":"{STREAM}"}}"#),
        ("POST", "/v1/streams/{stream}/records") => r#"{"records":[{"body":"x"}]}"#.into(),
        ("POST", "/v1/access-tokens") => {
            format!(r#"{{"id":"{TOKEN}","scope":{{"ops":["issue-access-token"]}}}}"#)
        }
        ("POST", "/esker/v1/basins/{basin}/adopt") => r#"{"id":77}"#.into(),
        ("PUT", "/v1/locations/default") => r#""test:local""#.into(),
        ("GET" | "DELETE", _) => String::new(),
        _ => "{}".into(),
    };
    let path = path
        .replace("{basin}", BASIN)
        .replace("{stream}", STREAM_IN_PATH)
        .replace("{id}", TOKEN)
        .replace("{partition}", "1")
        .replace("{snapshot}", "newest")
        .replace("{old}", "newest")
        .replace("{new}", "newest");
    let path = match () {
        () if path.ends_with("/why") => format!("{path}?key=x"),
        () if path == "/v1/metrics" => format!("{path}?set=active-basins"),
        () if path.starts_with("/v1/metrics/") => format!("{path}?set=storage"),
        () => path,
    };
    Request::builder()
        .method(method)
        .uri(path)
        .header("s2-basin", BASIN)
        .header(header::CONTENT_TYPE, "application/json")
        .body(Body::from(body))
        .unwrap()
}

/// A call with an empty message.
fn call(path: &str) -> Request<Body> {
    Request::builder()
        .method("POST")
        .uri(path)
        .version(http::Version::HTTP_2)
        .header(header::CONTENT_TYPE, "application/grpc")
        .header("te", "trailers")
        .body(Body::from(vec![0; 5]))
        .unwrap()
}

/// Every name, and no operation.
fn everywhere() -> TokenScope {
    TokenScope {
        basins: NameSet::prefix(""),
        streams: NameSet::prefix(""),
        access_tokens: NameSet::prefix(""),
        namespaces: NameSet::prefix(""),
        agents: NameSet::prefix(""),
        ..TokenScope::default()
    }
}

fn with(operations: &[Operation]) -> TokenScope {
    TokenScope {
        ops: operations.iter().map(|it| *it as u32).collect(),
        ..everywhere()
    }
}

fn holder(scope: TokenScope) -> Principal {
    Principal::Token(Arc::new(stored("x", scope)))
}

/// Method and path of every route over HTTP, from the routers.
fn routes() -> Vec<(&'static str, String)> {
    let open = open_routes().listed.into_iter();
    let mut all: Vec<_> = open
        .map(|(method, path)| (method.name(), path.to_owned()))
        .collect();
    all.push(("GET", "/metrics".to_owned()));
    let v1 = v1_routes().listed.into_iter();
    all.extend(v1.map(|(method, path)| (method.name(), format!("/v1{path}"))));
    all.extend(crate::admin::operations().map(|(path, method)| (method, path)));
    all
}

/// All operations that a route needs together. A request that makes sure that something exists may change it.
fn needed(method: &str, path: &str, any_of: &[Operation]) -> Vec<Operation> {
    match (method, path) {
        ("PUT", "/v1/basins/{basin}") => {
            vec![Operation::CreateBasin, Operation::ReconfigureBasin]
        }
        ("PUT", "/v1/streams/{stream}") => {
            vec![Operation::CreateStream, Operation::ReconfigureStream]
        }
        // The test's batch has data.
        _ => vec![any_of[0]],
    }
}

fn is_refused(status: StatusCode) -> bool {
    status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN
}

#[test]
fn every_route_has_one_rule_and_every_rule_a_route() {
    let mut routes: Vec<_> = routes();
    let mut rules: Vec<_> = RULES
        .iter()
        .map(|(method, path, _)| (*method, (*path).to_owned()))
        .collect();
    routes.sort();
    rules.sort();
    assert_eq!(rules, routes, "auth/rules.rs has to list every route once");
    let mut calls: Vec<_> = GRPC_RULES.iter().map(|(path, _)| *path).collect();
    let mut methods = crate::state::layer::METHODS.to_vec();
    calls.sort_unstable();
    methods.sort_unstable();
    assert_eq!(
        calls, methods,
        "auth/rules.rs has to list every method once"
    );
}

#[tokio::test]
async fn without_a_valid_token_only_open_routes_are_answered() {
    let world = World::new().await;
    let on = Arc::new(authority(
        Some("a root token of this test"),
        &Issued::default(),
    ));
    let layer = axum::middleware::from_fn_with_state(on, identify);
    let router = world.router.clone().layer(layer);
    for (method, path) in routes() {
        // Failures of one address are limited after some.
        let answer = router
            .clone()
            .oneshot(request(method, &path))
            .await
            .unwrap();
        let status = answer.status();
        match Rule::of(method, &path) {
            Some(Rule::Open) => assert!(!is_refused(status), "{method} {path}: {status}"),
            _ => {
                let refused = [StatusCode::UNAUTHORIZED, StatusCode::TOO_MANY_REQUESTS];
                assert!(refused.contains(&status), "{method} {path}: {status}");
                let expected = match status {
                    StatusCode::UNAUTHORIZED => header::WWW_AUTHENTICATE,
                    _ => header::RETRY_AFTER,
                };
                assert!(answer.headers().contains_key(expected), "{method} {path}");
            }
        }
    }
    // A path that does not exist is no oracle either.
    let nowhere = router.oneshot(request("GET", "/v1/nowhere")).await.unwrap();
    assert_eq!(nowhere.status(), StatusCode::TOO_MANY_REQUESTS);
}

#[tokio::test]
async fn a_route_is_answered_to_those_who_have_what_its_rule_needs_and_to_nobody_else() {
    let world = World::new().await;
    for (method, path) in routes() {
        let rule = Rule::of(method, &path).unwrap();
        let root = world.ask(root(), method, &path).await;
        assert!(!is_refused(root), "{method} {path} for root: {root}");
        let nothing = world.ask(holder(everywhere()), method, &path).await;
        let is_open = matches!(rule, Rule::Open | Rule::Valid);
        assert_eq!(is_refused(nothing), !is_open, "{method} {path}: {nothing}");
        // One operation at a time, and all that it needs.
        if let Rule::Operations(any_of) = rule {
            let all = needed(method, &path, any_of);
            let status = world.ask(holder(with(&all)), method, &path).await;
            assert!(
                !is_refused(status),
                "{method} {path} with {all:?}: {status}"
            );
            for one in OPERATIONS.into_iter().filter(|it| all != [*it]) {
                let status = world.ask(holder(with(&[one])), method, &path).await;
                assert_eq!(
                    status,
                    StatusCode::FORBIDDEN,
                    "{method} {path} with {}",
                    name(one)
                );
            }
        }
        for (read, write) in [(true, false), (false, true)] {
            let scope = TokenScope {
                admin_read: read,
                admin_write: write,
                ..everywhere()
            };
            let status = world.ask(holder(scope), method, &path).await;
            let permitted = match rule {
                Rule::Open | Rule::Valid => true,
                Rule::Admin(Effect::Read) | Rule::AdminOr(Effect::Read, _) => read,
                Rule::Admin(Effect::Write) | Rule::AdminOr(Effect::Write, _) => write,
                Rule::Operations(_) | Rule::State(_) | Rule::Root => false,
            };
            assert_eq!(is_refused(status), !permitted, "{method} {path}: {status}");
        }
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_token_that_was_revoked_since_the_head_of_the_request_is_refused() {
    let world = World::new().await;
    // The token was found, and is gone by the time at which the handler has the body.
    let revoked = Arc::new(authority(
        Some("a root token of this test"),
        &Issued::default(),
    ));
    for (method, path) in routes() {
        let admin = TokenScope {
            admin_read: true,
            admin_write: true,
            ..everywhere()
        };
        let principal = match Rule::of(method, &path).unwrap() {
            Rule::Open | Rule::Valid => continue,
            Rule::Operations(any_of) => holder(with(&needed(method, &path, any_of))),
            Rule::Admin(_) | Rule::AdminOr(..) => holder(admin),
            Rule::State(_) => holder(TokenScope {
                state_read: true,
                state_write: true,
                ..everywhere()
            }),
            // The root token has been replaced.
            Rule::Root => Principal::Root(hash("the root token before")),
        };
        let router = world.router.clone();
        let router = router.layer(Extension(Access::new(revoked.clone(), principal)));
        let answer = router.oneshot(request(method, &path)).await.unwrap();
        let status = answer.status();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_active_basins_are_those_of_the_scope() {
    let world = World::new().await;
    for path in ["/v1/basins", "/v1/streams"] {
        let made = world.ask(root(), "POST", path).await;
        assert!(made.is_success(), "{path}: {made}");
    }
    let now = crate::usage::now();
    let path = format!("/v1/metrics?set=active-basins&start={}&end={now}", now - 60);
    for (basins, is_there) in [
        (NameSet::exact(BASIN), true),
        (NameSet::prefix("other-"), false),
        (NameSet::NONE, false),
    ] {
        let scope = TokenScope {
            basins,
            ..with(&[Operation::AccountMetrics])
        };
        let router = world.router.clone();
        let router = router.layer(Extension(access(holder(scope))));
        let answer = router.oneshot(request("GET", &path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
        let body = String::from_utf8(body.unwrap().to_vec()).unwrap();
        assert_eq!(body.contains(BASIN), is_there, "{body}");
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_route_is_answered_for_the_names_of_the_scope_and_the_same_whether_others_exist() {
    let world = World::new().await;
    // Before anything exists, and after.
    for _ in 0..2 {
        for (method, path) in routes() {
            let Some(Rule::Operations(any_of)) = Rule::of(method, &path) else {
                continue;
            };
            let all = needed(method, &path, any_of);
            let of_stream =
                path.contains("{stream}") || (method, &*path) == ("POST", "/v1/streams");
            let of_basin = of_stream
                || path.contains("{basin}")
                || path.starts_with("/v1/streams")
                || (method, &*path) == ("POST", "/v1/basins");
            let of_token = matches!(
                (method, &*path),
                ("POST", "/v1/access-tokens") | ("DELETE", _)
            ) && path.contains("access-tokens");
            let cases = [
                (
                    of_basin,
                    TokenScope {
                        basins: NameSet::NONE,
                        ..with(&all)
                    },
                ),
                (
                    of_basin,
                    TokenScope {
                        basins: NameSet::exact("test-basin2"),
                        ..with(&all)
                    },
                ),
                (
                    of_basin,
                    TokenScope {
                        basins: NameSet::prefix("test-basin-"),
                        ..with(&all)
                    },
                ),
                (
                    of_stream,
                    TokenScope {
                        streams: NameSet::NONE,
                        ..with(&all)
                    },
                ),
                (
                    of_stream,
                    TokenScope {
                        streams: NameSet::exact("team"),
                        ..with(&all)
                    },
                ),
                (
                    of_stream,
                    TokenScope {
                        streams: NameSet::exact(STREAM_IN_PATH),
                        ..with(&all)
                    },
                ),
                (
                    of_stream,
                    TokenScope {
                        streams: NameSet::prefix("team/streams"),
                        ..with(&all)
                    },
                ),
                (
                    of_token,
                    TokenScope {
                        access_tokens: NameSet::NONE,
                        ..with(&all)
                    },
                ),
                (
                    of_token,
                    TokenScope {
                        access_tokens: NameSet::exact("team-token2"),
                        ..with(&all)
                    },
                ),
                (
                    false,
                    TokenScope {
                        basins: NameSet::exact(BASIN),
                        ..with(&all)
                    },
                ),
                (
                    false,
                    TokenScope {
                        streams: NameSet::exact(STREAM),
                        ..with(&all)
                    },
                ),
                (
                    false,
                    TokenScope {
                        streams: NameSet::prefix("team/"),
                        ..with(&all)
                    },
                ),
                (
                    false,
                    TokenScope {
                        access_tokens: NameSet::exact(TOKEN),
                        ..with(&all)
                    },
                ),
            ];
            for (refused, scope) in cases {
                let shown = format!("{scope:?}");
                let status = world.ask(holder(scope), method, &path).await;
                assert_eq!(
                    is_refused(status),
                    refused,
                    "{method} {path} {status} {shown}"
                );
            }
        }
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

const PERMISSION_DENIED: Option<i32> = Some(7);
const UNAUTHENTICATED: Option<i32> = Some(16);

#[tokio::test]
async fn a_method_is_answered_to_those_who_have_what_its_rule_needs_and_to_nobody_else() {
    let world = World::new().await;
    for (path, rule) in GRPC_RULES {
        let root = world.call(root(), path).await;
        assert!(
            root != PERMISSION_DENIED && root != UNAUTHENTICATED,
            "{path}: {root:?}"
        );
        let unknown = world.call(Principal::unauthenticated(None), path).await;
        let expected = if matches!(rule, Rule::Open | Rule::Valid) {
            None
        } else {
            PERMISSION_DENIED
        };
        if expected.is_some() {
            assert_eq!(unknown, expected, "{path}");
        }
        for (read, write) in [(false, false), (true, false), (false, true)] {
            let scope = TokenScope {
                state_read: read,
                state_write: write,
                ..everywhere()
            };
            let permitted = match rule {
                Rule::State(Effect::Read) => read,
                Rule::State(Effect::Write) => write,
                _ => true,
            };
            let status = world.call(holder(scope.clone()), path).await;
            assert_eq!(
                status == PERMISSION_DENIED,
                !permitted,
                "{path}: {status:?}"
            );
            // The empty message names no agent, or concerns all of them.
            let elsewhere = TokenScope {
                agents: NameSet::prefix("team-a/"),
                ..scope
            };
            let is_of_none = ["/BeginTransaction", "/Commit", "/Abort"]
                .iter()
                .any(|end| path.ends_with(end));
            if permitted && matches!(rule, Rule::State(_)) && !is_of_none {
                let status = world.call(holder(elsewhere), path).await;
                assert_eq!(status, PERMISSION_DENIED, "{path}");
            }
        }
    }
    let on = Arc::new(authority(
        Some("a root token of this test"),
        &Issued::default(),
    ));
    let layer = axum::middleware::from_fn_with_state(on, identify);
    let router = world.router.clone().layer(layer);
    for (path, rule) in GRPC_RULES {
        let answer = router.clone().oneshot(call(path)).await.unwrap();
        let status = answer.headers().get("grpc-status").cloned();
        let status = status.and_then(|it| it.to_str().unwrap().parse::<i32>().ok());
        match rule {
            Rule::Open => assert_ne!(status, UNAUTHENTICATED, "{path}"),
            // Failures of one address are limited.
            _ => assert!(
                status == UNAUTHENTICATED || status == Some(8),
                "{path}: {status:?}"
            ),
        }
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}
