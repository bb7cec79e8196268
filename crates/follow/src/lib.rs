//! Snapshot-and-follow for streams: a fold of a stream whose replay stays short.
//!
//! A program that keeps a state made of a stream's records has to read them all again after a restart,
//! unless there is a snapshot: the state up to a cursor, to which only the later records have to be
//! added. This crate takes such snapshots, finds them again, and follows the stream from there, for any
//! server with the S2 API. The user provides a [`Fold`]: how a record changes the state, and how the
//! state becomes bytes and back.
//!
//! ```text
//! head ··········· cursor ▮▮▮▮▮▮▮▮ tail     restore what is left of the cursor, apply what is right of it
//! ```
//!
//! ```no_run
//! use std::time::Duration;
//! use esker_follow::folds::Latest;
//! use esker_follow::{Follower, S2Endpoint};
//!
//! # async fn example() -> Result<(), esker_follow::Error> {
//! let orders = S2Endpoint::from_env("s2://my-basin/orders")?;
//! let follower = Follower::builder(orders, Latest::by("/id")?)
//!     .in_stream()
//!     .every_records(10_000)
//!     .budget(Duration::from_secs(2))
//!     .open()
//!     .await?;
//! follower.caught_up().await?;
//! let view = follower.view().await?;
//! println!("{} orders at {}", view.state.len(), view.cursor);
//! # Ok(())
//! # }
//! ```
//!
//! # Where snapshots go
//!
//! | | what it is | when |
//! |---|---|---|
//! | [`External`] | an object in a bucket or a directory | the state is large, or others read it, or the stream must not be trimmed |
//! | [`Builder::in_stream`], fits into a batch | one record, in one atomic batch with a trim | the state is small; the stream is all that is needed |
//! | the same, larger | fragments and a final marker, then a trim | there is no bucket |
//!
//! A snapshot in the stream is appended on the condition that nobody appended since its cursor. If that
//! keeps failing, it is *anchored*: appended without the condition, and readers replay what is between
//! its cursor and itself.
//!
//! # Modules
//!
//! | module | what it holds |
//! |---|---|
//! | [`fold`], [`folds`] | what the user implements; ready ones |
//! | [`follower`] | the task that follows |
//! | [`snapshot`] | formats |
//! | [`in_stream`], [`external`] | where snapshots are: finding and taking them |
//! | [`inspection`] | all snapshots, whole and not |
//! | [`endpoint`], [`identity`] | the boundary to the server; which stream it is |

/// The examples of the guide.
#[cfg(doctest)]
#[doc = include_str!("../../../docs/guides/follow.md")]
pub struct Guide;

mod backoff;
pub mod endpoint;
pub mod error;
pub mod external;
pub mod fold;
pub mod folds;
pub mod follower;
pub mod identity;
pub mod in_stream;
mod inspected;
pub mod inspection;
pub mod options;
pub mod snapshot;
mod trim;
mod unlisted_gap;

pub use endpoint::Endpoint;
pub use endpoint::s2::S2Endpoint;
pub use error::Error;
pub use external::{External, TrimTo};
pub use fold::{ApplyError, Fold};
pub use follower::{Builder, Follower, Snapshots, Status, Update, View};
pub use inspection::{Inspected, Inspection, Standing, inspect};
pub use options::MalformedRecords;
pub use s2_sdk::types::SequencedRecord;
pub use snapshot::{Encoding, Kind, SnapshotInfo, Unusable};
