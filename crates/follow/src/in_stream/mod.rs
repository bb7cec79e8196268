//! Snapshots within the stream that they belong to.
//!
//! | form | what is appended | condition | trimmed to |
//! |---|---|---|---|
//! | single record | one batch: trim, snapshot | the cursor is the next sequence number | behind the trim command: the snapshot is the new head |
//! | framed | fragments, a final marker; then a trim | of fragment 0, the same | the cursor |
//! | anchored | the same; for a single record, too, the trim comes first | none on the cursor; the stream is checked before its trim | the cursor |
//!
//! A snapshot covers what is before its cursor. With the condition nothing is between the cursor and
//! the snapshot; an anchored one covers less than its own position, and readers replay what is in
//! between.
//!
//! | module | what it holds |
//! |---|---|
//! | [`restore`] | finding a snapshot, and restoring it |
//! | [`mod@write`] | taking one |
//! | [`others`] | those of other folds, and the trims that would destroy them |
//! | [`inspect`] | all that are in a stream, whole and torn |

pub mod inspect;
pub mod others;
pub mod restore;
pub mod write;
