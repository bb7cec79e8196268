//! The body of an append, or of a session of appends.
//!
//! A unary append keeps its request, head and body, until it is answered. That costs nothing: the head is moved, and
//! the body is what the records were read from. If another leader has to make the append, the answer gives the request
//! back ([`GivenBack`]), and it is sent there.

use axum::RequestExt as _;
use axum::body::{Body, Bytes};
use axum::extract::{FromRequest, Request};
use axum::response::{IntoResponse as _, Response};
use futures::stream;
use http::HeaderMap;
use http_body_util::{BodyExt as _, Collected};
use prost::Message as _;
use s2_api::data::Format;
use s2_api::mime::{self, JsonOrProto};
use s2_api::v1::config::StreamConfigHeader;
use s2_api::v1::stream::extract::AppendRequestRejection;
use s2_api::v1::stream::s2s::CompressionAlgorithm;
use s2_api::v1::stream::{self as wire, AppendRequest, proto};
use s2_common::ValidationError;
use s2_common::config::OptionalStreamConfig;
use s2_common::encryption::EncryptionKey;
use s2_common::http::ParseableHeader;
use s2_common::http::extract::{HeaderRejection, parse_header};
use s2_common::stream::AppendInput;

use super::ServiceError;
use crate::forwarded::GivenBack;
use crate::request_guard::is_session;

/// What a request to append has.
#[expect(
    clippy::large_enum_variant,
    reason = "it is moved once, and most often it is the large one"
)]
pub enum AppendBody {
    /// One append.
    One(UnaryAppend, WholeRequest),
    /// A session.
    Session {
        encryption_key: Option<EncryptionKey>,
        create_stream_config_patch: OptionalStreamConfig,
        response_compression: CompressionAlgorithm,
        body: Body,
    },
}

/// One append.
pub struct UnaryAppend {
    pub encryption_key: Option<EncryptionKey>,
    pub create_stream_config_patch: OptionalStreamConfig,
    pub input: AppendInput,
    pub response_mime: JsonOrProto,
}

/// The request of an append, decompressed. `None` if it is not kept.
pub struct WholeRequest(Option<http::Request<Bytes>>);

impl WholeRequest {
    /// Drops the request unless somebody can use it.
    pub(super) fn kept_if(self, is_of_use: bool) -> WholeRequest {
        WholeRequest(self.0.filter(|_| is_of_use))
    }

    /// The answer with an error. If it is certain that nothing happened, because this node does not lead, the request is
    /// given back with it.
    pub(crate) fn answer(self, error: ServiceError) -> Response {
        let gives_back = error.is_not_proposed();
        let mut answer = error.into_response();
        if let Some(request) = self.0.filter(|_| gives_back) {
            answer.extensions_mut().insert(GivenBack(request));
        }
        answer
    }
}

impl<S: Send + Sync> FromRequest<S> for AppendBody {
    type Rejection = AppendRequestRejection;

    async fn from_request(request: Request, state: &S) -> Result<AppendBody, Self::Rejection> {
        if is_session(request.headers()) {
            return session(request, state).await;
        }
        let (head, body) = request.with_limited_body().into_parts();
        let body = match body.collect().await.map(Collected::to_bytes) {
            Ok(body) => body,
            Err(error) => {
                let failed = stream::iter([Err::<Bytes, _>(innermost(error))]);
                let failed = Request::from_parts(head, Body::from_stream(failed));
                return by_s2_api(failed, state).await;
            }
        };
        match UnaryAppend::read(&head.headers, &body) {
            Some(append) => {
                let whole = http::Request::from_parts(head, body);
                Ok(AppendBody::One(append, WholeRequest(Some(whole))))
            }
            None => by_s2_api(Request::from_parts(head, Body::from(body)), state).await,
        }
    }
}

impl UnaryAppend {
    /// Reads what the `s2-api` crate reads of the same request. `None` if that may refuse it.
    fn read(headers: &HeaderMap, body: &Bytes) -> Option<UnaryAppend> {
        let kind = mime::content_type(headers)?;
        let input = match JsonOrProto::from_mime(&kind)? {
            JsonOrProto::Proto => {
                let input = proto::AppendInput::decode(body.clone()).ok()?;
                input.try_into().ok()?
            }
            JsonOrProto::Json => {
                let format = header::<Format>(headers).ok()?.unwrap_or_default();
                let input: wire::AppendInput = serde_json::from_slice(body).ok()?;
                input.decode(format).ok()?
            }
        };
        let accepted = mime::accept(headers);
        let accepted = accepted.as_ref().and_then(JsonOrProto::from_mime);
        let settings = header::<StreamConfigHeader>(headers).ok()?;
        Some(UnaryAppend {
            encryption_key: header(headers).ok()?,
            create_stream_config_patch: settings.map(|settings| settings.0).unwrap_or_default(),
            input,
            response_mime: accepted.unwrap_or(JsonOrProto::Json),
        })
    }
}

/// A header, if it is there.
fn header<T: ParseableHeader>(headers: &HeaderMap) -> Result<Option<T>, HeaderRejection>
where
    T::Err: std::fmt::Display,
{
    match parse_header(headers) {
        Err(HeaderRejection::MissingHeader(_)) => Ok(None),
        parsed => parsed.map(Some),
    }
}

/// A unary append as the `s2-api` crate reads it, with its errors.
async fn by_s2_api<S: Send + Sync>(
    request: Request,
    state: &S,
) -> Result<AppendBody, AppendRequestRejection> {
    match AppendRequest::from_request(request, state).await? {
        AppendRequest::Unary {
            encryption_key,
            create_stream_config_patch,
            input,
            response_mime,
        } => {
            let append = UnaryAppend {
                encryption_key,
                create_stream_config_patch,
                input,
                response_mime,
            };
            Ok(AppendBody::One(append, WholeRequest(None)))
        }
        AppendRequest::S2s { .. } => Err(ValidationError::from(
            "an append session has the type `s2s/proto`",
        ))?,
    }
}

/// A session. The `s2-api` crate reads the head; the frames are read where they are counted.
async fn session<S: Send + Sync>(
    request: Request,
    state: &S,
) -> Result<AppendBody, AppendRequestRejection> {
    let (head, body) = request.into_parts();
    let head = Request::from_parts(head, Body::empty());
    match AppendRequest::from_request(head, state).await? {
        AppendRequest::S2s {
            encryption_key,
            create_stream_config_patch,
            response_compression,
            ..
        } => Ok(AppendBody::Session {
            encryption_key,
            create_stream_config_patch,
            response_compression,
            body,
        }),
        AppendRequest::Unary { .. } => Err(ValidationError::from(
            "the content type is not that of a session",
        ))?,
    }
}

/// The error of a body without what layers have put around it: `axum` finds the kind of an error below two of them.
fn innermost(error: axum::Error) -> axum::BoxError {
    let mut inner = error.into_inner();
    loop {
        match inner.downcast::<axum::Error>() {
            Ok(error) => inner = error.into_inner(),
            Err(innermost) => return innermost,
        }
    }
}
