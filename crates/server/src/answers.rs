//! Memory of answers until their clients have taken them.
//!
//! As a tree of messages, a value takes many times its size (a list of nulls 11 times), so there is a
//! tree of one value at a time, which is encoded at once. Answers are held as bytes, and the bytes are
//! counted:
//!
//! - [`MAX_SCANS`] scans run at a time, each with at most [`MAX_ANSWER`](crate::state::MAX_ANSWER) bytes,
//!   and twice that while they become a message. [`MAX_WAITING`] more that have ended may wait for memory
//!   without the place of a scan, so that clients which read nothing do not stop other scans;
//! - answers to reads that clients have not taken yet have at most [`MAX_HELD`] bytes for scans, and as
//!   many for all others. Of these no principal holds more than [`MAX_OVER_FREE`] times what is free, so that
//!   clients which read nothing refuse only their own. Sessions and streams do not count here: they produce the next
//!   piece when the client has taken the last one, and count as memory of read sessions;
//! - [`MAX_EXPORTS`] exports and verifications run at a time: each has a thread and a view of the database.
//!
//! A client that reads nothing for `limits.stall-timeout` loses its answer. Beyond these bounds a scan
//! waits for up to [`WAIT_TIMEOUT`] and is then refused; any other read is refused at once. Answers to
//! writes are small and never refused.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use esker_node::Client;
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

use crate::watchdog::{Left, Perishable, Watchdog};

/// Scans that run at a time.
const MAX_SCANS: usize = 2;
/// Bytes of answers that clients have not taken yet: one limit for scans, and the same for all others.
const MAX_HELD: usize = 128 * 1024 * 1024;
/// Most bytes of a principal's answers, as a multiple of those that are free: one alone has three quarters.
const MAX_OVER_FREE: usize = 3;
/// Scans that have ended and wait for memory for their results.
const MAX_WAITING: usize = 2;
/// Bytes up to which the result of a scan may count among all other answers: one page.
const SMALL_SCAN: usize = 4 * 1024 * 1024;
/// Exports and verifications that run at a time.
const MAX_EXPORTS: usize = 4;
/// How long a scan waits for others.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are handed to a connection at a time: it holds them, however little its client reads.
const CHUNK: usize = 64 * 1024;

/// Why there is no answer now.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Exhausted {
    /// Other scans run.
    #[error(
        "{MAX_SCANS} scans run at a time, and these took longer than {WAIT_TIMEOUT:?}: try again"
    )]
    Scans,
    /// Other exports run.
    #[error("{MAX_EXPORTS} exports and verifications run at a time: try again when one has ended")]
    Exports,
    /// Answers that clients have not taken.
    #[error(
        "clients have not yet taken answers of {} MiB, all that may be held: try again",
        MAX_HELD >> 20
    )]
    Held,
    /// Answers that this principal's clients have not taken.
    #[error(
        "your clients have not yet taken what they were answered, all that one principal may leave: take the answers, \
         and try again"
    )]
    HeldByPrincipal,
    /// What read sessions have read and their clients have not taken.
    #[error("clients have not yet taken what they read, all of `limits.read-sessions`: try again")]
    Reads,
    /// The client reads nothing.
    #[error(
        "the answer was ended because its client took nothing of it for `limits.stall-timeout`: connect again, and \
         continue after what arrived"
    )]
    Stalled,
}

/// How an answer ends when its client reads nothing of it: an extension of the response.
#[derive(Clone, Debug)]
pub(crate) enum AtStall {
    /// With an error of the connection: what was sent cannot be continued.
    Fail,
    /// The body is dropped at once, and this frame ends what was sent.
    End(EndFrame),
    /// The token is cancelled, and the body ends by itself: what is in flight is still answered.
    Cancel(CancellationToken),
}

/// A frame that ends an answer.
#[derive(Clone, Debug)]
pub(crate) enum EndFrame {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<EndFrame> for Frame<Bytes> {
    fn from(frame: EndFrame) -> Frame<Bytes> {
        match frame {
            EndFrame::Data(data) => Frame::data(data),
            EndFrame::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// What all requests share.
#[derive(Clone, Debug)]
pub(crate) struct Answers {
    scans: Arc<Semaphore>,
    held: Arc<Semaphore>,
    /// Bytes of `held` of each principal that has some.
    held_of: Arc<Mutex<HashMap<u64, usize>>>,
    /// The same as `held`, for scans: a scan that waits takes all permits that become free, and other
    /// reads must not be refused for that.
    held_by_scans: Arc<Semaphore>,
    /// Places of scans that have ended and wait for memory for their results.
    waiting: Arc<Semaphore>,
    exports: Arc<Semaphore>,
    wait_timeout: Duration,
    /// Ends what its client leaves.
    watchdog: Watchdog,
}

/// The place of a running scan, in the extensions of its answer.
#[derive(Clone)]
pub(crate) struct Scanning(#[allow(dead_code)] Arc<OwnedSemaphorePermit>);

impl Answers {
    /// `stall_timeout` is how long a client may read nothing of its answer.
    pub(crate) fn new(stall_timeout: Duration) -> Answers {
        let semaphore = |permits| Arc::new(Semaphore::new(permits));
        Answers {
            scans: semaphore(MAX_SCANS),
            held: semaphore(MAX_HELD),
            held_of: Arc::default(),
            held_by_scans: semaphore(MAX_HELD),
            waiting: semaphore(MAX_WAITING),
            exports: semaphore(MAX_EXPORTS),
            wait_timeout: WAIT_TIMEOUT,
            watchdog: Watchdog::new(stall_timeout),
        }
    }

    /// Sets the gauges of what is held and runs now.
    pub(crate) fn publish(&self) {
        let used = |most: usize, of: &Semaphore| (most - of.available_permits()) as f64;
        metrics::gauge!("esker_answers_held_bytes", "of" => "scans")
            .set(used(MAX_HELD, &self.held_by_scans));
        metrics::gauge!("esker_answers_held_bytes", "of" => "others")
            .set(used(MAX_HELD, &self.held));
        metrics::gauge!("esker_state_scans_running").set(used(MAX_SCANS, &self.scans));
        metrics::gauge!("esker_state_exports_running").set(used(MAX_EXPORTS, &self.exports));
    }

    /// Waits until a scan may run.
    pub(crate) async fn scanning(&self) -> Result<Scanning, Exhausted> {
        let permit =
            tokio::time::timeout(self.wait_timeout, self.scans.clone().acquire_owned()).await;
        match permit {
            Ok(Ok(permit)) => Ok(Scanning(Arc::new(permit))),
            _ => Err(Exhausted::Scans),
        }
    }

    /// A permit to run an export or a verification.
    pub(crate) fn exporting(&self) -> Result<OwnedSemaphorePermit, Exhausted> {
        let permit = self.exports.clone().try_acquire_owned();
        permit.map_err(|_| Exhausted::Exports)
    }

    /// A permit to hold this many bytes for a client.
    pub(crate) fn hold(&self, client: Client, bytes: usize) -> Result<HeldPermit, Exhausted> {
        let principal = client.principal;
        // Locked until the bytes are taken, so that what is free stays so.
        let mut held_of = self.held_of.lock().unwrap_or_else(PoisonError::into_inner);
        let held = held_of.get(&principal).copied().unwrap_or_default();
        let left = self.held.available_permits().saturating_sub(bytes);
        if held > 0 && held + bytes > left.saturating_mul(MAX_OVER_FREE) {
            return Err(Exhausted::HeldByPrincipal);
        }
        let permit = self.held.clone().try_acquire_many_owned(permits(bytes));
        let permit = permit.map_err(|_| Exhausted::Held)?;
        if bytes > 0 {
            held_of.insert(principal, held + bytes);
        }
        drop(held_of);
        let share = Share {
            principal,
            bytes,
            held_of: self.held_of.clone(),
        };
        Ok(HeldPermit {
            _permit: permit,
            _share: Some(share),
        })
    }

    /// A permit to hold this many bytes that a scan found. The scan has ended by then. If there is no
    /// memory, it waits without its place; at most [`MAX_WAITING`] wait.
    pub(crate) async fn hold_scan(
        &self,
        client: Client,
        bytes: usize,
        scanning: Scanning,
    ) -> Result<HeldPermit, Exhausted> {
        let held = self.held_by_scans.clone();
        if let Ok(permit) = held.clone().try_acquire_many_owned(permits(bytes)) {
            return Ok(permit.into());
        }
        if bytes <= SMALL_SCAN
            && let Ok(permit) = self.hold(client, bytes)
        {
            return Ok(permit);
        }
        let waiting = self.waiting.clone().try_acquire_owned();
        let _waiting = waiting.map_err(|_| Exhausted::Held)?;
        drop(scanning);
        let permit = held.acquire_many_owned(permits(bytes));
        match tokio::time::timeout(self.wait_timeout, permit).await {
            Ok(Ok(permit)) => Ok(permit.into()),
            _ => Err(Exhausted::Held),
        }
    }

    /// The body of an answer that is held as bytes, which `permit` counts.
    pub(crate) fn body(
        &self,
        data: Bytes,
        trailers: Option<HeaderMap>,
        permit: HeldPermit,
    ) -> Body {
        let held = Held {
            data,
            trailers,
            _permit: permit,
        };
        Body::new(HeldBody {
            held: Perishable::new(held, &self.watchdog),
            ended: false,
        })
    }

    /// A stream that ends when its client reads nothing of it for the stall timeout. The stream and
    /// `permit` are dropped then.
    pub(crate) fn perishable<I: Send + 'static>(
        &self,
        stream: BoxStream<'static, I>,
        permit: impl Send + 'static,
        stalled: impl Fn(Exhausted) -> I + Send + 'static,
    ) -> BoxStream<'static, I> {
        let parts = Perishable::new((stream, permit), &self.watchdog);
        let mut ended = false;
        futures::stream::poll_fn(move |context| {
            if ended {
                return Poll::Ready(None);
            }
            let next = parts.poll_part(|(stream, _)| stream.poll_next_unpin(context));
            next.map(|next| match next {
                Ok(next) => next,
                Err(Left) => {
                    ended = true;
                    Some(stalled(Exhausted::Stalled))
                }
            })
        })
        .boxed()
    }
}

fn permits(bytes: usize) -> u32 {
    u32::try_from(bytes).unwrap_or(u32::MAX)
}

/// An answer that has become bytes.
struct Held {
    data: Bytes,
    trailers: Option<HeaderMap>,
    _permit: HeldPermit,
}

/// Bytes that an answer holds. They are released when it is dropped.
#[derive(Debug)]
pub(crate) struct HeldPermit {
    _permit: OwnedSemaphorePermit,
    _share: Option<Share>,
}

impl From<OwnedSemaphorePermit> for HeldPermit {
    fn from(permit: OwnedSemaphorePermit) -> HeldPermit {
        HeldPermit {
            _permit: permit,
            _share: None,
        }
    }
}

/// What counts for a principal.
#[derive(Debug)]
struct Share {
    principal: u64,
    bytes: usize,
    held_of: Arc<Mutex<HashMap<u64, usize>>>,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut held_of = self.held_of.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(held) = held_of.get_mut(&self.principal) {
            *held = held.saturating_sub(self.bytes);
            if *held == 0 {
                held_of.remove(&self.principal);
            }
        }
    }
}

struct HeldBody {
    held: Perishable<Held>,
    ended: bool,
}

impl HttpBody for HeldBody {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        _: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        if self.ended {
            return Poll::Ready(None);
        }
        let next = self.held.poll_part(|held| {
            if held.data.is_empty() {
                return Poll::Ready(held.trailers.take().map(Frame::trailers));
            }
            let length = held.data.len().min(CHUNK);
            // A copy: a slice would keep the whole answer in memory.
            let chunk = Bytes::copy_from_slice(&held.data.split_to(length));
            Poll::Ready(Some(Frame::data(chunk)))
        });
        next.map(|next| match next {
            Ok(frame) => {
                self.ended = frame.as_ref().is_none_or(Frame::is_trailers);
                frame.map(Ok)
            }
            Err(Left) => {
                self.ended = true;
                Some(Err(axum::Error::new(Exhausted::Stalled)))
            }
        })
    }

    fn is_end_stream(&self) -> bool {
        self.ended
    }

    fn size_hint(&self) -> SizeHint {
        let left = self.held.look(|held| held.data.len() as u64);
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt as _;

    use super::*;

    const STALL: Duration = Duration::from_millis(100);

    fn of(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    #[tokio::test]
    async fn answers_that_one_principal_does_not_take_refuse_only_its_own() {
        const MIB: usize = 1024 * 1024;
        let answers = Answers::new(STALL);
        let mut unread = Vec::new();
        while let Ok(permit) = answers.hold(of(1), MIB) {
            unread.push(permit);
        }
        assert_eq!(unread.len() * MIB, MAX_HELD / 4 * 3);
        let refused = answers.hold(of(1), MIB).unwrap_err();
        assert_eq!(refused, Exhausted::HeldByPrincipal);
        let other = answers.hold(of(2), MIB).unwrap();
        // What is taken counts no more.
        drop(unread);
        drop(answers.hold(of(1), MIB).unwrap());
        drop(other);
        assert!(answers.held_of.lock().unwrap().is_empty());
        assert_eq!(answers.held.available_permits(), MAX_HELD);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_gives_its_bytes_back() {
        let answers = Answers::new(STALL);
        let all = answers.hold(of(1), MAX_HELD).unwrap();
        assert_eq!(answers.hold(of(2), 1).unwrap_err(), Exhausted::Held);
        drop(all);
        let scanning = answers.scanning().await.unwrap();
        let permit = answers.hold_scan(of(1), MAX_HELD, scanning).await.unwrap();
        // What scans hold does not refuse other reads.
        drop(answers.hold(of(1), 1).unwrap());
        let begun = tokio::time::Instant::now();
        let mut body = answers.body(Bytes::from(vec![7; MAX_HELD]), None, permit);
        body.frame().await.unwrap().unwrap();
        // It waits for the bytes.
        let scanning = answers.scanning().await.unwrap();
        drop(answers.hold_scan(of(1), MAX_HELD, scanning).await.unwrap());
        assert!(begun.elapsed() >= STALL);
        body.frame().await.unwrap().unwrap_err();
        assert!(body.frame().await.is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_is_taken_slowly_comes_whole() {
        let answers = Answers::new(Duration::from_secs(30));
        let data: Bytes = (0..CHUNK * 3 + 1).map(|it| it as u8).collect();
        let permit = answers.hold(of(1), data.len()).unwrap();
        let mut body = answers.body(data.clone(), Some(HeaderMap::new()), permit);
        let mut taken = Vec::new();
        while let Some(frame) = body.frame().await {
            if let Ok(data) = frame.unwrap().into_data() {
                assert!(data.len() <= CHUNK);
                taken.extend_from_slice(&data);
            }
        }
        assert_eq!(taken, data);
        drop(body);
        assert_eq!(answers.held.available_permits(), MAX_HELD);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_for_which_the_client_waits_is_not_ended_and_one_that_it_leaves_is() {
        let answers = Answers::new(STALL);
        let slow = futures::stream::once(tokio::time::sleep(STALL * 4)).map(|()| Ok(()));
        let permit = answers.exporting().unwrap();
        let mut stream = answers.perishable(slow.boxed(), permit, Err);
        assert_eq!(stream.next().await, Some(Ok(())));
        let held = answers.exports.available_permits();
        assert_eq!(held, MAX_EXPORTS - 1);
        while answers.exports.available_permits() == held {
            tokio::time::sleep(STALL / 10).await;
        }
        assert_eq!(stream.next().await, Some(Err(Exhausted::Stalled)));
        assert_eq!(stream.next().await, None);
    }

    #[tokio::test(start_paused = true)]
    async fn scans_whose_answers_wait_for_memory_keep_no_place_of_those_that_run() {
        let answers = Answers::new(STALL);
        let scanning = answers.scanning().await.unwrap();
        let unread = answers.hold_scan(of(1), MAX_HELD, scanning).await.unwrap();
        let mut waiting = Vec::new();
        for _ in 0..MAX_WAITING {
            let scanning = answers.scanning().await.unwrap();
            let answers = answers.clone();
            waiting.push(tokio::spawn(async move {
                answers.hold_scan(of(1), SMALL_SCAN + 1, scanning).await
            }));
        }
        while answers.waiting.available_permits() > 0 {
            tokio::task::yield_now().await;
        }
        // All places of scans are free; small answers are held among the others, larger ones refused.
        assert_eq!(answers.scans.available_permits(), MAX_SCANS);
        let scanning = answers.scanning().await.unwrap();
        drop(
            answers
                .hold_scan(of(1), SMALL_SCAN, scanning)
                .await
                .unwrap(),
        );
        let scanning = answers.scanning().await.unwrap();
        let refused = answers.hold_scan(of(1), SMALL_SCAN + 1, scanning).await;
        assert_eq!(refused.unwrap_err(), Exhausted::Held);
        drop(unread);
        for answer in waiting {
            drop(answer.await.unwrap().unwrap());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn scans_wait_for_each_other_and_exports_are_refused() {
        let answers = Answers {
            wait_timeout: STALL,
            ..Answers::new(STALL)
        };
        let mut scans = Vec::new();
        for _ in 0..MAX_SCANS {
            scans.push(answers.scanning().await.unwrap());
        }
        assert_eq!(answers.scanning().await.err(), Some(Exhausted::Scans));
        scans.pop();
        answers.scanning().await.unwrap();

        let exports: Vec<_> = (0..MAX_EXPORTS)
            .map(|_| answers.exporting().unwrap())
            .collect();
        assert_eq!(answers.exporting().err(), Some(Exhausted::Exports));
        drop(exports);
        drop(answers.exporting().unwrap());
    }
}
