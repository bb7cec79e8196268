//! A request that is sent to another node, as often as nothing of it can have happened.
//!
//! What has been read of its body is kept until the answer begins, [`MAX_KEPT`] bytes at most, and as long as the
//! budget of all bodies has memory for it: a node that does not lead answers so before it handles anything, and the
//! request then goes to another, whole.

use std::collections::VecDeque;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, Waker};

use axum::body::Body;
use axum::extract::Request;
use bytes::Bytes;
use http::HeaderMap;
use http::request::Parts;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

use super::framing::Framing;
use super::series::{self, Direction};
use crate::api::Kept;
use crate::request_guard::content_type;

/// Bytes of a body that are kept for another node.
pub(super) const MAX_KEPT: usize = 64 * 1024;

/// A request to be sent.
pub(super) struct Outgoing {
    head: Parts,
    shared: Arc<Mutex<Shared>>,
}

/// A piece of a body.
#[derive(Clone)]
enum Piece {
    Data(Bytes),
    Trailers(HeaderMap),
}

impl From<Piece> for Frame<Bytes> {
    fn from(piece: Piece) -> Frame<Bytes> {
        match piece {
            Piece::Data(data) => Frame::data(data),
            Piece::Trailers(trailers) => Frame::trailers(trailers),
        }
    }
}

/// The body, of which one attempt at a time reads.
struct Shared {
    /// What was not read yet.
    rest: Body,
    /// All that was read; `None` once it is too much, or not needed any more.
    kept: Option<Vec<Piece>>,
    kept_bytes: usize,
    /// The memory of what is kept, and of what is to be read again.
    memory: Option<Kept>,
    /// What the present attempt is to read again.
    again: VecDeque<Piece>,
    /// Whether the body has been read to its end.
    has_ended: bool,
    /// Whether the client has failed to send it.
    has_failed: bool,
    /// The number of the present attempt.
    attempt: u64,
    /// Whether the present attempt has read something, if only the end.
    is_passed: bool,
    /// The length of the body, if that was known.
    length: Option<u64>,
    /// Bytes that the present attempt has read.
    read: u64,
    /// Whether the present attempt sends it to another node.
    is_remote: bool,
    /// What waits for the present attempt to read more.
    waker: Option<Waker>,
    /// Whether the present attempt ends the body with the message that it has begun.
    is_ending: bool,
    /// Where the present attempt is in the messages of a session.
    framing: Option<Framing>,
}

impl Outgoing {
    /// `memory` is claimed for what is kept of the body.
    pub(super) fn new(request: Request, memory: Kept) -> Outgoing {
        let (head, rest) = request.into_parts();
        let length = rest.size_hint().exact();
        Outgoing {
            head,
            shared: Arc::new(Mutex::new(Shared {
                rest,
                kept: Some(Vec::new()),
                kept_bytes: 0,
                memory: Some(memory),
                again: VecDeque::new(),
                has_ended: false,
                has_failed: false,
                attempt: 0,
                is_passed: false,
                length,
                read: 0,
                is_remote: true,
                waker: None,
                is_ending: false,
                framing: None,
            })),
        }
    }

    /// The head, as the client has sent it.
    pub(super) fn head(&self) -> &Parts {
        &self.head
    }

    /// The body for another attempt, from its beginning, and a handle for its sender. An attempt before it reads
    /// no more. `None` if that is not all there any more.
    pub(super) fn begin(&self) -> Option<Passing> {
        let mut shared = lock(&self.shared);
        shared.again = shared.kept.as_ref()?.iter().cloned().collect();
        shared.take_back();
        shared.is_passed = false;
        shared.read = 0;
        shared.framing = content_type(&self.head.headers).and_then(|kind| Framing::of(&kind));
        Some(Passing {
            shared: self.shared.clone(),
            attempt: shared.attempt,
        })
    }

    /// Ends the present attempt if it has passed on nothing yet, not even the end of the body, and returns whether
    /// that is so: the other node handles nothing before.
    pub(super) fn withdraw(&self) -> bool {
        let mut shared = lock(&self.shared);
        if !shared.is_passed {
            shared.take_back();
        }
        !shared.is_passed
    }

    /// Ends the present attempt if it has not passed on the whole body, and returns whether that is so: what needs
    /// the whole body is not handled then.
    pub(super) fn give_up(&self) -> bool {
        let mut shared = lock(&self.shared);
        let has_all = shared.has_ended || shared.length.is_some_and(|all| shared.read >= all);
        let is_whole = has_all && shared.again.is_empty() && shared.is_passed;
        if !is_whole {
            shared.take_back();
        }
        !is_whole
    }

    /// Whether the connection has taken the present attempt, and it is the client that has sent nothing more yet.
    pub(super) fn waits_for_client(&self) -> bool {
        lock(&self.shared).waker.is_some()
    }

    /// Whether the client has failed to send the body.
    pub(super) fn has_failed(&self) -> bool {
        lock(&self.shared).has_failed
    }

    /// Keeps nothing any more: the answer has begun.
    pub(super) fn release(&self) {
        lock(&self.shared).keep_nothing();
    }

    /// Ends the present attempt. Another may begin.
    pub(super) fn take_back(&self) {
        lock(&self.shared).take_back();
    }

    /// What ends the present attempt when it is dropped: nothing of the body is read any more.
    pub(super) fn sending(&self) -> Sending {
        Sending(self.shared.clone())
    }

    /// The request, for this node; `None` if its body is not all there any more.
    pub(super) fn into_request(self) -> Option<Request> {
        let body = self.begin()?;
        self.release();
        let is_empty = {
            let mut shared = lock(&self.shared);
            shared.is_remote = false;
            shared.again.is_empty() && (shared.has_ended || shared.rest.is_end_stream())
        };
        let body = match is_empty {
            true => Body::empty(),
            false => Body::new(body),
        };
        Some(Request::from_parts(self.head, body))
    }
}

fn lock(shared: &Mutex<Shared>) -> MutexGuard<'_, Shared> {
    shared.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A request that is being answered.
pub(super) struct Sending(Arc<Mutex<Shared>>);

impl Sending {
    /// Ends the body of a session behind the message that has begun, or where it is if it is in none.
    pub(super) fn end_input(&self) {
        let mut shared = lock(&self.0);
        shared.is_ending = true;
        if let Some(waker) = shared.waker.take() {
            waker.wake();
        }
    }
}

impl Drop for Sending {
    fn drop(&mut self) {
        let mut shared = lock(&self.0);
        shared.take_back();
        shared.rest = Body::empty();
        shared.again.clear();
        shared.keep_nothing();
    }
}

impl Shared {
    fn take_back(&mut self) {
        self.attempt += 1;
        if let Some(waker) = self.waker.take() {
            waker.wake();
        }
    }

    /// Keeps a piece, as a copy: the piece may be part of a larger buffer.
    fn note(&mut self, piece: &Piece) {
        let Some(kept) = &mut self.kept else {
            return;
        };
        let piece = match piece {
            Piece::Data(data) => {
                self.kept_bytes += data.len();
                let length = self.length.and_then(|length| usize::try_from(length).ok());
                let bytes = self.kept_bytes.max(length.unwrap_or(0)).min(MAX_KEPT);
                let memory = self.memory.as_mut();
                let is_covered = memory.is_some_and(|memory| memory.cover(bytes));
                if self.kept_bytes > MAX_KEPT || !is_covered {
                    return self.keep_nothing();
                }
                Piece::Data(Bytes::copy_from_slice(data))
            }
            Piece::Trailers(trailers) => Piece::Trailers(trailers.clone()),
        };
        kept.push(piece);
    }

    fn keep_nothing(&mut self) {
        self.kept = None;
        if self.again.is_empty() {
            self.memory = None;
        }
    }
}

/// The body of one attempt. Its end is read as well, even if it is empty: the other node waits for that.
pub(super) struct Passing {
    shared: Arc<Mutex<Shared>>,
    attempt: u64,
}

/// The request is sent to another node instead.
#[derive(Debug, thiserror::Error)]
#[error("the request was taken back")]
struct TakenBack;

impl HttpBody for Passing {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let mut guard = lock(&self.shared);
        let shared = &mut *guard;
        if self.attempt != shared.attempt {
            return Poll::Ready(Some(Err(axum::Error::new(TakenBack))));
        }
        if shared.is_ending && shared.framing.as_ref().is_none_or(Framing::is_between) {
            shared.again.clear();
            shared.has_ended = true;
        }
        if let Some(piece) = shared.again.pop_front() {
            if shared.kept.is_none() {
                shared.keep_nothing();
            }
            return Poll::Ready(Some(Ok(shared.pass(piece))));
        }
        if shared.has_ended {
            shared.is_passed = true;
            return Poll::Ready(None);
        }
        match Pin::new(&mut shared.rest).poll_frame(context) {
            Poll::Pending => {
                shared.waker = Some(context.waker().clone());
                Poll::Pending
            }
            Poll::Ready(None) => {
                shared.has_ended = true;
                shared.is_passed = true;
                Poll::Ready(None)
            }
            Poll::Ready(Some(Err(error))) => {
                shared.has_failed = true;
                Poll::Ready(Some(Err(error)))
            }
            Poll::Ready(Some(Ok(frame))) => {
                let piece = match frame.into_data() {
                    Ok(data) => Piece::Data(data),
                    Err(frame) => match frame.into_trailers() {
                        Ok(trailers) => Piece::Trailers(trailers),
                        // There are no others.
                        Err(_) => Piece::Data(Bytes::new()),
                    },
                };
                shared.note(&piece);
                Poll::Ready(Some(Ok(shared.pass(piece))))
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        let shared = lock(&self.shared);
        shared.has_ended && shared.is_passed && shared.again.is_empty()
    }

    fn size_hint(&self) -> SizeHint {
        let shared = lock(&self.shared);
        let left = shared
            .length
            .map(|length| length.saturating_sub(shared.read));
        left.map_or_else(SizeHint::default, SizeHint::with_exact)
    }
}

impl Shared {
    fn pass(&mut self, mut piece: Piece) -> Frame<Bytes> {
        self.is_passed = true;
        if let Piece::Data(data) = &mut piece {
            match &mut self.framing {
                Some(framing) if self.is_ending => {
                    let passed = framing.pass_to_end_of_message(data);
                    data.truncate(passed);
                }
                Some(framing) => framing.pass(data),
                None => {}
            }
            self.read += data.len() as u64;
            if self.is_remote {
                series::passed(Direction::Request, data.len());
            }
        }
        piece.into()
    }
}

#[cfg(test)]
mod tests {
    use esker_node::Client;
    use futures::FutureExt as _;
    use http_body_util::BodyExt as _;
    use tokio::sync::mpsc;
    use tokio_stream::wrappers::UnboundedReceiverStream;

    use super::*;
    use crate::api::Bodies;

    type Sender = mpsc::UnboundedSender<Result<Bytes, axum::Error>>;

    fn streamed() -> (Sender, Outgoing) {
        let (sender, pieces) = mpsc::unbounded_channel();
        let body = Body::from_stream(UnboundedReceiverStream::new(pieces));
        (sender, outgoing(body))
    }

    fn bodies() -> Bodies {
        let timeout = std::time::Duration::from_secs(10);
        Bodies::new(1 << 20, 1 << 20, timeout)
    }

    fn outgoing(body: Body) -> Outgoing {
        Outgoing::new(Request::new(body), bodies().kept(Client::default()))
    }

    fn send(to: &Sender, text: &'static str) {
        to.send(Ok(Bytes::from_static(text.as_bytes()))).unwrap();
    }

    async fn next(body: &mut Passing) -> Bytes {
        body.frame().await.unwrap().unwrap().into_data().unwrap()
    }

    #[tokio::test]
    async fn a_body_is_sent_again_from_its_beginning_and_goes_on_where_it_was() {
        let (client, outgoing) = streamed();
        let mut first = outgoing.begin().unwrap();
        send(&client, "one");
        assert_eq!(next(&mut first).await, "one");
        assert!(!outgoing.withdraw(), "it has happened, perhaps");
        let mut second = outgoing.begin().unwrap();
        assert!(first.frame().await.unwrap().is_err(), "it was taken back");
        send(&client, "two");
        assert_eq!(next(&mut second).await, "one");
        drop(client);
        let request = outgoing.into_request().unwrap();
        assert!(second.frame().await.unwrap().is_err());
        let whole = request.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(whole, "onetwo");
    }

    #[tokio::test]
    async fn an_attempt_that_waits_for_the_client_ends_when_another_begins() {
        let (_client, outgoing) = streamed();
        let mut first = outgoing.begin().unwrap();
        let waiting = tokio::spawn(async move { first.frame().await.unwrap().is_err() });
        tokio::task::yield_now().await;
        let _second = outgoing.begin().unwrap();
        assert!(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn what_is_longer_than_what_is_kept_is_sent_once() {
        let body = vec![7; MAX_KEPT + 1];
        let outgoing = outgoing(Body::from(body));
        let mut only = outgoing.begin().unwrap();
        assert_eq!(next(&mut only).await.len(), MAX_KEPT + 1);
        assert!(outgoing.begin().is_none());
        assert!(only.frame().await.is_none());
    }

    #[tokio::test]
    async fn the_end_of_an_empty_body_is_passed_on_like_a_byte() {
        let outgoing = outgoing(Body::empty());
        let mut body = outgoing.begin().unwrap();
        assert!(!body.is_end_stream());
        assert_eq!(body.size_hint().exact(), Some(0));
        assert!(body.frame().await.is_none());
        assert!(body.is_end_stream() && !outgoing.withdraw());
        let request = outgoing.into_request().unwrap();
        assert!(request.body().is_end_stream());
    }

    #[tokio::test]
    async fn an_attempt_that_was_withdrawn_passes_on_nothing() {
        let outgoing = outgoing(Body::from("body"));
        let mut first = outgoing.begin().unwrap();
        assert!(outgoing.withdraw());
        assert!(first.frame().await.unwrap().is_err());
        let mut second = outgoing.begin().unwrap();
        assert_eq!(next(&mut second).await, "body");
    }

    #[tokio::test]
    async fn a_client_that_fails_is_noticed() {
        let (client, outgoing) = streamed();
        let mut body = outgoing.begin().unwrap();
        assert!(body.frame().now_or_never().is_none());
        client.send(Err(axum::Error::new(TakenBack))).unwrap();
        assert!(body.frame().await.unwrap().is_err());
        assert!(outgoing.has_failed());
    }

    #[tokio::test]
    async fn what_is_kept_counts_among_all_bodies_until_the_answer_begins() {
        let bodies = bodies();
        let request = |bytes: usize| {
            let body = Body::from(vec![7; bytes]);
            Outgoing::new(Request::new(body), bodies.kept(Client::default()))
        };
        let outgoing = request(1000);
        let mut first = outgoing.begin().unwrap();
        assert_eq!(bodies.held(), 0, "nothing has come yet");
        next(&mut first).await;
        assert_eq!(bodies.held(), 1000);
        // What is read again is the same memory.
        let mut second = outgoing.begin().unwrap();
        assert_eq!(bodies.held(), 1000);
        outgoing.release();
        assert_eq!(bodies.held(), 1000, "it is not passed on yet");
        next(&mut second).await;
        assert_eq!(bodies.held(), 0);
        // Larger ones are not kept.
        let large = request(MAX_KEPT + 1);
        next(&mut large.begin().unwrap()).await;
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn without_memory_nothing_is_kept_and_all_is_passed_on() {
        let bodies = bodies();
        let request = || {
            let body = Body::from(vec![7; MAX_KEPT]);
            Outgoing::new(Request::new(body), bodies.kept(Client::default()))
        };
        let mut all = Vec::new();
        let refused = loop {
            let outgoing = request();
            let read = next(&mut outgoing.begin().unwrap()).await;
            assert_eq!(read.len(), MAX_KEPT);
            if outgoing.begin().is_none() {
                break all.len();
            }
            all.push(outgoing);
            assert!(all.len() < 1000, "they are not counted");
        };
        assert_eq!(bodies.held(), refused * MAX_KEPT);
        drop(all);
        assert_eq!(bodies.held(), 0);
    }

    #[tokio::test]
    async fn a_session_ends_behind_the_message_that_has_begun() {
        let message = |byte: u8| Bytes::from(vec![0, 0, 3, 0, byte, byte]);
        let (client, mut outgoing) = streamed();
        let kind = http::HeaderValue::from_static("s2s/proto");
        (outgoing.head.headers).insert(http::header::CONTENT_TYPE, kind);
        let mut body = outgoing.begin().unwrap();
        let sending = outgoing.sending();
        let both = [message(1), message(2)].concat();
        client.send(Ok(Bytes::copy_from_slice(&both[..8]))).unwrap();
        assert_eq!(next(&mut body).await, both[..8]);
        sending.end_input();
        assert!(
            body.frame().now_or_never().is_none(),
            "the message is not whole"
        );
        let rest = [&both[8..], &message(3)].concat();
        client.send(Ok(rest.into())).unwrap();
        assert_eq!(next(&mut body).await, both[8..]);
        assert!(body.frame().await.is_none());
    }

    #[tokio::test]
    async fn a_session_between_messages_ends_at_once() {
        let (client, outgoing) = streamed();
        let mut body = outgoing.begin().unwrap();
        let waiting = tokio::spawn(async move { body.frame().await.is_none() });
        tokio::task::yield_now().await;
        let sending = outgoing.sending();
        sending.end_input();
        assert!(waiting.await.unwrap());
        drop((client, sending));
    }
}
