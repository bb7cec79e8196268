//! Access tokens: issued, used, listed, revoked, and enforced over every transport.
//!
//! | module | what it shows |
//! |---|---|
//! | [`issuing`] | tokens that are issued, by whom, with what scope, and revoked |
//! | [`scopes`] | operations, names and prefixes of names |
//! | [`refusals`] | requests without a valid token, and what nobody learns of one |
//! | [`sessions`] | sessions that are under way when their token ends |
//! | [`root_token`] | the file of the root token, and another token in it |
//! | [`restarts`] | tokens after a restart, and after a restore with a loss |

mod issuing;
mod refusals;
mod restarts;
mod root_token;
mod scopes;
mod sessions;

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::Duration;

use s2_sdk::S2;
use serde_json::{Value, json};

use crate::support::http::{Http, Transport};
use crate::support::{Server, Setup, frames, sdk};

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

/// The end of an append session, in the form of a read session's.
async fn appends_end(
    session: &mut frames::AppendSession,
) -> Option<frames::Output<s2_api::v1::stream::proto::ReadBatch>> {
    match session.rest().await.pop()? {
        frames::Output::Error(status, body) => Some(frames::Output::Error(status, body)),
        _ => None,
    }
}
