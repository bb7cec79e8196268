//! Places of connections: `limits.connections` ordinary ones, and a reserve for clients that monitor the
//! server. Of the reserve, an address has three times what is free at most, so whoever takes as many as it can get leaves
//! some to the monitors of others. Connections that find no place wait, [`MAX_WAITING`] of all addresses, and those
//! beyond are closed at once: whoever accepts connections waits for none of them. Places of both kinds that become free
//! are given in turns by address, so a monitor waits for one connection of each other address at most, and a place of
//! the reserve becomes free after some seconds.

use std::net::IpAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use esker_node::{Client, FairBudget, FairPermit, SharePolicy};

use crate::client::of_address;

/// The gauge of open connections.
pub(crate) const CONNECTIONS: &str = "esker_http_connections";

/// The counter of connections that were closed at once.
pub(crate) const CONNECTIONS_REFUSED: &str = "esker_http_connections_refused_total";

/// Connections beyond `limits.connections`, for health, metrics and the admin API alone. One address has 12 of them at
/// most, two have 15.
pub(crate) const RESERVED_CONNECTIONS: usize = 16;

/// Connections that wait for a place, unless the limit of open files leaves fewer. An address has three times as many as
/// are free at most, so 384 if it is alone.
pub(crate) const MAX_WAITING: usize = 512;

/// The places of connections, over all listeners. Cheap to clone.
#[derive(Clone)]
pub(crate) struct Places {
    ordinary: FairBudget,
    reserve: FairBudget,
    waiting: FairBudget,
}

/// The place of a connection.
pub(crate) struct Place {
    all: FairBudget,
    client: Client,
    is_ordinary: AtomicBool,
    held: tokio::sync::Mutex<FairPermit>,
}

/// Which places a connection may have.
#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Ordinary,
    Reserve,
}

impl Places {
    /// So many ordinary ones, and the reserve; so many connections may wait beside these.
    pub(crate) fn new(ordinary: usize, waiting: usize) -> Places {
        Places {
            ordinary: FairBudget::new(ordinary, SharePolicy::All),
            // A connection decides itself how long it keeps its place, within some seconds.
            reserve: FairBudget::new(RESERVED_CONNECTIONS, SharePolicy::OverFree),
            waiting: FairBudget::new(waiting, SharePolicy::OverFree),
        }
    }

    /// An ordinary place, or one of the reserve, or a wait for either. It never waits itself: connections of others that
    /// come after this one would wait behind it.
    pub(crate) fn take(
        &self,
        address: IpAddr,
    ) -> Taken<impl Future<Output = Place> + Send + use<>> {
        let client = of_address(address);
        if let Ok(permit) = self.ordinary.try_take(client, 1) {
            return Taken::Place(self.place(client, Kind::Ordinary, permit));
        }
        if let Ok(permit) = self.reserve.try_take(client, 1) {
            return Taken::Place(self.place(client, Kind::Reserve, permit));
        }
        let waits = self.waiting.try_take(client, 1);
        waits.map_or(Taken::None, |waits| Taken::Later(self.later(client, waits)))
    }

    /// A place, once there is one.
    fn later(
        &self,
        client: Client,
        waits: FairPermit,
    ) -> impl Future<Output = Place> + Send + use<> {
        let places = self.clone();
        async move {
            let (kind, permit) = tokio::select! {
                biased;
                permit = places.ordinary.wait(client, 1) => (Kind::Ordinary, permit),
                permit = places.reserve.wait(client, 1) => (Kind::Reserve, permit),
            };
            drop(waits);
            places.place(client, kind, permit)
        }
    }

    fn place(&self, client: Client, kind: Kind, held: FairPermit) -> Place {
        metrics::gauge!(CONNECTIONS).increment(1.0);
        Place {
            all: self.ordinary.clone(),
            client,
            is_ordinary: AtomicBool::new(kind == Kind::Ordinary),
            held: tokio::sync::Mutex::new(held),
        }
    }
}

/// What a connection gets.
pub(crate) enum Taken<Later> {
    Place(Place),
    /// There is none for it now. This waits for one.
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
                *own = permit;
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
    fn now(places: &Places, address: IpAddr) -> Option<Place> {
        match places.take(address) {
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
        let taken = now(&places, HERE).unwrap();
        assert!(taken.is_ordinary());
        let place = now(&places, HERE).unwrap();
        assert!(!place.is_ordinary());
        let all = (0..REQUESTS).map(|_| place.become_ordinary(TIMEOUT));
        let all = tokio::time::timeout(TIMEOUT * REQUESTS / 2, futures::future::join_all(all));
        let exchanged = all.await.expect("they wait at the same time");
        assert!(!exchanged.contains(&true));
        drop(taken);
        assert!(place.become_ordinary(TIMEOUT).await);
        // The place of the reserve is free again.
        let free = (places.ordinary.free(), places.reserve.free());
        assert_eq!(free, (0, RESERVED_CONNECTIONS));
    }

    #[tokio::test]
    async fn one_address_leaves_places_of_the_reserve_to_others() {
        let places = Places::new(1, MAX_WAITING);
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let mut held = Vec::new();
        while let Some(place) = now(&places, address("2001:db8::1")) {
            held.push(place);
        }
        assert_eq!(held.len(), 1 + RESERVED_CONNECTIONS / 4 * 3);
        // Of the same network, and so of the same client.
        let Taken::Later(later) = places.take(address("2001:db8::2")) else {
            panic!("it does not wait");
        };
        let other = now(&places, HERE).unwrap();
        assert!(!other.is_ordinary());
        drop(other);
        held.pop();
        assert!(now(&places, address("2001:db8::2")).is_some());
        // The first one has the ordinary place.
        held.remove(0);
        assert!(later.await.is_ordinary());
        let all = places.waiting.try_take(of_address(HERE), MAX_WAITING);
        let ordinary = places.ordinary.try_take(of_address(HERE), 1);
        assert!(all.is_ok() && ordinary.is_ok());
        held.extend(now(&places, address("2001:db8::1")));
        assert!(matches!(places.take(address("2001:db8::1")), Taken::None));
        drop((all, ordinary));
    }

    #[tokio::test]
    async fn addresses_that_hold_the_reserve_keep_no_other_one_from_being_accepted() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let places = Places::new(1, MAX_WAITING);
        let _ordinary = now(&places, HERE).unwrap();
        let floods = [address("10.0.0.1"), address("10.0.0.2")];
        let (mut held, mut waiting) = (Vec::new(), Vec::new());
        for flood in floods {
            while let Some(place) = now(&places, flood) {
                held.push(place);
            }
        }
        assert_eq!(held.len(), RESERVED_CONNECTIONS - 1);
        for flood in floods.into_iter().cycle().take(100) {
            let Taken::Later(mut later) = places.take(flood).pinned() else {
                panic!("it does not wait");
            };
            assert!((&mut later).now_or_never().is_none());
            waiting.push(later);
        }
        // A monitor of a third address has the last place. One of a fourth is accepted, too, and has the next one.
        let third = now(&places, address("10.0.0.3")).expect("a place is left");
        let Taken::Later(mut fourth) = places.take(address("10.0.0.4")).pinned() else {
            panic!("there is no place");
        };
        assert!((&mut fourth).now_or_never().is_none());
        held.pop();
        let fourth = fourth.now_or_never().expect("it has the next place");
        assert!(!fourth.is_ordinary() && !third.is_ordinary());
        drop((held, third, fourth));
        // What waits longest has its turn once there is something for it.
        assert!(waiting.remove(0).now_or_never().is_some());
        drop(waiting);
        let free = (places.reserve.free(), places.waiting.free());
        assert_eq!(free, (RESERVED_CONNECTIONS, MAX_WAITING));
    }

    #[tokio::test]
    async fn connections_of_one_address_that_wait_hold_up_none_of_another() {
        let address = |text: &str| text.parse::<IpAddr>().unwrap();
        let (flood, other) = (address("10.0.0.1"), address("10.0.0.2"));
        let places = Places::new(2, MAX_WAITING);
        let mut held = Vec::new();
        while let Some(place) = now(&places, flood) {
            held.push(place);
        }
        let mut waiting = Vec::new();
        while let Taken::Later(mut later) = places.take(flood).pinned() {
            assert!((&mut later).now_or_never().is_none());
            waiting.push(later);
        }
        assert_eq!(waiting.len(), MAX_WAITING / 4 * 3, "others may wait, too");
        let monitor = now(&places, other).expect("it is of the reserve");
        let mut ordinary = Box::pin(monitor.become_ordinary(Duration::from_secs(60)));
        assert!((&mut ordinary).now_or_never().is_none());
        // The first one that waits has one of the two ordinary places, and the other address the next.
        held.retain(|place| !place.is_ordinary());
        assert_eq!(ordinary.now_or_never(), Some(true));
    }
}
