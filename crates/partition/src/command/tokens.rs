//! Commands on access tokens, in the catalog, and the answers to them.

use crate::token::TokenScope;

/// See [`Kind::IssueToken`](super::Kind::IssueToken).
#[derive(Clone, PartialEq, prost::Message)]
pub struct IssueToken {
    /// The token's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// SHA-256 of its text.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// From when on it is not valid, in milliseconds since the epoch; `None` for never.
    #[prost(uint64, optional, tag = "3")]
    pub expires_at_ms: Option<u64>,
    /// See [`StoredToken::auto_prefix_streams`](crate::token::StoredToken::auto_prefix_streams).
    #[prost(bool, tag = "4")]
    pub auto_prefix_streams: bool,
    /// What its holder may do.
    #[prost(message, required, tag = "5")]
    pub scope: TokenScope,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "6")]
    pub at_ms: u64,
    /// Number of the catalog's forks that the proposer knew: later ones suspend the token.
    #[prost(uint64, tag = "7")]
    pub forks: u64,
    /// Most tokens that there may be then. It is part of the command, so that a build with another bound
    /// applies the log to the same end.
    #[prost(uint64, tag = "8")]
    pub max_tokens: u64,
    /// Nanoseconds after `expires_at_ms`: fewer than a million.
    #[prost(uint32, tag = "9")]
    pub expires_at_nanos: u32,
    /// SHA-256 of the text of the token with which it is issued: that has to be valid when the command is
    /// applied. `None` for the root token, which is not in the catalog, and in commands of builds that did not
    /// record it.
    #[prost(bytes = "vec", optional, tag = "10")]
    pub issuer: Option<Vec<u8>>,
}

/// See [`Kind::RevokeToken`](super::Kind::RevokeToken).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RevokeToken {
    /// The token's id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// See [`Kind::ConfirmTokens`](super::Kind::ConfirmTokens).
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ConfirmTokens {
    /// Number of the catalog's forks that the proposer knew: later ones suspend tokens again.
    #[prost(uint64, tag = "1")]
    pub forks: u64,
}

/// See [`Kind::RemoveExpiredTokens`](super::Kind::RemoveExpiredTokens).
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveExpiredTokens {
    /// Ids of tokens. Another token may have one of them by now.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
    /// Only those that expired at or before this time are removed, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub expired_before_ms: u64,
}

/// Why no token was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// A token has the id or the hash.
    Exists,
    /// There are as many tokens as there may be.
    TooMany,
    /// The token with which it was to be issued is not valid any more.
    IssuerInvalid,
}
