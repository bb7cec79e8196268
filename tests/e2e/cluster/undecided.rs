//! Replicas differ, and no majority shows which one is right: copies of one replica are none, no state is passed on
//! meanwhile, and an operator names the right one.

use serde_json::{Value, json};
use testkit::process::esker;

use super::digests::{change_a_byte, is_ready, notes, ready_code, received, shows_problem};
use super::writer::{Writer, caught_up, create, has_all, log_begins_after, log_of_leader};
use crate::small_disk::{noise, small};
use crate::support::{Cluster, eventually, sdk};

/// Three nodes with small logs, whose replicas of partition 1 were compared and are equal, with one stream of
/// `written` records. Then one got another byte.
struct OneWrong {
    cluster: Cluster,
    written: u64,
    /// It keeps the leadership of the partition whenever it runs: see [`Cluster::keeper_of`].
    wrong: usize,
    /// The two others. The first one leads the catalog, the second one nothing.
    right: usize,
    third: usize,
}

async fn one_wrong_of_three() -> OneWrong {
    let setup = small()
        .set("log.flush-after=64KiB")
        .set("snapshots.max-log-bytes=4MiB")
        .set("snapshots.local-snapshot-bytes=2MiB");
    let mut cluster = Cluster::start(&setup).await;
    let (right, wrong) = (cluster.keeper_of(0, 0).await, cluster.keeper_of(1, 0).await);
    let third = 3 - right - wrong;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(50).await;
    caught_up(&cluster, 0).await;
    let written = writer.finish().await;
    let checked = cluster.compare(0, 1).await;
    assert_eq!(checked["outcome"], "equal", "{checked:#}");
    assert_eq!(
        checked["digests"].as_array().unwrap().len(),
        3,
        "{checked:#}"
    );
    cluster.stop(wrong).await;
    change_a_byte(cluster.server(wrong).data_dir(), 1);
    cluster.restart(wrong).await;
    cluster.voting_as_of(right, 3).await;
    OneWrong {
        cluster,
        written: written.next,
        wrong,
        right,
        third,
    }
}

/// The wrong one leads, the third is away, and has missed more than the logs keep.
async fn leave_third_behind(of: &mut OneWrong) {
    let OneWrong { cluster, right, .. } = of;
    cluster.lead(1, of.wrong).await;
    cluster.stop(of.third).await;
    let (_, last) = log_of_leader(cluster, *right, 1).await;
    let basin = cluster.client(*right).basin(sdk::basin_name("test-basin"));
    let more = sdk::stream(&basin, "more").await;
    for number in 0..300 {
        sdk::append(&more, [noise(number, 100_000)]).await;
    }
    log_begins_after(cluster, *right, 1, last).await;
}

/// Runs `esker cluster …` by way of a node.
async fn command(cluster: &Cluster, at: usize, words: &[&str]) -> std::process::Output {
    let url = cluster.server(at).url().to_owned();
    let words: Vec<String> = words.iter().map(|word| (*word).to_owned()).collect();
    let run = tokio::task::spawn_blocking(move || {
        let mut command = esker();
        command.arg("cluster").args(&words).args(["--server", &url]);
        command.output().unwrap()
    });
    run.await.unwrap()
}

/// Names the right replica of partition 1.
async fn trust(cluster: &Cluster, at: usize, node: usize) {
    let name = format!("n{node}");
    eventually("the right replica is named", async || {
        // It may be compared at the same moment.
        let output = command(cluster, at, &["trust", "1", &name, "--yes"]).await;
        output.status.success().then_some(())
    })
    .await;
}

/// Compares until a replica has diverged.
async fn diverged(cluster: &Cluster, at: usize) -> Value {
    eventually("the wrong replica is found", async || {
        let checked = cluster.compare(at, 1).await;
        (checked["outcome"] == "diverged").then_some(checked)
    })
    .await
}

/// The wrong replica has stopped, and the others have what was written.
async fn only_the_wrong_one_has_stopped(of: &OneWrong) {
    let OneWrong {
        cluster,
        written,
        wrong,
        right,
        third,
    } = of;
    let http = cluster.server(*wrong).http1();
    eventually("the wrong one has stopped", async || {
        (ready_code(&http).await? == "replica_diverged").then_some(())
    })
    .await;
    eventually("another node leads", async || {
        (cluster.leader_of(1, *right).await != *wrong).then_some(())
    })
    .await;
    let writer = Writer::start_at(cluster, "orders", *right, *written);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    for at in [*right, *third] {
        is_ready(cluster, at).await;
        has_all(cluster, at, "orders", written.next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn while_two_replicas_differ_nobody_gets_their_state_until_an_operator_names_the_right_one() {
    let mut of = one_wrong_of_three().await;
    leave_third_behind(&mut of).await;
    let (right, wrong, third) = (of.right, of.wrong, of.third);
    let cluster = &mut of.cluster;
    let checked = cluster.compare(right, 1).await;
    assert_eq!(checked["outcome"], "undecided", "{checked:#}");
    assert_eq!(checked["undecided"], true, "{checked:#}");
    cluster.restart(third).await;
    // Every comparison waits for it, and it has applied none.
    for _ in 0..2 {
        let checked = cluster.compare(right, 1).await;
        assert_eq!(checked["outcome"], "undecided", "{checked:#}");
        assert_eq!(
            checked["digests"].as_array().unwrap().len(),
            2,
            "{checked:#}"
        );
    }
    assert_eq!(received(cluster, third).await, 0.0);
    let put = "/esker/v1/partitions/1/snapshots";
    let http = cluster.server(right).http1();
    let refused = http.post(put).json(&json!({})).send().await;
    assert_ne!(refused.status, 200);
    assert!(
        refused.text().contains("replicas of this partition differ"),
        "{}",
        refused.text()
    );
    let output = command(cluster, right, &["check", "1"]).await;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("it is not known which is wrong"), "{said}");

    trust(cluster, wrong, right).await;
    eventually("the third gets the state of the right one", async || {
        (received(cluster, third).await > 0.0).then_some(())
    })
    .await;
    caught_up(cluster, right).await;
    let checked = diverged(cluster, right).await;
    assert_eq!(
        checked["diverged"].as_array().unwrap().len(),
        1,
        "{checked:#}"
    );
    only_the_wrong_one_has_stopped(&of).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_copy_of_a_wrong_replica_and_the_wrong_replica_do_not_stop_the_right_one() {
    let mut of = one_wrong_of_three().await;
    leave_third_behind(&mut of).await;
    let (right, wrong, third) = (of.right, of.wrong, of.third);
    let cluster = &mut of.cluster;
    // Nothing was compared since: the third one gets the wrong state.
    cluster.lead(1, wrong).await;
    cluster.restart(third).await;
    eventually("the third gets the state of the wrong one", async || {
        (received(cluster, third).await > 0.0).then_some(())
    })
    .await;
    caught_up(cluster, right).await;
    let checked = cluster.compare(right, 1).await;
    assert_eq!(checked["outcome"], "undecided", "{checked:#}");
    let digests = checked["digests"].as_array().unwrap();
    assert_eq!(digests.len(), 3, "{checked:#}");
    let copies = digests.iter().filter(|it| it["copy_of"].is_u64());
    assert_eq!(copies.count(), 1, "{checked:#}");
    for at in 0..3 {
        let http = cluster.server(at).http1();
        shows_problem(&http, "replicas_differ").await;
        // It goes on.
        notes(&http, "replicas_differ").await;
    }

    // The right one is named. The copy is replaced by one of it, and then the wrong one stops.
    trust(cluster, third, right).await;
    cluster.lead(1, right).await;
    cluster.kill(third);
    std::fs::remove_dir_all(cluster.server(third).data_dir()).unwrap();
    let join = format!("cluster.join=127.0.0.1:{}", cluster.peer_port(right));
    cluster.set_up(third, |setup| setup.set(&join));
    cluster.restart(third).await;
    cluster.voting_as_of(right, 3).await;
    caught_up(cluster, right).await;
    let checked = diverged(cluster, right).await;
    assert_eq!(
        checked["diverged"].as_array().unwrap().len(),
        1,
        "{checked:#}"
    );
    only_the_wrong_one_has_stopped(&of).await;
}
