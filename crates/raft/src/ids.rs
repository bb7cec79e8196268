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
