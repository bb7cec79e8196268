//! Snapshots of immutable files on object storage.
//!
//! The cost of a snapshot is that of what changed since the previous one. A snapshot exists completely or
//! not at all. Garbage collection never deletes an object that is needed, whatever clocks, crashes and
//! races do.
//!
//! # The idea
//!
//! A *checkpoint* is a directory of immutable files and the position in a log that they cover. A *put*
//! makes a *snapshot* of it at a *destination*: an S3 bucket or a directory. Each partition there has one
//! object that is ever replaced, the *root* (`latest.json`), and only by compare-and-swap. The root names
//! the snapshots that are *retained*; a snapshot exists from the swap on that adds it to the root. A
//! *restore* fetches a snapshot and checks every byte. A *sweep* deletes the objects that nothing refers
//! to.
//!
//! # Modules
//!
//! | module | holds |
//! |---|---|
//! | [`destination`] | S3, a directory, anything that is an `ObjectStore` |
//! | [`ids`], [`layout`], [`root`], [`metadata`] | names and numbers; keys; the two documents |
//! | [`ownership`] | which cluster a destination belongs to |
//! | [`checkpoint`] | the files that a put takes |
//! | [`Options`], [`Cluster`], [`Incarnation`] | who uses a repository, and how |
//! | `store` | one partition's objects, with retries |
//! | [`repository`] | reading the root, swapping it |
//! | `descriptions`, [`DescriptionCache`] | reading snapshots' descriptions, and keeping large ones between requests |
//! | `writer` | which of several copies of a node may write |
//! | [`put`](Repository::put), `upload`, [`RateLimiter`], [`retention`] | making a snapshot |
//! | [`sweep`](Repository::sweep), [`prune`], [`steady`] | deleting, and the clock for it |
//! | [`restore`], [`verify`](Repository::verify), [`pin`](Repository::pin), [`fork`](Repository::fork) | using a snapshot |
//! | [`scrub`], [`marks`], [`repair`] | finding damage, noting it, repairing it |
//! | [`partitions()`], [`inventory`], [`files`], [`why`], [`diff`](Repository::diff) | inspecting what is there |
//!
//! # Example
//!
//! ```no_run
//! use esker_repository::destination::{Destination, DestinationOptions};
//! use esker_repository::{
//!     Checkpoint, Cluster, Digests, Kind, Lsn, Options, PartitionId, Progress, Repository, Which,
//! };
//!
//! # async fn example() -> Result<(), Box<dyn std::error::Error>> {
//! let destination = Destination::open("s3://backups/app", &DestinationOptions::default())?;
//! let cluster = Cluster {
//!     name: "app".to_owned(),
//!     fingerprint: None,
//!     node_name: "node-1".to_owned(),
//! };
//! let options = Options {
//!     cluster: Some(cluster),
//!     kind: Kind::Incremental,
//!     ..Options::default()
//! };
//! let repository = Repository::new(&destination, PartitionId(0), options);
//! let checkpoint = Checkpoint::scan("state".as_ref(), Lsn(42), Digests::new())?;
//! let put = repository.put(&checkpoint, &Progress::new()).await?;
//! println!("{}: {} bytes uploaded", put.snapshot, put.bytes_uploaded);
//! let to = "restored".as_ref();
//! repository.restore(&Which::Newest, to, &Progress::new()).await?;
//! # Ok(())
//! # }
//! ```
//!
//! `examples/checkpoints.rs` does more, and runs without a network.
//!
//! Clocks, waiting and randomness are injected through [`env::Env`], so that a simulation controls them.
#![deny(clippy::disallowed_methods)]

pub mod checkpoint;
mod cluster;
mod description_cache;
mod descriptions;
pub mod destination;
mod disk;
pub mod env;
mod error;
pub mod files;
mod fork;
pub mod ids;
mod incarnation;
pub mod inventory;
mod lanes;
pub mod layout;
mod local_copies;
pub mod marks;
pub mod metadata;
mod options;
pub mod ownership;
mod part;
mod partitions;
mod pin;
mod progress;
pub mod prune;
mod put;
mod rate_limiter;
pub mod repair;
pub mod repository;
pub mod restore;
mod restore_target;
pub mod retention;
pub mod root;
pub mod scrub;
pub mod steady;
mod store;
pub mod sweep;
mod upload;
mod verify;
mod watchdog;
pub mod why;
mod writer;

pub use checkpoint::{Checkpoint, Digests, Source};
pub use cluster::Cluster;
pub use description_cache::DescriptionCache;
pub use destination::Destination;
pub use error::{Error, ParseError, StoreFailure};
pub use ids::{
    DestinationId, Digest, Generation, IncarnationId, LineageId, Lsn, PartitionId, SnapshotId,
};
pub use incarnation::Incarnation;
pub use inventory::Inventory;
pub use layout::SnapshotDir;
pub use metadata::{Kind, SnapshotMetadata};
pub use options::{Options, Retries};
pub use ownership::ClusterMarker;
pub use partitions::partitions;
pub use progress::Progress;
pub use put::Put;
pub use rate_limiter::RateLimiter;
pub use repository::{CurrentRoot, Repository};
pub use restore::{Restored, Which};
pub use root::Root;
pub use verify::{DamagedObject, NewerDescription, Verification};
