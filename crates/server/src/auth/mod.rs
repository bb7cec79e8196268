//! Access: who sends a request, and what they may do.
//!
//! | module | what it holds |
//! |---|---|
//! | [`principal`] | who sends a request |
//! | [`layer`] | the layer that finds that out, before any handler |

pub(crate) mod layer;
pub(crate) mod principal;

pub(crate) use principal::{PeerAddress, Principal, PrincipalKey};
