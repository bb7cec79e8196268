//! A snapshot of a member replaces the state while it is read, and across crashes.

use std::sync::Arc;

use esker_raft::{
    Capture as _, Committed, Lsn, Membership, NodeId, StateMachine as _, StoredSnapshot, Term,
};
use s2_common::read_extent::{ReadLimit, ReadUntil};

use super::fixture::*;
use crate::checkpoint::Checkpoint;
use crate::ids::StreamId;
use crate::reader::{ReadError, ScanEnd};
use crate::state::tests::{key, write};
use crate::streams::StreamPartition;

/// The snapshot of a checkpoint, as the group's library hands it to another member.
fn snapshot_of(member: &mut Fixture) -> StoredSnapshot {
    let part = member.partition_db();
    part.begin_checkpoint().write().unwrap()
}

fn open_families(partition: &Fixture) -> Vec<String> {
    let files = partition.partition_db();
    let names = files.store().column_families_of(files.partition());
    names.into_iter().collect()
}

/// A leader that is ahead of a follower, with a stream that was appended to and trimmed, one that was
/// deleted and one that was created meanwhile; and where the streams are.
fn leader_and_follower() -> (Fixture, Fixture, [StreamId; 2]) {
    let mut leader = Fixture::with(eager());
    let (kept, deleted) = (leader.create("kept"), leader.create("deleted"));
    for at in 0..10 {
        leader.append(bodies(kept, 2_000 + at, ["a", "b"])).unwrap();
    }
    leader.append(bodies(deleted, 2_000, ["x"])).unwrap();
    let mut follower = Fixture::with(eager());
    follower.catch_up(&leader);
    for at in 0..10 {
        let body = format!("later {at}");
        leader
            .append(append(kept, 3_000 + at, vec![rec(body)]))
            .unwrap();
        leader.flush();
    }
    leader.append(append(kept, 4_000, vec![trim(12)])).unwrap();
    leader.delete("deleted");
    leader.create("created");
    let members = Membership {
        voters: vec![NodeId(7), NodeId(8)],
        voters_outgoing: vec![NodeId(7)],
        learners: vec![NodeId(9)],
        to_promote: vec![NodeId(9)],
        ..Membership::default()
    };
    let next = leader.applied() + 1;
    leader.apply_entries(&[Committed {
        lsn: Lsn(next),
        term: Term(1),
        command: None,
        membership: Some(Arc::new(members)),
        checksum: 0,
    }]);
    leader.maintain_all();
    (leader, follower, [kept, deleted])
}

#[test]
fn an_installed_snapshot_is_the_senders_state_and_what_follows_is_applied_to_it() {
    let (mut leader, mut follower, [kept, _]) = leader_and_follower();
    let snapshot = snapshot_of(&mut leader);
    follower.machine().restore(snapshot.clone()).unwrap();
    let basins = [BASIN];
    assert_eq!(follower.content(&basins), leader.content(&basins));
    assert_eq!(follower.machine().applied(), snapshot.last_included_index);
    assert_eq!(follower.machine().membership(), snapshot.peers);
    assert!(follower.machine().membership().is_joint());
    let digest = |of: &Fixture| of.partition_db().digest().unwrap();
    assert_eq!(digest(&follower), digest(&leader));

    leader.append(bodies(kept, 5_000, ["after"])).unwrap();
    follower.catch_up(&leader);
    assert_eq!(follower.content(&basins), leader.content(&basins));
    follower.maintain_all();
    follower.reopen();
    assert_eq!(follower.content(&basins), leader.content(&basins));
    assert_eq!(follower.machine().membership(), snapshot.peers);
    let checkpoint = follower.checkpoint();
    checkpoint.verify().unwrap();
    let mut elsewhere = follower.imported(&checkpoint);
    assert_eq!(elsewhere.content(&basins), leader.content(&basins));
    assert_eq!(elsewhere.machine().membership(), snapshot.peers);
    // The second one replaces the families of the first.
    leader.append(bodies(kept, 6_000, ["more"])).unwrap();
    let again = snapshot_of(&mut leader);
    follower.machine().restore(again).unwrap();
    assert_eq!(follower.content(&basins), leader.content(&basins));
    assert_eq!(
        open_families(&follower),
        ["partition-1.2", "partition-1.2-segments"]
    );
    follower.stop_and_open();
    assert_eq!(follower.content(&basins), leader.content(&basins));
}

#[test]
fn sessions_go_on_over_an_install_without_a_record_twice_or_in_another_order() {
    let (mut leader, mut follower, _) = leader_and_follower();
    let reader = follower.reader();
    let (kept, deleted) = (follower.stream("kept"), follower.stream("deleted"));
    let followers = [kept.follow(), deleted.follow()];
    // One session is behind what the leader has trimmed, one is at the tail, one is in the middle of a scan.
    let some = ReadLimit::from_count_and_bytes(Some(3), None);
    let first = |from: u64| {
        let found = reader.scan(&kept, from, some, ReadUntil::Unbounded);
        found.unwrap()
    };
    let (behind, at_tail) = (first(0), scan(&reader, &kept, 19));
    assert_eq!(seen_seqs(&behind), [0, 1, 2]);
    assert_eq!(seen_seqs(&at_tail), [19]);
    let mut place = crate::reader::Place::default();
    let before = reader
        .scan_on(&kept, 14, some, ReadUntil::Unbounded, &mut place)
        .map(|_| ());
    before.unwrap();

    let snapshot = snapshot_of(&mut leader);
    follower.machine().restore(snapshot).unwrap();

    let on = reader.scan_on(&kept, 17, some, ReadUntil::Unbounded, &mut place);
    assert_eq!(seen_seqs(&on.unwrap()), [17, 18, 19]);
    let next = reader.scan(&kept, behind.cursor(), some, ReadUntil::Unbounded);
    assert_eq!(seen_seqs(&next.unwrap()), [12, 13, 14], "what is left");
    let next = reader.scan(
        &kept,
        at_tail.cursor(),
        ReadLimit::Unbounded,
        ReadUntil::Unbounded,
    );
    let next = next.unwrap();
    let expected: Vec<_> = (20..=30).collect();
    assert_eq!(seen_seqs(&next), expected);
    assert_eq!(next.end, ScanEnd::Tail(leader.stream("kept").tail()));
    let gone = reader.scan(&deleted, 0, some, ReadUntil::Unbounded);
    assert!(matches!(gone, Err(ReadError::Gone)));
    drop(followers);
    // The stream of before the install is the one that later appends are published to.
    assert!(Arc::ptr_eq(&kept, &follower.stream("kept")));
}

#[test]
fn a_view_from_before_an_install_stays_whole_until_it_is_dropped() {
    let mut leader = Fixture::new();
    leader.commit(vec![write(&key("k"), "{}")]);
    let mut follower = Fixture::new();
    follower.catch_up(&leader);
    for n in 0..5 {
        leader.commit(vec![write(&key("k"), &format!("{{\"n\":{n}}}"))]);
        leader.flush();
    }
    let snapshot = snapshot_of(&mut leader);
    let (state, part) = (follower.state_reader(), follower.partition_db());
    let (before, old) = (part.digest().unwrap(), part.pinned());
    let machine = std::cell::RefCell::new(&mut follower);
    state
        .view(|view| {
            let digest = view.digest()?;
            machine
                .borrow_mut()
                .machine()
                .restore(snapshot.clone())
                .unwrap();
            assert_eq!(view.digest()?, digest);
            assert_eq!(view.meta.commit_ts, 1);
            Ok(())
        })
        .unwrap();
    assert_eq!(state.meta().commit_ts, 6);
    assert_eq!(*state.newest().borrow(), 6);
    assert_eq!(old.digest().unwrap(), before);
    let names = |follower: &Fixture| open_families(follower);
    assert!(names(&follower).contains(&"partition-1".to_owned()));
    drop(old);
    assert_eq!(
        names(&follower),
        ["partition-1.1", "partition-1.1-segments"]
    );
}

#[test]
fn a_crash_in_an_install_leaves_the_old_state_or_the_new_one() {
    let (mut leader, mut follower, [kept, _]) = leader_and_follower();
    let snapshot = snapshot_of(&mut leader);
    let basins = [BASIN];
    follower.flush();
    let before = follower.content(&basins);
    let part = follower.partition_db();

    // The segments are imported, the rows are not.
    let dir = match &snapshot.data {
        esker_raft::SnapshotData::Files(dir) => dir.path.clone(),
        esker_raft::SnapshotData::Bytes(_) => unreachable!(),
    };
    let checkpoint = Checkpoint::open(&dir).unwrap();
    let next = part.import_snapshot(&snapshot).unwrap();
    let rows = next.part().families().rows.clone();
    let both = follower.crashed_copy();
    assert_eq!(both.content(&basins), leader.content(&basins), "imported");
    assert_eq!(open_families(&both).len(), 2, "the old ones are removed");
    part.store().db().drop_cf(&rows).unwrap();
    let half = follower.crashed_copy();
    assert_eq!(half.content(&basins), before, "without rows");
    assert_eq!(
        open_families(&half),
        ["partition-1", "partition-1-segments"]
    );
    // It was not installed, so nothing of it is left, and it can be imported again.
    drop(next);
    assert_eq!(open_families(&follower).len(), 2);
    assert_eq!(follower.content(&basins), before);
    follower.machine().restore(snapshot.clone()).unwrap();
    assert_eq!(follower.content(&basins), leader.content(&basins));
    let after = follower.crashed_copy();
    assert_eq!(after.content(&basins), leader.content(&basins), "switched");
    checkpoint.verify().unwrap();
    // What was applied after it and not flushed is replayed on it.
    leader.append(bodies(kept, 7_000, ["later"])).unwrap();
    follower.catch_up(&leader);
    let mut crashed = follower.crashed_copy();
    assert_eq!(crashed.applied(), snapshot.last_included_index.0);
    crashed.replay(1);
    assert_eq!(crashed.content(&basins), leader.content(&basins));
}

#[test]
fn a_kill_at_any_step_of_an_import_leaves_the_state_before_it_or_the_new_one() {
    let (mut leader, follower, _) = leader_and_follower();
    let snapshot = snapshot_of(&mut leader);
    let basins = [BASIN];
    follower.flush();
    let before = follower.content(&basins);
    let part = follower.partition_db();
    let db = part.store().db();
    let is_before = |follower: &Fixture, step: &str| {
        let copy = follower.crashed_copy();
        assert_eq!(copy.content(&basins), before, "{step}");
        let left = open_families(&copy);
        assert_eq!(left, ["partition-1", "partition-1-segments"], "{step}");
        // What is dropped at one open is not missed by the next.
        let again = copy.crashed_copy();
        assert_eq!(again.content(&basins), before, "{step}, opened again");
    };
    let no_options = rust_rocksdb::Options::default;

    // RocksDB creates a family, empty, before it links files and records them.
    db.create_cf("partition-1.1-segments", &no_options())
        .unwrap();
    is_before(&follower, "segments are created");
    db.create_cf("partition-1.1", &no_options()).unwrap();
    is_before(&follower, "both are created");
    db.drop_cf("partition-1.1").unwrap();
    db.drop_cf("partition-1.1-segments").unwrap();

    let next = part.import_snapshot(&snapshot).unwrap();
    let imported = open_families(&follower);
    assert_eq!(imported.len(), 4, "{imported:?}");
    db.drop_cf("partition-1.1").unwrap();
    is_before(&follower, "segments are imported");
    db.create_cf("partition-1.1", &no_options()).unwrap();
    is_before(&follower, "segments are imported, rows are created");
    let esker_raft::SnapshotData::Files(dir) = &snapshot.data else {
        unreachable!()
    };
    // Names that RocksDB has not used yet. It removes tables that no record has.
    for (number, file) in std::fs::read_dir(&dir.path).unwrap().enumerate() {
        let (from, name) = (file.unwrap().path(), format!("{:06}.sst", 900_000 + number));
        if from.extension().is_some_and(|end| end == "sst") {
            std::fs::hard_link(from, part.store().path().join(name)).unwrap();
        }
    }
    is_before(&follower, "files of the rows are linked");
    drop(next);
    assert_eq!(open_families(&follower).len(), 2);

    let next = part.import_snapshot(&snapshot).unwrap();
    let is_after = |follower: &Fixture, step: &str| {
        let copy = follower.crashed_copy();
        assert_eq!(copy.content(&basins), leader.content(&basins), "{step}");
        let left = open_families(&copy);
        assert_eq!(left, ["partition-1.1", "partition-1.1-segments"], "{step}");
    };
    is_after(&follower, "rows are recorded");
    // Another import is killed before the first one's predecessor is removed.
    db.create_cf("partition-1.2", &no_options()).unwrap();
    is_after(
        &follower,
        "rows are recorded, and the next ones are created",
    );
    db.drop_cf("partition-1.2").unwrap();
    part.switch_to(&next);
    is_after(&follower, "switched");
    // What was replaced is removed in two steps.
    db.create_cf("partition-1-segments", &no_options()).unwrap();
    is_after(&follower, "the rows before are removed");
}

#[test]
fn what_an_install_could_not_remove_does_not_hinder_the_next_one() {
    let (mut leader, mut follower, _) = leader_and_follower();
    let snapshot = snapshot_of(&mut leader);
    let part = follower.partition_db();
    for name in ["partition-1.1", "partition-1.2-segments", "partition-1.2"] {
        let options = rust_rocksdb::Options::default();
        part.store().db().create_cf(name, &options).unwrap();
    }
    follower.machine().restore(snapshot).unwrap();
    let basins = [BASIN];
    assert_eq!(follower.content(&basins), leader.content(&basins));
    let copy = follower.crashed_copy();
    assert_eq!(copy.content(&basins), leader.content(&basins));
}

#[test]
fn a_snapshot_that_is_not_what_was_offered_changes_nothing() {
    let (mut leader, mut follower, _) = leader_and_follower();
    let snapshot = snapshot_of(&mut leader);
    let basins = [BASIN];
    let before = follower.content(&basins);
    let refused = |wrong: StoredSnapshot, by: &str, follower: &mut Fixture| {
        let why = follower.machine().restore(wrong).unwrap_err().0;
        assert!(why.contains(by), "{why}");
        assert_eq!(follower.content(&basins), before);
        assert_eq!(open_families(follower).len(), 2);
    };
    let mut wrong = snapshot.clone();
    wrong.last_included_index = Lsn(snapshot.last_included_index.0 + 1);
    refused(wrong, "was offered as", &mut follower);
    let mut wrong = snapshot.clone();
    wrong.peers.voters.pop();
    refused(wrong, "other members", &mut follower);
    let mut wrong = snapshot.clone();
    wrong.data = esker_raft::SnapshotData::Bytes(vec![1]);
    refused(wrong, "no files", &mut follower);
    // Another cluster's, another group's, one that is damaged, and one that lacks a file.
    let mut other = Fixture::of_cluster("another cluster");
    other.create("s");
    refused(snapshot_of(&mut other), "another cluster", &mut follower);
    let mut other = Fixture::new();
    other.create("s");
    other.fork(9);
    other.create("t");
    refused(snapshot_of(&mut other), "of the group", &mut follower);
    let esker_raft::SnapshotData::Files(dir) = &snapshot.data else {
        unreachable!()
    };
    let dir = dir.path.clone();
    let file = std::fs::read_dir(&dir)
        .unwrap()
        .map(|file| file.unwrap().path())
        .find(|path| path.extension().is_some_and(|end| end == "sst"))
        .unwrap();
    let mut damaged = std::fs::read(&file).unwrap();
    damaged[10] ^= 1;
    // It is a link to a file of the leader's database, which is not changed.
    std::fs::remove_file(&file).unwrap();
    std::fs::write(&file, damaged).unwrap();
    refused(snapshot.clone(), "the checksum of", &mut follower);
    std::fs::remove_file(&file).unwrap();
    refused(snapshot, "missing", &mut follower);
    let _: &mut StreamPartition = follower.machine();
}
