//! Partition snapshots: when they are taken, where they go, what they are good for.

mod options;

pub use options::{Bootstrap, DestinationOptions, OnLogFull, SnapshotKind, SnapshotOptions};
