//! The promises of the nodes of a cluster.

use super::*;
use crate::catalog::MAX_REMEMBERED_NODES;
use crate::catalog::nodes::MAX_INCARNATIONS;
use crate::command::{NodeRefusal, NodeState, RegisterNode, SetNodeState};

const MOST: u64 = 3;

fn register(id: u64, name: &str, peer: &str) -> Kind {
    Kind::RegisterNode(RegisterNode {
        id,
        name: name.to_owned(),
        peer_address: peer.to_owned(),
        client_address: format!("{name}:7070"),
        zone: "a".to_owned(),
        state: NodeState::Joining.into(),
        at_ms: 1_000 + id,
        reads_format: 1,
        max_nodes: MOST,
        incarnation: Vec::new(),
        may_forget: true,
    })
}

fn set(id: u64, state: NodeState) -> Kind {
    set_at(id, state, 0)
}

fn set_at(id: u64, state: NodeState, at_ms: u64) -> Kind {
    let state = state.into();
    Kind::SetNodeState(SetNodeState { id, state, at_ms })
}

fn refused(why: NodeRefusal) -> Outcome {
    Outcome::NodeSet(Err(why))
}

const DONE: Outcome = Outcome::NodeSet(Ok(()));

impl Fixture {
    /// Number, name, address and state of each node.
    fn nodes(&self) -> Vec<(u64, String, String, NodeState)> {
        let nodes = self.reader().nodes();
        let seen = nodes.values();
        seen.map(|n| (n.id, n.name.clone(), n.peer_address.clone(), n.state))
            .collect()
    }
}

fn node(id: u64, name: &str, peer: &str, state: NodeState) -> (u64, String, String, NodeState) {
    (id, name.to_owned(), peer.to_owned(), state)
}

#[test]
fn a_registered_node_is_found_with_all_that_was_stored_also_after_a_reopen() {
    let mut catalog = Fixture::new();
    assert_eq!(catalog.apply(register(7, "one", "h1:1")), DONE);
    for reopened in [false, true] {
        if reopened {
            catalog.reopen();
        }
        let nodes = catalog.reader().nodes();
        let node = &nodes[&7];
        assert_eq!(
            (node.id, node.registered_at_ms, node.reads_format),
            (7, 1_007, 1)
        );
        assert_eq!((&*node.client_address, &*node.zone), ("one:7070", "a"));
        assert_eq!(node.state, NodeState::Joining);
    }
}

#[test]
fn addresses_change_and_where_a_node_stands_stays_as_it_is() {
    let mut catalog = Fixture::new();
    let outcomes = catalog.step(vec![
        register(7, "one", "h1:1"),
        set(7, NodeState::Active),
        register(7, "one", "h2:1"),
    ]);
    assert_eq!(outcomes, [DONE, DONE, DONE]);
    assert_eq!(catalog.nodes(), [node(7, "one", "h2:1", NodeState::Active)]);
}

#[test]
fn the_last_incarnations_of_a_node_are_remembered() {
    let mut catalog = Fixture::new();
    let most = MAX_INCARNATIONS as u128;
    for start in 0..=most {
        let Kind::RegisterNode(one) = register(7, "one", "h1:1") else {
            unreachable!()
        };
        let incarnation = start.to_be_bytes().to_vec();
        let one = Kind::RegisterNode(RegisterNode { incarnation, ..one });
        assert_eq!(catalog.apply(one.clone()), DONE);
        assert_eq!(
            catalog.apply(one),
            DONE,
            "one that is registered again changes nothing"
        );
    }
    let remembered: Vec<u128> = (1..=most).collect();
    assert_eq!(catalog.reader().nodes()[&7].incarnations, remembered);
}

#[test]
fn a_name_and_an_address_belong_to_one_node_until_it_is_removed() {
    let mut catalog = Fixture::new();
    let outcomes = catalog.step(vec![
        register(1, "one", "h1:1"),
        set(1, NodeState::Active),
        register(2, "one", "h2:1"),
        register(2, "two", "h1:1"),
        set(1, NodeState::Removed),
        register(2, "one", "h1:1"),
        register(1, "three", "h3:1"),
        set(1, NodeState::Active),
        set(9, NodeState::Active),
    ]);
    let expected = [
        DONE,
        DONE,
        refused(NodeRefusal::NameTaken(1)),
        refused(NodeRefusal::AddressTaken(1)),
        DONE,
        DONE,
        refused(NodeRefusal::Removed),
        refused(NodeRefusal::Removed),
        refused(NodeRefusal::Unknown),
    ];
    assert_eq!(outcomes, expected);
    let nodes = [
        node(1, "one", "h1:1", NodeState::Removed),
        node(2, "one", "h1:1", NodeState::Joining),
    ];
    assert_eq!(catalog.nodes(), nodes);
}

#[test]
fn a_join_that_was_interrupted_is_repeated_under_another_number() {
    let mut catalog = Fixture::new();
    let outcomes = catalog.step(vec![register(1, "one", "h1:1"), register(2, "one", "h1:1")]);
    assert_eq!(outcomes, [DONE, DONE]);
    let nodes = [
        node(1, "one", "h1:1", NodeState::Removed),
        node(2, "one", "h1:1", NodeState::Joining),
    ];
    assert_eq!(catalog.nodes(), nodes);
    // Without a configured name, each attempt has another one.
    let outcomes = catalog.step(vec![register(4, "n4", "h4:1"), register(5, "n5", "h4:1")]);
    assert_eq!(outcomes, [DONE, DONE]);
    let nodes = catalog.reader().nodes();
    assert_eq!(nodes[&4].state, NodeState::Removed);
    assert_eq!(nodes[&5].state, NodeState::Joining);
    // Once it is active, another process with its name is a mistake.
    catalog.apply(set(2, NodeState::Active));
    let taken = refused(NodeRefusal::NameTaken(2));
    assert_eq!(catalog.apply(register(3, "one", "h1:1")), taken);
}

#[test]
fn there_are_no_more_nodes_than_a_command_allows_and_removed_ones_do_not_count() {
    let mut catalog = Fixture::new();
    for id in 1..=MOST {
        let name = format!("n{id}");
        assert_eq!(catalog.apply(register(id, &name, &name)), DONE);
    }
    let more = || register(9, "more", "more");
    assert_eq!(catalog.apply(more()), refused(NodeRefusal::TooMany));
    catalog.apply(set(1, NodeState::Removed));
    assert_eq!(catalog.apply(more()), DONE);
}

/// One that has run.
fn register_run(id: u64) -> Kind {
    let Kind::RegisterNode(it) = register(id, "n", "h:1") else {
        unreachable!()
    };
    let incarnation = u128::from(id).to_be_bytes().to_vec();
    Kind::RegisterNode(RegisterNode { incarnation, ..it })
}

#[test]
fn the_number_of_nodes_that_are_remembered_is_bounded() {
    let mut catalog = Fixture::new();
    for id in 1..=MAX_REMEMBERED_NODES as u64 {
        let outcomes = catalog.step(vec![register_run(id), set(id, NodeState::Removed)]);
        assert_eq!(outcomes, [DONE, DONE]);
    }
    let more = register(1 << 40, "n", "h:1");
    let too_many = refused(NodeRefusal::TooManyRemembered);
    assert_eq!(catalog.apply(more), too_many);
    assert_eq!(catalog.nodes().len(), MAX_REMEMBERED_NODES);
}

/// As the releases do that do not know of it: the replicas of a mixed cluster are equal.
#[test]
fn no_node_is_forgotten_unless_the_command_allows_it() {
    let mut catalog = Fixture::new();
    for id in 1..=MAX_REMEMBERED_NODES as u64 {
        let name = format!("n{id}");
        let outcomes = catalog.step(vec![
            register(id, &name, &name),
            set(id, NodeState::Removed),
        ]);
        assert_eq!(outcomes, [DONE, DONE]);
    }
    let Kind::RegisterNode(more) = register(1 << 40, "n", "h:1") else {
        unreachable!()
    };
    let before = catalog.nodes();
    let as_before = Kind::RegisterNode(RegisterNode {
        may_forget: false,
        ..more.clone()
    });
    let too_many = refused(NodeRefusal::TooManyRemembered);
    assert_eq!(catalog.apply(as_before.clone()), too_many);
    assert_eq!(catalog.nodes(), before);
    let forgetting = Kind::RegisterNode(more);
    let version = |command: &Kind| command.clone().into_bytes()[0];
    assert_eq!((version(&as_before), version(&forgetting)), (1, 7));
    assert_eq!(catalog.apply(forgetting), DONE);
    assert!(!catalog.reader().nodes().contains_key(&1));
}

#[test]
fn joins_that_are_repeated_without_end_take_the_place_of_no_node() {
    let mut catalog = Fixture::new();
    let (first, last) = (10, 10 + 2 * MAX_REMEMBERED_NODES as u64);
    let outcomes = catalog.step(vec![register_run(1), set(1, NodeState::Removed)]);
    assert_eq!(outcomes, [DONE, DONE]);
    for id in first..=last {
        assert_eq!(catalog.apply(register(id, "n", "h:1")), DONE, "{id}");
    }
    let nodes = catalog.reader().nodes();
    assert_eq!(nodes.len(), MAX_REMEMBERED_NODES);
    assert_eq!(nodes[&1].state, NodeState::Removed, "it has voted");
    assert_eq!(nodes[&last].state, NodeState::Joining);
    assert!(!nodes.contains_key(&first));
    let before = catalog.nodes();
    catalog.reopen();
    assert_eq!(catalog.nodes(), before);
}

#[test]
fn a_fork_removes_the_nodes_before_it_and_the_one_that_goes_on_registers_again() {
    let mut catalog = Fixture::new();
    catalog.step(vec![
        register(1, "one", "h1:1"),
        set(1, NodeState::Active),
        register(2, "two", "h2:1"),
        set(2, NodeState::Active),
    ]);
    catalog.fork(5);
    let states: Vec<_> = catalog
        .nodes()
        .into_iter()
        .map(|(.., state)| state)
        .collect();
    assert_eq!(states, [NodeState::Removed; 2]);
    assert_eq!(catalog.apply(register(1, "one", "h2:1")), DONE);
    catalog.reopen();
    let nodes = [
        node(1, "one", "h2:1", NodeState::Joining),
        node(2, "two", "h2:1", NodeState::Removed),
    ];
    assert_eq!(catalog.nodes(), nodes);
}

#[test]
fn when_a_node_was_removed_is_recorded_if_the_command_has_it_and_survives_a_reopen() {
    let mut catalog = Fixture::new();
    catalog.step(vec![
        register(1, "one", "h1:1"),
        register(2, "two", "h2:1"),
        register(3, "three", "h3:1"),
    ]);
    let outcomes = catalog.step(vec![
        set_at(1, NodeState::Removed, 9_000),
        // A second removal changes nothing, and other states have no time.
        set_at(1, NodeState::Removed, 9_500),
        set(2, NodeState::Removed),
        set_at(3, NodeState::Active, 9_900),
    ]);
    assert_eq!(outcomes, [DONE; 4]);
    for _ in 0..2 {
        let nodes = catalog.reader().nodes();
        let removed = |id| nodes[&id].removed_at_ms;
        assert_eq!(
            (removed(1), removed(2), removed(3)),
            (Some(9_000), None, None)
        );
        assert!(nodes.values().all(|node| !node.given_up));
        catalog.reopen();
    }
    // What a fork gives up was removed by nobody.
    catalog.fork(5);
    let nodes = catalog.reader().nodes();
    assert_eq!(nodes[&3].state, NodeState::Removed);
    assert_eq!((nodes[&3].given_up, nodes[&3].removed_at_ms), (true, None));
    assert_eq!(
        (nodes[&1].given_up, nodes[&1].removed_at_ms),
        (false, Some(9_000))
    );
}

#[test]
fn a_state_with_a_time_is_a_command_that_earlier_builds_refuse_by_name() {
    let version = |kind: Kind| kind.into_bytes()[0];
    assert_eq!(version(set(1, NodeState::Removed)), 1);
    assert!(version(set_at(1, NodeState::Removed, 9_000)) > 4);
}
