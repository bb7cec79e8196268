//! Why a request is refused before a handler sees it.

use http::{HeaderName, StatusCode};

/// Why a request is refused.
#[derive(Debug, PartialEq, thiserror::Error)]
pub enum Refusal {
    /// HTTP/1.1 without a `Host`.
    #[error("HTTP/1.1 requires a `Host` header: send one")]
    NoHost,
    /// A header that decides what the request means, twice with different values.
    #[error("the header `{0}` comes more than once, with different values: send it once")]
    Twice(HeaderName),
    /// A request target that names another host than the `Host` header.
    #[error("the request names two hosts: `Host` has to be the same as that of the request target")]
    TwoHosts,
    /// A `Host` that is no name of the server.
    #[error(
        "`Host: {0}` is no name of this server: on a loopback address it takes loopback names (localhost, \
         127.0.0.1, [::1]) and those of `allowed-hosts`"
    )]
    Host(String),
    /// A request of a web page.
    #[error(
        "requests of the web origin `{0}` are not taken: `allowed-origins` in the server's configuration \
         allows one"
    )]
    Origin(String),
    /// Not gRPC.
    #[error("gRPC requires `Content-Type: application/grpc`")]
    NotGrpc,
    /// A content type that the path does not accept; the type that it accepts.
    #[error("the body's `Content-Type` has to be {0}")]
    ContentType(&'static str),
}

impl Refusal {
    /// Its label in the series of `esker_http_refused_total`.
    pub(crate) fn label(&self) -> &'static str {
        match self {
            Refusal::NoHost | Refusal::TwoHosts | Refusal::Host(_) => "host",
            Refusal::Twice(_) => "header",
            Refusal::Origin(_) => "origin",
            Refusal::NotGrpc | Refusal::ContentType(_) => "content_type",
        }
    }

    /// The status that it is answered with.
    pub(crate) fn status(&self) -> StatusCode {
        match self {
            Refusal::NoHost | Refusal::TwoHosts | Refusal::Twice(_) => StatusCode::BAD_REQUEST,
            Refusal::Host(_) | Refusal::Origin(_) => StatusCode::FORBIDDEN,
            Refusal::NotGrpc | Refusal::ContentType(_) => StatusCode::UNSUPPORTED_MEDIA_TYPE,
        }
    }
}

/// All labels of refusals, so that their counters exist from the start.
pub(crate) const LABELS: [&str; 5] = ["host", "header", "origin", "content_type", "tls"];
