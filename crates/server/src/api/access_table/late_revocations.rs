//! Tokens that are revoked while their requests wait: for a turn, for a thread, for memory.

use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use esker_node::state::{ReadAt, StateKey};
use esker_node::{Client, Error};
use esker_proto::state::v1::CommitRequest;
use prost::Message as _;
use tokio::sync::oneshot;

use super::*;
use crate::auth::authority::tests::authority_for_looks;
use crate::client::client;

/// More changes than are made at a time, in all.
const QUEUED: usize = 1000;

/// Every permission that a scope can have.
fn everything() -> TokenScope {
    TokenScope {
        state_read: true,
        state_write: true,
        ..with(&OPERATIONS)
    }
}

/// The access of a token that is revoked once it was looked up so often.
fn revoked_after(looks: usize, principal: Principal) -> Access {
    let Principal::Token(token) = &principal else {
        panic!("it is a token");
    };
    let issued = Issued::new(vec![StoredToken::clone(token)]);
    Access::new(Arc::new(authority_for_looks(&issued, looks)), principal)
}

/// A path with the query without which its handler does not begin.
fn in_full(path: &str) -> String {
    let query = match path.strip_prefix("/esker/v1/state/") {
        Some("keys") => "?namespace=team&agent=bot",
        Some("value" | "versions") => "?namespace=team&agent=bot&key=k",
        _ => "",
    };
    format!("{path}{query}")
}

/// How often the gate and the handler look a token up before anything is waited for.
fn looks_at_the_beginning(method: &str, path: &str, rule: Rule) -> usize {
    match rule {
        Rule::State(_) => 2,
        Rule::Operations(any_of) => needed(method, path, any_of).len(),
        _ => 1,
    }
}

/// What there is, as root sees it.
async fn seen(world: &World) -> Vec<String> {
    let mut seen = Vec::new();
    for path in [
        "/v1/basins",
        "/v1/basins/{basin}",
        "/v1/streams",
        "/v1/streams/{stream}",
        "/v1/streams/{stream}/records/tail",
        "/v1/access-tokens",
    ] {
        let router = world.router.clone().layer(Extension(access(root())));
        let answer = router.oneshot(request("GET", path)).await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
        let body = axum::body::to_bytes(answer.into_body(), 1 << 20).await;
        seen.push(String::from_utf8(body.unwrap().to_vec()).unwrap());
    }
    seen
}

async fn with_a_stream() -> World {
    let world = World::new().await;
    for path in ["/v1/basins", "/v1/streams"] {
        let made = world.ask(root(), "POST", path).await;
        assert!(made.is_success(), "{path}: {made}");
    }
    world
}

#[tokio::test]
async fn a_token_that_was_revoked_after_the_first_check_changes_nothing_and_is_answered_nothing() {
    let world = with_a_stream().await;
    let before = seen(&world).await;
    for (method, path) in routes() {
        let rule = Rule::of(method, &path).unwrap();
        // It does not wait for anything, and changes nothing.
        if (method, &*path) == ("PUT", "/v1/locations/default")
            || !matches!(
                rule,
                Rule::Operations(_) | Rule::State(_) | Rule::AdminOr(..)
            )
        {
            continue;
        }
        let looks = looks_at_the_beginning(method, &path, rule);
        let access = revoked_after(looks, holder(everything()));
        let router = world.router.clone().layer(Extension(access));
        let asked = request(method, &in_full(&path));
        let answer = router.oneshot(asked).await.unwrap();
        assert_eq!(
            answer.status(),
            StatusCode::UNAUTHORIZED,
            "{method} {path} after {looks}"
        );
    }
    assert_eq!(seen(&world).await, before);
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_call_that_changes_nothing_is_not_answered_after_the_revocation() {
    let world = World::new().await;
    for (path, rule) in GRPC_RULES {
        if *rule != Rule::State(Effect::Read) {
            continue;
        }
        let access = revoked_after(2, holder(everything()));
        let router = world.router.clone().layer(Extension(access));
        let answer = router.oneshot(call(path)).await.unwrap();
        let status = answer.headers().get("grpc-status").cloned();
        assert_eq!(
            status.as_ref().map(|it| it.to_str().unwrap()),
            Some("16"),
            "{path}"
        );
    }
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn changes_that_wait_for_their_turn_are_not_made_after_the_revocation() {
    let world = with_a_stream().await;
    let before = seen(&world).await;
    let principal = holder(everything());
    let Principal::Token(token) = &principal else {
        panic!("it is a token");
    };
    let issued = Issued::new(vec![StoredToken::clone(token)]);
    let on = Arc::new(authority(Some(ROOT), &issued));
    let of_principal: Client = {
        let mut extensions = http::Extensions::new();
        extensions.insert(principal.clone());
        client(&extensions)
    };
    // More of its own changes than there are turns.
    let begun = Arc::new(AtomicUsize::new(0));
    let (mut ends, mut queued) = (Vec::new(), Vec::new());
    for _ in 0..QUEUED {
        let (node, begun) = (world.node.clone(), begun.clone());
        let (end, ended) = oneshot::channel::<()>();
        ends.push(end);
        queued.push(tokio::spawn(async move {
            let change = |_| async move {
                begun.fetch_add(1, Ordering::SeqCst);
                let _ = ended.await;
                Ok::<_, Error>(())
            };
            node.change(of_principal, change).await
        }));
    }
    while begun.load(Ordering::SeqCst) == 0 {
        tokio::task::yield_now().await;
    }
    let mut asked = Vec::new();
    for (method, path) in [
        ("POST", "/v1/basins"),
        ("PUT", "/v1/basins/{basin}"),
        ("PATCH", "/v1/basins/{basin}"),
        ("DELETE", "/v1/basins/{basin}"),
        ("POST", "/v1/streams"),
        ("PUT", "/v1/streams/{stream}"),
        ("PATCH", "/v1/streams/{stream}"),
        ("DELETE", "/v1/streams/{stream}"),
        ("POST", "/v1/access-tokens"),
        ("DELETE", "/v1/access-tokens/{id}"),
    ] {
        let access = Access::new(on.clone(), principal.clone());
        let extensions = (Extension(access), Extension(principal.clone()));
        let router = world.router.clone().layer(extensions);
        let answer = tokio::spawn(router.oneshot(request(method, path)));
        asked.push((method, path, answer));
    }
    // Each has been checked once by now, and waits.
    for _ in 0..1000 {
        tokio::task::yield_now().await;
    }
    assert!(begun.load(Ordering::SeqCst) < QUEUED, "the turns are taken");
    for (method, path, answer) in &asked {
        assert!(!answer.is_finished(), "{method} {path}");
    }
    issued.set(Ok(Vec::new()));
    drop(ends);
    for (method, path, answer) in asked {
        let status = answer.await.unwrap().unwrap().status();
        assert_eq!(status, StatusCode::UNAUTHORIZED, "{method} {path}");
    }
    for change in queued {
        change.await.unwrap().unwrap();
    }
    assert_eq!(seen(&world).await, before);
    world.node.stop(std::time::Duration::from_secs(5)).await;
}

#[tokio::test]
async fn a_commit_whose_token_was_revoked_while_it_waited_is_not_made_and_can_be_made_again() {
    const COMMIT: &str = "/esker.state.v1.StateService/Commit";
    let world = World::new().await;
    let store = world.node.state();
    let txn_id = store.begin(Client::default(), None).unwrap();
    let key = StateKey::new("team", "agent", "key");
    let value = Bytes::from_static(br#"{"a":1}"#);
    store.write(&txn_id, key.clone(), value, None).unwrap();
    let message = CommitRequest {
        txn_id: txn_id.clone(),
        ..CommitRequest::default()
    };
    let message = message.encode_to_vec();
    let mut body = vec![0];
    body.extend((message.len() as u32).to_be_bytes());
    body.extend(message);
    // The gate, that it commits anything, and that it commits this.
    let access = revoked_after(3, holder(everything()));
    let router = world.router.clone().layer(Extension(access));
    let request = call(COMMIT).map(|_| Body::from(body));
    let answer = router.oneshot(request).await.unwrap();
    let status = answer.headers().get("grpc-status").cloned();
    assert_eq!(status.unwrap(), "16");
    assert_eq!(store.get(&key, ReadAt::Latest).unwrap().version, 0);
    let committed = store.commit(&txn_id, Vec::new(), Client::default(), None);
    committed.await.unwrap();
    assert_eq!(store.get(&key, ReadAt::Latest).unwrap().version, 1);
    world.node.stop(std::time::Duration::from_secs(5)).await;
}
