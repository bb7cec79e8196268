//! Forks: after a restore that may have lost something, no number is given out twice.

use s2_common::stream::{ReadFrom, ReadStart};

use prost::Message as _;

use super::fixture::*;
use crate::command::{AppendRefusal, BeginLineage, Kind, NoteArchived, Outcome};
use crate::fork::Fork;
use crate::ids::{LineageId, PartitionId};
use crate::keys;
use crate::lineage::GAP;
use crate::reader::ReadError;

fn start(partition: &Fixture, from: ReadFrom, may_follow: bool) -> Result<u64, u64> {
    let start = ReadStart { from, clamp: false };
    match partition
        .reader()
        .start(&partition.stream("s"), start, may_follow)
    {
        Ok(seq) => Ok(seq),
        Err(ReadError::Unwritten(tail)) => Err(tail.seq_num),
        Err(other) => panic!("{other}"),
    }
}

/// Five records, a fork, and three more.
fn forked() -> Fixture {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    for i in 0..5 {
        let body = format!("old {i}");
        partition
            .append(append(stream, 2000, vec![rec(body)]))
            .unwrap();
    }
    partition.fork(1);
    for i in 0..3 {
        let body = format!("new {i}");
        partition
            .append(append(stream, 3000, vec![rec(body)]))
            .unwrap();
    }
    partition
}

#[test]
fn sequence_numbers_after_a_fork_leave_a_gap_and_none_is_given_out_twice() {
    let partition = forked();
    let all = read_all(&partition.reader(), &partition.stream("s"));
    let seqs: Vec<u64> = all.iter().map(|seen| seen.seq).collect();
    let first = 5 + GAP;
    assert_eq!(seqs, [0, 1, 2, 3, 4, first, first + 1, first + 2]);
    assert_eq!(all[5].text, "new 0");
}

#[test]
fn the_gap_is_there_at_once_and_after_every_restart() {
    let mut partition = Fixture::new();
    partition.create("s");
    let stream = partition.stream("s").id;
    partition
        .append(append(stream, 2000, vec![rec("a")]))
        .unwrap();
    partition.fork(1);
    for _ in 0..2 {
        assert_eq!(partition.state("s").tail_seq, 1 + GAP);
        partition.reopen();
    }
    // An append that expects the old tail gets the new one in its refusal.
    let mut conditional = append(stream, 3000, vec![rec("b")]);
    conditional.match_seq_num = Some(1);
    assert_eq!(
        partition.append(conditional).unwrap_err(),
        AppendRefusal::SeqNumMismatch(1 + GAP)
    );
}

#[test]
fn a_read_that_starts_in_a_gap_starts_at_its_end() {
    let partition = forked();
    let end = 5 + GAP;
    for seq in [5, 6, 1000, end - 1, end] {
        assert_eq!(start(&partition, ReadFrom::SeqNum(seq), false), Ok(end));
    }
    assert_eq!(start(&partition, ReadFrom::SeqNum(4), false), Ok(4));
    assert_eq!(
        start(&partition, ReadFrom::SeqNum(end + 3), false),
        Err(end + 3)
    );
    // A gap that nothing follows ends at the tail.
    let mut partition = partition;
    partition.fork(2);
    let tail = end + 3 + GAP;
    assert_eq!(
        start(&partition, ReadFrom::SeqNum(end + 3), false),
        Err(tail)
    );
    assert_eq!(start(&partition, ReadFrom::SeqNum(end + 9), true), Ok(tail));
}

#[test]
fn an_offset_from_the_tail_counts_records_and_no_gaps() {
    let mut partition = forked();
    let first = 5 + GAP;
    let offset = |partition: &Fixture, n| start(partition, ReadFrom::TailOffset(n), true);
    assert_eq!(offset(&partition, 0), Ok(first + 3));
    assert_eq!(offset(&partition, 1), Ok(first + 2));
    assert_eq!(offset(&partition, 3), Ok(first));
    assert_eq!(offset(&partition, 4), Ok(4));
    assert_eq!(offset(&partition, 8), Ok(0));
    assert_eq!(offset(&partition, 100), Ok(0));
    partition.fork(2);
    let tail = first + 3 + GAP;
    assert_eq!(offset(&partition, 0), Ok(tail));
    assert_eq!(offset(&partition, 1), Ok(first + 2));
    assert_eq!(offset(&partition, 4), Ok(4));
}

#[test]
fn a_stream_that_was_empty_is_empty_after_a_fork() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition.fork(1);
    let state = partition.state("s");
    assert!(state.is_empty());
    assert_eq!((state.head(), state.tail_seq), (GAP, GAP));
    partition
        .append(append(stream, 2000, vec![rec("a")]))
        .unwrap();
    assert_eq!(partition.texts("s"), ["a"]);
    // The stream is trimmed to its tail, and forked again.
    partition.apply(expire(stream, GAP + 1, 2000));
    partition.fork(2);
    assert!(partition.state("s").is_empty());
    assert_eq!(partition.texts("s"), [] as [String; 0]);
}

#[test]
fn a_trim_up_to_a_gap_leaves_nothing_before_it() {
    let mut partition = forked();
    let stream = partition.stream("s").id;
    let first = 5 + GAP;
    partition.apply(expire(stream, 3, 4000));
    assert_eq!(partition.state("s").head(), 3);
    partition.apply(expire(stream, 5, 4000));
    let state = partition.state("s");
    assert_eq!(state.head(), first);
    assert_eq!(partition.texts("s"), ["new 0", "new 1", "new 2"]);
    partition.apply(expire(stream, first + 3, 4000));
    assert!(partition.state("s").is_empty());
}

#[test]
fn ids_of_streams_are_not_given_out_again() {
    let mut partition = Fixture::new();
    let before = partition.create("before");
    partition.fork(1);
    partition.fork(2);
    let after = partition.create("after");
    assert_eq!(after.0, before.0 + 1 + 2 * GAP);
    partition.reopen();
    assert_eq!(partition.create("later").0, after.0 + 1);
}

#[test]
fn a_new_stream_after_a_fork_begins_at_zero() {
    let mut partition = Fixture::new();
    partition.fork(1);
    let stream = partition.create("s");
    partition.reopen();
    let end = partition
        .append(append(stream, 2000, vec![rec("a")]))
        .unwrap()
        .end;
    assert_eq!(end.seq_num, 1);
}

#[test]
fn a_digest_does_not_depend_on_whether_a_gap_was_written_back() {
    let mut partition = forked();
    let checkpoint = partition.checkpoint();
    let mut copy = partition.imported(&checkpoint);
    copy.fork(3);
    let before = copy.partition_db().digest().unwrap();
    let stream = copy.stream("s").id;
    // This command touches the stream, and changes nothing.
    copy.apply(expire(stream, 0, 4000));
    let after = copy.partition_db().digest().unwrap();
    assert_eq!(before.digest, after.digest);
    assert_ne!(before.lsn, after.lsn);
}

#[test]
fn many_forks_are_remembered_in_bounded_space() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    for fork in 0..20 {
        partition
            .append(append(stream, 2000, vec![rec(format!("{fork}"))]))
            .unwrap();
        partition.fork(fork + 1);
    }
    let state = partition.state("s");
    assert!(state.gaps.len() <= 8);
    let texts: Vec<String> = (0..20).map(|i: u32| i.to_string()).collect();
    assert_eq!(partition.texts("s"), texts);
    // Whoever reads from within a gap gets the records after it, also where the gap is forgotten.
    let seq_of = |record: u64| record * (1 + GAP);
    for gap in 0..19 {
        for inside in [1, 2, GAP / 2, GAP] {
            let from = seq_of(gap) + inside;
            let begun = start(&partition, ReadFrom::SeqNum(from), false).unwrap();
            let scanned = scan(&partition.reader(), &partition.stream("s"), begun);
            let first = seen_seqs(&scanned)[0];
            assert_eq!(first, seq_of(gap + 1), "from {from}");
        }
    }
    let counted = partition.reader().record_counts(&partition.stream("s"), 0);
    assert_eq!(counted.unwrap(), (20, 20));
    // Numbers of forgotten gaps count as records: the read gets fewer than it asked for.
    let offset = |n| start(&partition, ReadFrom::TailOffset(n), true).unwrap();
    assert_eq!((offset(1), offset(8)), (seq_of(19), seq_of(12)));
    let scanned = scan(&partition.reader(), &partition.stream("s"), offset(12));
    assert_eq!(seen_seqs(&scanned).len(), 8);
}

#[test]
fn a_lineage_contains_its_parent_up_to_the_fork_and_nothing_else() {
    let mut partition = Fixture::new();
    partition.create("s");
    let first = partition.partition_db().lineage().unwrap();
    partition.fork(1);
    partition.create("t");
    let second = partition.partition_db().lineage().unwrap();
    assert_eq!(second.parent(), Some(first.id()));
    assert!(second.contains(first.id(), 1));
    assert!(!second.contains(first.id(), 2));
    assert!(second.contains(second.id(), 2));
    assert!(!first.contains(second.id(), 0));
}

/// The forks that a stream lists: parent, sequence number, and where the history continues.
fn listed(partition: &Fixture, name: &str) -> Vec<(Option<LineageId>, u64, u64)> {
    let lineage = partition.partition_db().lineage().unwrap();
    let seen = partition.state(name).forks_seen(&lineage);
    let one = |fork: Fork| (fork.parent, fork.seq_num, fork.resumes_at);
    seen.into_iter().map(one).collect()
}

/// The lineage that a fixture begins with.
fn first_lineage() -> LineageId {
    LineageId::first("a cluster", PartitionId(1))
}

#[test]
fn a_fork_is_listed_with_the_lineage_that_it_cut_off() {
    let mut partition = forked();
    let end = 5 + GAP;
    let first = (Some(first_lineage()), 5, end);
    assert_eq!(listed(&partition, "s"), [first]);
    partition.fork(2);
    let second = (Some(LineageId(1)), end + 3, end + 3 + GAP);
    for _ in 0..2 {
        assert_eq!(listed(&partition, "s"), [first, second]);
        partition.reopen();
    }
    // A checkpoint has it.
    let checkpoint = partition.checkpoint();
    let copy = partition.imported(&checkpoint);
    assert_eq!(listed(&copy, "s"), [first, second]);
}

#[test]
fn forks_without_an_append_in_between_have_the_same_numbers() {
    let mut partition = forked();
    partition.fork(2);
    partition.fork(3);
    let (end, tail) = (5 + GAP, 8 + 3 * GAP);
    let expected = [
        (Some(first_lineage()), 5, end),
        (Some(LineageId(1)), end + 3, tail),
        (Some(LineageId(2)), end + 3, tail),
    ];
    assert_eq!(listed(&partition, "s"), expected);
    assert_eq!(partition.state("s").tail_seq, tail);
}

#[test]
fn a_lineage_of_which_nothing_is_left_is_listed_with_what_the_copy_has_of_the_stream() {
    let mut partition = forked();
    let lineage = partition.partition_db().lineage().unwrap();
    let lsn = partition.applied();
    let between = [LineageId(2)];
    let next = lineage.fork_of_descendant(LineageId(3), 2, &between, LineageId(4), lsn);
    partition.partition_db().fork(&next, &[7]).unwrap();
    partition.stop_and_open();
    let seq = 8 + GAP;
    let parents: Vec<_> = listed(&partition, "s")[1..].to_vec();
    let expected = [1, 2, 3].map(|id| (Some(LineageId(id)), seq, seq + 3 * GAP));
    assert_eq!(parents, expected);
}

#[test]
fn a_stream_that_was_created_after_a_fork_lists_nothing_of_it() {
    let mut partition = forked();
    partition.create("t");
    assert_eq!(listed(&partition, "t"), []);
    partition.fork(2);
    let expected = [(Some(LineageId(1)), 0, GAP)];
    assert_eq!(listed(&partition, "t"), expected);
}

#[test]
fn a_fork_is_listed_though_everything_before_it_was_trimmed() {
    let mut partition = forked();
    let stream = partition.stream("s").id;
    let end = 5 + GAP;
    let first = (Some(first_lineage()), 5, end);
    for (trim, head) in [(5, end), (end + 1, end + 1), (end + 3, end + 3)] {
        partition.apply(expire(stream, trim, 4000));
        assert_eq!(partition.state("s").head(), head);
        assert_eq!(listed(&partition, "s"), [first]);
    }
    // The stream is empty, and a consumer that had read all of it by then has lost nothing.
    assert!(partition.state("s").is_empty());
    partition.fork(2);
    partition.fork(3);
    let tail = end + 3 + 2 * GAP;
    let expected = [
        first,
        (Some(LineageId(1)), end + 3, tail),
        (Some(LineageId(2)), end + 3, tail),
    ];
    assert_eq!(listed(&partition, "s"), expected);
    let state = partition.state("s");
    assert_eq!((state.head(), state.tail_seq), (tail, tail));
    // Reads behave as if there had been no gaps.
    let offset = |n| start(&partition, ReadFrom::TailOffset(n), true);
    assert_eq!(offset(0), Ok(tail));
    assert_eq!(partition.texts("s"), [] as [String; 0]);
}

#[test]
fn the_newest_forks_are_listed_of_more_than_are_remembered() {
    let mut partition = Fixture::new();
    let appended = partition.create("appended");
    partition.create("still");
    for fork in 0..20 {
        partition
            .append(append(appended, 2000, vec![rec(format!("{fork}"))]))
            .unwrap();
        partition.fork(fork + 1);
    }
    let parents = |name| -> Vec<_> {
        let listed = listed(&partition, name).into_iter();
        listed.map(|(parent, ..)| parent).collect()
    };
    let newest = |count: u128| (20 - count..20).map(|id| Some(LineageId(id)));
    assert!(parents("appended").into_iter().eq(newest(8)));
    // All twenty forks left one gap; those that the partition does not remember are listed as one.
    let mut still = parents("still").into_iter();
    assert_eq!(still.next(), Some(None));
    assert!(still.eq(newest(16)));
    let mut numbers = listed(&partition, "still").into_iter();
    assert!(numbers.all(|(_, seq, end)| (seq, end) == (0, 20 * GAP)));
}

#[test]
fn a_gap_is_of_the_last_forks_if_an_earlier_build_forgot_those_before() {
    let mut partition = forked();
    partition.fork(2);
    let stream = partition.stream("s").id;
    let trimmed = expire(stream, 6 + GAP, 4000);
    partition.apply(trimmed);
    let whole = partition.partition_db().digest().unwrap();
    let mut state = partition.state("s");
    state.retain_visible_gaps();
    assert_eq!(state.gaps.len(), 1);
    let mut batch = partition.partition_db().batch();
    batch.put(keys::stream_state(stream), state.encode_to_vec());
    batch.write().unwrap();
    partition.reopen();
    let end = 8 + GAP;
    let expected = [(Some(LineageId(1)), end, end + GAP)];
    assert_eq!(listed(&partition, "s"), expected);
    // Both digests are of the same partition.
    assert_eq!(partition.partition_db().digest().unwrap(), whole);
}

fn bytes(id: LineageId) -> Vec<u8> {
    id.0.to_be_bytes().to_vec()
}

/// The command that begins this lineage where the partition is.
fn begin(partition: &Fixture, id: u128) -> Kind {
    let present = bytes(partition.partition_db().lineage().unwrap().id());
    Kind::BeginLineage(BeginLineage {
        id: bytes(LineageId(id)),
        parent: present.clone(),
        present,
        skipped: 0,
        between: Vec::new(),
    })
}

#[test]
fn an_entry_that_begins_a_lineage_has_the_effects_of_a_fork_at_a_start() {
    let script = |by_entry: bool| {
        let mut partition = Fixture::new();
        let stream = partition.create("s");
        partition.create("still");
        partition.append(bodies(stream, 2_000, ["a", "b"])).unwrap();
        let (open, still) = (partition.stream("s"), partition.stream("still"));
        let followed = open.follow();
        if by_entry {
            let command = begin(&partition, 9);
            let outcome = partition.apply(command.clone());
            assert_eq!(outcome, Outcome::LineageBegun(true));
            // Streams that are open pass over the numbers at once, and readers with them.
            assert_eq!(open.tail().seq_num, 2 + GAP);
            assert_eq!(still.tail().seq_num, GAP);
            let scanned = scan(&partition.reader(), &open, 0);
            assert_eq!((seen_seqs(&scanned), scanned.next), (vec![0, 1], 2 + GAP));
            // It is for the lineage before, so it has an effect once.
            assert_eq!(partition.apply(command), Outcome::LineageBegun(false));
        } else {
            partition.fork(9);
            partition.idle(2);
        }
        drop(followed);
        let created = partition.create("later");
        partition.append(bodies(stream, 3_000, ["c"])).unwrap();
        let mut conditional = bodies(stream, 3_000, ["d"]);
        conditional.match_seq_num = Some(3);
        let refused = partition.append(conditional).unwrap_err();
        (created, refused, partition)
    };
    let (created, refused, mut by_entry) = script(true);
    let (created_offline, refused_offline, offline) = script(false);
    assert_eq!((created, refused), (created_offline, refused_offline));
    for reopened in [false, true] {
        if reopened {
            by_entry.stop_and_open();
            // Nothing was flushed.
            by_entry.replay(1);
        }
        assert_eq!(by_entry.content(&[BASIN]), offline.content(&[BASIN]));
        assert_eq!(listed(&by_entry, "s"), listed(&offline, "s"));
    }
    let lineages = [&by_entry, &offline].map(|of| of.partition_db().lineage().unwrap());
    assert_eq!(lineages[0].id(), lineages[1].id());
    assert_eq!(lineages[0].forks, lineages[1].forks);
    // The log goes on; after a start that forks, another one begins.
    assert_eq!(lineages[0].log_id(), first_lineage());
    assert_eq!(lineages[1].log_id(), LineageId(9));
    // A copy from before is part of the history, and leads to the same by the log.
    assert!(lineages[0].contains(first_lineage(), 3));
    for step in [2, 3, 100] {
        let mut again = Fixture::new();
        again.catch_up(&by_entry);
        assert_eq!(again.content(&[BASIN]), by_entry.content(&[BASIN]));
        let mut again = Fixture::new();
        again.take_log(&by_entry);
        again.replay(step);
        assert_eq!(again.content(&[BASIN]), by_entry.content(&[BASIN]));
    }
}

#[test]
fn what_the_repository_retains_is_noted_with_the_position_and_only_of_this_history() {
    let mut partition = Fixture::new();
    partition.create("s");
    let note = |id: LineageId, lsn| {
        Kind::NoteArchived(NoteArchived {
            lineage: bytes(id),
            lsn,
        })
    };
    let archived = |partition: &Fixture| {
        let applied = partition.partition_db().applied().unwrap().unwrap();
        applied
            .archived
            .map(|archived| (archived.lsn, archived.noted_at))
    };
    assert_eq!(archived(&partition), None);
    partition.apply(note(first_lineage(), 1));
    assert_eq!(archived(&partition), Some((1, 2)));
    partition.create("t");
    assert_eq!(archived(&partition), Some((1, 2)), "others leave it");
    // Another history's, and one that is not there yet.
    partition.apply(note(LineageId(77), 2));
    partition.apply(note(first_lineage(), 1_000));
    assert_eq!(archived(&partition), Some((1, 2)));
    partition.apply(note(first_lineage(), 3));
    assert_eq!(archived(&partition), Some((3, 6)));
    partition.stop_and_open();
    partition.replay(4);
    assert_eq!(archived(&partition), Some((3, 6)));
    // After a fork, snapshots of the parent count up to where it branched off.
    let command = begin(&partition, 5);
    partition.apply(command);
    partition.apply(note(first_lineage(), 4));
    assert_eq!(archived(&partition), Some((4, 8)));
    partition.apply(note(first_lineage(), 7));
    assert_eq!(archived(&partition), Some((4, 8)));
    let checkpoint = partition.checkpoint();
    assert_eq!(archived(&partition.imported(&checkpoint)), Some((4, 8)));
}

#[test]
fn entries_that_were_proposed_before_a_fork_get_numbers_behind_its_gap_and_what_they_expect_holds()
{
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    let expecting = |stream, seq, text| {
        let mut append = append(stream, 2000, vec![rec(text)]);
        append.match_seq_num = Some(seq);
        append
    };
    partition.append(expecting(stream, 0, "committed")).unwrap();
    partition.fork_before(1);
    for (seq, text) in [(1, "a"), (2, "b")] {
        let appended = partition.append(expecting(stream, seq, text)).unwrap();
        assert_eq!(appended.start.seq_num, seq + GAP);
    }
    // What was refused is refused again.
    for seq in [0, 2, 4, 3 + GAP] {
        partition.append(expecting(stream, seq, "no")).unwrap_err();
    }
    // A start that was interrupted goes on in the same way.
    partition.flush();
    partition.open_behind_fork();
    let appended = partition.append(expecting(stream, 3, "c")).unwrap();
    assert_eq!(appended.start.seq_num, 3 + GAP);
    partition.reopen();
    let appended = partition.append(expecting(stream, 4 + GAP, "d")).unwrap();
    assert_eq!(appended.start.seq_num, 4 + GAP, "the fork counts once");
    assert_eq!(partition.texts("s"), ["committed", "a", "b", "c", "d"]);
}

#[test]
fn streams_of_entries_that_were_proposed_before_a_fork_have_the_ids_that_later_entries_name() {
    let mut partition = Fixture::new();
    let first = partition.create("first").0;
    partition.fork_before(1);
    let id = partition.create("created");
    assert_eq!(id.0, first + 1);
    let mut expecting = append(id, 2000, vec![rec("a")]);
    expecting.match_seq_num = Some(0);
    assert_eq!(partition.append(expecting).unwrap().start.seq_num, 0);
    partition.flush();
    partition.open_behind_fork();
    let mut expecting = append(id, 2000, vec![rec("b")]);
    expecting.match_seq_num = Some(1);
    assert_eq!(partition.append(expecting).unwrap().start.seq_num, 1);
    assert_eq!(partition.create("another").0, first + 2);
    partition.reopen();
    assert_eq!(partition.create("later").0, first + 3 + GAP);
    assert_eq!(partition.texts("created"), ["a", "b"]);
}
