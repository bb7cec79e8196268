//! Which messages a member accepts: the gate in front of the engine and the transfers.
//!
//! A message from another cluster, group or lineage, to another node, or from an earlier start of the
//! sender's process is counted and dropped. Whether the sender is a *member* is not checked here, because a
//! member that lags may get messages of new members before it knows them.

use std::collections::BTreeMap;

use super::{Envelope, Identity};
use crate::ids::{Incarnation, NodeId};

/// Most senders whose incarnation is remembered; no group has as many members over its life. Beyond it the
/// lowest numbers, those of the oldest nodes, are dropped first.
const MAX_SENDERS: usize = 4096;

/// Why a message was refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Refusal {
    /// From another cluster.
    Cluster,
    /// From another group.
    Group,
    /// From another history of the group.
    Lineage,
    /// To another node, or from this one.
    Recipient,
    /// From an earlier start of the sender's process.
    Incarnation,
    /// From a node that is not a member, or that must not get what it requests.
    NotAMember,
    /// An offer of a newer format.
    NewerFormat,
    /// It contradicts the state of this member, for instance by acknowledging entries that it never had.
    Contradiction,
}

/// How many messages were refused, by reason.
pub type Refusals = BTreeMap<Refusal, u64>;

/// Accepts the messages for one member of one group.
#[derive(Debug)]
pub struct Gate {
    me: Identity,
    newest: BTreeMap<NodeId, Incarnation>,
    refused: Refusals,
}

impl Gate {
    /// The gate of this member.
    pub fn new(me: Identity) -> Gate {
        Gate {
            me,
            newest: BTreeMap::new(),
            refused: Refusals::new(),
        }
    }

    /// The identity of this member.
    pub fn identity(&self) -> &Identity {
        &self.me
    }

    /// Whether the message may be processed. Counts a refusal.
    pub fn admit(&mut self, envelope: &Envelope) -> Result<(), Refusal> {
        let verdict = self.judge(envelope);
        if let Err(refusal) = verdict {
            self.count(refusal);
        }
        verdict
    }

    /// Counts a message that was refused behind the gate.
    pub fn count(&mut self, refusal: Refusal) {
        *self.refused.entry(refusal).or_default() += 1;
    }

    /// How many were refused.
    pub fn refused(&self) -> &Refusals {
        &self.refused
    }

    fn judge(&mut self, envelope: &Envelope) -> Result<(), Refusal> {
        let (me, sender) = (&self.me, &envelope.sender);
        if sender.cluster != me.cluster {
            return Err(Refusal::Cluster);
        }
        if sender.group != me.group {
            return Err(Refusal::Group);
        }
        if sender.lineage != me.lineage {
            return Err(Refusal::Lineage);
        }
        if envelope.to != me.node || sender.node == me.node {
            return Err(Refusal::Recipient);
        }
        let newest = self.newest.entry(sender.node).or_default();
        if sender.incarnation < *newest {
            return Err(Refusal::Incarnation);
        }
        *newest = sender.incarnation;
        if self.newest.len() > MAX_SENDERS {
            self.newest.pop_first();
        }
        Ok(())
    }
}
