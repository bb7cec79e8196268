//! Who is answered what, and when.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::*;

/// As long as it is there, no sync ends. A test that fails drops it before it waits for the node.
struct HeldSync<'a>(&'a Faults);

impl HeldSync<'_> {
    fn of(faults: &Faults) -> HeldSync<'_> {
        faults.hold_sync(true);
        HeldSync(faults)
    }
}

impl Drop for HeldSync<'_> {
    fn drop(&mut self) {
        self.0.hold_sync(false);
    }
}

#[test]
fn answers_come_in_the_order_of_the_proposals() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let commands = numbered("c", 500);
    let mut waiting: Vec<_> = commands
        .iter()
        .map(|c| host.groups[0].propose(c.clone().into()).unwrap())
        .collect();
    let mut answered = vec![false; commands.len()];
    let started = Instant::now();
    while answered.contains(&false) {
        assert!(started.elapsed() < WAIT_TIMEOUT, "not all are answered");
        // From the last one backwards: when one is answered, so are all before it.
        let mut later = false;
        for (waiting, answered) in waiting.iter_mut().zip(&mut answered).rev() {
            *answered |= waiting.try_recv().is_ok();
            assert!(*answered || !later, "a later one was answered first");
            later |= *answered;
        }
    }
    assert_eq!(store.commands(), commands);
    host.stop();
}

#[test]
fn every_one_of_many_threads_gets_the_answer_to_its_own_command() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let host = Host::start(&dir, &Faults::new(), &stores);
    let mut expected = 0;
    std::thread::scope(|scope| {
        for thread in 0..8 {
            expected += 100;
            let group = &host.groups[thread % 2];
            scope.spawn(move || {
                let mut position = None;
                for command in numbered(&format!("t{thread}"), 100) {
                    let answer = execute(group, &command).unwrap();
                    assert_eq!(answer.command, command);
                    assert!(Some(answer.position) > position, "its own come in order");
                    position = Some(answer.position);
                }
            });
        }
    });
    for store in &stores {
        let commands = store.commands();
        assert_eq!(commands.len(), expected / 2);
        assert_no_repetition(&commands, "both groups");
    }
    host.stop();
}

#[test]
fn proposals_of_all_groups_share_the_syncs() {
    let (_keep, dir) = scratch();
    let stores: Vec<_> = (0..4).map(|_| Store::default()).collect();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, &stores);
    let before = host.node.writer().counts();
    // One sync ends when everything is proposed, and no sooner.
    let held = HeldSync::of(&faults);
    let mut waiting = Vec::new();
    for n in 0..100 {
        for group in &host.groups {
            waiting.push(group.propose(format!("c-{n}").into()).unwrap());
        }
    }
    let proposals = waiting.len() as u64;
    drop(held);
    for waiting in waiting {
        answer(waiting).unwrap();
    }
    let after = host.node.writer().counts();
    let (groups, requests) = (
        after.groups - before.groups,
        after.requests - before.requests,
    );
    assert!(requests >= proposals, "{requests} of {proposals}");
    assert!(
        groups <= proposals / 10,
        "{groups} syncs for {proposals} proposals"
    );
    faults.clear();
    host.stop();
}

#[test]
fn no_proposal_is_answered_before_the_sync_that_covers_it() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, &stores);
    let stall = Duration::from_millis(120);
    faults.stall_sync(stall);
    std::thread::scope(|scope| {
        for thread in 0..6 {
            let group = &host.groups[thread % 2];
            scope.spawn(move || {
                // So that proposals come at every moment of other proposals' syncs.
                std::thread::sleep(stall.mul_f64(thread as f64 / 6.0));
                for command in numbered(&format!("t{thread}"), 4) {
                    let proposed = Instant::now();
                    execute(group, &command).unwrap();
                    let took = proposed.elapsed();
                    // Its own sync begins after it was proposed, and takes that long.
                    assert!(took >= stall, "answered after {took:?}, before its sync");
                }
            });
        }
    });
    faults.clear();
    host.stop();
}

#[test]
fn nothing_is_applied_while_its_sync_is_under_way() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, std::slice::from_ref(&store));
    let stall = Duration::from_millis(300);
    faults.stall_sync(stall);
    let proposed = Instant::now();
    let mut waiting: Vec<_> = numbered("c", 20)
        .into_iter()
        .map(|c| host.groups[0].propose(c.into()).unwrap())
        .collect();
    loop {
        let applied = store.commands().len();
        let answered = waiting.iter_mut().filter_map(|w| w.try_recv().ok()).count();
        // Evaluated before the clock is read: after this time, an answer is due.
        if proposed.elapsed() >= stall {
            break;
        }
        assert_eq!((applied, answered), (0, 0), "nothing is durable yet");
        std::thread::sleep(Duration::from_millis(2));
    }
    wait_for("all are applied", || store.commands().len() == 20);
    faults.clear();
    host.stop();
}

#[test]
fn the_guard_of_a_proposal_is_dropped_when_it_is_answered_whether_anybody_listens_or_not() {
    struct Admission(Arc<AtomicUsize>);
    impl Drop for Admission {
        fn drop(&mut self) {
            self.0.fetch_sub(1, Ordering::SeqCst);
        }
    }
    let (_keep, dir) = scratch();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, &[Store::default()]);
    let admitted = Arc::new(AtomicUsize::new(0));
    let propose = |command: &str| {
        admitted.fetch_add(1, Ordering::SeqCst);
        let guard = Box::new(Admission(admitted.clone()));
        let attached = Attached {
            guard: Some(guard),
            ..Attached::default()
        };
        host.groups[0].propose_with(command.into(), attached)
    };
    let held = HeldSync::of(&faults);
    let listened = propose("a").unwrap();
    drop(propose("b").unwrap());
    assert_eq!(
        admitted.load(Ordering::SeqCst),
        2,
        "kept while under way, also for those who left"
    );
    drop(held);
    answer(listened).unwrap();
    wait_for("both are dropped", || admitted.load(Ordering::SeqCst) == 0);

    host.groups[0].stop();
    assert!(propose("c").is_err());
    assert_eq!(admitted.load(Ordering::SeqCst), 0, "refused, dropped");
    host.stop();
}

#[test]
fn a_group_serves_once_it_has_applied_everything_from_before_its_term() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    execute_all(&host.groups[0], &numbered("c", 1000));
    host.stop();

    let (node, _) = Node::start(config(&dir), Faults::new()).unwrap();
    let reopened = Store::default();
    let group = open_group(&node, 0, &reopened).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap();
    runtime.block_on(async {
        tokio::time::timeout(WAIT_TIMEOUT, group.wait_until_serving())
            .await
            .expect("the group serves");
    });
    assert_eq!(reopened.commands(), store.commands());
    group.stop();
    node.stop();
}

#[test]
fn too_many_proposals_at_once_are_busy_and_leave_no_trace() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let faults = Faults::new();
    let mut config = config(&dir);
    config.max_pending_proposals = 10;
    let (node, _) = Node::start(config, faults.clone()).unwrap();
    let group = open_group(&node, 0, &store).unwrap();
    wait_for("the group serves", || store.applied() == Lsn(1));
    let held = HeldSync::of(&faults);
    let (mut accepted, mut waiting) = (Vec::new(), Vec::new());
    let mut busy = 0;
    for command in numbered("c", 30) {
        match group.propose(command.clone().into()) {
            Ok(answer) => {
                accepted.push(command);
                waiting.push(answer);
            }
            Err(refused) => {
                assert_eq!(refused, ProposeError::Busy);
                assert!(refused.has_no_side_effects());
                busy += 1;
            }
        }
    }
    drop(held);
    for waiting in waiting {
        answer(waiting).unwrap();
    }
    assert_eq!(busy, 20, "of 30 were refused");
    assert_eq!(store.commands(), accepted);
    group.stop();
    node.stop();
}

#[test]
fn the_observer_of_a_proposal_is_called_once_it_is_durable_and_before_it_is_answered() {
    let (_keep, dir) = scratch();
    let faults = Faults::new();
    let host = Host::start(&dir, &faults, &[Store::default()]);
    let committed = Arc::new(AtomicUsize::new(0));
    let propose = |command: &str| {
        let committed = committed.clone();
        let attached = Attached {
            observer: Some(Box::new(move || {
                committed.fetch_add(1, Ordering::SeqCst);
            })),
            ..Attached::default()
        };
        host.groups[0].propose_with(command.into(), attached)
    };
    let held = HeldSync::of(&faults);
    let (first, second) = (propose("a").unwrap(), propose("b").unwrap());
    assert_eq!(committed.load(Ordering::SeqCst), 0, "nothing is synced yet");
    drop(held);
    answer(first).unwrap();
    assert!(committed.load(Ordering::SeqCst) >= 1);
    answer(second).unwrap();
    assert_eq!(committed.load(Ordering::SeqCst), 2, "each is called once");

    host.groups[0].stop();
    assert!(propose("c").is_err());
    assert_eq!(committed.load(Ordering::SeqCst), 2, "refused, not called");
}

#[test]
#[cfg(target_os = "linux")]
fn what_clients_wait_for_is_applied_on_a_thread_with_a_short_time_slice() {
    let (_keep, dir) = scratch();
    let host = Host::start(&dir, &Faults::new(), &[Store::default()]);
    let (tell, told) = std::sync::mpsc::channel();
    let attached = Attached {
        observer: Some(Box::new(move || {
            let _ = tell.send(crate::priority::has_short_time_slice());
        })),
        ..Attached::default()
    };
    let waiting = host.groups[0].propose_with("a".into(), attached).unwrap();
    answer(waiting).unwrap();
    assert_ne!(told.recv_timeout(WAIT_TIMEOUT).unwrap(), Some(false));
    host.stop();
}
