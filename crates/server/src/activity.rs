//! Whether a connection has a request under way, and since when it has none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

use crate::answers::Perishable;

/// Requests of one connection.
#[derive(Default)]
pub(crate) struct Activity {
    under_way: AtomicU64,
    /// Whether the client lost an answer because it took nothing of it.
    stalled: AtomicBool,
    changed: Notify,
}

impl Activity {
    /// A request begins, and ends when the answer is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        // A client that asks for something else is there again.
        self.stalled.store(false, Ordering::Release);
        self.changed.notify_one();
        Busy {
            activity: self.clone(),
            abandoned: false,
        }
    }

    /// Waits until no request has been under way for `timeout`. A client that took nothing of an answer
    /// gets no such time.
    pub(crate) async fn idle(&self, timeout: Duration) {
        loop {
            let changed = self.changed.notified();
            if self.under_way.load(Ordering::Acquire) > 0 {
                changed.await;
            } else if self.stalled.load(Ordering::Acquire)
                || tokio::time::timeout(timeout, changed).await.is_err()
            {
                return;
            }
        }
    }
}

/// A request that is under way.
pub(crate) struct Busy {
    activity: Arc<Activity>,
    /// Whether the client has left it, if it ends now.
    abandoned: bool,
}

impl Busy {
    /// The body of the answer, with which the request ends. One that comes in pieces also ends when the
    /// client takes nothing of it for `stall_timeout`.
    pub(crate) fn until_sent(mut self, body: Body, stall_timeout: Duration) -> Body {
        if body.size_hint().exact().is_some() {
            return Body::new(Answer { body, _busy: self });
        }
        self.abandoned = true;
        Body::new(Pieces(Perishable::new((body, self), stall_timeout)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        if self.abandoned {
            self.activity.stalled.store(true, Ordering::Release);
        }
        self.activity.under_way.fetch_sub(1, Ordering::AcqRel);
        self.activity.changed.notify_one();
    }
}

/// An answer that is there as a whole.
struct Answer {
    body: Body,
    _busy: Busy,
}

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer that comes in pieces.
struct Pieces(Perishable<(Body, Busy)>);

impl HttpBody for Pieces {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = self
            .0
            .poll_part(|(body, _)| Pin::new(body).poll_frame(context));
        next.map(|next| next.unwrap_or_else(|stalled| Some(Err(axum::Error::new(stalled)))))
    }
}

impl Drop for Pieces {
    fn drop(&mut self) {
        // It ends because it is over, or the connection is.
        let _ = self.0.poll_part(|(_, busy)| {
            busy.abandoned = false;
            Poll::Ready(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_connection_is_idle_once_its_last_answer_is_long_gone() {
        const TIMEOUT: Duration = Duration::from_millis(50);
        let activity = Arc::new(Activity::default());
        let body = activity.begin().until_sent(Body::from("answer"), TIMEOUT);
        let busy = tokio::time::timeout(TIMEOUT * 4, activity.idle(TIMEOUT)).await;
        assert!(busy.is_err(), "it is not idle");
        drop(body);
        let begun = tokio::time::Instant::now();
        activity.idle(TIMEOUT).await;
        assert!(begun.elapsed() >= TIMEOUT);
    }
    #[tokio::test]
    async fn an_answer_of_which_nothing_is_taken_ends_and_its_connection_is_idle_at_once() {
        const TIMEOUT: Duration = Duration::from_millis(50);
        const LONG: Duration = Duration::from_secs(3600);
        let pieces = || {
            let pieces = futures::stream::repeat(Ok::<_, Infallible>("piece"));
            Body::from_stream(pieces)
        };
        let activity = Arc::new(Activity::default());
        // Over is not stalled.
        drop(activity.begin().until_sent(pieces(), TIMEOUT));
        let idle = tokio::time::timeout(TIMEOUT * 2, activity.idle(LONG)).await;
        assert!(idle.is_err(), "it is idle for a moment only");

        let mut body = activity.begin().until_sent(pieces(), TIMEOUT);
        body.frame().await.unwrap().unwrap();
        activity.idle(LONG).await;
        body.frame().await.unwrap().unwrap_err();
    }
}
