//! Places of connections: `limits.connections` ordinary ones, and a reserve for clients that monitor the
//! server.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The gauge of open connections.
pub(crate) const CONNECTIONS: &str = "esker_http_connections";

/// The place of a connection.
pub(crate) struct Place {
    room: Arc<Semaphore>,
    ordinary: AtomicBool,
    permit: tokio::sync::Mutex<Option<OwnedSemaphorePermit>>,
}

impl Place {
    /// Waits for an ordinary place, or for one of the reserve.
    pub(crate) async fn take(room: &Arc<Semaphore>, reserve: &Arc<Semaphore>) -> Place {
        let (permit, ordinary) = tokio::select! {
            biased;
            permit = room.clone().acquire_owned() => (permit, true),
            permit = reserve.clone().acquire_owned() => (permit, false),
        };
        metrics::gauge!(CONNECTIONS).increment(1.0);
        Place {
            room: room.clone(),
            ordinary: AtomicBool::new(ordinary),
            // The semaphores are never closed.
            permit: tokio::sync::Mutex::new(permit.ok()),
        }
    }

    pub(crate) fn is_ordinary(&self) -> bool {
        self.ordinary.load(Ordering::Acquire)
    }

    /// Exchanges a place of the reserve for an ordinary one, if one becomes free within `timeout`.
    /// Requests of the connection share the wait, and each has the same limit.
    pub(crate) async fn become_ordinary(&self, timeout: Duration) -> bool {
        if self.is_ordinary() {
            return true;
        }
        let exchanged = async {
            let mut own = self.permit.lock().await;
            if !self.is_ordinary() {
                *own = self.room.clone().acquire_owned().await.ok();
                self.ordinary.store(true, Ordering::Release);
            }
        };
        tokio::time::timeout(timeout, exchanged).await.is_ok()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!(CONNECTIONS).decrement(1.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn requests_that_wait_for_a_place_together_wait_no_longer_than_one() {
        const REQUESTS: u32 = 100;
        const TIMEOUT: Duration = Duration::from_millis(200);
        let room = Arc::new(Semaphore::new(1));
        let taken = room.clone().acquire_owned().await.unwrap();
        let reserve = Arc::new(Semaphore::new(1));
        let place = Place::take(&room, &reserve).await;
        assert!(!place.is_ordinary());
        let all = (0..REQUESTS).map(|_| place.become_ordinary(TIMEOUT));
        let all = tokio::time::timeout(TIMEOUT * REQUESTS / 2, futures::future::join_all(all));
        let exchanged = all.await.expect("they wait at the same time");
        assert!(!exchanged.contains(&true));
        drop(taken);
        assert!(place.become_ordinary(TIMEOUT).await);
        // The place of the reserve is free again.
        assert_eq!(
            (room.available_permits(), reserve.available_permits()),
            (0, 1)
        );
    }
}
