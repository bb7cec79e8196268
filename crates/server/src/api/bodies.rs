//! Bodies on their way in: how slowly they may come, and how much of them is held.
//!
//! A body may be behind [`MIN_RATE`] by `limits.header-timeout` at most; only the time in which the
//! server waits for the client counts. What has arrived is held until the request is answered, and counts
//! against `limits.request-bodies`, over all connections. Where there is none left, a body waits, for
//! [`ADMISSION_TIMEOUT`] at most, and the client is stopped by the flow control of its connection.
//!
//! Append sessions are neither: they are open for as long as their clients like, and what they send is
//! admitted by batch.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio::time::{Instant, Sleep};
use tokio_util::sync::PollSemaphore;
use tonic::Status;

use super::ServiceError;
use crate::request_guard::{content_type, is_grpc};

/// Bytes a second that a body has to come with.
const MIN_RATE: u64 = 16 * 1024;
/// How long a body waits for others to be answered.
const ADMISSION_TIMEOUT: Duration = Duration::from_secs(10);

/// The method that takes a body of any size, and passes it on.
const IMPORT: &str = "/esker.state.v1.StateService/Import";

/// What all bodies share.
#[derive(Clone, Debug)]
pub struct Bodies {
    held: Arc<Semaphore>,
    timeout: Duration,
    admission_timeout: Duration,
}

impl Bodies {
    /// `held` bytes at most; a body is behind [`MIN_RATE`] by `timeout` at most.
    pub fn new(held: usize, timeout: Duration) -> Bodies {
        Bodies {
            held: Arc::new(Semaphore::new(held.min(Semaphore::MAX_PERMITS))),
            timeout,
            admission_timeout: ADMISSION_TIMEOUT,
        }
    }
}

/// Why a body was given up.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Slow,
    Full,
}

/// What a request holds, and why its body ended.
#[derive(Default)]
struct Held {
    permit: Option<OwnedSemaphorePermit>,
    ended: Option<Ended>,
}

/// Admits the body of a request.
pub async fn admit(State(bodies): State<Bodies>, request: Request, next: Next) -> Response {
    let is_session = content_type(request.headers()).is_some_and(|kind| kind == "s2s/proto");
    if is_session || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let is_grpc = is_grpc(request.uri().path());
    let held = Arc::new(Mutex::new(Held::default()));
    let passes = request.uri().path() == IMPORT;
    let request = request.map(|body| {
        let mut arriving = Arriving::new(body, &bodies, held.clone());
        arriving.passes = passes;
        Body::new(arriving)
    });
    let response = next.run(request).await;
    let (ended, permit) = {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        (held.ended, held.permit.take())
    };
    drop(permit);
    match ended {
        None => response,
        Some(ended) if is_grpc => {
            let text = ServiceError::from(ended).to_string();
            match ended {
                Ended::Slow => Status::deadline_exceeded(text),
                Ended::Full => Status::resource_exhausted(text),
            }
            .into_http()
        }
        Some(ended) => ServiceError::from(ended).into_response(),
    }
}

impl From<Ended> for ServiceError {
    fn from(ended: Ended) -> ServiceError {
        match ended {
            Ended::Slow => ServiceError::SlowBody,
            Ended::Full => ServiceError::BodiesFull,
        }
    }
}

/// A body that is admitted as it comes.
struct Arriving {
    body: Body,
    budget: PollSemaphore,
    held: Arc<Mutex<Held>>,
    /// Data that has not been admitted yet.
    waiting: Option<Bytes>,
    admission_timeout: Duration,
    /// Whether what came before is gone when the next piece is asked for.
    passes: bool,
    /// How long the client may still keep the server waiting.
    allowance: Duration,
    /// Since when, and until when, something is waited for.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Arriving {
    fn new(body: Body, bodies: &Bodies, held: Arc<Mutex<Held>>) -> Arriving {
        Arriving {
            body,
            budget: PollSemaphore::new(bodies.held.clone()),
            held,
            waiting: None,
            admission_timeout: bodies.admission_timeout,
            passes: false,
            allowance: bodies.timeout,
            wait: None,
        }
    }

    /// Pending until `limit` is over, then an error.
    fn wait<T>(
        &mut self,
        context: &mut Context<'_>,
        limit: Duration,
        ended: Ended,
    ) -> Poll<Option<Result<T, axum::Error>>> {
        let (_, sleep) = self.wait.get_or_insert_with(|| {
            let sleep = Box::pin(tokio::time::sleep(limit));
            (Instant::now(), sleep)
        });
        ready!(sleep.as_mut().poll(context));
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.ended = Some(ended);
        let error = ServiceError::from(ended).to_string();
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(error)))))
    }
}

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.waiting.is_none() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                let allowance = self.allowance;
                return self.wait(context, allowance, Ended::Slow);
            };
            if let Some((since, _)) = self.wait.take() {
                self.allowance = self.allowance.saturating_sub(since.elapsed());
            }
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if !data.is_empty() => {
                    let nanos = data.len() as u64 * 1_000_000_000 / MIN_RATE;
                    self.allowance += Duration::from_nanos(nanos);
                    self.waiting = Some(data);
                }
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        if self.passes {
            let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
            held.permit.take();
        }
        let bytes = self.waiting.as_ref().map_or(0, Bytes::len);
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        let Poll::Ready(permit) = self.budget.poll_acquire_many(context, bytes) else {
            let limit = self.admission_timeout;
            return self.wait(context, limit, Ended::Full);
        };
        self.wait = None;
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        match (&mut held.permit, permit) {
            (Some(all), Some(more)) => all.merge(more),
            (all, more) => *all = more,
        }
        drop(held);
        let data = self.waiting.take().unwrap_or_default();
        Poll::Ready(Some(Ok(Frame::data(data))))
    }

    fn is_end_stream(&self) -> bool {
        self.waiting.is_none() && self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        match self.waiting {
            None => self.body.size_hint(),
            Some(_) => SizeHint::default(),
        }
    }
}

#[cfg(test)]
mod tests {
    use futures::{StreamExt as _, stream};
    use http_body_util::BodyExt as _;

    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(200);

    fn arriving(body: Body, bodies: &Bodies) -> (Arriving, Arc<Mutex<Held>>) {
        let held = Arc::new(Mutex::new(Held::default()));
        (Arriving::new(body, bodies, held.clone()), held)
    }

    /// One piece of so many bytes, again and again, after a pause each.
    fn trickle(bytes: usize, pause: Duration) -> Body {
        let pieces = stream::repeat(Bytes::from(vec![0; bytes])).then(move |piece| async move {
            tokio::time::sleep(pause).await;
            Ok::<_, std::io::Error>(piece)
        });
        Body::from_stream(pieces.take(20))
    }

    #[tokio::test]
    async fn a_body_that_comes_too_slowly_is_given_up_in_the_stated_time() {
        let bodies = Bodies::new(1 << 30, TIMEOUT);
        let (body, held) = arriving(trickle(1, TIMEOUT / 8), &bodies);
        let begun = Instant::now();
        body.collect().await.unwrap_err();
        assert_eq!(held.lock().unwrap().ended, Some(Ended::Slow));
        assert!(begun.elapsed() >= TIMEOUT);

        // At the rate that is asked for, it may take as long as it likes.
        let (body, held) = arriving(trickle(MIN_RATE as usize, TIMEOUT / 8), &bodies);
        body.collect().await.unwrap();
        assert_eq!(held.lock().unwrap().ended, None);
    }

    #[tokio::test]
    async fn what_bodies_hold_is_bounded_and_given_back() {
        let bodies = Bodies {
            admission_timeout: TIMEOUT,
            ..Bodies::new(100, TIMEOUT)
        };
        let (mut first, one) = arriving(Body::from(vec![0; 60]), &bodies);
        first.frame().await.unwrap().unwrap();
        assert_eq!(bodies.held.available_permits(), 40);
        let (mut second, two) = arriving(Body::from(vec![0; 60]), &bodies);
        second.frame().await.unwrap().unwrap_err();
        assert_eq!(two.lock().unwrap().ended, Some(Ended::Full));
        drop((second, two));

        let bodies = Bodies {
            admission_timeout: Duration::from_secs(30),
            ..bodies
        };
        let (mut third, _three) = arriving(Body::from(vec![0; 60]), &bodies);
        let waiting = tokio::spawn(async move { third.frame().await.unwrap().is_ok() });
        tokio::task::yield_now().await;
        one.lock().unwrap().permit.take();
        assert!(waiting.await.unwrap());

        // What passes may be of any size.
        let bodies = Bodies::new(100, TIMEOUT);
        let pieces =
            stream::repeat(Ok::<_, std::convert::Infallible>(Bytes::from(vec![0; 60]))).take(10);
        let (mut passing, _held) = arriving(Body::from_stream(pieces), &bodies);
        passing.passes = true;
        let mut bytes = 0;
        while let Some(piece) = passing.frame().await {
            bytes += piece.unwrap().into_data().unwrap().len();
            assert_eq!(bodies.held.available_permits(), 40);
        }
        assert_eq!(bytes, 600);
    }
}
