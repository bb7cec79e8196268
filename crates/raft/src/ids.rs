//! Numbers and identities, each with a type of its own so that none is used in place of another. The lowest
//! module: it uses nothing of the crate.

use std::fmt;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// Index in a group's log. The first entry has 1; 0 means "before everything".
    Lsn
}
number! {
    /// Raft term.
    Term
}
number! {
    /// Number of a group on a node; that of its partition.
    GroupId
}
number! {
    /// Number of a node, and so of a member. Never 0.
    NodeId
}

impl Lsn {
    /// The position after this one.
    #[must_use]
    pub fn next(self) -> Lsn {
        Lsn(self.0 + 1)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(pub [u8; 16]);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
            }
        }
    };
}

identity! {
    /// Identity of a cluster. Messages between members of two clusters are refused, whatever their numbers.
    ClusterId
}
identity! {
    /// Identity of one unbroken history of a group. A restore that may have lost acknowledged
    /// entries begins a new one.
    Lineage
}
identity! {
    /// Identity of a checkpoint, whose files never change. Two checkpoints never have the same one, not
    /// even of different groups or nodes.
    CheckpointId
}
number! {
    /// Number of a start of a node's process on one data directory. It increases with every start; messages
    /// of an earlier start are refused.
    Incarnation
}
