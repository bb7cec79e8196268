//! A majority is lost for good: `esker cluster recover` lets a node go on alone, in new lineages.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use testkit::corruption::{change_in_place, flip};
use testkit::process::{program, without_configuration};
use testkit_s3::{Fault, Matching, Operation, S3Server};

use super::{Nodes, PARTITIONS, STREAMS, copy, number_of, read_all};
use crate::support::{eventually, sdk};

pub(super) fn recover(data: &Path) -> Output {
    let mut command = without_configuration(Command::new(program()));
    command.args(["cluster", "recover", "--yes"]).arg(data);
    command.output().unwrap()
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_alone_with_all_that_it_has_and_others_join_it() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    for body in ["a", "b", "c"] {
        nodes.append(1, body).await;
    }
    nodes.have_voters(0, 3).await;
    // A node that runs is not given up for.
    let refused = recover(&nodes.data(1));
    assert!(said(&refused).contains("[data_dir_in_use]"), "{refused:?}");
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    // One that has joined goes on: nothing of it was flushed, and it does not know what is committed.
    fs::remove_dir_all(nodes.data(0)).unwrap();
    let done = recover(&nodes.data(1));
    assert!(done.status.success(), "{done:?}");
    let number = number_of(&nodes.data(1));
    nodes.restart(1).await;
    nodes.have(1, &["a", "b", "c"]).await;
    nodes.append(1, "d").await;
    assert_eq!(nodes.have_voters(1, 1).await, [number].into());
    assert!(!nodes.data(1).join("recover.json").exists());
    // What was given up does not serve, and says why: one of the nodes that it asks is gone, and the other one tells.
    nodes.restart(2).await;
    let why = nodes.not_ready(2, "refused_by_cluster").await;
    assert!(
        why.contains("was removed") && why.contains("an empty one"),
        "{why}"
    );
    let shown = nodes.shown(2).await.unwrap();
    assert!(
        shown["refused"].as_str().unwrap().contains("was removed"),
        "{shown}"
    );
    nodes.servers[2].kill();
    // Its machine joins with an empty directory, and so does another one.
    for at in [2, 0] {
        fs::remove_dir_all(nodes.data(at)).ok();
        nodes.setups[at] = nodes.joining(at, 1);
        nodes.restart(at).await;
    }
    nodes.have_voters(1, 3).await;
    nodes.servers[1].kill();
    nodes.append(0, "e").await;
    nodes.have(2, &["a", "b", "c", "d", "e"]).await;
    nodes.restart(1).await;
    nodes.have_voters(0, 3).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_after_a_kill_at_any_moment_of_its_first_start() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    nodes.append(0, "b").await;
    nodes.have_voters(0, 3).await;
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    let data = nodes.data(2);
    assert!(recover(&data).status.success());
    for milliseconds in [30, 60, 90, 120, 160, 200, 300, 400, 600] {
        let moment = std::time::Duration::from_millis(milliseconds);
        nodes.setups[2].start_and_kill(&data, moment).await;
    }
    nodes.restart(2).await;
    nodes.have(2, &["a", "b"]).await;
    nodes.append(2, "c").await;
    // A node that is alone has nobody to give up.
    nodes.servers[2].kill();
    let refused = recover(&data);
    assert!(said(&refused).contains("[no_peers]"), "{refused:?}");
}

/// The repository has more than the log of the node that is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_goes_on_from_the_repository_where_that_covers_more() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.have_voters(0, 3).await;
    nodes.servers[2].kill();
    nodes.append(0, "b").await;
    nodes.put_snapshots().await;
    nodes.servers[0].kill();
    nodes.servers[1].kill();
    assert!(recover(&nodes.data(2)).status.success());
    nodes.restart(2).await;
    nodes.have(2, &["a", "b"]).await;
    nodes.append(2, "c").await;
    eventually("it is ready", async || {
        let http = nodes.servers[2].http1();
        let answer = http.get("/health/ready").try_send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// What the others have is given up, and not what this node has.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_does_not_give_up_its_own_log() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    for body in ["a", "b", "c"] {
        nodes.append(1, body).await;
    }
    nodes.have_voters(0, 3).await;
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    let (data, log) = (nodes.data(1), nodes.data(1).join("log"));
    let saved = data.with_extension("log");
    copy(&log, &saved);
    assert!(recover(&data).status.success());
    let identity = fs::read(data.join("node.json")).unwrap();
    let refused = async |code: &str| {
        let (_, said) = nodes.setups[1].start_refused(&data).await;
        assert!(said.contains(&format!("error [{code}]")), "{said}");
        assert!(data.join("recover.json").exists());
        assert_eq!(fs::read(data.join("node.json")).unwrap(), identity);
        assert!(!data.join("damaged").exists());
    };
    // One byte is damaged.
    let name = |file: &fs::DirEntry| file.file_name().into_string().unwrap();
    let files = fs::read_dir(&log).unwrap().map(Result::unwrap);
    let newest = files.filter(|file| name(file).ends_with(".raftlog"));
    let newest = newest.map(|file| file.path()).max().unwrap();
    change_in_place(&newest, |content| {
        let written = content.iter().rposition(|b| *b != 0).unwrap();
        flip(content, written / 2);
    });
    refused("log").await;
    // Its disk is not mounted.
    fs::remove_dir_all(&log).unwrap();
    fs::create_dir(&log).unwrap();
    refused("log_missing").await;
    fs::remove_dir(&log).unwrap();
    std::os::unix::fs::symlink(data.join("not/mounted"), &log).unwrap();
    refused("unreadable").await;
    // It is back, and nothing is lost.
    fs::remove_file(&log).unwrap();
    copy(&saved, &log);
    nodes.restart(1).await;
    nodes.have(1, &["a", "b", "c"]).await;
}

/// If the log of the node that is left is really gone, that is another loss to accept.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_without_its_log_goes_on_if_that_loss_is_accepted_too() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    let data = nodes.data(2);
    assert!(recover(&data).status.success());
    fs::remove_dir_all(data.join("log")).unwrap();
    nodes.setups[2] = nodes.setups[2].clone().bootstrap("restore");
    nodes.restart(2).await;
    nodes.have(2, &["a"]).await;
    nodes.append(2, "b").await;
    assert!(!data.join("recover.json").exists());
}

/// A snapshot that this release cannot read may have more than the log of the node that is left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_does_not_give_up_what_a_newer_release_has_put() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.have_voters(0, 3).await;
    nodes.servers[2].kill();
    nodes.append(0, "b").await;
    nodes.put_snapshots().await;
    nodes.servers[0].kill();
    nodes.servers[1].kill();
    let roots = |nodes: &Nodes| -> Vec<(Vec<u8>, std::path::PathBuf)> {
        let root = |partition: usize| {
            let dir = nodes
                .directory
                .path()
                .join(format!("repository/{partition}"));
            let root = fs::read(dir.join("latest.json")).unwrap();
            let json: serde_json::Value = serde_json::from_slice(&root).unwrap();
            let newest = json["retained_snapshots"][0]["path"].as_str().unwrap();
            (root, dir.join(newest).join("metadata.json"))
        };
        (0..PARTITIONS).map(root).collect()
    };
    let before = roots(&nodes);
    let mut known = Vec::new();
    for (_, metadata) in &before {
        let text = fs::read(metadata).unwrap();
        let mut newer: serde_json::Value = serde_json::from_slice(&text).unwrap();
        newer["version"] = "V3".into();
        fs::write(metadata, newer.to_string()).unwrap();
        known.push(text);
    }
    let data = nodes.data(2);
    assert!(recover(&data).status.success());
    let (_, said) = nodes.setups[2].start_refused(&data).await;
    assert!(said.contains("error [unreadable]"), "{said}");
    assert_eq!(roots(&nodes), before);
    for ((_, metadata), text) in before.iter().zip(known) {
        fs::write(metadata, text).unwrap();
    }
    nodes.restart(2).await;
    nodes.have(2, &["a", "b"]).await;
}

/// The records of a stream that others had acknowledged in a later term are in the repository, and the node that is
/// left has other entries in their place, which were never committed.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_committed_in_a_later_term_wins_over_the_end_of_a_survivors_log() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.append(0, "b").await;
    nodes.lead_all(0).await;
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    nodes.append_in_vain(0, 20).await;
    nodes.servers[0].kill();
    nodes.restart(1).await;
    nodes.restart(2).await;
    nodes.append(1, "committed").await;
    nodes.put_snapshots().await;
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    assert!(recover(&nodes.data(0)).status.success());
    nodes.restart(0).await;
    nodes.have(0, &["a", "b", "committed"]).await;
    nodes.append(0, "after").await;
    nodes.have(0, &["a", "b", "committed", "after"]).await;
}

/// Without a snapshot that shows more, what may not have been committed is kept, behind the gap.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_end_of_a_survivors_log_is_kept_and_gets_numbers_that_nobody_else_has_given_out() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.append(0, "b").await;
    nodes.lead_all(0).await;
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    nodes.append_in_vain(0, 3).await;
    nodes.servers[0].kill();
    assert!(recover(&nodes.data(0)).status.success());
    nodes.restart(0).await;
    let basin = nodes.client(0).basin(sdk::basin_name("test-basin"));
    for name in STREAMS {
        let read = read_all(&basin.stream(sdk::stream_name(name))).await;
        let bodies = sdk::bodies(&read);
        assert_eq!(bodies[..2], ["a", "b"], "{name}");
        let later = read.iter().filter(|record| record.body == "in vain");
        let numbers: Vec<u64> = later.map(|record| record.seq_num).collect();
        assert!(!numbers.is_empty(), "{name}: {bodies:?}");
        assert!(
            numbers.iter().all(|at| *at >= 1 << 40),
            "{name}: {numbers:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_does_not_go_on_alone_while_another_node_runs() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    let first = nodes.data(0);
    nodes.servers[0].kill();
    assert!(recover(&first).status.success());
    // It has no `cluster.join`: its catalog has the others.
    let (code, said) = nodes.setups[0].start_refused(&first).await;
    assert!(code != 0 && said.contains("[cluster_runs]"), "{said}");
    nodes.append(1, "b").await;
    nodes.servers[1].kill();
    let second = nodes.data(1);
    let setup = nodes.joining(1, 2);
    assert!(recover(&second).status.success());
    let (code, said) = setup.start_refused(&second).await;
    assert!(code != 0 && said.contains("[cluster_runs]"), "{said}");
    // Nothing has begun: they go on together.
    for at in [0, 1] {
        fs::remove_file(nodes.data(at).join("recover.json")).unwrap();
        assert!(!nodes.data(at).join("restore.json").exists());
        nodes.restart(at).await;
    }
    nodes.have_voters(0, 3).await;
    nodes.have(0, &["a", "b"]).await;
    nodes.put_snapshots().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_does_not_take_itself_for_the_node_that_had_its_address() {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.have_voters(0, 3).await;
    for server in &mut nodes.servers {
        server.kill();
    }
    // Its disk is put into the machine of another node.
    let data = nodes.data(0);
    assert!(recover(&data).status.success());
    nodes.servers[1] = nodes.setups[1].start(&data).await;
    nodes.have(1, &["a"]).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_with_a_replica_that_differs_goes_on_with_what_others_have_put_if_that_is_accepted()
 {
    let mut nodes = Nodes::three().await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    for partition in 0..PARTITIONS {
        nodes.lead(partition, 1).await;
    }
    nodes.put_snapshots().await;
    nodes.append(0, "b").await;
    nodes.have_voters(0, 3).await;
    for at in 0..3 {
        nodes.servers[at].kill();
    }
    let data = nodes.data(0);
    let noted = serde_json::json!({
        "node": number_of(&data),
        "replicas": [{ "partition": 1, "lsn": 7, "own": "a", "right": "b", "others": [1, 2] }],
    });
    fs::write(data.join("diverged.json"), noted.to_string()).unwrap();
    let refused = recover(&data);
    assert!(
        said(&refused).contains("[diverged_replicas]"),
        "{refused:?}"
    );
    assert!(said(&refused).contains("partition 1"), "{refused:?}");
    assert!(!data.join("recover.json").exists());
    let mut command = without_configuration(Command::new(program()));
    command.args(["cluster", "recover", "--yes", "--accept-diverged"]);
    assert!(command.arg(&data).status().unwrap().success());
    nodes.restart(0).await;
    nodes.have(0, &["a", "b"]).await;
    nodes.append(0, "c").await;
    assert!(!data.join("diverged.json").exists());
    let log = nodes.servers[0].log().join("\n");
    assert!(
        log.contains("goes on from what another node has put"),
        "{log}"
    );
    nodes.servers[0].kill();
    nodes.restart(0).await;
    nodes.have(0, &["a", "b", "c"]).await;
}

/// A lineage cannot be begun in the repository. The operator gets the other disks back, and starts all nodes again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_survivor_that_could_not_begin_is_a_member_like_any_other_again() {
    let s3 = S3Server::in_memory().await;
    let mut nodes = Nodes::three_with(&s3.settings()).await;
    nodes.create(0).await;
    nodes.append(0, "a").await;
    nodes.put_snapshots().await;
    nodes.lead_all(0).await;
    nodes.servers[1].kill();
    nodes.servers[2].kill();
    nodes.append_in_vain(0, 20).await;
    nodes.servers[0].kill();
    assert!(recover(&nodes.data(0)).status.success());
    let puts = Matching::operation(Operation::Put).key("/2/latest");
    s3.faults().always(puts, Fault::Status(403));
    let (_, said) = nodes.setups[0].start_refused(&nodes.data(0)).await;
    assert!(said.contains("error [repository_unreadable]"), "{said}");
    assert!(said.contains("partitions 0, 1 have begun there"), "{said}");
    s3.faults().clear();
    for file in ["recover.json", "restore.json"] {
        fs::remove_file(nodes.data(0).join(file)).unwrap();
    }
    nodes.restart(1).await;
    nodes.restart(2).await;
    nodes.append(1, "b").await;
    nodes.restart(0).await;
    nodes.have_voters(1, 3).await;
    for at in 0..3 {
        nodes.have(at, &["a", "b"]).await;
    }
}
