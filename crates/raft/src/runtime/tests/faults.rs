//! Full disks, failed syncs, damaged logs, state machines that cannot apply.

use std::os::unix::fs::FileExt as _;
use std::sync::Arc;

use parking_lot::Mutex;

use super::*;
use crate::log::fs::WriteFault;

fn names_the_cause(refused: &ProposeError, fault: WriteFault) {
    let ProposeError::LogUnwritable { why } = refused else {
        panic!("{fault:?}: {refused}");
    };
    let cause = match fault {
        WriteFault::Io => "os error 5",
        WriteFault::NoSpace => "os error 28",
        // raft-engine's message for it.
        _ => "nospace",
    };
    assert!(why.contains(cause), "{fault:?}: {why}");
}

#[test]
fn a_full_disk_refuses_new_proposals_and_loses_none_that_was_under_way() {
    for (round, fault) in [
        WriteFault::NoSpace,
        WriteFault::NoSpaceRotate,
        WriteFault::Io,
    ]
    .into_iter()
    .enumerate()
    {
        let (_keep, dir) = scratch();
        let stores = [Store::default(), Store::default()];
        let faults = Faults::new();
        let host = Host::start(&dir, &faults, &stores);
        let mut expected = [numbered("before", 20), numbered("before", 20)];
        for (group, expected) in host.groups.iter().zip(&expected) {
            execute_all(group, expected);
        }

        // The disk fills up in the midst of a write: the smallest has more bytes.
        faults.fail_writes_after(20 * round as u64, fault);
        let mut under_way = Vec::new();
        for (group, expected) in host.groups.iter().zip(&mut expected) {
            for command in numbered("meanwhile", 10) {
                match group.propose(command.clone().into()) {
                    Ok(waiting) => {
                        under_way.push(waiting);
                        expected.push(command);
                    }
                    Err(refused) => names_the_cause(&refused, fault),
                }
            }
        }
        wait_for("the log stalls", || host.groups[0].status().stalled);
        for group in &host.groups {
            let refused = group.propose("refused".into()).unwrap_err();
            names_the_cause(&refused, fault);
            assert!(refused.has_no_side_effects());
        }
        std::thread::sleep(Duration::from_millis(250));
        for waiting in &mut under_way {
            assert!(waiting.try_recv().is_err(), "nothing is durable yet");
        }

        faults.clear();
        assert!(!under_way.is_empty());
        for waiting in under_way {
            answer(waiting).unwrap();
        }
        wait_for("the log resumes", || !host.groups[0].status().stalled);
        for (group, expected) in host.groups.iter().zip(&mut expected) {
            execute(group, "after").unwrap();
            expected.push("after".to_owned());
        }
        host.stop();

        let reopened = [Store::default(), Store::default()];
        let host = Host::start(&dir, &Faults::new(), &reopened);
        for (store, expected) in reopened.iter().zip(&expected) {
            assert_eq!(&store.commands(), expected, "{fault:?}");
        }
        host.stop();
    }
}

#[test]
fn a_stop_while_the_disk_is_full_gives_up_what_was_never_acknowledged() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
    let acknowledged = numbered("before", 20);
    execute_all(&host.groups[0], &acknowledged);
    faults.fail_writes_after(10, WriteFault::NoSpace);
    let waiting = host.groups[0].propose("lost".into()).unwrap();
    wait_for("the log stalls", || host.groups[0].status().stalled);
    host.stop();
    assert_eq!(answer(waiting), Err(ProposeError::Unknown));

    let reopened = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&reopened));
    assert_eq!(reopened.commands(), acknowledged);
    host.stop();
}

#[test]
fn a_failed_sync_is_reported_with_its_file_and_nothing_is_acknowledged_after_it() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
    let acknowledged = numbered("before", 10);
    execute_all(&host.groups[0], &acknowledged);

    let heard = Arc::new(Mutex::new(Vec::new()));
    // In production, this is where the process ends.
    faults.catch_failed_sync({
        let heard = heard.clone();
        move |path, error| heard.lock().push((path.to_owned(), error.to_string()))
    });
    faults.fail_sync(true);
    let group = &host.groups[0];
    let mut after: Vec<_> = numbered("after", 5)
        .into_iter()
        .map(|c| group.propose(c.into()).unwrap())
        .collect();
    wait_for("the failure is heard of", || !heard.lock().is_empty());
    faults.clear();
    // The next sync would succeed; there must be none.
    after.extend(group.propose("later".into()));
    std::thread::sleep(Duration::from_millis(200));
    for waiting in &mut after {
        assert!(waiting.try_recv().is_err(), "acknowledged after a failure");
    }
    assert_eq!(store.commands(), acknowledged);
    let heard = heard.lock().clone();
    let [(path, error)] = &heard[..] else {
        panic!("one failure, not {heard:?}");
    };
    assert_eq!(path.parent(), Some(dir.as_path()));
    assert_eq!(path.extension().unwrap(), "raftlog");
    assert!(error.contains("os error 5"), "{error}");
    host.stop();
    for waiting in after {
        assert_eq!(answer(waiting), Err(ProposeError::Unknown));
    }

    let reopened = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&reopened));
    let found = reopened.commands();
    assert_eq!(found[..acknowledged.len()], acknowledged);
    host.stop();
}

#[test]
fn entries_that_cannot_be_applied_are_tried_again_and_proposals_are_refused_meanwhile() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    execute(group, "before").unwrap();
    store.fail_applies(4);
    let waiting = group.propose("stuck".into()).unwrap();
    wait_for("the group stalls", || group.status().stalled);
    let refused = group.propose("refused".into()).unwrap_err();
    assert!(matches!(refused, ProposeError::Stalled { .. }), "{refused}");
    assert!(refused.has_no_side_effects());

    let answered = answer(waiting).unwrap();
    assert_eq!(
        (answered.command.as_str(), answered.position),
        ("stuck", 1),
        "what a failed apply answered does not count"
    );
    assert_eq!(
        store.refused(),
        vec![vec![answered.lsn]; 4],
        "the same entries each time"
    );
    wait_for("the group resumes", || !group.status().stalled);
    execute(group, "after").unwrap();
    assert_eq!(store.commands(), ["before", "stuck", "after"]);
    host.stop();
}

#[test]
fn a_group_whose_entries_cannot_be_applied_can_be_stopped_and_has_them_after_a_restart() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    execute(&host.groups[0], "before").unwrap();
    store.fail_applies(usize::MAX);
    let waiting = host.groups[0].propose("stuck".into()).unwrap();
    wait_for("the group stalls", || host.groups[0].status().stalled);
    host.stop();
    assert_eq!(answer(waiting), Err(ProposeError::Unknown));
    assert_eq!(store.commands(), ["before"]);

    store.fail_applies(0);
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    assert_eq!(store.commands(), ["before", "stuck"]);
    host.stop();
}

#[test]
fn a_group_whose_log_cannot_be_read_halts_and_answers_pending_proposals() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let host = Host::start(&dir, &Faults::new(), &stores);
    let (group, other) = (&host.groups[0], &host.groups[1]);
    execute_all(group, &numbered("c", 50));
    // An answer comes before the engine gets `Applied`; the answer of the next proposal comes after it.
    execute(group, "one more").unwrap();
    // Applied, durable, and so no longer in memory; now the disk loses it.
    damage(&dir);
    stores[0].fail_applies(usize::MAX);
    let waiting = group.propose("under way".into()).unwrap();
    // A snapshot needs the term of an entry that cannot be read.
    group.shared.lock().forget_terms();
    group.snapshot_known(Lsn(25), crate::Term(1));
    assert_eq!(answer(waiting), Err(ProposeError::Unknown));
    stores[0].fail_applies(0);
    wait_for("what was handed out is applied", || !group.status().stalled);
    let refused = group.propose("refused".into()).unwrap_err();
    let ProposeError::Halted { why, reopens } = &refused else {
        panic!("{refused}");
    };
    assert!(refused.has_no_side_effects());
    assert!(!reopens, "damage does not pass: {why}");
    assert_eq!(group.halted().map(|halted| halted.why).as_ref(), Some(why));
    assert!(group.status().halted && !other.status().halted);
    // Other requests from here on are answered too.
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        let all = async {
            assert_eq!(
                group.read_index().await,
                Err(crate::engine::ReadFailure::Stopped)
            );
            let changed = group.add_learner(crate::NodeId(9)).await;
            assert!(changed.is_err(), "{changed:?}");
            let passed_on = group.transfer_leadership(crate::NodeId(9)).await;
            assert!(passed_on.is_err(), "{passed_on:?}");
            group.wait_until_serving().await;
        };
        let answered = tokio::time::timeout(WAIT_TIMEOUT, all).await;
        answered.expect("every wait ends");
    });
    execute(other, "goes on").unwrap();
    host.stop();
}

/// Overwrites the contents of the log's files, in place.
pub(super) fn damage(dir: &Path) {
    for file in std::fs::read_dir(dir).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|e| e == "raftlog") {
            let file = std::fs::OpenOptions::new().write(true).open(&path).unwrap();
            let len = file.metadata().unwrap().len();
            file.write_all_at(&vec![0xa5; len as usize - 64], 64)
                .unwrap();
        }
    }
}

#[test]
fn a_change_of_the_membership_that_does_not_come_about_ends_with_an_answer() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
    execute(&host.groups[0], "before").unwrap();
    faults.fail_writes_after(0, WriteFault::NoSpace);
    let group = host.groups[0].clone();
    let changing = std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread();
        let runtime = { runtime }.build().unwrap();
        runtime.block_on(group.add_learner(NodeId(2)))
    });
    wait_for("it is answered", || changing.is_finished());
    assert_eq!(changing.join().unwrap(), Err(ChangeError::TimedOut));
    assert!(!host.groups[0].membership().contains(NodeId(2)));
    // It comes about once it can.
    faults.clear();
    let added = || host.groups[0].membership().contains(NodeId(2));
    wait_for("the change is in force", added);
    host.stop();
}
