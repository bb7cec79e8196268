//! Whether a connection has a request under way, and since when it has none.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;

use crate::answers::{AtStall, Perishable};

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
    /// The answer with whose body the request ends. It also ends, as its [`AtStall`] has it, when the client
    /// takes nothing of it for `stall_timeout`.
    pub(crate) fn until_sent(mut self, answer: Response, stall_timeout: Duration) -> Response {
        let (mut head, body) = answer.into_parts();
        if body.is_end_stream() {
            // Nothing is left to take.
            return Response::from_parts(head, body);
        }
        let at_stall = head.extensions.remove().unwrap_or(AtStall::Fail);
        self.abandoned = true;
        let pieces = Perishable::with(
            Pieces::Sending(body, self),
            stall_timeout,
            move |pieces: Pieces| pieces.stall(at_stall),
        );
        Response::from_parts(head, Body::new(Answer(pieces)))
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

/// What of an answer is left to send.
enum Pieces {
    Sending(Body, Busy),
    /// The client took nothing for too long. The body ends by itself.
    Ending(Body),
    /// The same. The body is gone; this follows on what was sent.
    End(Option<Frame<Bytes>>),
}

impl Pieces {
    /// What is left for a client that may come back. The request is not under way any more.
    fn stall(self, at_stall: AtStall) -> Option<Pieces> {
        let Pieces::Sending(body, _) = self else {
            return Some(self);
        };
        metrics::counter!(STALLED).increment(1);
        match at_stall {
            AtStall::Fail => None,
            AtStall::End(frame) => Some(Pieces::End(Some(frame.into()))),
            AtStall::Cancel(token) => {
                token.cancel();
                Some(Pieces::Ending(body))
            }
        }
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self {
            Pieces::Sending(body, _) | Pieces::Ending(body) => Pin::new(body).poll_frame(context),
            Pieces::End(frame) => Poll::Ready(frame.take().map(Ok)),
        }
    }
}

/// Answers of which clients took nothing for too long.
const STALLED: &str = "esker_http_answers_stalled_total";

/// Makes the counters exist.
pub(crate) fn describe() {
    metrics::counter!(STALLED).increment(0);
}

/// An answer on its way.
struct Answer(Perishable<Pieces>);

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = self.0.poll_part(|pieces| pieces.poll_frame(context));
        next.map(|next| next.unwrap_or_else(|stalled| Some(Err(axum::Error::new(stalled)))))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.0.look(|pieces| match pieces {
            Pieces::Sending(body, _) | Pieces::Ending(body) => body.is_end_stream(),
            Pieces::End(frame) => frame.is_none(),
        });
        // What is gone ends with an error.
        ended.unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.0.look(|pieces| match pieces {
            Pieces::Sending(body, _) | Pieces::Ending(body) => body.size_hint(),
            Pieces::End(_) => SizeHint::default(),
        });
        left.unwrap_or_default()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // It ends because it is over, or the connection is.
        let _ = self.0.poll_part(|pieces| {
            if let Pieces::Sending(_, busy) = pieces {
                busy.abandoned = false;
            }
            Poll::Ready(())
        });
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::BodyExt as _;
    use tokio_util::sync::CancellationToken;

    use super::*;
    use crate::answers::EndFrame;

    const TIMEOUT: Duration = Duration::from_millis(50);
    const LONG: Duration = Duration::from_secs(3600);

    fn sent(activity: &Arc<Activity>, body: Body, at_stall: Option<AtStall>) -> Body {
        let mut answer = Response::new(body);
        if let Some(at_stall) = at_stall {
            answer.extensions_mut().insert(at_stall);
        }
        activity.begin().until_sent(answer, TIMEOUT).into_body()
    }

    fn pieces() -> Body {
        Body::from_stream(futures::stream::repeat(Ok::<_, Infallible>("piece")))
    }

    #[tokio::test]
    async fn a_connection_is_idle_once_its_last_answer_is_long_gone() {
        let activity = Arc::new(Activity::default());
        let slow = futures::stream::once(tokio::time::sleep(LONG));
        let slow = futures::StreamExt::map(slow, |()| Ok::<_, Infallible>("answer"));
        let mut body = sent(&activity, Body::from_stream(slow), None);
        // The client waits for it.
        let busy = tokio::time::timeout(TIMEOUT * 4, body.frame()).await;
        assert!(busy.is_err());
        let busy = tokio::time::timeout(TIMEOUT * 4, activity.idle(TIMEOUT)).await;
        assert!(busy.is_err(), "it is not idle");
        drop(body);
        let begun = tokio::time::Instant::now();
        activity.idle(TIMEOUT).await;
        assert!(begun.elapsed() >= TIMEOUT);
    }

    #[tokio::test]
    async fn an_answer_of_which_nothing_is_taken_ends_and_its_connection_is_idle_at_once() {
        let activity = Arc::new(Activity::default());
        // Over is not stalled.
        drop(sent(&activity, pieces(), None));
        let idle = tokio::time::timeout(TIMEOUT * 2, activity.idle(LONG)).await;
        assert!(idle.is_err(), "it is idle for a moment only");

        for (body, begun) in [(pieces(), true), (pieces(), false), ("whole".into(), false)] {
            let mut body = sent(&activity, body, None);
            if begun {
                body.frame().await.unwrap().unwrap();
            }
            activity.idle(LONG).await;
            body.frame().await.unwrap().unwrap_err();
        }
    }

    #[tokio::test]
    async fn an_answer_says_how_long_it_is_and_when_it_has_ended() {
        let activity = Arc::new(Activity::default());
        let mut body = sent(&activity, Body::from("answer"), None);
        assert_eq!(body.size_hint().exact(), Some(6));
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "answer");
        assert!(body.is_end_stream());
        assert!(sent(&activity, Body::empty(), None).is_end_stream());
    }

    #[tokio::test]
    async fn a_session_of_which_nothing_is_taken_ends_as_it_says() {
        let activity = Arc::new(Activity::default());
        let frame = EndFrame::Data("end".into());
        let mut body = sent(&activity, pieces(), Some(AtStall::End(frame)));
        body.frame().await.unwrap().unwrap();
        activity.idle(LONG).await;
        let end = body.frame().await.unwrap().unwrap();
        assert_eq!(end.into_data().unwrap(), "end");
        assert!(body.frame().await.is_none());

        // What is in flight is answered before the end.
        let token = CancellationToken::new();
        let cancelled = token.clone();
        let until_cancelled = async_stream::stream! {
            while !cancelled.is_cancelled() {
                yield Ok::<_, Infallible>("piece");
            }
            yield Ok("in flight");
            yield Ok("end");
        };
        let body = Body::from_stream(until_cancelled);
        let mut body = sent(&activity, body, Some(AtStall::Cancel(token.clone())));
        body.frame().await.unwrap().unwrap();
        activity.idle(LONG).await;
        assert!(token.is_cancelled());
        assert_eq!(
            body.collect().await.unwrap().to_bytes(),
            "piecein flightend"[5..]
        );
    }
}
