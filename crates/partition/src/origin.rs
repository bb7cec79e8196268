//! Whose work the state of a replica is: its own, or that of the member from which it was copied.
//!
//! A replica that applies entries from the first one on has made its state itself. One that was built from a snapshot
//! has what another member had made of the entries up to there, right or wrong: digests of the two are no independent
//! answers ([`crate::digest`]). The row is part of the files of a snapshot, so it goes wherever the state goes: to other
//! members, into the repository, and back.

use crate::keys;
use crate::store::{PartitionDb, StoreError};

/// Whose work the state of a replica is.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Origin {
    /// The member that has made the state, up to `since`; 0 if that is not known: an earlier build has copied it.
    /// Copies of a copy have the same one.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// LSN as of which the state was copied, or, if it is the holder's own, as of which a comparison has shown that it
    /// counts as that; 0 if it was never copied.
    #[prost(uint64, tag = "2")]
    pub since: u64,
    /// The member in whose database this is. In a snapshot that another one has put or sent, that other one.
    #[prost(uint64, tag = "3")]
    pub holder: u64,
}

impl Origin {
    /// That of a state which the member has made itself, as is known since this LSN.
    pub fn own(me: u64, since: u64) -> Origin {
        Origin {
            node: me,
            since,
            holder: me,
        }
    }

    /// That of the state which the member has in its database, and whether it has to be written there.
    ///
    /// # Errors
    ///
    /// The database cannot be read, or is damaged.
    pub(crate) fn of_replica(part: &PartitionDb, me: u64) -> Result<(Origin, bool), StoreError> {
        let stored = part.get::<Origin>(keys::ORIGIN, "the origin of the state")?;
        let applied = part.applied()?.map_or(0, |applied| applied.lsn);
        Ok(match stored {
            Some(origin) if origin.holder == me => (origin, false),
            // Nothing was applied yet.
            None if applied == 0 => (Origin::own(me, 0), true),
            stored => {
                let copied = Origin {
                    node: stored.map_or(0, |stored| stored.node),
                    since: applied,
                    holder: me,
                };
                (copied, true)
            }
        })
    }
}
