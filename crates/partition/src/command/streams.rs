//! Commands on streams, of clients and of retention.

use super::provisioning::Mode;
use crate::settings::StreamSettings;

/// See [`Kind::ProvisionStream`](super::Kind::ProvisionStream).
#[derive(Clone, PartialEq, prost::Message)]
pub struct ProvisionStream {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
    /// The stream's name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Its settings, the basin's defaults already merged in.
    #[prost(message, required, tag = "3")]
    pub settings: StreamSettings,
    /// What to do if it exists: a [`Mode`].
    #[prost(enumeration = "Mode", tag = "4")]
    pub mode: i32,
    /// Hash of the request token and of the request; empty for none.
    #[prost(bytes = "vec", tag = "5")]
    pub request_hash: Vec<u8>,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "6")]
    pub at_ms: u64,
    /// Its cipher, if the command creates it: that of the basin at the time of the proposal, as
    /// [`cipher_number`](crate::encryption::cipher_number) has it.
    #[prost(uint32, tag = "7")]
    pub cipher: u32,
}

/// See [`Kind::SetStreamSettings`](super::Kind::SetStreamSettings).
#[derive(Clone, PartialEq, prost::Message)]
pub struct SetStreamSettings {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// The version that the present settings must have.
    #[prost(uint64, tag = "2")]
    pub if_version: u64,
    /// The new settings.
    #[prost(message, required, tag = "3")]
    pub settings: StreamSettings,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "4")]
    pub at_ms: u64,
}

/// See [`Kind::DeleteStream`](super::Kind::DeleteStream).
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteStream {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
    /// The stream's name.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// See [`Kind::Expire`](super::Kind::Expire).
#[derive(Clone, PartialEq, prost::Message)]
pub struct Expire {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// First sequence number that stays.
    #[prost(uint64, tag = "2")]
    pub up_to: u64,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "3")]
    pub at_ms: u64,
    /// The version of the settings by which the records are too old; if the stream has another one, nothing
    /// expires. `None` in commands of builds that did not record it, and for members that do not read it.
    #[prost(uint64, optional, tag = "4")]
    pub if_settings_version: Option<u64>,
}

/// See [`Kind::DeleteIfEmpty`](super::Kind::DeleteIfEmpty).
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteIfEmpty {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// The time at which the stream was last active, in milliseconds since the epoch; if it was active
    /// since, it is not deleted.
    #[prost(uint64, tag = "2")]
    pub since_ms: u64,
    /// As [`Expire::if_settings_version`].
    #[prost(uint64, optional, tag = "3")]
    pub if_settings_version: Option<u64>,
}

/// See [`Kind::DropBasin`](super::Kind::DropBasin).
#[derive(Clone, PartialEq, prost::Message)]
pub struct DropBasin {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
}
