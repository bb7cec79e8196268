//! `/v1/access-tokens`.
//!
//! A token is issued by the holder of another one, and never permits more than that: not more operations or
//! names, and not for longer. Beside the scopes of the S2 API, a scope may have `state` and `admin`
//! (`api/token_scope.rs`).

use axum::extract::{FromRequest, FromRequestParts, Path, Query, State};
use esker_node::{Expiry, Issuer, NameSet, Names, NewToken, Node, StoredToken};
use http::StatusCode;
use http::request::Parts;
use s2_api::data::Json;
use s2_api::v1::access::{IssueAccessTokenResponse, ListAccessTokensRequest};
use s2_common::ValidationError;
use s2_common::access::{AccessTokenId, ListAccessTokensRequest as ListTokens, Operation};
use s2_common::stream::StreamNamePrefix;
use serde::{Deserialize, Serialize};
use time::OffsetDateTime;

use super::token_scope::WireScope;
use super::{App, ServiceError};
use crate::auth::scope::{self, Visible};
use crate::auth::{Access, AccessError, Principal, authority, token};
use crate::client::OfClient;
use crate::timestamp::{timestamp, timestamp_of};

/// A token to be issued, as the API has it.
#[derive(Debug, Deserialize)]
pub struct IssueRequest {
    id: AccessTokenId,
    #[serde(default, with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    #[serde(default)]
    auto_prefix_streams: Option<bool>,
    scope: WireScope,
}

/// A token without its text, as the API has it.
#[derive(Debug, Serialize)]
pub struct TokenInfo {
    id: String,
    #[serde(with = "time::serde::rfc3339::option")]
    expires_at: Option<OffsetDateTime>,
    auto_prefix_streams: bool,
    scope: WireScope,
    /// Whether it is not valid until the holder of the root token confirms it. No part of the S2 API.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    suspended: bool,
}

/// A page of tokens.
#[derive(Debug, Serialize)]
pub struct ListResponse {
    access_tokens: Vec<TokenInfo>,
    has_more: bool,
}

/// What the sender may do, where there are access tokens at all.
pub(crate) struct TokenAccess(Access);

impl<S: Sync> FromRequestParts<S> for TokenAccess {
    type Rejection = AccessError;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<TokenAccess, AccessError> {
        let access = Access::of(&parts.extensions)?;
        access.issues_tokens()?;
        Ok(TokenAccess(access))
    }
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct ListArgs {
    #[from_request(via(Query))]
    request: ListAccessTokensRequest,
}

pub(crate) async fn list(
    State(app): State<App>,
    TokenAccess(access): TokenAccess,
    ListArgs { request }: ListArgs,
) -> Result<Json<ListResponse>, ServiceError> {
    let request: ListTokens = request.try_into()?;
    let listing = access.tokens(&request.prefix, &request.start_after)?;
    let tokens = app.node.open(&listing.granted).tokens();
    let (found, has_more) = match &listing.visible {
        Visible::Nothing => (Vec::new(), false),
        Visible::Prefixed {
            prefix,
            start_after,
        } => tokens.list(prefix, start_after, request.limit.as_usize()),
        // The first one with a prefix is the one that has that id, if it is there.
        Visible::One(id) => {
            let (mut found, _) = tokens.list(id, "", 1);
            found.retain(|it| it.id == *id);
            (found, false)
        }
    };
    let access_tokens = found.iter().map(|it| info(it)).collect::<Result<_, _>>()?;
    Ok(Json(ListResponse {
        access_tokens,
        has_more,
    }))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct IssueArgs {
    #[from_request(via(Json))]
    request: IssueRequest,
}

pub(crate) async fn issue(
    State(app): State<App>,
    OfClient(client): OfClient,
    TokenAccess(access): TokenAccess,
    IssueArgs { request }: IssueArgs,
) -> Result<(StatusCode, Json<IssueAccessTokenResponse>), ServiceError> {
    let granted = access.token(Operation::IssueAccessToken, &request.id)?;
    let text = token::generate();
    let new = new_token(&access, request, &text)?;
    let id = new.id.to_string();
    let node = app.node.open(&granted);
    let issue = |node: Node| async move {
        access.lease().check()?;
        node.tokens().issue(new).await?;
        tracing::info!(?id, by = ?access.principal().name(), "Issued an access token");
        Ok::<_, ServiceError>(())
    };
    node.change(client, issue).await?;
    let access_token = text.expose().to_owned();
    Ok((
        StatusCode::CREATED,
        Json(IssueAccessTokenResponse { access_token }),
    ))
}

#[derive(FromRequest)]
#[from_request(rejection(ServiceError))]
pub struct RevokeArgs {
    #[from_request(via(Path))]
    id: AccessTokenId,
}

pub(crate) async fn revoke(
    State(app): State<App>,
    OfClient(client): OfClient,
    TokenAccess(access): TokenAccess,
    RevokeArgs { id }: RevokeArgs,
) -> Result<StatusCode, ServiceError> {
    let granted = access.token(Operation::RevokeAccessToken, &id)?;
    let node = app.node.open(&granted);
    let revoke = |node: Node| async move {
        access.lease().check()?;
        node.tokens().revoke(&id).await?;
        tracing::info!(id = ?id.to_string(), by = ?access.principal().name(), "Revoked an access token");
        Ok::<_, ServiceError>(())
    };
    node.change(client, revoke).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// The token that a request asks for, which permits no more than its issuer may do.
fn new_token(
    access: &Access,
    request: IssueRequest,
    text: &crate::config::Secret,
) -> Result<NewToken, ServiceError> {
    let IssueRequest {
        id,
        expires_at,
        auto_prefix_streams,
        scope,
    } = request;
    let mut scope = scope.into_scope()?;
    let mut auto_prefix_streams = auto_prefix_streams.unwrap_or_default();
    if auto_prefix_streams && !matches!(scope.streams.names, Some(Names::Prefix(_))) {
        let refusal = "Auto prefixing is only allowed for streams with prefix matching";
        return Err(ValidationError::from(refusal).into());
    }
    if scope::is_empty(&scope) {
        return Err(ValidationError::from("Access token permissions cannot be empty").into());
    }
    if let Some(prefix) = access.auto_prefix() {
        // Names are those that the issuer uses, and so they are for the holder.
        auto_prefix_streams = match &scope.streams.names {
            Some(Names::Prefix(own)) => {
                let whole = format!("{prefix}{own}");
                let _: StreamNamePrefix = whole.parse()?;
                scope.streams = NameSet::prefix(whole);
                true
            }
            // An exact name cannot have a prefix stripped: the holder uses the whole name.
            Some(Names::Exact(own)) => {
                let whole = format!("{prefix}{own}");
                let _: s2_common::stream::StreamName = whole.parse()?;
                scope.streams = NameSet::exact(whole);
                false
            }
            None => false,
        };
    }
    let mut expires_at = expires_at.map(expiry).transpose()?;
    if expires_at.is_some_and(|at| at.is_over(authority::now_ms())) {
        return Err(ValidationError::from("`expires_at` is in the past").into());
    }
    let mut issuer = Issuer::Root;
    if let Principal::Token(of) = access.principal() {
        issuer = Issuer::Token(of.hash);
        if let Some(what) = scope::exceeding(&of.scope, &scope) {
            return Err(AccessError::Forbidden(format!(
                "issuing one that permits more than it does itself: `scope.{what}` exceeds its own"
            ))
            .into());
        }
        if let Some(last) = of.expires_at {
            if expires_at.is_some_and(|at| at > last) {
                return Err(AccessError::Forbidden(
                    "issuing one that expires later than it does itself".into(),
                )
                .into());
            }
            expires_at = expires_at.or(Some(last));
        }
    }
    Ok(NewToken {
        id,
        hash: token::hash(text.expose()),
        expires_at,
        auto_prefix_streams,
        scope,
        issuer,
    })
}

fn expiry(at: OffsetDateTime) -> Result<Expiry, ValidationError> {
    let nanos = at.unix_timestamp_nanos();
    let ms = u64::try_from(nanos.div_euclid(1_000_000))
        .map_err(|_| ValidationError::from("`expires_at` is in the past"))?;
    // With its time zone it can be after the last time that can be answered: no list with it would be.
    timestamp(ms)?;
    Ok(Expiry::new(ms, nanos.rem_euclid(1_000_000) as u32))
}

fn info(token: &StoredToken) -> Result<TokenInfo, ServiceError> {
    Ok(TokenInfo {
        id: token.id.clone(),
        expires_at: token.expires_at.map(timestamp_of).transpose()?,
        auto_prefix_streams: token.auto_prefix_streams,
        scope: WireScope::of(&token.scope)?,
        suspended: token.suspended,
    })
}

#[cfg(test)]
mod tests {
    use time::format_description::well_known::Rfc3339;

    use super::*;

    #[test]
    fn an_expiry_that_no_list_could_show_is_refused() {
        let at = |text: &str| expiry(OffsetDateTime::parse(text, &Rfc3339).unwrap());
        assert!(at("9999-12-31T23:59:59-23:59").is_err());
        assert!(at("1969-12-31T23:59:59Z").is_err());
        assert!(at("1969-12-31T23:59:59.999999999Z").is_err());
        let last = at("9999-12-31T23:59:59.999999999Z").unwrap();
        assert_eq!(timestamp_of(last).unwrap().year(), 9999);
    }

    #[test]
    fn an_expiry_is_answered_to_the_nanosecond_as_it_was_requested() {
        for text in [
            "2027-01-01T00:00:00.123456789Z",
            "2027-01-01T00:00:00.000000001Z",
            "2027-01-01T00:00:00Z",
        ] {
            let at = OffsetDateTime::parse(text, &Rfc3339).unwrap();
            assert_eq!(timestamp_of(expiry(at).unwrap()).unwrap(), at);
        }
    }
}
