//! Reads of a stream from the replica of the node that gets them.
//!
//! After a round of ReadIndex, the replica has everything that was acknowledged before the read began, so it may answer
//! whatever the leader would: a tail, records, and from then on, to those who follow, what it applies. What is applied
//! is committed, and is the same in every replica, at the same numbers. A stream that is not here is left to the
//! leader, which may have to create it.
//!
//! A session ends when contact with the leader is lost, whether this node is the leader or not: it might never get to
//! know of what is appended elsewhere.

use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use esker_node::Client;
use futures::FutureExt as _;
use s2_common::basin::BasinName;
use s2_common::stream::StreamName;
use tokio::time::{Instant, timeout_at};

use super::contact::{Contacts, LOST_TIMEOUT};
use super::cut::Cut;
use super::framing::Framing;
use super::incoming::{Answering, Incoming};
use super::peers::Peers;
use crate::request_guard::content_type;
use crate::state::status;

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
    pub(super) async fn may_be_answered(
        &self,
        peers: &dyn Peers,
        client: Client,
        deadline: Instant,
    ) -> bool {
        let is_here = || peers.has_stream(client, &self.basin, &self.stream);
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
}

/// An answer from what this node has of a partition. If it consists of messages and lasts, it ends with an error when
/// nothing new can come.
pub(super) fn answered(contacts: &Arc<Contacts>, partition: u64, answer: Response) -> Response {
    let kind = content_type(answer.headers());
    let Some(framing) = kind.and_then(|kind| Framing::of(&kind)) else {
        return answer;
    };
    let lost = contacts.lost(partition);
    let cut = async move {
        lost.await;
        Cut::Unanswered(format!(
            "this node has had no contact with the other members of partition {partition} for {} s",
            LOST_TIMEOUT.as_secs()
        ))
    };
    let answering = Answering {
        incomplete: matches!(framing, Framing::Call(_)).then_some(status::unavailable),
        framing: Some(framing),
        is_of_appends: false,
        cut: cut.boxed(),
    };
    answer.map(|body| {
        let body = tonic::body::Body::new(body);
        Body::new(Incoming::new(body, answering, None))
    })
}
