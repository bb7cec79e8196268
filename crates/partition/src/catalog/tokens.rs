//! The access tokens of the catalog.
//!
//! All are in memory, by id and by hash: some 500 bytes each. Each stores how many forks the catalog had
//! when it was issued. After a later fork it is suspended, because the entry that revoked it may be among
//! those that were lost. A confirmation stores the number of forks up to which tokens are valid again.

use std::collections::{BTreeMap, HashMap};
use std::ops::Bound;
use std::sync::Arc;

use parking_lot::RwLock;
use prost::Message as _;

use super::CatalogReader;
use crate::command::{IssueToken, RemoveExpiredTokens, TokenRefusal};
use crate::keys;
use crate::store::{PartitionBatch, PartitionDb, StoreError};
use crate::token::{Expiry, StoredToken, TokenHash, TokenScope};

/// A token in the database; its id is in the key.
#[derive(Clone, PartialEq, Eq, prost::Message)]
struct TokenMeta {
    #[prost(bytes = "vec", tag = "1")]
    hash: Vec<u8>,
    #[prost(uint64, optional, tag = "2")]
    expires_at_ms: Option<u64>,
    #[prost(bool, tag = "3")]
    auto_prefix_streams: bool,
    #[prost(message, required, tag = "4")]
    scope: TokenScope,
    #[prost(uint64, tag = "5")]
    issued_at_ms: u64,
    /// Number of the catalog's forks when it was issued.
    #[prost(uint64, tag = "6")]
    forks: u64,
    /// Nanoseconds after `expires_at_ms`.
    #[prost(uint32, tag = "7")]
    expires_at_nanos: u32,
}

impl TokenMeta {
    fn expires_at(&self) -> Option<Expiry> {
        Expiry::stored(self.expires_at_ms, self.expires_at_nanos)
    }
}

/// Up to which fork the tokens are confirmed.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
struct Confirmation {
    #[prost(uint64, tag = "1")]
    forks: u64,
}

/// A token, and the number of the catalog's forks when it was issued.
#[derive(Clone, Debug)]
struct Known {
    token: Arc<StoredToken>,
    forks: u64,
}

/// The tokens of the catalog, in memory.
pub(super) struct Tokens {
    by_id: BTreeMap<String, Known>,
    by_hash: HashMap<TokenHash, Arc<StoredToken>>,
    /// Number of the catalog's forks.
    forks: u64,
    /// Tokens that were issued after fewer forks than these and [`Tokens::forks`] are suspended.
    confirmed: u64,
    suspended: usize,
}

fn is_suspended(issued: u64, confirmed: u64, forks: u64) -> bool {
    issued.max(confirmed) < forks
}

impl Tokens {
    /// The catalog has forked: tokens from before are suspended until they are confirmed.
    pub(super) fn see_forks(&mut self, forks: u64) {
        self.forks = self.forks.max(forks);
        self.confirm(self.confirmed);
    }

    /// Reads all of them.
    pub(super) fn read(part: &PartitionDb, forks: u64) -> Result<Tokens, StoreError> {
        let confirmation: Option<Confirmation> =
            part.get(keys::CONFIRMATION, "the confirmation of tokens")?;
        let mut tokens = Tokens {
            by_id: BTreeMap::new(),
            by_hash: HashMap::new(),
            forks,
            confirmed: confirmation.map_or(0, |confirmation| confirmation.forks),
            suspended: 0,
        };
        let (from, to) = keys::all_tokens();
        let mut it = part.iterate(&from, &to, false);
        it.seek_to_first();
        while let (Some(key), Some(value)) = (it.key(), it.value()) {
            let id = std::str::from_utf8(&key[1..])
                .map_err(|e| part.malformed("an access token's id", &e))?;
            let meta =
                TokenMeta::decode(value).map_err(|e| part.malformed("an access token", &e))?;
            let hash = meta.hash.as_slice().try_into();
            let hash = hash.map_err(|e| part.malformed("the hash of an access token", &e))?;
            tokens.insert(id.to_owned(), meta, TokenHash(hash));
            it.next();
        }
        it.status()
            .map_err(|e| part.error("reading access tokens", e))?;
        Ok(tokens)
    }

    fn insert(&mut self, id: String, meta: TokenMeta, hash: TokenHash) {
        let suspended = is_suspended(meta.forks, self.confirmed, self.forks);
        let token = Arc::new(StoredToken {
            id: id.clone(),
            hash,
            expires_at: meta.expires_at(),
            auto_prefix_streams: meta.auto_prefix_streams,
            scope: meta.scope,
            issued_at_ms: meta.issued_at_ms,
            suspended,
        });
        self.suspended += usize::from(suspended);
        self.by_hash.insert(hash, token.clone());
        let forks = meta.forks;
        self.by_id.insert(id, Known { token, forks });
    }

    fn remove(&mut self, id: &str) {
        if let Some(Known { token, .. }) = self.by_id.remove(id) {
            self.by_hash.remove(&token.hash);
            self.suspended -= usize::from(token.suspended);
        }
    }

    fn confirm(&mut self, confirmed: u64) {
        self.confirmed = confirmed;
        self.suspended = 0;
        for known in self.by_id.values_mut() {
            let suspended = is_suspended(known.forks, confirmed, self.forks);
            self.suspended += usize::from(suspended);
            if known.token.suspended != suspended {
                let token = StoredToken::clone(&known.token);
                known.token = Arc::new(StoredToken { suspended, ..token });
                self.by_hash.insert(known.token.hash, known.token.clone());
            }
        }
    }
}

impl CatalogReader {
    /// The token with this hash.
    pub fn token(&self, hash: &TokenHash) -> Option<Arc<StoredToken>> {
        self.tokens.read().by_hash.get(hash).cloned()
    }

    /// Tokens in the order of their ids, which begin with `prefix` and come after `start_after`; at most
    /// `limit`.
    pub fn tokens(&self, prefix: &str, start_after: &str, limit: usize) -> Vec<Arc<StoredToken>> {
        let from = if start_after >= prefix && !start_after.is_empty() {
            Bound::Excluded(start_after)
        } else {
            Bound::Included(prefix)
        };
        let tokens = self.tokens.read();
        let range = tokens.by_id.range::<str, _>((from, Bound::Unbounded));
        range
            .take_while(|(id, _)| id.starts_with(prefix))
            .take(limit)
            .map(|(_, known)| known.token.clone())
            .collect()
    }

    /// Ids of tokens that expired at or before this time, in milliseconds since the epoch; at most
    /// `limit`.
    pub fn tokens_expired_before(&self, at_ms: u64, limit: usize) -> Vec<String> {
        let tokens = self.tokens.read();
        let expired = tokens
            .by_id
            .iter()
            .filter(|(_, k)| k.token.is_expired(at_ms));
        expired.take(limit).map(|(id, _)| id.clone()).collect()
    }

    /// Number of tokens, and of those that are suspended.
    pub fn count_tokens(&self) -> (usize, usize) {
        let tokens = self.tokens.read();
        (tokens.by_id.len(), tokens.suspended)
    }

    /// Number of the catalog's forks.
    pub fn forks(&self) -> u64 {
        self.tokens.read().forks
    }
}

/// One step of apply: commands change an overlay.
pub(super) struct TokenStep<'a> {
    tokens: &'a RwLock<Tokens>,
    changed: BTreeMap<String, Option<TokenMeta>>,
    /// Number of tokens with the changes.
    count: usize,
    confirmed: Option<u64>,
}

impl<'a> TokenStep<'a> {
    pub(super) fn new(tokens: &'a RwLock<Tokens>) -> TokenStep<'a> {
        TokenStep {
            tokens,
            changed: BTreeMap::new(),
            count: tokens.read().by_id.len(),
            confirmed: None,
        }
    }

    /// When the token with this id expires; the outer `None` if there is no such token.
    fn expiry(&self, id: &str) -> Option<Option<Expiry>> {
        match self.changed.get(id) {
            Some(changed) => changed.as_ref().map(TokenMeta::expires_at),
            None => {
                let tokens = self.tokens.read();
                tokens.by_id.get(id).map(|known| known.token.expires_at)
            }
        }
    }

    fn is_expired(&self, id: &str, at_ms: u64) -> bool {
        matches!(self.expiry(id), Some(Some(expiry)) if expiry.is_over(at_ms))
    }

    /// Whether a token other than the one with this id has the hash.
    fn has_hash(&self, id: &str, hash: &TokenHash) -> bool {
        let mut changed = self.changed.iter();
        let is_changed = changed
            .any(|(of, meta)| of != id && meta.as_ref().is_some_and(|meta| meta.hash == hash.0));
        let tokens = self.tokens.read();
        let known = tokens.by_hash.get(hash);
        is_changed || known.is_some_and(|t| t.id != id && !self.changed.contains_key(&t.id))
    }

    /// Whether the token with this hash is valid at a time, after a number of forks. Both are those that a
    /// command was stamped with, so that a replay after a later fork decides as before it.
    fn is_valid(&self, hash: &TokenHash, at_ms: u64, forks: u64) -> bool {
        let tokens = self.tokens.read();
        let changed = self.changed.values().flatten();
        let changed = changed.filter(|meta| meta.hash == hash.0);
        let mut changed = changed.map(|meta| (meta.expires_at(), meta.forks));
        let unchanged = || {
            let token = tokens.by_hash.get(hash)?;
            let known = tokens.by_id.get(&token.id)?;
            let is_unchanged = !self.changed.contains_key(&token.id);
            is_unchanged.then_some((token.expires_at, known.forks))
        };
        let confirmed = self.confirmed.unwrap_or(tokens.confirmed);
        changed
            .next()
            .or_else(unchanged)
            .is_some_and(|(expires, issued)| {
                let is_over = expires.is_some_and(|expiry| expiry.is_over(at_ms));
                !is_over && !is_suspended(issued, confirmed, forks)
            })
    }

    /// Stores a token. Its issuer was checked before the command was proposed, and is checked again here,
    /// because it may have been revoked since: see [`IssueToken::issuer`].
    pub(super) fn issue(
        &mut self,
        issue: IssueToken,
        hash: [u8; 32],
        issuer: Option<[u8; 32]>,
    ) -> Result<(), TokenRefusal> {
        let issuer = issuer.map(TokenHash);
        if issuer.is_some_and(|issuer| !self.is_valid(&issuer, issue.at_ms, issue.forks)) {
            return Err(TokenRefusal::IssuerInvalid);
        }
        // The id of an expired token is free: it could be removed at any moment.
        let replaces = self.is_expired(&issue.id, issue.at_ms);
        let exists = self.expiry(&issue.id).is_some() && !replaces;
        if exists || self.has_hash(&issue.id, &TokenHash(hash)) {
            return Err(TokenRefusal::Exists);
        }
        if !replaces {
            if self.count as u64 >= issue.max_tokens {
                return Err(TokenRefusal::TooMany);
            }
            self.count += 1;
        }
        let meta = TokenMeta {
            hash: issue.hash,
            expires_at_ms: issue.expires_at_ms,
            auto_prefix_streams: issue.auto_prefix_streams,
            scope: issue.scope,
            issued_at_ms: issue.at_ms,
            forks: issue.forks,
            expires_at_nanos: issue.expires_at_nanos,
        };
        self.changed.insert(issue.id, Some(meta));
        Ok(())
    }

    pub(super) fn revoke(&mut self, id: &str) -> bool {
        let exists = self.expiry(id).is_some();
        if exists {
            self.count -= 1;
            self.changed.insert(id.to_owned(), None);
        }
        exists
    }

    pub(super) fn remove_expired(&mut self, command: &RemoveExpiredTokens) -> u64 {
        let mut removed = 0;
        for id in &command.ids {
            if self.is_expired(id, command.expired_before_ms) && self.revoke(id) {
                removed += 1;
            }
        }
        removed
    }

    /// Number of tokens that are suspended if those up to this fork are confirmed.
    fn suspended(&self, confirmed: u64) -> usize {
        let tokens = self.tokens.read();
        let unchanged = tokens.by_id.iter();
        let unchanged = unchanged.filter(|(id, _)| !self.changed.contains_key(*id));
        let changed = self.changed.values().flatten().map(|meta| meta.forks);
        unchanged
            .map(|(_, known)| known.forks)
            .chain(changed)
            .filter(|issued| is_suspended(*issued, confirmed, tokens.forks))
            .count()
    }

    pub(super) fn confirm(&mut self, forks: u64) -> u64 {
        let before = self
            .confirmed
            .unwrap_or_else(|| self.tokens.read().confirmed);
        let after = before.max(forks);
        if after == before {
            return 0;
        }
        let confirmed = self.suspended(before) - self.suspended(after);
        self.confirmed = Some(after);
        confirmed as u64
    }

    pub(super) fn into_changes(self) -> TokenChanges {
        TokenChanges {
            changed: self.changed,
            confirmed: self.confirmed,
        }
    }
}

/// What a step has changed.
pub(super) struct TokenChanges {
    changed: BTreeMap<String, Option<TokenMeta>>,
    confirmed: Option<u64>,
}

impl TokenChanges {
    pub(super) fn add_to(&self, batch: &mut PartitionBatch) {
        for (id, meta) in &self.changed {
            match meta {
                Some(meta) => batch.put(keys::token(id), meta.encode_to_vec()),
                None => batch.delete(keys::token(id)),
            }
        }
        if let Some(forks) = self.confirmed {
            batch.put(keys::CONFIRMATION, Confirmation { forks }.encode_to_vec());
        }
    }

    pub(super) fn apply_to(self, tokens: &mut Tokens) {
        if let Some(confirmed) = self.confirmed {
            tokens.confirm(confirmed);
        }
        // One may have the hash of another that is gone.
        for id in self.changed.keys() {
            tokens.remove(id);
        }
        for (id, meta) in self.changed {
            // The hash was checked when the command was applied.
            let hash = meta
                .as_ref()
                .and_then(|m| m.hash.as_slice().try_into().ok());
            if let Some((meta, hash)) = meta.zip(hash) {
                tokens.insert(id, meta, TokenHash(hash));
            }
        }
    }
}
