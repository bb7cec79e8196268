//! A data directory of each earlier format becomes the first node of a cluster, and the other node gets what it has, while
//! the first one may still convert it.

use super::writer::caught_up;
use crate::formats::{check, check_state, fixtures, has_state, setup, unpack};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Cluster, eventually};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_data_directory_of_every_promised_format_becomes_a_first_node_and_others_get_its_data() {
    for fixture in fixtures() {
        println!("{}", fixture.display());
        let dir = unpack(&fixture);
        let mut cluster = Cluster::empty(&setup(dir.path()));
        cluster.add_on(&dir.path().join("data"), |it| it).await;
        let second = cluster.add(|it| it).await;
        cluster.voting().await;
        caught_up(&cluster, 0).await;
        let all = [100..150, 200..250, 300..350, 900..920];
        check(cluster.server(second), &all).await;
        if has_state(&fixture) {
            check_state(cluster.server(second));
        }
        // Its own replicas are the same.
        cluster.replicas_are_equal(0).await;
        let basin = cluster
            .server(second)
            .persistent_sdk()
            .basin(basin_name("fixtures"));
        sdk::append(&basin.stream(stream_name("orders")), ["more"]).await;
        for at in cluster.all() {
            cluster.kill(at);
        }
        cluster.restart_all().await;
        let records = eventually("the records are read", async || {
            let basin = cluster
                .server(second)
                .persistent_sdk()
                .basin(basin_name("fixtures"));
            let orders = basin.stream(stream_name("orders"));
            orders.check_tail().await.ok()?;
            Some(sdk::read_all(&orders).await)
        })
        .await;
        assert_eq!(records.len(), 171);
    }
}
