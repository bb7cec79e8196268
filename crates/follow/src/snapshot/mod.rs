//! A snapshot as bytes, wherever it is kept.
//!
//! | module | what it holds |
//! |---|---|
//! | [`meta`] | the description of a snapshot, and whether the snapshot may be used |
//! | [`pipe`] | turning the state into bytes and back: checksum, compression, threads |
//! | [`object`] | a snapshot as an object: its first and its last bytes |
//! | [`OtherFold`] | a snapshot of another fold, which a trim must not destroy |
//! | [`record`] | a snapshot as records: their headers |
//! | [`assembly`] | whole and torn snapshots among the records of a stream |

pub mod assembly;
pub mod meta;
pub mod object;
mod other_fold;
pub mod pipe;
pub mod record;

pub use meta::{Encoding, Kind, Meta, SnapshotInfo, Totals, Unusable};
pub use other_fold::OtherFold;
