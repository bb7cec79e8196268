//! Marks requests that another node of the cluster has sent, and answers after which another node may be asked.

use std::time::Duration;

use bytes::Bytes;
use http::Extensions;

/// The mark, among the extensions of a request.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Forwarded {
    /// For how long that node still waits for a leader.
    pub(crate) wait: Duration,
}

/// Whether another node has sent the request.
pub(crate) fn is_forwarded(extensions: &Extensions) -> bool {
    extensions.get::<Forwarded>().is_some()
}

/// Marks an answer: what the request would have changed was certainly not proposed, or another leader's entry has
/// taken the place of its own, because this node does not lead the partition any more. So nothing has happened.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NotProposed;

/// Whether an answer has the mark.
pub(crate) fn is_not_proposed(extensions: &Extensions) -> bool {
    extensions.get::<NotProposed>().is_some()
}

/// The request that such an answer is to, if its handler gives it back: head, and body without a content coding. So
/// nobody has to keep a request that this node most often answers.
#[derive(Clone, Debug)]
pub(crate) struct GivenBack(pub(crate) http::Request<Bytes>);
