//! A disk that is full, and one that hangs, on one node of three: what it leads moves away.

use super::writer::{Follower, Writer, caught_up, create, has_all};
use crate::hanging_disk::LoopDisk;
use crate::small_disk::{SmallDisk, noise, small};
use crate::support::{Cluster, eventually, sdk};

/// Nodes of which the last one, which leads, has its data here.
async fn cluster(data_dir: &std::path::Path) -> Cluster {
    let mut cluster = Cluster::empty(&small());
    for _ in 0..2 {
        cluster.add(|setup| setup).await;
    }
    cluster.add_on(data_dir, |setup| setup).await;
    cluster.voting().await;
    create(&cluster, 0, "orders").await;
    cluster.lead(1, 2).await;
    cluster
}

async fn is_led_by_another(cluster: &Cluster) {
    eventually("another node leads", async || {
        (cluster.leader_of(1, 0).await != 2).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_hangs_gives_its_partitions_away_and_follows_again_when_it_answers() {
    let Some(disk) = LoopDisk::mount(256) else {
        return;
    };
    let cluster = cluster(&disk.path().join("data")).await;
    let writer = Writer::start(&cluster, "orders", 0);
    let follower = Follower::start(&cluster, "orders");
    writer.goes_on(20).await;
    // It has just begun to lead, so that it gives the leadership away for no other reason than its disk.
    for leader in [0, 2] {
        cluster.lead(1, leader).await;
    }
    let frozen = disk.freeze();
    // By way of another node, and then by way of the one whose disk hangs.
    writer.goes_on(20).await;
    is_led_by_another(&cluster).await;
    cluster
        .server(2)
        .logged("has given a leadership away")
        .await;
    writer.use_node(2);
    writer.goes_on(20).await;
    writer.use_node(1);
    writer.goes_on(20).await;
    drop(frozen);
    let written = writer.finish().await;
    println!("longest pause {:?}", written.longest);
    follower.finish(written.next).await;
    caught_up(&cluster, 0).await;
    has_all(&cluster, 2, "orders", written.next).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_whose_disk_is_full_gives_its_partitions_away_and_catches_up_when_there_is_room() {
    let Some(disk) = SmallDisk::mount(128) else {
        return;
    };
    let cluster = cluster(&disk.path("data")).await;
    let writer = Writer::start(&cluster, "orders", 0);
    let follower = Follower::start(&cluster, "orders");
    writer.goes_on(20).await;
    disk.fill_up();
    // More than its log has reserved.
    let basin = cluster.client(1).basin(sdk::basin_name("test-basin"));
    let large = sdk::stream(&basin, "large").await;
    for number in 0..100 {
        let record = [noise(number, 100_000)];
        eventually("a large record is taken", async || {
            large.append(sdk::input(&record)).await.ok()
        })
        .await;
    }
    is_led_by_another(&cluster).await;
    writer.goes_on(20).await;
    disk.clear();
    let written = writer.finish().await;
    follower.finish(written.next).await;
    caught_up(&cluster, 0).await;
    has_all(&cluster, 2, "orders", written.next).await;
}
