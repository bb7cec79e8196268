//! Marks requests that another node of the cluster has sent.

use std::time::Duration;

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
