//! Members compare the digests that the log asks for, and one whose state differs is found.

use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_raft::{Capture as _, Committed, Lsn, Membership, NodeId, StateMachine as _, Term};

use super::fixture::*;
use crate::command::{AskDigest, Kind, MemberDigest, NoteDigests, Outcome, TrustReplica};
use crate::digest::{Compared, DIGEST_FORMAT, OwnDigest, ReplicaDigests, Verdict};
use crate::ids::StreamId;
use crate::keys;
use crate::origin::Origin;
use crate::streams::StreamOptions;

const PARTITION: u64 = 1;

/// A member of a group of three, and its digests.
struct Member {
    id: u64,
    fixture: Fixture,
    digests: ReplicaDigests,
}

impl Member {
    fn new(id: u64, bytes_per_second: u64) -> Member {
        let digests = ReplicaDigests::new(id, bytes_per_second);
        let mut fixture = Fixture::with(StreamOptions {
            digests: digests.clone(),
            ..eager()
        });
        let voters = Membership {
            voters: [1, 2, 3].map(NodeId).to_vec(),
            ..Membership::default()
        };
        fixture.apply_entries(&[Committed {
            lsn: Lsn(1),
            term: Term(1),
            command: None,
            membership: Some(Arc::new(voters)),
            checksum: 0,
        }]);
        Member {
            id,
            fixture,
            digests,
        }
    }

    fn group() -> [Member; 3] {
        [1, 2, 3].map(|id| Member::new(id, 0))
    }

    /// The digest as of an entry, once it is known.
    fn own(&self, lsn: u64) -> OwnDigest {
        let deadline = Instant::now() + Duration::from_secs(30);
        loop {
            match self.digests.own(PARTITION, lsn) {
                OwnDigest::Computing if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(2));
                }
                own => return own,
            }
        }
    }

    fn answer(&self, lsn: u64) -> Option<MemberDigest> {
        match self.own(lsn) {
            OwnDigest::Computed(digest) => Some(MemberDigest {
                node: self.id,
                digest: digest.to_be_bytes().to_vec(),
                origin: self.digests.origin_of_own(PARTITION, lsn),
            }),
            _ => None,
        }
    }
}

impl Drop for Member {
    fn drop(&mut self) {
        self.digests.close();
    }
}

fn ask() -> Kind {
    Kind::AskDigest(AskDigest {
        format: DIGEST_FORMAT,
    })
}

/// All apply the commands, each in steps of another size.
fn all_apply(members: &mut [Member], commands: &[Kind]) {
    for member in members {
        let step = member.id as usize;
        for commands in commands.chunks(step) {
            member.fixture.step(commands.to_vec());
        }
    }
}

/// Asks for a digest amid appends. Returns the LSN of the entry.
fn compare(members: &mut [Member], stream: StreamId) -> u64 {
    let append = |text: &'static str| Kind::Append(bodies(stream, 2_000, [text]));
    let asked_at = members[0].fixture.applied() + 3;
    let commands = [append("a"), append("b"), ask(), append("c"), append("d")];
    all_apply(members, &commands);
    asked_at
}

/// Records the answers of these members with all of them.
fn note(members: &mut [Member], lsn: u64, of: &[usize]) {
    let answers = of.iter().filter_map(|at| members[*at].answer(lsn));
    let note = Kind::NoteDigests(NoteDigests {
        lsn,
        at_ms: 5,
        answers: answers.collect(),
        has_origins: true,
    });
    all_apply(members, &[note]);
}

/// All append a record, and one of them stores another one instead.
fn diverge(members: &mut [Member], at: usize, stream: StreamId) {
    let append = Kind::Append(bodies(stream, 2_000, ["original"]));
    all_apply(members, &[append]);
    let part = members[at].fixture.partition_db();
    let (first, mut value) = batches_of(&part, stream).remove(0);
    *value.last_mut().unwrap() ^= 1;
    damage_batch(&part, stream, first, Some(&value[..]));
}

fn create_all(members: &mut [Member]) -> StreamId {
    let created = members.iter_mut().map(|it| it.fixture.create("stream"));
    created.last().unwrap()
}

#[test]
fn members_that_have_applied_the_same_have_equal_digests_as_of_the_entry_that_asks() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    let lsn = compare(&mut members, stream);
    let own: Vec<_> = members.iter().map(|member| member.own(lsn)).collect();
    assert!(matches!(own[0], OwnDigest::Computed(_)), "{own:?}");
    assert!(own.iter().all(|other| *other == own[0]), "{own:?}");
    let now = members[0].fixture.partition_db().digest().unwrap();
    assert_ne!(own[0], OwnDigest::Computed(now.digest), "more is applied");

    note(&mut members, lsn, &[0, 1, 2]);
    for member in &mut members {
        let compared = member.digests.compared(PARTITION).unwrap();
        assert_eq!((compared.lsn, compared.answers.len()), (lsn, 3));
        assert_eq!(compared.verdict(), Verdict::Equal);
        assert_eq!(member.digests.divergence(PARTITION), None);
        // The next start has the last comparison.
        member.fixture.reopen();
        assert_eq!(member.digests.compared(PARTITION), Some(compared));
    }
}

#[test]
fn a_member_whose_state_differs_finds_that_itself_and_the_others_do_not_mind() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    diverge(&mut members, 1, stream);
    let lsn = compare(&mut members, stream);
    // Two answers that differ decide nothing.
    note(&mut members, lsn, &[0, 1]);
    let compared = members[0].digests.compared(PARTITION).unwrap();
    assert_eq!(compared.verdict(), Verdict::Undecided);
    for member in &members {
        assert_eq!(member.digests.divergence(PARTITION), None);
    }
    // The third one does.
    note(&mut members, lsn, &[0, 1, 2]);
    let compared = members[0].digests.compared(PARTITION).unwrap();
    assert_eq!(compared.verdict(), Verdict::Diverged(vec![2]));
    let diverged = members[1].digests.divergence(PARTITION).unwrap();
    assert_eq!((diverged.lsn, &diverged.others[..]), (lsn, &[1, 3][..]));
    assert_ne!(diverged.own, diverged.right);
    assert_eq!(compared.diverged_at, compared.noted_at);
    // That is remembered beyond comparisons that are equal again.
    let again = compare(&mut members, stream);
    note(&mut members, again, &[0, 2]);
    let later = members[0].digests.compared(PARTITION).unwrap();
    assert_eq!(later.verdict(), Verdict::Equal);
    assert_eq!(later.diverged_at, compared.diverged_at);
    for well in [0, 2] {
        let was_wrong = |node| members[well].digests.was_wrong(PARTITION, node);
        assert_eq!([1, 2, 3].map(was_wrong), [false, true, false]);
        assert_eq!(members[well].digests.divergence(PARTITION), None);
    }
}

/// Lets the process of a member begin again, with the state that it had.
fn begin_again(member: &mut Member) {
    member.digests.close();
    member.digests = ReplicaDigests::new(member.id, 0);
    let digests = member.digests.clone();
    member
        .fixture
        .use_options(StreamOptions { digests, ..eager() });
    member.fixture.reopen();
}

#[test]
fn a_member_that_starts_again_before_the_comparison_or_after_it_finds_that_its_answer_was_wrong() {
    for is_noted_before in [true, false] {
        let mut members = Member::group();
        let stream = create_all(&mut members);
        diverge(&mut members, 1, stream);
        let lsn = compare(&mut members, stream);
        let answers: Vec<_> = members.iter().filter_map(|it| it.answer(lsn)).collect();
        let noted = Kind::NoteDigests(NoteDigests {
            lsn,
            at_ms: 5,
            answers,
            has_origins: true,
        });
        if is_noted_before {
            all_apply(&mut members, std::slice::from_ref(&noted));
            begin_again(&mut members[1]);
        } else {
            begin_again(&mut members[1]);
            all_apply(&mut members, &[noted]);
        }
        let diverged = members[1].digests.divergence(PARTITION).unwrap();
        assert_eq!((diverged.lsn, &diverged.others[..]), (lsn, &[1, 3][..]));
        begin_again(&mut members[0]);
        assert_eq!(members[0].digests.divergence(PARTITION), None);
    }
}

#[test]
fn a_member_whose_wrong_state_is_replaced_by_that_of_another_one_has_not_diverged() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    diverge(&mut members, 1, stream);
    let lsn = compare(&mut members, stream);
    let answers: Vec<_> = members.iter().filter_map(|it| it.answer(lsn)).collect();
    // It does not get the comparison by an entry.
    let [first, second, _] = &mut members;
    first.fixture.apply(Kind::NoteDigests(NoteDigests {
        lsn,
        at_ms: 5,
        answers,
        has_origins: true,
    }));
    let snapshot = first.fixture.partition_db().begin_checkpoint().write();
    let machine = second.fixture.machine();
    machine.restore(snapshot.unwrap()).unwrap();
    assert_eq!(second.digests.divergence(PARTITION), None);
    let digest = |member: &Member| member.fixture.partition_db().digest().unwrap();
    assert_eq!(digest(second), digest(first));
    begin_again(second);
    assert_eq!(second.digests.divergence(PARTITION), None);
}

#[test]
fn a_member_that_did_not_answer_compares_itself_with_the_others() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    diverge(&mut members, 2, stream);
    let lsn = compare(&mut members, stream);
    members[2].own(lsn);
    note(&mut members, lsn, &[0, 1]);
    let compared = members[0].digests.compared(PARTITION).unwrap();
    assert_eq!(compared.verdict(), Verdict::Equal, "of those that answered");
    assert!(members[2].digests.divergence(PARTITION).is_some());
}

#[test]
fn a_digest_that_takes_long_holds_up_no_apply_and_no_stop() {
    // A byte in a second: it ends with the stop alone.
    let mut member = Member::new(1, 1);
    let stream = member.fixture.create("stream");
    for _ in 0..3 {
        let large = append(stream, 2_000, vec![rec("x".repeat(900_000))]);
        member.fixture.append(large).unwrap();
    }
    let asked = member.fixture.apply(ask());
    let Outcome::DigestAsked(lsn) = asked else {
        panic!("{asked:?}");
    };
    for _ in 0..10 {
        member
            .fixture
            .append(bodies(stream, 2_000, ["goes on"]))
            .unwrap();
    }
    assert_eq!(member.digests.own(PARTITION, lsn), OwnDigest::Computing);
    let deadline = Instant::now() + Duration::from_secs(30);
    while member.digests.bytes_read() == 0 {
        assert!(Instant::now() < deadline, "nothing is read");
        std::thread::sleep(Duration::from_millis(2));
    }
    member.digests.close();
    assert_eq!(member.own(lsn), OwnDigest::Unknown);
    // None is begun any more.
    let asked = member.fixture.apply(ask());
    assert_eq!(asked, Outcome::DigestAsked(lsn + 11));
    assert_eq!(member.own(lsn + 11), OwnDigest::Unknown);
}

#[test]
fn a_digest_ends_where_the_disk_lacks_space() {
    let mut member = Member::new(1, 0);
    let stream = member.fixture.create("stream");
    for _ in 0..2 {
        let large = append(stream, 2_000, vec![rec("x".repeat(900_000))]);
        member.fixture.append(large).unwrap();
    }
    member
        .fixture
        .reader()
        .partition_db()
        .note_free_space(Some(1));
    let Outcome::DigestAsked(lsn) = member.fixture.apply(ask()) else {
        panic!("another answer");
    };
    assert_eq!(member.own(lsn), OwnDigest::Unknown);
    member.fixture.reader().partition_db().note_free_space(None);
    let Outcome::DigestAsked(lsn) = member.fixture.apply(ask()) else {
        panic!("another answer");
    };
    assert!(matches!(member.own(lsn), OwnDigest::Computed(_)));
}

#[test]
fn a_digest_of_another_build_is_not_computed() {
    let mut member = Member::new(1, 0);
    let format = DIGEST_FORMAT + 1;
    let asked = member.fixture.apply(Kind::AskDigest(AskDigest { format }));
    let Outcome::DigestAsked(lsn) = asked else {
        panic!("{asked:?}");
    };
    assert_eq!(member.digests.own(PARTITION, lsn), OwnDigest::Unknown);
}

/// A member's state replaces that of another one, as the library of the group does it.
fn install(members: &mut [Member], from: usize, to: usize) {
    let part = members[from].fixture.partition_db();
    let snapshot = part.begin_checkpoint().write().unwrap();
    members[to].fixture.machine().restore(snapshot).unwrap();
}

fn origin(member: &Member) -> Origin {
    member.digests.origin(PARTITION).unwrap()
}

/// A note that all apply, in steps of one command, of which only some answer.
fn note_entry(members: &mut [Member], lsn: u64, of: &[usize]) -> Compared {
    note(members, lsn, of);
    members[of[0]].digests.compared(PARTITION).unwrap()
}

#[test]
fn a_member_that_got_its_state_from_a_wrong_one_makes_no_majority_with_it() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    diverge(&mut members, 0, stream);
    assert_eq!(origin(&members[2]), Origin::own(3, 0));
    install(&mut members, 0, 2);
    let applied = members[0].fixture.applied();
    let copied = Origin {
        node: 1,
        since: applied,
        holder: 3,
    };
    assert_eq!(origin(&members[2]), copied);
    // A crash does not lose that.
    begin_again(&mut members[2]);
    assert_eq!(origin(&members[2]), copied);

    let lsn = compare(&mut members, stream);
    let compared = note_entry(&mut members, lsn, &[0, 1, 2]);
    assert_eq!(compared.verdict(), Verdict::Undecided);
    for member in &members {
        assert_eq!(member.digests.divergence(PARTITION), None);
        assert!(member.digests.is_doubtful(PARTITION));
    }
    // An operator names the second one. The third one is replaced by a copy of it, and the first one stops.
    let trust = Kind::TrustReplica(TrustReplica {
        noted_at: compared.noted_at,
        node: 2,
    });
    all_apply(&mut members, &[trust]);
    assert!(!members[1].digests.is_doubtful(PARTITION));
    assert!(members[0].digests.is_doubtful(PARTITION));
    install(&mut members, 1, 2);
    let lsn = compare(&mut members, stream);
    let compared = note_entry(&mut members, lsn, &[0, 1, 2]);
    assert_eq!(compared.verdict(), Verdict::Diverged(vec![1]));
    assert!(members[0].digests.divergence(PARTITION).is_some());
    for well in [1, 2] {
        assert_eq!(members[well].digests.divergence(PARTITION), None);
        assert!(!members[well].digests.is_doubtful(PARTITION));
    }
    assert_eq!(origin(&members[2]), Origin::own(3, lsn));
}

#[test]
fn a_copy_of_a_copy_is_one_of_the_first_until_a_comparison_has_shown_that_all_are_equal() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    install(&mut members, 0, 1);
    install(&mut members, 1, 2);
    assert_eq!(origin(&members[2]).node, 1);
    let lsn = compare(&mut members, stream);
    // One is away: it might have another state.
    note(&mut members, lsn, &[1, 2]);
    assert_eq!(origin(&members[2]).node, 1);
    note(&mut members, lsn, &[0, 1, 2]);
    for member in &mut members {
        let own = origin(member);
        assert_eq!((own.node, own.holder), (member.id, member.id));
        begin_again(member);
        assert_eq!(origin(member), own);
    }
    // From then on a difference is one of that member alone.
    diverge(&mut members, 0, stream);
    let lsn = compare(&mut members, stream);
    note(&mut members, lsn, &[0, 1, 2]);
    assert!(members[0].digests.divergence(PARTITION).is_some());
    assert_eq!(members[1].digests.divergence(PARTITION), None);
}

#[test]
fn a_state_that_was_built_from_files_which_another_member_has_put_is_a_copy_of_that_members() {
    let mut members = Member::group();
    create_all(&mut members);
    let checkpoint = members[1].fixture.checkpoint();
    let mut joined = members[1].fixture.imported(&checkpoint);
    // A node that joins opens what it has imported, again and again.
    for _ in 0..2 {
        let digests = ReplicaDigests::new(9, 0);
        joined.use_options(StreamOptions {
            digests: digests.clone(),
            ..eager()
        });
        joined.stop_and_open();
        let copied = Origin {
            node: 2,
            since: checkpoint.meta.lsn,
            holder: 9,
        };
        assert_eq!(digests.origin(PARTITION), Some(copied));
    }
    // The member that has put them gets its own state back.
    let digests = ReplicaDigests::new(2, 0);
    let mut again = members[1].fixture.imported(&checkpoint);
    again.use_options(StreamOptions {
        digests: digests.clone(),
        ..eager()
    });
    again.stop_and_open();
    assert_eq!(digests.origin(PARTITION), Some(Origin::own(2, 0)));
}

#[test]
fn a_state_of_an_earlier_build_has_no_known_origin_and_an_answer_of_another_state_confirms_nothing()
{
    let mut members = Member::group();
    let stream = create_all(&mut members);
    // As an earlier build leaves it: without the row.
    {
        let part = members[0].fixture.partition_db();
        let mut batch = part.batch();
        batch.delete(keys::ORIGIN);
        batch.write().unwrap();
        part.flush().unwrap();
    }
    begin_again(&mut members[0]);
    assert_eq!(origin(&members[0]).node, 0);
    // What the third one has answered was another state than it has when that is recorded.
    let lsn = compare(&mut members, stream);
    let answers = members.iter().filter_map(|it| it.answer(lsn));
    let noted = Kind::NoteDigests(NoteDigests {
        lsn,
        at_ms: 5,
        answers: answers.collect(),
        has_origins: true,
    });
    install(&mut members, 0, 2);
    all_apply(&mut members, &[noted]);
    assert_eq!(origin(&members[2]).node, 0);
    assert_eq!(origin(&members[0]).node, 1, "it has what two others have");
}

#[test]
fn what_the_log_has_asked_for_and_not_recorded_is_known_to_every_member() {
    let mut members = Member::group();
    let stream = create_all(&mut members);
    let unfinished = |members: &[Member]| {
        let asked = members.iter().map(|it| it.digests.unfinished(PARTITION));
        asked
            .map(|it| it.map(|it| (it.lsn, it.times)))
            .collect::<Vec<_>>()
    };
    assert_eq!(unfinished(&members), [None; 3]);
    let first = compare(&mut members, stream);
    let lsn = compare(&mut members, stream);
    assert_eq!(unfinished(&members), [Some((lsn, 2)); 3]);
    note(&mut members, first, &[0, 1, 2]);
    assert_eq!(unfinished(&members), [Some((lsn, 2)); 3]);
    note(&mut members, lsn, &[0, 1, 2]);
    assert_eq!(unfinished(&members), [None; 3]);
}
