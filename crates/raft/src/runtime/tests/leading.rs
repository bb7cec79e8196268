//! What is known of who leads.

use std::sync::mpsc;

use super::*;

#[test]
fn who_leads_is_known_while_another_thread_works_for_the_group() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    let group = &host.groups[0];
    let answer = group.propose(b"c".to_vec()).unwrap();
    answer.blocking_recv().unwrap().unwrap();

    let working = group.shared.engine.lock();
    let (seen, found) = mpsc::channel();
    let looking = std::thread::spawn({
        let group = group.clone();
        move || {
            // Whoever waits for it may have given up.
            let _ = seen.send((group.leader(), group.is_serving(), group.serving_term()));
        }
    });
    let found = found.recv_timeout(WAIT_TIMEOUT);
    let expected = (working.leader(), true, Some(working.term()));
    drop(working);
    looking.join().unwrap();
    assert_eq!(found, Ok(expected), "a request would have waited");
    assert!(expected.0.is_some());
    host.stop();
}
