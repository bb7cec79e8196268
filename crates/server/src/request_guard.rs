//! Checks that every request has to pass before a handler sees it.
//!
//! A page in a user's browser can send requests to a server on the same machine. It cannot freely choose
//! three things, and those are checked:
//!
//! - `Origin`, which names the page's site. A request that has one is refused, unless the configuration
//!   allows the origin (`allowed-origins`).
//! - `Host`, which is the name under which the page reached the server. A listener on a loopback address
//!   takes loopback names and those of `allowed-hosts` only: otherwise a foreign name that resolves to
//!   127.0.0.1 would make the page and the server one site (DNS rebinding).
//! - `Content-Type`: the server reads no body of a type that a page may send without a preflight request.
//!
//! Headers that decide what a request means must not come twice with different values.

use std::borrow::Cow;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use axum::body::HttpBody as _;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use http::header::Entry;
use http::uri::Authority;
use http::{HeaderMap, HeaderName, Method, Version, header};
use s2_common::encryption::S2_ENCRYPTION_KEY_HEADER;
use tonic::Status;

use crate::api::ServiceError;
use crate::config::Config;
use crate::origins::Origins;
use crate::refusal::{LABELS, Refusal};

/// Paths of the gRPC services begin with these.
const GRPC_PATHS: [&str; 2] = ["/statehouse.v1.", "/esker.state.v1."];

/// Headers whose value decides what a request means.
const SINGLE: [HeaderName; 10] = [
    header::HOST,
    header::ORIGIN,
    header::AUTHORIZATION,
    header::CONTENT_TYPE,
    header::CONTENT_ENCODING,
    HeaderName::from_static("s2-basin"),
    HeaderName::from_static("s2-request-token"),
    HeaderName::from_static("s2-format"),
    HeaderName::from_static("s2-stream-config"),
    HeaderName::from_static("s2-encryption-key"),
];

/// What one listener accepts.
#[derive(Debug)]
pub(crate) struct RequestGuard {
    /// Whether the listener has a loopback address.
    loopback: bool,
    /// More names for it, in lower case.
    hosts: Vec<String>,
    /// Origins that may send requests.
    origins: Origins,
}

impl RequestGuard {
    /// The guard of a listener with this address.
    pub(crate) fn new(config: &Config, address: SocketAddr) -> RequestGuard {
        let list = |text: &Option<String>| {
            let text = text.as_deref().unwrap_or_default();
            let parts = text.split(',').map(|part| part.trim().to_lowercase());
            parts.filter(|part| !part.is_empty()).collect()
        };
        for label in LABELS {
            metrics::counter!("esker_http_refused_total", "reason" => label).increment(0);
        }
        RequestGuard {
            loopback: address.ip().to_canonical().is_loopback(),
            hosts: list(&config.allowed_hosts),
            origins: Origins::of(config),
        }
    }

    /// Whether a request has one meaning, and is for this server.
    pub(crate) fn check_target(&self, request: &Request) -> Result<(), Refusal> {
        let headers = request.headers();
        for name in &SINGLE {
            let mut values = headers.get_all(name).iter();
            let first = values.next();
            if values.any(|value| Some(value) != first) {
                return Err(Refusal::Twice(name.clone()));
            }
        }
        self.check_host(request)
    }

    fn check(&self, request: &Request) -> Result<(), Refusal> {
        self.check_target(request)?;
        let headers = request.headers();
        if let Some(origin) = headers.get(header::ORIGIN)
            && !self.origins.allow(origin)
        {
            let origin = String::from_utf8_lossy(origin.as_bytes()).into_owned();
            return Err(Refusal::Origin(origin));
        }
        check_content_type(request)
    }

    fn check_host(&self, request: &Request) -> Result<(), Refusal> {
        let header = request.headers().get(header::HOST);
        if header.is_none() && request.version() == Version::HTTP_11 {
            return Err(Refusal::NoHost);
        }
        // HTTP/2 has the host in the URI.
        let authority = request.uri().authority().map(Authority::as_str);
        let header = header.map(|value| String::from_utf8_lossy(value.as_bytes()));
        if self.loopback {
            for name in authority.into_iter().chain(header.as_deref()) {
                if !self.is_own_name(name) {
                    return Err(Refusal::Host(name.to_owned()));
                }
            }
        }
        match (authority, header) {
            // A proxy in front may have decided by the other one.
            (Some(authority), Some(header)) if !authority.eq_ignore_ascii_case(&header) => {
                Err(Refusal::TwoHosts)
            }
            _ => Ok(()),
        }
    }

    fn is_own_name(&self, name: &str) -> bool {
        let Ok(authority) = name.parse::<Authority>() else {
            return false;
        };
        if name.contains('@') {
            return false;
        }
        let host = authority.host().to_lowercase();
        let host = host.strip_suffix('.').unwrap_or(&host);
        let address = host.trim_start_matches('[').trim_end_matches(']');
        let loopback = match address.parse::<IpAddr>() {
            Ok(address) => address.to_canonical().is_loopback(),
            Err(_) => host == "localhost" || host.ends_with(".localhost"),
        };
        loopback || self.hosts.iter().any(|own| own == host)
    }
}

/// A request that changes something has to have a type for which a browser sends a preflight request.
fn check_content_type(request: &Request) -> Result<(), Refusal> {
    let path = request.uri().path();
    let kind = content_type(request.headers());
    let kind = kind.as_deref().unwrap_or_default();
    if is_grpc(path) {
        return match is_grpc_type(kind) {
            true => Ok(()),
            false => Err(Refusal::NotGrpc),
        };
    }
    let safe = [Method::GET, Method::HEAD, Method::OPTIONS];
    if safe.contains(request.method()) || request.body().is_end_stream() {
        return Ok(());
    }
    let json =
        kind == "application/json" || (kind.starts_with("application/") && kind.ends_with("+json"));
    let messages = [
        "application/protobuf",
        "application/x-protobuf",
        "application/vnd.google.protobuf",
        "application/x-google-protobuf",
        "s2s/proto",
    ];
    match path.starts_with("/v1/") {
        true if json || messages.contains(&kind) => Ok(()),
        true => Err(Refusal::ContentType(
            "`application/json`, for records also `application/protobuf` or `s2s/proto`",
        )),
        false if json => Ok(()),
        false => Err(Refusal::ContentType("`application/json`")),
    }
}

/// Whether a path is one of the gRPC services.
pub(crate) fn is_grpc(path: &str) -> bool {
    GRPC_PATHS.iter().any(|begin| path.starts_with(begin))
}

/// `application/grpc`, or the same with the encoding of messages (`application/grpc+proto`).
fn is_grpc_type(kind: &str) -> bool {
    let rest = kind.strip_prefix("application/grpc");
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('+'))
}

/// The type without its parameters, in lower case. It is copied only where it is not in lower case.
pub(crate) fn content_type(headers: &HeaderMap) -> Option<Cow<'_, str>> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let kind = value.split(';').next().unwrap_or_default().trim();
    Some(match kind.bytes().any(|byte| byte.is_ascii_uppercase()) {
        true => Cow::Owned(kind.to_ascii_lowercase()),
        false => Cow::Borrowed(kind),
    })
}

/// Whether the content type of a request is that of a session.
pub(crate) fn is_session(headers: &HeaderMap) -> bool {
    content_type(headers).is_some_and(|kind| kind == "s2s/proto")
}

/// Marks the values of headers that are secrets, so that nothing that prints a request prints them.
fn hide_secrets(headers: &mut HeaderMap) {
    for name in [header::AUTHORIZATION, S2_ENCRYPTION_KEY_HEADER.clone()] {
        if let Entry::Occupied(mut values) = headers.entry(name) {
            values
                .iter_mut()
                .for_each(|value| value.set_sensitive(true));
        }
    }
}

/// Refuses requests that are not for this server, before a handler sees them.
pub(crate) async fn check(
    State(guard): State<Arc<RequestGuard>>,
    mut request: Request,
    next: Next,
) -> Response {
    hide_secrets(request.headers_mut());
    let Err(refusal) = guard.check(&request) else {
        return next.run(request).await;
    };
    metrics::counter!("esker_http_refused_total", "reason" => refusal.label()).increment(1);
    let kind = content_type(request.headers());
    if is_grpc(request.uri().path()) && kind.as_deref().is_some_and(is_grpc_type) {
        return Status::permission_denied(refusal.to_string()).into_http();
    }
    ServiceError::Refused(refusal).into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn guard(address: &str, config: Config) -> RequestGuard {
        RequestGuard::new(&config, address.parse().unwrap())
    }

    #[test]
    fn a_loopback_listener_takes_loopback_names_and_configured_ones() {
        let guard = guard(
            "127.0.0.1:7070",
            Config {
                allowed_hosts: Some("esker.internal, Proxy".into()),
                ..Config::default()
            },
        );
        for own in [
            "localhost",
            "LOCALHOST:7070",
            "localhost.",
            "a.localhost",
            "127.0.0.1",
            "127.9.9.9:1",
            "[::1]",
            "[::1]:7070",
            "esker.internal:80",
            "proxy",
        ] {
            assert!(guard.is_own_name(own), "{own}");
        }
        for foreign in [
            "",
            "evil.example",
            "localhost.evil.example",
            "evil-localhost",
            "127.0.0.1.evil.example",
            "localhost@evil.example",
            "evil.example@localhost",
            "10.0.0.1",
            "[::2]:7070",
            "a b",
        ] {
            assert!(!guard.is_own_name(foreign), "{foreign}");
        }
    }

    #[test]
    fn grpc_types_are_those_of_grpc_alone() {
        for kind in ["application/grpc", "application/grpc+proto"] {
            assert!(is_grpc_type(kind), "{kind}");
        }
        for kind in ["", "text/plain", "application/grpc-web", "application/json"] {
            assert!(!is_grpc_type(kind), "{kind}");
        }
    }
}
