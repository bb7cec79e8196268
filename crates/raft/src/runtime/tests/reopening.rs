//! Groups that halt for a cause that passes are opened again by themselves; others are not.

use super::*;
use crate::engine::Committed;
use crate::ids::Term;

/// Halts a group: a snapshot needs the term of an entry that is not in memory, and the disk does not give
/// it.
fn halt(host: &Host, faults: &Faults) {
    let group = &host.groups[0];
    faults.fail_reads(true);
    group.shared.lock().forget_terms();
    group.snapshot_known(Lsn(25), Term(1));
    wait_for("the group halts", || group.status().halted);
}

fn is_well(group: &Group<Answer>) -> bool {
    !group.status().halted && group.is_serving()
}

#[test]
fn a_group_whose_log_could_not_be_read_for_a_while_goes_on_and_has_lost_nothing() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, &stores);
    let (group, other) = (&host.groups[0], &host.groups[1]);
    execute_all(group, &numbered("c", 50));
    group.keep_from(Lsn(10));
    // An answer comes before the engine gets `Applied`; the answer of the next proposal comes after it.
    execute(group, "one more").unwrap();
    stores[0].fail_applies(usize::MAX);
    let waiting = group.propose("under way".into()).unwrap();
    stores[0].flush();
    halt(&host, &faults);
    assert_eq!(answer(waiting), Err(ProposeError::Unknown));
    stores[0].fail_applies(0);
    wait_for("what was handed out is applied", || !group.status().stalled);
    let refused = group.propose("refused".into()).unwrap_err();
    assert!(
        matches!(refused, ProposeError::Halted { reopens: true, .. }),
        "{refused}"
    );
    assert!(refused.has_no_side_effects());
    execute(other, "goes on").unwrap();

    // As long as the cause exists, it stays halted and reports why.
    let failures = || group.shared.reopening.as_ref().unwrap().failures();
    wait_for("an attempt fails", || failures() == 2);
    let halted = group.halted().expect("the disk still refuses");
    assert!(halted.reopens && halted.why.contains("25"), "{halted:?}");
    faults.clear();
    wait_for("the group goes on", || is_well(group));
    execute(group, "after").unwrap();
    assert_eq!(group.counters().reopened, 1);
    // The host's reports are known again.
    let status = group.status();
    assert_eq!((status.floor, status.log_start), (Lsn(25), Lsn(10)));
    let mut expected = numbered("c", 50);
    expected.extend(["one more", "under way", "after"].map(str::to_owned));
    assert_eq!(stores[0].commands(), expected);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    let read =
        runtime.block_on(async { tokio::time::timeout(WAIT_TIMEOUT, group.read_index()).await });
    assert!(read.unwrap().is_ok(), "requests are answered again");
    host.stop();

    let host = Host::start(&dir, &Faults::new(), &stores);
    assert_eq!(stores[0].commands(), expected);
    host.stop();
}

#[test]
fn a_group_that_was_handed_something_else_than_what_follows_is_opened_again_on_what_it_has() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute(group, "before").unwrap();
    let status = group.status();
    group.shared.apply.push(vec![Committed {
        lsn: Lsn(status.applied.0 + 5),
        term: status.term,
        command: Some("from nowhere".into()),
        membership: None,
        checksum: 0,
    }]);
    wait_for("it was opened again", || group.counters().reopened == 1);
    wait_for("the group goes on", || is_well(group));
    execute(group, "after").unwrap();
    assert_eq!(store.commands(), ["before", "after"]);
    host.stop();
}

#[test]
fn a_halted_group_can_be_stopped_while_it_waits_to_be_opened_again() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
    execute_all(&host.groups[0], &numbered("c", 50));
    execute(&host.groups[0], "one more").unwrap();
    halt(&host, &faults);
    host.stop();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    assert_eq!(store.commands().len(), 51);
    host.stop();
}

#[test]
fn a_group_whose_log_is_damaged_stays_halted() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute_all(group, &numbered("c", 50));
    execute(group, "one more").unwrap();
    super::faults::damage(&dir);
    group.shared.lock().forget_terms();
    group.snapshot_known(Lsn(25), Term(1));
    wait_for("the group halts", || group.status().halted);
    let halted = group.halted().unwrap();
    assert!(!halted.reopens, "{halted:?}");
    assert_eq!(group.counters().reopened, 0);
    host.stop();
}
