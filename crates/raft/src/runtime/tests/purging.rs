//! Files of the log that no group needs are deleted by the node, unless its host does it.

use super::members::Members;
use super::*;

/// A log of many files, of which the first ones are needed no more; answers the first that is there.
fn fill(host: &Host) -> u64 {
    let (first, _) = host.node.log().file_span();
    for round in 0..5 {
        execute_padded(&host.groups[0], &numbered(&format!("r{round}"), 60), 1000);
        flush_and_compact(host, 0);
    }
    let (_, last) = host.node.log().file_span();
    assert!(last > first + 5, "{first} to {last}");
    first
}

fn host_with(dir: &Path, purge_interval: Duration, stores: &[Store]) -> Host {
    let config = NodeConfig {
        purge_interval,
        ..config(dir)
    };
    let (node, _) = Node::start(config, Faults::new()).unwrap();
    Host::on(node, stores)
}

#[test]
fn files_of_the_log_that_no_group_needs_are_deleted_by_themselves() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = host_with(
        &dir,
        Duration::from_millis(10),
        std::slice::from_ref(&store),
    );
    let log = host.node.log();
    let first = fill(&host);
    wait_for("files are deleted", || log.file_span().0 > first);
    wait_for("the log is as small as it may be", || {
        log.used_bytes().unwrap() <= log.config().purge_threshold + 3 * log.config().segment_size
    });
    let commands = store.commands();
    host.stop();

    // Nothing is lost by it.
    let host = Host::start(&dir, &Faults::new(), std::slice::from_ref(&store));
    assert_eq!(store.commands(), commands);
    host.stop();
}

#[test]
fn a_host_that_deletes_files_by_itself_has_them_until_then() {
    let (_keep, dir) = scratch();
    let store = Store::default();
    let host = host_with(&dir, Duration::ZERO, std::slice::from_ref(&store));
    let first = fill(&host);
    std::thread::sleep(Duration::from_millis(100));
    assert_eq!(host.node.log().file_span().0, first);
    host.node.log().purge().unwrap();
    assert!(host.node.log().file_span().0 > first);
    host.stop();
}

#[test]
fn a_member_whose_old_entries_hold_files_back_takes_a_snapshot() {
    let mut members = Members::start_with(&[1], |config| {
        config.purge_interval = Duration::from_millis(10);
        config.log.segment_size = 1024;
        config.log.purge_threshold = 4 * 1024;
        // Never reached here; but snapshots are not to be none at all.
        config.snapshot_hint_threshold_entries = 1 << 40;
    });
    members.write(200);
    wait_for("its log is let go", || {
        members.group(1).status().log_start > Lsn(100)
    });
    members.assert_agreed();
    members.end(1);
    members.run(1);
    members.assert_agreed();
}
