//! Names of nodes that cannot be resolved for a while, or that lead to another address.
//!
//! Each node runs in a mount namespace of its own, in which a file of the test is `/etc/hosts`. That needs root;
//! without it, the test prints that and passes.

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use testkit::process::program;

use super::writer::{Writer, caught_up, create, has_all};
use crate::support::{Cluster, Setup};

/// Starts the program with the files of the test in place of those of the system.
const SCRIPT: &str = r#"#!/bin/sh
exec unshare --mount sh -c '
  mount --bind "$TEST_HOSTS" /etc/hosts && mount --bind "$TEST_RESOLVER" /etc/resolv.conf && exec "$TEST_PROGRAM" "$@"
' sh "$@"
"#;

fn can_unshare() -> bool {
    let mut command = Command::new("unshare");
    let done = command.args(["--mount", "mount", "--bind", "/etc/hosts", "/etc/hosts"]);
    done.output().is_ok_and(|output| output.status.success())
}

/// The addresses of the three nodes.
fn hosts(file: &Path, addresses: [Option<&str>; 3]) {
    let lines = addresses.iter().enumerate().filter_map(|(at, address)| {
        let address = address.as_ref()?;
        Some(format!("{address} n{at}.test\n"))
    });
    let lines: String = lines.collect();
    // In place: a new file would not be the one that is mounted.
    std::fs::write(file, format!("127.0.0.1 localhost\n{lines}")).unwrap();
}

/// Under this name instead of its address.
fn advertise(setup: Setup, name: &str) -> Setup {
    let port = setup.setting("cluster.peer-listen").unwrap();
    let (_, port) = port.rsplit_once(':').unwrap();
    let advertised = format!("cluster.peer-advertise={name}:{port}");
    setup.set(&advertised)
}

/// At another address, with the same port.
fn at_address(setup: Setup, address: &str) -> Setup {
    let port = setup.setting("cluster.peer-listen").unwrap();
    let (_, port) = port.rsplit_once(':').unwrap();
    let listen = format!("cluster.peer-listen={address}:{port}");
    setup.set(&listen)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn names_that_fail_for_a_while_or_lead_elsewhere_cost_the_node_that_they_name_alone() {
    if !can_unshare() {
        testkit::skipped("no mount namespace can be made here");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let (hosts_file, resolver) = (dir.path().join("hosts"), dir.path().join("resolver"));
    let script = dir.path().join("start");
    // Nobody answers there.
    std::fs::write(
        &resolver,
        "nameserver 127.0.0.1\noptions timeout:1 attempts:1\n",
    )
    .unwrap();
    std::fs::write(&script, SCRIPT).unwrap();
    std::fs::set_permissions(&script, std::fs::Permissions::from_mode(0o700)).unwrap();
    const HERE: Option<&str> = Some("127.0.0.1");
    hosts(&hosts_file, [HERE; 3]);
    let base = Setup::default()
        .partitions(1)
        .program(&script)
        .variable("TEST_HOSTS", hosts_file.to_str().unwrap())
        .variable("TEST_RESOLVER", resolver.to_str().unwrap())
        .variable("TEST_PROGRAM", program().to_str().unwrap());
    let mut cluster = Cluster::empty(&base);
    for at in 0..3 {
        cluster
            .add(|setup| advertise(setup, &format!("n{at}.test")))
            .await;
    }
    cluster.voting().await;
    create(&cluster, 0, "orders").await;
    let writer = Writer::start(&cluster, "orders", 0);
    writer.goes_on(20).await;

    // No name can be resolved while a node restarts: what is connected stays so, and the node waits.
    cluster.lead(1, 0).await;
    cluster.stop(1).await;
    hosts(&hosts_file, [None; 3]);
    cluster.restart(1).await;
    writer.goes_on(20).await;
    tokio::time::sleep(Duration::from_secs(2)).await;
    writer.goes_on(20).await;
    hosts(&hosts_file, [HERE; 3]);
    caught_up(&cluster, 0).await;

    // A name leads to another address: the others find the node there.
    cluster.stop(1).await;
    cluster.set_up(1, |setup| at_address(setup, "127.0.0.2"));
    hosts(&hosts_file, [HERE, Some("127.0.0.2"), HERE]);
    cluster.restart(1).await;
    caught_up(&cluster, 0).await;
    writer.use_node(2);
    cluster.kill(0);
    writer.goes_on(20).await;
    let written = writer.finish().await;
    has_all(&cluster, 1, "orders", written.next).await;
}
