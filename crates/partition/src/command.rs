//! Commands in a partition's log, and the answer to each.
//!
//! The leader stamps everything in a command that is not deterministic (arrival times, hashes of request tokens)
//! before it proposes the command.
//!
//! | module | what it holds |
//! |---|---|
//! | `records` | appends |
//! | `streams`, `basins`, `provisioning` | creating, changing and deleting streams and basins; what both share |
//! | `tokens` | access tokens |
//! | `nodes` | the nodes of a cluster |
//! | `replicas` | what concerns the replicas of a partition: their log, and digests |
//! | `codec` | how a command is encoded, and the version of each |
//!
//! The commands of the state store are in [`state::command`](crate::state::command), the one that begins a lineage
//! in [`lineage`](crate::lineage).

mod basins;
mod codec;
mod nodes;
mod provisioning;
mod records;
mod replicas;
mod streams;
mod tokens;

use crate::ids::{BasinId, StreamId};
use crate::state::command::{
    StateCommit, StateCommitted, StateImport, StateImportRefusal, StateImported, StatePrune,
    StateRefusal,
};

pub use crate::lineage::BeginLineage;
pub use basins::{DeleteBasin, ForgetBasin, ProvisionBasin, SetBasinSettings};
pub use nodes::{NodeRefusal, NodeState, RegisterNode, SetNodeState};
pub use provisioning::{Change, Mode, ProvisionRefusal, Provisioned, SettingsSet};
pub use records::{Append, AppendRefusal, Appended};
pub use replicas::{
    AskDigest, MemberDigest, NoteArchived, NoteDigests, TrustRefusal, TrustReplica,
};
pub use streams::{
    DeleteIfEmpty, DeleteStream, DropBasin, Expire, ProvisionStream, SetStreamSettings,
};
pub use tokens::{ConfirmTokens, IssueToken, RemoveExpiredTokens, RevokeToken, TokenRefusal};

/// A command.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Command {
    /// The command; `None` if this version does not know its kind.
    #[prost(
        oneof = "Kind",
        tags = "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 16, 17, 18, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 29, 30"
    )]
    pub kind: Option<Kind>,
}

/// The kinds of commands.
#[derive(Clone, PartialEq, prost::Oneof)]
pub enum Kind {
    /// Append records.
    #[prost(message, tag = "1")]
    Append(Append),
    /// Create a stream, or set its settings if it exists.
    #[prost(message, tag = "2")]
    ProvisionStream(ProvisionStream),
    /// Set a stream's settings.
    #[prost(message, tag = "3")]
    SetStreamSettings(SetStreamSettings),
    /// Delete a stream.
    #[prost(message, tag = "4")]
    DeleteStream(DeleteStream),
    /// Trim a stream because its records are too old.
    #[prost(message, tag = "5")]
    Expire(Expire),
    /// Delete a stream if it is empty and was not active since the proposer found it empty.
    #[prost(message, tag = "6")]
    DeleteIfEmpty(DeleteIfEmpty),
    /// Drop all streams of a basin and refuse its id from then on.
    #[prost(message, tag = "7")]
    DropBasin(DropBasin),
    /// Commit a transaction of the state store.
    #[prost(message, tag = "8")]
    StateCommit(StateCommit),
    /// Remove history of the state store.
    #[prost(message, tag = "9")]
    StatePrune(StatePrune),
    /// One step of the import of a JSON snapshot.
    #[prost(message, tag = "10")]
    StateImport(StateImport),
    /// Create a basin, or set its settings if it exists. Catalog.
    #[prost(message, tag = "16")]
    ProvisionBasin(ProvisionBasin),
    /// Set a basin's settings. Catalog.
    #[prost(message, tag = "17")]
    SetBasinSettings(SetBasinSettings),
    /// Begin to delete a basin. Catalog.
    #[prost(message, tag = "18")]
    DeleteBasin(DeleteBasin),
    /// Free the name of a basin that every partition has dropped. Catalog.
    #[prost(message, tag = "19")]
    ForgetBasin(ForgetBasin),
    /// Store an access token. Catalog.
    #[prost(message, tag = "20")]
    IssueToken(IssueToken),
    /// Remove an access token. Catalog.
    #[prost(message, tag = "21")]
    RevokeToken(RevokeToken),
    /// Make the access tokens valid again that a fork has suspended. Catalog.
    #[prost(message, tag = "22")]
    ConfirmTokens(ConfirmTokens),
    /// Remove access tokens that have expired. Catalog.
    #[prost(message, tag = "23")]
    RemoveExpiredTokens(RemoveExpiredTokens),
    /// Register a node of the cluster, or change its addresses. Catalog.
    #[prost(message, tag = "24")]
    RegisterNode(RegisterNode),
    /// Change where a node of the cluster stands. Catalog.
    #[prost(message, tag = "25")]
    SetNodeState(SetNodeState),
    /// Let all members remove the entries that no archived snapshot needs. Any partition.
    #[prost(message, tag = "26")]
    NoteArchived(NoteArchived),
    /// Begin another lineage. Any partition.
    #[prost(message, tag = "27")]
    BeginLineage(BeginLineage),
    /// Compute the digest of the state as of this entry. Any partition.
    #[prost(message, tag = "28")]
    AskDigest(AskDigest),
    /// Compare the own digest with those of all members. Any partition.
    #[prost(message, tag = "29")]
    NoteDigests(NoteDigests),
    /// Of replicas that differ, take one for the right one. Any partition.
    #[prost(message, tag = "30")]
    TrustReplica(TrustReplica),
}

/// The answer to a command.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// To [`Kind::Append`].
    Appended(Result<Appended, AppendRefusal>),
    /// To [`Kind::ProvisionStream`].
    StreamProvisioned(Result<Provisioned<StreamId>, ProvisionRefusal>),
    /// To [`Kind::SetStreamSettings`] and [`Kind::SetBasinSettings`].
    SettingsSet(SettingsSet),
    /// To [`Kind::DeleteStream`] and [`Kind::DeleteIfEmpty`]: whether a stream was deleted.
    StreamDeleted(bool),
    /// To [`Kind::Expire`].
    Expired,
    /// To [`Kind::DropBasin`].
    BasinDropped,
    /// To [`Kind::StateCommit`].
    StateCommitted(Result<StateCommitted, StateRefusal>),
    /// To [`Kind::StatePrune`].
    StatePruned,
    /// To [`Kind::StateImport`].
    StateImported(Result<StateImported, StateImportRefusal>),
    /// To [`Kind::ProvisionBasin`].
    BasinProvisioned(Result<Provisioned<BasinId>, ProvisionRefusal>),
    /// To [`Kind::DeleteBasin`]: the basin that is being deleted, if one has the name.
    BasinDeleted(Option<BasinId>),
    /// To [`Kind::ForgetBasin`].
    BasinForgotten,
    /// To [`Kind::IssueToken`].
    TokenIssued(Result<(), TokenRefusal>),
    /// To [`Kind::RevokeToken`]: whether there was a token with the id.
    TokenRevoked(bool),
    /// To [`Kind::ConfirmTokens`]: number of tokens that are valid again.
    TokensConfirmed(u64),
    /// To [`Kind::RemoveExpiredTokens`]: number of tokens that were removed.
    ExpiredTokensRemoved(u64),
    /// To [`Kind::RegisterNode`] and [`Kind::SetNodeState`].
    NodeSet(Result<(), NodeRefusal>),
    /// To [`Kind::NoteArchived`].
    ArchivedNoted,
    /// To [`Kind::BeginLineage`]: whether it has begun.
    LineageBegun(bool),
    /// To [`Kind::AskDigest`]: the LSN of its entry.
    DigestAsked(u64),
    /// To [`Kind::NoteDigests`].
    DigestsNoted,
    /// To [`Kind::TrustReplica`].
    ReplicaTrusted(Result<(), TrustRefusal>),
}
