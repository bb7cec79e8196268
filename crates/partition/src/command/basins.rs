//! Commands on basins, in the catalog.

use super::provisioning::Mode;
use crate::settings::BasinSettings;

/// See [`Kind::ProvisionBasin`](super::Kind::ProvisionBasin).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProvisionBasin {
    /// The basin's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Its settings.
    #[prost(message, required, tag = "2")]
    pub settings: BasinSettings,
    /// What to do if it exists: a [`Mode`].
    #[prost(enumeration = "Mode", tag = "3")]
    pub mode: i32,
    /// Hash of the request token and of the request; empty for none.
    #[prost(bytes = "vec", tag = "4")]
    pub request_hash: Vec<u8>,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "5")]
    pub at_ms: u64,
    /// The id that the basin must get, because streams exist whose basin was lost; 0 for the next free
    /// id.
    #[prost(uint64, tag = "6")]
    pub id: u64,
}

/// See [`Kind::SetBasinSettings`](super::Kind::SetBasinSettings).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetBasinSettings {
    /// The basin's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// The version that the present settings must have.
    #[prost(uint64, tag = "2")]
    pub if_version: u64,
    /// The new settings.
    #[prost(message, required, tag = "3")]
    pub settings: BasinSettings,
}

/// See [`Kind::DeleteBasin`](super::Kind::DeleteBasin).
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteBasin {
    /// The basin's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub at_ms: u64,
}

/// See [`Kind::ForgetBasin`](super::Kind::ForgetBasin).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForgetBasin {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
}
