//! The state store (`[state]`).
//!
//! The attributes of the fields are explained in [`values`](super::values).

use std::net::SocketAddr;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::units::{ByteCount, HumanDuration};

/// The state store (`[state]`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct StateConfig {
    /// An address of its own for the state service, beside the one listener, which serves it too. Clients of
    /// Statehouse expect port 50051. Port 0 takes any free port. An address that other machines can reach is
    /// refused unless requests need a token (`root-token-file`) or `insecure-no-auth` is set. Unset, or the same
    /// as `listen`, there is only the one listener.
    #[schemars(extend("format" = "socket-address"))]
    pub listen: Option<SocketAddr>,

    /// After how many commits a JSON snapshot is written. 0: only when one is asked for.
    #[schemars(range(max = 1_000_000_000_000_u64))]
    pub snapshot_interval: u64,

    /// How many of the newest JSON snapshots are kept; older ones are deleted.
    #[schemars(range(min = 1, max = 1000))]
    pub snapshots_retained: u32,

    /// Whether JSON snapshots are put into the repository too, if `snapshots.destination` names one.
    pub archive_snapshots: bool,

    /// How long a transaction may stay open that names no timeout. At most
    /// `transaction-timeout-max`.
    #[schemars(extend("x-minimum" = "1ms", "x-maximum" = "1day"))]
    pub transaction_timeout: HumanDuration,

    /// The longest timeout that a transaction may name.
    #[schemars(extend("x-minimum" = "1ms", "x-maximum" = "1day"))]
    pub transaction_timeout_max: HumanDuration,

    /// Most open transactions. Beyond it, none is begun.
    #[schemars(range(min = 1, max = 10_000_000))]
    pub transactions: u32,

    /// Most operations of one transaction.
    #[schemars(range(min = 1, max = 1_000_000))]
    pub transaction_operations: u32,

    /// Most bytes that open transactions hold together. The minimum is enough for the largest commit.
    #[schemars(extend("x-minimum" = "1MiB", "x-maximum" = "64GiB"))]
    pub transactions_bytes: ByteCount,

    /// How many versions of each key are kept, the newest included. Reading an older one is an error
    /// that says where its history begins. Unset, all are kept.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub keep_versions: Option<u64>,

    /// How many of the newest commits are kept for replay, at least; those that the oldest kept JSON
    /// snapshot does not cover are kept in any case. If `keep-history-age` is set as well, a commit
    /// is kept as long as either requires it. Unset, no commit is removed because of the number.
    #[schemars(range(min = 1, max = 1_000_000_000_000_u64))]
    pub keep_history: Option<u64>,

    /// How long commits are kept for replay, at least; otherwise like `keep-history`. Unset, no
    /// commit is removed because of its age.
    #[schemars(extend("x-minimum" = "1s", "x-maximum" = "100years"))]
    pub keep_history_age: Option<HumanDuration>,
}

impl Default for StateConfig {
    fn default() -> Self {
        Self {
            listen: None,
            snapshot_interval: 1000,
            snapshots_retained: 3,
            archive_snapshots: true,
            transaction_timeout: HumanDuration::from_secs(30),
            transaction_timeout_max: HumanDuration::from_secs(300),
            transactions: 10_000,
            transaction_operations: 10_000,
            transactions_bytes: ByteCount::mib(64),
            keep_versions: None,
            keep_history: None,
            keep_history_age: None,
        }
    }
}
