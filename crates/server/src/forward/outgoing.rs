//! A request that is sent to another node, as often as nothing of it can have happened.
//!
//! What has been read of its body is kept until the answer begins, [`MAX_KEPT`] bytes at most, or the whole body if it
//! is known to be no longer than [`MAX_KEPT_WHOLE`], and as long as the budget of all bodies has memory for it: a node
//! that does not lead answers so before it handles anything, and the request then goes to another, whole.

#[cfg(test)]
mod tests;

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

/// Bytes of a body that are kept for another attempt, if its length is not known.
pub(super) const MAX_KEPT: usize = 64 * 1024;
/// Length of a body that is kept whole: that of the largest append, whichever form it has.
pub(super) const MAX_KEPT_WHOLE: usize = 2 * 1024 * 1024;

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
        let shared = Shared::new(rest, Vec::new(), length, memory);
        Outgoing { head, shared }
    }

    /// A request that its handler has given back, whole. `None` if there is no memory for its body.
    pub(super) fn given_back(request: http::Request<Bytes>, mut memory: Kept) -> Option<Outgoing> {
        let (head, body) = request.into_parts();
        let length = body.len();
        if !memory.cover(length) {
            return None;
        }
        let kept = vec![Piece::Data(body)];
        let shared = Shared::new(Body::empty(), kept, Some(length as u64), memory);
        lock(&shared).has_ended = true;
        Some(Outgoing { head, shared })
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
        shared.is_remote = true;
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

    /// The request, for an attempt of this node, after which nothing is kept; `None` if its body is not all there any
    /// more.
    pub(super) fn into_request(self) -> Option<Request> {
        let body = self.body_here()?;
        self.release();
        Some(Request::from_parts(self.head, body))
    }

    /// The same, for an attempt after which another may follow.
    pub(super) fn request_here(&self) -> Option<Request> {
        let body = self.body_here()?;
        Some(Request::from_parts(self.head.clone(), body))
    }

    fn body_here(&self) -> Option<Body> {
        let body = self.begin()?;
        let is_empty = {
            let mut shared = lock(&self.shared);
            shared.is_remote = false;
            shared.again.is_empty() && (shared.has_ended || shared.rest.is_end_stream())
        };
        Some(match is_empty {
            true => Body::empty(),
            false => Body::new(body),
        })
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
    fn new(rest: Body, kept: Vec<Piece>, length: Option<u64>, memory: Kept) -> Arc<Mutex<Shared>> {
        Arc::new(Mutex::new(Shared {
            rest,
            kept_bytes: 0,
            kept: Some(kept),
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
        }))
    }

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
                // A length beyond what there can be in memory is too long, too.
                let length = self
                    .length
                    .map(|it| usize::try_from(it).unwrap_or(usize::MAX));
                let bytes = self.kept_bytes.max(length.unwrap_or(0));
                let is_short = bytes <= length.map_or(MAX_KEPT, |_| MAX_KEPT_WHOLE);
                let memory = self.memory.as_mut();
                if !is_short || !memory.is_some_and(|memory| memory.cover(bytes)) {
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
