//! Random histories, divided into random steps, with flushes, reopenings, crashes, failed steps and
//! reclaiming in between: all that can be read always equals what the [model](super::model) has.

use std::cell::Cell;

use esker_raft::StateMachine as _;
use proptest::prelude::*;
use proptest::sample::Index;
use s2_common::read_extent::{CountOrBytes, ReadLimit, ReadUntil};
use s2_common::stream::{ReadFrom, ReadStart};

use super::fixture::*;
use super::model::{Act, Appending, Model, ModelStream};
use crate::command::{Mode, Outcome, ProvisionStream};
use crate::encryption::cipher_number;
use crate::ids::{BasinId, StreamId};
use crate::random_cases::cases;
use crate::reader::{Due, ReadError};
use crate::recent::RecentBudget;
use crate::settings::StreamSettings;
use crate::stream::Follower;
use crate::streams::StreamOptions;

const BASINS: [BasinId; 3] = [BasinId(1), BasinId(2), BasinId(0xff)];
const NAMES: [&str; 3] = ["a", "a/é", "b"];
/// Entries for which a refusal is remembered: fewer than some steps and most histories have.
const REMEMBER_FAILED: u64 = 6;
/// The first command has this time, or one a little before.
const START_MS: u64 = 100_000;

/// A name in a basin.
#[derive(Clone, Copy, Debug)]
struct Slot(BasinId, &'static str);

#[derive(Clone, Debug)]
enum Condition {
    None,
    Right,
    Wrong,
}

#[derive(Clone, Debug)]
enum RecordIntent {
    Body {
        length: usize,
        timestamp: Option<i64>,
    },
    Fence(&'static str),
    /// Trims to this many numbers past the tail at the beginning of the batch; before it, if negative.
    Trim(i64),
}

/// A command whose ids and numbers are filled in at its place in the history.
#[derive(Clone, Debug)]
enum Intent {
    Append {
        records: Vec<RecordIntent>,
        match_seq_num: Condition,
        token: Condition,
        session: u64,
        stale_id: bool,
        /// For the cipher of another stream.
        wrong_cipher: bool,
    },
    Create {
        settings: usize,
        request: u8,
        cipher: u32,
    },
    Ensure {
        settings: usize,
        cipher: u32,
    },
    SetSettings {
        settings: usize,
        stale: bool,
    },
    Delete,
    Expire {
        back: u64,
    },
    DeleteIfEmpty {
        stale: bool,
    },
    CarryOutDue(Index),
    DropBasin,
}

#[derive(Clone, Debug)]
struct Planned {
    slot: Slot,
    intent: Intent,
    /// Milliseconds since the command before; clocks of leaders differ, so some are negative.
    pause_ms: i64,
}

#[derive(Clone, Debug)]
enum Event {
    Step(Vec<Planned>),
    FailedStep(Vec<Planned>),
    Flush,
    Reopen,
    Crash { step: usize },
    Maintain,
    Follow(Slot),
    Unfollow,
}

fn slot() -> impl Strategy<Value = Slot> {
    (0..BASINS.len(), 0..NAMES.len()).prop_map(|(basin, name)| Slot(BASINS[basin], NAMES[name]))
}

fn condition() -> impl Strategy<Value = Condition> {
    prop_oneof![
        6 => Just(Condition::None),
        3 => Just(Condition::Right),
        1 => Just(Condition::Wrong),
    ]
}

fn record() -> impl Strategy<Value = RecordIntent> {
    prop_oneof![
        12 => (0usize..30, prop::option::of(-3_000i64..3_000))
            .prop_map(|(length, timestamp)| RecordIntent::Body { length, timestamp }),
        1 => prop::sample::select(vec!["", "x", "y"]).prop_map(RecordIntent::Fence),
        2 => (-6i64..6).prop_map(RecordIntent::Trim),
    ]
}

fn settings() -> [StreamSettings; 6] {
    let plain = StreamSettings::default();
    [
        plain.clone(),
        keep_for_secs(2),
        StreamSettings {
            timestamping_uncapped: Some(true),
            ..keep_for_secs(0)
        },
        StreamSettings {
            timestamping_mode: Some(1),
            ..plain.clone()
        },
        StreamSettings {
            timestamping_mode: Some(2),
            delete_on_empty_secs: Some(1),
            ..keep_for_secs(1)
        },
        StreamSettings {
            delete_on_empty_secs: Some(2),
            ..plain
        },
    ]
}

fn intent() -> impl Strategy<Value = Intent> {
    let settings = 0..settings().len();
    prop_oneof![
        20 => (
            prop::collection::vec(record(), 1..6),
            condition(),
            condition(),
            0u64..5,
            prop::bool::weighted(0.05),
            prop::bool::weighted(0.05),
        )
            .prop_map(|(records, match_seq_num, token, session, stale_id, wrong_cipher)| {
                Intent::Append {
                    records,
                    match_seq_num,
                    token,
                    session,
                    stale_id,
                    wrong_cipher,
                }
            }),
        4 => (settings.clone(), 0u8..3, 0u32..3)
            .prop_map(|(settings, request, cipher)| Intent::Create { settings, request, cipher }),
        3 => (settings.clone(), 0u32..3)
            .prop_map(|(settings, cipher)| Intent::Ensure { settings, cipher }),
        2 => (settings, any::<bool>())
            .prop_map(|(settings, stale)| Intent::SetSettings { settings, stale }),
        2 => Just(Intent::Delete),
        2 => (0u64..6).prop_map(|back| Intent::Expire { back }),
        2 => prop::bool::weighted(0.3).prop_map(|stale| Intent::DeleteIfEmpty { stale }),
        4 => any::<Index>().prop_map(Intent::CarryOutDue),
        1 => Just(Intent::DropBasin),
    ]
}

fn planned() -> impl Strategy<Value = Planned> {
    (slot(), intent(), -500i64..1_500).prop_map(|(slot, intent, pause_ms)| Planned {
        slot,
        intent,
        pause_ms,
    })
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        16 => prop::collection::vec(planned(), 1..8).prop_map(Event::Step),
        1 => prop::collection::vec(planned(), 1..4).prop_map(Event::FailedStep),
        2 => Just(Event::Flush),
        1 => Just(Event::Reopen),
        1 => (1usize..20).prop_map(|step| Event::Crash { step }),
        3 => Just(Event::Maintain),
        3 => slot().prop_map(Event::Follow),
        1 => Just(Event::Unfollow),
    ]
}

/// A partition, its model, and the clock.
struct Run {
    partition: Fixture,
    model: Model,
    now_ms: u64,
    followers: Vec<Follower>,
    /// All answers of the real partition.
    outcomes: Vec<Outcome>,
    /// What the last scan has found that found nothing due: the changes of the partition before it, and until
    /// when nothing is due as long as there are no others.
    rest: Cell<Option<(u64, Option<u64>)>>,
}

impl Run {
    fn new() -> Run {
        // All limits are so small that they are reached.
        let options = StreamOptions {
            recent: RecentBudget::new(1_000, 5_000),
            open_streams: 3,
            name_bytes: 600,
            ..eager()
        };
        Run {
            partition: Fixture::remembering(options, REMEMBER_FAILED),
            model: Model::remembering(REMEMBER_FAILED),
            now_ms: START_MS,
            followers: Vec::new(),
            outcomes: Vec::new(),
            rest: Cell::new(None),
        }
    }

    /// Fills in a planned command, and applies it to the model.
    fn act(model: &mut Model, now_ms: &mut u64, planned: &Planned) -> (Act, Outcome) {
        *now_ms = now_ms.saturating_add_signed(planned.pause_ms);
        let act = fill_in(model, *now_ms, planned);
        let outcome = model.apply(&act);
        (act, outcome)
    }

    fn happen(&mut self, event: &Event) {
        match event {
            Event::Step(step) => {
                let (acts, expected): (Vec<_>, Vec<_>) = step
                    .iter()
                    .map(|planned| Run::act(&mut self.model, &mut self.now_ms, planned))
                    .unzip();
                let commands = acts.iter().map(Act::kind).collect();
                let outcomes = self.partition.step(commands);
                assert_eq!(outcomes, expected, "of {acts:#?}");
                self.outcomes.extend(outcomes);
            }
            Event::FailedStep(step) => {
                let (mut model, mut now_ms) = (self.model.clone(), self.now_ms);
                let mut commands: Vec<_> = step
                    .iter()
                    .map(|planned| Run::act(&mut model, &mut now_ms, planned).0.kind())
                    .map(bytes_of)
                    .collect();
                commands.push(bytes::Bytes::from_static(b"\x01nonsense"));
                assert!(self.partition.try_bytes(commands).is_err());
            }
            Event::Flush => self.partition.flush(),
            Event::Reopen => {
                self.followers.clear();
                self.rest.set(None);
                self.partition.reopen();
            }
            Event::Crash { step } => {
                self.followers.clear();
                self.rest.set(None);
                let durable = self.partition.durable();
                self.partition.stop_and_open();
                assert_eq!(self.partition.applied(), durable);
                let again = self.partition.replay(*step);
                assert_eq!(again, self.outcomes[durable as usize..]);
            }
            Event::Maintain => self.partition.machine().maintain(),
            Event::Follow(Slot(basin, name)) => {
                let stream = self.partition.reader().stream(*basin, name).unwrap();
                self.followers.extend(stream.map(|stream| stream.follow()));
            }
            Event::Unfollow => {
                self.followers.pop();
            }
        }
    }

    fn assert_as_the_model_says(&self) {
        let reader = self.partition.reader();
        let refusals = self.partition.refusals();
        let refusals = refusals.iter().map(|r| (r.lsn, r.stream, r.session));
        assert_eq!(refusals.collect::<Vec<_>>(), self.model.refusals());
        for basin in BASINS {
            let mut expected: Vec<&ModelStream> = self
                .model
                .streams
                .values()
                .filter(|stream| stream.basin == basin)
                .collect();
            expected.sort_by(|a, b| a.name.cmp(&b.name));
            let listed = reader.list(basin, "", "", 100).unwrap();
            let listed: Vec<_> = listed
                .iter()
                .map(|l| (&l.name[..], l.created_ms, cipher_number(l.cipher)))
                .collect();
            let names: Vec<_> = expected
                .iter()
                .map(|s| (&s.name[..], s.created_ms, s.cipher))
                .collect();
            assert_eq!(listed, names, "the list of basin {basin}");
            let after_a: Vec<_> = names.iter().filter(|n| n.0 > "a").take(1).collect();
            let page = reader.list(basin, "a", "a", 1).unwrap();
            assert!(
                page.iter()
                    .map(|l| &l.name)
                    .eq(after_a.iter().filter(|n| n.0.starts_with('a')).map(|n| n.0))
            );
            for stream in expected {
                self.assert_stream(stream);
            }
            for name in NAMES {
                let there = reader.stream(basin, name).unwrap().is_some();
                assert_eq!(there, self.model.named(basin, name).is_some());
            }
        }
        for ahead_ms in [0, 1_000, 5_000] {
            let now_ms = self.now_ms + ahead_ms;
            let changes = reader.due_changes();
            if let Some((before, until_ms)) = self.rest.get()
                && before == changes
                && until_ms.is_none_or(|until_ms| now_ms < until_ms)
            {
                assert_eq!(
                    self.model.due(now_ms),
                    [],
                    "a partition at rest, at {now_ms}"
                );
            }
            let mut due = Vec::new();
            let mut earliest_ms: Option<u64> = None;
            let mut after = Some(StreamId(0));
            while let Some(id) = after {
                let scan = reader.due(id, 2, now_ms).unwrap();
                due.extend(scan.due.into_iter().map(|found| found.due));
                earliest_ms = earliest_ms.into_iter().chain(scan.earliest_ms).min();
                after = scan.next;
            }
            assert_eq!(due, self.model.due(now_ms), "due at {now_ms}");
            if due.is_empty() {
                if let Some(earliest_ms) = earliest_ms {
                    assert_eq!(self.model.due(earliest_ms - 1), [], "before {earliest_ms}");
                    assert_ne!(self.model.due(earliest_ms), [], "at {earliest_ms}");
                }
                self.rest.set(Some((changes, earliest_ms)));
            }
        }
    }

    fn assert_stream(&self, expected: &ModelStream) {
        let reader = self.partition.reader();
        let stream = reader
            .stream(expected.basin, &expected.name)
            .unwrap()
            .unwrap();
        let view = stream.view();
        assert_eq!(stream.id, expected.id);
        assert_eq!(view.state.tail(), expected.tail());
        assert_eq!(view.state.trim_point, expected.trim_point);
        assert_eq!(view.state.fencing_token, expected.token);
        assert_eq!(view.state.active_ms, expected.active_ms);
        assert_eq!(view.settings_version, expected.version);
        assert_eq!(*view.config, expected.config());
        assert_eq!(cipher_number(stream.cipher), expected.cipher);
        assert_eq!(view.state.encrypted, expected.encrypted());
        assert_eq!(read_all(&reader, &stream), expected.records());

        let tail = expected.tail();
        let limits = [
            (ReadLimit::Unbounded, ReadUntil::Unbounded),
            (ReadLimit::Count(2), ReadUntil::Unbounded),
            (ReadLimit::Bytes(60), ReadUntil::Unbounded),
            (
                ReadLimit::CountOrBytes(CountOrBytes {
                    count: 3,
                    bytes: 90,
                }),
                ReadUntil::Timestamp(tail.timestamp),
            ),
        ];
        for from in 0..=tail.seq_num + 1 {
            for (limit, until) in limits {
                let scan = reader.scan(&stream, from, limit, until).unwrap();
                let (next, end) = (scan.next, scan.end);
                assert_eq!(
                    (seen_in(&stream, scan), next, end),
                    expected.scan(from, limit, until),
                    "scan of {} from {from}, {limit:?}, {until:?}",
                    expected.name
                );
            }
        }
        let seqs = (0..=tail.seq_num + 1).map(ReadFrom::SeqNum);
        let offsets = (0..=tail.seq_num + 1).map(ReadFrom::TailOffset);
        let times = expected.times().into_iter().map(ReadFrom::Timestamp);
        for from in seqs
            .chain(offsets)
            .chain(times)
            .chain([ReadFrom::Timestamp(0)])
        {
            for (clamp, may_follow) in [(false, false), (true, false), (false, true), (true, true)]
            {
                let start = ReadStart { from, clamp };
                let found = match reader.start(&stream, start, may_follow) {
                    Ok(seq) => Ok(seq),
                    Err(ReadError::Unwritten(tail)) => Err(tail),
                    Err(other) => panic!("{other}"),
                };
                assert_eq!(
                    found,
                    expected.start(start, may_follow),
                    "start at {from:?}"
                );
            }
        }
    }
}

fn fill_in(model: &Model, now_ms: u64, planned: &Planned) -> Act {
    let Slot(basin, name) = planned.slot;
    let stream = model.named(basin, name);
    let id = stream.map_or(StreamId(model.created + 1), |stream| stream.id);
    let tail = stream.map_or(0, |stream| stream.tail().seq_num);
    let cipher = stream.map_or(0, |stream| stream.cipher);
    let provision = |settings_at: usize, mode: Mode, request_hash, cipher| {
        Act::Provision(ProvisionStream {
            basin: basin.0,
            name: name.to_owned(),
            settings: settings()[settings_at].clone(),
            mode: mode.into(),
            request_hash,
            at_ms: now_ms,
            cipher,
        })
    };
    match &planned.intent {
        Intent::Append {
            records,
            match_seq_num,
            token,
            session,
            stale_id,
            wrong_cipher,
        } => Act::Append(Appending {
            cipher: (cipher + u32::from(*wrong_cipher)) % 3,
            stream: if *stale_id { StreamId(id.0 / 2) } else { id },
            at_ms: now_ms,
            records: records
                .iter()
                .map(|record| match record {
                    RecordIntent::Body { length, timestamp } => {
                        let timestamp = timestamp.map(|t| now_ms.saturating_add_signed(t));
                        (timestamp, rec(vec![b'a' + (*length % 26) as u8; *length]).1)
                    }
                    RecordIntent::Fence(token) => (Some(now_ms), fence(token).1),
                    RecordIntent::Trim(back) => {
                        (Some(now_ms), trim(tail.saturating_add_signed(*back)).1)
                    }
                })
                .collect(),
            match_seq_num: match match_seq_num {
                Condition::None => None,
                Condition::Right => Some(tail),
                Condition::Wrong => Some(tail + 1),
            },
            token: match token {
                Condition::None => None,
                Condition::Right => Some(stream.map_or(String::new(), |s| s.token.clone())),
                Condition::Wrong => Some("wrong".to_owned()),
            },
            session: *session,
        }),
        Intent::Create {
            settings,
            request,
            cipher,
        } => {
            let hash = if *request == 0 {
                vec![]
            } else {
                vec![*request]
            };
            provision(*settings, Mode::CreateOnly, hash, *cipher)
        }
        Intent::Ensure { settings, cipher } => provision(*settings, Mode::Ensure, vec![], *cipher),
        Intent::SetSettings {
            settings: at,
            stale,
        } => {
            let version = stream.map_or(1, |stream| stream.version);
            Act::SetSettings(id, version - u64::from(*stale), settings()[*at].clone())
        }
        Intent::Delete => Act::Delete(basin, name.to_owned()),
        Intent::Expire { back } => Act::Expire(id, tail.saturating_sub(*back), now_ms),
        Intent::DeleteIfEmpty { stale } => {
            let active_ms = stream.map_or(0, |stream| stream.active_ms);
            Act::DeleteIfEmpty(id, active_ms - u64::from(*stale && active_ms > 0))
        }
        Intent::CarryOutDue(index) => {
            let due = model.due(now_ms + 3_000);
            match (!due.is_empty()).then(|| *index.get(&due)) {
                Some(Due::Expire { stream, up_to }) => Act::Expire(stream, up_to, now_ms),
                Some(Due::DeleteIfEmpty { stream, since_ms }) => {
                    Act::DeleteIfEmpty(stream, since_ms)
                }
                None => Act::Expire(id, 0, now_ms),
            }
        }
        Intent::DropBasin => Act::DropBasin(basin),
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(50),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    #[test]
    fn all_reads_equal_the_models(events in prop::collection::vec(event(), 1..30)) {
        let mut run = Run::new();
        for event in &events {
            run.happen(event);
            run.assert_as_the_model_says();
        }
        // The same once more from the files alone.
        run.happen(&Event::Reopen);
        run.assert_as_the_model_says();
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: cases(15),
        failure_persistence: None,
        ..ProptestConfig::default()
    })]

    /// Members apply one log, each in steps of its own, with flushes, crashes and reclaiming of its own, from
    /// the beginning or from a snapshot: a digest that depended on any of that would stop healthy members.
    #[test]
    fn members_of_one_log_have_one_digest_however_they_have_applied_it(
        events in prop::collection::vec(event(), 1..30),
        step in 1usize..9,
        upkeep in prop::collection::vec(0u8..4, 1..20),
        snapshot in any::<Index>(),
    ) {
        let mut run = Run::new();
        let taken = snapshot.index(events.len());
        let mut checkpoint = None;
        for (at, event) in events.iter().enumerate() {
            run.happen(event);
            if at == taken {
                checkpoint = Some(run.partition.checkpoint());
            }
        }
        let digest = |of: &Fixture| of.partition_db().digest().unwrap();
        let expected = digest(&run.partition);

        let mut other = Fixture::remembering(eager(), REMEMBER_FAILED);
        other.take_log(&run.partition);
        let mut upkeep = upkeep.iter().cycle();
        while other.applied() < run.partition.applied() {
            other.replay_some(step);
            match upkeep.next() {
                Some(0) => other.flush(),
                Some(1) => other.machine().maintain(),
                Some(2) => other.reopen(),
                _ => {}
            }
        }
        prop_assert_eq!(digest(&other), expected);
        other.maintain_all();
        prop_assert_eq!(digest(&other), expected, "after space was reclaimed");

        let mut late = run.partition.imported(&checkpoint.unwrap());
        late.catch_up(&run.partition);
        prop_assert_eq!(digest(&late), expected, "from a snapshot");
    }
}
