//! Answers for pages of allowed origins: a browser shows an answer to a page only with these headers, and
//! asks for permission first (preflight) before it sends most requests.
//!
//! A preflight request is answered here, without a token and before all checks: it does nothing. Every
//! other answer, refusals too, gets the headers. Cookies are never allowed, and there are none: a page sends
//! its token in the header `authorization`, which a foreign page does not have.

use std::sync::Arc;

use axum::body::Body;
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::Response;
use http::header::{
    ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS, ACCESS_CONTROL_ALLOW_ORIGIN,
    ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE, ACCESS_CONTROL_REQUEST_METHOD, ORIGIN,
    VARY,
};
use http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};

use crate::config::Config;
use crate::origins::Origins;

/// Methods of the APIs.
const METHODS: HeaderValue = HeaderValue::from_static("GET, HEAD, POST, PUT, PATCH, DELETE");
/// Headers that a page may send beside those that it may in any case.
const HEADERS: HeaderValue = HeaderValue::from_static(
    "accept, authorization, cache-control, content-encoding, content-type, last-event-id, s2-basin, \
     s2-encryption-key, s2-format, s2-request-token, s2-stream-config, traceparent, tracestate, user-agent",
);
/// Headers of an answer that a page may read.
const EXPOSED: HeaderValue = HeaderValue::from_static(
    "content-encoding, date, retry-after, retry-after-ms, s2-provision-result, traceparent, www-authenticate",
);
/// Seconds for which a browser remembers a preflight answer: two hours, the most that browsers take.
const MAX_AGE: HeaderValue = HeaderValue::from_static("7200");
/// A page of the internet that reaches a server on a private network asks for this, too.
const REQUEST_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-request-private-network");
const ALLOW_PRIVATE_NETWORK: HeaderName =
    HeaderName::from_static("access-control-allow-private-network");

/// What pages of which origins may do.
#[derive(Clone, Debug)]
pub(crate) struct Cors {
    origins: Origins,
}

impl Cors {
    /// `None` if no origin is allowed.
    pub(crate) fn new(config: &Config) -> Option<Cors> {
        let origins = Origins::of(config);
        (!origins.is_empty()).then_some(Cors { origins })
    }

    /// Adds what every answer has.
    fn mark(&self, headers: &mut HeaderMap, origin: Option<HeaderValue>) {
        let allowed = match self.origins {
            Origins::Any => HeaderValue::from_static("*"),
            Origins::Listed(_) => {
                // A cache must not hand the answer to a page of another origin.
                headers.append(VARY, HeaderValue::from_static("origin"));
                match origin.clone() {
                    Some(origin) => origin,
                    None => return,
                }
            }
        };
        if origin.is_some() {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, allowed);
        }
    }

    fn preflight(&self, request: &HeaderMap, origin: HeaderValue) -> Response {
        let mut answer = Response::new(Body::empty());
        *answer.status_mut() = StatusCode::NO_CONTENT;
        let headers = answer.headers_mut();
        headers.insert(ACCESS_CONTROL_ALLOW_METHODS, METHODS);
        headers.insert(ACCESS_CONTROL_ALLOW_HEADERS, HEADERS);
        headers.insert(ACCESS_CONTROL_MAX_AGE, MAX_AGE);
        if request.contains_key(REQUEST_PRIVATE_NETWORK) {
            headers.insert(ALLOW_PRIVATE_NETWORK, HeaderValue::from_static("true"));
        }
        self.mark(headers, Some(origin));
        answer
    }
}

/// Answers preflight requests, and adds the headers to all other answers.
pub(crate) async fn answer(
    State(cors): State<Arc<Cors>>,
    request: Request,
    next: Next,
) -> Response {
    let mut origins = request.headers().get_all(ORIGIN).iter();
    let origin = match (origins.next(), origins.next()) {
        (Some(origin), None) if cors.origins.allow(origin) => Some(origin.clone()),
        // What is not allowed is refused within, where that is counted.
        _ => None,
    };
    let is_preflight = request.method() == Method::OPTIONS
        && request
            .headers()
            .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
    match origin {
        Some(origin) if is_preflight => cors.preflight(request.headers(), origin),
        origin => {
            let mut answer = next.run(request).await;
            let headers = answer.headers_mut();
            if origin.is_some() {
                headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, EXPOSED);
            }
            cors.mark(headers, origin);
            answer
        }
    }
}
