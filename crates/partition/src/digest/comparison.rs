//! Whose digest is right, of those that the members of a group have computed as of one entry.
//!
//! A digest is right if more than half of the voters have it, and at least two members. The others are then
//! wrong: they are fewer than half of the voters, so whatever is done about them leaves a majority. With two
//! answers that differ nothing is known but that: of three voters it takes the third answer, and of a group with
//! one voter no number of answers decides.

use esker_raft::Membership;

use crate::command::NoteDigests;

/// The last comparison of digests, as it is stored with the partition.
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct Compared {
    /// LSN of the entry as of which the digests are.
    #[prost(uint64, tag = "1")]
    pub lsn: u64,
    /// LSN of the entry that recorded them.
    #[prost(uint64, tag = "2")]
    pub noted_at: u64,
    /// When it was proposed, in milliseconds since the epoch.
    #[prost(uint64, tag = "3")]
    pub at_ms: u64,
    /// The members that have answered, in order of their numbers, and the digest of each: 16 bytes.
    #[prost(message, repeated, tag = "4")]
    pub answers: Vec<ComparedMember>,
    /// The right digest; empty if that is not known.
    #[prost(bytes = "vec", tag = "5")]
    pub right: Vec<u8>,
    /// LSN of the last entry that has recorded that a replica has diverged; 0 if none has. Snapshots of the partition
    /// as of an earlier entry may have been made of such a replica.
    #[prost(uint64, tag = "6")]
    pub diverged_at: u64,
}

/// A member's digest in a [`Compared`].
#[derive(Clone, PartialEq, Eq, prost::Message)]
pub struct ComparedMember {
    /// The member.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// 16 bytes, the highest first.
    #[prost(bytes = "vec", tag = "2")]
    pub digest: Vec<u8>,
}

/// What the answers say together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All are equal.
    Equal,
    /// These members have another digest than the majority.
    Diverged(Vec<u64>),
    /// They differ, and none has a majority.
    Undecided,
}

fn number(bytes: &[u8]) -> Option<u128> {
    Some(u128::from_be_bytes(bytes.try_into().ok()?))
}

impl Compared {
    /// What the entry at `noted_at` records, applied by a group with these members, after the comparison `before`. An answer that is no digest is
    /// left out, and so is a second one of the same member.
    pub(super) fn of(
        note: &NoteDigests,
        noted_at: u64,
        members: &Membership,
        before: Option<&Compared>,
    ) -> Compared {
        let mut answers: Vec<_> = note
            .answers
            .iter()
            .filter(|answer| number(&answer.digest).is_some())
            .map(|answer| ComparedMember {
                node: answer.node,
                digest: answer.digest.clone(),
            })
            .collect();
        answers.sort_by_key(|answer| answer.node);
        answers.dedup_by_key(|answer| answer.node);
        let mut compared = Compared {
            lsn: note.lsn,
            noted_at,
            at_ms: note.at_ms,
            answers,
            right: Vec::new(),
            diverged_at: before.map_or(0, |before| before.diverged_at),
        };
        if let Some(right) = compared.judge(members) {
            compared.right = right.to_be_bytes().to_vec();
        }
        if matches!(compared.verdict(), Verdict::Diverged(_)) {
            compared.diverged_at = noted_at;
        }
        compared
    }

    /// The right digest, by the rule of this module's head. During a change of the members nothing is decided.
    fn judge(&self, members: &Membership) -> Option<u128> {
        if members.is_joint() {
            return None;
        }
        let mut digests = self.digests().map(|(_, digest)| digest);
        digests.find(|digest| {
            let have = self.digests().filter(|(_, other)| other == digest);
            let have: Vec<u64> = have.map(|(node, _)| node).collect();
            let votes = members.voters.iter();
            let votes = votes.filter(|voter| have.contains(&voter.0)).count();
            have.len() >= 2 && votes > members.voters.len() / 2
        })
    }

    /// The members that have answered, and the digest of each.
    pub fn digests(&self) -> impl Iterator<Item = (u64, u128)> + '_ {
        let digest = |answer: &ComparedMember| Some((answer.node, number(&answer.digest)?));
        self.answers.iter().filter_map(digest)
    }

    /// The right digest; `None` if that is not known.
    pub fn right(&self) -> Option<u128> {
        number(&self.right)
    }

    /// What a member has answered, if that is not the right digest.
    pub(super) fn has_wrong_answer_of(&self, node: u64) -> Option<u128> {
        let right = self.right()?;
        let mut answers = self.digests();
        let (_, digest) = answers.find(|(other, _)| *other == node)?;
        (digest != right).then_some(digest)
    }

    /// What the answers say together.
    pub fn verdict(&self) -> Verdict {
        let mut digests = self.digests().map(|(_, digest)| digest);
        let first = digests.next();
        if digests.all(|digest| Some(digest) == first) {
            return Verdict::Equal;
        }
        let Some(right) = self.right() else {
            return Verdict::Undecided;
        };
        let wrong = self.digests().filter(|(_, digest)| *digest != right);
        Verdict::Diverged(wrong.map(|(node, _)| node).collect())
    }
}

#[cfg(test)]
mod tests {
    use esker_raft::NodeId;

    use super::*;
    use crate::command::MemberDigest;

    fn members(voters: &[u64], learners: &[u64]) -> Membership {
        let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
        Membership {
            voters: ids(voters),
            learners: ids(learners),
            ..Membership::default()
        }
    }

    fn compared(answers: &[(u64, u128)], members: &Membership) -> Compared {
        let answers = answers.iter().map(|(node, digest)| MemberDigest {
            node: *node,
            digest: digest.to_be_bytes().to_vec(),
        });
        let note = NoteDigests {
            lsn: 7,
            at_ms: 1,
            answers: answers.collect(),
        };
        Compared::of(&note, 9, members, None)
    }

    #[test]
    fn of_three_answers_the_one_that_differs_is_wrong_and_of_two_nobody_is() {
        let three = members(&[1, 2, 3], &[]);
        let verdict = |answers: &[(u64, u128)]| compared(answers, &three).verdict();
        assert_eq!(verdict(&[(1, 5), (2, 5), (3, 5)]), Verdict::Equal);
        assert_eq!(verdict(&[(1, 5), (2, 5)]), Verdict::Equal);
        assert_eq!(
            verdict(&[(1, 5), (2, 6), (3, 5)]),
            Verdict::Diverged(vec![2])
        );
        assert_eq!(verdict(&[(1, 5), (2, 6)]), Verdict::Undecided);
        assert_eq!(verdict(&[(1, 5), (2, 6), (3, 7)]), Verdict::Undecided);
    }

    #[test]
    fn learners_neither_decide_nor_are_spared() {
        let with_learner = members(&[1, 2, 3], &[4]);
        let judged = compared(&[(1, 5), (2, 5), (4, 6)], &with_learner);
        assert_eq!(judged.verdict(), Verdict::Diverged(vec![4]));
        let judged = compared(&[(1, 5), (3, 6), (4, 6)], &with_learner);
        assert_eq!(judged.verdict(), Verdict::Undecided);
        // One voter: neither it nor its learner can be believed alone.
        let pair = members(&[1], &[2]);
        let judged = compared(&[(1, 5), (2, 6)], &pair);
        assert_eq!(
            (judged.verdict(), judged.right()),
            (Verdict::Undecided, None)
        );
    }

    #[test]
    fn nothing_is_decided_while_the_members_change() {
        let joint = Membership {
            voters_outgoing: vec![NodeId(4)],
            ..members(&[1, 2, 3], &[])
        };
        let judged = compared(&[(1, 5), (2, 5), (3, 6)], &joint);
        assert_eq!(judged.verdict(), Verdict::Undecided);
    }

    #[test]
    fn answers_that_are_no_digests_and_second_ones_of_a_member_do_not_count() {
        let three = members(&[1, 2, 3], &[]);
        let judged = compared(&[(1, 6), (2, 5), (2, 6), (2, 6)], &three);
        assert_eq!(judged.answers.len(), 2);
        assert_eq!(judged.right(), None);
        let note = NoteDigests {
            lsn: 7,
            at_ms: 1,
            answers: vec![MemberDigest {
                node: 1,
                digest: vec![1; 15],
            }],
        };
        assert_eq!(Compared::of(&note, 9, &three, None).answers, []);
    }

    #[test]
    fn whatever_the_answers_are_those_that_are_wrong_leave_a_majority() {
        // All answers of up to five voters, of three digests or none.
        for voters in 1..=5u64 {
            let group = members(&(1..=voters).collect::<Vec<_>>(), &[]);
            for code in 0..4u64.pow(voters as u32) {
                let answer = |node: u64| u128::from(code / 4u64.pow(node as u32 - 1) % 4);
                let answers = (1..=voters).map(|node| (node, answer(node)));
                let answers: Vec<_> = answers.filter(|(_, digest)| *digest > 0).collect();
                let judged = compared(&answers, &group);
                let Some(right) = judged.right() else {
                    continue;
                };
                // Also those that have not answered yet may turn out to be wrong.
                let well = answers.iter().filter(|(_, digest)| *digest == right);
                let well = well.count() as u64;
                assert!(well > voters / 2 && well >= 2, "{answers:?}");
            }
        }
    }
}
