//! Nodes that answer where another one was: nothing of what is for the other one goes to them, and nodes are found where
//! they are.

use super::super::grpc::{CallError, GrpcTransport, call_at};
use super::calls::{Door, Echo, LONG, config, node, runtime};
use super::*;

fn open(of: u64) -> GrpcTransport {
    node(of, "s", Arc::default())
}

/// Sends messages of node 1 until each of these has got one.
fn until_all_got_one(one: &GrpcTransport, heard: &[(u64, &Arc<Heard>)]) {
    wait_for("all have got one", || {
        for (node, _) in heard {
            one.send(numbered(*node, 1));
        }
        std::thread::sleep(Duration::from_millis(10));
        heard.iter().all(|(_, it)| !it.messages.lock().is_empty())
    });
}

fn are_for(heard: &Heard, node: u64) -> bool {
    let messages = heard.messages.lock();
    messages.iter().all(|message| message.to == NodeId(node))
}

#[test]
fn a_node_at_the_address_of_another_gets_nothing_that_is_for_that_one() {
    let (one, three) = (open(1), open(3));
    let (of_one, of_three) = (started(&one), started(&three));
    one.set_peer(NodeId(2), three.address().to_string());
    wait_for("node 2 is found to be elsewhere", || {
        one.send(numbered(2, 1));
        std::thread::sleep(Duration::from_millis(5));
        one.answers_as(NodeId(2)) == Some(NodeId(3))
    });
    wait_for("it is reported", || {
        of_one.unreachable.lock().contains(&NodeId(2))
    });
    for number in 0..100 {
        one.send(numbered(2, number));
        std::thread::sleep(Duration::from_millis(2));
    }
    assert!(of_three.messages.lock().is_empty());
    assert_eq!(one.answers_as(NodeId(3)), None);
    // Node 3 itself is reached there.
    one.set_peer(NodeId(3), three.address().to_string());
    until_all_got_one(&one, &[(3, &of_three)]);
    assert!(are_for(&of_three, 3));
    // A node that is where it should be again.
    let two = open(2);
    let of_two = started(&two);
    one.set_peer(NodeId(2), two.address().to_string());
    until_all_got_one(&one, &[(2, &of_two)]);
    assert_eq!(one.answers_as(NodeId(2)), None);
}

#[test]
fn nodes_whose_addresses_were_exchanged_are_found_by_what_answers_there() {
    let (one, two, three) = (open(1), open(2), open(3));
    let (_of_one, of_two, of_three) = (started(&one), started(&two), started(&three));
    one.set_peer(NodeId(2), three.address().to_string());
    one.set_peer(NodeId(3), two.address().to_string());
    until_all_got_one(&one, &[(2, &of_two), (3, &of_three)]);
    assert!(are_for(&of_two, 2) && are_for(&of_three, 3));
    assert_eq!(one.answers_as(NodeId(2)), Some(NodeId(3)));
    // Requests of the host go there, too.
    two.answer_calls(Arc::new(Echo));
    let answer = runtime().block_on(one.call(NodeId(2), "hello", "x".into(), LONG));
    assert_eq!(answer.unwrap(), r#"hello of 1: b"x""#);
}

#[test]
fn a_node_that_moved_is_found_by_what_it_tells_when_it_connects() {
    let (one, two, three) = (open(1), open(2), open(3));
    let (of_one, of_two, of_three) = (started(&one), started(&two), started(&three));
    // Where node 2 was, node 3 is now; and only node 2 knows where it is itself.
    one.set_peer(NodeId(2), three.address().to_string());
    two.set_peer(NodeId(1), one.address().to_string());
    wait_for("both have got something", || {
        one.send(numbered(2, 1));
        let as_two: Identity = from(2);
        let Payload::Ended(ended) = numbered(1, 1).payload else {
            unreachable!("it is one");
        };
        two.send(as_two.seal(NodeId(1), Payload::Ended(ended)));
        std::thread::sleep(Duration::from_millis(10));
        !of_one.messages.lock().is_empty() && !of_two.messages.lock().is_empty()
    });
    assert!(are_for(&of_two, 2));
    assert!(of_three.messages.lock().is_empty());
}

#[test]
fn a_request_for_another_node_is_refused_before_anything_of_it_is_used() {
    let (one, three) = (open(1), open(3));
    let _hears = (started(&one), started(&three));
    three.answer_calls(Arc::new(Echo));
    one.set_peer(NodeId(2), three.address().to_string());
    runtime().block_on(async {
        let called = one.call(NodeId(2), "hello", Bytes::new(), LONG).await;
        let why = "this is node 3, and not node 2".to_owned();
        assert_eq!(called, Err(CallError::Unavailable(why)));
        // Where only the address is known, any node is right.
        let address = three.address().to_string();
        let config = config(1, "s", None);
        let called = call_at(&address, &config, "hello", Bytes::new(), LONG).await;
        assert_eq!(called.unwrap(), r#"hello of 1: b"""#);
    });
}

#[test]
fn a_secret_is_replaced_while_both_are_accepted() {
    let (one, two) = (
        node(1, "old", Arc::new(Door::default())),
        node(2, "old", Arc::default()),
    );
    let _hears = (started(&one), started(&two));
    two.answer_calls(Arc::new(Echo));
    let address = two.address().to_string();
    let called = |secret: &str| {
        let config = config(1, secret, None);
        let called = call_at(&address, &config, "hello", Bytes::new(), LONG);
        runtime().block_on(called).is_ok()
    };
    assert!(called("old") && !called("new"));
    let texts = |all: &[&str]| all.iter().map(|it| (*it).to_owned()).collect::<Vec<_>>();
    assert!(two.set_secrets("old".to_owned(), texts(&["new"])));
    assert!(called("old") && called("new"));
    // The other node presents the new one from now on, over a channel that it had.
    one.set_peer(NodeId(2), address.clone());
    let calls = |with: &GrpcTransport| {
        runtime()
            .block_on(with.call(NodeId(2), "hello", Bytes::new(), LONG))
            .is_ok()
    };
    assert!(one.set_secrets("new".to_owned(), texts(&["old"])));
    assert!(two.set_secrets("new".to_owned(), Vec::new()));
    assert!(calls(&one) && called("new") && !called("old"));
    // A transport without a secret gets none while it runs.
    let without = super::grpc::transport(None);
    assert!(!without.set_secrets("new".to_owned(), Vec::new()));
}
