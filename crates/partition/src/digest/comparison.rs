//! Whose digest is right, of those that the members of a group have computed as of one entry.
//!
//! A digest is right if more than half of the voters have it, and at least two members, and if as many have made it
//! independently: answers of one [`Origin`] count once, because a state that was copied is as right or as wrong as the
//! one that it was copied from. The others are then wrong: they are fewer than half of the voters, so whatever is done
//! about them leaves a majority. With two answers that differ nothing is known but that: of three voters it takes the
//! third answer, and of a group with one voter no number of answers decides.
//!
//! Replicas that were copied from each other become independent once a comparison has shown that
//!
//! - what they have is right ([`Compared::right`]): whatever differs later has come about later, in one of them, or
//! - all members have it: there is no other state that could be the right one.
//!
//! What an earlier build has left has no known origins. If all voters have answered and no origin is known, every answer
//! counts, as in those builds: a cluster that was upgraded is protected as before, until a comparison has decided and
//! the replicas that are right count as their own work. Once an origin is known, or an operator has named a replica, an
//! unknown one counts as nothing.
//!
//! Answers that differ and decide nothing leave the comparison *open*, until a later one decides, or an operator says
//! which replica is right ([`TrustReplica`]). From then on the digest of that one needs no independent second one, but
//! still those of more than half of the voters.

use std::collections::BTreeSet;

use esker_raft::{Membership, NodeId};

use crate::command::{NoteDigests, TrustRefusal, TrustReplica};
use crate::origin::Origin;

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
    /// LSN of the entry that recorded the first comparison in which replicas differed, if none since then has decided
    /// which is right; 0 otherwise. Earlier builds did not note it: see [`Compared::open_since`].
    #[prost(uint64, tag = "7")]
    undecided_since: u64,
    /// The replica of an open comparison that an operator takes for the right one.
    #[prost(message, optional, tag = "8")]
    pub trusted: Option<Trusted>,
    /// See [`NoteDigests::has_origins`].
    #[prost(bool, tag = "9")]
    has_origins: bool,
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
    /// Whose work its state is; absent if that is not known.
    #[prost(message, optional, tag = "3")]
    pub origin: Option<Origin>,
}

/// A replica that an operator takes for the right one.
#[derive(Clone, Copy, PartialEq, Eq, prost::Message)]
pub struct Trusted {
    /// The member.
    #[prost(uint64, tag = "1")]
    pub node: u64,
    /// The origin of its state. With another one it has another state, of which nothing was said.
    #[prost(message, optional, tag = "2")]
    pub origin: Option<Origin>,
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

/// How many have made the state of these answers. Those whose origin is not known may be copies of any other one, so
/// all of them together count once, and only if there is no other answer.
fn origins<'a>(answers: impl IntoIterator<Item = &'a ComparedMember>) -> usize {
    let of = |answer: &ComparedMember| answer.origin.map(|origin| origin.node);
    let known = answers.into_iter().filter_map(of).filter(|node| *node != 0);
    known.collect::<BTreeSet<u64>>().len().max(1)
}

impl Compared {
    /// What the entry at `noted_at` records, applied by a group with these members, after the comparison `before`. An
    /// answer that is no digest is left out, and so is a second one of the same member.
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
                origin: answer.origin,
            })
            .collect();
        answers.sort_by_key(|answer| answer.node);
        answers.dedup_by_key(|answer| answer.node);
        let open = before.filter(|before| before.is_open());
        let mut compared = Compared {
            lsn: note.lsn,
            noted_at,
            at_ms: note.at_ms,
            answers,
            right: Vec::new(),
            diverged_at: before.map_or(0, |before| before.diverged_at),
            undecided_since: 0,
            trusted: open.and_then(|open| open.trusted),
            has_origins: note.has_origins,
        };
        if let Some(right) = compared.judge(members) {
            compared.right = right.to_be_bytes().to_vec();
        }
        if matches!(compared.verdict(), Verdict::Diverged(_)) {
            compared.diverged_at = noted_at;
        }
        if compared.agreed(members).is_some() {
            compared.trusted = None;
        } else if let Some(open) = open {
            // Also if those that have answered now are equal: the one that differs is away.
            compared.undecided_since = open.open_since();
        } else if compared.verdict() == Verdict::Undecided {
            compared.undecided_since = noted_at;
        }
        compared
    }

    /// The right digest, by the rule of this module's head. During a change of the members nothing is decided.
    fn judge(&self, members: &Membership) -> Option<u128> {
        if members.is_joint() {
            return None;
        }
        let most = members.voters.len() / 2;
        let mut digests = self.digests().map(|(_, digest)| digest);
        digests.find(|digest| {
            let have = self.answers.iter();
            let have = have.filter(|answer| number(&answer.digest) == Some(*digest));
            let have: Vec<_> = have.collect();
            let votes = |answer: &&&ComparedMember| members.voters.contains(&NodeId(answer.node));
            let voters = || have.iter().filter(votes).copied();
            if have.len() < 2 || voters().count() <= most {
                return false;
            }
            if !self.has_origins || self.has_no_known_origins(members) || self.are_trusted(&have) {
                return true;
            }
            origins(have.iter().copied()) >= 2 && origins(voters()) > most
        })
    }

    /// Whether all voters have answered, as members of a cluster that was just upgraded do: with no origin that is
    /// known.
    fn has_no_known_origins(&self, members: &Membership) -> bool {
        let has_answered = |node: &NodeId| self.answers.iter().any(|it| it.node == node.0);
        let is_unknown = |it: &ComparedMember| it.origin.is_none_or(|origin| origin.node == 0);
        self.trusted.is_none()
            && members.voters.iter().all(has_answered)
            && self.answers.iter().all(is_unknown)
    }

    /// Whether one of these answers is that of the replica which an operator takes for the right one.
    fn are_trusted(&self, answers: &[&ComparedMember]) -> bool {
        let is_trusted = |answer: &&ComparedMember| {
            let trusted = self.trusted;
            trusted.is_some_and(|it| (it.node, it.origin) == (answer.node, answer.origin))
        };
        answers.iter().any(is_trusted)
    }

    /// The digest that all members have, if they have one and all have answered.
    fn unanimous(&self, members: &Membership) -> Option<u128> {
        let mut digests = self.digests().map(|(_, digest)| digest);
        let first = digests.next()?;
        let has_answered = |node: NodeId| self.answers.iter().any(|it| it.node == node.0);
        let is_unanimous = self.answers.len() >= 2
            && !members.is_joint()
            && digests.all(|digest| digest == first)
            && members.members().all(has_answered);
        is_unanimous.then_some(first)
    }

    /// The digest that is right, or that no member could dispute.
    fn agreed(&self, members: &Membership) -> Option<u128> {
        self.right().or_else(|| self.unanimous(members))
    }

    /// Whether the state of a member counts as its own from now on, wherever it was copied from. The answer has to be
    /// of the state that it has now: it may have got another one since.
    pub(super) fn confirms(&self, me: u64, origin: Origin, members: &Membership) -> bool {
        let agreed = self.agreed(members).filter(|_| self.has_origins);
        let mut answers = self.answers.iter();
        let answer = answers.find(|answer| answer.node == me);
        answer.is_some_and(|answer| {
            agreed.is_some()
                && number(&answer.digest) == agreed
                && answer.origin == Some(origin)
                && self.lsn > origin.since
        })
    }

    /// This comparison, after an operator has said which replica is right.
    pub(super) fn trusting(
        &self,
        trust: &TrustReplica,
        members: &Membership,
    ) -> Result<Compared, TrustRefusal> {
        if !self.is_open() {
            return Err(TrustRefusal::Decided);
        }
        if self.noted_at != trust.noted_at {
            return Err(TrustRefusal::Another(self.noted_at));
        }
        let mut others = members.members().filter(|node| node.0 != trust.node);
        if members.voters.contains(&NodeId(trust.node)) && others.next().is_none() {
            // There is nothing left that it could differ from.
            return Ok(Compared {
                answers: Vec::new(),
                undecided_since: 0,
                trusted: None,
                ..self.clone()
            });
        }
        let mut answers = self.answers.iter();
        let answer = answers.find(|answer| answer.node == trust.node);
        let answer = answer.filter(|_| members.contains(NodeId(trust.node)));
        let answer = answer.ok_or(TrustRefusal::NoAnswer)?;
        Ok(Compared {
            undecided_since: self.open_since(),
            trusted: Some(Trusted {
                node: answer.node,
                origin: answer.origin,
            }),
            ..self.clone()
        })
    }

    /// LSN of the entry that recorded the first comparison in which replicas differed, if none since then has decided
    /// which is right; 0 otherwise.
    pub fn open_since(&self) -> u64 {
        match self.undecided_since {
            // As an earlier build has noted it.
            0 if self.verdict() == Verdict::Undecided => self.noted_at,
            since => since,
        }
    }

    /// Whether answers of one origin have counted once. An earlier build has recorded it otherwise.
    pub fn has_origins(&self) -> bool {
        self.has_origins
    }

    /// Whether replicas differ, or have differed, and it is not known which is right.
    pub fn is_open(&self) -> bool {
        self.open_since() != 0
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
mod simulation;
#[cfg(test)]
mod tests;
