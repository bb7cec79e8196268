//! Requests to the APIs of the same server, through the router that clients use.

use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use esker_server::front::send_as;
use http::{Extensions, HeaderValue, Method, StatusCode, header};
use http_body_util::{BodyExt as _, Limited};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use tower::ServiceExt as _;

/// Longest wait for an answer. In a cluster, one that asks every node takes two seconds if one of them is down.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// The same for what has to be read from the repository: somebody looks at an empty window meanwhile, and the
/// server tries again and again for longer than that. A list is read from one small object.
pub const LIST_TIMEOUT: Duration = Duration::from_secs(5);
/// The same for descriptions of files, of some 30 MiB, and for plans.
pub const DESCRIPTION_TIMEOUT: Duration = Duration::from_secs(10);
/// Most bytes of an answer: a description of 100,000 files has some 30 MiB.
const MAX_ANSWER_BYTES: usize = 64 << 20;

/// Whose request it is.
#[derive(Clone, Debug, Default)]
pub struct Caller {
    /// The token that they signed in with; `None` where no token is needed.
    pub token: Option<HeaderValue>,
    /// What their connection has.
    pub connection: Extensions,
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum ApiError {
    /// The token is not valid any more.
    #[error("the access token is not valid: it was revoked, or has expired")]
    Unauthenticated,
    /// The token does not permit it.
    #[error("the access token does not permit this: {0}")]
    Forbidden(String),
    /// What was asked for does not exist.
    #[error("{message} ({code})")]
    NotFound {
        /// The code of the API.
        code: String,
        /// What is not there.
        message: String,
    },
    /// It failed; nothing is known of what was asked for.
    #[error("{message} ({code})")]
    Failed {
        /// The code of the API.
        code: String,
        /// What happened.
        message: String,
    },
}

impl ApiError {
    fn failed(code: &str, message: impl ToString) -> ApiError {
        ApiError::Failed {
            code: code.to_owned(),
            message: message.to_string(),
        }
    }
}

/// An error as all APIs have it.
#[derive(Deserialize)]
struct ErrorBody {
    code: String,
    message: String,
}

/// Sends requests to the APIs. Cheap to clone.
#[derive(Clone)]
pub struct ApiClient {
    router: Router,
    /// How long what is asked of the repository may take; `None` for what only the server has to answer.
    of_repository: Option<Duration>,
}

impl ApiClient {
    /// A client of the APIs behind a router.
    pub fn new(router: Router) -> ApiClient {
        ApiClient {
            router,
            of_repository: None,
        }
    }

    /// The same client, for requests that read the repository, which may take this long.
    pub fn of_repository(&self, timeout: Duration) -> ApiClient {
        ApiClient {
            of_repository: Some(timeout),
            ..self.clone()
        }
    }

    /// What a `GET` answers, as JSON. `path` has the query, percent-encoded.
    pub async fn get<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        path: &str,
    ) -> Result<T, ApiError> {
        self.get_with(caller, path, &[]).await
    }

    /// The same with more headers.
    pub async fn get_with<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        path: &str,
        headers: &[(&'static str, &str)],
    ) -> Result<T, ApiError> {
        let request = request(caller, Method::GET, path, headers, None)?;
        parse(&self.send(request).await?)
    }

    /// What a `POST` of JSON answers.
    pub async fn post<T: DeserializeOwned>(
        &self,
        caller: &Caller,
        path: &str,
        body: &serde_json::Value,
    ) -> Result<T, ApiError> {
        let request = request(caller, Method::POST, path, &[], Some(body))?;
        parse(&self.send(request).await?)
    }

    async fn send(&self, request: Request) -> Result<Bytes, ApiError> {
        let answering = async {
            let answer = self.router.clone().oneshot(request).await;
            let answer = answer.unwrap_or_else(|never| match never {});
            let status = answer.status();
            let body = Limited::new(answer.into_body(), MAX_ANSWER_BYTES);
            let body = body.collect().await;
            let body = body.map_err(|error| ApiError::failed("answer", error))?;
            check(status, body.to_bytes())
        };
        let late = |_| match self.of_repository {
            Some(timeout) => ApiError::failed(
                "repository_timeout",
                format!(
                    "the repository has not answered within {} s; nothing is known of what is in it, and appends and reads do not wait for it. The overview names the cause once the server has met one",
                    timeout.as_secs()
                ),
            ),
            None => ApiError::failed("timeout", "the server has not answered in time"),
        };
        let timeout = self.of_repository.unwrap_or(ANSWER_TIMEOUT);
        tokio::time::timeout(timeout, answering)
            .await
            .map_err(late)?
    }
}

fn request(
    caller: &Caller,
    method: Method,
    path: &str,
    headers: &[(&'static str, &str)],
    body: Option<&serde_json::Value>,
) -> Result<Request, ApiError> {
    let mut request = Request::builder()
        .method(method)
        .uri(path)
        // One that every listener takes.
        .header(header::HOST, "localhost")
        .header(header::ACCEPT, "application/json");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    if let Some(token) = &caller.token {
        request = request.header(header::AUTHORIZATION, token);
    }
    let body = match body {
        None => Body::empty(),
        Some(body) => {
            request = request.header(header::CONTENT_TYPE, "application/json");
            Body::from(body.to_string())
        }
    };
    // A name that cannot be in a header or a path is none of anything.
    let invalid = |error: http::Error| ApiError::failed("invalid", error);
    let mut request = request.body(body).map_err(invalid)?;
    send_as(&caller.connection, &mut request);
    Ok(request)
}

fn check(status: StatusCode, body: Bytes) -> Result<Bytes, ApiError> {
    if status.is_success() {
        return Ok(body);
    }
    let said = serde_json::from_slice(&body).unwrap_or_else(|_| ErrorBody {
        code: status.as_u16().to_string(),
        message: String::from_utf8_lossy(&body).chars().take(500).collect(),
    });
    let ErrorBody { code, message } = said;
    Err(match status {
        StatusCode::UNAUTHORIZED => ApiError::Unauthenticated,
        StatusCode::FORBIDDEN => ApiError::Forbidden(message),
        StatusCode::NOT_FOUND => ApiError::NotFound { code, message },
        _ => ApiError::Failed { code, message },
    })
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, ApiError> {
    serde_json::from_slice(body).map_err(|error| ApiError::failed("answer", error))
}

/// A path with a query. Names and values are percent-encoded; `None` is left out.
pub fn path(base: &str, query: &[(&str, Option<&str>)]) -> String {
    let mut pairs = url::form_urlencoded::Serializer::new(String::new());
    for (name, value) in query {
        if let Some(value) = value {
            pairs.append_pair(name, value);
        }
    }
    match pairs.finish() {
        query if query.is_empty() => base.to_owned(),
        query => format!("{base}?{query}"),
    }
}

/// A name as one segment of a path: everything but unreserved characters is percent-encoded.
pub fn segment(name: &str) -> String {
    let mut segment = String::with_capacity(name.len());
    for byte in name.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => {
                segment.push(byte.into());
            }
            // Dots, too: `..` means another path.
            _ => segment.push_str(&format!("%{byte:02X}")),
        }
    }
    segment
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_cannot_leave_their_segment_or_their_parameter() {
        assert_eq!(segment("a/b..c?d#%é"), "a%2Fb%2E%2Ec%3Fd%23%25%C3%A9");
        assert_eq!(
            path("/p", &[("a", Some("x&b=y ")), ("c", None)]),
            "/p?a=x%26b%3Dy+"
        );
        assert_eq!(path("/p", &[("c", None)]), "/p");
    }

    #[tokio::test(start_paused = true)]
    async fn what_does_not_come_in_time_is_named_by_what_was_asked() {
        let never = || std::future::pending::<()>();
        let client = ApiClient::new(Router::new().route("/r", axum::routing::get(never)));
        let caller = Caller::default();
        let begun = tokio::time::Instant::now();
        let repository = client.of_repository(LIST_TIMEOUT);
        let late = repository.get::<u8>(&caller, "/r").await;
        assert_eq!(begun.elapsed(), LIST_TIMEOUT);
        assert!(
            matches!(&late, Err(ApiError::Failed { code, message })
                if code == "repository_timeout" && message.contains("within 5 s")),
            "{late:?}"
        );
        // The other requests of the same client have as long as before.
        let late = client.get::<u8>(&caller, "/r").await;
        assert_eq!(begun.elapsed(), LIST_TIMEOUT + ANSWER_TIMEOUT);
        assert!(matches!(late, Err(ApiError::Failed { code, .. }) if code == "timeout"));
    }

    #[test]
    fn refusals_are_told_apart() {
        let body = || Bytes::from_static(br#"{"code":"c","message":"m"}"#);
        assert_eq!(
            check(StatusCode::UNAUTHORIZED, body()),
            Err(ApiError::Unauthenticated)
        );
        assert!(matches!(
            check(StatusCode::FORBIDDEN, body()),
            Err(ApiError::Forbidden(_))
        ));
        assert!(matches!(
            check(StatusCode::NOT_FOUND, body()),
            Err(ApiError::NotFound { .. })
        ));
        let no_json = check(StatusCode::BAD_GATEWAY, Bytes::from_static(b"<p>"));
        assert_eq!(no_json, Err(ApiError::failed("502", "<p>")));
    }
}
