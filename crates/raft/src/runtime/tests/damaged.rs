//! Snapshots that rot where they are stored.

use super::members::Members;
use super::*;

fn stored(members: &Members) -> Vec<String> {
    let names = std::fs::read_dir(members.snapshots_dir(1)).unwrap();
    let names = names.map(|n| n.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.filter(|n| n.starts_with("snap-")).collect();
    names.sort();
    names
}

#[test]
fn a_start_that_cannot_read_what_is_stored_fails_and_a_later_one_has_everything() {
    let mut members = Members::start(&[1]);
    members.write(10);
    let newest = members.snapshot(1);
    members.write(2);
    members.end(1);
    let mut failed = 0;
    for after in 0.. {
        let faults = crate::store::DiskFaults::default();
        faults.fail_once_after(after);
        let options = GroupOptions {
            faults: faults.clone(),
            ..GroupOptions::reopening(super::members::GROUP)
        };
        match members.try_run(1, options) {
            Ok(()) => {
                members.assert_agreed();
                assert_eq!(members.group(1).status().floor, newest, "after {after}");
                members.end(1);
            }
            Err(error) => {
                assert!(error.is_unreadable(), "after {after}: {error}");
                failed += 1;
            }
        }
        if faults.operations() <= after {
            break;
        }
    }
    assert!(failed >= 4, "creating, listing, reading, loading: {failed}");
    members.run(1);
    members.assert_agreed();
}

#[test]
fn a_number_of_starts_that_is_damaged_is_not_taken_for_unreadable() {
    let dir = tempfile::tempdir().unwrap();
    let start = || {
        let transport = crate::transport::memory::Network::new().transport(NodeId(1));
        let started = Node::start_among(NodeConfig::new(NodeId(1), dir.path()), transport);
        started.map(|(node, _)| node.stop()).unwrap_err()
    };
    let file = dir.path().join("raft/incarnation");
    std::fs::create_dir_all(&file).unwrap();
    let error = start();
    assert!(error.is_unreadable(), "{error}");
    std::fs::remove_dir(&file).unwrap();
    std::fs::write(&file, "no number").unwrap();
    let error = start();
    assert!(!error.is_unreadable(), "{error}");
}

#[test]
fn a_member_whose_number_of_starts_is_lost_is_heard_by_the_others() {
    let mut members = Members::start(&[1, 2, 3]);
    members.write(3);
    let away = members.follower();
    members.end(away);
    std::fs::remove_file(members.data_dir(away).join("raft/incarnation")).unwrap();
    members.run(away);
    members.assert_agreed();
    // Without it there is no majority.
    let other = members.follower();
    let other = if other == away {
        6 - away - members.leader()
    } else {
        other
    };
    members.end(other);
    members.write(3);
}

#[test]
fn a_snapshot_that_cannot_be_restored_takes_nothing_with_it() {
    let mut members = Members::start(&[1]);
    let dir = members.snapshots_dir(1);
    members.write(10);
    // The log is kept, as it is for a peer.
    members.group(1).keep_from(Lsn(0));
    let older = members.snapshot(1);
    let [name] = &stored(&members)[..] else {
        panic!("{:?}", stored(&members));
    };
    // It is kept, as while a peer fetches it.
    let (kept, aside) = (dir.join(name), members.keep.path().join(name));
    let copy = |from: &Path, to: &Path| {
        std::fs::create_dir_all(to).unwrap();
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(&kept, &aside);
    members.write(10);
    let newer = members.snapshot(1);
    assert!(newer > older);
    members.end(1);
    copy(&aside, &kept);
    let both = stored(&members);
    let [first, second] = &both[..] else {
        panic!("{both:?}");
    };
    assert_eq!(first, name);
    std::fs::write(dir.join(second).join("data"), "rotten").unwrap();

    // It goes on from the older one and the log, and may crash at any time.
    for round in 1..=3 {
        members.run(1);
        members.assert_agreed();
        let status = members.group(1).status();
        assert!(status.floor <= older, "round {round}: {status:?}");
        std::thread::sleep(Duration::from_millis(50));
        assert_eq!(stored(&members), both, "round {round}");
        members.end(1);
    }

    // The next one is as good as any.
    members.run(1);
    members.write(1);
    let next = members.snapshot(1);
    assert_eq!(members.group(1).status().floor, next);
    members.end(1);
    members.run(1);
    members.assert_agreed();
}
