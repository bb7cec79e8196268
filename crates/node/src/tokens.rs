//! Access tokens: issue, find, list, revoke, confirm.
//!
//! Only the hash of a token's text comes this far. All tokens are in memory, so that each request can be
//! checked, and a revocation is in force as soon as it is applied.

use std::sync::Arc;

use esker_partition::command::{
    ConfirmTokens, IssueToken, Kind, Outcome, RevokeToken, TokenRefusal,
};
use esker_partition::token::{Expiry, NameSet, StoredToken, TokenHash, TokenScope};
use s2_common::access::AccessTokenId;

use crate::clock::now_ms;
use crate::core::Inner;
use crate::error::{Error, unexpected};

/// Most tokens at a time. All are in memory, in some 500 bytes each and at most 4 KiB
/// ([`MAX_SCOPE_NAME_BYTES`]): 50 MB of usual ones.
pub const MAX_ACCESS_TOKENS: u64 = 100_000;
/// Of these, how many only the holder of the root token can issue: other issuers together cannot keep it from
/// issuing one.
pub const ROOT_ACCESS_TOKENS: u64 = 1000;
/// Longest name or prefix in a scope, in bytes: as long as the name of a stream.
pub const MAX_SCOPE_NAME_BYTES: usize = 512;

/// A token to be issued.
#[derive(Clone, Debug)]
pub struct NewToken {
    /// Its id.
    pub id: AccessTokenId,
    /// Hash of its text.
    pub hash: TokenHash,
    /// From when on it is not valid; `None` for never.
    pub expires_at: Option<Expiry>,
    /// Whether the prefix of its streams is put before the names that its holder uses.
    pub auto_prefix_streams: bool,
    /// What its holder may do.
    pub scope: TokenScope,
    /// Who issues it.
    pub issuer: Issuer,
}

/// Who issues a token.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Issuer {
    /// The holder of the root token ([`ROOT_ACCESS_TOKENS`]).
    Root,
    /// The holder of the token with this hash, which has to be valid when the new one is stored.
    Token(TokenHash),
}

impl Issuer {
    fn max_tokens(self) -> u64 {
        match self {
            Issuer::Root => MAX_ACCESS_TOKENS,
            Issuer::Token(_) => MAX_ACCESS_TOKENS - ROOT_ACCESS_TOKENS,
        }
    }

    fn hash(self) -> Option<Vec<u8>> {
        match self {
            Issuer::Root => None,
            Issuer::Token(hash) => Some(hash.0.to_vec()),
        }
    }
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
    /// The token with which it was to be issued was revoked, or has expired, meanwhile.
    #[error("the access token with which `{0}` was to be issued is not valid any more")]
    IssuerInvalid(String),
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
    /// [`TokenError::Exists`], [`TokenError::TooMany`], [`TokenError::IssuerInvalid`],
    /// [`TokenError::Invalid`], [`TokenError::Failed`].
    pub async fn issue(&self, token: NewToken) -> Result<(), TokenError> {
        check(&token.scope).map_err(TokenError::Invalid)?;
        let id = token.id.to_string();
        let max_tokens = token.issuer.max_tokens();
        let command = IssueToken {
            id: id.clone(),
            hash: token.hash.0.to_vec(),
            expires_at_ms: token.expires_at.map(Expiry::ms),
            expires_at_nanos: token.expires_at.map_or(0, Expiry::nanos),
            auto_prefix_streams: token.auto_prefix_streams,
            scope: token.scope,
            at_ms: now_ms(),
            forks: self.inner.catalog_reader.forks(),
            max_tokens,
            issuer: token.issuer.hash(),
        };
        match self.execute(Kind::IssueToken(command)).await? {
            Outcome::TokenIssued(Ok(())) => Ok(()),
            Outcome::TokenIssued(Err(TokenRefusal::Exists)) => Err(TokenError::Exists(id)),
            Outcome::TokenIssued(Err(TokenRefusal::TooMany)) => {
                Err(TokenError::TooMany(max_tokens))
            }
            Outcome::TokenIssued(Err(TokenRefusal::IssuerInvalid)) => {
                Err(TokenError::IssuerInvalid(id))
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

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::time::Duration;

    use super::*;
    use crate::node::Node;
    use crate::options::NodeOptions;
    use crate::snapshots::Bootstrap;

    const GRACE: Duration = Duration::from_secs(30);

    async fn start(dir: &Path, repository: &Path, bootstrap: Option<Bootstrap>) -> Node {
        let mut options = NodeOptions::new(dir);
        options.partitions = 1;
        options.bootstrap = bootstrap;
        options.snapshots.destination = Some(repository.display().to_string());
        options.snapshots.interval = None;
        options.snapshots.recovery_budget = None;
        Node::start(options).await.unwrap()
    }

    fn new_token(id: &str, of: u8) -> NewToken {
        NewToken {
            id: id.parse().unwrap(),
            hash: TokenHash([of; 32]),
            expires_at: None,
            auto_prefix_streams: false,
            scope: TokenScope::default(),
            issuer: Issuer::Root,
        }
    }

    #[test]
    fn the_root_token_can_issue_some_when_others_cannot_issue_any_more() {
        let others = Issuer::Token(TokenHash([1; 32])).max_tokens();
        assert_eq!(Issuer::Root.max_tokens(), others + ROOT_ACCESS_TOKENS);
    }

    fn id(id: &str) -> AccessTokenId {
        id.parse().unwrap()
    }

    /// The state of the token with this hash: whether it is suspended, if it is there.
    fn found(node: &Node, of: u8) -> Option<bool> {
        let found = node.tokens().find(&TokenHash([of; 32])).unwrap();
        found.map(|token| token.suspended)
    }

    fn problem(node: &Node) -> Option<String> {
        let problems = node.recovery_status().problems.into_iter();
        let mut of_tokens = problems.filter(|p| p.code == "access_tokens_suspended");
        of_tokens.next().map(|problem| problem.what)
    }

    #[tokio::test]
    async fn tokens_survive_a_restart_and_a_restore_with_a_loss_suspends_them() {
        let dir = tempfile::tempdir().unwrap();
        let (data, repository) = (dir.path().join("data"), dir.path().join("repository"));
        let node = start(&data, &repository, None).await;
        let tokens = node.tokens();
        for (name, of) in [("kept", 1), ("revoked", 2)] {
            tokens.issue(new_token(name, of)).await.unwrap();
        }
        for partition in 0..2 {
            node.create_snapshot(partition).await.unwrap();
        }
        // The repository does not have what follows.
        tokens.revoke(&id("revoked")).await.unwrap();
        tokens.issue(new_token("late", 3)).await.unwrap();
        assert_eq!(found(&node, 2), None, "in force as soon as it is answered");
        node.stop(GRACE).await;
        drop((node, tokens));

        let node = start(&data, &repository, None).await;
        assert_eq!(
            [1, 2, 3].map(|of| found(&node, of)),
            [Some(false), None, Some(false)]
        );
        assert!(!node.tokens().suspended() && problem(&node).is_none());
        node.stop(GRACE).await;
        drop(node);

        let mut count = 2;
        for lost in 0..2 {
            std::fs::remove_dir_all(&data).unwrap();
            let node = start(&data, &repository, Some(Bootstrap::Restore)).await;
            let tokens = node.tokens();
            assert!(tokens.suspended(), "loss {lost}");
            assert_eq!([1, 3].map(|of| found(&node, of)), [Some(true), None]);
            assert!(problem(&node).unwrap().starts_with(&format!("{count} ")));
            let fresh = new_token(&format!("fresh-{lost}"), 10 + lost);
            tokens.issue(fresh).await.unwrap();
            assert_eq!(found(&node, 10 + lost), Some(false));
            node.stop(GRACE).await;
            drop((node, tokens));
            // A restart alone confirms nothing.
            let node = start(&data, &repository, None).await;
            assert_eq!(found(&node, 1), Some(true));
            assert_eq!(found(&node, 10 + lost), Some(false));
            if lost == 0 {
                // The one whose revocation is lost has come back, suspended.
                assert_eq!(found(&node, 2), Some(true));
                node.tokens().revoke(&id("revoked")).await.unwrap();
                count -= 1;
            }
            assert_eq!(node.tokens().confirm().await.unwrap(), count);
            assert_eq!(node.tokens().confirm().await.unwrap(), 0);
            count += 1;
            assert!(!node.tokens().suspended() && problem(&node).is_none());
            for partition in 0..2 {
                node.create_snapshot(partition).await.unwrap();
            }
            node.stop(GRACE).await;
            drop(node);
            let node = start(&data, &repository, None).await;
            assert_eq!(found(&node, 1), Some(false), "a confirmation is durable");
            node.stop(GRACE).await;
        }
    }

    #[tokio::test]
    async fn a_token_that_expired_more_than_a_day_ago_is_removed_and_others_stay() {
        const HOUR: u64 = 3_600_000;
        let dir = tempfile::tempdir().unwrap();
        let (data, repository) = (dir.path().join("data"), dir.path().join("repository"));
        let node = start(&data, &repository, None).await;
        let tokens = node.tokens();
        let hours_ago = [("old", Some(25)), ("late", Some(1)), ("never", None)];
        for (of, (name, hours)) in (1..).zip(hours_ago) {
            let token = NewToken {
                expires_at: hours.map(|hours| Expiry::new(now_ms() - hours * HOUR, 0)),
                ..new_token(name, of)
            };
            tokens.issue(token).await.unwrap();
        }
        // Expired tokens are looked for once a minute, and when a node starts.
        node.stop(GRACE).await;
        drop((node, tokens));
        let node = start(&data, &repository, None).await;
        let deadline = tokio::time::Instant::now() + GRACE;
        while found(&node, 1).is_some() {
            assert!(tokio::time::Instant::now() < deadline, "it is not removed");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        assert_eq!([2, 3].map(|of| found(&node, of)), [Some(false); 2]);
        node.stop(GRACE).await;
    }

    #[tokio::test]
    async fn what_is_not_valid_is_refused_and_stores_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let node = start(
            &dir.path().join("data"),
            &dir.path().join("repository"),
            None,
        )
        .await;
        let tokens = node.tokens();
        tokens.issue(new_token("one", 1)).await.unwrap();
        let exists = tokens.issue(new_token("one", 2)).await.unwrap_err();
        assert!(matches!(exists, TokenError::Exists(_)), "{exists}");
        let unknown = tokens.revoke(&id("two")).await.unwrap_err();
        assert!(matches!(unknown, TokenError::NotFound(_)), "{unknown}");
        let long = NewToken {
            scope: TokenScope {
                agents: NameSet::prefix("a".repeat(MAX_SCOPE_NAME_BYTES + 1)),
                ..TokenScope::default()
            },
            ..new_token("long", 3)
        };
        let refused = tokens.issue(long.clone()).await.unwrap_err();
        assert!(matches!(refused, TokenError::Invalid(_)), "{refused}");
        let longest = TokenScope {
            agents: NameSet::prefix("a".repeat(MAX_SCOPE_NAME_BYTES)),
            ..TokenScope::default()
        };
        let longest = NewToken {
            scope: longest,
            ..long
        };
        tokens.issue(longest).await.unwrap();
        let (listed, has_more) = tokens.list("", "", 1);
        assert_eq!((listed[0].id.as_str(), has_more), ("long", true));
        let (listed, has_more) = tokens.list("", "long", usize::MAX);
        assert_eq!((listed.len(), has_more), (1, false));
        node.stop(GRACE).await;
        let stopped = tokens.issue(new_token("late", 4)).await.unwrap_err();
        assert!(
            matches!(stopped, TokenError::Failed(Error::Stopping)),
            "{stopped}"
        );
    }
}
