//! Elections, restarts, reads, membership.

use esker_raft::{ChangeError, Config, GroupOptions, NodeError, NodeId, Role};

use crate::host::{Cluster, GROUP, Knobs, Lines, Wire, block, observe_repeatedly, wait_for};
use crate::over_each_wire;

over_each_wire! {
    three_members_elect_and_replicate_and_survive_kills_and_restarts
    a_follower_reads_what_was_written_before
    members_come_and_go_and_restarts_remember_them
    the_leadership_moves_to_another_member_on_request
}

fn three_members_elect_and_replicate_and_survive_kills_and_restarts(wire: Wire) {
    let mut cluster = Cluster::start(wire, &[1, 2, 3]);
    cluster.write(50, 20);
    cluster.assert_agreed(&[1, 2, 3]);

    let leader = cluster.leader();
    cluster.kill(leader);
    cluster.write(50, 20);
    cluster.run(leader);
    cluster.assert_agreed(&[1, 2, 3]);

    for id in [1, 2, 3] {
        cluster.kill(id);
    }
    for id in [1, 2, 3] {
        cluster.run(id);
    }
    cluster.write(10, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    assert_eq!(cluster.lines(1).len(), 110);
}

fn a_follower_reads_what_was_written_before(wire: Wire) {
    let mut cluster = Cluster::start(wire, &[1, 2, 3]);
    let follower = cluster.follower();
    for round in 1..=5 {
        cluster.write(1, 20);
        // While nobody leads, it is refused.
        wait_for("a read", || {
            block(cluster.group(follower).read_index()).is_ok()
        });
        assert_eq!(cluster.lines(follower).len(), round);
    }
}

fn members_come_and_go_and_restarts_remember_them(wire: Wire) {
    let mut cluster = Cluster::start(wire, &[1]);
    cluster.write(20, 20);
    cluster.run(2);
    cluster.run(3);
    cluster.change("2 is added", async |_, group| {
        group.add_peer(NodeId(2)).await
    });
    wait_for("2 votes", || {
        cluster.group(1).membership().voters == [NodeId(1), NodeId(2)]
    });
    wait_for("the change is over", || {
        !cluster.group(1).membership().is_joint()
    });
    // One at a time: until 2's own promotion is applied everywhere, the next may have to wait.
    cluster.change("3 is a learner", async |_, group| {
        group.add_learner(NodeId(3)).await
    });
    cluster.write(20, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    // The membership is in the snapshots, and not only in the log.
    for id in [1, 2, 3] {
        cluster.snapshot(id);
    }
    for id in [1, 2, 3] {
        cluster.kill(id);
    }
    for id in [1, 2, 3] {
        cluster.run(id);
    }
    cluster.write(1, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    let leader = cluster.leader();
    let membership = cluster.group(leader).membership();
    assert_eq!(membership.voters, [NodeId(1), NodeId(2)]);
    assert_eq!(membership.learners, [NodeId(3)]);

    cluster.change("3 votes", async |_, group| group.promote(NodeId(3)).await);
    let goes = if leader == 1 { 2 } else { 1 };
    cluster.change("it may be removed", async |leader, group| {
        if leader == goes {
            group.transfer_leadership(NodeId(3)).await?;
            return Err(ChangeError::NotLeader { leader: None });
        }
        group.remove_peer(NodeId(goes)).await
    });
    cluster.kill(goes);
    cluster.write(5, 20);
    let rest: Vec<u64> = [1, 2, 3].into_iter().filter(|id| *id != goes).collect();
    cluster.assert_agreed(&rest);
    assert!(!cluster.group(3).membership().contains(NodeId(goes)));
}

fn the_leadership_moves_to_another_member_on_request(wire: Wire) {
    let mut cluster = Cluster::start(wire, &[1, 2, 3]);
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    observe_repeatedly("the former leader refuses", || {
        let (leader, follower) = (cluster.leader(), cluster.follower());
        cluster.change("it is asked to lead", async |_, group| {
            group.transfer_leadership(NodeId(follower)).await
        });
        wait_for("it leads", || {
            cluster.group(follower).status().role == Role::Leader
        });
        match block(cluster.group(leader).transfer_leadership(NodeId(leader))) {
            Err(ChangeError::NotLeader { .. }) => Ok(()),
            other => Err(format!("{other:?}")),
        }
    });
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
}

#[test]
fn a_member_that_lost_its_log_is_not_opened() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    cluster.kill(3);
    std::fs::remove_dir_all(cluster.data_dir(3).join("log")).unwrap();
    let config = Config::new(NodeId(3), &cluster.data_dir(3));
    let transport = cluster.network.transport(NodeId(3));
    let (node, _) = esker_raft::Node::start_among(config, transport).unwrap();
    let founders = [1, 2, 3].map(NodeId);
    let options = GroupOptions::founded_by(GROUP, &founders);
    let opened = node.open_member(options, Lines::new(std::sync::Arc::<Knobs>::default()));
    assert!(matches!(opened.err(), Some(NodeError::LogLost { .. })));
    node.stop();
}

#[test]
fn proposals_of_a_leader_that_is_cut_off_are_answered_in_the_end() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(5, 20);
    let leader = cluster.leader();
    cluster.network.cut(&[NodeId(leader)]);
    let waiting = cluster.group(leader).propose(b"lost".to_vec()).unwrap();
    let answer = block(waiting).unwrap();
    assert!(answer.is_err(), "{answer:?}");
    cluster.network.cut(&[]);
    cluster.write(5, 20);
    cluster.assert_agreed(&[1, 2, 3]);
    assert!(!cluster.lines(1).contains(&"lost".to_owned()));
}

#[test]
fn a_group_agrees_on_a_network_that_loses_and_delays() {
    let mut cluster = Cluster::start(Wire::Memory, &[1, 2, 3]);
    cluster.write(5, 20);
    cluster.network.lose(50, 7);
    cluster.network.delay(std::time::Duration::from_millis(5));
    cluster.write(300, 50);
    cluster.network.lose(0, 0);
    cluster.assert_agreed(&[1, 2, 3]);
}
