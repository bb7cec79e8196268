//! Two nodes and more in one process, with connections of HTTP/2 in memory between them.

mod bodies;
mod costs;
mod endings;
mod handlers;
mod leaders;
mod losses;
mod member;
mod moves;
mod replicas;
mod senders;

use super::hop_headers::SERVED_BY;
use super::peers::Leader;
use super::service::peer_requests;
use handlers::{
    Ends, Handled, Pieces, appends, code, eventually, no_side_effects, request, sent_body, session,
    state_call, text, unknown_outcome,
};
use member::{Member, ROOT, pair};

/// A body that is kept whole.
const MAX_BODY: usize = super::outgoing::MAX_KEPT_WHOLE;
/// What is kept of a body whose length is not known.
const MAX_BODY_UNKNOWN: usize = super::outgoing::MAX_KEPT;
/// A time in which nothing more happens that was to happen.
const WHILE: std::time::Duration = std::time::Duration::from_millis(100);
