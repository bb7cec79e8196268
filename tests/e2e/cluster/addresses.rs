//! Nodes that are started again where another one was: nobody takes one for the other.

use super::writer::{Writer, caught_up, create, has_all};
use crate::support::{Cluster, Setup, eventually};

/// Gives a node the peer address that a port has, for its next start.
fn move_to(cluster: &mut Cluster, at: usize, port: u16) {
    cluster.set_up(at, |setup| {
        setup
            .set(&format!("cluster.peer-listen=127.0.0.1:{port}"))
            .set(&format!("cluster.peer-advertise=127.0.0.1:{port}"))
    });
}

/// The number of a node, and the number of the node that answers at its address if that is another one.
async fn shown(cluster: &Cluster, asked: usize, name: &str) -> Option<(u64, Option<u64>, String)> {
    let view = cluster.view(asked).await.ok()?;
    let nodes = view["nodes"].as_array()?;
    let node = nodes.iter().find(|node| node["name"] == name)?;
    Some((
        node["node"].as_u64()?,
        node["address_answers_as"].as_u64(),
        node["unreachable"].as_str().unwrap_or_default().to_owned(),
    ))
}

/// Messages that were dropped on a node because they were of or for another one.
async fn foreign(cluster: &Cluster, at: usize) -> u64 {
    let text = cluster.server(at).http1().get("/metrics").send().await;
    let text = text.text();
    let of = |reason: &str| {
        let start = format!("esker_raft_messages_dropped_total{{reason=\"{reason}\"}} ");
        let line = text.lines().find_map(|line| line.strip_prefix(&start));
        line.expect("the counter").parse::<u64>().unwrap()
    };
    of("sender") + of("recipient")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_node_at_the_address_of_another_is_not_taken_for_it() {
    let mut cluster = Cluster::start(&Setup::default().partitions(1)).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    cluster.lead(1, 0).await;
    cluster.lead(0, 0).await;
    writer.goes_on(20).await;

    // n1 comes back where n2 was, and n2 does not yet.
    let (of_one, of_two) = (cluster.peer_port(1), cluster.peer_port(2));
    cluster.stop(1).await;
    cluster.stop(2).await;
    move_to(&mut cluster, 1, of_two);
    move_to(&mut cluster, 2, of_one);
    cluster.restart(1).await;
    writer.goes_on(20).await;
    let (one, _, _) = shown(&cluster, 0, "n1").await.unwrap();
    eventually("it is shown who answers for n2", async || {
        let (_, answers, why) = shown(&cluster, 0, "n2").await?;
        (answers == Some(one) && why == format!("its address answers as node {one}")).then_some(())
    })
    .await;
    cluster.restart(2).await;
    caught_up(&cluster, 0).await;
    eventually("all are where they should be", async || {
        for name in ["n1", "n2"] {
            let (_, answers, why) = shown(&cluster, 0, name).await?;
            if answers.is_some() || !why.is_empty() {
                return None;
            }
        }
        Some(())
    })
    .await;
    writer.goes_on(20).await;
    for at in cluster.all() {
        assert_eq!(foreign(&cluster, at).await, 0, "n{at}");
    }
    let written = writer.finish().await;
    for at in cluster.all() {
        has_all(&cluster, at, "orders", written.next).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nodes_whose_addresses_have_all_changed_find_each_other_without_a_leader() {
    let mut cluster = Cluster::start(&Setup::default().partitions(1)).await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(20).await;
    let next = writer.finish().await.next;

    // Each address that anybody knows leads to another node, so no old one helps to elect a leader.
    let ports: Vec<u16> = cluster.all().map(|at| cluster.peer_port(at)).collect();
    for at in cluster.all() {
        cluster.stop(at).await;
        move_to(&mut cluster, at, ports[(at + 1) % 3]);
    }
    cluster.restart_all().await;
    caught_up(&cluster, 0).await;
    let writer = Writer::start_at(&cluster, "orders", 1, next);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    for at in cluster.all() {
        assert_eq!(foreign(&cluster, at).await, 0, "n{at}");
        has_all(&cluster, at, "orders", written.next).await;
    }
}
