//! The promises that a server can break, as the [checker](super::checker) reports them.

use std::fmt;

use super::record_id::RecordId;

/// A promise that was broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    /// An acknowledged record is missing.
    Lost {
        /// Which record.
        id: RecordId,
        /// Where it was acknowledged.
        seq_num: u64,
    },
    /// A record is there twice.
    Duplicate {
        /// Which record.
        id: RecordId,
        /// Where it is first.
        first: u64,
        /// Where it is again.
        second: u64,
    },
    /// A sequence number holds another record than the one acknowledged for it.
    OtherData {
        /// The position.
        seq_num: u64,
        /// What was acknowledged.
        acked: RecordId,
        /// What is there.
        found: Option<RecordId>,
    },
    /// A record is there that nobody sent to this stream.
    Foreign {
        /// The position.
        seq_num: u64,
        /// The identity in its body, if it can be read.
        id: Option<RecordId>,
    },
    /// A record of a refused append is there.
    Refused {
        /// Which record.
        id: RecordId,
        /// Where it is.
        seq_num: u64,
    },
    /// An append is in the stream in part, or its records are not consecutive.
    Torn {
        /// Its first record.
        first: RecordId,
        /// How many records it had.
        count: u64,
        /// How many are there.
        present: u64,
    },
    /// A writer's record is before one that it sent earlier.
    Reordered {
        /// The later one.
        id: RecordId,
        /// Where it is.
        seq_num: u64,
        /// Where the writer's earlier record is.
        earlier_at: u64,
    },
    /// An append of a session is there although an earlier one of the same session is not.
    SessionSkipped {
        /// First record of the one that is missing.
        missing: RecordId,
        /// First record of the later one that is there.
        present: RecordId,
    },
    /// A sequence number is missing, or one is repeated.
    Hole {
        /// The sequence number that was due.
        expected: u64,
        /// The one that was read.
        found: u64,
    },
    /// The tail is not where the records end.
    Tail {
        /// The answered tail.
        tail: u64,
        /// The position after the last record.
        end: u64,
    },
    /// The tail is behind one that was answered before.
    TailWentBack {
        /// The answered tail.
        tail: u64,
        /// The earlier answer.
        before: u64,
    },
    /// A timestamp is smaller than the one before it.
    TimeWentBack {
        /// The position.
        seq_num: u64,
    },
    /// A follower read a record that is no longer there.
    FollowerSaw {
        /// The position.
        seq_num: u64,
        /// What it read.
        saw: Option<RecordId>,
        /// What is there; `None` if nothing is.
        found: Option<RecordId>,
    },
    /// A follower missed a sequence number or saw one twice.
    FollowerHole {
        /// The sequence number that was due.
        expected: u64,
        /// The one that it saw.
        found: u64,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |id: &Option<RecordId>| match id {
            Some(id) => id.to_string(),
            None => "nothing that was sent".to_owned(),
        };
        match self {
            Self::Lost { id, seq_num } => {
                write!(f, "lost: {id}, acknowledged at {seq_num}, is nowhere")
            }
            Self::Duplicate { id, first, second } => {
                write!(f, "duplicate: {id} is at {first} and again at {second}")
            }
            Self::OtherData {
                seq_num,
                acked,
                found,
            } => {
                let found = name(found);
                write!(
                    f,
                    "other data: {acked} was acknowledged at {seq_num}, there is {found}"
                )
            }
            Self::Foreign { seq_num, id } => {
                write!(
                    f,
                    "foreign: at {seq_num} there is {}, never sent here",
                    name(id)
                )
            }
            Self::Refused { id, seq_num } => {
                write!(f, "refused, yet there: {id} is at {seq_num}")
            }
            Self::Torn {
                first,
                count,
                present,
            } => write!(
                f,
                "torn: of an append of {count} from {first} on, {present} are there, or not together"
            ),
            Self::Reordered {
                id,
                seq_num,
                earlier_at,
            } => write!(
                f,
                "reordered: {id} is at {seq_num}, before an earlier one of its writer at {earlier_at}"
            ),
            Self::SessionSkipped { missing, present } => write!(
                f,
                "skipped in a session: the append from {present} on is there, the earlier one from \
                 {missing} on is not"
            ),
            Self::Hole { expected, found } => {
                write!(
                    f,
                    "hole: sequence number {found} follows where {expected} was due"
                )
            }
            Self::Tail { tail, end } => {
                write!(f, "tail: answered as {tail}, the records end at {end}")
            }
            Self::TailWentBack { tail, before } => {
                write!(f, "tail: now {tail}, earlier answers reached {before}")
            }
            Self::TimeWentBack { seq_num } => {
                write!(
                    f,
                    "time: the timestamp at {seq_num} is smaller than the one before it"
                )
            }
            Self::FollowerSaw {
                seq_num,
                saw,
                found,
            } => write!(
                f,
                "follower: saw {} at {seq_num}, where there is now {}",
                name(saw),
                name(found)
            ),
            Self::FollowerHole { expected, found } => {
                write!(
                    f,
                    "follower: saw sequence number {found} where {expected} was due"
                )
            }
        }
    }
}
