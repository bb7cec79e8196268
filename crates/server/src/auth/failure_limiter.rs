//! How often an address may fail: a token bucket for each.
//!
//! An address of IPv6 counts with its network of 64 bits, which one machine may have all of. Requests with a
//! valid token do not count and are not limited, whatever else comes from their address.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::principal::network;

/// Failures that an address may have at once.
const MAX_FAILURES: u32 = 20;
/// One more failure is allowed after this long.
const REFILL_INTERVAL: Duration = Duration::from_secs(1);
/// Addresses that are counted one by one, in some 64 bytes each. Beyond them, those whose buckets are full again
/// are forgotten, and if there are none, new addresses share one bucket.
const MAX_ADDRESSES: usize = 8192;

/// The failures of all addresses.
#[derive(Debug, Default)]
pub(crate) struct FailureLimiter {
    buckets: Mutex<Buckets>,
}

#[derive(Debug, Default)]
struct Buckets {
    of: HashMap<IpAddr, Bucket>,
    /// Of addresses for which there is no place.
    others: Bucket,
    /// When full buckets were last removed.
    swept_at: Option<Instant>,
}

/// The time at which a bucket is full again. Each failure moves it by [`REFILL_INTERVAL`].
#[derive(Clone, Copy, Debug, Default)]
struct Bucket {
    full_at: Option<Instant>,
}

impl Bucket {
    fn is_full(&self, now: Instant) -> bool {
        self.full_at.is_none_or(|at| at <= now)
    }

    /// Takes a failure.
    fn fail(&mut self, now: Instant) -> Result<(), Duration> {
        let from = self.full_at.map_or(now, |at| at.max(now));
        let missing = from - now;
        let most = REFILL_INTERVAL * MAX_FAILURES;
        if missing + REFILL_INTERVAL > most {
            return Err(missing + REFILL_INTERVAL - most);
        }
        self.full_at = Some(from + REFILL_INTERVAL);
        Ok(())
    }
}

impl FailureLimiter {
    /// Whether one more failure of an address is allowed, which is not counted: before something costly is done for
    /// whoever may fail.
    ///
    /// # Errors
    ///
    /// There were too many: how long to wait.
    pub(crate) fn check(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network(address.to_canonical());
        let is_full = buckets.of.len() >= MAX_ADDRESSES;
        let mut bucket = match buckets.of.get(&address) {
            Some(bucket) => *bucket,
            None if is_full => buckets.others,
            None => Bucket::default(),
        };
        bucket.fail(now)
    }

    /// Counts a failure of an address.
    ///
    /// # Errors
    ///
    /// There were too many: how long to wait.
    pub(crate) fn fail(&self, address: IpAddr, now: Instant) -> Result<(), Duration> {
        let mut buckets = self.buckets.lock().unwrap_or_else(PoisonError::into_inner);
        let address = network(address.to_canonical());
        if !buckets.of.contains_key(&address) && buckets.of.len() >= MAX_ADDRESSES {
            // Not at each failure: it takes as long as the map is large.
            if buckets
                .swept_at
                .is_none_or(|at| now >= at + REFILL_INTERVAL)
            {
                buckets.swept_at = Some(now);
                buckets.of.retain(|_, bucket| !bucket.is_full(now));
            }
            if buckets.of.len() >= MAX_ADDRESSES {
                return buckets.others.fail(now);
            }
        }
        buckets.of.entry(address).or_default().fail(now)
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use std::net::Ipv6Addr;

    use super::*;

    fn v4(number: u32) -> IpAddr {
        IpAddr::V4(Ipv4Addr::from_bits(number))
    }

    #[test]
    fn an_address_is_limited_after_so_many_failures_and_not_for_ever() {
        let (limiter, now) = (FailureLimiter::default(), Instant::now());
        for _ in 0..MAX_FAILURES {
            limiter.fail(v4(1), now).unwrap();
        }
        assert_eq!(limiter.fail(v4(1), now), Err(REFILL_INTERVAL));
        // Further attempts do not make the wait longer.
        assert_eq!(limiter.fail(v4(1), now), Err(REFILL_INTERVAL));
        limiter.fail(v4(2), now).unwrap();
        assert_eq!(limiter.check(v4(1), now), Err(REFILL_INTERVAL));
        for _ in 0..2 * MAX_FAILURES {
            // A look counts nothing.
            limiter.check(v4(1), now + REFILL_INTERVAL).unwrap();
        }
        limiter.fail(v4(1), now + REFILL_INTERVAL).unwrap();
        limiter.fail(v4(1), now + REFILL_INTERVAL).unwrap_err();
    }

    #[test]
    fn addresses_of_one_network_of_ipv6_count_together() {
        let (limiter, now) = (FailureLimiter::default(), Instant::now());
        for host in 0..MAX_FAILURES {
            let address = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0, 0, 0, host as u16);
            limiter.fail(address.into(), now).unwrap();
        }
        let same = Ipv6Addr::new(0x2001, 0xdb8, 0, 1, 0xffff, 0, 0, 0);
        limiter.fail(same.into(), now).unwrap_err();
        let other = Ipv6Addr::new(0x2001, 0xdb8, 0, 2, 0, 0, 0, 0);
        limiter.fail(other.into(), now).unwrap();
        // The same address as IPv4 and as IPv6 is one.
        for _ in 0..MAX_FAILURES {
            limiter.fail(v4(0x7f000001), now).unwrap();
        }
        let mapped: IpAddr = "::ffff:127.0.0.1".parse().unwrap();
        limiter.fail(mapped, now).unwrap_err();
    }

    #[test]
    fn addresses_without_number_take_bounded_memory_and_share_one_bucket() {
        let (limiter, now) = (FailureLimiter::default(), Instant::now());
        for number in 0..MAX_ADDRESSES as u32 {
            limiter.fail(v4(number), now).unwrap();
        }
        for number in 0..MAX_FAILURES {
            limiter.fail(v4(1_000_000 + number), now).unwrap();
        }
        limiter.fail(v4(2_000_000), now).unwrap_err();
        assert_eq!(limiter.buckets.lock().unwrap().of.len(), MAX_ADDRESSES);
        // Those that are counted go on to be counted.
        limiter.fail(v4(0), now).unwrap();
        // Once buckets are full again there is place.
        let later = now + REFILL_INTERVAL;
        limiter.fail(v4(2_000_000), later).unwrap();
        assert!(limiter.buckets.lock().unwrap().of.len() < MAX_ADDRESSES);
    }
}
