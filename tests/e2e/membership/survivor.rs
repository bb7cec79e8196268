//! A majority is lost for good: `esker cluster recover` lets a node go on alone, in new lineages.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

use testkit::process::{program, without_configuration};

use super::{Nodes, number_of};
use crate::support::eventually;

fn recover(data: &Path) -> Output {
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
