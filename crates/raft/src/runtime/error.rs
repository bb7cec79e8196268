//! Why a node or a group does not start, why a proposal is not applied, why the membership is not changed.

use super::config::ConfigError;
use crate::engine::{ChangeRefused, OpenError, RejectReason};
use crate::ids::{GroupId, NodeId};
use crate::log::LogError;
use crate::store::StoreError;

/// Why a node or a group could not start.
#[derive(Debug, thiserror::Error)]
pub enum NodeError {
    /// The log.
    #[error(transparent)]
    Log(#[from] LogError),
    /// The group's log and its state do not fit together.
    #[error("partition {group}: {source}")]
    Open {
        /// The group.
        group: GroupId,
        /// What is wrong.
        source: OpenError,
    },
    /// A thread could not be started.
    #[error("starting a thread: {0}")]
    Thread(#[from] std::io::Error),
    /// A value of the configuration is out of range.
    #[error("invalid configuration: {0}")]
    Config(#[from] ConfigError),
    /// The node was started without a way to others.
    #[error("group {group} is to have peers, and the node was started without a transport")]
    NoTransport {
        /// The group.
        group: GroupId,
    },
    /// The number of this start could not be read or stored.
    #[error(
        "the number of this start, in {path}: {why}; a damaged file can be removed: the number then goes on from the clock"
    )]
    Incarnation {
        /// The file.
        path: std::path::PathBuf,
        /// What happened.
        why: String,
        /// Whether the operating system refused. If not, the file has no number.
        unreadable: bool,
    },
    /// The group's snapshots.
    #[error("group {group}: {source}")]
    Store {
        /// The group.
        group: GroupId,
        /// What happened.
        source: StoreError,
    },
    /// The group's directory, state or options show that this member existed before, and the log has
    /// nothing of it: its promises to other members (votes, acknowledgements) are lost. Remove this member
    /// from the group, and let it join under a new number.
    #[error(
        "group {group} was here before, and its log is gone: remove this member from the group, \
         and let it join under a new number"
    )]
    LogLost {
        /// The group.
        group: GroupId,
    },
    /// State, snapshots and log do not fit together.
    #[error("group {group}: {what}")]
    Recovery {
        /// The group.
        group: GroupId,
        /// What is wrong.
        what: String,
    },
}

impl NodeError {
    /// Whether the log is damaged or incomplete, as a checksum or a rule of its format proves.
    pub fn is_damage(&self) -> bool {
        matches!(self, NodeError::Log(error) if error.is_damage())
    }

    /// Whether the operating system refused: the same may work later.
    pub fn is_unreadable(&self) -> bool {
        match self {
            NodeError::Log(error) => error.is_unreadable(),
            NodeError::Open { source, .. } => matches!(source, OpenError::Unreadable(_)),
            NodeError::Store { source, .. } => source.is_unreadable(),
            NodeError::Incarnation { unreadable, .. } => *unreadable,
            NodeError::Thread(_) => true,
            _ => false,
        }
    }
}

/// Why a proposal was not applied.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ProposeError {
    /// This member does not lead. Nothing happened.
    #[error("this node does not lead the partition")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// Too many proposals are pending. Nothing happened; try again.
    #[error("too many proposals are pending")]
    Busy,
    /// Too many entries of the log wait to be applied. Nothing happened; try again later.
    #[error("too much in the log waits to be applied: appends are refused until that changes")]
    LogFull,
    /// The log cannot be written at the moment. Nothing happened; try again when the cause is gone.
    #[error("the log cannot be written, so appends are refused until that changes: {why}")]
    LogUnwritable {
        /// The operating system's error, and the file.
        why: String,
    },
    /// Committed entries cannot be applied at the moment. Nothing happened; try again when the cause is
    /// gone.
    #[error(
        "what is in the log cannot be applied, so appends are refused until that changes: {why}"
    )]
    Stalled {
        /// The state machine's error.
        why: String,
    },
    /// The group has halted: it commits and applies nothing until it is opened again. Nothing happened.
    #[error("the partition has halted{}: {why}", if *.reopens { ", and the server opens it again" } else { "" })]
    Halted {
        /// What made it halt.
        why: String,
        /// Whether the group is opened again by itself once the cause has passed.
        reopens: bool,
    },
    /// Consensus refused it. Nothing happened.
    #[error("refused: {0}")]
    Refused(String),
    /// Another entry was committed in its place. Nothing happened.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// The group stopped before the outcome was known. The command may have been applied or not.
    #[error("the partition stopped before the outcome was known")]
    Unknown,
}

impl ProposeError {
    /// Whether the command certainly had no effect and never will have one.
    pub fn has_no_side_effects(&self) -> bool {
        !matches!(self, ProposeError::Unknown)
    }

    pub(super) fn stopping() -> ProposeError {
        ProposeError::Refused("the server is stopping".to_owned())
    }
}

impl From<RejectReason> for ProposeError {
    fn from(reason: RejectReason) -> Self {
        match reason {
            RejectReason::NotLeader { leader } => ProposeError::NotLeader { leader },
            RejectReason::Busy => ProposeError::Busy,
            RejectReason::LogFull => ProposeError::LogFull,
            RejectReason::Transferring { to } => ProposeError::NotLeader { leader: Some(to) },
            RejectReason::Membership(why) => ProposeError::Refused(why.to_string()),
            RejectReason::Refused(why) => ProposeError::Refused(why),
        }
    }
}

/// Why a change of the membership, or of the leader, failed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ChangeError {
    /// This member does not lead. Nothing happened.
    #[error("this node does not lead the group")]
    NotLeader {
        /// Who does, if known.
        leader: Option<NodeId>,
    },
    /// The change is not possible, or not now. Nothing happened.
    #[error(transparent)]
    Refused(#[from] ChangeRefused),
    /// It has not come about in time, and may still do so. After a transfer of the leadership that failed, this
    /// member goes on leading.
    #[error("it has not come about in time; it may still do so")]
    TimedOut,
    /// Another entry was committed in its place. Nothing happened.
    #[error("superseded by another leader's entry")]
    Superseded,
    /// The group stopped, or its leader changed, before the outcome was known. The change may have happened
    /// or not.
    #[error("the outcome is not known")]
    Unknown,
    /// Consensus refused it, or the group has stopped. Nothing happened.
    #[error("refused: {0}")]
    Other(String),
}

impl From<RejectReason> for ChangeError {
    fn from(reason: RejectReason) -> Self {
        match reason {
            RejectReason::NotLeader { leader } => ChangeError::NotLeader { leader },
            RejectReason::Transferring { to } => ChangeError::NotLeader { leader: Some(to) },
            RejectReason::Membership(why) => ChangeError::Refused(why),
            RejectReason::Busy => ChangeError::Other("too many proposals are pending".to_owned()),
            RejectReason::LogFull => ChangeError::Other("the log is full".to_owned()),
            RejectReason::Refused(why) => ChangeError::Other(why),
        }
    }
}
