//! Three nodes that trust each other by certificates: requests are passed on, and one may be killed.

use std::path::Path;
use std::time::Duration;

use super::writer::{Follower, Writer, caught_up, create, has_all};
use crate::support::tls::{Authority, replace};
use crate::support::{Cluster, Setup, eventually};

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);

/// A certificate of its own for a node, with files in a new directory.
fn with_certificate(setup: Setup, dir: &Path, authority: &Authority) -> Setup {
    std::fs::create_dir(dir).unwrap();
    let issued = authority.issue(YEAR);
    let file = |key: &str, text: &str| {
        let path = dir.join(key);
        replace(&path, text);
        format!("cluster.{key}={}", path.display())
    };
    setup
        .set(&file("certificate", &issued.certificate))
        .set(&file("private-key", &issued.key))
        .set(&file("ca", authority.certificate()))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_with_certificates_pass_requests_on_and_go_on_without_one_of_them() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let mut cluster = Cluster::empty(&Setup::default().partitions(1));
    for name in ["n0", "n1", "n2"] {
        let files = dir.path().join(name);
        cluster
            .add(|setup| with_certificate(setup, &files, &authority))
            .await;
    }
    cluster.voting().await;
    cluster.settle_leaders().await;
    create(&cluster, 0, "orders").await;
    let leader = cluster.keeper_of(1, 0).await;
    let (other, third) = ((leader + 1) % 3, (leader + 2) % 3);
    // By way of each node.
    let writer = Writer::start(&cluster, "orders", other);
    let follower = Follower::start(&cluster, "orders");
    for at in cluster.all() {
        writer.use_node(at);
        writer.goes_on(20).await;
    }
    writer.use_node(other);
    cluster.kill(leader);
    writer.goes_on(20).await;
    eventually("another node leads", async || {
        (cluster.leader_of(1, other).await != leader).then_some(())
    })
    .await;
    cluster.restart(leader).await;
    // It has caught up, and counts: without it, one of two that are left has no majority.
    caught_up(&cluster, other).await;
    cluster.kill(third);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    follower.finish(written.next).await;
    has_all(&cluster, leader, "orders", written.next).await;
}
