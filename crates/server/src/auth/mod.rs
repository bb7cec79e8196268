//! Access: who sends a request, and what they may do.
//!
//! | module | what it holds |
//! |---|---|
//! | [`root_token`] | the file with the root token |
//! | [`root_token_reload`] | follows that file while the server runs |
//! | [`token`] | texts of tokens: in a header, new ones, and their hashes |
//! | [`principal`] | who sends a request |
//! | [`failure_limiter`] | how often an address may fail |
//! | [`catalog_check`] | whether the tokens that this node knows are those of the cluster |
//! | [`authority`] | finds the principal of a request, and whether it is still one |
//! | [`operation`] | operations of the S2 API and their groups |
//! | [`scope`] | what a scope permits, and whether one is within another |
//! | [`access`] | what the sender of a request may do: handlers ask it, and get what they need for the answer |
//! | [`lease`] | ends what is under way when its token has been revoked or has expired |
//! | [`rules`] | the operation that each route needs |
//! | [`error`] | refusals |
//!
//! # Flow
//!
//! The layer `identification` asks the [`Authority`] for the principal of each request and puts it and its
//! [`Access`] into the request's extensions. The gate behind the router compares the route's rule with it,
//! before a body is read. Handlers check the names: a node or a state store is behind a
//! [`Guarded`](access::Guarded), which opens with a [`Granted`](access::Granted) alone, and only checks of
//! [`Access`] make one. Names are checked as they were parsed, after percent-decoding, and the same value goes
//! to the node: what is authorized is what is executed.
//!
//! This module knows no handler, no route of a router and no listener.

pub(crate) mod access;
pub(crate) mod authority;
pub(crate) mod catalog_check;
pub(crate) mod error;
pub(crate) mod failure_limiter;
pub(crate) mod lease;
pub(crate) mod operation;
pub(crate) mod principal;
pub mod root_token;
pub(crate) mod root_token_reload;
pub(crate) mod rules;
pub(crate) mod scope;
pub(crate) mod token;

#[cfg(test)]
mod tests;

pub(crate) use access::{Access, Guarded, StreamAccess};
pub(crate) use authority::Authority;
pub(crate) use catalog_check::CatalogCheck;
pub(crate) use error::AccessError;
pub(crate) use lease::Lease;
pub(crate) use principal::{Claim, PeerAddress, Principal, PrincipalKey};
