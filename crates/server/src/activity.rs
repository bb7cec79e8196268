//! Tracks the requests under way on a connection, and how long it has had none.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::response::Response;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::Notify;
use tokio::time::Instant;

use crate::answers::{AtStall, Exhausted};
use crate::watchdog::{Left, Perishable, Watchdog};

/// Requests of one connection.
///
/// A request that begins or ends wakes nobody: it would wake the task of its connection, which has other things
/// to do for it. The time of the last end is noted, and looked at when the connection may have been idle for long
/// enough.
pub(crate) struct Activity {
    under_way: AtomicU64,
    begun: Instant,
    /// When a request has last ended, in nanoseconds since `begun`.
    last_end: AtomicU64,
    /// Ends answers that the client leaves.
    watchdog: Watchdog,
    /// Whether the client lost an answer because it read none of its data.
    stalled: AtomicBool,
    /// Answers that ended because the client read none of their data, by number, each with the time of
    /// that. An answer stays here until the connection takes its end; until then the connection holds
    /// pieces of it.
    abandoned: Mutex<BTreeMap<u64, Instant>>,
    /// A request has ended while `stalled`.
    ended_stalled: Notify,
}

/// An answer whose client read none of it for too long, until the connection takes its end.
struct Abandoned {
    activity: Arc<Activity>,
    number: u64,
}

impl Drop for Abandoned {
    fn drop(&mut self) {
        let abandoned = &self.activity.abandoned;
        let mut abandoned = abandoned.lock().unwrap_or_else(PoisonError::into_inner);
        abandoned.remove(&self.number);
    }
}

impl Activity {
    /// Of a new connection. An answer ends if its client reads nothing of it for `stall_timeout`.
    pub(crate) fn new(stall_timeout: Duration) -> Activity {
        Activity {
            under_way: AtomicU64::new(0),
            begun: Instant::now(),
            last_end: AtomicU64::new(0),
            watchdog: Watchdog::new(stall_timeout),
            stalled: AtomicBool::new(false),
            abandoned: Mutex::default(),
            ended_stalled: Notify::new(),
        }
    }

    /// Begins a request. It ends when the returned [`Busy`] is dropped.
    pub(crate) fn begin(self: &Arc<Self>) -> Busy {
        self.under_way.fetch_add(1, Ordering::AcqRel);
        // A new request shows that the client reads again.
        self.stalled.store(false, Ordering::Release);
        Busy {
            activity: self.clone(),
            abandoned: false,
        }
    }

    fn abandon(self: &Arc<Self>) -> Abandoned {
        let mut abandoned = (self.abandoned.lock()).unwrap_or_else(PoisonError::into_inner);
        let number = abandoned.last_key_value().map_or(0, |(last, _)| last + 1);
        abandoned.insert(number, Instant::now());
        Abandoned {
            activity: self.clone(),
            number,
        }
    }

    /// Waits until an answer has been abandoned for `timeout`, and its memory is needed.
    pub(crate) async fn abandoned(&self, timeout: Duration, is_needed: impl Fn() -> bool) {
        loop {
            tokio::time::sleep(timeout).await;
            let oldest = {
                let abandoned = self
                    .abandoned
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner);
                abandoned.first_key_value().map(|(_, since)| *since)
            };
            if oldest.is_some_and(|since| since.elapsed() >= timeout) && is_needed() {
                return;
            }
        }
    }

    /// Waits until no request has been under way for `timeout`, from now on. If the client has stalled, it
    /// returns as soon as no request is under way.
    pub(crate) async fn idle(&self, timeout: Duration) {
        let mut since = Instant::now();
        loop {
            // A request that is under way ends now at the earliest.
            let next = match self.under_way.load(Ordering::Acquire) {
                0 => {
                    let last_end = Duration::from_nanos(self.last_end.load(Ordering::Acquire));
                    since = since.max(self.begun + last_end);
                    if self.stalled.load(Ordering::Acquire) || since.elapsed() >= timeout {
                        return;
                    }
                    since + timeout
                }
                _ => Instant::now() + timeout,
            };
            tokio::select! {
                () = self.ended_stalled.notified() => {}
                () = tokio::time::sleep_until(next) => {}
            }
        }
    }
}

/// A request that is under way.
pub(crate) struct Busy {
    activity: Arc<Activity>,
    /// Whether dropping it now counts as a stall of the client.
    abandoned: bool,
}

impl Busy {
    /// The answer, with whose body the request ends. If the client reads nothing of it for the time limit, the
    /// answer ends as its [`AtStall`] defines.
    pub(crate) fn until_sent(mut self, answer: Response) -> Response {
        let (mut head, body) = answer.into_parts();
        if body.is_end_stream() {
            // There is no body to send.
            return Response::from_parts(head, body);
        }
        let at_stall = head.extensions.remove().unwrap_or(AtStall::Fail);
        self.abandoned = true;
        let watchdog = self.activity.watchdog.clone();
        let pieces = Perishable::with(
            Pieces::Sending(body, self),
            &watchdog,
            move |pieces: Pieces| pieces.stall(at_stall),
        );
        Response::from_parts(head, Body::new(Answer(pieces)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        let activity = &self.activity;
        if self.abandoned {
            activity.stalled.store(true, Ordering::Release);
        }
        let end = activity.begun.elapsed().as_nanos();
        let end = u64::try_from(end).unwrap_or(u64::MAX);
        // Before the count: who finds that none is under way also finds when the last one has ended.
        activity.last_end.fetch_max(end, Ordering::AcqRel);
        activity.under_way.fetch_sub(1, Ordering::AcqRel);
        if activity.stalled.load(Ordering::Acquire) {
            activity.ended_stalled.notify_one();
        }
    }
}

/// What is left to send of an answer.
enum Pieces {
    Sending(Body, Busy),
    /// The client read nothing for too long. The body ends by itself.
    Ending(Body, #[allow(dead_code)] Abandoned),
    /// The client read nothing for too long. The body was dropped; this frame follows what was sent.
    End(Option<(Frame<Bytes>, Abandoned)>),
    /// The client read nothing for too long. What was sent cannot be continued.
    Failed(#[allow(dead_code)] Abandoned),
}

impl Pieces {
    /// What is left to send after a stall. The request is no longer under way.
    fn stall(self, at_stall: AtStall) -> Option<Pieces> {
        let Pieces::Sending(body, busy) = self else {
            return Some(self);
        };
        metrics::counter!(STALLED).increment(1);
        let abandoned = busy.activity.abandon();
        Some(match at_stall {
            AtStall::Fail => Pieces::Failed(abandoned),
            AtStall::End(frame) => Pieces::End(Some((frame.into(), abandoned))),
            AtStall::Cancel(token) => {
                token.cancel();
                Pieces::Ending(body, abandoned)
            }
        })
    }

    fn poll_frame(
        &mut self,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        match self {
            Pieces::Sending(body, _) | Pieces::Ending(body, _) => {
                Pin::new(body).poll_frame(context)
            }
            Pieces::End(frame) => Poll::Ready(frame.take().map(|(frame, _)| Ok(frame))),
            Pieces::Failed(_) => Poll::Ready(Some(Err(axum::Error::new(Exhausted::Stalled)))),
        }
    }
}

/// Counts answers that ended because their clients read nothing for too long.
const STALLED: &str = "esker_http_answers_stalled_total";

/// Registers the counters.
pub(crate) fn describe() {
    metrics::counter!(STALLED).increment(0);
}

/// An answer that is being sent.
struct Answer(Perishable<Pieces>);

impl HttpBody for Answer {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = self.0.poll_part(|pieces| pieces.poll_frame(context));
        next.map(|next| next.unwrap_or_else(|Left| Some(Err(axum::Error::new(Exhausted::Stalled)))))
    }

    fn is_end_stream(&self) -> bool {
        let ended = self.0.look(|pieces| match pieces {
            Pieces::Sending(body, _) | Pieces::Ending(body, _) => body.is_end_stream(),
            Pieces::End(frame) => frame.is_none(),
            // It ends with an error.
            Pieces::Failed(_) => false,
        });
        ended.unwrap_or(false)
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.0.look(|pieces| match pieces {
            Pieces::Sending(body, _) | Pieces::Ending(body, _) => body.size_hint(),
            Pieces::End(_) | Pieces::Failed(_) => SizeHint::default(),
        });
        left.unwrap_or_default()
    }
}

impl Drop for Answer {
    fn drop(&mut self) {
        // The answer was sent in full, or its connection has ended. Neither is a stall.
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
        activity.begin().until_sent(answer).into_body()
    }

    fn pieces() -> Body {
        Body::from_stream(futures::stream::repeat(Ok::<_, Infallible>("piece")))
    }

    #[tokio::test(start_paused = true)]
    async fn a_connection_is_idle_once_its_last_answer_is_long_gone() {
        let activity = Arc::new(Activity::new(TIMEOUT));
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

        // A request that ends while it is waited for counts from its end.
        let waits = tokio::spawn({
            let activity = activity.clone();
            async move { activity.idle(TIMEOUT).await }
        });
        for _ in 0..20 {
            let busy = activity.begin();
            tokio::time::sleep(TIMEOUT / 5 * 4).await;
            drop(busy);
            assert!(!waits.is_finished(), "it was idle for a moment only");
        }
        let ended = tokio::time::Instant::now();
        waits.await.unwrap();
        let idle = ended.elapsed();
        assert!(
            TIMEOUT <= idle && idle < TIMEOUT * 6 / 5,
            "it is idle since the last end: {idle:?}"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn requests_do_not_wake_the_task_of_their_connection() {
        let activity = Arc::new(Activity::new(LONG));
        let mut idle = std::pin::pin!(activity.idle(LONG));
        let (waker, wakes) = counting_waker();
        let mut context = Context::from_waker(&waker);
        assert!(idle.as_mut().poll(&mut context).is_pending());
        for _ in 0..100 {
            drop(
                activity
                    .begin()
                    .until_sent(Response::new(Body::from("answer"))),
            );
        }
        assert_eq!(wakes.load(Ordering::Relaxed), 0);
    }

    /// A waker that counts.
    fn counting_waker() -> (std::task::Waker, Arc<AtomicU64>) {
        struct Counting(Arc<AtomicU64>);
        impl std::task::Wake for Counting {
            fn wake(self: Arc<Self>) {
                self.0.fetch_add(1, Ordering::Relaxed);
            }
        }
        let wakes = Arc::new(AtomicU64::new(0));
        (Arc::new(Counting(wakes.clone())).into(), wakes)
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_of_which_nothing_is_taken_ends_and_its_connection_is_idle_at_once() {
        let activity = Arc::new(Activity::new(TIMEOUT));
        // Dropping an answer is no stall.
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

    #[tokio::test(start_paused = true)]
    async fn an_answer_is_abandoned_until_its_end_is_taken_and_only_where_memory_is_needed() {
        let activity = Arc::new(Activity::new(TIMEOUT));
        let frame = || Some(AtStall::End(EndFrame::Data("end".into())));
        let mut bodies = [frame(), Some(AtStall::Fail), frame()]
            .map(|at_stall| sent(&activity, pieces(), at_stall));
        for body in &mut bodies {
            body.frame().await.unwrap().unwrap();
        }
        activity.abandoned(TIMEOUT, || true).await;
        let unneeded = activity.abandoned(TIMEOUT, || false);
        assert!(tokio::time::timeout(TIMEOUT * 4, unneeded).await.is_err());
        let [mut first, mut failed, left] = bodies;
        first.frame().await.unwrap().unwrap();
        failed.frame().await.unwrap().unwrap_err();
        drop((failed, left));
        let taken = activity.abandoned(TIMEOUT, || true);
        assert!(tokio::time::timeout(TIMEOUT * 4, taken).await.is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_says_how_long_it_is_and_when_it_has_ended() {
        let activity = Arc::new(Activity::new(TIMEOUT));
        let mut body = sent(&activity, Body::from("answer"), None);
        assert_eq!(body.size_hint().exact(), Some(6));
        let frame = body.frame().await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), "answer");
        assert!(body.is_end_stream());
        assert!(sent(&activity, Body::empty(), None).is_end_stream());
    }

    #[tokio::test(start_paused = true)]
    async fn a_session_of_which_nothing_is_taken_ends_as_it_says() {
        let activity = Arc::new(Activity::new(TIMEOUT));
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
