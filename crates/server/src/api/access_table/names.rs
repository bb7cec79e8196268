//! Routes of the admin API whose requests name what they read: agents of the state store, and streams.

use std::time::Duration;

use axum::body::to_bytes;
use bytes::Bytes;
use esker_node::state::StateKey;
use esker_node::{Client, NameSet, TokenScope};
use http::StatusCode;
use s2_common::access::Operation;
use serde_json::Value;
use tower::ServiceExt as _;

use super::{
    BASIN, STREAM, STREAM_IN_PATH, World, access, everywhere, holder, is_refused, request, root,
    routes, with,
};
use crate::auth::operation::Effect;
use crate::auth::rules::Rule;

/// What the requests of these tests are about.
const NAMESPACE: &str = "team";
const AGENT: &str = "bot";
/// All agents of the store, in its order.
const AGENTS: &[(&str, &str)] = &[
    ("bot", "team"),
    (NAMESPACE, AGENT),
    (NAMESPACE, "bot-2"),
    ("team-2", AGENT),
];

/// What a route of the state store lets its sender reach.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Reach {
    /// Nothing of any agent.
    Numbers,
    /// The names of the agents that the sender may read.
    Listed,
    /// One agent, which the request names.
    Agent,
    /// Every agent.
    Everything,
}

/// Requests for each route of the state store.
const STATE_REQUESTS: &[(&str, Reach)] = &[
    ("/esker/v1/state", Reach::Numbers),
    ("/esker/v1/state/agents", Reach::Listed),
    (
        "/esker/v1/state/keys?namespace=team&agent=bot",
        Reach::Agent,
    ),
    (
        "/esker/v1/state/value?namespace=team&agent=bot&key=k",
        Reach::Agent,
    ),
    (
        "/esker/v1/state/versions?namespace=team&agent=bot&key=k",
        Reach::Agent,
    ),
    (
        "/esker/v1/state/commits?namespace=team&agent=bot",
        Reach::Agent,
    ),
    ("/esker/v1/state/commits", Reach::Everything),
];

fn readable(namespaces: NameSet, agents: NameSet) -> TokenScope {
    TokenScope {
        namespaces,
        agents,
        state_read: true,
        ..TokenScope::default()
    }
}

impl World {
    /// Commits a key of each of [`AGENTS`].
    async fn commit_keys(&self) {
        let store = self.node.state();
        for (namespace, agent) in AGENTS {
            let txn = store.begin(Client::default(), None).unwrap();
            let key = StateKey::new(*namespace, *agent, "k");
            let value = Bytes::from_static(b"{}");
            store.write(&txn, key, value, None).unwrap();
            let committed = store.commit(&txn, vec![], Client::default(), None).await;
            committed.unwrap();
        }
    }

    /// The agents that the holder of a token sees.
    async fn agents(&self, scope: TokenScope) -> Vec<(String, String)> {
        let router = self.router.clone();
        let router = router.layer(axum::Extension(access(holder(scope))));
        let asked = request("GET", "/esker/v1/state/agents");
        let answer = router.oneshot(asked).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK);
        let body = to_bytes(answer.into_body(), 1 << 20).await.unwrap();
        let page: Value = serde_json::from_slice(&body).unwrap();
        assert_eq!(page.get("next"), Some(&Value::Null), "{page}");
        let text = |of: &Value| of.as_str().unwrap().to_owned();
        let agents = page["agents"].as_array().unwrap().iter();
        agents
            .map(|one| (text(&one["namespace"]), text(&one["agent"])))
            .collect()
    }
}

#[test]
fn every_route_of_the_state_store_is_asked_for_names() {
    let path = |of: &'static str| of.split('?').next().unwrap();
    for (method, route) in routes() {
        if let Some(Rule::State(_)) = Rule::of(method, &route) {
            let is_asked = STATE_REQUESTS.iter().any(|(asked, _)| path(asked) == route);
            assert!(is_asked && method == "GET", "{method} {route}");
        }
    }
}

#[tokio::test]
async fn keys_of_an_agent_are_shown_to_those_who_may_read_that_agent_and_to_nobody_else() {
    let world = World::new().await;
    let all = || NameSet::prefix("");
    // Which namespaces and agents; whether that has the agent which is asked for, and all agents.
    let cases = [
        (all(), all(), true, true),
        (
            NameSet::exact(NAMESPACE),
            NameSet::exact(AGENT),
            true,
            false,
        ),
        (NameSet::prefix("te"), NameSet::prefix("b"), true, false),
        (all(), NameSet::exact(AGENT), true, false),
        (NameSet::exact(NAMESPACE), all(), true, false),
        (NameSet::NONE, all(), false, false),
        (all(), NameSet::NONE, false, false),
        // The name of one as that of the other.
        (
            NameSet::exact(AGENT),
            NameSet::exact(NAMESPACE),
            false,
            false,
        ),
        (
            NameSet::exact("team-2"),
            NameSet::exact(AGENT),
            false,
            false,
        ),
        (
            NameSet::exact(NAMESPACE),
            NameSet::exact("bot-2"),
            false,
            false,
        ),
        (
            NameSet::prefix("team-"),
            NameSet::prefix(AGENT),
            false,
            false,
        ),
        (
            NameSet::prefix(NAMESPACE),
            NameSet::prefix("bot-"),
            false,
            false,
        ),
        (NameSet::exact("te"), NameSet::exact(AGENT), false, false),
    ];
    // The same answers before anything exists, and after.
    for exists in [false, true] {
        if exists {
            world.commit_keys().await;
        }
        for (path, reach) in STATE_REQUESTS {
            let status = world.ask(root(), "GET", path).await;
            assert_eq!(status, StatusCode::OK, "{path} for root");
            for (namespaces, agents, has_agent, has_all) in cases.clone() {
                let scope = readable(namespaces, agents);
                let shown = format!("{path} {scope:?}");
                let permitted = match reach {
                    Reach::Numbers | Reach::Listed => true,
                    Reach::Agent => has_agent,
                    Reach::Everything => has_all,
                };
                let writer = TokenScope {
                    state_read: false,
                    state_write: true,
                    ..scope.clone()
                };
                let status = world.ask(holder(scope), "GET", path).await;
                let expected = match permitted {
                    true => StatusCode::OK,
                    false => StatusCode::FORBIDDEN,
                };
                assert_eq!(status, expected, "{shown}");
                let status = world.ask(holder(writer), "GET", path).await;
                assert_eq!(status, StatusCode::FORBIDDEN, "{shown}, of a writer");
            }
        }
    }
    world.node.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_agents_that_are_listed_are_those_of_the_scope() {
    let world = World::new().await;
    world.commit_keys().await;
    let all = || NameSet::prefix("");
    for (namespaces, agents, expected) in [
        (all(), all(), AGENTS),
        (NameSet::exact(NAMESPACE), all(), &AGENTS[1..3]),
        (NameSet::prefix("team-"), all(), &AGENTS[3..]),
        (all(), NameSet::exact("bot-2"), &AGENTS[2..3]),
        (all(), NameSet::prefix("t"), &AGENTS[..1]),
        (
            NameSet::exact(NAMESPACE),
            NameSet::exact(AGENT),
            &AGENTS[1..2],
        ),
        (
            NameSet::exact(AGENT),
            NameSet::exact(NAMESPACE),
            &AGENTS[..1],
        ),
        (NameSet::NONE, all(), &AGENTS[..0]),
        (all(), NameSet::NONE, &AGENTS[..0]),
    ] {
        let scope = readable(namespaces, agents);
        let shown = format!("{scope:?}");
        let found = world.agents(scope).await;
        let found: Vec<_> = found.iter().map(|(n, a)| (&**n, &**a)).collect();
        assert_eq!(found, expected, "{shown}");
    }
    world.node.stop(Duration::from_secs(5)).await;
}

#[tokio::test]
async fn the_position_of_a_stream_is_shown_to_its_readers_and_to_those_who_may_read_the_status() {
    let world = World::new().await;
    let all = || NameSet::prefix("");
    let mut routes = routes();
    routes.retain(|(method, path)| matches!(Rule::of(method, path), Some(Rule::AdminOr(..))));
    assert_eq!(routes.len(), 2, "{routes:?}");
    // Which basins and streams; whether that has the stream which is asked for.
    let cases = [
        (all(), all(), true),
        (NameSet::exact(BASIN), NameSet::exact(STREAM), true),
        (NameSet::prefix("test-"), NameSet::prefix("team/"), true),
        (NameSet::NONE, all(), false),
        (all(), NameSet::NONE, false),
        (NameSet::exact("test-basin2"), all(), false),
        (NameSet::prefix("test-basin-"), all(), false),
        (all(), NameSet::exact("team"), false),
        (all(), NameSet::exact(STREAM_IN_PATH), false),
        (all(), NameSet::prefix("team/streams"), false),
        (NameSet::exact(STREAM), NameSet::exact(BASIN), false),
    ];
    for exists in [false, true] {
        if exists {
            for path in ["/v1/basins", "/v1/streams"] {
                let made = world.ask(root(), "POST", path).await;
                assert!(made.is_success(), "{path}: {made}");
            }
        }
        for (method, path) in &routes {
            let Some(Rule::AdminOr(Effect::Read, operation)) = Rule::of(method, path) else {
                panic!("{method} {path} changes something");
            };
            for (basins, streams, permitted) in cases.clone() {
                let names = TokenScope {
                    basins,
                    streams,
                    ..everywhere()
                };
                let shown = format!("{method} {path} {names:?}");
                let scope = |operation| TokenScope {
                    basins: names.basins.clone(),
                    streams: names.streams.clone(),
                    ..with(&[operation])
                };
                let reader = world.ask(holder(scope(operation)), method, path).await;
                assert_eq!(is_refused(reader), !permitted, "{shown}: {reader}");
                // It is no secret then that there is no such stream.
                assert_eq!(reader.is_success(), permitted && exists, "{shown}");
                let other = scope(Operation::CheckTail);
                let other = world.ask(holder(other), method, path).await;
                assert_eq!(other, StatusCode::FORBIDDEN, "{shown}");
                let monitor = TokenScope {
                    admin_read: true,
                    ..names
                };
                let monitor = world.ask(holder(monitor), method, path).await;
                assert!(!is_refused(monitor), "{shown}: {monitor}");
            }
        }
    }
    world.node.stop(Duration::from_secs(5)).await;
}
