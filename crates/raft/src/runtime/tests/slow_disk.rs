//! Reads of the log that take long, and engines that are busy, hold up nobody else.

use std::sync::mpsc;

use super::members::Members;
use super::*;
use crate::log::Persisted as _;
use crate::runtime::shared::Addressed as _;

/// Runs something that must not wait.
fn at_once<T: Send + 'static>(what: &str, run: impl FnOnce() -> T + Send + 'static) -> T {
    let (done, ends) = mpsc::channel();
    std::thread::spawn(move || done.send(run()));
    let ended = ends.recv_timeout(WAIT_TIMEOUT);
    ended.unwrap_or_else(|_| panic!("it waits: {what}"))
}

#[test]
fn a_read_for_a_follower_that_has_come_back_holds_up_nothing_else() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(5);
    members.assert_agreed();
    let (leader, away) = (members.leader(), members.follower());
    members.network.cut(&[NodeId(away)]);
    members.write(30);
    // The entries are not in the leader's memory any more, and its disk does not answer.
    let (reads, is_read) = mpsc::channel();
    let (release, released) = mpsc::channel::<()>();
    members.faults[&leader].before_next_read(move || {
        let _ = reads.send(());
        let _ = released.recv();
    });
    members.network.cut(&[]);
    is_read
        .recv_timeout(WAIT_TIMEOUT)
        .expect("the leader reads for the follower");

    let (node, group) = members.nodes[&leader].clone();
    let of = group.clone();
    let seen = at_once("status", move || {
        (
            of.leader(),
            of.status().role,
            of.details().peers.len(),
            of.is_serving(),
        )
    });
    assert_eq!(seen, (Some(NodeId(leader)), crate::Role::Leader, 2, true));
    let of = group.clone();
    at_once("a tick", move || of.tick());
    wait_for("the ticker goes on", || {
        node.ticked() < Duration::from_millis(200)
    });
    // The other follower and the leader go on.
    let of = group.clone();
    let written = at_once("a proposal", move || {
        of.propose("meanwhile".into()).unwrap()
    });
    let written = at_once("its commit", move || written.blocking_recv());
    written.unwrap().unwrap();
    assert!(!members.lines(away).contains(&"meanwhile".to_owned()));
    assert_eq!(members.leader(), leader, "it leads as before");

    release.send(()).unwrap();
    wait_for("the follower has everything", || {
        members.lines(away).contains(&"meanwhile".to_owned())
    });
    assert_eq!(members.lines(away).len(), 36);
}

#[test]
fn a_group_whose_engine_is_busy_holds_up_no_thread_that_serves_others() {
    // Alone, so that nobody else leads meanwhile.
    let mut members = Members::start(&[1]);
    members.write(5);
    members.assert_agreed();
    let leader = members.leader();
    let (node, group) = members.nodes[&leader].clone();
    let last = group.status().last;
    let busy = group.shared.lock();

    let of = group.clone();
    let seen = at_once("looking", move || {
        let peers = of.details().peers.len();
        (
            of.leader(),
            of.status().last,
            of.membership().voters.len(),
            peers,
        )
    });
    assert_eq!(seen, (Some(NodeId(leader)), last, 1, 0));
    let of = group.clone();
    at_once("what the ticker does", move || of.tick());
    let of = group.shared.clone();
    at_once("what the log writer does", move || of.persisted(1 << 40));
    let of = group.shared.clone();
    at_once("what receives messages", move || {
        of.unreachable(NodeId(9));
    });
    let of = group.clone();
    let written = at_once("a proposal", move || of.propose("waits".into()).unwrap());
    let of = group.clone();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .unwrap();
    let mut read = std::pin::pin!(of.read_index());
    let polled = runtime.block_on(std::future::poll_fn(|cx| {
        std::task::Poll::Ready(read.as_mut().poll(cx).is_pending())
    }));
    assert!(polled, "it waits for its answer, and not for the engine");
    let elapsed = std::time::Instant::now();
    wait_for("the ticker goes on", || {
        elapsed.elapsed() > Duration::from_millis(100) && node.ticked() < Duration::from_millis(90)
    });
    assert!(group.status().last == last, "nothing was stepped");

    // Everything that waited is done by whoever releases the engine.
    drop(busy);
    // Another thread may have been quicker to take the engine, and does it then.
    wait_for("what waited is done", || group.status().last > last);
    answer_of(written);
    runtime.block_on(read).unwrap();
}

fn answer_of(written: tokio::sync::oneshot::Receiver<Result<usize, ProposeError>>) {
    let answer = at_once("an answer", move || written.blocking_recv());
    answer.unwrap().unwrap();
}
