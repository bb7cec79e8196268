//! Admission of request bodies: how slowly they may arrive, and how much memory they hold.
//!
//! A body may lag behind [`MIN_RATE`] by `limits.header-timeout` at most; only the time in which the
//! server waits for the client counts. What has arrived is held until the request is answered, and counts
//! against [`BodyBudget`], which all connections share: a body of known length claims all of it once a
//! sixteenth has arrived, any other as it arrives. If no memory is left, a body waits up to a time limit,
//! and the flow control of its connection stops the client.
//!
//! Append sessions stay open for as long as their clients like; their frames count instead: see
//! [`session_inputs`](super::session_inputs).

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::middleware::Next;
use axum::response::{IntoResponse as _, Response};
use esker_node::Client;
use hyper::body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::{Instant, Sleep};

use super::ServiceError;
use super::begun_body::begun;
use super::body_budget::{BodyBudget, Claim, Full, MAX_SMALL, of_known_length};
use crate::client::client;
use crate::forwarded::is_forwarded;
use crate::request_guard::{is_grpc, is_session};
use crate::state::status::{too_large, too_slow, unavailable};

/// Bytes a second at which a body has to arrive.
const MIN_RATE: u64 = 16 * 1024;

/// The method whose body may be of any size and is passed on as it arrives.
const IMPORT: &str = "/esker.state.v1.StateService/Import";

/// What all bodies share.
#[derive(Clone, Debug)]
pub struct Bodies {
    pub(super) budget: BodyBudget,
    timeout: Duration,
}

impl Bodies {
    /// `held` bytes in all, at most `max_body` of one body; a body may lag behind [`MIN_RATE`] by
    /// `timeout`.
    pub fn new(held: usize, max_body: usize, timeout: Duration) -> Bodies {
        Bodies {
            budget: BodyBudget::new(held, max_body),
            timeout,
        }
    }

    /// How long the rest of a frame with this many bytes may take.
    pub(super) fn arrival_timeout(&self, bytes: usize) -> Duration {
        self.timeout + at_min_rate(bytes)
    }

    /// Memory for what is kept of a body of this client; none yet.
    pub(crate) fn kept(&self, client: Client) -> Kept {
        Kept(self.budget.claim(client))
    }

    /// Bytes that bodies and frames hold now.
    pub(crate) fn held(&self) -> usize {
        self.budget.claimed()
    }

    /// How many bodies and frames wait for memory now.
    pub(crate) fn waiting(&self) -> usize {
        self.budget.waiting()
    }
}

/// Memory for the beginning of a body that another node is sent.
#[derive(Debug)]
pub(crate) struct Kept(Claim);

impl Kept {
    /// Whether there is memory for so many bytes in all, without waiting.
    pub(crate) fn cover(&mut self, bytes: usize) -> bool {
        self.0.try_extend(bytes)
    }
}

/// The time that this many bytes take at [`MIN_RATE`].
fn at_min_rate(bytes: usize) -> Duration {
    Duration::from_nanos(bytes as u64 * 1_000_000_000 / MIN_RATE)
}

/// Why the rest of a body was not read.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Ended {
    Slow,
    Full,
    /// It is larger than any request may be.
    Large,
}

/// What a request holds, and why its body ended.
struct Held {
    claim: Claim,
    ended: Option<Ended>,
}

/// What a request holds, in its extensions: what its body becomes counts with it, as one claim. Two of one request could
/// wait for each other.
#[derive(Clone)]
pub(super) struct Holds(Arc<Mutex<Held>>);

impl Holds {
    /// That of a request which was admitted; a new one if it was not.
    pub(super) fn of(request: &Request, bodies: &Bodies) -> Holds {
        let found = request.extensions().get::<Holds>().cloned();
        found.unwrap_or_else(|| Holds(Held::new(bodies, client(request.extensions()))))
    }

    /// Makes it cover so many bytes more, if that needs no waiting.
    pub(super) fn try_extend(&self, more: usize) -> bool {
        let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let bytes = held.claim.covered() + more;
        held.claim.try_extend(bytes)
    }

    /// The same, and waits for memory. While it waits, it holds what it has.
    ///
    /// # Errors
    ///
    /// There is none in time: the request holds nothing any longer.
    pub(super) async fn extend(
        &self,
        bodies: &Bodies,
        client: Client,
        more: usize,
    ) -> Result<(), Full> {
        let claim = {
            let mut held = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            std::mem::replace(&mut held.claim, bodies.budget.claim(client))
        };
        let bytes = claim.covered() + more;
        let claim = claim.extend(bytes).await?;
        self.0.lock().unwrap_or_else(PoisonError::into_inner).claim = claim;
        Ok(())
    }
}

impl Held {
    fn new(bodies: &Bodies, client: Client) -> Arc<Mutex<Held>> {
        Arc::new(Mutex::new(Held {
            claim: bodies.budget.claim(client),
            ended: None,
        }))
    }
}

/// Admits the body of a request.
pub async fn admit(State(bodies): State<Bodies>, request: Request, next: Next) -> Response {
    if is_session(request.headers()) || request.body().is_end_stream() {
        return next.run(request).await;
    }
    let is_grpc = is_grpc(request.uri().path());
    let client = client(request.extensions());
    let held = Held::new(&bodies, client);
    let passes = request.uri().path() == IMPORT;
    let mut request = request;
    request.extensions_mut().insert(Holds(held.clone()));
    let request = request.map(|body| {
        let mut arriving = Arriving::new(body, &bodies, client, held.clone());
        arriving.passes = passes;
        arriving.endless = is_grpc;
        Body::new(arriving)
    });
    // Of a request of another node, nothing is handled before something of the body has come, if only its end: that
    // node knows then that nothing has happened if it has passed on nothing. Calls do nothing by themselves before
    // they have read a message.
    let is_begun = !is_grpc && is_forwarded(request.extensions());
    let response = match is_begun {
        false => next.run(request).await,
        true => match begun(request).await {
            Ok(request) => next.run(request).await,
            // The other node has gone, or what has ended the body is answered below.
            Err(_) => ServiceError::SlowBody.into_response(),
        },
    };
    let ended = {
        let mut held = held.lock().unwrap_or_else(PoisonError::into_inner);
        held.claim.release();
        held.ended
    };
    match ended {
        None => response,
        Some(ended) if is_grpc => {
            let text = ServiceError::from(ended).to_string();
            match ended {
                Ended::Slow => too_slow(text),
                Ended::Full => unavailable(text),
                Ended::Large => too_large(),
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
            Ended::Large => ServiceError::Validation("the request is too large".into()),
        }
    }
}

/// A claim that waits for memory.
type Claiming = Pin<Box<dyn Future<Output = Result<Claim, Full>> + Send>>;

/// A body that is admitted as it arrives.
struct Arriving {
    body: Body,
    budget: BodyBudget,
    client: Client,
    held: Arc<Mutex<Held>>,
    /// Its length, if that is known.
    length: Option<usize>,
    /// Bytes that have arrived and count.
    arrived: usize,
    /// Data that has not been admitted yet, and the claim for it.
    waiting: Option<(Bytes, Claiming)>,
    /// Whether each piece has been released when the next one is read.
    passes: bool,
    /// Whether the reader accepts more than a request may have.
    endless: bool,
    /// How long the client may still make the server wait.
    allowance: Duration,
    /// Since when, and until when, the server waits for the client.
    wait: Option<(Instant, Pin<Box<Sleep>>)>,
}

impl Arriving {
    fn new(body: Body, bodies: &Bodies, client: Client, held: Arc<Mutex<Held>>) -> Arriving {
        let length = body.size_hint().exact();
        Arriving {
            body,
            budget: bodies.budget.clone(),
            client,
            held,
            length: length.map(|it| usize::try_from(it).unwrap_or(usize::MAX)),
            arrived: 0,
            waiting: None,
            passes: false,
            endless: false,
            allowance: bodies.timeout,
            wait: None,
        }
    }

    /// Pending until the client's time is over, then an error.
    fn wait(&mut self, context: &mut Context<'_>) -> Polled {
        let allowance = self.allowance;
        let (_, sleep) = self.wait.get_or_insert_with(|| {
            let sleep = Box::pin(tokio::time::sleep(allowance));
            (Instant::now(), sleep)
        });
        ready!(sleep.as_mut().poll(context));
        self.end(Ended::Slow)
    }

    fn end(&mut self, ended: Ended) -> Polled {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        held.ended = Some(ended);
        let error = ServiceError::from(ended).to_string();
        Poll::Ready(Some(Err(axum::Error::new(std::io::Error::other(error)))))
    }

    /// Bytes that have to be claimed now, given what has arrived.
    fn needed(&self) -> usize {
        let most = self.budget.max_claim();
        match self.length {
            // Pieces that pass are claimed one at a time.
            _ if self.passes => self.arrived,
            Some(length) => of_known_length(length.max(self.arrived).min(most), self.arrived),
            None => self.arrived.next_multiple_of(MAX_SMALL).min(most),
        }
    }

    /// Admits data, or begins to wait for memory.
    fn admit(&mut self, data: Bytes) -> Polled {
        let budget = self.budget.clone();
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        if self.passes {
            held.claim.release();
            self.arrived = 0;
        }
        self.arrived += data.len();
        if self.arrived > budget.max_claim() && self.endless {
            drop(held);
            return self.end(Ended::Large);
        }
        // A body that is larger than this is refused by its reader.
        if !held.claim.covers(self.arrived.min(budget.max_claim())) {
            let needed = self.needed();
            if !held.claim.try_extend(needed) {
                let nothing = budget.claim(self.client);
                let claim = std::mem::replace(&mut held.claim, nothing);
                self.waiting = Some((data, Box::pin(claim.extend(needed))));
                return Poll::Pending;
            }
        }
        Poll::Ready(Some(Ok(Frame::data(data))))
    }
}

type Polled = Poll<Option<Result<Frame<Bytes>, axum::Error>>>;

impl HttpBody for Arriving {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Polled {
        if self.waiting.is_none() {
            let Poll::Ready(frame) = Pin::new(&mut self.body).poll_frame(context) else {
                return self.wait(context);
            };
            if let Some((since, _)) = self.wait.take() {
                self.allowance = self.allowance.saturating_sub(since.elapsed());
            }
            match frame.map(|frame| frame.map(Frame::into_data)) {
                Some(Ok(Ok(data))) if !data.is_empty() => {
                    self.allowance += at_min_rate(data.len());
                    let admitted = self.admit(data);
                    if self.waiting.is_none() {
                        return admitted;
                    }
                }
                Some(Ok(Ok(data))) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                Some(Ok(Err(trailers))) => return Poll::Ready(Some(Ok(trailers))),
                Some(Err(error)) => return Poll::Ready(Some(Err(error))),
                None => return Poll::Ready(None),
            }
        }
        let claimed = match &mut self.waiting {
            Some((_, claiming)) => ready!(claiming.as_mut().poll(context)),
            None => return Poll::Pending,
        };
        let data = self.waiting.take().map(|(data, _)| data);
        match claimed {
            Ok(claim) => {
                let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
                held.claim = claim;
                drop(held);
                Poll::Ready(data.map(|data| Ok(Frame::data(data))))
            }
            Err(Full) => self.end(Ended::Full),
        }
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
    use crate::api::body_budget::STEP;
    use crate::forwarded::Forwarded;

    const TIMEOUT: Duration = Duration::from_millis(200);
    const KIB: usize = 1024;

    fn arriving(body: Body, bodies: &Bodies) -> (Arriving, Arc<Mutex<Held>>) {
        let client = Client::default();
        let held = Held::new(bodies, client);
        (Arriving::new(body, bodies, client, held.clone()), held)
    }

    /// A body of `count` pieces of `bytes` bytes, after a pause each.
    fn pieces(count: usize, bytes: usize, pause: Duration) -> Body {
        let pieces = stream::repeat(Bytes::from(vec![0; bytes])).then(move |piece| async move {
            match pause.is_zero() {
                true => tokio::task::yield_now().await,
                false => tokio::time::sleep(pause).await,
            }
            Ok::<_, std::io::Error>(piece)
        });
        Body::from_stream(pieces.take(count))
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_that_comes_too_slowly_is_given_up_in_the_stated_time() {
        let bodies = Bodies::new(1 << 30, 1 << 22, TIMEOUT);
        let (body, held) = arriving(pieces(20, 1, TIMEOUT / 8), &bodies);
        let begun = Instant::now();
        body.collect().await.unwrap_err();
        assert_eq!(held.lock().unwrap().ended, Some(Ended::Slow));
        assert!(begun.elapsed() >= TIMEOUT);

        // At the minimum rate, a body may take as long as it likes.
        let (body, held) = arriving(pieces(20, MIN_RATE as usize, TIMEOUT / 8), &bodies);
        body.collect().await.unwrap();
        assert_eq!(held.lock().unwrap().ended, None);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_of_known_length_claims_it_with_its_first_bytes_and_another_one_as_it_comes() {
        let bodies = Bodies::new(4096 * KIB, 1024 * KIB, TIMEOUT);
        let (mut known, held) = arriving(pieces(10, 10 * KIB, Duration::ZERO), &bodies);
        known.length = Some(100 * KIB);
        assert_eq!(bodies.held(), 0);
        known.frame().await.unwrap().unwrap();
        assert_eq!(bodies.held(), 100 * KIB);
        drop(known);
        // It is held until the request is answered.
        assert_eq!(bodies.held(), 100 * KIB);
        held.lock().unwrap().claim.release();
        assert_eq!(bodies.held(), 0);

        let (mut unknown, held) = arriving(pieces(10, 60 * KIB, Duration::ZERO), &bodies);
        for claimed in [64, 128, 192] {
            unknown.frame().await.unwrap().unwrap();
            assert_eq!(bodies.held(), claimed * KIB);
        }
        drop((unknown, held));

        // A body that is passed on may be of any size.
        let (mut passing, _held) = arriving(pieces(100, 60 * KIB, Duration::ZERO), &bodies);
        passing.passes = true;
        passing.endless = true;
        let mut bytes = 0;
        while let Some(piece) = passing.frame().await {
            bytes += piece.unwrap().into_data().unwrap().len();
            assert_eq!(bodies.held(), 60 * KIB);
        }
        assert_eq!(bytes, 6000 * KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn bodies_that_come_at_the_same_time_all_come_whole_however_many_there_are() {
        for known in [true, false] {
            let bodies = Bodies::new(4096 * KIB, 1024 * KIB, TIMEOUT);
            let mut requests = Vec::new();
            for _ in 0..50 {
                let (mut body, held) = arriving(pieces(50, 20 * KIB, Duration::ZERO), &bodies);
                body.length = known.then_some(1000 * KIB);
                let bodies = bodies.clone();
                requests.push(tokio::spawn(async move {
                    let whole = body.collect().await.map(|it| it.to_bytes().len());
                    assert!(bodies.held() <= 4096 * KIB + 50 * MAX_SMALL);
                    let ended = held.lock().unwrap().ended;
                    (whole.ok(), ended)
                }));
            }
            for request in requests {
                assert_eq!(request.await.unwrap(), (Some(1000 * KIB), None));
            }
            assert_eq!(bodies.held(), 0);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn clients_that_announce_much_and_send_little_leave_others_their_memory() {
        let mut bodies = Bodies::new(4096 * KIB, 1024 * KIB, TIMEOUT);
        bodies.budget.timeout = TIMEOUT;
        let mut idle = Vec::new();
        for _ in 0..16 {
            let (mut body, held) = arriving(Body::from("x"), &bodies);
            body.length = Some(1000 * KIB);
            body.frame().await.unwrap().unwrap();
            idle.push((body, held));
        }
        assert_eq!(bodies.held(), 16 * STEP);
        let (mut body, _held) = arriving(pieces(50, 20 * KIB, Duration::ZERO), &bodies);
        body.length = Some(1000 * KIB);
        assert_eq!(body.collect().await.unwrap().to_bytes().len(), 1000 * KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn a_body_without_memory_is_refused_and_one_that_nobody_bounds_is_ended() {
        let mut bodies = Bodies::new(2048 * KIB, 1024 * KIB, TIMEOUT);
        bodies.budget.timeout = TIMEOUT;
        let large = || pieces(1, 1000 * KIB, Duration::ZERO);
        let mut all = Vec::new();
        for _ in 0..2 {
            let (mut body, held) = arriving(large(), &bodies);
            body.frame().await.unwrap().unwrap();
            all.push((body, held));
        }
        let (mut third, held) = arriving(large(), &bodies);
        third.frame().await.unwrap().unwrap_err();
        assert_eq!(held.lock().unwrap().ended, Some(Ended::Full));
        // A small body still gets memory.
        let (mut small, held) = arriving(Body::from("{}"), &bodies);
        small.frame().await.unwrap().unwrap();
        drop((all, small, held));

        let (mut call, held) = arriving(pieces(100, 60 * KIB, Duration::ZERO), &bodies);
        call.endless = true;
        while let Some(Ok(_)) = call.frame().await {}
        assert_eq!(held.lock().unwrap().ended, Some(Ended::Large));
        // A small claim, three quarters of what is shared, and the reserve.
        let (small, shared) = (MAX_SMALL, 768 * KIB);
        assert!(bodies.held() <= small + shared + 1024 * KIB);
    }

    #[tokio::test(start_paused = true)]
    async fn a_request_of_another_node_is_handled_once_something_of_its_body_was_admitted() {
        use axum::{Router, middleware, routing::post};
        use tower::ServiceExt as _;

        let bodies = Bodies::new(4096 * KIB, 1024 * KIB, TIMEOUT);
        let seen = bodies.clone();
        let held = move |body: Body| {
            // Before anything is read here.
            let held = seen.held();
            async move {
                let read = body.collect().await.map(|body| body.to_bytes().len());
                format!("{held} {read:?}")
            }
        };
        let router = Router::new()
            .route("/", post(held))
            .layer(middleware::from_fn_with_state(bodies.clone(), admit));
        let ask = async |body: Body, is_forwarded: bool| {
            let mut request = Request::post("/").body(body).unwrap();
            if is_forwarded {
                let wait = Duration::ZERO;
                request.extensions_mut().insert(Forwarded { wait });
            }
            let answer = router.clone().oneshot(request).await.unwrap();
            let status = answer.status();
            let text = answer.into_body().collect().await.unwrap().to_bytes();
            (status.as_u16(), String::from_utf8_lossy(&text).into_owned())
        };
        let body = || pieces(2, 10 * KIB, Duration::ZERO);
        let two = 20 * KIB;
        assert_eq!(ask(body(), false).await, (200, format!("0 Ok({two})")));
        let first = MAX_SMALL;
        assert_eq!(ask(body(), true).await, (200, format!("{first} Ok({two})")));
        // The end of an empty body is enough; nothing at all is not.
        let empty = || Body::from_stream(stream::empty::<Result<Bytes, std::io::Error>>());
        assert_eq!(ask(empty(), true).await, (200, "0 Ok(0)".to_owned()));
        let never = Body::from_stream(stream::pending::<Result<Bytes, std::io::Error>>());
        let (status, text) = ask(never, true).await;
        assert_eq!(status, 408, "{text}");
        assert_eq!(bodies.held(), 0);
    }
}
