//! The promises of the catalog.

mod forks;
mod issuers;
mod nodes;
mod tokens;

use bytes::Bytes;
use esker_raft::{ApplyError, Committed, Lsn, Membership, NodeId, StateMachine as _, Term};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;
use crate::command::{DeleteBasin, ForgetBasin, SetBasinSettings};
use crate::random_cases::cases;
use crate::store::{ClusterInit, StoreOptions};

struct Fixture {
    directory: TempDir,
    /// `None` only while it is being reopened.
    open: Option<(Store, Catalog)>,
    log: Vec<Committed>,
}

/// A basin as readers see it.
type Seen = (u64, String, BasinConfig, u64, u64, Option<u64>);

impl Fixture {
    fn new() -> Fixture {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::create(
            directory.path(),
            &StoreOptions::default(),
            &ClusterInit {
                partitions: 1,
                voters: vec![7],
                cluster_id: "a cluster".to_owned(),
            },
        )
        .unwrap();
        let catalog = Catalog::open(&store).unwrap();
        Fixture {
            directory,
            open: Some((store, catalog)),
            log: Vec::new(),
        }
    }

    fn catalog(&mut self) -> &mut Catalog {
        &mut self.open.as_mut().unwrap().1
    }

    fn reader(&self) -> CatalogReader {
        self.open.as_ref().unwrap().1.reader()
    }

    fn flush(&self) {
        self.open.as_ref().unwrap().1.part.flush().unwrap();
    }

    fn reopen(&mut self) {
        self.flush();
        self.stop_and_open();
    }

    /// Stops the catalog and opens it again, without the writes that were not flushed.
    fn stop_and_open(&mut self) {
        let (store, catalog) = self.open.take().unwrap();
        drop(catalog);
        store.close();
        drop(store);
        let store = Store::open(self.directory.path(), &StoreOptions::default(), 1).unwrap();
        let catalog = Catalog::open(&store).unwrap();
        self.open = Some((store, catalog));
    }

    fn try_bytes(&mut self, commands: Vec<Bytes>) -> Result<Vec<Outcome>, ApplyError> {
        let next = self.log.len() as u64 + 1;
        let entries: Vec<Committed> = (next..)
            .zip(commands)
            .map(|(lsn, command)| Committed {
                lsn: Lsn(lsn),
                term: Term(1),
                command: Some(command),
                membership: None,
                checksum: 0,
            })
            .collect();
        let mut outcomes = Vec::new();
        self.catalog().apply(&entries, &mut outcomes)?;
        assert_eq!(
            outcomes.len(),
            entries.len(),
            "one outcome for each command"
        );
        self.log.extend(entries);
        Ok(outcomes)
    }

    fn step(&mut self, commands: Vec<Kind>) -> Vec<Outcome> {
        self.try_bytes(commands.into_iter().map(bytes_of).collect())
            .unwrap()
    }

    fn apply(&mut self, command: Kind) -> Outcome {
        self.step(vec![command]).remove(0)
    }

    /// Applies the log from where the database ends, in steps of `step` entries.
    fn replay(&mut self, step: usize) {
        let applied = self.catalog().applied().0 as usize;
        let rest = self.log[applied..].to_vec();
        for entries in rest.chunks(step) {
            self.catalog().apply(entries, &mut Vec::new()).unwrap();
        }
    }

    fn create(&mut self, name: &str) -> BasinId {
        provisioned(self.apply(create(name))).unwrap().id
    }

    fn content(&self) -> Vec<Seen> {
        let all = self.reader().list("", "", usize::MAX);
        all.iter().map(|basin| seen(basin)).collect()
    }
}

fn seen(basin: &Basin) -> Seen {
    (
        basin.id.0,
        basin.name.clone(),
        basin.config.clone(),
        basin.settings_version,
        basin.created_ms,
        basin.deleted_ms,
    )
}

fn bytes_of(command: Kind) -> Bytes {
    command.into_bytes().into()
}

fn settings(create_stream_on_append: bool) -> BasinSettings {
    BasinSettings {
        create_stream_on_append,
        ..BasinSettings::default()
    }
}

fn provision(name: &str, mode: Mode, settings: BasinSettings, hash: &[u8], at_ms: u64) -> Kind {
    Kind::ProvisionBasin(ProvisionBasin {
        name: name.to_owned(),
        settings,
        mode: mode.into(),
        request_hash: hash.to_vec(),
        at_ms,
        id: 0,
    })
}

fn create(name: &str) -> Kind {
    provision(name, Mode::CreateOnly, settings(false), b"", 1_000)
}

fn ensure(name: &str, settings: BasinSettings) -> Kind {
    provision(name, Mode::Ensure, settings, b"", 2_000)
}

fn set(name: &str, if_version: u64, settings: BasinSettings) -> Kind {
    Kind::SetBasinSettings(SetBasinSettings {
        name: name.to_owned(),
        if_version,
        settings,
    })
}

fn delete(name: &str, at_ms: u64) -> Kind {
    Kind::DeleteBasin(DeleteBasin {
        name: name.to_owned(),
        at_ms,
    })
}

fn forget(basin: u64) -> Kind {
    Kind::ForgetBasin(ForgetBasin { basin })
}

fn provisioned(outcome: Outcome) -> Result<Provisioned<BasinId>, ProvisionRefusal> {
    match outcome {
        Outcome::BasinProvisioned(result) => result,
        other => panic!("not the outcome of provisioning a basin: {other:?}"),
    }
}

fn outcome(change: Change, id: u64, created_ms: u64) -> Outcome {
    Outcome::BasinProvisioned(Ok(Provisioned {
        change,
        id: BasinId(id),
        created_ms,
        cipher: None,
    }))
}

fn again(name: &str, id: u64) -> Kind {
    match ensure(name, settings(false)) {
        Kind::ProvisionBasin(provision) => Kind::ProvisionBasin(ProvisionBasin { id, ..provision }),
        other => other,
    }
}

#[test]
fn a_basin_is_made_again_under_an_id_that_nobody_else_has_or_had() {
    let mut fixture = Fixture::new();
    let first = fixture.create("first-basin").0;
    let gone = fixture.create("gone-basin").0;
    fixture.step(vec![delete("gone-basin", 5), forget(gone)]);
    // The same holds within the step that assigns the id.
    let late = gone + 100;
    let (made, taken) = (again("late-basin", late), again("thief-basin", late));
    let outcomes = fixture.step(vec![made.clone(), taken, made, again("late-basin", first)]);
    let [created, exists, same, other] = outcomes.try_into().unwrap();
    assert_eq!(created, outcome(Change::Created, late, 2_000));
    assert_eq!((exists, other), (EXISTS, EXISTS));
    assert_eq!(same, outcome(Change::Nothing, late, 2_000));
    fixture.reopen();
    assert_eq!(fixture.apply(again("back-basin", gone)), DROPPED);
    for id in [first, late, u64::MAX] {
        assert_eq!(fixture.apply(again("back-basin", id)), EXISTS, "{id}");
    }
    // The next basin has an id of its own.
    assert_eq!(fixture.create("next-basin").0, late + 1);
}

const EXISTS: Outcome = Outcome::BasinProvisioned(Err(ProvisionRefusal::Exists));
const DROPPED: Outcome = Outcome::BasinProvisioned(Err(ProvisionRefusal::BasinDropped));
const DONE: Outcome = Outcome::SettingsSet(SettingsSet::Done);
const CONFLICT: Outcome = Outcome::SettingsSet(SettingsSet::Conflict);
const GONE: Outcome = Outcome::SettingsSet(SettingsSet::Gone);

/// Applies commands in one step, and, in a second catalog, each in a step of its own. The outcomes and
/// the contents must be the same.
fn in_one_step_or_many(commands: Vec<Kind>) -> (Vec<Outcome>, Fixture) {
    let mut together = Fixture::new();
    let mut apart = Fixture::new();
    let outcomes = together.step(commands.clone());
    let one_by_one: Vec<Outcome> = commands.into_iter().map(|c| apart.apply(c)).collect();
    assert_eq!(outcomes, one_by_one);
    assert_eq!(together.content(), apart.content());
    together.reopen();
    assert_eq!(together.content(), apart.content());
    (outcomes, together)
}

#[test]
fn the_catalog_keeps_the_membership_of_the_applied_entries() {
    let mut fixture = Fixture::new();
    let membership = Membership {
        voters: vec![NodeId(7), NodeId(8)],
        voters_outgoing: vec![NodeId(7)],
        ..Membership::default()
    };
    let entry = Committed {
        lsn: Lsn(1),
        term: Term(1),
        command: None,
        membership: Some(Arc::new(membership.clone())),
        checksum: 0,
    };
    fixture.catalog().apply(&[entry], &mut Vec::new()).unwrap();
    fixture.reopen();
    assert_eq!(fixture.catalog().membership(), membership);
}

#[test]
fn create_only_refuses_a_name_that_is_taken_but_for_the_request_that_took_it() {
    let by =
        |hash: &[u8], at_ms| provision("basin-a", Mode::CreateOnly, settings(true), hash, at_ms);
    let (outcomes, mut catalog) = in_one_step_or_many(vec![
        by(b"one", 10),
        by(b"one", 20),
        by(b"two", 30),
        by(b"", 40),
        create("basin-b"),
        create("basin-b"),
    ]);
    let expected = [
        outcome(Change::Created, 1, 10),
        outcome(Change::Nothing, 1, 10),
        EXISTS,
        EXISTS,
        outcome(Change::Created, 2, 1_000),
        EXISTS,
    ];
    assert_eq!(outcomes, expected);
    // The same after the catalog was opened again, and with other settings.
    catalog.apply(ensure("basin-a", settings(false)));
    catalog.reopen();
    assert_eq!(
        catalog.apply(by(b"one", 50)),
        outcome(Change::Nothing, 1, 10)
    );
    assert_eq!(catalog.apply(by(b"two", 50)), EXISTS);
}

#[test]
fn ensure_creates_updates_or_does_nothing() {
    let (outcomes, catalog) = in_one_step_or_many(vec![
        ensure("basin-a", settings(false)),
        ensure("basin-a", settings(false)),
        ensure("basin-a", settings(true)),
        ensure("basin-a", settings(true)),
    ]);
    let changes = [
        Change::Created,
        Change::Nothing,
        Change::Updated,
        Change::Nothing,
    ];
    assert_eq!(outcomes, changes.map(|change| outcome(change, 1, 2_000)));
    let basin = catalog.reader().basin("basin-a").unwrap();
    assert_eq!(basin.settings_version, 2);
    assert!(basin.config.create_stream_on_append);
}

#[test]
fn settings_are_set_only_on_the_version_that_was_read() {
    let (outcomes, catalog) = in_one_step_or_many(vec![
        create("basin-a"),
        set("basin-a", 2, settings(true)),
        set("basin-a", 1, settings(true)),
        set("basin-a", 1, settings(false)),
        ensure("basin-a", settings(false)),
        set("basin-a", 2, settings(true)),
        set("basin-a", 3, settings(true)),
        set("basin-b", 1, settings(true)),
    ]);
    assert_eq!(outcomes[1..4], [CONFLICT, DONE, CONFLICT]);
    assert_eq!(outcomes[5..], [CONFLICT, DONE, GONE]);
    assert_eq!(
        catalog.reader().basin("basin-a").unwrap().settings_version,
        4
    );
}

#[test]
fn a_basin_being_deleted_keeps_its_name_and_is_refused() {
    let (outcomes, catalog) = in_one_step_or_many(vec![
        create("basin-a"),
        delete("basin-a", 5_000),
        delete("basin-a", 6_000),
        create("basin-a"),
        ensure("basin-a", settings(true)),
        set("basin-a", 1, settings(true)),
        delete("basin-b", 6_000),
    ]);
    let deleted = |id: Option<u64>| Outcome::BasinDeleted(id.map(BasinId));
    assert_eq!(
        outcomes[1..],
        [
            deleted(Some(1)),
            deleted(Some(1)),
            DROPPED,
            DROPPED,
            GONE,
            deleted(None)
        ]
    );
    let basin = catalog.reader().basin("basin-a").unwrap();
    assert_eq!(basin.deleted_ms, Some(5_000), "since the first request");
    let deleting = catalog.reader().deleting();
    assert_eq!(deleting.len(), 1);
    assert_eq!(deleting[0].id, BasinId(1));
}

#[test]
fn a_forgotten_basins_name_is_free_and_its_id_is_never_used_again() {
    let mut catalog = Fixture::new();
    assert_eq!(catalog.create("basin-a"), BasinId(1));
    catalog.apply(delete("basin-a", 5_000));
    catalog.apply(forget(1));
    assert_eq!(catalog.content(), []);
    assert!(catalog.reader().basin("basin-a").is_none());
    assert!(catalog.reader().deleting().is_empty());
    catalog.reopen();
    assert_eq!(catalog.content(), []);
    assert_eq!(catalog.create("basin-a"), BasinId(2));
}

#[test]
fn only_a_basin_that_is_being_deleted_is_forgotten() {
    let (_, mut catalog) = in_one_step_or_many(vec![
        create("basin-a"),
        create("basin-b"),
        delete("basin-b", 5_000),
        forget(1),
        forget(77),
    ]);
    assert_eq!(catalog.content().len(), 2);
    // A late command about a deleted basin does not affect the new one of its name.
    catalog.apply(forget(2));
    catalog.create("basin-b");
    catalog.apply(delete("basin-b", 6_000));
    catalog.apply(forget(2));
    assert_eq!(catalog.reader().basin("basin-b").unwrap().id, BasinId(3));
}

#[test]
fn a_basin_forgotten_twice_in_one_step_does_not_take_the_new_one_of_its_name_along() {
    let mut catalog = Fixture::new();
    catalog.create("basin-a");
    catalog.apply(delete("basin-a", 5_000));
    catalog.step(vec![forget(1), create("basin-a"), forget(1)]);
    assert_eq!(
        catalog.reader().basin("basin-a").unwrap().id,
        BasinId(2),
        "the new one is not meant"
    );
}

#[test]
fn a_whole_life_fits_into_one_step() {
    let (outcomes, mut catalog) = in_one_step_or_many(vec![
        create("basin-a"),
        delete("basin-a", 5_000),
        forget(1),
        create("basin-a"),
        delete("basin-a", 6_000),
        forget(1),
        ensure("basin-a", settings(true)),
        forget(2),
        create("basin-a"),
        create("basin-b"),
        delete("basin-b", 7_000),
        forget(4),
    ]);
    assert_eq!(outcomes[3], outcome(Change::Created, 2, 1_000));
    assert_eq!(outcomes[6], DROPPED);
    assert_eq!(outcomes[8], outcome(Change::Created, 3, 1_000));
    let names: Vec<_> = catalog.content().into_iter().map(|b| (b.0, b.1)).collect();
    assert_eq!(names, [(3, "basin-a".to_owned())]);
    assert_eq!(catalog.create("basin-c"), BasinId(5));
}

#[test]
fn the_basin_of_state_stores_belongs_to_nobody() {
    let mut catalog = Fixture::new();
    assert_eq!(catalog.apply(create(STATE_BASIN)), EXISTS);
    assert_eq!(catalog.apply(ensure(STATE_BASIN, settings(true))), EXISTS);
    assert_eq!(catalog.apply(set(STATE_BASIN, 1, settings(true))), GONE);
    assert_eq!(
        catalog.apply(delete(STATE_BASIN, 1)),
        Outcome::BasinDeleted(None)
    );
    catalog.apply(forget(STATE_BASIN_ID.0));
    assert_eq!(catalog.content(), []);
    assert_eq!(catalog.create("basin-a"), BasinId(1), "0 is taken");
}

#[test]
fn every_prefix_start_and_limit_gives_what_a_filter_would() {
    let names = ["aaaa-one", "aaaa-two", "aaab", "b", "bb", "zz"];
    let mut catalog = Fixture::new();
    for name in names.iter().rev() {
        catalog.create(name);
    }
    catalog.apply(delete("aaab", 5_000));
    catalog.reopen();
    let probes = [
        "", "a", "aaaa", "aaaa-one", "aaaa-p", "aaac", "b", "bb", "c", "zzz",
    ];
    for prefix in probes {
        for after in probes {
            for limit in [0, 1, 2, 100] {
                let listed = catalog.reader().list(prefix, after, limit);
                let listed: Vec<&str> = listed.iter().map(|basin| &basin.name[..]).collect();
                let expected: Vec<&str> = names
                    .into_iter()
                    .filter(|name| name.starts_with(prefix) && (after.is_empty() || *name > after))
                    .take(limit)
                    .collect();
                assert_eq!(
                    listed, expected,
                    "prefix {prefix:?}, after {after:?}, limit {limit}"
                );
            }
        }
    }
}

#[test]
fn a_failed_step_leaves_nothing_behind_and_can_be_applied_again() {
    let for_a_stream_partition = Kind::DropBasin(crate::command::DropBasin { basin: 1 });
    let malformed = [
        Bytes::new(),
        Bytes::from_static(b"\x09"),
        Bytes::from_static(b"\x01\xff"),
        bytes_of(for_a_stream_partition),
    ];
    let good = || {
        [
            create("basin-b"),
            ensure("basin-a", settings(true)),
            delete("basin-a", 5_000),
            forget(1),
        ]
        .map(bytes_of)
        .to_vec()
    };
    let mut catalog = Fixture::new();
    catalog.create("basin-a");
    let before = catalog.content();
    for malformed in malformed {
        let mut step = good();
        step.push(malformed);
        let error = catalog.try_bytes(step).unwrap_err();
        assert!(error.0.contains("LSN 6"), "it says where: {}", error.0);
        assert_eq!(catalog.content(), before);
        assert_eq!(catalog.catalog().applied(), Lsn(1));
    }
    catalog.reopen();
    assert_eq!(catalog.content(), before);
    let outcomes = catalog.try_bytes(good()).unwrap();
    assert_eq!(outcomes[0], outcome(Change::Created, 2, 1_000));
    assert_eq!(catalog.content().len(), 1);
}

#[test]
fn who_holds_a_basin_keeps_what_it_saw() {
    let mut catalog = Fixture::new();
    catalog.create("basin-a");
    let reader = catalog.reader();
    let held = reader.basin("basin-a").unwrap();
    catalog.apply(ensure("basin-a", settings(true)));
    assert_eq!(held.settings_version, 1);
    assert_eq!(reader.basin("basin-a").unwrap().settings_version, 2);
}

fn any_command() -> impl Strategy<Value = Kind> {
    let name = prop::sample::select(vec!["basin-a", "basin-b", "basin-c"]);
    (name, 0..11, 1u64..6, any::<bool>(), 0u8..3).prop_map(|(name, which, number, on, hash)| {
        let expires = on.then_some(number + 1);
        match which {
            5 => return tokens::issue(name, hash, expires, number, number),
            6 => {
                let issue = tokens::issue(name, hash, expires, number, number);
                return tokens::issued_by(issue, (number % 3) as u8);
            }
            7 => return tokens::revoke(name),
            8 => return tokens::confirm(number),
            9 => return tokens::remove_expired(&[name, "basin-a"], number),
            _ => {}
        }
        let hash = vec![hash; usize::from(hash > 0)];
        match which {
            0 => provision(name, Mode::CreateOnly, settings(on), &hash, number),
            1 => ensure(name, settings(on)),
            2 => set(name, number, settings(on)),
            3 => delete(name, number),
            _ => forget(number),
        }
    })
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(10),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn neither_steps_nor_crashes_change_what_a_log_comes_to(
        steps in prop::collection::vec(prop::collection::vec(any_command(), 1..8), 1..8),
        flushed in 0usize..8,
        again in 1usize..20,
    ) {
        let mut in_steps = Fixture::new();
        let mut one_by_one = Fixture::new();
        for (i, step) in steps.into_iter().enumerate() {
            let expected: Vec<_> = step.iter().map(|c| one_by_one.apply(c.clone())).collect();
            prop_assert_eq!(in_steps.step(step), expected);
            prop_assert_eq!(in_steps.content(), one_by_one.content());
            prop_assert_eq!(in_steps.tokens(), one_by_one.tokens());
            if i == flushed {
                in_steps.flush();
            }
        }
        in_steps.stop_and_open();
        in_steps.replay(again);
        prop_assert_eq!(in_steps.content(), one_by_one.content());
        prop_assert_eq!(in_steps.tokens(), one_by_one.tokens());
    }
}
