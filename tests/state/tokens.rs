//! Access tokens for the state store: what they permit, by namespace and agent.

use std::os::unix::fs::PermissionsExt as _;

use esker_proto::statehouse::v1::statehouse_service_client::StatehouseServiceClient;
use esker_proto::statehouse::v1::{
    BeginTransactionRequest, CommitRequest, GetStateRequest, HealthRequest, ListKeysRequest,
    ReplayRequest, WriteRequest,
};
use serde_json::{Value, json};
use tokio_stream::StreamExt as _;
use tonic::transport::Channel;
use tonic::{Code, Request};

use testkit::ports::free_port;

use crate::client::channel;
use crate::support::{Server, Setup, soon};

pub const ROOT: &str = "root-token-of-the-tests-of-the-state-store-0123456789";

pub type Client = StatehouseServiceClient<Channel>;

/// A server with the root token, and a client of it.
pub async fn server(root_token: &tempfile::NamedTempFile) -> (Server, Client) {
    server_with(Setup::default(), root_token).await
}

/// The same with these settings.
pub async fn server_with(setup: Setup, root_token: &tempfile::NamedTempFile) -> (Server, Client) {
    std::fs::write(root_token, ROOT).unwrap();
    let mode = std::fs::Permissions::from_mode(0o600);
    root_token.as_file().set_permissions(mode).unwrap();
    let setting = format!("root-token-file={}", root_token.path().display());
    let server = setup.set(&setting).start_fresh().await;
    let client = StatehouseServiceClient::new(channel(server.url()));
    (server, client)
}

/// Issues a token with a scope of the state store.
pub async fn issue(server: &Server, id: &str, state: Value) -> String {
    let body = json!({"id": id, "scope": {"state": state}});
    let http = server.http1().with_token(ROOT);
    let answer = http.post("/v1/access-tokens").json(&body).send().await;
    let answer = answer.expect(201).json();
    answer["access_token"].as_str().unwrap().to_owned()
}

/// A request with a token.
pub fn with<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    let value = format!("Bearer {token}").parse().unwrap();
    request.metadata_mut().insert("authorization", value);
    request
}

fn read(namespace: &str, agent: &str) -> GetStateRequest {
    GetStateRequest {
        namespace: namespace.into(),
        agent_id: agent.into(),
        key: "key".into(),
    }
}

fn write(txn: &str, namespace: &str, agent: &str) -> WriteRequest {
    WriteRequest {
        txn_id: txn.into(),
        namespace: namespace.into(),
        agent_id: agent.into(),
        key: "key".into(),
        value: Some(esker_proto::Struct::default()),
    }
}

async fn begin(client: &mut Client, token: &str) -> String {
    let begun = client
        .begin_transaction(with(token, BeginTransactionRequest::default()))
        .await;
    begun.unwrap().into_inner().txn_id
}

#[tokio::test]
async fn a_token_reads_and_writes_the_agents_of_its_scope_and_no_others() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (server, mut client) = server(&file).await;
    let scope = json!({
        "namespaces": {"exact": "team"},
        "agents": {"prefix": "bot-"},
        "read": true,
        "write": true,
    });
    let token = issue(&server, "bots", scope).await;

    let none = client.get_state(read("team", "bot-1")).await.unwrap_err();
    assert_eq!(none.code(), Code::Unauthenticated, "{none}");
    let wrong = client
        .get_state(with("esk_wrong", read("team", "bot-1")))
        .await;
    assert_eq!(wrong.unwrap_err().code(), Code::Unauthenticated);

    let txn = begin(&mut client, &token).await;
    client
        .write(with(&token, write(&txn, "team", "bot-1")))
        .await
        .unwrap();
    // What is compared is what is stored: no decoding, no separator within a name.
    for (namespace, agent) in [
        ("team", "other"),
        ("team", "bot"),
        ("other", "bot-1"),
        ("team:bot-1", "bot-1"),
        ("team%3Abot-1", "bot-1"),
        ("Team", "bot-1"),
        ("te\u{430}m", "bot-1"),
        ("team", "%62ot-1"),
        ("team", "b\u{43e}t-1"),
    ] {
        let denied = client.get_state(with(&token, read(namespace, agent))).await;
        let denied = denied.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{namespace}/{agent}");
        let denied = client
            .write(with(&token, write(&txn, namespace, agent)))
            .await;
        let denied = denied.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{namespace}/{agent}");
        let keys = ListKeysRequest {
            namespace: namespace.into(),
            agent_id: agent.into(),
        };
        let denied = client.list_keys(with(&token, keys)).await.unwrap_err();
        assert_eq!(denied.code(), Code::PermissionDenied, "{namespace}/{agent}");
    }
    let commit = CommitRequest { txn_id: txn };
    client.commit(with(&token, commit)).await.unwrap();
    let found = client.get_state(with(&token, read("team", "bot-1"))).await;
    assert!(found.unwrap().into_inner().exists);

    // A transaction of another holder is committed by nobody who could not have written it.
    let txn = begin(&mut client, ROOT).await;
    client
        .write(with(ROOT, write(&txn, "team", "other")))
        .await
        .unwrap();
    let commit = CommitRequest { txn_id: txn };
    let denied = client.commit(with(&token, commit.clone())).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    client.commit(with(ROOT, commit)).await.unwrap();
}

#[tokio::test]
async fn a_token_that_may_only_read_writes_nothing_and_a_revoked_one_reads_nothing() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let (server, mut client) = server(&file).await;
    let everything = json!({"prefix": ""});
    let scope = json!({"namespaces": everything, "agents": everything, "read": true});
    let token = issue(&server, "reader", scope).await;
    client
        .get_state(with(&token, read("team", "bot")))
        .await
        .unwrap();
    let txn = begin(&mut client, ROOT).await;
    let denied = client.write(with(&token, write(&txn, "team", "bot"))).await;
    assert_eq!(denied.unwrap_err().code(), Code::PermissionDenied);
    let health = client.health(with(&token, HealthRequest {})).await;
    assert_eq!(health.unwrap().into_inner().status, "ok");

    let answer = server.http1().with_token(ROOT);
    let answer = answer.delete("/v1/access-tokens/reader").send().await;
    answer.expect(204);
    let refused = client.get_state(with(&token, read("team", "bot"))).await;
    assert_eq!(refused.unwrap_err().code(), Code::Unauthenticated);
    let replay = ReplayRequest {
        namespace: "team".into(),
        agent_id: "bot".into(),
        ..ReplayRequest::default()
    };
    let refused = client.replay(with(&token, replay)).await;
    let refused = match refused {
        Err(status) => status,
        Ok(events) => {
            let next = soon("the end", events.into_inner().next()).await;
            next.expect("an error").unwrap_err()
        }
    };
    assert_eq!(refused.code(), Code::Unauthenticated);
}

#[tokio::test]
async fn calls_without_a_valid_token_are_limited_on_both_listeners_and_those_with_one_are_not() {
    // More than an address may send at once, and fewer than are allowed again meanwhile.
    const ATTEMPTS: usize = 60;
    let file = tempfile::NamedTempFile::new().unwrap();
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    let setup = Setup::default().set(&format!("state.listen={listen}"));
    let (server, of_all) = server_with(setup, &file).await;
    let of_state = StatehouseServiceClient::new(channel(&format!("http://{listen}")));
    let everything = json!({"prefix": ""});
    let scope = json!({"namespaces": everything, "agents": everything, "read": true});
    let token = issue(&server, "reader", scope).await;
    for mut client in [of_all, of_state] {
        let mut codes = Vec::new();
        for number in 0..ATTEMPTS {
            let guess = with(&format!("esk_guess-{number}"), read("team", "bot"));
            codes.push(client.get_state(guess).await.unwrap_err().code());
        }
        let is_expected =
            |code: &Code| [Code::Unauthenticated, Code::ResourceExhausted].contains(code);
        assert!(codes.iter().all(is_expected), "{codes:?}");
        assert!(codes.contains(&Code::ResourceExhausted), "{codes:?}");
        // The address is that of a client with a valid token as well.
        for token in [&*token, ROOT] {
            let found = client.get_state(with(token, read("team", "bot"))).await;
            found.unwrap();
        }
    }
    // It is one limit for all that the server takes: the other API counts the same failures.
    let http = server.http1().with_token("esk_guess");
    let mut statuses = Vec::new();
    // One a second is allowed, and far more are sent, however slow the machine is.
    while statuses.len() < 3 * ATTEMPTS && !statuses.contains(&429) {
        let answer = http.get("/v1/basins").send().await;
        statuses.push(answer.status.as_u16());
    }
    assert!(statuses.contains(&429), "{statuses:?}");
    // A limit of its own would have let 20 pass at once.
    assert!(statuses.len() < 20, "{statuses:?}");
}
