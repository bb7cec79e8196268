//! A state that is replaced by a peer's snapshot, or cannot be, with entries waiting to be applied.

use std::sync::atomic::Ordering;

use super::members::{GROUP, Members};
use super::*;
use crate::engine::Committed;
use crate::message::Payload;

/// Leaves a member so far behind that its state is to be replaced, and waits until the install begins.
fn begin_install(members: &mut Members, behind: u64) {
    members.leave_behind(behind, 20);
    members.network.cut(&[]);
    wait_for("the state is to be replaced", || {
        let transfers = members.group(behind).details().transfers;
        transfers.iter().any(|t| t.installing)
    });
}

/// Drops offers from now on, so that no second one hides the result of the first.
fn refuse_offers(members: &Members) {
    let offered = |payload: &Payload| matches!(payload, Payload::Offer(_));
    let no_offer = Box::new(move |m: &mut crate::Envelope| !offered(&m.payload));
    members.network.filter(Some(no_offer));
}

#[test]
fn entries_that_wait_while_an_install_fails_are_applied() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    members.assert_agreed();
    let behind = members.follower();
    let knobs = members.knobs[&behind].clone();
    knobs.held.store(true, Ordering::SeqCst);
    knobs.failing_restores.store(1, Ordering::SeqCst);
    members.write(30);
    let (before, leader) = (members.written(), members.leader());
    let committed = members.group(leader).status().committed;
    wait_for("they wait to be applied", || {
        members.group(behind).status().committed == committed
    });
    begin_install(&mut members, behind);

    refuse_offers(&members);
    let fetched = members.group(behind).counters().bytes_fetched;
    knobs.held.store(false, Ordering::SeqCst);
    wait_for("the install fails", || {
        members.group(behind).counters().engine.fetches_failed == 1
    });
    wait_for("what waited is applied", || {
        members.group(behind).status().applied == committed
    });
    assert_eq!(members.lines(behind), before);

    members.network.filter(None);
    members.assert_agreed();
    let counters = members.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1, "the next offer");
    assert_eq!(counters.bytes_fetched, fetched, "nothing was fetched again");
}

#[test]
fn a_fetch_that_cannot_be_read_at_its_install_is_kept_and_not_fetched_again() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    members.assert_agreed();
    let behind = members.follower();
    members.end(behind);
    let faults = crate::store::DiskFaults::default();
    let options = GroupOptions {
        faults: faults.clone(),
        ..GroupOptions::reopening(GROUP)
    };
    members.try_run(behind, options).unwrap();
    members.assert_agreed();
    let knobs = members.knobs[&behind].clone();
    knobs.held.store(true, Ordering::SeqCst);
    members.write(1);
    let committed = members.group(members.leader()).status().committed;
    wait_for("an apply is held", || {
        members.group(behind).status().committed == committed
    });
    begin_install(&mut members, behind);
    refuse_offers(&members);
    let fetched = members.group(behind).counters().bytes_fetched;
    faults.fail_once_after(0);
    knobs.held.store(false, Ordering::SeqCst);
    wait_for("the install fails", || {
        members.group(behind).counters().engine.fetches_failed == 1
    });
    let names = std::fs::read_dir(members.snapshots_dir(behind)).unwrap();
    let mut names = names.map(|name| name.unwrap().file_name().into_string().unwrap());
    assert!(names.any(|name| name.starts_with("fetch-")), "it is kept");

    members.network.filter(None);
    members.assert_agreed();
    let counters = members.group(behind).counters();
    assert_eq!(counters.engine.snapshots_received, 1);
    assert_eq!(counters.bytes_fetched, fetched, "nothing was fetched again");
}

#[test]
fn an_install_that_was_interrupted_is_completed_on_a_node_that_is_alone_by_now() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    members.assert_agreed();
    let behind = members.follower();
    let knobs = members.knobs[&behind].clone();
    knobs.held.store(true, Ordering::SeqCst);
    knobs.failing_restores.store(1, Ordering::SeqCst);
    members.write(30);
    begin_install(&mut members, behind);
    refuse_offers(&members);
    knobs.held.store(false, Ordering::SeqCst);
    wait_for("the install fails", || {
        members.group(behind).counters().engine.fetches_failed == 1
    });
    members.end(behind);

    // The fetch is whole. A database would have the state that it replaces.
    let config = NodeConfig::new(NodeId(behind), &members.data_dir(behind));
    let (node, _) = Node::start(config, Faults::default()).unwrap();
    let options = GroupOptions::reopening(GROUP);
    let fetched = std::fs::read_dir(members.snapshots_dir(behind)).unwrap();
    let fetched = fetched.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    assert_eq!(fetched.filter(|name| name.starts_with("fetch-")).count(), 1);
    let leader = members.leader();
    let after = members.group(leader).status().floor;
    assert!(node.log().state(GROUP).unwrap().last < after);
    node.complete_install(GROUP, options.lineage, after)
        .unwrap();
    let state = node.log().state(GROUP).unwrap();
    node.stop();
    assert_eq!((state.start.lsn, state.last), (after, after));
}

#[test]
fn a_group_whose_entries_do_not_follow_each_other_stops_and_applies_none_of_them() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let host = Host::start(&dir, &Faults::new(), &stores);
    let (group, other) = (&host.groups[0], &host.groups[1]);
    execute_all(group, &numbered("c", 3));
    // An answer comes before the status has it.
    wait_for("the status has it", || {
        let status = group.status();
        status.applied == status.last
    });
    let status = group.status();
    group.shared.apply.push(vec![Committed {
        lsn: Lsn(status.applied.0 + 2),
        term: status.term,
        command: Some("out of order".into()),
        membership: None,
        checksum: 0,
    }]);
    wait_for("the group halts", || group.status().halted);
    let refused = group.propose("refused".into());
    assert!(matches!(refused, Err(ProposeError::Halted { .. })));
    assert_eq!(stores[0].commands(), numbered("c", 3));
    assert_eq!(group.status().applied, status.applied);
    execute(other, "goes on").unwrap();
    host.stop();
}
