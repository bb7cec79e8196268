//! Windows of HTTP/2 connections: how many bytes a client may send ahead of what is read.
//!
//! Bytes that have arrived and were not read are in memory, so windows are bounded together: by
//! `limits.http2-windows`, and [`MIN_WINDOW`] for each connection besides, which the protocol grants in
//! any case. A connection gets a part of what its principal may still have when it begins, [`MAX_WINDOW`] at most, and
//! keeps it until it ends: if there are few connections, each has a large window. The library cannot change it later.
//!
//! When a connection begins, its address is all that is known of it, and its window counts for that; with its first
//! request of a valid token ([`Window::identified`]), it counts for the token. No address gets more than three times what
//! is free, so that a client of another one still gets a window of some size. A token may have more, because its
//! connections count for it only when they have their windows. So while less than half is free, connections are ended
//! ([`Window::reclaimed`]), and their windows given back: one that has sent no valid token within [`LOOK_INTERVAL`], and
//! one whose principal has more than that share and whose window is more than twice that of a new connection. If
//! the client connects again, it gets a smaller one, so that this comes to an end.

use std::future::pending;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use esker_node::{Client, FairBudget, FairPermit, SharePolicy};
use hyper_util::rt::TokioExecutor;
use hyper_util::server::conn::auto;

use crate::client::of_address;

/// What every connection has: HTTP/2 begins with it, and it cannot be made smaller.
pub(crate) const MIN_WINDOW: usize = 65_535;
/// The largest window of a connection.
const MAX_WINDOW: usize = 8 * 1024 * 1024;
/// The part of what its principal may still have that one connection gets. One that has nothing yet may have three
/// quarters of what is free, so it gets a thirty-second of that: the first of 256 MiB has 8 MiB.
const PART: usize = 24;
/// How much larger than that of a new connection a window may be whose principal is over its share.
const MAX_OVER_NEW: usize = 2;
/// How often a connection finds out whether it has to end for its window, and so how long it keeps that without a valid
/// token where memory for windows is short: several times what a client takes for its first request.
const LOOK_INTERVAL: Duration = Duration::from_secs(10);

/// The gauge of what windows take beyond [`MIN_WINDOW`].
const BYTES: &str = "esker_http2_windows_bytes";
/// The counter of connections that were ended for their windows.
const ENDED: &str = "esker_http2_windows_reclaimed_total";

/// The windows of all connections.
#[derive(Clone, Debug)]
pub(crate) struct Windows {
    free: FairBudget,
    total: usize,
}

/// The window of a connection, until it is dropped.
#[derive(Debug)]
pub(crate) struct Window {
    bytes: usize,
    permit: Mutex<FairPermit>,
    of: Windows,
    /// For whom it counts, once that is known.
    client: OnceLock<Client>,
}

impl Windows {
    /// Windows of `total` bytes beside [`MIN_WINDOW`] for each connection.
    pub(crate) fn new(total: usize) -> Windows {
        metrics::gauge!(BYTES).set(0.0);
        metrics::counter!(ENDED).increment(0);
        Windows {
            free: FairBudget::new(total, SharePolicy::OverFree),
            total,
        }
    }

    /// The window of a new connection from an address.
    pub(crate) fn open(&self, address: IpAddr) -> Arc<Window> {
        let most = MAX_WINDOW - MIN_WINDOW;
        let permit = self.free.take_part(of_address(address), PART, most);
        metrics::gauge!(BYTES).increment(permit.amount() as f64);
        Arc::new(Window {
            bytes: MIN_WINDOW + permit.amount(),
            permit: Mutex::new(permit),
            of: self.clone(),
            client: OnceLock::new(),
        })
    }

    fn is_short(&self) -> bool {
        self.free.free() < self.total / 2
    }
}

impl Window {
    /// Sets it for a connection. One request may have half of it in flight, so that a request that is not
    /// read leaves something for the others.
    pub(crate) fn apply(&self, http: &mut auto::Builder<TokioExecutor>) {
        let bytes = u32::try_from(self.bytes).unwrap_or(u32::MAX);
        http.http2()
            .initial_connection_window_size(bytes)
            .initial_stream_window_size(bytes / 2);
    }

    /// A request of the connection has come from a principal that may send some: the window counts for the first one
    /// from now on.
    pub(crate) fn identified(&self, client: impl FnOnce() -> Client) {
        if self.client.get().is_some() {
            return;
        }
        let client = client();
        if self.client.set(client).is_err() {
            return;
        }
        let mut permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        permit.charge_to(client);
    }

    /// Waits until the connection has to end for its window, because others lack what it has.
    pub(crate) async fn reclaimed(&self) {
        loop {
            tokio::time::sleep(LOOK_INTERVAL).await;
            if self.bytes == MIN_WINDOW {
                return pending().await;
            }
            if self.of.is_short() && (self.client.get().is_none() || self.is_too_large()) {
                metrics::counter!(ENDED).increment(1);
                return;
            }
        }
    }

    /// Whether its principal is over its share, and a new connection in its place would leave more to others.
    fn is_too_large(&self) -> bool {
        let of_new = self.of.free.free() / (PART + PART / 3);
        let permit = self.permit.lock().unwrap_or_else(PoisonError::into_inner);
        permit.is_over_share() && permit.amount() > MAX_OVER_NEW * of_new
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        metrics::gauge!(BYTES).decrement((self.bytes - MIN_WINDOW) as f64);
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    const TOTAL: usize = 256 * 1024 * 1024;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x0a00_0000 + number).into()
    }

    fn token(principal: u64) -> Client {
        Client {
            principal,
            connection: 0,
        }
    }

    #[test]
    fn windows_of_all_connections_are_within_their_budget_and_few_have_large_ones() {
        let windows = Windows::new(TOTAL);
        let open: Vec<_> = (0..1040)
            .map(|number| windows.open(address(number)))
            .collect();
        let sum: usize = open.iter().map(|window| window.bytes).sum();
        assert!(sum <= TOTAL + open.len() * MIN_WINDOW, "{sum}");
        assert_eq!(open[0].bytes, MAX_WINDOW);
        assert!(open[100].bytes > 300 * 1024, "{}", open[100].bytes);
        assert!(open.iter().all(|window| window.bytes >= MIN_WINDOW));
        // Connections that end release theirs.
        drop(open);
        assert_eq!(windows.open(address(0)).bytes, MAX_WINDOW);
    }

    #[test]
    fn connections_of_one_address_or_token_leave_windows_to_those_of_others() {
        const LARGE: usize = 1024 * 1024;
        let windows = Windows::new(TOTAL);
        let flood: Vec<_> = (0..700).map(|_| windows.open(address(1))).collect();
        let other = windows.open(address(2));
        assert!(other.bytes > LARGE, "{}", other.bytes);
        // Behind one address, each token has its own share.
        for window in &flood {
            window.identified(|| token(7));
        }
        let neighbour = windows.open(address(1));
        assert!(neighbour.bytes > LARGE, "{}", neighbour.bytes);
        // What counts for a token is given back by it.
        drop((flood, other, neighbour));
        assert_eq!(windows.free.taken(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn without_a_valid_token_a_connection_ends_where_others_lack_its_window() {
        let windows = Windows::new(TOTAL);
        let window = windows.open(address(1));
        let known = windows.open(address(1));
        known.identified(|| token(7));
        let mut ends = Box::pin(window.reclaimed());
        let long = 10 * LOOK_INTERVAL;
        let plenty = tokio::time::timeout(long, &mut ends).await;
        assert!(plenty.is_err(), "nobody lacks anything");
        let flood: Vec<_> = (0..700).map(|_| windows.open(address(2))).collect();
        assert!(windows.is_short());
        tokio::time::timeout(2 * LOOK_INTERVAL, ends)
            .await
            .expect("it ends");
        let stays = tokio::time::timeout(long, known.reclaimed()).await;
        assert!(stays.is_err(), "its token is valid, and has its share");
        let small = flood.iter().find(|window| window.bytes == MIN_WINDOW);
        let small = small.expect("the last ones have nothing").reclaimed();
        let stays = tokio::time::timeout(long, small).await;
        assert!(stays.is_err(), "it has nothing that others lack");
    }

    #[tokio::test(start_paused = true)]
    async fn connections_of_one_token_that_come_one_after_another_are_ended_until_others_get_some()
    {
        const CONNECTIONS: usize = 300;
        let windows = Windows::new(TOTAL);
        let connect = |number| {
            let window = windows.open(address(number));
            window.identified(|| token(7));
            window
        };
        // None is there when the next one is opened, for all that is known of its address.
        let mut open: Vec<_> = (0..CONNECTIONS).map(|_| connect(1)).collect();
        let other = windows.open(address(2));
        assert!(other.bytes < MIN_WINDOW + 4096, "{}", other.bytes);
        drop(other);
        let mut ended = 0;
        loop {
            let before = ended;
            for at in 0..CONNECTIONS {
                let look = tokio::time::timeout(2 * LOOK_INTERVAL, open[at].reclaimed());
                if look.await.is_ok() {
                    ended += 1;
                    // Its client connects again.
                    drop(open.swap_remove(at));
                    open.push(connect(1));
                }
            }
            if ended == before {
                break;
            }
            assert!(ended < 4 * CONNECTIONS, "they end again and again");
        }
        let other = windows.open(address(2));
        assert!(other.bytes > 384 * 1024, "{} after {ended}", other.bytes);
    }
}
