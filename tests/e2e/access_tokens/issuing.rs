//! Tokens that are issued, by whom, with what scope, and revoked.

use s2_sdk::types::{
    AccessTokenScopeInput, BasinMatcher, IssueAccessTokenInput, ListAccessTokensInput,
    ListBasinsInput, ListStreamsInput, Operation, OperationGroupPermissions, ReadWritePermissions,
    StreamMatcher,
};
use serde_json::{Value, json};

use super::{ROOT, World, all_of};
use crate::support::Server;
use crate::support::http::Transport;
use crate::support::sdk::{self, stream_name};

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
