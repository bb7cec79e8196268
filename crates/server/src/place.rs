//! Places of connections: `limits.connections` ordinary ones, and a reserve for clients that monitor the
//! server. A client's address has at most [`MAX_OF_ADDRESS`] places of the reserve, so whoever takes as many as it can
//! get leaves some to the monitors of others; its next connections wait for ordinary places, [`MAX_WAITING`] of all
//! addresses, and those beyond are closed at once. Ordinary places that become free are given in turns by address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use esker_node::{Client, FairBudget, FairPermit, SharePolicy};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::client::of_address;

/// The gauge of open connections.
pub(crate) const CONNECTIONS: &str = "esker_http_connections";

/// The counter of connections that were closed at once.
pub(crate) const CONNECTIONS_REFUSED: &str = "esker_http_connections_refused_total";

/// Connections beyond `limits.connections`, for health, metrics and the admin API alone.
pub(crate) const RESERVED_CONNECTIONS: usize = 16;
/// Those of one address: a quarter is left to others.
const MAX_OF_ADDRESS: usize = RESERVED_CONNECTIONS / 4 * 3;

/// Connections that wait for an ordinary place and have none of the reserve, unless the limit of open files leaves fewer.
/// An address has three times as many as are free at most, so 384 if it is alone.
pub(crate) const MAX_WAITING: usize = 512;

/// The places of connections, over all listeners. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    ordinary: FairBudget,
    reserve: Arc<Semaphore>,
    waiting: FairBudget,
    reserve_of: Arc<Mutex<HashMap<IpAddr, usize>>>,
}

/// The place of a connection.
pub(crate) struct Place {
    all: FairBudget,
    client: Client,
    is_ordinary: AtomicBool,
    held: tokio::sync::Mutex<Option<Held>>,
}

/// What a place is taken with, for as long as it is.
#[allow(dead_code)]
enum Held {
    Ordinary(FairPermit),
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
    /// So many ordinary ones, and the reserve; so many connections may wait beside these.
    pub(crate) fn new(ordinary: usize, waiting: usize) -> Places {
        Places {
            ordinary: FairBudget::new(ordinary, SharePolicy::All),
            reserve: Arc::new(Semaphore::new(RESERVED_CONNECTIONS)),
            waiting: FairBudget::new(waiting, SharePolicy::OverFree),
            reserve_of: Arc::default(),
        }
    }

    /// Waits for an ordinary place, or for one of the reserve.
    pub(crate) async fn take(
        &self,
        address: IpAddr,
    ) -> Taken<impl Future<Output = Place> + Send + use<>> {
        let client = of_address(address);
        if let Ok(permit) = self.ordinary.try_take(client, 1) {
            return Taken::Place(self.place(client, Held::Ordinary(permit)));
        }
        let Some(of_address) = OfAddress::count(&self.reserve_of, of_client(address)) else {
            let waits = self.waiting.try_take(client, 1);
            return waits.map_or(Taken::None, |waits| Taken::Later(self.later(client, waits)));
        };
        // The semaphore is never closed.
        let held = tokio::select! {
            biased;
            permit = self.ordinary.wait(client, 1) => Some(Held::Ordinary(permit)),
            permit = self.reserve.clone().acquire_owned() => {
                permit.ok().map(|permit| Held::Reserve(permit, of_address))
            }
        };
        held.map_or(Taken::None, |held| Taken::Place(self.place(client, held)))
    }

    /// An ordinary place, once there is one.
    fn later(
        &self,
        client: Client,
        waits: FairPermit,
    ) -> impl Future<Output = Place> + Send + use<> {
        let places = self.clone();
        async move {
            let permit = places.ordinary.wait(client, 1).await;
            drop(waits);
            places.place(client, Held::Ordinary(permit))
        }
    }

    fn place(&self, client: Client, held: Held) -> Place {
        metrics::gauge!(CONNECTIONS).increment(1.0);
        Place {
            all: self.ordinary.clone(),
            client,
            is_ordinary: AtomicBool::new(matches!(held, Held::Ordinary(_))),
            held: tokio::sync::Mutex::new(Some(held)),
        }
    }
}

/// What a connection gets.
pub(crate) enum Taken<Later> {
    Place(Place),
    /// Its address has as many places of the reserve as it may have, so this waits for an ordinary one.
    Later(Later),
    /// Too many wait already.
    None,
}

impl Place {
    pub(crate) fn is_ordinary(&self) -> bool {
        self.is_ordinary.load(Ordering::Acquire)
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
                let permit = self.all.wait(self.client, 1).await;
                *own = Some(Held::Ordinary(permit));
                self.is_ordinary.store(true, Ordering::Release);
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
    use futures::FutureExt as _;

    use super::*;

    impl<Later: Future> Taken<Later> {
        fn pinned(self) -> Taken<std::pin::Pin<Box<Later>>> {
            match self {
                Taken::Place(place) => Taken::Place(place),
                Taken::Later(later) => Taken::Later(Box::pin(later)),
                Taken::None => Taken::None,
            }
        }
    }

    /// The place that there is now.
    async fn now(places: &Places, address: IpAddr) -> Option<Place> {
        match places.take(address).await {
            Taken::Place(place) => Some(place),
            Taken::Later(_) | Taken::None => None,
        }
    }

    const HERE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::LOCALHOST);

    #[tokio::test]
    async fn requests_that_wait_for_a_place_together_wait_no_longer_than_one() {
        const REQUESTS: u32 = 100;
        const TIMEOUT: Duration = Duration::from_millis(200);
        let places = Places::new(1, MAX_WAITING);
        let taken = now(&places, HERE).await.unwrap();
        assert!(taken.is_ordinary());
        let place = now(&places, HERE).await.unwrap();
        assert!(!place.is_ordinary());
        let all = (0..REQUESTS).map(|_| place.become_ordinary(TIMEOUT));
        let all = tokio::time::timeout(TIMEOUT * REQUESTS / 2, futures::future::join_all(all));
        let exchanged = all.await.expect("they wait at the same time");
        assert!(!exchanged.contains(&true));
        drop(taken);
        assert!(place.become_ordinary(TIMEOUT).await);
        // The place of the reserve is free again.
        let free = (places.ordinary.free(), places.reserve.available_permits());
        assert_eq!(free, (0, RESERVED_CONNECTIONS));
        assert!(places.reserve_of.lock().unwrap().is_empty());
    }

    #[tokio::test]
    async fn one_address_leaves_places_of_the_reserve_to_others() {
        let places = Places::new(1, MAX_WAITING);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held = Vec::new();
        while let Some(place) = now(&places, address("2001:db8::1")).await {
            held.push(place);
        }
        assert_eq!(held.len(), 1 + MAX_OF_ADDRESS);
        // Of the same network, and so of the same client.
        let Taken::Later(later) = places.take(address("2001:db8::2")).await else {
            panic!("it does not wait");
        };
        let other = now(&places, HERE).await.unwrap();
        assert!(!other.is_ordinary());
        held.pop();
        assert!(now(&places, address("2001:db8::2")).await.is_some());
        // The first one has the ordinary place.
        held.remove(0);
        assert!(later.await.is_ordinary());
        let all = places.waiting.try_take(of_address(HERE), MAX_WAITING);
        let ordinary = places.ordinary.try_take(of_address(HERE), 1);
        assert!(all.is_ok() && ordinary.is_ok());
        held.extend(now(&places, address("2001:db8::1")).await);
        assert!(matches!(
            places.take(address("2001:db8::1")).await,
            Taken::None
        ));
        drop((all, ordinary));
    }

    #[tokio::test]
    async fn connections_of_one_address_that_wait_hold_up_none_of_another() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (flood, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let places = Places::new(2, MAX_WAITING);
        let mut held = Vec::new();
        while let Some(place) = now(&places, flood).await {
            held.push(place);
        }
        let mut waiting = Vec::new();
        while let Taken::Later(mut later) = places.take(flood).await.pinned() {
            assert!((&mut later).now_or_never().is_none());
            waiting.push(later);
        }
        assert_eq!(waiting.len(), MAX_WAITING / 4 * 3, "others may wait, too");
        let monitor = now(&places, other).await.expect("it is of the reserve");
        let mut ordinary = Box::pin(monitor.become_ordinary(Duration::from_secs(60)));
        assert!((&mut ordinary).now_or_never().is_none());
        // The first one that waits has one of the two ordinary places, and the other address the next.
        held.retain(|place| !place.is_ordinary());
        assert_eq!(ordinary.now_or_never(), Some(true));
    }
}
