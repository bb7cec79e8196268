//! What the user implements: how a record changes the state, and how the state becomes bytes and back.

use std::io;

use s2_sdk::types::SequencedRecord;

/// A state that is built from the records of a stream, one after the other.
///
/// The same records must result in the same state, at any time and on any machine: a snapshot replaces
/// all records before its cursor.
///
/// **Records wait while a clone is taken**: one before each snapshot, which is written from the clone
/// while the follower continues, and several a second if the state is watched. So a clone should be
/// cheap: an `Arc`, or the persistent collections of the `imbl` crate, which the ready folds use.
///
/// ```
/// use std::io::{self, Read, Write};
/// use esker_follow::{ApplyError, Fold, SequencedRecord};
///
/// /// How many bytes all records have.
/// #[derive(Clone, Default)]
/// struct Bytes(u64);
///
/// impl Fold for Bytes {
///     fn name(&self) -> &str {
///         "bytes"
///     }
///     fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError> {
///         self.0 += record.body.len() as u64;
///         Ok(())
///     }
///     fn snapshot(&self, out: &mut dyn Write) -> io::Result<()> {
///         out.write_all(&self.0.to_be_bytes())
///     }
///     fn restore(&mut self, from: &mut dyn Read) -> io::Result<()> {
///         let mut bytes = [0; 8];
///         from.read_exact(&mut bytes)?;
///         self.0 = u64::from_be_bytes(bytes);
///         Ok(())
///     }
/// }
/// ```
pub trait Fold: Clone + Send + Sync + 'static {
    /// The name of the fold, at most 256 bytes: a snapshot of another fold is not restored. Configuration
    /// of the fold that makes it another one has to be part of the name.
    fn name(&self) -> &str;

    /// The version of what [`Fold::snapshot`] writes. Snapshots of a newer one are not restored; those of
    /// an older one are, so [`Fold::restore`] has to read them.
    fn version(&self) -> u32 {
        1
    }

    /// The extension after a snapshot's cursor in the name of its object: `json`, or `bin`.
    fn extension(&self) -> &str {
        "bin"
    }

    /// Applies a record. Neither command records nor records of snapshots are passed in.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`] must leave the state unchanged: the record may be skipped. After any
    /// other error, and after a panic, the state is discarded.
    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError>;

    /// Writes the state, on a thread where blocking is fine.
    ///
    /// # Errors
    ///
    /// Those of `out`, and what makes the state impossible to write. No snapshot is taken then.
    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()>;

    /// Replaces the state by what [`Fold::snapshot`] wrote, on a thread where blocking is fine. The bytes
    /// are checked against their checksum *afterwards*: a state that was restored from wrong ones is
    /// discarded.
    ///
    /// # Errors
    ///
    /// Whatever the fold cannot read. The state is discarded then.
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()>;
}

/// Why a record was not applied.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The record makes no sense. [`MalformedRecords`](crate::MalformedRecords) decides what happens
    /// then.
    #[error("{0}")]
    Malformed(String),
    /// The fold cannot continue.
    #[error("{0}")]
    Failed(String),
}
