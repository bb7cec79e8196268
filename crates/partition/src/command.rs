//! Commands in a partition's log, and the answer to each.
//!
//! An encoded command is one version byte and a protobuf [`Command`]. The leader stamps everything in it
//! that is not deterministic (arrival times, hashes of request tokens) before it proposes the command.
//!
//! A command that has to do with a cipher has version 2, so that earlier builds, which would ignore the
//! cipher, refuse it by name. Later versions are of fields that earlier builds would ignore, too.

use bytes::{Buf, Bytes};
use prost::Message as _;
use s2_common::encryption::EncryptionAlgorithm;
use s2_common::record::{FencingToken, SeqNum, StreamPosition};

use crate::batch::Unsequenced;
use crate::ids::{BasinId, StreamId};
use crate::origin::Origin;
use crate::settings::{BasinSettings, StreamSettings};
use crate::state::command::{
    StateCommit, StateCommitted, StateImport, StateImportRefusal, StateImported, StatePrune,
    StateRefusal,
};
use crate::token::TokenScope;

pub use crate::lineage::BeginLineage;

const VERSION: u8 = 1;
/// The version of commands that set or use a cipher.
const VERSION_ENCRYPTED: u8 = 2;
/// The version of appends that are refused in a later term ([`Append::session_term`]), and of commands about
/// the history itself.
const VERSION_CLUSTER: u8 = 3;
/// The version of commands that name the version of the settings by which they are due
/// ([`Expire::if_settings_version`]).
const VERSION_SETTINGS: u8 = 4;
/// The version of comparisons of digests that count answers by their origins ([`NoteDigests::has_origins`]), and of
/// what an operator says about such a comparison.
const VERSION_ORIGINS: u8 = 5;
/// The version of changes of a node's state that have the time ([`SetNodeState::at_ms`]).
const VERSION_NODE_TIMES: u8 = 6;
/// The version of registrations for which another node may be forgotten ([`RegisterNode::may_forget`]).
const VERSION_FORGETTING: u8 = 7;
/// The newest version that this build reads.
const NEWEST_VERSION: u8 = VERSION_FORGETTING;

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

/// See [`Kind::Append`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct Append {
    /// The stream.
    #[prost(uint64, tag = "1")]
    pub stream: u64,
    /// Number of records.
    #[prost(uint32, tag = "2")]
    pub count: u32,
    /// See [`Unsequenced::body`].
    #[prost(bytes = "bytes", tag = "3")]
    pub body: Bytes,
    /// See [`Unsequenced::timestamps`].
    #[prost(uint64, repeated, tag = "4")]
    pub timestamps: Vec<u64>,
    /// See [`Unsequenced::has_commands`].
    #[prost(bool, tag = "5")]
    pub has_commands: bool,
    /// The sequence number that the first record must get.
    #[prost(uint64, optional, tag = "6")]
    pub match_seq_num: Option<u64>,
    /// The fencing token that must be in force.
    #[prost(string, optional, tag = "7")]
    pub fencing_token: Option<String>,
    /// When it arrived, in milliseconds since the epoch.
    #[prost(uint64, tag = "8")]
    pub arrival_ms: u64,
    /// The append session that it belongs to; 0 for none. After the first refusal of a session, its later
    /// appends that are in the log already are refused too.
    #[prost(uint64, tag = "9")]
    pub session: u64,
    /// See [`Unsequenced::cipher`].
    #[prost(uint32, tag = "10")]
    pub cipher: u32,
    /// The term in which those appends of the session were proposed that were not answered yet when this one
    /// was; 0 if an earlier build proposed it, and for an append that is of no session. In a later term it is
    /// refused, because another leader's entries may have taken the place of some of them. In one term, the
    /// log has all of them before it.
    #[prost(uint64, tag = "11")]
    pub session_term: u64,
}

/// See [`Kind::NoteArchived`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NoteArchived {
    /// The lineage of the snapshot: 16 bytes.
    #[prost(bytes = "vec", tag = "1")]
    pub lineage: Vec<u8>,
    /// LSN of the oldest snapshot that the repository retains.
    #[prost(uint64, tag = "2")]
    pub lsn: u64,
}

/// See [`Kind::AskDigest`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct AskDigest {
    /// What the digest covers: [`DIGEST_FORMAT`](crate::digest::DIGEST_FORMAT). A member that computes another
    /// one computes none.
    #[prost(uint32, tag = "1")]
    pub format: u32,
}

/// See [`Kind::NoteDigests`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct NoteDigests {
    /// LSN of the entry that asked for them.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub at_ms: u64,
    /// The digest of each member that has answered.
    #[prost(message, repeated, tag = "3")]
    pub answers: Vec<MemberDigest>,
    /// Whether answers of one origin count once. Not in entries of earlier builds: each of their answers counts, on
    /// every member, whenever such an entry is applied.
    #[prost(bool, tag = "4")]
    pub has_origins: bool,
}

/// See [`Kind::TrustReplica`].
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct TrustReplica {
    /// LSN of the entry that recorded the comparison that is decided by this.
    #[prost(uint64, tag = "1")]
    pub noted_at: u64,
    /// The member whose state is right.
    #[prost(uint64, tag = "2")]
    pub node: u64,
}

/// Why a replica was not taken for the right one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TrustRefusal {
    /// There is no undecided comparison.
    Decided,
    /// The last comparison is another one, recorded at this LSN.
    Another(u64),
    /// The member has no answer in it.
    NoAnswer,
}

/// The digest of a member's state.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct MemberDigest {
    /// The member.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// 16 bytes, the highest first.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
    /// Whose work the state is of which it is; absent if that is not known.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
}

impl Append {
    /// An append without conditions.
    pub fn new(stream: StreamId, records: Unsequenced, arrival_ms: u64) -> Append {
        Append {
            stream: stream.0,
            count: records.count,
            body: records.body,
            timestamps: records.timestamps,
            has_commands: records.has_commands,
            match_seq_num: None,
            fencing_token: None,
            arrival_ms,
            session: 0,
            session_term: 0,
            cipher: records.cipher,
        }
    }

    /// The records.
    pub fn records(&self) -> Unsequenced {
        Unsequenced {
            count: self.count,
            body: self.body.clone(),
            timestamps: self.timestamps.clone(),
            has_commands: self.has_commands,
            cipher: self.cipher,
        }
    }
}

/// What to do if the stream or basin exists already.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum Mode {
    /// Refuse the command, unless its request hash is that of the command that created it.
    CreateOnly = 0,
    /// Replace its settings by those of the command.
    Ensure = 1,
}

/// See [`Kind::ProvisionStream`].
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

/// See [`Kind::SetStreamSettings`].
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

/// See [`Kind::DeleteStream`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteStream {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
    /// The stream's name.
    #[prost(string, tag = "2")]
    pub name: String,
}

/// See [`Kind::Expire`].
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

/// See [`Kind::DeleteIfEmpty`].
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

/// See [`Kind::DropBasin`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DropBasin {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
}

/// See [`Kind::ProvisionBasin`].
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

/// See [`Kind::SetBasinSettings`].
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

/// See [`Kind::DeleteBasin`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct DeleteBasin {
    /// The basin's name.
    #[prost(string, tag = "1")]
    pub name: String,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub at_ms: u64,
}

/// See [`Kind::ForgetBasin`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct ForgetBasin {
    /// The basin.
    #[prost(uint64, tag = "1")]
    pub basin: u64,
}

/// See [`Kind::IssueToken`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct IssueToken {
    /// The token's id.
    #[prost(string, tag = "1")]
    pub id: String,
    /// SHA-256 of its text.
    #[prost(bytes = "vec", tag = "2")]
    pub hash: Vec<u8>,
    /// From when on it is not valid, in milliseconds since the epoch; `None` for never.
    #[prost(uint64, optional, tag = "3")]
    pub expires_at_ms: Option<u64>,
    /// See [`StoredToken::auto_prefix_streams`](crate::token::StoredToken::auto_prefix_streams).
    #[prost(bool, tag = "4")]
    pub auto_prefix_streams: bool,
    /// What its holder may do.
    #[prost(message, required, tag = "5")]
    pub scope: TokenScope,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "6")]
    pub at_ms: u64,
    /// Number of the catalog's forks that the proposer knew: later ones suspend the token.
    #[prost(uint64, tag = "7")]
    pub forks: u64,
    /// Most tokens that there may be then. It is part of the command, so that a build with another bound
    /// applies the log to the same end.
    #[prost(uint64, tag = "8")]
    pub max_tokens: u64,
    /// Nanoseconds after `expires_at_ms`: fewer than a million.
    #[prost(uint32, tag = "9")]
    pub expires_at_nanos: u32,
    /// SHA-256 of the text of the token with which it is issued: that has to be valid when the command is
    /// applied. `None` for the root token, which is not in the catalog, and in commands of builds that did not
    /// record it.
    #[prost(bytes = "vec", optional, tag = "10")]
    pub issuer: Option<Vec<u8>>,
}

/// See [`Kind::RevokeToken`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RevokeToken {
    /// The token's id.
    #[prost(string, tag = "1")]
    pub id: String,
}

/// See [`Kind::ConfirmTokens`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct ConfirmTokens {
    /// Number of the catalog's forks that the proposer knew: later ones suspend tokens again.
    #[prost(uint64, tag = "1")]
    pub forks: u64,
}

/// See [`Kind::RemoveExpiredTokens`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RemoveExpiredTokens {
    /// Ids of tokens. Another token may have one of them by now.
    #[prost(string, repeated, tag = "1")]
    pub ids: Vec<String>,
    /// Only those that expired at or before this time are removed, in milliseconds since the epoch.
    #[prost(uint64, tag = "2")]
    pub expired_before_ms: u64,
}

/// See [`Kind::RegisterNode`].
#[derive(Clone, PartialEq, prost::Message)]
pub struct RegisterNode {
    /// The node's number. Never 0.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Its name.
    #[prost(string, tag = "2")]
    pub name: String,
    /// Where other nodes reach it: `host:port`.
    #[prost(string, tag = "3")]
    pub peer_address: String,
    /// Where clients reach it: `host:port`, or a URL.
    #[prost(string, tag = "4")]
    pub client_address: String,
    /// What fails together with it; empty if that is not configured.
    #[prost(string, tag = "5")]
    pub zone: String,
    /// Where it stands if it is new: a [`NodeState`].
    #[prost(enumeration = "NodeState", tag = "6")]
    pub state: i32,
    /// Time of the proposal, in milliseconds since the epoch.
    #[prost(uint64, tag = "7")]
    pub at_ms: u64,
    /// The newest format of commands and messages that it reads.
    #[prost(uint32, tag = "8")]
    pub reads_format: u32,
    /// Most nodes that there may be then. It is part of the command, so that a build with another bound
    /// applies the log to the same end.
    #[prost(uint64, tag = "9")]
    pub max_nodes: u64,
    /// The incarnation as which its present start puts snapshots: 16 bytes, the highest first; empty for none.
    #[prost(bytes = "vec", tag = "10")]
    pub incarnation: Vec<u8>,
    /// Whether a removed node that has never run may be forgotten where there is no space for another one. Not where
    /// a member of the catalog is of a release that refuses the registration instead: replicas have to be equal.
    #[prost(bool, tag = "11")]
    pub may_forget: bool,
}

/// See [`Kind::SetNodeState`].
#[derive(Clone, Copy, PartialEq, prost::Message)]
pub struct SetNodeState {
    /// The node.
    #[prost(uint64, tag = "1")]
    pub id: u64,
    /// Where it stands from then on: a [`NodeState`].
    #[prost(enumeration = "NodeState", tag = "2")]
    pub state: i32,
    /// Time of the proposal, in milliseconds since the epoch; 0 where a member of the catalog is of a release that
    /// does not record it. Replicas have to be equal, so the command decides whether the time is recorded.
    #[prost(uint64, tag = "3")]
    pub at_ms: u64,
}

/// Where a node of the cluster stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, prost::Enumeration)]
#[repr(i32)]
pub enum NodeState {
    /// It is registered, and has not caught up for the first time.
    Joining = 0,
    /// It has replicas.
    Active = 1,
    /// Its replicas and its leaderships move to other nodes.
    Draining = 2,
    /// It belongs to the cluster no more, and its number is never used again.
    Removed = 3,
}

impl Kind {
    /// Encodes the command for the log.
    pub fn into_bytes(self) -> Vec<u8> {
        let version = self.version();
        let command = Command { kind: Some(self) };
        let mut bytes = Vec::with_capacity(1 + command.encoded_len());
        bytes.push(version);
        command.encode_raw(&mut bytes);
        bytes
    }

    /// The same, for a command that the caller still needs.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(1 + self.encoded_len());
        bytes.push(self.version());
        self.encode(&mut bytes);
        bytes
    }

    fn version(&self) -> u8 {
        let cipher = match self {
            Kind::TrustReplica(_)
            | Kind::NoteDigests(NoteDigests {
                has_origins: true, ..
            }) => return VERSION_ORIGINS,
            Kind::NoteArchived(_)
            | Kind::BeginLineage(_)
            | Kind::AskDigest(_)
            | Kind::NoteDigests(_) => return VERSION_CLUSTER,
            Kind::Expire(Expire {
                if_settings_version: Some(_),
                ..
            })
            | Kind::DeleteIfEmpty(DeleteIfEmpty {
                if_settings_version: Some(_),
                ..
            }) => return VERSION_SETTINGS,
            Kind::SetNodeState(set) if set.at_ms != 0 => return VERSION_NODE_TIMES,
            Kind::RegisterNode(register) if register.may_forget => return VERSION_FORGETTING,
            Kind::Append(append) if append.session_term != 0 => return VERSION_CLUSTER,
            Kind::Append(append) => append.cipher,
            Kind::ProvisionStream(provision) => provision.cipher,
            Kind::ProvisionBasin(provision) => provision.settings.stream_cipher,
            Kind::SetBasinSettings(set) => set.settings.stream_cipher,
            _ => 0,
        };
        match cipher {
            0 => VERSION,
            _ => VERSION_ENCRYPTED,
        }
    }

    /// Decodes what [`Kind::into_bytes`] encoded. Its `Bytes` share the memory of `bytes`; they are not
    /// copied.
    ///
    /// # Errors
    ///
    /// The bytes are empty or malformed, or another version wrote them, or this version does not know the
    /// kind.
    pub fn from_bytes(mut bytes: Bytes) -> Result<Kind, String> {
        if !bytes.has_remaining() {
            return Err("an empty command".to_owned());
        }
        let version = bytes.get_u8();
        if !(VERSION..=NEWEST_VERSION).contains(&version) {
            return Err(format!(
                "a command of version {version}, this version knows up to {NEWEST_VERSION}: use a newer esker"
            ));
        }
        Command::decode(bytes)
            .map_err(|e| e.to_string())?
            .kind
            .ok_or_else(|| "a command of an unknown kind: use a newer esker".to_owned())
    }
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

/// Why a node was not registered, or does not stand where it should.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeRefusal {
    /// It was removed: a removed number is never used again.
    Removed,
    /// Another node has the name: the one with this number.
    NameTaken(u64),
    /// Another node has the address: the one with this number.
    AddressTaken(u64),
    /// There are as many nodes as there may be.
    TooMany,
    /// The catalog remembers as many nodes as it may, removed ones included.
    TooManyRemembered,
    /// There is no such node.
    Unknown,
    /// A node that has joined does not join again.
    NotJoining,
}

/// Why no token was stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TokenRefusal {
    /// A token has the id or the hash.
    Exists,
    /// There are as many tokens as there may be.
    TooMany,
    /// The token with which it was to be issued is not valid any more.
    IssuerInvalid,
}

/// The positions of an append's records.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Appended {
    /// The first record.
    pub start: StreamPosition,
    /// The sequence number after the last record, and the last record's timestamp.
    pub end: StreamPosition,
    /// The stream's tail.
    pub tail: StreamPosition,
}

/// Why nothing was appended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AppendRefusal {
    /// The stream is gone.
    StreamGone,
    /// Another fencing token is in force: this one.
    FencingTokenMismatch(FencingToken),
    /// The first record would get another sequence number: this one.
    SeqNumMismatch(SeqNum),
    /// The stream requires timestamps, and a record had none.
    TimestampMissing,
    /// The stream does not have enough sequence numbers left.
    SeqNumsExhausted,
    /// The records are not of the stream's cipher.
    CipherMismatch,
    /// The stream's cipher may encrypt no more records of it:
    /// [`MAX_AES_256_GCM_RECORDS`](crate::encryption::MAX_AES_256_GCM_RECORDS).
    CipherExhausted,
    /// An earlier append of the same session was refused.
    SessionFailed,
    /// The partition has had another leader since appends of the same session were proposed that were not
    /// answered yet.
    LeaderChanged,
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
