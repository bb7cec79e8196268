//! Options of a repository: who uses it, what is retained, and how requests are retried.

use std::num::NonZeroU32;
use std::time::Duration;

use crate::cluster::Cluster;
use crate::incarnation::Incarnation;
use crate::metadata::Kind;
use crate::rate_limiter::RateLimiter;

/// Options of a repository.
#[derive(Clone, Debug)]
pub struct Options {
    /// The cluster that this process is of. `None` is for reading only: objects of every cluster are read,
    /// and nothing is written.
    pub cluster: Option<Cluster>,
    /// Which of several copies of one node this is. `None` for a writer without one, such as a command,
    /// which is refused where a node puts its snapshots.
    pub incarnation: Option<Incarnation>,
    /// How a new snapshot's files are kept.
    pub kind: Kind,
    /// Whether files that a retained snapshot has are reused. Without it, a put shares no object with
    /// earlier snapshots: for a repository that was found to be damaged.
    pub reuse: bool,
    /// Every so many incremental snapshots, one reuses nothing, so that it shares no object with earlier
    /// ones. `None`: snapshots reuse whatever they can.
    pub full_every: Option<NonZeroU32>,
    /// Number of snapshots that are retained; what a commit removes is deleted at once. `None`: the newest
    /// only, and the sweep deletes older ones once they are older than `orphan_min_age`.
    pub num_retained: Option<NonZeroU32>,
    /// A sweep does not delete younger objects. Its safety does not depend on this: it is a second safeguard.
    pub orphan_min_age: Duration,
    /// An intent that was not renewed for this long has expired.
    pub intent_timeout: Duration,
    /// How often an upload renews its intent; must be far below `intent_timeout`.
    pub renew_every: Duration,
    /// How long the pin of a restore lasts; the restore renews it after half of that.
    pub pin_for: Duration,
    /// Files that are transferred at a time.
    pub parallel_files: usize,
    /// Bytes of files that uploads have in memory; at least one part of 8 MiB.
    pub buffer: usize,
    /// Limits the rate at which files are uploaded. Hard links, descriptions and the root are not limited.
    /// `None`: no limit.
    pub rate_limiter: Option<RateLimiter>,
    /// Limits the rate at which a repair reads local files and objects to find a copy. `None`: no limit.
    pub read_limiter: Option<RateLimiter>,
    /// How often a request to the store is retried, and how long it may take.
    pub retries: Retries,
}

const DAY: Duration = Duration::from_secs(24 * 3600);

impl Default for Options {
    fn default() -> Options {
        Options {
            cluster: None,
            incarnation: None,
            kind: Kind::Full,
            reuse: true,
            full_every: None,
            num_retained: None,
            orphan_min_age: DAY,
            intent_timeout: DAY,
            renew_every: Duration::from_secs(3600),
            pin_for: Duration::from_secs(6 * 3600),
            // Enough to hide the latency of an object store; a disk needs no more.
            parallel_files: 8,
            // Six parts. With the memory of allocators and connections, a process stays below 128 MiB.
            buffer: 48 << 20,
            rate_limiter: None,
            read_limiter: None,
            retries: Retries::default(),
        }
    }
}

/// How often a request to the store is retried, and how long it may take.
#[derive(Clone, Copy, Debug)]
pub struct Retries {
    /// Attempts at one request, at least 1. Six attempts with back-off outlast a failure of some seconds.
    pub attempts: u32,
    /// Second and later attempts at all requests of one operation (a put, a restore, a sweep)
    /// together, so that an operation ends even if half of all requests fail.
    pub budget: u32,
    /// Maximum wait before the second attempt; doubled for each further one.
    pub first_wait: Duration,
    /// Maximum wait between two attempts.
    pub longest_wait: Duration,
    /// How long a store may neither accept nor send a byte before a request counts as failed.
    pub silence: Duration,
}

impl Default for Retries {
    fn default() -> Retries {
        Retries {
            attempts: 6,
            budget: 100,
            first_wait: Duration::from_millis(200),
            longest_wait: Duration::from_secs(10),
            silence: Duration::from_secs(60),
        }
    }
}
