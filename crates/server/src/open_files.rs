//! The limit of open files: raised at a start as far as the operating system allows, compared with what
//! the configuration can need, and divided if it is less.
//!
//! A process at its limit can neither flush its database nor open a log file, so the share of clients is
//! reduced before that: connections beyond it wait, and the database closes files that it does not use.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::config::Config;
use crate::place::{MAX_WAITING, RESERVED_CONNECTIONS};

/// Descriptors of everything that is opened temporarily: a checkpoint, uploads and restores (4 partitions
/// of 8 files each), JSON snapshots, the test of a restore, RocksDB's own files and those that it writes;
/// and those of the runtime, listeners and standard streams.
const RESERVE: u64 = 160;
/// Connections of other nodes, and of strangers at the listener for nodes: 256 of these, and some dozen nodes.
const PEER_CONNECTIONS: u64 = 320;
/// The part of what is left for clients and the database that connections have which wait for a place, if there is too
/// little for all.
const WAITING_PART: u32 = 8;
/// The database needs at least this many files to be useful.
const MIN_DATABASE: u32 = 64;
/// Clients need at least this many connections.
const MIN_CONNECTIONS: u32 = 16;

/// What the configuration can need, and what there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct OpenFiles {
    /// The limit of the process.
    pub limit: u64,
    /// What the configuration can need at most.
    pub needed: u64,
    /// Files that the database may keep open.
    pub database: u32,
    /// Connections that may be open.
    pub connections: u32,
    /// Connections that may wait for a place.
    pub waiting: u32,
}

impl OpenFiles {
    /// Raises the limit, and divides it.
    pub fn raise(config: &Config) -> OpenFiles {
        let files = OpenFiles::share(config, raised());
        let OpenFiles { limit, needed, .. } = files;
        if limit < needed {
            tracing::warn!(
                limit,
                needed,
                "the limit of open files is {limit}, and the configuration can need {needed}: the database \
                 keeps at most {} of its files open, and {} connections are served at a time. Raise the hard \
                 limit (`ulimit -Hn`, or LimitNOFILE= of a systemd unit), or lower `limits.connections` and \
                 `store.max-open-files`",
                files.database,
                files.connections,
            );
        } else {
            tracing::info!(
                limit,
                needed,
                "the limit of open files is {limit}; the configuration can need {needed}"
            );
        }
        files
    }

    fn share(config: &Config, limit: u64) -> OpenFiles {
        let most = config.log.purge_threshold.as_u64();
        let most = most.max(config.snapshots.max_log_bytes.as_u64());
        let segment = config.log.segment_size.as_u64().max(1);
        // The most that the log takes on disk: ARCHITECTURE.md, bounds.
        let log = (most / 4).saturating_mul(7) + config.limits.append_inflight.as_u64();
        // The log keeps each of its files open; some are about to be deleted.
        let log_files = log / segment + 2 + 8;
        let peers = config.cluster.peer_listen.map_or(0, |_| PEER_CONNECTIONS);
        let fixed = log_files + RESERVE + RESERVED_CONNECTIONS as u64 + peers;
        let waiting = MAX_WAITING as u32;
        let (database, connections) = (config.store.max_open_files, config.limits.connections);
        let clients = u64::from(connections) + u64::from(waiting);
        let needed = fixed + u64::from(database) + clients;
        if limit >= needed {
            return OpenFiles {
                limit,
                needed,
                database,
                connections,
                waiting,
            };
        }
        let left = u32::try_from(limit.saturating_sub(fixed)).unwrap_or(u32::MAX);
        let spare = left.saturating_sub(MIN_DATABASE + MIN_CONNECTIONS);
        let waiting = waiting.min(spare / WAITING_PART);
        let left = left - waiting;
        let database = database.min((left / 2).max(MIN_DATABASE));
        let rest = left.saturating_sub(database).max(MIN_CONNECTIONS);
        OpenFiles {
            limit,
            needed,
            database,
            connections: connections.min(rest),
            waiting,
        }
    }

    /// The configuration, reduced to what is available.
    pub fn within(&self, config: &Config) -> Config {
        let mut config = config.clone();
        config.store.max_open_files = self.database;
        config.limits.connections = self.connections;
        config
    }
}

/// Raises the soft limit to the hard one, and returns the limit that is then in force.
fn raised() -> u64 {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    let before = current.unwrap_or(u64::MAX);
    if current == maximum {
        return before;
    }
    let wanted = Rlimit {
        current: maximum,
        maximum,
    };
    match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => maximum.unwrap_or(u64::MAX),
        Err(error) => {
            tracing::warn!(%error, "the limit of open files stays at {before}");
            before
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_beyond_the_limit_of_connections_are_counted() {
        let config = Config::default();
        let needed = OpenFiles::share(&config, u64::MAX).needed;
        let limit = config.limits.connections as usize + RESERVED_CONNECTIONS + MAX_WAITING;
        assert!(needed >= limit as u64 + u64::from(config.store.max_open_files) + RESERVE);
    }

    #[test]
    fn a_limit_that_suffices_changes_nothing() {
        let config = Config::default();
        let needed = OpenFiles::share(&config, u64::MAX).needed;
        for limit in [needed, needed + 1, u64::MAX] {
            let files = OpenFiles::share(&config, limit);
            assert_eq!(files.within(&config), config, "{limit}");
        }
    }

    #[test]
    fn a_lower_limit_is_never_handed_out_beyond_what_there_is() {
        let config = Config::default();
        let needed = OpenFiles::share(&config, u64::MAX).needed;
        let both = u64::from(config.store.max_open_files + config.limits.connections);
        let fixed = needed - both - MAX_WAITING as u64;
        let least = fixed + u64::from(MIN_DATABASE + MIN_CONNECTIONS);
        for limit in least..needed {
            let files = OpenFiles::share(&config, limit);
            let handed_out = u64::from(files.database + files.connections + files.waiting);
            assert!(handed_out + fixed <= limit, "{limit}: {files:?}");
            assert!(files.database >= MIN_DATABASE && files.connections >= MIN_CONNECTIONS);
        }
        let files = OpenFiles::share(&config, 0);
        assert_eq!(
            (files.database, files.connections, files.waiting),
            (MIN_DATABASE, MIN_CONNECTIONS, 0)
        );
    }
}
