//! Where requests of HTTP/2 run: on their connection's task, as far as they get without waiting.
//!
//! Many requests are answered from memory: a write that is staged, a key that the cache has. To give each
//! a task of its own, and perhaps another thread, costs more than to answer it. So a request is polled
//! once where it came in, and becomes a task only if it has to wait; then, the task polls it again, and
//! with that takes over whatever is to wake it.
//!
//! Nothing that blocks or computes for long belongs before a handler's first wait, here as in any task.

use std::task::{Context, Waker};

use hyper::rt::Executor;

/// See the [module's head](self).
#[derive(Clone, Copy, Debug, Default)]
pub struct AtOnce;

impl<F> Executor<F> for AtOnce
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, request: F) {
        let mut request = Box::pin(request);
        let mut nobody = Context::from_waker(Waker::noop());
        if request.as_mut().poll(&mut nobody).is_pending() {
            tokio::spawn(request);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::sync::{Notify, oneshot};

    use super::*;

    #[tokio::test]
    async fn what_need_not_wait_is_done_when_execute_returns() {
        let done = Arc::new(AtomicUsize::new(0));
        let counted = done.clone();
        AtOnce.execute(async move { counted.fetch_add(1, Ordering::Relaxed) });
        assert_eq!(done.load(Ordering::Relaxed), 1);
    }

    #[tokio::test]
    async fn what_has_to_wait_is_woken() {
        let (wake, (send, answer)) = (Arc::new(Notify::new()), oneshot::channel());
        let woken = wake.clone();
        AtOnce.execute(async move {
            woken.notified().await;
            // Another wait, of another kind.
            tokio::task::yield_now().await;
            send.send(7)
        });
        tokio::task::yield_now().await;
        wake.notify_one();
        assert_eq!(answer.await, Ok(7));
    }
}
