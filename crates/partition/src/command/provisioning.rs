//! What commands on streams and on basins share: creation, and changes of settings.

use s2_common::encryption::EncryptionAlgorithm;

/// What to do if the stream or basin exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// Refuse the command, unless its request hash is that of the command that created it.
    CreateOnly = 0,
    /// Replace its settings by those of the command.
    Ensure = 1,
}

/// What provisioning did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Provisioned<Id> {
    /// What happened.
    pub change: Change,
    /// The id of the stream or basin.
    pub id: Id,
    /// When it was created, in milliseconds since the epoch.
    pub created_ms: u64,
    /// The cipher of the stream; none of a basin, which has one for streams to come.
    pub cipher: Option<EncryptionAlgorithm>,
}

/// What provisioning changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// It is new.
    Created,
    /// Its settings were changed.
    Updated,
    /// Nothing was changed.
    Nothing,
}

/// Why nothing was provisioned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ProvisionRefusal {
    /// It exists.
    Exists,
    /// The basin is being deleted, or was deleted.
    BasinDropped,
}

/// What happened to new settings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SettingsSet {
    /// They are in force.
    Done,
    /// Another command changed the settings in between; the caller has to read them again.
    Conflict,
    /// The stream or basin is gone.
    Gone,
}
