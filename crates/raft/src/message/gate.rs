//! Who is heard at all.
//!
//! A message from another cluster, another group, another lineage, to somebody else, or from a start
//! of the sender's process that is over, is counted and dropped. Whether its sender is a *member* is
//! not asked here: a member that lags hears of new members from themselves.

use std::collections::BTreeMap;

use super::{Envelope, Identity};
use crate::ids::{Incarnation, NodeId};

/// Most senders whose incarnation is remembered; no group has as many members over its life. Beyond
/// it the lowest numbers are forgotten first: those of the oldest nodes.
const MAX_SENDERS: usize = 4096;

/// Why a message was not stepped.
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
    /// From a start of the sender's process that is over.
    Incarnation,
    /// An answer from somebody who is not a member, or from a member to somebody who is none.
    NotAMember,
    /// An offer that a newer version made.
    NewerFormat,
    /// It contradicts what this member knows: about entries that it never had, say.
    Contradiction,
}

/// How many messages were refused, by reason.
pub type Refusals = BTreeMap<Refusal, u64>;

/// Lets in what is meant for one member of one group.
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

    /// Whose gate it is.
    pub fn identity(&self) -> &Identity {
        &self.me
    }

    /// Whether the message may be processed.
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
