//! The sizes of the load that the rows make, and its durations.

use std::time::Duration;

/// The sizes of the load that the rows make, and its durations.
#[derive(Debug, Clone)]
pub struct Sizes {
    /// Times that each row is measured per server.
    pub runs: usize,
    /// Syncs of the disk probe.
    pub disk_syncs: usize,
    /// Appends of one client.
    pub one_appends: usize,
    /// The longest that they may take; fewer are made on a slow server.
    pub one_at_most: Duration,
    /// Clients of the concurrent row.
    pub many_clients: usize,
    /// How long the rows with a fixed duration measure, after their warm-up.
    pub duration: Duration,
    /// Load before the clock runs.
    pub warm_up: Duration,
    /// Followers of one stream, where there are several.
    pub followers: usize,
    /// Append sessions of the batch row.
    pub batch_sessions: usize,
    /// Bytes in the bodies that a catch-up row prepares, once in one stream, once in many.
    pub catch_up_bytes: usize,
    /// Interleaved streams.
    pub catch_up_streams: usize,
    /// How many of them are read.
    pub catch_up_reads: usize,
    /// Streams made.
    pub create_streams: usize,
    /// Connections that make them.
    pub create_connections: usize,
    /// Records before the first restart; twice as many before the second.
    pub restart_records: usize,
    /// Streams that they lie in.
    pub restart_streams: usize,
    /// Restarts with each number of records.
    pub restarts: usize,
    /// The longest that a server is given to become idle before a row.
    pub settle: Duration,
}

impl Sizes {
    /// The sizes for which the targets are set: some ten minutes in all.
    pub fn full() -> Self {
        Self {
            runs: 3,
            disk_syncs: 1000,
            one_appends: 2000,
            one_at_most: Duration::from_secs(8),
            many_clients: 32,
            duration: Duration::from_secs(8),
            warm_up: Duration::from_secs(1),
            followers: 4,
            batch_sessions: 8,
            catch_up_bytes: 256 << 20,
            catch_up_streams: 1000,
            catch_up_reads: 100,
            create_streams: 10_000,
            create_connections: 32,
            restart_records: 10_000_000,
            restart_streams: 1000,
            restarts: 3,
            settle: Duration::from_secs(10),
        }
    }

    /// Sizes for checks of the bench itself: about a minute in all; the figures mean little.
    pub fn quick() -> Self {
        Self {
            runs: 1,
            disk_syncs: 100,
            one_appends: 200,
            one_at_most: Duration::from_secs(2),
            duration: Duration::from_secs(2),
            warm_up: Duration::from_millis(300),
            catch_up_bytes: 16 << 20,
            catch_up_streams: 100,
            catch_up_reads: 20,
            create_streams: 500,
            restart_records: 200_000,
            restart_streams: 100,
            settle: Duration::from_secs(2),
            ..Self::full()
        }
    }
}
