//! Forks, lineages that begin in the log, and snapshots that replace the catalog.

use super::*;
use crate::ids::LineageId;

#[test]
fn ids_of_basins_are_not_given_out_again_after_a_fork() {
    let mut fixture = Fixture::new();
    let Outcome::BasinProvisioned(Ok(before)) = fixture.apply(create("before")) else {
        panic!("it was not created");
    };
    let part = fixture.reader().partition_db().clone();
    let lineage = part.lineage().unwrap();
    part.fork(&lineage.fork(LineageId(5), 1), &[7]).unwrap();
    drop(part);
    fixture.stop_and_open();
    let Outcome::BasinProvisioned(Ok(after)) = fixture.apply(create("after")) else {
        panic!("it was not created");
    };
    assert_eq!(after.id.0, before.id.0 + 1 + GAP);
}

#[test]
fn a_basin_that_is_gone_is_remembered_for_partitions_that_are_restored() {
    let mut fixture = Fixture::new();
    let Outcome::BasinProvisioned(Ok(made)) = fixture.apply(create("gone")) else {
        panic!("it was not created");
    };
    fixture.apply(delete("gone", 2000));
    assert!(fixture.reader().forgotten().unwrap().is_empty());
    fixture.apply(Kind::ForgetBasin(ForgetBasin { basin: made.id.0 }));
    fixture.reopen();
    assert_eq!(fixture.reader().forgotten().unwrap(), [made.id]);
}

#[test]
fn an_entry_that_begins_a_lineage_has_the_effects_of_a_fork_on_the_catalog() {
    let bytes = |id: LineageId| id.0.to_be_bytes().to_vec();
    let mut fixture = Fixture::new();
    let Outcome::BasinProvisioned(Ok(before)) = fixture.apply(create("before")) else {
        panic!("it was not created");
    };
    fixture.apply(tokens::issue("token", 1, None, 1_000, 0));
    let present = bytes(fixture.reader().partition_db().lineage().unwrap().id());
    let begin = Kind::BeginLineage(crate::lineage::BeginLineage {
        id: bytes(LineageId(5)),
        parent: present.clone(),
        present,
        skipped: 0,
        between: Vec::new(),
    });
    // It stands alone, whatever is applied with it.
    let outcomes = fixture.step(vec![
        create("with it"),
        begin.clone(),
        create("after"),
        begin,
        delete("before", 2_000),
    ]);
    let Outcome::BasinProvisioned(Ok(after)) = outcomes[2] else {
        panic!("it was not created");
    };
    assert_eq!(after.id.0, before.id.0 + 2 + GAP);
    assert_eq!(outcomes[1], Outcome::LineageBegun(true));
    assert_eq!(outcomes[3], Outcome::LineageBegun(false));
    for reopened in [false, true] {
        if reopened {
            fixture.stop_and_open();
            fixture.replay(1);
        }
        assert_eq!(fixture.reader().forks(), 1);
        assert_eq!(fixture.reader().count_tokens(), (1, 1), "it is suspended");
        let lineage = fixture.reader().partition_db().lineage().unwrap();
        assert_eq!((lineage.id(), lineage.forks), (LineageId(5), 1));
        assert_eq!(fixture.reader().basin("after").unwrap().id, after.id);
    }
    let confirm = Kind::ConfirmTokens(crate::command::ConfirmTokens { forks: 1 });
    assert_eq!(fixture.apply(confirm), Outcome::TokensConfirmed(1));
}

#[test]
fn an_installed_snapshot_replaces_the_catalog_for_its_readers_and_stays() {
    use esker_raft::Capture as _;
    let mut leader = Fixture::new();
    leader.apply(create("both"));
    leader.apply(create("gone"));
    let mut follower = Fixture::new();
    follower.log = leader.log.clone();
    follower.replay(1);
    let reader = follower.reader();
    leader.apply(delete("gone", 2_000));
    leader.apply(create("later"));
    leader.apply(tokens::issue("token", 1, None, 1_000, 0));
    let snapshot = leader.catalog().begin_snapshot().write().unwrap();
    let mut wrong = snapshot.clone();
    wrong.last_included_index = Lsn(99);
    assert!(follower.catalog().restore(wrong).is_err());
    assert!(reader.basin("later").is_none(), "nothing has changed");
    follower.catalog().restore(snapshot.clone()).unwrap();
    assert_eq!(follower.catalog().applied(), snapshot.last_included_index);
    // The reader of before sees it.
    assert!(reader.basin("later").is_some());
    assert!(reader.basin("gone").unwrap().deleted_ms.is_some());
    assert_eq!(reader.count_tokens(), (1, 0));
    drop(reader);
    assert_eq!(follower.content(), leader.content());
    leader.apply(create("after"));
    follower.log = leader.log.clone();
    follower.replay(1);
    follower.stop_and_open();
    assert_eq!(follower.catalog().applied(), snapshot.last_included_index);
    follower.replay(1);
    assert_eq!(follower.content(), leader.content());
}
