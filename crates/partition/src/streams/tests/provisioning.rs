//! Creating, ensuring, configuring and deleting streams.

use super::fixture::*;
use crate::command::{
    AppendRefusal, Change, Kind, Mode, Outcome, ProvisionRefusal, ProvisionStream, Provisioned,
    SettingsSet,
};
use crate::ids::{BasinId, StreamId};
use crate::settings::StreamSettings;

fn create_with_hash(name: &str, hash: &[u8], at_ms: u64) -> Kind {
    Kind::ProvisionStream(ProvisionStream {
        basin: BASIN.0,
        name: name.to_owned(),
        settings: keep_for_secs(60),
        mode: Mode::CreateOnly.into(),
        request_hash: hash.to_vec(),
        cipher: 0,
        at_ms,
    })
}

fn outcome(change: Change, id: u64, created_ms: u64) -> Outcome {
    Outcome::StreamProvisioned(Ok(Provisioned {
        change,
        id: StreamId(id),
        created_ms,
        cipher: None,
    }))
}

const EXISTS: Outcome = Outcome::StreamProvisioned(Err(ProvisionRefusal::Exists));

/// Applies commands in one step, and, in a second partition, each in a step of its own. The outcomes and
/// the contents must be the same. Returns the outcomes and the partition.
fn in_one_step_or_many(commands: Vec<Kind>) -> (Vec<Outcome>, Fixture) {
    let mut together = Fixture::new();
    let mut apart = Fixture::new();
    let outcomes = together.step(commands.clone());
    let one_by_one: Vec<Outcome> = commands.into_iter().map(|c| apart.apply(c)).collect();
    assert_eq!(outcomes, one_by_one);
    assert_eq!(together.content(&[BASIN]), apart.content(&[BASIN]));
    together.reopen();
    assert_eq!(together.content(&[BASIN]), apart.content(&[BASIN]));
    (outcomes, together)
}

#[test]
fn create_only_refuses_a_name_that_is_taken() {
    let (outcomes, partition) = in_one_step_or_many(vec![
        create(BASIN, "s", keep_for_secs(60)),
        create(BASIN, "s", keep_for_secs(60)),
        create(BASIN, "t", StreamSettings::default()),
        create(BasinId(2), "s", StreamSettings::default()),
    ]);
    assert_eq!(
        outcomes,
        [
            outcome(Change::Created, 1, CREATED_MS),
            EXISTS,
            outcome(Change::Created, 2, CREATED_MS),
            outcome(Change::Created, 3, CREATED_MS),
        ]
    );
    assert_eq!(partition.stream("s").id, StreamId(1));
    let other = partition.reader().stream(BasinId(2), "s").unwrap().unwrap();
    assert_eq!(other.id, StreamId(3));
}

#[test]
fn the_same_request_may_create_again_and_another_may_not() {
    let (outcomes, _) = in_one_step_or_many(vec![
        create_with_hash("s", b"one", 10),
        create_with_hash("s", b"one", 20),
        create_with_hash("s", b"two", 30),
        create_with_hash("s", b"", 40),
        create_with_hash("s", b"one", 50),
        create_with_hash("unnamed", b"", 60),
        create_with_hash("unnamed", b"", 70),
    ]);
    assert_eq!(
        outcomes,
        [
            outcome(Change::Created, 1, 10),
            outcome(Change::Nothing, 1, 10),
            EXISTS,
            EXISTS,
            outcome(Change::Nothing, 1, 10),
            outcome(Change::Created, 2, 60),
            EXISTS,
        ]
    );
}

#[test]
fn the_request_that_created_is_known_after_changes_and_a_reopening() {
    let mut partition = Fixture::new();
    partition.apply(create_with_hash("s", b"one", 10));
    partition.apply(ensure(BASIN, "s", keep_for_secs(90), 20));
    partition.reopen();
    assert_eq!(
        partition.apply(create_with_hash("s", b"one", 30)),
        outcome(Change::Nothing, 1, 10)
    );
    assert_eq!(partition.apply(create_with_hash("s", b"two", 30)), EXISTS);
    // A new stream of the name does not belong to that request.
    partition.delete("s");
    assert_eq!(
        partition.apply(create_with_hash("s", b"two", 40)),
        outcome(Change::Created, 2, 40)
    );
    assert_eq!(partition.apply(create_with_hash("s", b"one", 50)), EXISTS);
}

#[test]
fn ensure_creates_updates_or_does_nothing() {
    let (outcomes, partition) = in_one_step_or_many(vec![
        ensure(BASIN, "s", keep_for_secs(60), 10),
        ensure(BASIN, "s", keep_for_secs(60), 20),
        ensure(BASIN, "s", keep_for_secs(90), 30),
        ensure(BASIN, "s", keep_for_secs(90), 40),
        ensure(BASIN, "s", keep_for_secs(60), 50),
    ]);
    assert_eq!(
        outcomes,
        [
            outcome(Change::Created, 1, 10),
            outcome(Change::Nothing, 1, 10),
            outcome(Change::Updated, 1, 10),
            outcome(Change::Nothing, 1, 10),
            outcome(Change::Updated, 1, 10),
        ]
    );
    let view = partition.stream("s").view();
    assert_eq!(view.settings_version, 3);
    assert_eq!(*view.config, (&keep_for_secs(60)).into());
}

#[test]
fn settings_are_set_only_on_the_version_that_was_read() {
    let (outcomes, partition) = in_one_step_or_many(vec![
        create(BASIN, "s", StreamSettings::default()),
        set_settings(StreamId(1), 0, keep_for_secs(1)),
        set_settings(StreamId(1), 1, keep_for_secs(2)),
        set_settings(StreamId(1), 1, keep_for_secs(3)),
        set_settings(StreamId(1), 2, keep_for_secs(4)),
        ensure(BASIN, "s", keep_for_secs(5), 10),
        set_settings(StreamId(1), 3, keep_for_secs(6)),
        set_settings(StreamId(9), 1, keep_for_secs(7)),
    ]);
    let outcomes: Vec<_> = [1, 2, 3, 4, 6, 7]
        .map(|i| settings_set(&outcomes[i]))
        .into();
    assert_eq!(
        outcomes,
        [
            SettingsSet::Conflict,
            SettingsSet::Done,
            SettingsSet::Conflict,
            SettingsSet::Done,
            SettingsSet::Conflict,
            SettingsSet::Gone,
        ]
    );
    let view = partition.stream("s").view();
    assert_eq!(view.settings_version, 4);
    assert_eq!(*view.config, (&keep_for_secs(5)).into());
}

#[test]
fn settings_do_not_touch_the_records() {
    let mut partition = Fixture::new();
    let stream = partition.create("s");
    partition
        .append(append(stream, 2000, vec![rec("a"), fence("t")]))
        .unwrap();
    partition.apply(set_settings(stream, 1, keep_for_secs(60)));
    partition.apply(ensure(BASIN, "s", keep_for_secs(90), 10));
    assert_eq!(partition.texts("s"), ["a", "fence:t"]);
    assert_eq!(partition.state("s").fencing_token, "t");
    assert_eq!(partition.state("s").tail_seq, 2);
}

#[test]
fn a_recreated_stream_has_a_new_id_and_nothing_of_the_old_one() {
    let (outcomes, mut partition) = in_one_step_or_many(vec![
        create(BASIN, "s", keep_for_secs(60)),
        Kind::Append(append(
            StreamId(1),
            2000,
            vec![rec("old"), fence("t"), trim(1)],
        )),
        delete(BASIN, "s"),
        Kind::Append(bodies(StreamId(1), 2000, ["late"])),
        create(BASIN, "s", StreamSettings::default()),
        Kind::Append(bodies(StreamId(1), 2000, ["later"])),
        Kind::Append(bodies(StreamId(2), 1500, ["new"])),
    ]);
    assert_eq!(outcomes[2], Outcome::StreamDeleted(true));
    assert_eq!(
        outcomes[3],
        Outcome::Appended(Err(AppendRefusal::StreamGone))
    );
    assert_eq!(outcomes[4], outcome(Change::Created, 2, CREATED_MS));
    assert_eq!(
        outcomes[5],
        Outcome::Appended(Err(AppendRefusal::StreamGone))
    );
    assert_eq!(
        appended(outcomes[6].clone()).unwrap().start,
        position(0, 1500)
    );

    assert_eq!(partition.texts("s"), ["new"]);
    let state = partition.state("s");
    assert_eq!((state.trim_point, &state.fencing_token[..]), (0, ""));
    assert_eq!(partition.stream("s").view().settings_version, 1);
    // Ids continue from there, whatever was deleted.
    partition.delete("s");
    partition.reopen();
    assert_eq!(partition.create("s"), StreamId(3));
}

#[test]
fn deleting_what_is_not_there_says_so() {
    let (outcomes, partition) = in_one_step_or_many(vec![
        delete(BASIN, "s"),
        create(BASIN, "s", StreamSettings::default()),
        delete(BasinId(2), "s"),
        delete(BASIN, "s"),
        delete(BASIN, "s"),
    ]);
    let deleted = [0, 2, 3, 4].map(|i| outcomes[i].clone());
    assert_eq!(
        deleted,
        [false, false, true, false].map(Outcome::StreamDeleted)
    );
    assert!(partition.reader().stream(BASIN, "s").unwrap().is_none());
}

#[test]
fn a_name_taken_and_given_many_times_in_one_step_ends_with_the_last() {
    let (_, partition) = in_one_step_or_many(vec![
        create(BASIN, "s", StreamSettings::default()),
        delete(BASIN, "s"),
        ensure(BASIN, "s", keep_for_secs(5), 20),
        Kind::Append(bodies(StreamId(2), 2000, ["second"])),
        delete(BASIN, "s"),
        create(BASIN, "s", StreamSettings::default()),
        ensure(BASIN, "s", keep_for_secs(6), 30),
        Kind::Append(bodies(StreamId(3), 2000, ["third"])),
    ]);
    assert_eq!(partition.stream("s").id, StreamId(3));
    assert_eq!(partition.texts("s"), ["third"]);
    assert_eq!(
        *partition.stream("s").view().config,
        (&keep_for_secs(6)).into()
    );
}

#[test]
fn a_stream_created_and_deleted_in_one_step_was_never_seen() {
    let (_, mut partition) = in_one_step_or_many(vec![
        create(BASIN, "s", StreamSettings::default()),
        Kind::Append(bodies(StreamId(1), 2000, ["x"])),
        delete(BASIN, "s"),
    ]);
    assert!(partition.reader().stream(BASIN, "s").unwrap().is_none());
    assert_eq!(partition.content(&[BASIN]).streams.len(), 0);
    assert_eq!(partition.create("s"), StreamId(2));
}

#[test]
fn names_are_kept_as_they_are() {
    let mut partition = Fixture::new();
    let long = "x".repeat(512);
    for name in ["a/b//c", "名前 😀?#%20", "A", "a", ".hidden", &long] {
        let id = partition.create(name);
        assert_eq!(partition.stream(name).id, id);
        assert_eq!(partition.stream(name).name, name);
    }
    partition.reopen();
    assert_eq!(partition.reader().list(BASIN, "", "", 10).unwrap().len(), 6);
}
