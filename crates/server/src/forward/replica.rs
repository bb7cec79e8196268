//! Reads of a stream from the replica of the node that gets them.
//!
//! After a round of ReadIndex, the replica has everything that was acknowledged before the read began, so it may answer
//! whatever the leader would: a tail, records, and from then on, to those who follow, what it applies. What is applied
//! is committed, and is the same in every replica, at the same numbers. A stream that is not here is left to the
//! leader, which may have to create it.
//!
//! A session goes on without further rounds. It ends when the replica has not followed a leader for a while: it might
//! never get to know of what is appended elsewhere.

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use futures::FutureExt as _;
use s2_common::basin::BasinName;
use s2_common::stream::StreamName;
use tokio::time::{Instant, sleep, timeout_at};

use super::cut::Cut;
use super::framing::Framing;
use super::incoming::{Answering, Incoming};
use super::peers::Peers;
use super::series;
use crate::request_guard::content_type;

/// How often a session looks whether the replica follows a leader.
const LOOK_INTERVAL: Duration = Duration::from_millis(500);
/// How long a replica may be without a leader until its sessions end: a few elections.
const ORPHAN_TIMEOUT: Duration = Duration::from_secs(5);

/// A stream that is read.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Read {
    pub(super) partition: u64,
    pub(super) basin: BasinName,
    /// The name by which the node knows it.
    pub(super) stream: StreamName,
}

impl Read {
    /// Whether the replica here has what was acknowledged so far, and the stream.
    pub(super) async fn may_be_answered(&self, peers: &dyn Peers, deadline: Instant) -> bool {
        let is_here = || peers.has_stream(&self.basin, &self.stream);
        let caught_up = async {
            // A removed node may be in contact until it has left the group. Of a stream that is not here, no round is
            // needed; behind the round, it may have been deleted.
            peers.refusal().is_none()
                && peers.follows(self.partition)
                && is_here().await
                && peers.read_index(self.partition).await.is_ok()
                && is_here().await
        };
        timeout_at(deadline, caught_up).await.unwrap_or(false)
    }

    /// The answer of the replica; a session ends with an error when nothing new can come.
    pub(super) fn answered(&self, peers: Arc<dyn Peers>, answer: Response) -> Response {
        series::read_here();
        let kind = content_type(answer.headers());
        let Some(framing) = kind.and_then(|kind| Framing::of(&kind)) else {
            return answer;
        };
        let partition = self.partition;
        let orphaned = async move {
            orphaned(&*peers, partition).await;
            Cut::Unanswered(format!(
                "this node has had no contact with the leader of partition {partition} for {} s",
                ORPHAN_TIMEOUT.as_secs()
            ))
        };
        let answering = Answering {
            framing: Some(framing),
            is_of_appends: false,
            cut: orphaned.boxed(),
            incomplete: None,
        };
        answer.map(|body| {
            let body = tonic::body::Body::new(body);
            Body::new(Incoming::new(body, answering, None))
        })
    }
}

/// Is done when the replica has not followed a leader for [`ORPHAN_TIMEOUT`].
async fn orphaned(peers: &dyn Peers, partition: u64) {
    let mut since = None;
    loop {
        sleep(LOOK_INTERVAL).await;
        if peers.follows(partition) && peers.refusal().is_none() {
            since = None;
        } else if since.get_or_insert_with(Instant::now).elapsed() >= ORPHAN_TIMEOUT {
            return;
        }
    }
}
