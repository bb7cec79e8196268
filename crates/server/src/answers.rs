//! Memory of answers until their clients have taken them.
//!
//! As a tree of messages, a value takes many times its size (a list of nulls 11 times), so there is a
//! tree of one value at a time, which is encoded at once. Answers are held as bytes, and the bytes are
//! counted:
//!
//! - [`MAX_SCANS`] scans run at a time, each with at most [`MAX_ANSWER`] bytes, and twice that while they become a
//!   message. A scan takes memory for all that it may find before it reads anything, and gives back what it does not
//!   need: none is made whose answer could not be held. Where there is not so much, it may find [`SMALL_SCAN`] bytes
//!   with memory of other answers; if it finds more, it ends at once, waits for the rest without the place of a scan,
//!   so that clients which read nothing do not stop other scans, and runs again;
//! - answers to reads that clients have not taken yet have at most [`MAX_HELD`] bytes for scans beside what running
//!   scans may find, and as many for all others. Sessions and streams do not count here: they produce the next piece
//!   when the client has taken the last one, and count as memory of read sessions;
//! - [`MAX_EXPORTS`] exports and verifications run at a time: each has a thread and a view of the database, for as
//!   long as its client takes to read it.
//!
//! Who waits does so in turns, by principal and then by connection ([`FairBudget`]). What clients decide how long to
//! keep (answers, exports) is shared: no principal holds more than three times what is free, so that clients which
//! read nothing or little refuse only their own.
//!
//! A client that reads nothing for `limits.stall-timeout` loses its answer. Beyond these bounds a scan or an export
//! waits for up to [`WAIT_TIMEOUT`] and is then refused; any other read is refused at once. Answers to
//! writes are small and never refused.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use bytes::Bytes;
use esker_node::{Client, FairBudget, FairPermit, NoTurn, SharePolicy};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use http::HeaderMap;
use http_body::{Body as HttpBody, Frame, SizeHint};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::watchdog::{Left, Perishable, Watchdog};

/// Most bytes of an answer of the state service that comes as a whole.
pub const MAX_ANSWER: usize = 64 * 1024 * 1024;

/// Scans that run at a time.
const MAX_SCANS: usize = 2;
/// Bytes of answers that clients have not taken yet: one limit for scans, and the same for all others.
const MAX_HELD: usize = 128 * 1024 * 1024;
/// Bytes of answers of scans, with what those that run may find.
const MAX_OF_SCANS: usize = MAX_HELD + MAX_SCANS * MAX_ANSWER;
/// Bytes up to which the answer of a scan may count among all other answers: one page, and what its encoding adds.
const SMALL_SCAN: usize = 8 * 1024 * 1024;
/// Exports and verifications that run at a time, all but one of them of the same principal at most.
const MAX_EXPORTS: usize = 4;
/// How long a scan or an export waits for others. A scan waits for memory as long again.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);
/// Bytes that are handed to a connection at a time: it holds them, however little its client reads.
const CHUNK: usize = 64 * 1024;

/// Why there is no answer now.
#[derive(Clone, Copy, Debug, PartialEq, thiserror::Error)]
pub enum Exhausted {
    /// Other scans run.
    #[error(
        "{MAX_SCANS} scans run at a time, in turns by principal, and the turn of this one has not come within \
         {WAIT_TIMEOUT:?}: try again"
    )]
    Scans,
    /// Other exports run.
    #[error(
        "{MAX_EXPORTS} exports and verifications run at a time, at most {} of them of one principal, and no place has \
         become free within {WAIT_TIMEOUT:?}: try again when one has ended",
        MAX_EXPORTS - 1
    )]
    Exports,
    /// Answers that clients have not taken.
    #[error(
        "clients have not yet taken answers of {} MiB, all that may be held: try again",
        MAX_HELD >> 20
    )]
    Held,
    /// Answers that this principal's clients have not taken.
    #[error(
        "clients with your token, or from your address, have not yet taken what they were answered, all that one \
         principal may leave: take the answers, and try again"
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
    scans: FairBudget,
    held: FairBudget,
    /// The same for scans, of [`MAX_OF_SCANS`]: a scan that waits takes all that becomes free, and other reads must not
    /// be refused for that.
    held_by_scans: FairBudget,
    exports: FairBudget,
    wait_timeout: Duration,
    /// Ends what its client leaves.
    watchdog: Watchdog,
}

/// What a scan runs with: its place, and memory for its answer.
#[derive(Debug)]
pub(crate) struct Scan {
    _place: FairPermit,
    memory: FairPermit,
}

impl Scan {
    /// Bytes that it may find.
    pub(crate) fn most(&self) -> usize {
        self.memory.amount()
    }

    /// Whether that is all that any scan may find; otherwise one that finds more has to run again, with
    /// [`Answers::whole_scan`].
    pub(crate) fn is_whole(&self) -> bool {
        self.most() >= MAX_ANSWER
    }

    /// Gives its place back, and all memory but that for so many bytes.
    pub(crate) fn end(self, bytes: usize) -> FairPermit {
        let Scan { _place, mut memory } = self;
        let surplus = memory.amount().saturating_sub(bytes);
        drop(memory.split(surplus));
        memory
    }
}

/// A scan whose answer is not yet held, in the extensions of the answer: it keeps its place until then.
#[derive(Clone)]
pub(crate) struct Scanned(Arc<Mutex<Option<Scan>>>);

impl Scanned {
    pub(crate) fn new(scan: Scan) -> Scanned {
        Scanned(Arc::new(Mutex::new(Some(scan))))
    }

    /// Ends it, see [`Scan::end`]; `None` if it has ended.
    pub(crate) fn end(&self, bytes: usize) -> Option<FairPermit> {
        let scan = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
        scan.map(|scan| scan.end(bytes))
    }
}

impl Answers {
    /// `stall_timeout` is how long a client may read nothing of its answer.
    pub(crate) fn new(stall_timeout: Duration) -> Answers {
        let shared = |total| FairBudget::new(total, SharePolicy::OverFree);
        Answers {
            // A scan gives its place back by itself.
            scans: FairBudget::new(MAX_SCANS, SharePolicy::All),
            held: shared(MAX_HELD),
            held_by_scans: shared(MAX_OF_SCANS),
            exports: shared(MAX_EXPORTS),
            wait_timeout: WAIT_TIMEOUT,
            watchdog: Watchdog::new(stall_timeout),
        }
    }

    /// Sets the gauges of what is held and runs now.
    pub(crate) fn publish(&self) {
        let taken = |of: &FairBudget| of.taken() as f64;
        metrics::gauge!("esker_answers_held_bytes", "of" => "scans")
            .set(taken(&self.held_by_scans));
        metrics::gauge!("esker_answers_held_bytes", "of" => "others").set(taken(&self.held));
        metrics::gauge!("esker_state_scans_running").set(taken(&self.scans));
        metrics::gauge!("esker_state_scans_waiting").set(self.scans.waiting() as f64);
        metrics::gauge!("esker_state_exports_running").set(taken(&self.exports));
        metrics::gauge!("esker_state_exports_waiting").set(self.exports.waiting() as f64);
    }

    /// Waits until a scan may run, with memory for all that it may find, or at least for [`SMALL_SCAN`] bytes.
    ///
    /// # Errors
    ///
    /// Neither has come in time: nothing was read.
    pub(crate) async fn scan(&self, client: Client) -> Result<Scan, Exhausted> {
        let place = self.place_of_scan(client, self.wait_timeout).await?;
        let memory = match self.held_by_scans.try_take(client, MAX_ANSWER) {
            Err(_) => self.held.try_take(client, SMALL_SCAN),
            memory => memory,
        };
        match memory {
            Ok(memory) => Ok(Scan {
                _place: place,
                memory,
            }),
            Err(_) => {
                drop(place);
                self.whole_scan(client).await
            }
        }
    }

    /// The same, with memory for all that it may find.
    ///
    /// # Errors
    ///
    /// Those of [`scan`](Answers::scan).
    pub(crate) async fn whole_scan(&self, client: Client) -> Result<Scan, Exhausted> {
        let deadline = Instant::now() + self.wait_timeout;
        // Without a place: who holds the memory may leave it for a while.
        let memory = self
            .held_by_scans
            .take(client, MAX_ANSWER, self.wait_timeout);
        let memory = memory.await.map_err(not_held)?;
        let left = deadline.saturating_duration_since(Instant::now());
        Ok(Scan {
            _place: self.place_of_scan(client, left).await?,
            memory,
        })
    }

    async fn place_of_scan(
        &self,
        client: Client,
        timeout: Duration,
    ) -> Result<FairPermit, Exhausted> {
        let place = self.scans.take(client, 1, timeout).await;
        place.map_err(|_| Exhausted::Scans)
    }

    /// Waits for a permit to run an export or a verification.
    pub(crate) async fn exporting(&self, client: Client) -> Result<FairPermit, Exhausted> {
        let permit = self.exports.take(client, 1, self.wait_timeout).await;
        permit.map_err(|_| Exhausted::Exports)
    }

    /// A permit to hold this many bytes for a client.
    pub(crate) fn hold(&self, client: Client, bytes: usize) -> Result<FairPermit, Exhausted> {
        self.held.try_take(client, bytes).map_err(not_held)
    }

    /// The body of an answer that is held as bytes, which `permit` counts.
    pub(crate) fn body(
        &self,
        data: Bytes,
        trailers: Option<HeaderMap>,
        permit: FairPermit,
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

/// Why an answer is not held.
fn not_held(why: NoTurn) -> Exhausted {
    match why {
        NoTurn::OwnShare => Exhausted::HeldByPrincipal,
        NoTurn::Others => Exhausted::Held,
    }
}

/// An answer that has become bytes.
struct Held {
    data: Bytes,
    trailers: Option<HeaderMap>,
    _permit: FairPermit,
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
    use futures::FutureExt as _;
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
        assert_eq!(answers.held.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_nobody_takes_gives_its_bytes_back() {
        let answers = Answers::new(STALL);
        let all = answers.hold(of(1), MAX_HELD).unwrap();
        assert_eq!(answers.hold(of(2), 1).unwrap_err(), Exhausted::Held);
        drop(all);
        let others = answers
            .held_by_scans
            .try_take(of(2), MAX_OF_SCANS - MAX_ANSWER);
        let permit = answers.scan(of(1)).await.unwrap().end(MAX_ANSWER);
        // What scans hold does not refuse other reads.
        drop(answers.hold(of(1), 1).unwrap());
        let begun = tokio::time::Instant::now();
        let mut body = answers.body(Bytes::from(vec![7; MAX_ANSWER]), None, permit);
        body.frame().await.unwrap().unwrap();
        // It waits for the bytes.
        drop(answers.whole_scan(of(1)).await.unwrap());
        assert!(begun.elapsed() >= STALL);
        drop(others);
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
        assert_eq!(answers.held.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_stream_for_which_the_client_waits_is_not_ended_and_one_that_it_leaves_is() {
        let answers = Answers::new(STALL);
        let slow = futures::stream::once(tokio::time::sleep(STALL * 4)).map(|()| Ok(()));
        let permit = answers.exporting(of(1)).await.unwrap();
        let mut stream = answers.perishable(slow.boxed(), permit, Err);
        assert_eq!(stream.next().await, Some(Ok(())));
        assert_eq!(answers.exports.taken(), 1);
        while answers.exports.taken() > 0 {
            tokio::time::sleep(STALL / 10).await;
        }
        assert_eq!(stream.next().await, Some(Err(Exhausted::Stalled)));
        assert_eq!(stream.next().await, None);
    }

    /// Answers of scans that this principal does not take, and so many bytes each, until it has its share.
    async fn untaken(answers: &Answers, principal: u64, bytes: usize) -> Vec<FairPermit> {
        let mut untaken = Vec::new();
        loop {
            let scan = answers.scan(of(principal)).await.unwrap();
            match scan.is_whole() {
                true => untaken.push(scan.end(bytes)),
                false => return untaken,
            }
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_scan_has_memory_for_its_answer_before_it_reads_anything_or_is_refused() {
        let answers = Answers::new(STALL);
        let unread = untaken(&answers, 1, MAX_ANSWER).await;
        assert_eq!(unread.len() * MAX_ANSWER, MAX_OF_SCANS / 4 * 3);
        // What finds little has memory of other answers.
        let small = answers.scan(of(1)).await.unwrap();
        assert_eq!((small.most(), small.is_whole()), (SMALL_SCAN, false));
        let small = small.end(1000);
        assert_eq!(answers.held.taken(), 1000);
        // What finds more waits for the rest, without a place.
        let begun = Instant::now();
        let refused = answers.whole_scan(of(1)).await.unwrap_err();
        assert_eq!(refused, Exhausted::HeldByPrincipal);
        assert!(begun.elapsed() >= WAIT_TIMEOUT);
        let patient = Answers {
            wait_timeout: 100 * WAIT_TIMEOUT,
            ..answers.clone()
        };
        let waiting = tokio::spawn(async move { patient.whole_scan(of(1)).await });
        while answers.held_by_scans.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        assert_eq!(answers.scans.free(), MAX_SCANS);
        // Others find memory, and are not held up by what waits for its share.
        let other = answers
            .scan(of(2))
            .now_or_never()
            .expect("it runs")
            .unwrap();
        assert!(other.is_whole());
        let third = answers.whole_scan(of(3)).await.unwrap_err();
        assert_eq!(third, Exhausted::Held);
        // Without memory of either kind nothing runs at all.
        let others: Vec<_> = (4..40)
            .map(|principal| answers.hold(of(principal), MAX_HELD / 32))
            .collect();
        assert_eq!(answers.scan(of(3)).await.unwrap_err(), Exhausted::Held);
        drop((unread, other, others));
        assert!(waiting.await.unwrap().unwrap().is_whole());
        drop(small);
        let held = (answers.held_by_scans.taken(), answers.held.taken());
        assert_eq!((held, answers.scans.free()), ((0, 0), MAX_SCANS));
    }

    #[tokio::test]
    async fn two_scans_of_one_principal_run_while_it_has_taken_its_answers() {
        let answers = Answers::new(STALL);
        let scan = || answers.scan(of(1)).now_or_never().unwrap().unwrap();
        let (one, two) = (scan(), scan());
        assert!(one.is_whole() && two.is_whole());
        // They hold what they have found.
        let (one, two) = (Scanned::new(one), two.end(0));
        let held = one.end(1000).unwrap();
        assert!(one.end(1000).is_none(), "it has ended");
        assert_eq!((held.amount(), two.amount()), (1000, 0));
        assert_eq!(answers.held_by_scans.taken(), 1000);
        assert_eq!(answers.scans.free(), MAX_SCANS);
    }

    #[tokio::test(start_paused = true)]
    async fn scans_and_exports_wait_in_time() {
        let answers = Answers {
            wait_timeout: STALL,
            ..Answers::new(STALL)
        };
        let mut scans = Vec::new();
        for _ in 0..MAX_SCANS {
            scans.push(answers.scan(of(1)).await.unwrap());
        }
        assert_eq!(answers.scan(of(1)).await.unwrap_err(), Exhausted::Scans);
        scans.pop();
        answers.scan(of(1)).await.unwrap();

        let mut exports = Vec::new();
        for principal in 1..=MAX_EXPORTS as u64 {
            exports.push(answers.exporting(of(principal)).await.unwrap());
        }
        let refused = answers.exporting(of(9)).await;
        assert_eq!(refused.err(), Some(Exhausted::Exports));
        let waiting = tokio::spawn({
            let answers = answers.clone();
            async move { answers.exporting(of(9)).await }
        });
        while answers.exports.waiting() == 0 {
            tokio::task::yield_now().await;
        }
        drop(exports);
        waiting.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn scans_that_one_principal_has_queued_hold_up_no_scan_of_another() {
        let answers = Answers::new(STALL);
        let mut running = Vec::new();
        for _ in 0..MAX_SCANS {
            running.push(answers.scan(of(1)).await.unwrap());
        }
        let mut flood: Vec<_> = (0..480).map(|_| Box::pin(answers.scan(of(1)))).collect();
        for waits in &mut flood {
            assert!(waits.now_or_never().is_none());
        }
        let mut other = Box::pin(answers.scan(of(2)));
        assert!((&mut other).now_or_never().is_none());
        // The first one that waits has one of the two places, and the other principal the next.
        running.clear();
        assert!(other.now_or_never().is_some());
        drop(flood);
        assert_eq!((answers.scans.taken(), answers.scans.waiting()), (0, 0));
    }

    #[tokio::test]
    async fn exports_that_one_principal_takes_slowly_leave_a_place_to_others() {
        let answers = Answers::new(STALL);
        let mut slow = Vec::new();
        while let Some(permit) = answers.exporting(of(1)).now_or_never() {
            slow.push(permit.unwrap());
        }
        assert_eq!(slow.len(), MAX_EXPORTS - 1);
        let other = answers.exporting(of(2)).now_or_never();
        drop(other.expect("there is a place").unwrap());
        // What one waits for beyond its share does not keep others waiting.
        let mut own = Box::pin(answers.exporting(of(1)));
        assert!((&mut own).now_or_never().is_none());
        let other = answers.exporting(of(2)).now_or_never();
        drop(other.expect("there is a place").unwrap());
        slow.pop();
        assert!(own.now_or_never().is_some());
    }
}
