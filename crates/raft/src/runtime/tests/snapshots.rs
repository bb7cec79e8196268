//! Snapshots: who begins them, what goes on meanwhile, what becomes of failures.

use tokio::sync::oneshot::error::TryRecvError;

use super::machine::Fate;
use super::*;
use crate::{GroupOptions, InMemory, InMemoryState, MAINTENANCE_INTERVAL, Writing, capture_clone};

type Asked = oneshot::Receiver<Result<Arc<StoredSnapshot>, SnapshotError>>;

/// Waits for a snapshot. Without an answer the test fails instead of hanging.
fn taken(asked: Asked) -> Result<Arc<StoredSnapshot>, SnapshotError> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime
        .block_on(async { tokio::time::timeout(WAIT_TIMEOUT, asked).await })
        .expect("an ask is answered")
        .expect("an ask is not dropped")
}

fn covered(asked: Asked) -> Lsn {
    taken(asked).unwrap().last_included_index
}

/// A host that takes snapshots by itself.
fn host_with(dir: &Path, stores: &[Store], change: impl FnOnce(&mut NodeConfig)) -> Host {
    let mut config = config(dir);
    config.tick_interval = Duration::from_millis(2);
    change(&mut config);
    let (node, _) = Node::start(config, Faults::new()).unwrap();
    Host::on(node, stores)
}

#[test]
fn a_log_that_grows_leads_to_snapshots_which_keep_it_short() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let stores = std::slice::from_ref(&store);
    let host = host_with(&dir, stores, |c| c.snapshot_hint_threshold_entries = 50);
    let group = &host.groups[0];
    execute_all(group, &numbered("c", 500));
    wait_for("the floor follows", || {
        let status = group.status();
        let caught_up = status.applied == status.last && status.applied.0 - status.floor.0 < 50;
        caught_up && store.heard().last() == Some(&Ok(status.floor))
    });
    let status = group.status();
    assert_eq!(status.log_start, status.floor);
    assert_eq!(status.log_entries, status.last.0 - status.floor.0);
    assert!(status.log_bytes < 50 * 100, "{status:?}");
    let heard = store.heard();
    assert!(heard.len() <= 11, "{heard:?}");
    let all = heard.iter().map(|heard| *heard.as_ref().unwrap());
    assert!(all.is_sorted_by(|a, b| a < b), "{heard:?}");
    assert_eq!(heard.last(), Some(&Ok(status.floor)));
    host.stop();
}

#[test]
fn a_log_that_grows_in_bytes_leads_to_snapshots() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let stores = std::slice::from_ref(&store);
    let host = host_with(&dir, stores, |c| c.snapshot_hint_threshold_bytes = 10_000);
    execute_padded(&host.groups[0], &numbered("c", 12), 1000);
    wait_for("a snapshot", || !store.heard().is_empty());
    host.stop();
}

#[test]
fn an_idle_group_takes_a_requested_snapshot_at_once_also_of_nothing_new() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute_all(group, &numbered("c", 3));
    let rounds = 40;
    let mut looks = 0;
    for round in 1..=rounds {
        let looked = store.maintained();
        let snapshot = taken(group.snapshot()).unwrap();
        assert_eq!(snapshot.last_included_index, store.applied());
        assert_eq!(snapshot.data, b"c-0,c-1,c-2".to_vec().into());
        assert_eq!(store.snapshots(), (round, 0));
        looks += usize::from(store.maintained() > looked);
    }
    // An idle apply thread looks around from time to time. Who is answered at such a look asks right after it,
    // and waits for the next one: there would be a look in each round. A busy machine delays some, not all of them.
    assert!(looks < rounds - 1, "looks in {looks} rounds");
    host.stop();
}

#[test]
fn an_apply_thread_with_nothing_to_do_sleeps_and_wakes_for_entries_and_requests() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    store.maintain_every(Duration::from_secs(3600));
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    for round in 0..3 {
        let before = store.maintained();
        execute_all(group, &numbered("c", 3));
        wait_for("maintenance after an apply", || store.maintained() > before);
        let after = store.maintained();
        std::thread::sleep(5 * MAINTENANCE_INTERVAL);
        // One for what was applied last, and one at the end of the snapshot before.
        let more = store.maintained() - after;
        assert!(more <= 2, "{more} rounds of maintenance of an idle group");
        let snapshot = taken(group.snapshot()).unwrap();
        assert_eq!(
            snapshot.last_included_index,
            store.applied(),
            "round {round}"
        );
    }
    host.stop();
}

#[test]
fn proposals_applies_and_status_go_on_while_a_snapshot_is_written() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let stores = std::slice::from_ref(&store);
    let host = host_with(&dir, stores, |c| c.snapshot_hint_threshold_entries = 10);
    let group = &host.groups[0];
    store.hold_snapshots(true);
    execute_all(group, &numbered("before", 20));
    wait_for("a snapshot is being written", || {
        store.snapshots() == (1, 1)
    });
    execute_all(group, &numbered("meanwhile", 500));
    let status = group.status();
    assert_eq!((status.floor, status.log_start), (Lsn(0), Lsn(0)));
    assert_eq!(store.commands().len(), 520);
    assert_eq!(store.snapshots(), (1, 1), "one at a time");
    assert_eq!(store.heard(), []);

    store.hold_snapshots(false);
    wait_for("the hints meanwhile lead to one more", || {
        group.status().floor >= Lsn(515) && store.snapshots() == (2, 0)
    });
    host.stop();
}

#[test]
fn a_request_during_an_attempt_is_answered_by_the_next_one_and_shares_it() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute(group, "a").unwrap();
    store.hold_snapshots(true);
    let first = group.snapshot();
    wait_for("it is being written", || store.snapshots() == (1, 1));
    let before = store.applied();
    execute(group, "b").unwrap();
    let mut later: Vec<_> = (0..3).map(|_| group.snapshot()).collect();
    let after = store.applied();
    std::thread::sleep(Duration::from_millis(50));
    for asked in &mut later {
        assert_eq!(asked.try_recv().unwrap_err(), TryRecvError::Empty);
    }
    store.hold_snapshots(false);
    assert_eq!(covered(first), before);
    for asked in later {
        assert_eq!(covered(asked), after, "what was applied before the ask");
    }
    assert_eq!(store.snapshots().0, 2, "three askers share one");
    wait_for("both are heard of", || store.heard().len() >= 2);
    assert_eq!(store.heard(), [Ok(before), Ok(after)]);
    host.stop();
}

#[test]
fn a_failed_snapshot_is_reported_to_its_requests_and_hinted_at_again() {
    for guardrail in [false, true] {
        let (_keep, dir) = scratch();
        let store = Store::default();
        let stores = std::slice::from_ref(&store);
        // A panic must not wedge the group either.
        store.fail_snapshots(&[Fate::Error, Fate::Panic, Fate::Error]);
        let host = host_with(&dir, stores, |c| match guardrail {
            true => c.max_log_entries = 20,
            false => c.snapshot_hint_threshold_entries = 20,
        });
        let group = &host.groups[0];
        // No proposal and no tick of others' making comes after this.
        execute_all(group, &numbered("c", 30));
        wait_for("the fourth attempt succeeds", || {
            group.status().floor > Lsn(20) && store.heard().len() >= 4
        });
        let heard = store.heard();
        assert_eq!(heard.len(), 4, "{heard:?}");
        assert_eq!(heard[0], Err("no space for it".to_owned()));
        assert!(heard[1].as_ref().unwrap_err().contains("panicked"));
        assert!(heard[3].is_ok());

        store.fail_snapshots(&[Fate::Error]);
        let refused = taken(group.snapshot()).unwrap_err();
        assert_eq!(refused.to_string(), "no space for it");
        assert_eq!(covered(group.snapshot()), store.applied());
        host.stop();
    }
}

#[test]
fn stop_waits_for_the_snapshot_under_way_and_answers_all_requests() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute(group, "a").unwrap();
    store.hold_snapshots(true);
    let under_way = group.snapshot();
    wait_for("it is being written", || store.snapshots() == (1, 1));
    let next = group.snapshot();
    std::thread::scope(|scope| {
        let stopping = scope.spawn(|| group.stop());
        std::thread::sleep(Duration::from_millis(100));
        assert!(!stopping.is_finished(), "it outlives the group");
        store.hold_snapshots(false);
    });
    assert_eq!(covered(under_way), store.applied());
    assert_eq!(store.heard().len(), 1);
    for asked in [next, group.snapshot()] {
        let refused = taken(asked).unwrap_err();
        assert!(refused.to_string().contains("stopped"), "{refused}");
    }
    assert_eq!(store.snapshots().0, 1);
    host.stop();
}

#[test]
fn no_more_snapshots_are_written_at_once_than_the_node_allows() {
    for at_once in [1, 2] {
        let (_keep, dir) = scratch();
        let stores: Vec<_> = (0..4).map(|_| Store::default()).collect();
        let host = host_with(&dir, &stores, |c| c.parallel_snapshots = at_once);
        let writing = || stores.iter().map(|s| s.snapshots().1).sum::<usize>();
        for store in &stores {
            store.hold_snapshots(true);
        }
        let mut asked: Vec<_> = host.groups.iter().map(Group::snapshot).collect();
        wait_for("all have begun", || {
            stores.iter().all(|s| s.snapshots().0 == 1) && writing() == at_once
        });
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(writing(), at_once);

        // A group that waits for its turn does not wait for it in order to stop.
        let waits = stores.iter().position(|s| s.snapshots().1 == 0).unwrap();
        host.groups[waits].stop();
        assert!(taken(asked.remove(waits)).is_err());
        for store in &stores {
            store.hold_snapshots(false);
        }
        for asked in asked {
            taken(asked).unwrap();
        }
        host.stop();
    }
}

#[test]
fn what_is_to_be_kept_outlives_snapshots_and_restarts() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute_all(group, &numbered("c", 30));
    group.keep_from(Lsn(10));
    let floor = covered(group.snapshot());
    let status = group.status();
    assert_eq!((status.floor, status.log_start), (floor, Lsn(10)));
    assert_eq!(status.log_entries, status.last.0 - 10);
    assert!(status.log_bytes > 0);
    assert!(host.node.writer().flush(WAIT_TIMEOUT));
    host.stop();

    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    let (lsn, term) = store.flushed();
    group.keep_from(Lsn(10));
    group.snapshot_known(lsn, term);
    let status = group.status();
    assert_eq!((status.floor, status.log_start), (floor, Lsn(10)));
    let reader = host.node.log().reader(GroupId(0));
    assert!(reader.term(Lsn(10)).is_err() && reader.term(Lsn(11)).is_ok());
    group.keep_from(Lsn(20));
    assert_eq!(group.status().log_start, Lsn(20));
    host.stop();
}

#[test]
fn a_snapshot_can_be_taken_while_entries_cannot_be_applied() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute_all(group, &numbered("c", 10));
    let applied = store.applied();
    store.fail_applies(usize::MAX);
    let stuck = group.propose("stuck".into()).unwrap();
    wait_for("the group stalls", || group.status().stalled);
    assert_eq!(covered(group.snapshot()), applied);
    store.fail_applies(0);
    answer(stuck).unwrap();
    host.stop();
}

#[test]
fn a_log_that_nothing_is_applied_of_raises_an_alarm_and_is_full_at_twice_the_guardrail() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let stores = std::slice::from_ref(&store);
    let host = host_with(&dir, stores, |c| c.max_log_entries = 20);
    let group = &host.groups[0];
    let floor = covered(group.snapshot());
    store.hold_applies(true);
    let mut waiting = Vec::new();
    for command in numbered("c", 40) {
        assert_eq!(group.status().alarm, waiting.len() > 20);
        waiting.push(group.propose(command.into()).unwrap());
    }
    let refused = group.propose("one more".into()).unwrap_err();
    assert_eq!(refused, ProposeError::LogFull);
    assert!(refused.has_no_side_effects());
    assert_eq!(group.status().floor, floor, "a snapshot would not help");

    store.hold_applies(false);
    for waiting in waiting {
        answer(waiting).unwrap();
    }
    wait_for("the alarm is over", || !group.status().alarm);
    execute(group, "one more").unwrap();
    host.stop();
}

/// A state that is cloned to be captured, and whose encoding waits until the test lets it.
#[derive(Clone)]
struct Held {
    applied: usize,
    gate: Arc<(parking_lot::Mutex<bool>, parking_lot::Condvar)>,
}

impl InMemoryState for Held {
    type Output = usize;

    fn apply(&mut self, _: Lsn, _: &[u8]) -> usize {
        self.applied += 1;
        self.applied
    }

    fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        let (open, opened) = &*self.gate;
        let mut open = open.lock();
        while !*open {
            opened.wait(&mut open);
        }
        Ok(self.applied.to_string().into_bytes())
    }

    fn capture(&self) -> Writing {
        capture_clone(self)
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        self.applied = String::from_utf8_lossy(snapshot).parse().unwrap();
        Ok(())
    }
}

#[test]
fn applies_go_on_while_a_state_that_is_cloned_is_encoded() {
    let (_keep, dir) = scratch();
    let gate: Arc<(parking_lot::Mutex<bool>, parking_lot::Condvar)> = Arc::default();
    let state = Held {
        applied: 0,
        gate: gate.clone(),
    };
    let network = crate::transport::memory::Network::new();
    let transport = network.transport(NodeId(1));
    let (node, _) = Node::start_among(config(&dir), transport).unwrap();
    let options = GroupOptions::founded_by(GroupId(1), &[NodeId(1)]);
    let group = node.open_member(options, InMemory::new(state)).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let execute = |n: usize| {
        let answer = runtime
            .block_on(async { tokio::time::timeout(WAIT_TIMEOUT, group.execute(vec![1])).await })
            .expect("an apply does not wait for the snapshot");
        assert_eq!(answer.unwrap(), n);
    };
    runtime.block_on(group.wait_until_serving());
    execute(1);
    let asked = group.trigger_snapshot();
    // The snapshot cannot end before the gate is open.
    (2..=20).for_each(execute);
    *gate.0.lock() = true;
    gate.1.notify_all();
    let snapshot = taken(asked).unwrap();
    let SnapshotData::Bytes(bytes) = &snapshot.data else {
        panic!("{snapshot:?}");
    };
    let captured: usize = String::from_utf8_lossy(bytes).parse().unwrap();
    assert!((1..=20).contains(&captured), "{captured}");
    group.stop();
    node.stop();
}
