//! Errors as the S2 API answers them.
//!
//! Codes that mean "no side effects" (`rate_limited`, `server_draining`, `transaction_conflict`, …) are
//! used only for requests that had no effect and will have none, because clients retry on them.

use std::convert::Infallible;

use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::response::{IntoResponse, Response};
use esker_node::{Error, TokenError};
use http::{HeaderValue, StatusCode, header};
use s2_api::data::extract::{JsonExtractionRejection, ProtoRejection};
use s2_api::v1::error::{ErrorCode, ErrorInfo, ErrorResponse, StandardError};
use s2_api::v1::stream::extract::AppendRequestRejection;
use s2_api::v1::stream::{AppendConditionFailed, AppendInputStreamError, TailResponse, s2s};
use s2_common::ValidationError;
use s2_common::http::extract::HeaderRejection;

use super::series::session_ended;
use crate::answers::Exhausted;
use crate::auth::{self, AccessError};
use crate::forwarded::NotProposed;
use crate::refusal::Refusal;

/// When a request that had no effect may be sent again: after a second. It has waited already where that helps,
/// and a server that stops is back after some seconds.
const RETRY_AFTER: (HeaderValue, HeaderValue) = (
    HeaderValue::from_static("1"),
    HeaderValue::from_static("1000"),
);

/// Every code that this server answers with: the code, when, and what to do.
pub const CODES: &[(ErrorCode, &str, &str)] = &[
    (
        ErrorCode::AccessTokenNotFound,
        "There is no access token of that id.",
        "`esker token list` shows those that there are.",
    ),
    (
        ErrorCode::Authn,
        "The request has no valid access token: none at all, one that is malformed or was never issued, or one that was revoked or has expired. A session whose token is revoked or expires ends with it.",
        "Send a valid token as `authorization: Bearer TOKEN`; have one issued.",
    ),
    (
        ErrorCode::BadFrame,
        "A frame of an append session is too large, truncated, of an unknown compression or not a message.",
        "Correct the client; nothing of the frame was appended.",
    ),
    (
        ErrorCode::BadHeader,
        "A header is missing (`s2-basin`, say), malformed, or there twice with different values; or the body's type is none that the path takes; or a stream is encrypted and `s2-encryption-key` is missing or not base64 of 32 bytes.",
        "Correct the request.",
    ),
    (
        ErrorCode::BadJson,
        "The body is not the JSON that was expected, or too large.",
        "Correct the request; the message names the place.",
    ),
    (
        ErrorCode::BadPath,
        "The path is unknown, or a name in it breaks the rules.",
        "Correct the path.",
    ),
    (
        ErrorCode::BadProto,
        "The body is not the protobuf message that was expected, or too large.",
        "Correct the request.",
    ),
    (
        ErrorCode::BadQuery,
        "A query parameter is malformed.",
        "Correct the request.",
    ),
    (
        ErrorCode::BasinDeletionPending,
        "The basin is being deleted.",
        "Wait until its name is free, or use another.",
    ),
    (
        ErrorCode::BasinNotFound,
        "There is no basin of that name.",
        "Create it, or correct the name.",
    ),
    (
        ErrorCode::DecryptionFailed,
        "The key in the header `s2-encryption-key` is not the one that a record was appended with. Nothing was changed.",
        "Read with the key of the record that the message names; another record of the stream may have another key.",
    ),
    (
        ErrorCode::Invalid,
        "The request is well-formed but invalid: a batch of no records or of more than 1000 or 1 MiB, an invalid command, contradicting parameters, a missing timestamp.",
        "Correct the request; the message says what is wrong.",
    ),
    (
        ErrorCode::NotImplemented,
        "A part of the API that is not there yet.",
        "Do without.",
    ),
    (
        ErrorCode::Other,
        "The outcome is unknown: an append, or what else was to be changed, may have happened or not. In a cluster, the node that was to answer was lost.",
        "Check the tail before trying again, or append conditionally.",
    ),
    (
        ErrorCode::PermissionDenied,
        "The access token does not permit it, whether what it names exists or not; or issued tokens are suspended after a restore. Or the basin is reserved: the server alone writes it, and clients may read it. Or the request comes from a web page, or was sent to a name that is none of the server's.",
        "Use a token whose scope has the operation and the names; the message says how a suspension is lifted. Commit to the state store instead (`esker state`). Name the page's origin in `allowed-origins`, or the name in `allowed-hosts`.",
    ),
    (
        ErrorCode::QuotaExhausted,
        "There are as many access tokens as there may be.",
        "Revoke some; expired ones are removed by themselves.",
    ),
    (
        ErrorCode::RateLimited,
        "The partition has too much pending, its disk takes no writes, or the bodies of requests, or answers that clients do not take, hold all memory that they may. Nothing was read or appended; a stream that is created when it is first used may have been. Or too many requests without a valid access token came from the client's address.",
        "Try again, after `retry-after`; if it lasts, look at `/health` and the disk's free space. Send a valid token.",
    ),
    (
        ErrorCode::RequestTimeout,
        "The body came more slowly than 16 KiB a second, for longer than `limits.header-timeout`. Nothing happened.",
        "Send it faster, or in smaller parts.",
    ),
    (
        ErrorCode::ResourceAlreadyExists,
        "There is a basin or stream of that name already.",
        "Use it, or ensure (PUT) instead of creating.",
    ),
    (
        ErrorCode::ServerDraining,
        "The server is stopping. Or, in a cluster, no node leads what the request is about: an election takes a second or two, or a majority of the nodes is not there. Or the server ended a session of which the client took nothing for `limits.stall-timeout`. What was acknowledged has happened, and nothing else.",
        "Connect again; a session continues after the last record or acknowledgement that arrived.",
    ),
    (
        ErrorCode::Storage,
        "The database could not be read.",
        "Look at the server's log; the message names the file.",
    ),
    (
        ErrorCode::StreamNotFound,
        "There is no stream of that name, or it was deleted.",
        "Create it, or correct the name.",
    ),
    (
        ErrorCode::TransactionConflict,
        "Settings were changed by somebody else at the same time, again and again. Nothing happened.",
        "Try again.",
    ),
];

/// Marks an answer that names a stream: the error that was answered.
#[derive(Clone)]
pub(super) struct NamesStream(pub(super) Error);

/// Why a request failed.
#[derive(Debug, thiserror::Error)]
pub enum ServiceError {
    /// A header.
    #[error(transparent)]
    Header(#[from] HeaderRejection),
    /// The path.
    #[error(transparent)]
    Path(#[from] PathRejection),
    /// The query.
    #[error(transparent)]
    Query(#[from] QueryRejection),
    /// A JSON body.
    #[error(transparent)]
    Json(#[from] JsonExtractionRejection),
    /// A protobuf body.
    #[error(transparent)]
    Proto(#[from] ProtoRejection),
    /// What came in over an append session.
    #[error(transparent)]
    AppendInput(#[from] AppendInputStreamError),
    /// The request is not valid.
    #[error(transparent)]
    Validation(#[from] ValidationError),
    /// An error of the node.
    #[error(transparent)]
    Node(#[from] Error),
    /// A part of the API that is not implemented.
    #[error("{0} are not implemented yet")]
    NotImplemented(&'static str),
    /// No such path.
    #[error("no such path: {0}")]
    NoRoute(String),
    /// No such method.
    #[error("the path does not take {0}")]
    NoMethod(String),
    /// A body in a content coding that is not supported.
    #[error("the body's `content-encoding` is not known: use gzip, zstd or none")]
    ContentEncoding,
    /// An append session in a content coding.
    #[error(
        "an append session takes no `content-encoding`: each of its frames names its own compression"
    )]
    CodedSession,
    /// A request that is not for this server, or has a form that is not accepted.
    #[error(transparent)]
    Refused(Refusal),
    /// A body that arrives too slowly.
    #[error("the request's body came too slowly: send it faster than 16 KiB a second, or in parts")]
    SlowBody,
    /// No memory for another body.
    #[error(
        "the bodies of other requests take all of `limits.request-bodies`: nothing happened, try again"
    )]
    BodiesFull,
    /// No place among the connections.
    #[error("all of `limits.connections` are taken: close others, or try again")]
    NoPlace,
    /// No node leads what the request is about. Nothing happened.
    #[error("{0}")]
    NoLeader(String),
    /// The node that was to answer was lost. It is not known whether the request happened.
    #[error("{0}")]
    Lost(String),
    /// No memory for the answer.
    #[error(transparent)]
    Exhausted(Exhausted),
    /// An operation on access tokens.
    #[error(transparent)]
    Token(TokenError),
    /// The sender may not do this.
    #[error(transparent)]
    Access(#[from] AccessError),
}

impl From<Infallible> for ServiceError {
    fn from(never: Infallible) -> Self {
        match never {}
    }
}

impl From<AppendRequestRejection> for ServiceError {
    fn from(rejection: AppendRequestRejection) -> Self {
        match rejection {
            AppendRequestRejection::HeaderRejection(e) => e.into(),
            AppendRequestRejection::JsonRejection(e) => e.into(),
            AppendRequestRejection::ProtoRejection(e) => e.into(),
            AppendRequestRejection::Validation(e) => e.into(),
        }
    }
}

impl ServiceError {
    /// The same for the holder of a token with this prefix before its names, if it has one.
    pub(super) fn without_prefix(self, prefix: Option<&str>) -> ServiceError {
        match (self, prefix) {
            (ServiceError::Node(error), Some(prefix)) => {
                ServiceError::Node(error.without_prefix(prefix))
            }
            (other, _) => other,
        }
    }

    /// As the API answers it.
    pub fn to_response(&self) -> ErrorResponse {
        let code = match self {
            ServiceError::Header(_) => ErrorCode::BadHeader,
            ServiceError::Path(_) | ServiceError::NoRoute(_) => ErrorCode::BadPath,
            ServiceError::Query(_) => ErrorCode::BadQuery,
            ServiceError::Json(_) => ErrorCode::BadJson,
            ServiceError::Proto(_) => ErrorCode::BadProto,
            ServiceError::AppendInput(AppendInputStreamError::FrameDecode(_)) => {
                ErrorCode::BadFrame
            }
            ServiceError::AppendInput(AppendInputStreamError::Validation(_))
            | ServiceError::Validation(_) => ErrorCode::Invalid,
            ServiceError::NotImplemented(_) => ErrorCode::NotImplemented,
            ServiceError::NoMethod(_) => {
                return standard(
                    http::StatusCode::METHOD_NOT_ALLOWED,
                    ErrorCode::Invalid,
                    self.to_string(),
                );
            }
            ServiceError::ContentEncoding | ServiceError::CodedSession => {
                return standard(
                    http::StatusCode::UNSUPPORTED_MEDIA_TYPE,
                    ErrorCode::BadHeader,
                    self.to_string(),
                );
            }
            ServiceError::Refused(refusal) => {
                let code = match refusal {
                    Refusal::Host(_) | Refusal::Origin(_) => ErrorCode::PermissionDenied,
                    _ => ErrorCode::BadHeader,
                };
                return standard(refusal.status(), code, self.to_string());
            }
            ServiceError::SlowBody => ErrorCode::RequestTimeout,
            ServiceError::Access(error) => return error.to_response(),
            // As at a stop: a session of the official client connects again, and continues.
            ServiceError::Exhausted(Exhausted::Stalled) => ErrorCode::ServerDraining,
            ServiceError::NoLeader(_) => ErrorCode::ServerDraining,
            ServiceError::Lost(_) => ErrorCode::Other,
            ServiceError::BodiesFull | ServiceError::NoPlace | ServiceError::Exhausted(_) => {
                ErrorCode::RateLimited
            }
            ServiceError::Token(error) => return of_token(error),
            ServiceError::Node(error) => match error {
                Error::FencingTokenMismatch(actual) => {
                    return ErrorResponse::AppendConditionFailed(
                        AppendConditionFailed::FencingTokenMismatch(actual.clone()),
                    );
                }
                Error::SeqNumMismatch(next) => {
                    return ErrorResponse::AppendConditionFailed(
                        AppendConditionFailed::SeqNumMismatch(*next),
                    );
                }
                Error::Unwritten(tail) => {
                    return ErrorResponse::Unwritten(TailResponse {
                        tail: (*tail).into(),
                    });
                }
                Error::BasinNotFound(_) => ErrorCode::BasinNotFound,
                Error::BasinDeletionPending(_) => ErrorCode::BasinDeletionPending,
                Error::BasinExists(_) | Error::StreamExists { .. } => {
                    ErrorCode::ResourceAlreadyExists
                }
                Error::StreamNotFound { .. } => ErrorCode::StreamNotFound,
                Error::Invalid(_)
                | Error::PartitionNotFound { .. }
                | Error::EarlierLineage { .. } => ErrorCode::Invalid,
                Error::EncryptionKey { .. } => ErrorCode::BadHeader,
                Error::Decryption { .. } => ErrorCode::DecryptionFailed,
                Error::Conflict => ErrorCode::TransactionConflict,
                Error::ReadOnly(_) => ErrorCode::PermissionDenied,
                Error::TryLater(_) => ErrorCode::RateLimited,
                Error::Stopping | Error::NotLeader(_) => ErrorCode::ServerDraining,
                Error::Unknown(_) => ErrorCode::Other,
                Error::Storage(_) | Error::Repository(_) => ErrorCode::Storage,
            },
        };
        let message = match self {
            ServiceError::Path(e) => e.body_text(),
            ServiceError::Query(e) => e.body_text(),
            other => other.to_string(),
        };
        standard(code.status(), code, message)
    }
}

impl From<TokenError> for ServiceError {
    fn from(error: TokenError) -> Self {
        match error {
            TokenError::Failed(error) => ServiceError::Node(error),
            // As if it had been revoked a moment before.
            TokenError::IssuerInvalid(_) => ServiceError::Access(AccessError::Unauthenticated),
            other => ServiceError::Token(other),
        }
    }
}

fn of_token(error: &TokenError) -> ErrorResponse {
    let code = match error {
        TokenError::Exists(_) => ErrorCode::ResourceAlreadyExists,
        TokenError::NotFound(_) => ErrorCode::AccessTokenNotFound,
        TokenError::TooMany(_) => ErrorCode::QuotaExhausted,
        TokenError::Invalid(_) => ErrorCode::Invalid,
        TokenError::Unavailable(_) => ErrorCode::Unavailable,
        TokenError::IssuerInvalid(_) => ErrorCode::Authn,
        // It is one of the node's, and was made into that.
        TokenError::Failed(_) => ErrorCode::Other,
    };
    standard(code.status(), code, error.to_string())
}

fn standard(status: http::StatusCode, code: ErrorCode, message: String) -> ErrorResponse {
    ErrorResponse::Standard(StandardError {
        status,
        info: ErrorInfo {
            code: code.into(),
            message,
        },
    })
}

impl ServiceError {
    /// Whether nothing happened because this node does not lead the partition: see [`NotProposed`].
    pub(crate) fn is_not_proposed(&self) -> bool {
        matches!(self, ServiceError::Node(Error::NotLeader(_)))
    }
}

impl IntoResponse for ServiceError {
    fn into_response(self) -> Response {
        if let ServiceError::Access(error) = self {
            auth::error::count_refusal(&error);
            return error.into_response();
        }
        let response = self.to_response();
        let is_not_proposed = self.is_not_proposed();
        if let ErrorResponse::Standard(error) = &response
            && error.status.is_server_error()
            // The request goes to the new leader, if there is one in time.
            && !is_not_proposed
            // A request for what is not implemented needs no action by an operator.
            && error.status != http::StatusCode::NOT_IMPLEMENTED
        {
            tracing::warn!(code = error.info.code, message = %error.info.message, "request failed");
        }
        let mut response = response.into_response();
        if let ServiceError::Node(error) = &self
            && error.names_stream()
        {
            response.extensions_mut().insert(NamesStream(error.clone()));
        }
        if is_not_proposed {
            response.extensions_mut().insert(NotProposed);
        }
        if [
            StatusCode::TOO_MANY_REQUESTS,
            StatusCode::SERVICE_UNAVAILABLE,
        ]
        .contains(&response.status())
        {
            // The first is HTTP's, in seconds. The official clients read the second.
            let headers = response.headers_mut();
            headers.insert(header::RETRY_AFTER, RETRY_AFTER.0);
            headers.insert("retry-after-ms", RETRY_AFTER.1);
        }
        response
    }
}

impl From<ServiceError> for s2s::TerminalMessage {
    /// The error at the end of a session, which is counted.
    fn from(error: ServiceError) -> Self {
        if let ServiceError::Access(refusal) = &error {
            auth::error::count_refusal(refusal);
        }
        let (status, body) = error.to_response().to_parts();
        session_ended(status);
        s2s::TerminalMessage {
            status: status.as_u16(),
            body,
        }
    }
}
