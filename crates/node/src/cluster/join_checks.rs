//! What a node has to be that registers. The leader of the catalog asks, whoever has passed the registration on.

use esker_partition::command::NodeState;
use esker_raft::NodeId;
use esker_raft::transport::grpc::CallError;

use super::directory::Nodes;
use super::gatekeeper::outdated;
use super::wire::Join;
use crate::starts::{self, Start};

/// Longest name or address of a node, in bytes.
const MAX_TEXT: usize = 255;

/// Checks what needs no catalog.
pub(super) fn check(join: &Join, cluster_name: &str) -> Result<(), CallError> {
    let refuse = |why: String| Err(CallError::Refused(why));
    if join.cluster_name != cluster_name {
        return refuse(format!(
            "this cluster is `{cluster_name}`, and `cluster-name` is `{}` there",
            join.cluster_name
        ));
    }
    let texts = [
        ("name", &join.name),
        ("peer address", &join.peer_address),
        ("client address", &join.client_address),
    ];
    for (what, text) in texts {
        if text.is_empty() || text.len() > MAX_TEXT || text.chars().any(char::is_control) {
            return refuse(format!(
                "the {what} of a node has 1 to {MAX_TEXT} bytes, and no control characters"
            ));
        }
    }
    match join.zone.len() > MAX_TEXT || join.id == 0 {
        true => refuse("the node's number is 0, or its zone is too long".to_owned()),
        false => Ok(()),
    }
}

/// Refuses a new node whose release does not read what the log may have: the leader uses a format once all nodes read it.
pub(super) fn check_format(join: &Join, nodes: &Nodes) -> Result<(), CallError> {
    let is_new = !nodes.contains_key(&join.id);
    let live = nodes
        .values()
        .filter(|node| node.state != NodeState::Removed);
    match live.map(|node| node.reads_format).min() {
        Some(used) if is_new && join.reads_format < used => Err(CallError::Refused(format!(
            "its release reads commands up to format {}, and the log may have those of format {used}, because all nodes of \
             the cluster read them: join with a release that is as new as the oldest one in the cluster",
            join.reads_format
        ))),
        _ => Ok(()),
    }
}

/// The start of the node that registers; `None` if it has no directory yet.
pub(super) fn start_of(join: &Join) -> Result<Option<Start>, CallError> {
    let number = |digits: &String| {
        u128::from_str_radix(digits, 16)
            .map_err(|_| CallError::Refused("the incarnation is no number".to_owned()))
    };
    let Some(id) = &join.incarnation else {
        return Ok(None);
    };
    let earlier = join.earlier_incarnations.iter().map(number);
    Ok(Some(Start {
        id: number(id)?,
        earlier: earlier.collect::<Result<_, _>>()?,
    }))
}

/// Refuses a start that comes after none that the catalog has. A node whose catalog lags may have admitted it.
pub(super) fn check_start(node: u64, start: &Start, nodes: &Nodes) -> Result<(), CallError> {
    let last = nodes.get(&node).and_then(|node| node.incarnations.last());
    match last.is_none_or(|last| starts::follows(start.id, &start.earlier, *last)) {
        true => Ok(()),
        false => Err(CallError::Refused(outdated(NodeId(node)).0)),
    }
}

#[cfg(test)]
mod tests {
    use esker_partition::ClusterNode;

    use super::*;

    fn node(id: u64, reads_format: u32, state: NodeState, incarnations: &[u128]) -> ClusterNode {
        ClusterNode {
            id,
            name: format!("n{id}"),
            peer_address: format!("host-{id}:1"),
            client_address: String::new(),
            zone: String::new(),
            state,
            registered_at_ms: 0,
            reads_format,
            incarnations: incarnations.to_vec(),
            removed_at_ms: None,
            given_up: false,
        }
    }

    fn catalog(nodes: &[ClusterNode]) -> Nodes {
        nodes.iter().map(|node| (node.id, node.clone())).collect()
    }

    fn join(id: u64, reads_format: u32) -> Join {
        Join {
            cluster_name: "c".to_owned(),
            partitions: None,
            id,
            name: "n".to_owned(),
            peer_address: "host:1".to_owned(),
            client_address: "host:2".to_owned(),
            zone: String::new(),
            reads_format,
            incarnation: None,
            earlier_incarnations: Vec::new(),
            hops: 0,
            replaces: None,
            of_cluster: None,
            clock_ms: None,
        }
    }

    #[test]
    fn a_new_node_reads_whatever_all_nodes_of_the_cluster_read() {
        let nodes = catalog(&[
            node(1, 5, NodeState::Active, &[]),
            node(2, 4, NodeState::Draining, &[]),
            node(3, 2, NodeState::Removed, &[]),
        ]);
        check_format(&join(9, 5), &nodes).unwrap();
        check_format(&join(9, 4), &nodes).unwrap();
        let Err(CallError::Refused(why)) = check_format(&join(9, 3), &nodes) else {
            panic!("its log would stop at the first command of format 4");
        };
        assert!(
            why.contains("up to format 3") && why.contains("format 4"),
            "{why}"
        );
        // The first node of all, and one that the cluster has already.
        check_format(&join(9, 1), &Nodes::new()).unwrap();
        check_format(&join(2, 3), &nodes).unwrap();
    }

    #[test]
    fn a_start_registers_after_the_one_that_the_catalog_has() {
        let first = starts::draw([]);
        let (second, copied) = (starts::draw([first]), starts::draw([first]));
        let nodes = catalog(&[node(2, 1, NodeState::Active, &[first, second])]);
        let registers = |id: u128, earlier: &[u128]| {
            let told = Join {
                incarnation: Some(format!("{id:032x}")),
                earlier_incarnations: earlier.iter().map(|one| format!("{one:032x}")).collect(),
                ..join(2, 1)
            };
            let start = start_of(&told).unwrap().unwrap();
            check_start(2, &start, &nodes)
        };
        registers(second, &[first]).unwrap();
        registers(starts::draw([second]), &[second, first]).unwrap();
        // Of an earlier build.
        registers(7 << 100, &[]).unwrap();
        for (id, earlier) in [
            (copied, vec![first]),
            (starts::draw([copied]), vec![copied, first]),
            (first, vec![]),
        ] {
            let Err(CallError::Refused(why)) = registers(id, &earlier) else {
                panic!("{id:032x} is no start after {second:032x}");
            };
            assert!(why.contains("is a copy, or an older state"), "{why}");
        }
    }

    #[test]
    fn what_is_no_start_is_refused() {
        let told = Join {
            incarnation: Some("x".to_owned()),
            ..join(2, 1)
        };
        assert!(matches!(start_of(&told), Err(CallError::Refused(_))));
        assert_eq!(start_of(&join(2, 1)), Ok(None));
    }
}
