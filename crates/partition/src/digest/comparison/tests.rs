//! The rule, case by case, over all answers of up to five voters, and over all of their descents.

use bytes::Bytes;

use super::*;
use crate::command::{Kind, MemberDigest};

fn members(voters: &[u64], learners: &[u64]) -> Membership {
    let ids = |ids: &[u64]| ids.iter().copied().map(NodeId).collect();
    Membership {
        voters: ids(voters),
        learners: ids(learners),
        ..Membership::default()
    }
}

/// Each member has made its state itself.
fn compared(answers: &[(u64, u128)], members: &Membership) -> Compared {
    let answers: Vec<_> = answers.iter().map(|it| (it.0, it.0, it.1)).collect();
    Compared::of(&note(&answers), 9, members, None)
}

/// Answers: a member, the member whose work its state is, and its digest.
fn note(answers: &[(u64, u64, u128)]) -> NoteDigests {
    let answers = answers.iter().map(|(node, origin, digest)| MemberDigest {
        node: *node,
        digest: digest.to_be_bytes().to_vec(),
        origin: Some(Origin {
            node: *origin,
            since: 0,
            holder: *node,
        }),
    });
    NoteDigests {
        lsn: 7,
        at_ms: 1,
        answers: answers.collect(),
        has_origins: true,
    }
}

fn of(answers: &[(u64, u64, u128)], before: Option<&Compared>) -> Compared {
    Compared::of(&note(answers), 9, &members(&[1, 2, 3], &[]), before)
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
            origin: None,
        }],
        has_origins: true,
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

#[test]
fn a_copy_and_what_it_was_copied_from_are_no_majority() {
    // The third one was copied from the first: it is not known whether that one or the second is wrong.
    let copied = of(&[(1, 1, 5), (2, 2, 6), (3, 1, 5)], None);
    assert_eq!(
        (copied.verdict(), copied.right()),
        (Verdict::Undecided, None)
    );
    assert!(copied.is_open());
    // A copy of a copy is one as well, and so is what was copied when that was not recorded.
    let chain = of(&[(1, 3, 5), (2, 2, 6), (3, 3, 5)], None);
    assert_eq!(chain.verdict(), Verdict::Undecided);
    let unknown = of(&[(1, 1, 5), (2, 2, 6), (3, 0, 5)], None);
    assert_eq!(unknown.verdict(), Verdict::Undecided);
    // A copy that has become another one since is wrong, where the others have the same independently.
    let later = of(&[(1, 1, 5), (2, 2, 5), (3, 1, 6)], None);
    assert_eq!(later.verdict(), Verdict::Diverged(vec![3]));
}

#[test]
fn entries_of_earlier_builds_are_judged_as_those_builds_have_judged_them() {
    let earlier = NoteDigests {
        has_origins: false,
        ..note(&[(1, 0, 5), (2, 0, 6), (3, 0, 5)])
    };
    let judged = Compared::of(&earlier, 9, &members(&[1, 2, 3], &[]), None);
    assert_eq!(judged.verdict(), Verdict::Diverged(vec![2]));
    // What such a build has stored is open if it was undecided.
    let mut stored = of(&[(1, 1, 5), (2, 2, 6)], None);
    stored.undecided_since = 0;
    assert_eq!((stored.is_open(), stored.open_since()), (true, 9));
}

#[test]
fn an_entry_of_an_earlier_build_is_read_and_one_with_origins_has_a_version_which_that_build_refuses()
 {
    // As it is in the log of such a build: version 3, kind 29.
    let mut entry = vec![
        3, 0xea, 0x01, 26, 0x08, 7, 0x10, 1, 0x1a, 20, 0x08, 1, 0x12, 16,
    ];
    entry.extend([5; 16]);
    let earlier = NoteDigests {
        lsn: 7,
        at_ms: 1,
        answers: vec![MemberDigest {
            node: 1,
            digest: vec![5; 16],
            origin: None,
        }],
        has_origins: false,
    };
    let read = Kind::from_bytes(Bytes::from(entry.clone())).unwrap();
    assert_eq!(read, Kind::NoteDigests(earlier));
    assert_eq!(read.to_bytes(), entry);
    let with_origins = Kind::NoteDigests(note(&[(1, 1, 5), (2, 1, 5)])).to_bytes();
    assert_eq!(with_origins[0], 5);
    let trust = TrustReplica {
        noted_at: 9,
        node: 1,
    };
    assert_eq!(Kind::TrustReplica(trust).to_bytes()[0], 5);
}

#[test]
fn a_comparison_stays_open_until_one_decides_or_all_members_have_the_same() {
    let group = members(&[1, 2, 3], &[]);
    let open = of(&[(1, 1, 5), (2, 2, 6)], None);
    assert_eq!(open.open_since(), 9);
    // The second one is away, and the third was copied from the first.
    let later = NoteDigests {
        lsn: 17,
        ..note(&[(1, 1, 5), (3, 1, 5)])
    };
    let later = Compared::of(&later, 19, &group, Some(&open));
    assert_eq!((later.verdict(), later.open_since()), (Verdict::Equal, 9));
    assert!(!later.confirms(3, later.answers[1].origin.unwrap(), &group));
    // The third one comes back by entries.
    let decided = Compared::of(&note(&[(1, 1, 5), (3, 3, 5)]), 29, &group, Some(&later));
    assert_eq!((decided.right(), decided.is_open()), (Some(5), false));
    // Or the second one was replaced.
    let all = Compared::of(
        &note(&[(1, 1, 5), (3, 1, 5), (4, 1, 5)]),
        29,
        &members(&[1, 3, 4], &[]),
        Some(&later),
    );
    assert_eq!((all.right(), all.is_open()), (None, false));
}

#[test]
fn copies_count_as_their_own_once_what_they_have_is_right_or_nobody_has_another_state() {
    let group = members(&[1, 2, 3, 4], &[]);
    let copy = |node, since| Origin {
        node,
        since,
        holder: 3,
    };
    let confirms = |answers: &[(u64, u64, u128)], origin, members: &Membership| {
        Compared::of(&note(answers), 9, members, None).confirms(3, origin, members)
    };
    let right = [(1, 1, 5), (2, 2, 5), (3, 1, 5), (4, 4, 5)];
    assert!(confirms(&right, copy(1, 0), &group));
    // Its answer was of another state than it has now.
    assert!(!confirms(&right, copy(1, 8), &group));
    assert!(!confirms(&right, copy(2, 0), &group));
    // All have one state of which nobody knows whether it is right.
    let founded = [(1, 1, 5), (2, 1, 5), (3, 1, 5), (4, 1, 5)];
    assert!(confirms(&founded, copy(1, 0), &group));
    // Another one may have another state.
    assert!(!confirms(&founded[..3], copy(1, 0), &group));
    let with_learner = members(&[1, 2, 3, 4], &[5]);
    assert!(!confirms(&founded, copy(1, 0), &with_learner));
    let differs = [(1, 1, 5), (2, 1, 6), (3, 1, 5), (4, 1, 5)];
    assert!(!confirms(&differs, copy(1, 0), &group));
    // It is wrong.
    let wrong = [(1, 1, 5), (2, 2, 5), (3, 1, 6), (4, 4, 5)];
    assert!(!confirms(&wrong, copy(1, 0), &group));
}

#[test]
fn the_replica_that_an_operator_names_and_its_copies_are_right_once_they_are_a_majority() {
    let group = members(&[1, 2, 3], &[]);
    let open = of(&[(1, 1, 5), (2, 2, 6), (3, 1, 5)], None);
    let trust = |noted_at, node| open.trusting(&TrustReplica { noted_at, node }, &group);
    assert_eq!(trust(8, 2), Err(TrustRefusal::Another(9)));
    assert_eq!(trust(9, 4), Err(TrustRefusal::NoAnswer));
    let trusted = trust(9, 2).unwrap();
    assert!(trusted.is_open());
    // Those that differ are the majority: they do not stop. One is replaced by a copy, then the other one stops.
    let again = of(&[(1, 1, 5), (2, 2, 6), (3, 1, 5)], Some(&trusted));
    assert_eq!(again.verdict(), Verdict::Undecided);
    assert_eq!(again.trusted.map(|it| it.node), Some(2));
    let after = of(&[(1, 1, 5), (2, 2, 6), (3, 2, 6)], Some(&again));
    assert_eq!(after.verdict(), Verdict::Diverged(vec![1]));
    assert_eq!((after.is_open(), after.trusted), (false, None));
    // The first one, and what was copied from it, are the majority already.
    let after = of(
        &[(1, 1, 5), (2, 2, 6), (3, 1, 5)],
        Some(&trust(9, 1).unwrap()),
    );
    assert_eq!(after.verdict(), Verdict::Diverged(vec![2]));
    let decided = after.trusting(
        &TrustReplica {
            noted_at: 9,
            node: 1,
        },
        &group,
    );
    assert_eq!(decided, Err(TrustRefusal::Decided));
    // The one that was named has another state since.
    let replaced = of(
        &[(1, 3, 5), (2, 2, 6), (3, 3, 5)],
        Some(&trust(9, 1).unwrap()),
    );
    assert_eq!(replaced.verdict(), Verdict::Undecided);
    // What is left alone differs from nothing.
    let alone = open.trusting(
        &TrustReplica {
            noted_at: 9,
            node: 4,
        },
        &members(&[4], &[]),
    );
    assert!(!alone.unwrap().is_open());
}

/// All answers of `voters` voters, of two digests or none, with all origins of each, unknown ones included.
fn all_answers(voters: u64, mut look: impl FnMut(&[(u64, u64, u128)])) {
    let (digests, origins) = (3u64, voters + 1);
    for answers in 0..digests.pow(voters as u32) {
        let digest = |node: u64| u128::from(answers / digests.pow(node as u32 - 1) % digests);
        let there: Vec<u64> = (1..=voters).filter(|node| digest(*node) > 0).collect();
        for descents in 0..origins.pow(there.len() as u32) {
            let answers: Vec<_> = (0..)
                .zip(&there)
                .map(|(at, node)| (*node, descents / origins.pow(at) % origins, digest(*node)))
                .collect();
            look(&answers);
        }
    }
}

/// How many have to be wrong on their own for these members to have a wrong state: copies are wrong with the one that
/// they were copied from.
fn faults(answers: &[(u64, u64, u128)], digest: u128) -> usize {
    let wrong = answers.iter().filter(|answer| answer.2 == digest);
    let origins: BTreeSet<u64> = wrong.map(|answer| answer.1).collect();
    origins.iter().filter(|node| **node != 0).count().max(1)
}

/// What a rule stops of all answers: `None` where it keeps all promises, else an example that breaks one.
fn broken(rule: impl Fn(&[(u64, u64, u128)], &Membership) -> Option<u128>) -> Option<String> {
    let mut example = None;
    for voters in 1..=5u64 {
        let group = members(&(1..=voters).collect::<Vec<_>>(), &[]);
        all_answers(voters, |answers| {
            let Some(right) = rule(answers, &group) else {
                return;
            };
            // A majority has it, so that those that stop, now or when they answer later, leave one.
            let well = answers.iter().filter(|answer| answer.2 == right).count() as u64;
            let leaves_majority = well > voters / 2 && well >= 2;
            // If it were wrong, more than half of the voters would have become wrong independently.
            let faults = faults(answers, right) as u64;
            if !leaves_majority || faults <= voters / 2 || faults < 2 {
                example.get_or_insert_with(|| format!("{answers:?}"));
            }
        });
    }
    example
}

#[test]
fn whatever_the_answers_and_their_descents_a_majority_is_left_and_no_copy_stops_a_right_replica() {
    let rule = |answers: &[(u64, u64, u128)], group: &Membership| {
        // Of a cluster that was just upgraded no descent is known: the next test has what is promised there.
        let is_upgraded = answers.iter().all(|answer| answer.1 == 0);
        let right = Compared::of(&note(answers), 9, group, None).right();
        right.filter(|_| !is_upgraded || answers.len() < group.voters.len())
    };
    assert_eq!(broken(rule), None);
    // The one that counts every answer is caught.
    let counts_copies = |answers: &[(u64, u64, u128)], group: &Membership| {
        let note = NoteDigests {
            has_origins: false,
            ..note(answers)
        };
        Compared::of(&note, 9, group, None).right()
    };
    assert!(broken(counts_copies).is_some());
}

/// No replica of an earlier build has a known origin: until some have, answers of all voters are judged as they were by
/// that build.
#[test]
fn after_an_upgrade_a_majority_of_answers_decides_once_all_voters_have_answered() {
    let mut stopped = 0;
    for voters in 1..=5u64 {
        let group = members(&(1..=voters).collect::<Vec<_>>(), &[]);
        all_answers(voters, |answers| {
            if answers.iter().any(|answer| answer.1 != 0) {
                return;
            }
            let judged = Compared::of(&note(answers), 9, &group, None);
            let earlier = NoteDigests {
                has_origins: false,
                ..note(answers)
            };
            let earlier = Compared::of(&earlier, 9, &group, None);
            let expected = match answers.len() as u64 == voters {
                true => earlier.right(),
                false => None,
            };
            assert_eq!(judged.right(), expected, "{answers:?}");
            stopped += usize::from(matches!(judged.verdict(), Verdict::Diverged(_)));
        });
    }
    assert!(stopped > 0);
    // Those that are right are their own work from then on; the one that differs is not.
    let upgraded = of(&[(1, 0, 5), (2, 0, 6), (3, 0, 5)], None);
    assert_eq!(upgraded.verdict(), Verdict::Diverged(vec![2]));
    let group = members(&[1, 2, 3], &[]);
    let confirms =
        |answer: &ComparedMember| upgraded.confirms(answer.node, answer.origin.unwrap(), &group);
    let confirmed: Vec<_> = upgraded.answers.iter().map(confirms).collect();
    assert_eq!(confirmed, [true, false, true]);
    // One that an operator takes for the right one is not stopped by answers that may be copies of each other.
    let open = of(&[(1, 0, 5), (2, 0, 6)], None);
    let trust = TrustReplica {
        noted_at: 9,
        node: 2,
    };
    let trusted = open.trusting(&trust, &group).unwrap();
    let later = of(&[(1, 0, 5), (2, 0, 6), (3, 0, 5)], Some(&trusted));
    assert_eq!(
        (later.verdict(), later.is_open()),
        (Verdict::Undecided, true)
    );
}

#[test]
fn where_nothing_was_copied_a_majority_decides_as_before_origins_were_counted() {
    for voters in 1..=5u64 {
        let group = members(&(1..=voters).collect::<Vec<_>>(), &[]);
        for code in 0..3u64.pow(voters as u32) {
            let digest = |node: u64| u128::from(code / 3u64.pow(node as u32 - 1) % 3);
            let own = (1..=voters).map(|node| (node, node, digest(node)));
            let own: Vec<_> = own.filter(|answer| answer.2 > 0).collect();
            let judge = |has_origins| {
                let note = NoteDigests {
                    has_origins,
                    ..note(&own)
                };
                Compared::of(&note, 9, &group, None).right()
            };
            assert_eq!(judge(true), judge(false), "{own:?}");
        }
    }
}
