//! Dropping a basin: its streams are refused from then on, and no others.

use esker_raft::StateMachine as _;

use super::fixture::*;
use crate::command::{AppendRefusal, Kind, Outcome, ProvisionRefusal, SettingsSet};
use crate::ids::{BasinId, StreamId};
use crate::reader::{ReadError, Reader};
use crate::settings::StreamSettings;

const OTHER: BasinId = BasinId(2);

/// Streams 1 and 2 in [`BASIN`], stream 3 with the name of stream 1 in [`OTHER`].
fn two_basins() -> Fixture {
    let mut partition = Fixture::new();
    for (basin, name) in [(BASIN, "s"), (BASIN, "t"), (OTHER, "s")] {
        let stream = partition.create_in(basin, name, keep_for_secs(1));
        partition.append(bodies(stream, 2000, ["a", "b"])).unwrap();
    }
    partition
}

fn is_there(reader: &Reader, basin: BasinId, name: &str) -> bool {
    reader.stream(basin, name).unwrap().is_some()
}

fn assert_dropped(partition: &mut Fixture) {
    let reader = partition.reader();
    assert!(!is_there(&reader, BASIN, "s"));
    assert!(!is_there(&reader, BASIN, "t"));
    assert_eq!(reader.list(BASIN, "", "", 10).unwrap(), []);
    let due = reader.due(StreamId(0), 10, u64::MAX).unwrap().due;
    assert_eq!(
        due.len(),
        1,
        "only the other basin's stream is looked after"
    );
    drop(reader);

    let refused = Outcome::StreamProvisioned(Err(ProvisionRefusal::BasinDropped));
    for name in ["s", "new"] {
        assert_eq!(
            partition.apply(create(BASIN, name, StreamSettings::default())),
            refused
        );
        assert_eq!(
            partition.apply(ensure(BASIN, name, StreamSettings::default(), 9000)),
            refused
        );
        assert_eq!(
            partition.apply(delete(BASIN, name)),
            Outcome::StreamDeleted(false)
        );
    }
    assert_eq!(
        partition.append(bodies(StreamId(1), 3000, ["x"])),
        Err(AppendRefusal::StreamGone)
    );
    let outcome = partition.apply(set_settings(StreamId(1), 1, keep_for_secs(7)));
    assert_eq!(settings_set(&outcome), SettingsSet::Gone);
    partition.apply(expire(StreamId(1), 1, 9000));
    assert_eq!(
        partition.apply(delete_if_empty(StreamId(1), 2000)),
        Outcome::StreamDeleted(false)
    );
}

#[test]
fn a_dropped_basin_is_refused_from_then_on_also_when_opened_again() {
    let mut partition = two_basins();
    assert_eq!(partition.apply(drop_basin(BASIN)), Outcome::BasinDropped);
    assert_dropped(&mut partition);
    partition.reopen();
    assert_dropped(&mut partition);
    // The same once the database has nothing of it left.
    for _ in 0..3 {
        partition.machine().maintain();
    }
    partition.reopen();
    assert_dropped(&mut partition);
}

#[test]
fn other_basins_are_untouched() {
    let mut partition = two_basins();
    let before = partition.content(&[OTHER]).streams;
    partition.apply(drop_basin(BASIN));
    assert_eq!(partition.content(&[OTHER]).streams, before);
    partition.append(bodies(StreamId(3), 3000, ["c"])).unwrap();
    partition.create_in(OTHER, "t", StreamSettings::default());
    partition.reopen();
    assert_eq!(partition.reader().list(OTHER, "", "", 10).unwrap().len(), 2);
}

#[test]
fn those_who_hold_a_stream_of_the_basin_learn_that_it_is_gone() {
    let mut partition = two_basins();
    let reader = partition.reader();
    let held = partition.stream("s");
    partition.apply(drop_basin(BASIN));
    assert!(held.view().gone);
    assert!(matches!(
        reader.scan(&held, 0, Default::default(), Default::default()),
        Err(ReadError::Gone)
    ));
}

#[test]
fn a_drop_holds_for_the_rest_of_its_step() {
    let mut partition = two_basins();
    let outcomes = partition.step(vec![
        Kind::Append(bodies(StreamId(1), 3000, ["before"])),
        create(BASIN, "u", StreamSettings::default()),
        drop_basin(BASIN),
        Kind::Append(bodies(StreamId(1), 3000, ["after"])),
        Kind::Append(bodies(StreamId(4), 3000, ["after"])),
        create(BASIN, "v", StreamSettings::default()),
        delete(BASIN, "t"),
        Kind::Append(bodies(StreamId(3), 3000, ["elsewhere"])),
    ]);
    assert!(appended(outcomes[0].clone()).is_ok());
    assert!(provisioned(outcomes[1].clone()).is_ok());
    assert_eq!(
        outcomes[3],
        Outcome::Appended(Err(AppendRefusal::StreamGone))
    );
    assert_eq!(
        outcomes[4],
        Outcome::Appended(Err(AppendRefusal::StreamGone))
    );
    assert_eq!(
        outcomes[5],
        Outcome::StreamProvisioned(Err(ProvisionRefusal::BasinDropped))
    );
    assert_eq!(outcomes[6], Outcome::StreamDeleted(false));
    assert!(appended(outcomes[7].clone()).is_ok());
    assert!(!is_there(&partition.reader(), BASIN, "u"));
    assert_dropped(&mut partition);
    partition.reopen();
    assert_dropped(&mut partition);
}

#[test]
fn a_basin_can_be_dropped_twice_or_before_it_had_a_stream() {
    let mut partition = two_basins();
    partition.step(vec![drop_basin(BASIN), drop_basin(BASIN)]);
    partition.apply(drop_basin(BASIN));
    partition.apply(drop_basin(BasinId(9)));
    assert_dropped(&mut partition);
    let outcome = partition.apply(create(BasinId(9), "s", StreamSettings::default()));
    assert_eq!(provisioned(outcome), Err(ProvisionRefusal::BasinDropped));
}
