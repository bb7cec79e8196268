//! What an append costs at the node that leads: nothing of it is copied, kept, or counted a second time.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use axum::extract::Request;
use http::StatusCode;

use super::{Leader, Member, appends, pair};

const RECORDS: usize = 1000;

/// Counts its copies: it is among the extensions of a request, which are copied with its head.
#[derive(Default)]
struct Counted(Arc<AtomicUsize>);

impl Clone for Counted {
    fn clone(&self) -> Counted {
        self.0.fetch_add(1, Ordering::SeqCst);
        Counted(self.0.clone())
    }
}

/// An append, and the number of copies of its head.
fn counted() -> (Request, Arc<AtomicUsize>) {
    let (mut request, counted) = (appends(RECORDS), Counted::default());
    let copies = counted.0.clone();
    request.extensions_mut().insert(counted);
    (request, copies)
}

fn most_kept(member: &Member) -> usize {
    member.handled.most_kept.load(Ordering::SeqCst)
}

#[tokio::test]
async fn an_append_that_a_leader_gets_is_neither_copied_nor_counted_twice() {
    let (_one, two) = pair();
    let (request, copies) = counted();
    let answer = two.ask(request).await;
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!(two.handled.count(), 1);
    assert_eq!(copies.load(Ordering::SeqCst), 0, "copies of the head");
    assert_eq!(most_kept(&two), 0, "bytes of the body that are kept");
}

#[tokio::test]
async fn an_append_that_a_leader_refuses_to_propose_goes_to_the_next_one_whole() {
    for becomes_leader_again in [false, true] {
        let (one, two) = pair();
        let refusals = match becomes_leader_again {
            true => 1,
            false => usize::MAX,
        };
        two.handled.refuses.store(refusals, Ordering::SeqCst);
        let moves = async {
            super::eventually("it is refused", || {
                two.handled.refused.load(Ordering::SeqCst) > 0
            })
            .await;
            if !becomes_leader_again {
                one.leads(Leader::Here);
                two.leads(Leader::At(1));
            }
        };
        let (request, _) = counted();
        let (answer, ()) = tokio::join!(two.ask(request), moves);
        assert_eq!(answer.status(), StatusCode::CREATED);
        let (new, old) = match becomes_leader_again {
            true => (&two, &one),
            false => (&one, &two),
        };
        let appended = new.handled.requests.lock().unwrap().remove(0);
        assert_eq!(appended.1, RECORDS.to_string());
        assert_eq!(old.handled.count(), 0);
        // From then on it is kept, and counts, until it is answered.
        if becomes_leader_again {
            assert!(most_kept(&two) > 8 * RECORDS, "{}", most_kept(&two));
        }
        for member in [&one, &two] {
            assert_eq!(member.forwarder.bodies.held(), 0);
        }
    }
}

#[tokio::test]
async fn an_append_that_begins_while_the_leadership_moves_waits_and_is_made_once() {
    let (one, two) = pair();
    two.node.is_moving.store(true, Ordering::SeqCst);
    let moves = async {
        tokio::time::sleep(super::WHILE).await;
        assert_eq!(two.handled.count(), 0);
        one.leads(Leader::Here);
        two.leads(Leader::At(1));
    };
    let (answer, ()) = tokio::join!(two.ask(appends(RECORDS)), moves);
    assert_eq!(answer.status(), StatusCode::CREATED);
    assert_eq!((one.handled.count(), two.handled.count()), (1, 0));
}
