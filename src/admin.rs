//! Client of a server's admin API, and the translation of its errors into failures for a person.

use std::time::Duration;

use esker_server::admin;
use esker_server::admin::error::ErrorBody;
use reqwest::{Client, RequestBuilder, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::failure::Failure;
use crate::refusal;
use crate::remote::Remote;
use crate::server_address::ServerAddress;
use crate::stream_cmd::failure::Asked;

/// Interval of TCP keep-alive probes. A server that disappears during a long request is detected after about
/// this time.
const KEEP_ALIVE: Duration = Duration::from_secs(15);

/// A client of one server. The server answered when the client was made.
pub struct Admin {
    remote: Remote,
    http: Client,
}

impl Admin {
    /// Connects to the server.
    ///
    /// # Errors
    ///
    /// `unreachable` and `tls`, within some three seconds, with the reason.
    pub async fn open(remote: Remote) -> Result<Admin, Failure> {
        remote.reach().await?;
        let http = remote.http(KEEP_ALIVE)?;
        Ok(Admin { remote, http })
    }

    /// The server's address.
    pub fn address(&self) -> &ServerAddress {
        self.remote.address()
    }

    /// Sends a GET for a path below `/esker/v1`, given by its segments, with a query.
    pub async fn get<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let mut url = self.url(path)?;
        if !query.is_empty() {
            url.query_pairs_mut().extend_pairs(query);
        }
        self.answer(self.http.get(url)).await
    }

    /// Sends a POST, and waits for the answer without a time limit.
    pub async fn post<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::wrong("client", e))?;
        let request = self.http.post(self.url(path)?);
        let request = request.header("content-type", "application/json");
        self.answer(request.body(body)).await
    }

    /// Sends a GET for a path below `/v1`, of the S2 API, with a query.
    pub async fn get_s2<T: DeserializeOwned>(
        &self,
        path: &[&str],
        query: &[(&str, &str)],
    ) -> Result<T, Failure> {
        let mut url = self.url_below("/v1", path)?;
        url.query_pairs_mut().extend_pairs(query);
        self.answer(self.http.get(url)).await
    }

    /// Sends a POST for a path below `/v1`.
    pub async fn post_s2<T: DeserializeOwned>(
        &self,
        path: &[&str],
        body: &impl Serialize,
    ) -> Result<T, Failure> {
        let body = serde_json::to_vec(body).map_err(|e| Failure::wrong("client", e))?;
        let request = self.http.post(self.url_below("/v1", path)?);
        let request = request.header("content-type", "application/json");
        self.answer(request.body(body)).await
    }

    /// Sends a DELETE for a path below `/v1`.
    pub async fn delete_s2(&self, path: &[&str]) -> Result<(), Failure> {
        let url = self.url_below("/v1", path)?;
        self.body(self.http.delete(url)).await.map(|_| ())
    }

    fn url(&self, path: &[&str]) -> Result<Url, Failure> {
        self.url_below("/esker/v1", path)
    }

    fn url_below(&self, prefix: &str, path: &[&str]) -> Result<Url, Failure> {
        let address = self.address();
        let mut url = Url::parse(&format!("{address}{prefix}"))
            .map_err(|e| Failure::usage("invalid", format!("{address}: {e}")))?;
        if let Ok(mut segments) = url.path_segments_mut() {
            segments.extend(path);
        }
        Ok(url)
    }

    async fn answer<T: DeserializeOwned>(&self, request: RequestBuilder) -> Result<T, Failure> {
        let body = self.body(request).await?;
        serde_json::from_slice(&body).map_err(|e| self.not_esker(&e.to_string()))
    }

    async fn body(&self, request: RequestBuilder) -> Result<Vec<u8>, Failure> {
        let lost = |e: reqwest::Error| {
            Asked::new(self.address()).unreachable(&format!(
                "it closed the connection instead of answering ({})",
                innermost(&e)
            ))
        };
        let request = match self.remote.token() {
            Some(token) => request.bearer_auth(token.expose()),
            None => request,
        };
        let answer = request.send().await.map_err(lost)?;
        let status = answer.status();
        let body = answer.bytes().await.map_err(lost)?;
        if status.is_success() {
            return Ok(body.into());
        }
        let error = serde_json::from_slice::<ErrorBody>(&body);
        let (code, message) = match &error {
            Ok(error) => (Some(&*error.code), error.message.clone()),
            Err(_) => (
                refusal::code_of(status.as_u16()),
                format!("it answers {status}"),
            ),
        };
        let refused = code.and_then(|code| refusal::of(self.address(), code, &message));
        if let Some(refused) = refused {
            return Err(refused);
        }
        match error {
            // The server does not have this path.
            Ok(error) if error.code == "bad_path" => Err(self.not_esker(&error.message)),
            Ok(error) => Err(failure(&error)),
            Err(_) => Err(self.not_esker(&message)),
        }
    }

    /// The failure for a server that is not Esker.
    pub fn not_esker(&self, why: &str) -> Failure {
        Failure::wrong(
            "not_esker",
            format!(
                "what answers at {} has no admin API that this version can use: {why}",
                self.address()
            ),
        )
    }
}

/// The failure for an error that the server answered.
fn failure(error: &ErrorBody) -> Failure {
    let known = admin::CODES.iter().map(|(code, ..)| *code);
    let known = known
        .chain(admin::error::REPOSITORY_CODES.iter().map(|(code, _)| *code))
        .chain([
            "invalid",
            "server_draining",
            "storage",
            "access_token_not_found",
            "resource_already_exists",
            "not_implemented",
        ]);
    let code = known.into_iter().find(|code| *code == error.code);
    let message = match code {
        Some("no_snapshot") => format!(
            "{}; `esker snapshot list` shows those that are",
            error.message
        ),
        _ => error.message.clone(),
    };
    let failure = Failure::wrong(code.unwrap_or("server"), message);
    let exit = match code {
        Some("invalid" | "partition_not_found") => 2,
        Some("denied" | "store") => 3,
        _ => 1,
    };
    Failure { exit, ..failure }
}

fn innermost(error: &dyn std::error::Error) -> String {
    let mut innermost = error;
    while let Some(source) = innermost.source() {
        innermost = source;
    }
    innermost.to_string()
}
