//! Replicas are compared under load, and one whose disk has another byte stops. What follows where no majority shows
//! which one is right is in [`undecided`](super::undecided).

use std::path::Path;
use std::time::Duration;

use rust_rocksdb::{DBWithThreadMode, IteratorMode, MultiThreaded, Options};
use serde_json::{Value, json};
use testkit::process::esker;

use super::writer::{Writer, caught_up, create, has_all, stream};
use crate::small_disk::noise;
use crate::support::http::Http;
use crate::support::{Cluster, Setup, eventually, sdk};

/// Longer than a leader keeps its log whole after its election, and than a member that is gone counts as one that
/// answers: two election timeouts.
const AWAY: Duration = Duration::from_secs(3);

/// Puts a snapshot of partition 1 into the repository, by way of the node that leads.
async fn put_snapshot(cluster: &Cluster, as_of: usize) {
    eventually("a snapshot is put", async || {
        let leader = cluster.leader_of(1, as_of).await;
        let put = cluster.server(leader).http1();
        let put = put.post("/esker/v1/partitions/1/snapshots");
        let answer = put.json(&json!({})).try_send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

/// Changes the last byte of a batch of a partition in the database of a node that does not run.
pub(super) fn change_a_byte(data_dir: &Path, partition: u64) {
    let (options, db) = (Options::default(), data_dir.join("db"));
    let names = DBWithThreadMode::<MultiThreaded>::list_cf(&options, &db).unwrap();
    let open = DBWithThreadMode::<MultiThreaded>::open_cf(&options, &db, &names).unwrap();
    let prefix = format!("partition-{partition}");
    let is_it = |name: &&String| {
        let rest = name
            .strip_prefix(&prefix)
            .and_then(|it| it.strip_suffix("-segments"));
        rest.is_some_and(|number| number.is_empty() || number.starts_with('.'))
    };
    let name = names.iter().rfind(is_it).unwrap();
    let cf = open.cf_handle(name).unwrap();
    let first = open.iterator_cf(&cf, IteratorMode::Start).next();
    let (key, value) = first.expect("a batch").unwrap();
    let mut value = value.to_vec();
    *value.last_mut().unwrap() ^= 1;
    open.put_cf(&cf, key, value).unwrap();
    open.flush_cf(&cf).unwrap();
}

/// Waits until a node's status has a problem.
pub(super) async fn shows_problem(http: &Http, code: &str) {
    eventually(&format!("the status has {code}"), async || {
        let status = http.get("/esker/v1/status").try_send().await.ok()?.json();
        let mut problems = status["problems"].as_array()?.iter();
        problems.any(|it| it["code"] == code).then_some(())
    })
    .await;
}

/// Waits until a node is ready, although a leadership may be moving.
pub(super) async fn is_ready(cluster: &Cluster, at: usize) {
    let http = cluster.server(at).http1();
    eventually(&format!("n{at} is ready"), async || {
        let answer = http.get("/health/ready").try_send().await.ok()?;
        (answer.status == 200).then_some(())
    })
    .await;
}

pub(super) async fn ready_code(http: &Http) -> Option<String> {
    let answer = http.get("/health/ready").try_send().await.ok()?;
    let reasons = answer.json()["reasons"].as_array()?.clone();
    Some(reasons.first()?["code"].as_str()?.to_owned())
}

/// Waits until `/health/ready` of a node that is ready notes this.
pub(super) async fn notes(http: &Http, code: &str) {
    eventually(&format!("{code} is noted"), async || {
        let answer = http.get("/health/ready").try_send().await.ok()?;
        let json = answer.json();
        let mut notes = json["notes"].as_array()?.iter();
        let is_noted = notes.any(|note| note["code"] == code);
        (answer.status == 200 && is_noted).then_some(())
    })
    .await;
}

async fn metric(http: &Http, name: &str) -> Option<f64> {
    let metrics = http.get("/metrics").try_send().await.ok()?.text();
    let line = metrics.lines().find(|line| line.starts_with(name))?;
    line.rsplit(' ').next()?.parse().ok()
}

/// Bytes of snapshots of partition 1 that a node has got of others.
pub(super) async fn received(cluster: &Cluster, at: usize) -> f64 {
    let name = "esker_raft_snapshot_bytes_received_total{group=\"1\"}";
    let http = cluster.server(at).http1();
    metric(&http, name).await.unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn replicas_are_equal_again_and_again_while_streams_are_written_and_nodes_restart() {
    let setup = Setup::default()
        .partitions(2)
        .set("cluster.check-interval=1s")
        .set("log.flush-after=64KiB");
    let mut cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    for at in [1, 2] {
        writer.goes_on(100).await;
        cluster.kill(at);
        writer.goes_on(50).await;
        cluster.restart(at).await;
        cluster.voting().await;
    }
    for partition in 0..=2 {
        let mut checks: Vec<Value> = Vec::new();
        let what = "a partition is compared three times more, twice with all replicas";
        eventually(what, async || {
            let check = cluster.last_comparison(0, partition).await?;
            assert_eq!(check["outcome"], "equal", "{check:#}");
            if !checks.contains(&check) {
                checks.push(check);
            }
            let is_whole = |check: &&Value| check["digests"].as_array().unwrap().len() == 3;
            let whole = checks.iter().filter(is_whole).count();
            (checks.len() >= 4 && whole >= 2).then_some(())
        })
        .await;
    }
    let written = writer.finish().await;
    caught_up(&cluster, 0).await;
    // On request, as the command shows it.
    let url = cluster.server(1).url().to_owned();
    let run = tokio::task::spawn_blocking(move || {
        let mut command = esker();
        command.args(["cluster", "check", "--json", "--server", &url]);
        command.output().unwrap()
    });
    let output = run.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    for of in printed["partitions"].as_array().unwrap() {
        assert_eq!(of["check"]["outcome"], "equal", "{printed:#}");
    }
    for at in 0..3 {
        has_all(&cluster, at, "orders", written.next).await;
        let log = cluster.server(at).log().join("\n");
        assert!(!log.contains("diverged"), "{log}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replica_with_another_byte_stops_for_good_and_the_others_go_on() {
    let setup = Setup::default().partitions(1).set("log.flush-after=64KiB");
    let mut cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(100).await;
    caught_up(&cluster, 0).await;
    let written = writer.finish().await;
    assert_eq!(cluster.compare(0, 1).await["outcome"], "equal");
    cluster.stop(2).await;
    change_a_byte(cluster.server(2).data_dir(), 1);
    cluster.restart(2).await;
    cluster.voting().await;
    // The wrong one leads.
    cluster.lead(1, 2).await;

    let checked = cluster.compare(0, 1).await;
    assert_eq!(checked["outcome"], "diverged", "{checked:#}");
    assert_eq!(checked["diverged"].as_array().unwrap().len(), 1);
    let wrong = cluster.server(2).http1();
    eventually("the node says that it has stopped", async || {
        (ready_code(&wrong).await? == "replica_diverged").then_some(())
    })
    .await;
    shows_problem(&wrong, "replica_diverged").await;
    eventually("the metric shows it", async || {
        let shown = metric(&wrong, "esker_partition_diverged{partition=\"1\"}").await?;
        (shown == 1.0).then_some(())
    })
    .await;
    cluster
        .server(2)
        .logged("a replica has diverged and is stopped")
        .await;

    // The others serve what was written before, and go on.
    eventually("another node leads", async || {
        (cluster.leader_of(1, 0).await != 2).then_some(())
    })
    .await;
    let writer = Writer::start_at(&cluster, "orders", 1, written.next);
    writer.goes_on(50).await;
    // The catalog of the node that has stopped one replica is well, and follows.
    assert_eq!(cluster.compare(0, 0).await["outcome"], "equal");

    cluster.kill(2);
    cluster.restart(2).await;
    writer.goes_on(50).await;
    let wrong = cluster.server(2).http1();
    eventually("it is stopped again", async || {
        (ready_code(&wrong).await? == "replica_diverged").then_some(())
    })
    .await;
    let written = writer.finish().await;
    // By way of the node whose replica is stopped, too: it passes requests on.
    for at in 0..3 {
        has_all(&cluster, at, "orders", written.next).await;
    }
    for at in 0..2 {
        is_ready(&cluster, at).await;
    }
    eventually("one replica is shown as halted", async || {
        let view = cluster.view(0).await.ok()?;
        let replicas = view["partitions"][1]["replicas"].as_array()?;
        let halted = replicas.iter().filter(|it| it["halted"].is_string());
        // Each node may be late with its answer.
        (replicas.len() == 3 && halted.count() == 1).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn of_two_answers_that_differ_nobody_stops_until_the_third_has_come() {
    let setup = Setup::default().partitions(1).set("log.flush-after=64KiB");
    let mut cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(50).await;
    caught_up(&cluster, 0).await;
    let written = writer.finish().await;
    // From now on each replica counts, wherever it was copied from when its node joined.
    assert_eq!(cluster.compare(0, 1).await["outcome"], "equal");
    cluster.stop(2).await;
    change_a_byte(cluster.server(2).data_dir(), 1);
    cluster.stop(1).await;
    cluster.restart(2).await;
    eventually("two nodes have a leader", async || {
        let ready = ready_code(&cluster.server(0).http1()).await;
        (cluster.leader_of(1, 0).await != 1 && ready.is_none()).then_some(())
    })
    .await;
    // What the third one lacks is in the repository, so no log is kept for that. And once the replicas are known to
    // differ, no node sends a snapshot.
    let orders = stream(&cluster, 0, "orders");
    let next = written.next + 5;
    for number in written.next..next {
        sdk::append(&orders, [number.to_string()]).await;
    }
    put_snapshot(&cluster, 0).await;
    tokio::time::sleep(AWAY).await;
    let checked = cluster.compare(0, 1).await;
    assert_eq!(checked["outcome"], "undecided", "{checked:#}");
    for at in [0, 2] {
        let http = cluster.server(at).http1();
        shows_problem(&http, "replicas_differ").await;
        // It goes on.
        notes(&http, "replicas_differ").await;
        eventually("the metric shows it", async || {
            let shown = metric(&http, "esker_partition_undecided{partition=\"1\"}").await?;
            (shown == 1.0).then_some(())
        })
        .await;
    }
    cluster.restart(1).await;
    caught_up(&cluster, 0).await;
    assert_eq!(received(&cluster, 1).await, 0.0, "it came back by entries");
    let checked = cluster.compare(0, 1).await;
    assert_eq!(checked["outcome"], "diverged", "{checked:#}");
    let wrong = cluster.server(2).http1();
    eventually("the wrong one has stopped", async || {
        (ready_code(&wrong).await? == "replica_diverged").then_some(())
    })
    .await;
    eventually("another node leads", async || {
        (cluster.leader_of(1, 0).await != 2).then_some(())
    })
    .await;
    let writer = Writer::start_at(&cluster, "orders", 0, next);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    for at in 0..2 {
        has_all(&cluster, at, "orders", written.next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_comparison_that_is_under_way_goes_on_when_the_leadership_moves() {
    // Slow enough to move the leadership in between.
    let setup = Setup::default()
        .partitions(1)
        .set("log.flush-after=64KiB")
        .set("cluster.check-rate=1MiB");
    let cluster = Cluster::start(&setup).await;
    create(&cluster, 0, "orders").await;
    let orders = stream(&cluster, 0, "orders");
    for number in 0..60 {
        sdk::append(&orders, [noise(number, 100_000)]).await;
    }
    caught_up(&cluster, 0).await;
    cluster.lead(1, 0).await;
    let waiting = {
        let url = cluster.server(2).url().to_owned();
        tokio::task::spawn_blocking(move || {
            let mut command = esker();
            command.args(["cluster", "check", "1", "--json", "--timeout", "120"]);
            command.args(["--server", &url]);
            command.output().unwrap()
        })
    };
    eventually("the comparison is under way", async || {
        let view = cluster.view(0).await.ok()?;
        view["partitions"][1]["checking"].as_bool()?.then_some(())
    })
    .await;
    cluster.lead(1, 1).await;
    // Nobody asks again, and the command waits for the result.
    let output = waiting.await.unwrap();
    assert!(output.status.success(), "{output:?}");
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let checked = &printed["partitions"][0]["check"];
    assert_eq!(checked["outcome"], "equal", "{printed:#}");
    assert_eq!(
        checked["digests"].as_array().unwrap().len(),
        3,
        "{printed:#}"
    );
}
