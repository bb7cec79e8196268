//! The official clients by way of any node: unmodified programs that print what they print with one server.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use crate::support::{Cluster, Setup};

fn source(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(path)
}

/// A path in the directory into which `scripts/setup` installs clients.
fn cached(path: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"));
    let path = cache.join("esker").join(path);
    assert!(
        path.exists(),
        "{} is missing: run scripts/setup",
        path.display()
    );
    path
}

async fn run(mut command: Command) -> Output {
    let run = tokio::task::spawn_blocking(move || command.output().unwrap());
    let output = run.await.unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{error}");
    output
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_official_clients_work_unmodified_by_way_of_nodes_that_lead_nothing() {
    let mut cluster = Cluster::start(&Setup::default().partitions(1)).await;
    cluster.add(|setup| setup).await;
    cluster.voting().await;
    cluster.settle_leaders().await;
    // Of two partitions, and for as long as the clients take.
    let leaders = [cluster.keeper_of(0, 0).await, cluster.keeper_of(1, 0).await];
    let mut others = cluster.all().filter(|at| !leaders.contains(at));
    let (one, other) = (others.next().unwrap(), others.next().unwrap());
    let mut statehouse = Command::new(cached("statehouse/bin/python"));
    statehouse
        .arg(source("tests/state/official_client.py"))
        .arg(cluster.server(one).address());
    let printed = run(statehouse).await.stdout;
    assert!(printed.ends_with(b"all calls are as expected\n"));

    let mut python = Command::new(cached("s2-python/bin/python"));
    python
        .arg(source("examples/python-streams/orders.py"))
        .arg(cluster.server(other).url());
    let printed = String::from_utf8(run(python).await.stdout).unwrap();
    let expected = std::fs::read_to_string(source("examples/python-streams/output.txt"));
    assert_eq!(printed, expected.unwrap());

    let is_installed = Command::new("node").arg("--version").output();
    if !is_installed.is_ok_and(|output| output.status.success()) {
        eprintln!("Node is not installed: the TypeScript SDK was not run");
        return;
    }
    // Node finds packages above the program's directory, and Node 20 runs modules by this ending.
    let dir = tempfile::tempdir().unwrap();
    let modules = cached("s2-node/node_modules");
    std::os::unix::fs::symlink(modules, dir.path().join("node_modules")).unwrap();
    let program = dir.path().join("orders.mjs");
    std::fs::copy(source("examples/typescript-streams/orders.ts"), &program).unwrap();
    let mut node = Command::new("node");
    node.arg(&program).arg(cluster.server(one).url());
    let printed = String::from_utf8(run(node).await.stdout).unwrap();
    let expected = std::fs::read_to_string(source("examples/typescript-streams/output.txt"));
    assert_eq!(printed, expected.unwrap());
}
