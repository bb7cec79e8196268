//! What the user writes: how a record changes the state, and how the state becomes bytes and back.

use std::io;

use s2_sdk::types::SequencedRecord;

/// A state that is made of the records of a stream, one after the other.
///
/// The same records have to make the same state, whatever the time and wherever it runs: a snapshot
/// stands for all records before its cursor.
///
/// **Clones are taken while records wait**: one before each snapshot, which is written from the clone
/// while the follower goes on, and a few in a second if somebody watches the state. So a clone should
/// be cheap: an `Arc`, or the persistent collections of the `imbl` crate, which the ready folds use.
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
    /// Which fold it is: a snapshot of another one is not restored. At most 256 bytes. What the fold
    /// was configured with, and makes it another one, belongs into it.
    fn name(&self) -> &str;

    /// The version of what [`Fold::snapshot`] writes. Snapshots of a newer one are not restored; those
    /// of an older one are, so [`Fold::restore`] has to know them.
    fn version(&self) -> u32 {
        1
    }

    /// What follows a snapshot's cursor in the name of its object: `json`, or `bin`.
    fn extension(&self) -> &str {
        "bin"
    }

    /// Takes in a record. Neither command records nor records of snapshots come here.
    ///
    /// # Errors
    ///
    /// [`ApplyError::Malformed`] must leave the state as it was: the record may be skipped. After
    /// anything else, and after a panic, the state is thrown away.
    fn apply(&mut self, record: &SequencedRecord) -> Result<(), ApplyError>;

    /// Writes the state, on a thread where blocking is fine.
    ///
    /// # Errors
    ///
    /// Those of `out`, and what makes the state impossible to write. No snapshot is taken then.
    fn snapshot(&self, out: &mut dyn io::Write) -> io::Result<()>;

    /// Replaces the state by what [`Fold::snapshot`] wrote, on a thread where blocking is fine. The bytes
    /// are checked against their checksum *afterwards*: a state made of wrong ones is thrown away.
    ///
    /// # Errors
    ///
    /// Whatever does not make sense. The state is thrown away then.
    fn restore(&mut self, from: &mut dyn io::Read) -> io::Result<()>;
}

/// Why a record was not taken in.
#[derive(Clone, Debug, thiserror::Error)]
pub enum ApplyError {
    /// The record makes no sense. [`MalformedRecords`](crate::MalformedRecords) decides what follows.
    #[error("{0}")]
    Malformed(String),
    /// The fold cannot go on.
    #[error("{0}")]
    Failed(String),
}
