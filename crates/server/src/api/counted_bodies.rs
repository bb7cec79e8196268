//! Bodies of read sessions whose bytes count until the connection has sent them.
//!
//! A batch comes with the permit for its memory. Its encoded form is handed to the connection together
//! with the permit, which is released when the connection has sent the last byte or has dropped it. So
//! whatever is buffered for a client that reads nothing is counted. A batch is handed over whole, because
//! a session that stalls ends with a frame of its own, which has to follow a complete one.

use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};

use axum::body::{Body, Bytes};
use esker_node::ReadPermit;
use hyper::body::{Body as HttpBody, Frame, SizeHint};

/// Where a session puts the permit of the batch that it yields next. Each item that it yields becomes one
/// piece of the body before the next one is polled.
#[derive(Clone, Default)]
pub(super) struct PermitSlot(Arc<Mutex<Option<ReadPermit>>>);

impl PermitSlot {
    pub(super) fn put(&self, permit: ReadPermit) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(permit);
    }

    fn take(&self) -> Option<ReadPermit> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    /// The body of the session's answer, whose pieces are counted. A piece may be in a buffer that grew step
    /// by step and has up to twice its size, so it is copied.
    pub(super) fn counted(self, body: Body) -> Body {
        Body::new(Counted {
            body,
            slot: self,
            is_exact: false,
        })
    }

    /// The same for pieces in buffers of their size.
    pub(super) fn counted_exactly(self, body: Body) -> Body {
        Body::new(Counted {
            body,
            slot: self,
            is_exact: true,
        })
    }
}

/// A batch on its way to a client, and the permit for its memory.
struct Piece {
    data: Bytes,
    _permit: ReadPermit,
}

impl Piece {
    fn new(data: Bytes, mut permit: ReadPermit) -> Piece {
        permit.fit(data.len());
        Piece {
            data,
            _permit: permit,
        }
    }
}

impl AsRef<[u8]> for Piece {
    fn as_ref(&self) -> &[u8] {
        &self.data
    }
}

struct Counted {
    body: Body,
    slot: PermitSlot,
    is_exact: bool,
}

impl HttpBody for Counted {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        let next = ready!(Pin::new(&mut self.body).poll_frame(context));
        let permit = self.slot.take();
        let exact = |data: Bytes| match self.is_exact {
            true => data,
            false => Bytes::copy_from_slice(&data),
        };
        Poll::Ready(next.map(|next| {
            next.map(|frame| match permit {
                Some(permit) => {
                    frame.map_data(|data| Bytes::from_owner(Piece::new(exact(data), permit)))
                }
                None => frame,
            })
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use esker_node::{Client, ReadBudget};
    use futures::StreamExt as _;
    use http_body_util::BodyExt as _;

    use super::*;

    #[tokio::test]
    async fn a_batch_counts_until_the_last_part_of_it_is_sent() {
        let budget = ReadBudget::new(64 * 1024 * 1024);
        let slot = PermitSlot::default();
        let (permits, claims) = (slot.clone(), budget.clone());
        let pieces = futures::stream::iter([true, false, true]).map(move |is_batch| {
            if is_batch {
                permits.put(
                    claims
                        .try_claim(Client::default(), false)
                        .expect("it is free"),
                );
            }
            Ok::<_, Infallible>(vec![b'x'; 1000])
        });
        let mut body = slot.counted(Body::from_stream(pieces));
        let mut next = async || {
            let frame = body.frame().await.unwrap().unwrap();
            frame.into_data().unwrap()
        };
        let mut first = next().await;
        assert_eq!(budget.held(), 1000);
        let rest = first.split_off(400);
        drop(first);
        assert_eq!(budget.held(), 1000);
        // A heartbeat has no permit.
        let heartbeat = next().await;
        assert_eq!(budget.held(), 1000);
        let second = next().await;
        assert_eq!(budget.held(), 2000);
        drop((rest, heartbeat));
        assert_eq!(budget.held(), 1000);
        drop(second);
        assert_eq!(budget.held(), 0);
    }
}
