//! Messages between members that were dropped, counted by reason. Consensus and transfers repeat what they need, so
//! a few of them are normal; many tell what is wrong between two nodes.

use metrics::counter;

use crate::message::Refusal;

/// Counts dropped messages, by `reason`.
const DROPPED: &str = "esker_raft_messages_dropped_total";

/// Why a message was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum DropReason {
    /// Too much was queued: on its way out for its receiver, or here for its group.
    QueueFull,
    /// On its way out: there was no connection to its receiver.
    Disconnected,
    /// On its way out: the address of its receiver is not known.
    NoAddress,
    /// It cannot be decoded.
    Malformed,
    /// It has a format that this version does not know.
    NewerFormat,
    /// It names another sender than its connection has proved.
    Sender,
    /// It was for another node.
    Recipient,
    /// Its group is not open here.
    Group,
    /// It is of another cluster.
    Cluster,
    /// It is of another history of its group.
    Lineage,
    /// It is of an earlier start of its sender.
    Incarnation,
    /// Its sender is not a member of the group.
    NotAMember,
    /// It contradicts the state of this member.
    Contradiction,
}

impl DropReason {
    const ALL: [DropReason; 13] = [
        DropReason::QueueFull,
        DropReason::Disconnected,
        DropReason::NoAddress,
        DropReason::Malformed,
        DropReason::NewerFormat,
        DropReason::Sender,
        DropReason::Recipient,
        DropReason::Group,
        DropReason::Cluster,
        DropReason::Lineage,
        DropReason::Incarnation,
        DropReason::NotAMember,
        DropReason::Contradiction,
    ];

    fn label(self) -> &'static str {
        match self {
            DropReason::QueueFull => "queue_full",
            DropReason::Disconnected => "disconnected",
            DropReason::NoAddress => "no_address",
            DropReason::Malformed => "malformed",
            DropReason::NewerFormat => "newer_format",
            DropReason::Sender => "sender",
            DropReason::Recipient => "recipient",
            DropReason::Group => "group",
            DropReason::Cluster => "cluster",
            DropReason::Lineage => "lineage",
            DropReason::Incarnation => "incarnation",
            DropReason::NotAMember => "not_a_member",
            DropReason::Contradiction => "contradiction",
        }
    }

    /// Counts so many messages.
    pub fn count(self, messages: u64) {
        counter!(DROPPED, "reason" => self.label()).increment(messages);
    }
}

impl From<Refusal> for DropReason {
    fn from(refusal: Refusal) -> DropReason {
        match refusal {
            Refusal::Cluster => DropReason::Cluster,
            Refusal::Group => DropReason::Group,
            Refusal::Lineage => DropReason::Lineage,
            Refusal::Recipient => DropReason::Recipient,
            Refusal::Incarnation => DropReason::Incarnation,
            Refusal::NotAMember => DropReason::NotAMember,
            Refusal::NewerFormat => DropReason::NewerFormat,
            Refusal::Contradiction => DropReason::Contradiction,
        }
    }
}

/// Publishes all reasons, with 0 for those that were not met.
pub(crate) fn register() {
    for reason in DropReason::ALL {
        reason.count(0);
    }
}
