//! The numbers that must not be mistaken for each other.

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
    /// Which group of a node; a partition's number.
    GroupId
}
number! {
    /// Identity of a member. Never 0.
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
    /// Which cluster. Members of two clusters never speak with each other, whatever their numbers.
    ClusterId
}
identity! {
    /// Identity of one unbroken history of a group. A restore that may have lost acknowledged
    /// entries begins a new one.
    Lineage
}
identity! {
    /// Names a checkpoint, whose files never change: two checkpoints never share a name, not of
    /// different groups or nodes either.
    CheckpointId
}
number! {
    /// Which start of a node's process, on one and the same data directory. Rises from start to
    /// start; a message of an older one is not from that node as it is now.
    Incarnation
}
