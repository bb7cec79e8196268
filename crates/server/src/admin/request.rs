//! Extractors of permissions, paths, headers, queries and bodies, whose rejections are errors of this API.

use axum::body::Bytes;
use axum::extract::{FromRequest, FromRequestParts, Path, Query, Request};
use esker_node::Node;
use http::StatusCode;
use http::request::Parts;
use s2_common::http::ParseableHeader;
use s2_common::http::extract::parse_header;
use serde::de::DeserializeOwned;

use super::{Admin, AdminError};
use crate::auth::Access;
use crate::auth::operation::Effect;

/// Entries of a page, unless the request has a limit.
const DEFAULT_LIMIT: usize = 100;
/// Most entries of a page.
const MAX_LIMIT: usize = 1000;

/// How many entries a page is to have.
pub(super) fn page_limit(asked: Option<usize>) -> Result<usize, AdminError> {
    match asked.unwrap_or(DEFAULT_LIMIT) {
        limit @ 1..=MAX_LIMIT => Ok(limit),
        other => Err(AdminError::invalid(format!(
            "limit {other} is not between 1 and {MAX_LIMIT}"
        ))),
    }
}

/// The node, for a sender who may read by this API.
pub(super) struct ReadNode(pub Node);

impl FromRequestParts<Admin> for ReadNode {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, AdminError> {
        open(parts, admin, Effect::Read).map(ReadNode)
    }
}

/// The node, for a sender who may change something by this API.
pub(super) struct WriteNode(pub Node);

impl FromRequestParts<Admin> for WriteNode {
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, admin: &Admin) -> Result<Self, AdminError> {
        open(parts, admin, Effect::Write).map(WriteNode)
    }
}

fn open(parts: &Parts, admin: &Admin, effect: Effect) -> Result<Node, AdminError> {
    let granted = Access::of(&parts.extensions)?.admin(effect)?;
    Ok(admin.node.open(&granted).clone())
}

/// The parameters of the path.
pub(super) struct InPath<T>(pub T);

impl<T, S> FromRequestParts<S> for InPath<T>
where
    T: DeserializeOwned + Send,
    S: Send + Sync,
{
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AdminError> {
        let Path(said) = Path::from_request_parts(parts, state).await?;
        Ok(InPath(said))
    }
}

/// A header, whose name goes with the type.
pub(super) struct InHeader<T>(pub T);

impl<T, S> FromRequestParts<S> for InHeader<T>
where
    T: ParseableHeader,
    T::Err: std::fmt::Display,
    S: Send + Sync,
{
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, AdminError> {
        Ok(InHeader(parse_header(&parts.headers)?))
    }
}

/// The parameters of the query.
pub(super) struct InQuery<T>(pub T);

impl<T, S> FromRequestParts<S> for InQuery<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = AdminError;

    async fn from_request_parts(parts: &mut Parts, state: &S) -> Result<Self, AdminError> {
        let Query(said) = Query::from_request_parts(parts, state).await?;
        Ok(InQuery(said))
    }
}

/// The JSON body, whatever its content type. Without a body, every field has its default.
pub(super) struct Body<T>(pub T);

impl<T, S> FromRequest<S> for Body<T>
where
    T: DeserializeOwned,
    S: Send + Sync,
{
    type Rejection = AdminError;

    async fn from_request(request: Request, state: &S) -> Result<Self, AdminError> {
        let bytes = Bytes::from_request(request, state).await?;
        let text: &[u8] = if bytes.is_empty() { b"{}" } else { &bytes };
        let said = serde_json::from_slice(text)
            .map_err(|e| AdminError::new(StatusCode::BAD_REQUEST, "bad_json", e))?;
        Ok(Body(said))
    }
}
