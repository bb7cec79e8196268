//! Places of connections: `limits.connections` ordinary ones, and a reserve for clients that monitor the
//! server. A client's address has at most [`MAX_OF_ADDRESS`] places of the reserve, so whoever takes as many as it can
//! get leaves some to the monitors of others; its next connections are closed at once.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// The gauge of open connections.
pub(crate) const CONNECTIONS: &str = "esker_http_connections";

/// The counter of connections that were closed at once.
pub(crate) const CONNECTIONS_REFUSED: &str = "esker_http_connections_refused_total";

/// Connections beyond `limits.connections`, for health, metrics and the admin API alone.
pub(crate) const RESERVED_CONNECTIONS: usize = 16;
/// Those of one address: a quarter is left to others.
const MAX_OF_ADDRESS: usize = RESERVED_CONNECTIONS / 4 * 3;

/// The places of connections, over all listeners. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    room: Arc<Semaphore>,
    reserve: Arc<Semaphore>,
    reserve_of: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of a connection.
pub(crate) struct Place {
    room: Arc<Semaphore>,
    ordinary: AtomicBool,
    held: tokio::sync::Mutex<Option<Held>>,
}

/// What a place is taken with, for as long as it is.
#[allow(dead_code)]
enum Held {
    Ordinary(OwnedSemaphorePermit),
    Reserve(OwnedSemaphorePermit, OfAddress),
}

/// Counts a place of the reserve for its address.
struct OfAddress(Arc<Mutex<HashMap<IpAddr, usize>>>, IpAddr);

impl OfAddress {
    /// `None` if the address has all that it may have.
    fn count(all: &Arc<Mutex<HashMap<IpAddr, usize>>>, address: IpAddr) -> Option<OfAddress> {
        let mut counts = all.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(address).or_default();
        if *count >= MAX_OF_ADDRESS {
            return None;
        }
        *count += 1;
        Some(OfAddress(all.clone(), address))
    }
}

impl Drop for OfAddress {
    fn drop(&mut self) {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.1) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.1);
            }
        }
    }
}

/// The part of an address that identifies a client: all of an address of IPv4, the network of one of IPv6.
fn of_client(address: IpAddr) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V6(address) => {
            let network = u128::from(address) & !u128::from(u64::MAX);
            IpAddr::V6(network.into())
        }
        address => address,
    }
}

impl Places {
    /// So many ordinary ones, and the reserve.
    pub(crate) fn new(ordinary: usize) -> Places {
        Places {
            room: Arc::new(Semaphore::new(ordinary)),
            reserve: Arc::new(Semaphore::new(RESERVED_CONNECTIONS)),
            reserve_of: Arc::default(),
        }
    }

    /// Waits for an ordinary place, or for one of the reserve. `None` if there is none, and the address has as many of
    /// the reserve as it may have.
    pub(crate) async fn take(&self, address: IpAddr) -> Option<Place> {
        let free = self.room.clone().try_acquire_owned();
        let held = match free {
            Ok(permit) => Some(Held::Ordinary(permit)),
            Err(_) => {
                let of_address = OfAddress::count(&self.reserve_of, of_client(address))?;
                // The semaphores are never closed.
                tokio::select! {
                    biased;
                    permit = self.room.clone().acquire_owned() => permit.ok().map(Held::Ordinary),
                    permit = self.reserve.clone().acquire_owned() => {
                        permit.ok().map(|permit| Held::Reserve(permit, of_address))
                    }
                }
            }
        };
        metrics::gauge!(CONNECTIONS).increment(1.0);
        let ordinary = !matches!(held, Some(Held::Reserve(..)));
        Some(Place {
            room: self.room.clone(),
            ordinary: AtomicBool::new(ordinary),
            held: tokio::sync::Mutex::new(held),
        })
    }
}

impl Place {
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
            let mut own = self.held.lock().await;
            if !self.is_ordinary() {
                let permit = self.room.clone().acquire_owned().await;
                *own = permit.ok().map(Held::Ordinary);
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

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn requests_that_wait_for_a_place_together_wait_no_longer_than_one() {
        const REQUESTS: u32 = 100;
        const TIMEOUT: Duration = Duration::from_millis(200);
        let places = Places::new(1);
        let taken = places.take(HERE).await.unwrap();
        assert!(taken.is_ordinary());
        let place = places.take(HERE).await.unwrap();
        assert!(!place.is_ordinary());
        let all = (0..REQUESTS).map(|_| place.become_ordinary(TIMEOUT));
        let all = tokio::time::timeout(TIMEOUT * REQUESTS / 2, futures::future::join_all(all));
        let exchanged = all.await.expect("they wait at the same time");
        assert!(!exchanged.contains(&true));
        drop(taken);
        assert!(place.become_ordinary(TIMEOUT).await);
        // The place of the reserve is free again.
        let free = (
            places.room.available_permits(),
            places.reserve.available_permits(),
        );
        assert_eq!(free, (0, RESERVED_CONNECTIONS));
        assert!(places.reserve_of.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_address_leaves_places_of_the_reserve_to_others() {
        let places = Places::new(1);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held = Vec::new();
        while let Some(place) = places.take(address("2001:db8::1")).await {
            held.push(place);
        }
        assert_eq!(held.len(), 1 + MAX_OF_ADDRESS);
        // Of the same network, and so of the same client.
        assert!(places.take(address("2001:db8::2")).await.is_none());
        let other = places.take(HERE).await.unwrap();
        assert!(!other.is_ordinary());
        held.pop();
        assert!(places.take(address("2001:db8::2")).await.is_some());
    }
}
