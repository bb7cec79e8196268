//! Which starts may begin a group, and which may not.

use super::members::{GROUP, Members};
use super::*;

#[test]
fn a_voter_whose_whole_disk_was_replaced_is_not_opened_again() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(5);
    members.assert_agreed();
    let lost = members.follower();
    members.end(lost);
    // Nothing on disk shows it: neither its log, nor its snapshots, nor a marker.
    std::fs::remove_dir_all(members.data_dir(lost)).unwrap();
    for _ in 0..2 {
        let opened = members.try_run(lost, GroupOptions::reopening(GROUP));
        assert!(
            matches!(opened, Err(NodeError::LogLost { group: GROUP })),
            "{opened:?}: also if it is tried again"
        );
    }
    members.write(5);
    members.assert_agreed();
}

#[test]
fn a_member_that_is_reopened_goes_on_from_its_log() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(5);
    members.assert_agreed();
    for id in [1, 2, 3] {
        members.end(id);
    }
    for id in [1, 2, 3] {
        let options = GroupOptions::reopening(GROUP);
        members.try_run(id, options).unwrap();
    }
    members.write(5);
    members.assert_agreed();
}

#[test]
fn a_first_start_that_was_interrupted_may_be_repeated() {
    let mut members = Members::start(&[1, 2, 3]);
    // It may or may not have voted.
    members.end(3);
    members.run(3);
    members.write(5);
    members.assert_agreed();
    let voters = members.group(3).membership().voters;
    assert_eq!(voters, [1, 2, 3].map(NodeId));
}
