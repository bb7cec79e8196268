//! Commands on the nodes of a cluster, in the catalog, and the answers to them.

/// See [`Kind::RegisterNode`](super::Kind::RegisterNode).
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

/// See [`Kind::SetNodeState`](super::Kind::SetNodeState).
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
