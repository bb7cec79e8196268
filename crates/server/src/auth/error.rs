//! Refusals, and how they are answered over HTTP.
//!
//! A token that is malformed, unknown, revoked or expired is refused with one and the same answer, so that the
//! answer helps nobody who guesses. Which it was is counted in `esker_auth_failures_total`.

use axum::response::{IntoResponse, Response};
use http::{HeaderName, HeaderValue, header};
use s2_api::v1::error::{ErrorCode, ErrorInfo, ErrorResponse, StandardError};

/// Why a request is refused.
#[derive(Clone, Debug, PartialEq, thiserror::Error)]
pub enum AccessError {
    /// There is no valid token.
    #[error(
        "no valid access token: send one that was issued, is not revoked and has not expired, as \
         `authorization: Bearer TOKEN`"
    )]
    Unauthenticated,
    /// The token does not permit it.
    #[error("the access token does not permit {0}")]
    Forbidden(String),
    /// Tokens are suspended.
    #[error(
        "issued access tokens are suspended, because the catalog was restored as of an earlier time, or goes on \
         without the majority of a cluster that was lost (`esker cluster recover`), and may lack revocations: the \
         holder of the root token lifts that with `esker token confirm` (POST /esker/v1/access-tokens/confirm), \
         after revoking those that must not be valid"
    )]
    Suspended,
    /// Too many failures from this address.
    #[error("too many requests without a valid access token came from this address: wait")]
    Limited {
        /// Seconds after which one more is taken.
        retry_after: u64,
    },
    /// It is not known whether the token is valid.
    #[error("{0}: nothing happened, try again")]
    Unavailable(String),
    /// A name that the token's prefix makes too long.
    #[error("{0}")]
    Invalid(String),
    /// There are no access tokens without authentication.
    #[error(
        "the server runs without authentication, so an access token would protect nothing: configure \
         `root-token-file` first"
    )]
    Off,
}

/// Seconds after which a request is to be repeated that could not be decided.
const RETRY_AFTER: u64 = 1;

impl AccessError {
    /// The code of the S2 API.
    pub(crate) fn code(&self) -> ErrorCode {
        match self {
            AccessError::Unauthenticated => ErrorCode::Authn,
            AccessError::Forbidden(_) | AccessError::Suspended | AccessError::Off => {
                ErrorCode::PermissionDenied
            }
            AccessError::Limited { .. } => ErrorCode::RateLimited,
            AccessError::Unavailable(_) => ErrorCode::Unavailable,
            AccessError::Invalid(_) => ErrorCode::Invalid,
        }
    }

    /// The label in `esker_auth_failures_total`.
    pub(crate) fn reason(&self) -> Option<&'static str> {
        match self {
            AccessError::Forbidden(_) => Some(FORBIDDEN),
            AccessError::Suspended => Some("suspended"),
            AccessError::Unavailable(_) => Some("unavailable"),
            // Counted where the reason is known.
            AccessError::Unauthenticated | AccessError::Limited { .. } => None,
            AccessError::Invalid(_) | AccessError::Off => None,
        }
    }

    /// As the APIs over HTTP answer it.
    pub(crate) fn to_response(&self) -> ErrorResponse {
        let code = self.code();
        ErrorResponse::Standard(StandardError {
            status: code.status(),
            info: ErrorInfo {
                code: code.into(),
                message: self.to_string(),
            },
        })
    }

    /// A header that belongs to the answer.
    pub(crate) fn header(&self) -> Option<(HeaderName, HeaderValue)> {
        match self {
            AccessError::Unauthenticated => {
                Some((header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer")))
            }
            _ => {
                let seconds = self.retry_after()?;
                Some((header::RETRY_AFTER, HeaderValue::from(seconds)))
            }
        }
    }

    /// Seconds after which the request may succeed.
    fn retry_after(&self) -> Option<u64> {
        match self {
            AccessError::Limited { retry_after } => Some(*retry_after),
            AccessError::Unavailable(_) => Some(RETRY_AFTER),
            _ => None,
        }
    }
}

impl IntoResponse for AccessError {
    fn into_response(self) -> Response {
        let mut response = self.to_response().into_response();
        let headers = response.headers_mut();
        if let Some((name, value)) = self.header() {
            headers.insert(name, value);
        }
        // The official clients read this one.
        if let Some(seconds) = self.retry_after() {
            headers.insert("retry-after-ms", HeaderValue::from(1000 * seconds));
        }
        response
    }
}

/// Labels of failures.
pub(crate) const MISSING: &str = "missing";
pub(crate) const MALFORMED: &str = "malformed";
pub(crate) const UNKNOWN: &str = "unknown";
pub(crate) const EXPIRED: &str = "expired";
pub(crate) const FORBIDDEN: &str = "forbidden";
pub(crate) const LIMITED: &str = "limited";
const REASONS: [&str; 8] = [
    MISSING,
    MALFORMED,
    UNKNOWN,
    EXPIRED,
    FORBIDDEN,
    LIMITED,
    "suspended",
    "unavailable",
];

/// Counts a failure.
pub(crate) fn count(reason: &'static str) {
    metrics::counter!("esker_auth_failures_total", "reason" => reason).increment(1);
}

/// Counts a refusal, unless it was counted where its reason was known.
pub(crate) fn count_refusal(refusal: &AccessError) {
    if let Some(reason) = refusal.reason() {
        count(reason);
    }
}

/// Registers all series, so that an alert on an increase sees the first failure.
pub(crate) fn register() {
    for reason in REASONS {
        metrics::counter!("esker_auth_failures_total", "reason" => reason).increment(0);
    }
}
