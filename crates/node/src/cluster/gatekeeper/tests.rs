use std::collections::BTreeMap;

use esker_partition::ClusterNode;
use esker_partition::command::NodeState;

use super::*;

fn claim(node: u64, process: u128) -> Claim {
    Claim {
        cluster: ClusterId([1; 16]),
        node: NodeId(node),
        process,
        earlier: EarlierProcesses::default(),
    }
}

/// Starts of one data directory, of which the last one claims.
#[derive(Clone, Default)]
struct Starts(Vec<u128>);

impl Starts {
    fn start(&mut self) -> Claim {
        let before = EarlierProcesses::new(self.0.iter().rev().copied());
        self.0.push(starts::draw(self.0.iter().copied()));
        Claim {
            earlier: before,
            ..claim(2, *self.0.last().unwrap())
        }
    }
}

/// The catalog takes a start of the node 2.
fn register(gate: &Gate, start: Claim) {
    let mut nodes = (*gate.directory.all()).clone();
    let incarnations = &mut nodes.get_mut(&2).unwrap().incarnations;
    incarnations.push(start.process);
    gate.directory.set(Arc::new(nodes));
}

fn gate(nodes: &[(u64, NodeState)]) -> Gate {
    let directory = Arc::new(Directory::default());
    let node = |(id, state): &(u64, NodeState)| {
        let node = ClusterNode {
            id: *id,
            name: format!("n{id}"),
            peer_address: format!("host-{id}:1"),
            client_address: String::new(),
            zone: String::new(),
            state: *state,
            registered_at_ms: 0,
            reads_format: 1,
            incarnations: Vec::new(),
            removed_at_ms: None,
            given_up: false,
        };
        (*id, node)
    };
    directory.set(Arc::new(nodes.iter().map(node).collect::<BTreeMap<_, _>>()));
    Gate::new(claim(1, 10), directory)
}

fn messages(gate: &Gate, claim: Claim) -> Result<Box<dyn Admitted>, String> {
    let admitted = gate.admit(&claim, Admission::Messages, "", None);
    admitted.map_err(|refusal| refusal.0)
}

#[track_caller]
fn refused(admitted: Result<Box<dyn Admitted>, String>, why: &str) {
    match admitted {
        Ok(_) => panic!("admitted, and should be refused: {why}"),
        Err(refusal) => assert!(refusal.contains(why), "{refusal}"),
    }
}

#[test]
fn nodes_of_another_cluster_are_refused() {
    let gate = gate(&[]);
    let other = Claim {
        cluster: ClusterId([2; 16]),
        ..claim(2, 20)
    };
    refused(messages(&gate, other), "belongs to the cluster");
    messages(&gate, claim(2, 20)).unwrap();
}

#[test]
fn a_node_without_a_cluster_may_ask_to_join_and_nothing_else() {
    let gate = gate(&[]);
    let stranger = Claim {
        cluster: ClusterId::default(),
        ..claim(2, 20)
    };
    let ask = |what, path: &str| {
        let admitted = gate.admit(&stranger, what, path, None);
        admitted.map_err(|refusal| refusal.0)
    };
    ask(Admission::Request, &path_of(JOIN)).unwrap();
    refused(
        ask(Admission::Request, "/v1/basins"),
        "belongs to the cluster",
    );
    refused(ask(Admission::Messages, ""), "belongs to the cluster");
}

#[test]
fn requests_of_clients_come_from_nodes_of_the_cluster_alone() {
    let gate = gate(&[(2, NodeState::Active), (3, NodeState::Joining)]);
    let ask = |node, path: &str| {
        let admitted = gate.admit(&claim(node, 20), Admission::Request, path, None);
        admitted.map_err(|refusal| refusal.0)
    };
    for node in [2, 3] {
        ask(node, "/v1/basins").unwrap();
    }
    refused(ask(4, "/v1/basins"), "is not registered");
    // It may not know of itself yet.
    ask(4, &path_of(JOIN)).unwrap();
}

#[test]
fn removed_nodes_are_refused() {
    let gate = gate(&[(2, NodeState::Removed), (3, NodeState::Draining)]);
    refused(messages(&gate, claim(2, 20)), "was removed");
    messages(&gate, claim(3, 20)).unwrap();
}

#[test]
fn a_removed_node_is_told_who_has_taken_its_place_and_what_to_do() {
    let gate = gate(&[(2, NodeState::Removed), (3, NodeState::Active)]);
    let mut nodes = (*gate.directory.all()).clone();
    let why = |gate: &Gate| match messages(gate, claim(2, 20)) {
        Ok(_) => panic!("it is admitted"),
        Err(why) => why,
    };
    let alone = why(&gate);
    assert!(alone.contains("node n2 (2) was removed"), "{alone}");
    assert!(alone.contains("an empty one and `cluster.join`"), "{alone}");
    assert!(!alone.contains("taken its place"), "{alone}");
    nodes.get_mut(&3).unwrap().name = "n2".to_owned();
    nodes.get_mut(&2).unwrap().removed_at_ms = Some(1_500_000_000_123);
    gate.directory.set(Arc::new(nodes));
    let replaced = why(&gate);
    assert!(
        replaced.contains("was removed from the cluster at 2017-07-14T02:40:00Z, and node 3"),
        "{replaced}"
    );
    assert!(
        replaced.contains("node 3 has taken its place"),
        "{replaced}"
    );
}

#[test]
fn a_removed_node_may_ask_what_becomes_of_its_replicas_and_nothing_else() {
    let gate = gate(&[(2, NodeState::Removed)]);
    let ask = |of: Claim, path: &str| {
        let admitted = gate.admit(&of, Admission::Request, path, None);
        admitted.map_err(|refusal| refusal.0)
    };
    ask(claim(2, 20), &path_of(REMOVAL)).unwrap();
    refused(ask(claim(2, 20), &path_of(JOIN)), "was removed");
    refused(ask(claim(2, 20), "/v1/basins"), "was removed");
    let other = Claim {
        cluster: ClusterId([2; 16]),
        ..claim(2, 20)
    };
    refused(ask(other, &path_of(REMOVAL)), "belongs to the cluster");
}

#[test]
fn a_removed_node_is_admitted_until_it_has_left_the_groups() {
    let gate = gate(&[(2, NodeState::Removed)]);
    gate.directory.set_members([1, 2].into());
    messages(&gate, claim(2, 20)).unwrap();
    gate.directory.set_members([1].into());
    refused(messages(&gate, claim(2, 20)), "was removed");
}

#[test]
fn of_two_processes_with_one_number_the_one_that_is_connected_stays() {
    let gate = gate(&[(2, NodeState::Active)]);
    let first = messages(&gate, claim(2, 20)).unwrap();
    let second = messages(&gate, claim(2, 20)).unwrap();
    refused(messages(&gate, claim(2, 21)), "another process");
    let request = gate.admit(&claim(2, 21), Admission::Request, "/", None);
    refused(request.map_err(|refusal| refusal.0), "another process");
    drop(first);
    refused(messages(&gate, claim(2, 21)), "another process");
    drop(second);
    messages(&gate, claim(2, 21)).unwrap();
    refused(messages(&gate, claim(1, 11)), "another process");
}

#[test]
fn a_copy_is_not_admitted_while_the_node_is_away_and_the_next_start_of_the_node_is() {
    let gate = gate(&[(2, NodeState::Active)]);
    let mut node = Starts::default();
    register(&gate, node.start());
    let mut copy = node.clone();
    let before = messages(&gate, node.start()).unwrap();
    let mut copied = copy.start();
    refused(messages(&gate, copied), "another process");
    // Not registered yet, but admitted here.
    drop(before);
    refused(messages(&gate, copied), "is a copy, or an older state");
    // Nor is it after more starts of its own.
    for _ in 0..3 {
        copied = copy.start();
        refused(messages(&gate, copied), "is a copy");
    }
    let request = gate.admit(&copied, Admission::Request, &path_of(JOIN), None);
    refused(request.map_err(|refusal| refusal.0), "is a copy");
    messages(&gate, node.start()).unwrap();
}

#[test]
fn a_node_that_restarts_knows_by_its_catalog_which_is_the_copy() {
    let mut node = Starts::default();
    let first = node.start();
    let mut copy = node.clone();
    let (registered, copied) = (node.start(), copy.start());
    let restarted = || gate(&[(2, NodeState::Active)]);
    let gate = restarted();
    // The catalog is not read yet.
    let held = messages(&gate, copied).unwrap();
    assert_eq!(held.is_over(), None);
    register(&gate, first);
    assert_eq!(held.is_over(), None, "both come after it");
    register(&gate, registered);
    let over = held.is_over().unwrap();
    assert!(over.0.contains("is a copy"), "{over}");
    refused(messages(&gate, copied), "is a copy");
    // The right one does not wait until the other's streams have ended.
    let right = messages(&gate, node.start()).unwrap();
    drop(held);
    assert_eq!(right.is_over(), None);
    refused(messages(&gate, copy.start()), "is a copy");
    // A backup that alone exists is refused as well: it may lack what was acknowledged.
    let gate = restarted();
    register(&gate, registered);
    refused(messages(&gate, first), "is a copy, or an older state");
}

#[test]
fn a_copy_of_the_running_node_that_was_refused_beside_it_for_long_does_not_take_its_place() {
    let mut gate = gate(&[(2, NodeState::Active)]);
    gate.twin_after = Duration::ZERO;
    let mut node = Starts::default();
    let running = node.start();
    register(&gate, running);
    // It has all starts that the node has.
    let copied = node.clone().start();
    let stream = messages(&gate, running).unwrap();
    refused(messages(&gate, copied), "another process");
    drop(stream);
    refused(messages(&gate, copied), "is a copy");
    messages(&gate, node.start()).unwrap();
}

#[test]
fn a_start_of_an_earlier_build_is_admitted_as_before() {
    let gate = gate(&[(2, NodeState::Active)]);
    let mut node = Starts::default();
    register(&gate, node.start());
    let earlier_build = messages(&gate, claim(2, 20)).unwrap();
    refused(messages(&gate, node.start()), "another process");
    drop(earlier_build);
    messages(&gate, node.start()).unwrap();
}

#[test]
fn only_nodes_of_the_catalog_are_remembered_once_they_are_away() {
    let gate = gate(&[(2, NodeState::Active)]);
    for node in 2..100 {
        messages(&gate, claim(node, 20)).unwrap();
    }
    assert_eq!(gate.connected.lock().len(), 1);
}

/// A certificate of a host, as the other end of a connection presents it.
fn certificate(host: &str) -> CertificateDer<'static> {
    let key = rcgen::KeyPair::generate().unwrap();
    let params = rcgen::CertificateParams::new([host.to_owned()]).unwrap();
    params.self_signed(&key).unwrap().der().clone()
}

#[test]
fn a_node_of_the_catalog_is_admitted_with_a_certificate_of_its_own_host_alone() {
    let gate = gate(&[(2, NodeState::Active), (3, NodeState::Active)]);
    let (second, third) = (certificate("host-2"), certificate("host-3"));
    let admit = |node, what, path: &str, with: &CertificateDer<'_>| {
        let admitted = gate.admit(&claim(node, 20), what, path, Some(with));
        admitted.map_err(|refusal| refusal.0)
    };
    for (what, path) in [
        (Admission::Messages, String::new()),
        (Admission::Request, "/v1/basins".to_owned()),
        (Admission::Request, path_of(JOIN)),
    ] {
        admit(2, what, &path, &second).unwrap();
        admit(3, what, &path, &third).unwrap();
        let why = "the certificate is not for host-2";
        refused(admit(2, what, &path, &third), why);
        refused(
            admit(2, what, &path, &third),
            "a certificate for both hosts",
        );
        refused(admit(3, what, &path, &second), "not for host-3");
    }
    // Of a node that is not registered yet, no host is known.
    admit(4, Admission::Request, &path_of(JOIN), &second).unwrap();
    let nothing = CertificateDer::from(vec![1, 2, 3]);
    refused(
        admit(2, Admission::Messages, "", &nothing),
        "not for host-2",
    );
}

#[test]
fn the_host_of_an_address_is_found() {
    for (address, host) in [
        ("a.example:1", "a.example"),
        ("https://a.example:1", "a.example"),
        ("127.0.0.1:1", "127.0.0.1"),
        ("[::1]:1", "::1"),
        ("a", "a"),
    ] {
        assert_eq!(host_of(address), host);
    }
}
