//! Access tokens: issue, find, list, revoke, confirm.
//!
//! Only the hash of a token's text comes this far. All tokens are in memory, so that each request can be
//! checked, and a revocation is in force as soon as it is applied.

use std::sync::Arc;

use esker_partition::command::{
    ConfirmTokens, IssueToken, Kind, Outcome, RevokeToken, TokenRefusal,
};
use esker_partition::token::{NameSet, StoredToken, TokenHash, TokenScope};
use s2_common::access::AccessTokenId;

use crate::clock::now_ms;
use crate::core::Inner;
use crate::error::{Error, unexpected};

/// Most tokens at a time. All are in memory, in some 500 bytes each and at most 4 KiB
/// ([`MAX_SCOPE_NAME_BYTES`]): 50 MB of usual ones.
pub const MAX_ACCESS_TOKENS: u64 = 100_000;
/// Longest name or prefix in a scope, in bytes: as long as the name of a stream.
pub const MAX_SCOPE_NAME_BYTES: usize = 512;

/// A token to be issued.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its id.
    pub id: AccessTokenId,
    /// Hash of its text.
    pub hash: TokenHash,
    /// From when on it is not valid, in milliseconds since the epoch; `None` for never.
    pub expires_at_ms: Option<u64>,
    /// Whether the prefix of its streams is put before the names that its holder uses.
    pub auto_prefix_streams: bool,
    /// What its holder may do.
    pub scope: TokenScope,
}

/// Why an operation on tokens failed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum TokenError {
    /// A token has this id.
    #[error("access token `{0}` already exists: revoke it first, or choose another id")]
    Exists(String),
    /// No token has this id.
    #[error("access token `{0}` not found")]
    NotFound(String),
    /// There are as many tokens as there may be.
    #[error("there are {0} access tokens, and there can be no more: revoke some")]
    TooMany(u64),
    /// The scope is not valid.
    #[error("{0}")]
    Invalid(String),
    /// It is not known now whether a token is valid.
    #[error("access tokens cannot be checked: {0}")]
    Unavailable(String),
    /// The command was not carried out, or its outcome is not known.
    #[error(transparent)]
    Failed(#[from] Error),
}

/// The access tokens of a node. Cheap to clone.
#[derive(Clone)]
pub struct Tokens {
    inner: Arc<Inner>,
}

impl Tokens {
    pub(crate) fn new(inner: Arc<Inner>) -> Tokens {
        Tokens { inner }
    }

    /// Stores a token; it is durable and valid when this returns.
    ///
    /// # Errors
    ///
    /// [`TokenError::Exists`], [`TokenError::TooMany`], [`TokenError::Invalid`], [`TokenError::Failed`].
    pub async fn issue(&self, token: NewToken) -> Result<(), TokenError> {
        check(&token.scope).map_err(TokenError::Invalid)?;
        let id = token.id.to_string();
        let command = IssueToken {
            id: id.clone(),
            hash: token.hash.0.to_vec(),
            expires_at_ms: token.expires_at_ms,
            auto_prefix_streams: token.auto_prefix_streams,
            scope: token.scope,
            at_ms: now_ms(),
            forks: self.inner.catalog_reader.forks(),
            max_tokens: MAX_ACCESS_TOKENS,
        };
        match self.execute(Kind::IssueToken(command)).await? {
            Outcome::TokenIssued(Ok(())) => Ok(()),
            Outcome::TokenIssued(Err(TokenRefusal::Exists)) => Err(TokenError::Exists(id)),
            Outcome::TokenIssued(Err(TokenRefusal::TooMany)) => {
                Err(TokenError::TooMany(MAX_ACCESS_TOKENS))
            }
            other => Err(unexpected(&other).into()),
        }
    }

    /// Removes a token; this is durable and in force when it returns.
    ///
    /// # Errors
    ///
    /// [`TokenError::NotFound`], [`TokenError::Failed`].
    pub async fn revoke(&self, id: &AccessTokenId) -> Result<(), TokenError> {
        let command = RevokeToken { id: id.to_string() };
        match self.execute(Kind::RevokeToken(command)).await? {
            Outcome::TokenRevoked(true) => Ok(()),
            Outcome::TokenRevoked(false) => Err(TokenError::NotFound(id.to_string())),
            other => Err(unexpected(&other).into()),
        }
    }

    /// Tokens in the order of their ids, and whether there are more. Expired ones are among them until
    /// they are removed.
    pub fn list(
        &self,
        prefix: &str,
        start_after: &str,
        limit: usize,
    ) -> (Vec<Arc<StoredToken>>, bool) {
        let reader = &self.inner.catalog_reader;
        let mut tokens = reader.tokens(prefix, start_after, limit.saturating_add(1));
        let has_more = tokens.len() > limit;
        tokens.truncate(limit);
        (tokens, has_more)
    }

    /// The token with this hash. It is valid unless it is suspended or has expired.
    ///
    /// # Errors
    ///
    /// [`TokenError::Unavailable`] while the catalog has halted: a revocation may be among what is not
    /// applied.
    pub fn find(&self, hash: &TokenHash) -> Result<Option<Arc<StoredToken>>, TokenError> {
        if let Some(halted) = self.inner.catalog.halted() {
            let why = format!("the catalog has halted: {}", halted.why);
            return Err(TokenError::Unavailable(why));
        }
        Ok(self.inner.catalog_reader.token(hash))
    }

    /// Whether tokens are suspended because the catalog was restored with a loss.
    pub fn suspended(&self) -> bool {
        self.inner.catalog_reader.count_tokens().1 > 0
    }

    /// Makes suspended tokens valid again; returns their number. It is durable when this returns. The next
    /// restore with a loss suspends them again.
    ///
    /// # Errors
    ///
    /// [`TokenError::Failed`].
    pub async fn confirm(&self) -> Result<u64, TokenError> {
        let forks = self.inner.catalog_reader.forks();
        let command = Kind::ConfirmTokens(ConfirmTokens { forks });
        match self.execute(command).await? {
            Outcome::TokensConfirmed(count) => Ok(count),
            other => Err(unexpected(&other).into()),
        }
    }

    async fn execute(&self, command: Kind) -> Result<Outcome, Error> {
        self.inner.execute(&self.inner.catalog, command).await
    }
}

fn check(scope: &TokenScope) -> Result<(), String> {
    let names = [
        ("basins", &scope.basins),
        ("streams", &scope.streams),
        ("access_tokens", &scope.access_tokens),
        ("state.namespaces", &scope.namespaces),
        ("state.agents", &scope.agents),
    ];
    for (what, set) in names {
        let bytes = NameSet::text(set).map_or(0, str::len);
        if bytes > MAX_SCOPE_NAME_BYTES {
            return Err(format!(
                "scope.{what} has {bytes} bytes; at most {MAX_SCOPE_NAME_BYTES} are allowed"
            ));
        }
    }
    Ok(())
}
