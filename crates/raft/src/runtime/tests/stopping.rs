//! What is left of a group that was stopped.

use super::members::Members;
use super::*;

#[test]
fn a_group_that_was_stopped_is_freed_while_its_node_goes_on() {
    let (_keep, dir) = scratch();
    let stores = [Store::default(), Store::default()];
    let mut host = Host::start(&dir, &Faults::new(), &stores);
    execute_all(&host.groups[0], &numbered("c", 10));
    let group = host.groups.remove(0);
    let left = Arc::downgrade(&group.shared);
    group.stop();
    drop(group);
    // A thread that has it in its hands lets go of it in a moment.
    wait_for("it is freed", || left.strong_count() == 0);
    execute(&host.groups[0], "goes on").unwrap();
    host.stop();
}

#[test]
fn a_member_that_was_stopped_is_freed_while_its_node_goes_on() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    let id = members.follower();
    members.snapshot(id);
    let (node, group) = members.nodes.remove(&id).unwrap();
    let left = Arc::downgrade(&group.shared);
    group.stop();
    drop(group);
    wait_for("it is freed", || left.strong_count() == 0);
    members.write(10);
    members.assert_agreed();
    node.stop();
}

#[test]
fn a_group_without_handles_that_was_not_stopped_goes_on() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(10);
    let id = members.follower();
    let (node, group) = members.nodes.remove(&id).unwrap();
    let left = Arc::downgrade(&group.shared);
    drop(group);
    members.write(10);
    let expected = members.written();
    wait_for("it applies", || members.lines(id) == expected);
    left.upgrade().unwrap().apply.close();
    node.stop();
}
