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

#[test]
fn a_first_start_that_cannot_read_its_directory_begins_no_group() {
    let mut members = Members::start(&[1]);
    members.end(1);
    let (data, group) = (members.data_dir(1), members.snapshots_dir(1));
    // The log is lost, and the directory that shows it cannot be read: the name leads back to itself.
    std::fs::remove_dir_all(data.join("log")).unwrap();
    let aside = data.join("aside");
    std::fs::rename(&group, &aside).unwrap();
    std::os::unix::fs::symlink(&group, &group).unwrap();
    let options = || GroupOptions::founded_by(GROUP, &[NodeId(1)]);
    let error = members.try_run(1, options()).unwrap_err();
    assert!(error.is_unreadable(), "{error}");
    std::fs::remove_file(&group).unwrap();
    std::fs::rename(&aside, &group).unwrap();
    let opened = members.try_run(1, options());
    assert!(
        matches!(opened, Err(NodeError::LogLost { group: GROUP })),
        "{opened:?}"
    );
}
