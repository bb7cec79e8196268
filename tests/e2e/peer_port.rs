//! The listener for nodes of a cluster: who is let in, what strangers cost, and certificates that change.

use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::support::http::{Http, Transport};
use crate::support::tls::{Authority, Issued, replace};
use crate::support::{Server, Setup, eventually, sdk};
use testkit::ports::free_port;
use testkit_server::Cluster;

const YEAR: Duration = Duration::from_secs(365 * 24 * 3600);
const SECRET: &str = "a-secret-of-a-test-that-nobody-guesses";

/// A file of a secret, written at once: a node may read it at any moment.
fn secret(dir: &Path, name: &str, text: &str) -> String {
    let path = dir.join(name);
    replace(&path, text);
    format!("cluster.secret-file={}", path.display())
}

/// A node that listens to others at a port.
fn node(name: &str, port: u16) -> Setup {
    let listen = format!("127.0.0.1:{}", free_port().unwrap());
    Setup::default()
        .listen(&listen)
        .set(&format!("cluster.name={name}"))
        .set(&format!("cluster.peer-listen=127.0.0.1:{port}"))
}

fn joins(setup: Setup, port: u16) -> Setup {
    setup.set(&format!("cluster.join=127.0.0.1:{port}"))
}

/// Waits until a node is ready.
async fn ready(server: &Server) {
    eventually("the node is ready", async || {
        let health = server.http1().get("/health/ready").try_send().await.ok()?;
        (health.status == 200).then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_node_joins_although_the_first_address_that_it_knows_is_that_of_a_stranger() {
    let dir = tempfile::tempdir().unwrap();
    let right = secret(dir.path(), "right", SECRET);
    let other = secret(
        dir.path(),
        "other",
        "the-secret-of-another-cluster-altogether",
    );
    let (port, strange) = (free_port().unwrap(), free_port().unwrap());
    let first = node("n0", port).set(&right);
    let _first = first.start(&dir.path().join("n0")).await;
    let stranger = node("x0", strange).set(&other);
    let _stranger = stranger.start(&dir.path().join("x0")).await;
    let both = format!("cluster.join=127.0.0.1:{strange},127.0.0.1:{port}");
    let second = node("n1", free_port().unwrap()).set(&right).set(&both);
    let second = second.start(&dir.path().join("n1")).await;
    ready(&second).await;
    // Where all are strangers, it is refused at once.
    let lost = joins(node("n2", free_port().unwrap()).set(&right), strange);
    let (_, said) = lost.start_refused(&dir.path().join("n2")).await;
    assert!(
        said.contains("join_refused") && said.contains("secret is missing or wrong"),
        "{said}"
    );
}

#[tokio::test]
async fn a_node_with_another_secret_is_refused_and_one_of_another_cluster_stays_there() {
    let dir = tempfile::tempdir().unwrap();
    let right = secret(dir.path(), "right", SECRET);
    let wrong = secret(
        dir.path(),
        "wrong",
        "another-secret-of-a-test-of-this-length",
    );
    let port = free_port().unwrap();
    let first = node("n0", port).set(&right);
    let first = first.start(&dir.path().join("n0")).await;
    ready(&first).await;

    let second = joins(node("n1", free_port().unwrap()), port);
    let at = dir.path().join("n1");
    let (code, said) = second.clone().set(&wrong).start_refused(&at).await;
    assert_ne!(code, 0);
    assert!(
        said.contains("join_refused") && said.contains("secret is missing or wrong"),
        "{said}"
    );

    // What has begun a cluster of its own goes on in that one, whatever it is to join.
    let own = node("n2", free_port().unwrap()).set(&right);
    let at = dir.path().join("n2");
    let mut other = own.start(&at).await;
    ready(&other).await;
    let id = async |server: &Server| {
        let status = server.http1().get("/esker/v1/status").send().await;
        status.json()["cluster_id"].clone()
    };
    let before = id(&other).await;
    other.stop().await;
    other.restart(&joins(own, port)).await;
    ready(&other).await;
    assert_eq!(id(&other).await, before);
    assert_ne!(id(&first).await, before);
    // It registers itself soon after its start, and nobody else does.
    eventually("the first node is the only one", async || {
        let view = first.http1().get("/esker/v1/cluster").send().await.json();
        let nodes = view["nodes"].as_array().unwrap().len();
        assert!(nodes <= 1, "{view}");
        (nodes == 1).then_some(())
    })
    .await;
    ready(&first).await;
}

#[tokio::test]
async fn nobody_speaks_in_the_name_of_clients_but_nodes_of_the_cluster() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let setup = node("n0", port).set(&secret(dir.path(), "secret", SECRET));
    let server = setup.start(&dir.path().join("n0")).await;
    ready(&server).await;
    let status = server.http1().get("/esker/v1/status").send().await.json();
    let id = status["cluster_id"]
        .as_str()
        .expect("an id")
        .replace('-', "");
    let peers = Http::new(&format!("127.0.0.1:{port}"), Transport::Http2);
    let ask = async |secret: Option<&str>, cluster: &str, node: &str| {
        let mut request = peers
            .get("/v1/basins")
            .header("esker-cluster", cluster)
            .header("esker-node", node)
            .header("esker-process", &"1".repeat(32))
            .header("esker-forwarded", "e30");
        if let Some(secret) = secret {
            request = request.header("esker-cluster-secret", secret);
        }
        let answer = request.send().await;
        let code = answer.header("grpc-status").map(str::to_owned);
        let said = answer.header("grpc-message").unwrap_or_default().to_owned();
        (code, said)
    };
    const UNAUTHENTICATED: &str = "16";
    const DENIED: &str = "7";
    let (code, _) = ask(None, &id, "1").await;
    assert_eq!(code.as_deref(), Some(UNAUTHENTICATED));
    let (code, _) = ask(Some("x"), &id, "1").await;
    assert_eq!(code.as_deref(), Some(UNAUTHENTICATED));
    let (code, said) = ask(Some(SECRET), &"7".repeat(32), "1").await;
    assert_eq!(code.as_deref(), Some(DENIED));
    assert!(said.contains("belongs"), "{said}");
    let (code, said) = ask(Some(SECRET), &id, "1").await;
    assert_eq!(code.as_deref(), Some(DENIED));
    assert!(said.contains("registered"), "{said}");
}

/// Appends a record to the stream of the test below, with a client that repeats nothing. Returns how often that has
/// failed before.
async fn append(server: &Server, body: &str) -> usize {
    let basin = server.sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(sdk::stream_name("orders"));
    let mut failed = 0;
    eventually("an append", async || {
        match stream.append(sdk::input([body])).await {
            Ok(_) => Some(()),
            Err(why) => {
                eprintln!("{body}: {why}");
                failed += 1;
                None
            }
        }
    })
    .await;
    failed
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn ten_thousand_connections_of_strangers_cost_little_and_keep_no_node_out() {
    const ALL: usize = 10_000;
    let mut nodes = Cluster::start(&Setup::default()).await;
    let basin = sdk::basin(&nodes.client(0), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    let mut repeated = append(nodes.server(0), "before").await;
    let view = nodes
        .server(0)
        .http1()
        .get("/esker/v1/cluster")
        .send()
        .await;
    let view: Value = view.json();
    let addresses: Vec<String> = view["nodes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|node| node["peer_address"].as_str().unwrap().to_owned())
        .collect();
    let before: Vec<u64> = (0..3).map(|at| nodes.server(at).resident_bytes()).collect();
    let opening = tokio::task::spawn_blocking(move || {
        let mut open = Vec::new();
        for number in 0..ALL {
            let address = &addresses[number % addresses.len()];
            // What the kernel does not take now is one less.
            open.extend(TcpStream::connect(address).ok());
        }
        open
    });
    // While they come, a node is started again, and the others go on.
    nodes.server_mut(2).stop().await;
    nodes.restart(2).await;
    let open = opening.await.unwrap();
    assert!(open.len() > ALL / 2, "{} were opened", open.len());
    for at in 0..3 {
        repeated += append(nodes.server(at), &format!("by {at}")).await;
        ready(nodes.server(at)).await;
    }
    for (at, before) in before.into_iter().enumerate().take(2) {
        let more = nodes.server(at).resident_bytes().saturating_sub(before);
        assert!(more < 128 << 20, "{more} bytes more");
    }
    drop(open);
    // One whose outcome the client did not know may be there twice, and no other.
    let mut read = sdk::bodies(&sdk::read_all(&stream).await);
    assert!(read.len() <= 4 + repeated, "{read:?}, {repeated} repeated");
    read.dedup();
    assert_eq!(read, ["before", "by 0", "by 1", "by 2"]);
}

/// The files of a node's certificate.
struct Files(PathBuf);

impl Files {
    fn new(dir: &Path, name: &str) -> Files {
        let dir = dir.join(name);
        std::fs::create_dir(&dir).unwrap();
        Files(dir)
    }

    fn write(&self, of: &Authority, validity: Duration) {
        self.write_issued(of, &of.issue(validity));
    }

    /// A certificate of these hosts alone.
    fn write_for(&self, of: &Authority, hosts: &[&str]) {
        self.write_issued(of, &of.issue_for(hosts, YEAR));
    }

    fn write_issued(&self, of: &Authority, issued: &Issued) {
        replace(&self.0.join("certificate"), &issued.certificate);
        replace(&self.0.join("key"), &issued.key);
        replace(&self.0.join("ca"), of.certificate());
    }

    fn of(&self, setup: Setup) -> Setup {
        let file = |key: &str, name: &str| format!("cluster.{key}={}", self.0.join(name).display());
        setup
            .set(&file("certificate", "certificate"))
            .set(&file("private-key", "key"))
            .set(&file("ca", "ca"))
    }
}

#[tokio::test]
async fn new_certificates_of_nodes_are_used_without_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (Authority::new(), Authority::new());
    let port = free_port().unwrap();
    let (of_first, of_second) = (
        Files::new(dir.path(), "files0"),
        Files::new(dir.path(), "files1"),
    );
    of_first.write(&old, YEAR);
    of_second.write(&old, YEAR);
    let first = of_first.of(node("n0", port));
    let first = first.start(&dir.path().join("n0")).await;
    let setup = of_second.of(joins(node("n1", free_port().unwrap()), port));
    let mut second = setup.start(&dir.path().join("n1")).await;
    ready(&second).await;

    // A key that does not fit is reported, and changes nothing.
    replace(&of_first.0.join("key"), &old.issue(YEAR).key);
    let problem = first.problem("peer_certificate_not_reloaded").await;
    assert!(
        problem.contains("belongs to another certificate"),
        "{problem}"
    );
    ready(&second).await;

    of_first.write(&new, YEAR);
    first
        .logged("The certificate of this node was read again")
        .await;
    // This one reads the new files at its start, and could not speak with what was there before.
    of_second.write(&new, YEAR);
    second.stop().await;
    second.restart(&setup).await;
    ready(&second).await;
    let basin = sdk::basin(&second.persistent_sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["by way of the second"]).await;
}

/// Waits until the cluster refuses a node. Returns why.
async fn refused(server: &Server) -> String {
    eventually("the cluster refuses the node", async || {
        let health = server.http1().get("/health/ready").try_send().await.ok()?;
        let text = health.text();
        (health.status == 503 && text.contains("refused_by_cluster")).then_some(text)
    })
    .await
}

/// Of two nodes with certificates for hosts of their own, neither can take the other's place; and the way to move.
#[tokio::test]
async fn a_node_moves_to_another_host_with_a_certificate_for_both() {
    let dir = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (of_first, of_second) = (
        Files::new(dir.path(), "files0"),
        Files::new(dir.path(), "files1"),
    );
    of_first.write_for(&authority, &["127.0.0.1"]);
    of_second.write_for(&authority, &["127.0.0.2"]);
    let (port, port_of_second) = (free_port().unwrap(), free_port().unwrap());
    let data = dir.path().join("n1");
    let at = |host: &str| {
        let listen = format!("127.0.0.1:{}", free_port().unwrap());
        let setup = Setup::default()
            .listen(&listen)
            .set("cluster.name=n1")
            .set(&format!("cluster.peer-listen={host}:{port_of_second}"));
        of_second.of(joins(setup, port))
    };
    let first = of_first.of(node("n0", port));
    let first = first.start(&dir.path().join("n0")).await;
    let mut second = at("127.0.0.2").start(&data).await;
    ready(&second).await;
    let basin = sdk::basin(&first.persistent_sdk(), "test-basin").await;
    let stream = sdk::stream(&basin, "orders").await;
    sdk::append(&stream, ["before"]).await;

    // The certificate of another host is that of another node, wherever the node is.
    of_second.write_for(&authority, &["127.0.0.3"]);
    second.stop().await;
    second.restart(&at("127.0.0.3")).await;
    let why = refused(&second).await;
    assert!(why.contains("not for 127.0.0.2"), "{why}");
    assert!(why.contains("a certificate for both hosts"), "{why}");

    of_second.write_for(&authority, &["127.0.0.2", "127.0.0.3"]);
    second.stop().await;
    second.restart(&at("127.0.0.3")).await;
    ready(&second).await;
    // The catalog has the new address: the old host is not needed any more.
    of_second.write_for(&authority, &["127.0.0.3"]);
    second.stop().await;
    second.restart(&at("127.0.0.3")).await;
    ready(&second).await;
    let basin = second.persistent_sdk().basin(sdk::basin_name("test-basin"));
    let stream = basin.stream(sdk::stream_name("orders"));
    sdk::append(&stream, ["after"]).await;
    assert_eq!(
        sdk::bodies(&sdk::read_all(&stream).await),
        ["before", "after"]
    );
}

#[tokio::test]
async fn a_node_does_not_start_with_a_certificate_that_has_expired() {
    let dir = tempfile::tempdir().unwrap();
    let files = Files::new(dir.path(), "files");
    files.write(&Authority::new(), Duration::ZERO);
    tokio::time::sleep(Duration::from_secs(2)).await;
    let setup = files.of(node("n0", free_port().unwrap()));
    let (code, said) = setup.start_refused(&dir.path().join("n0")).await;
    assert_ne!(code, 0);
    assert!(
        said.contains("peer_certificate") && said.contains("expired"),
        "{said}"
    );
}

/// The value of a series.
async fn value(server: &Server, series: &str) -> Option<f64> {
    let text = server.http1().get("/metrics").send().await.text();
    let line = text.lines().find_map(|line| line.strip_prefix(series));
    line.map(|value| value.trim().parse().unwrap())
}

#[tokio::test]
async fn a_secret_is_replaced_without_a_restart_and_at_no_time_are_nodes_apart() {
    let dir = tempfile::tempdir().unwrap();
    let port = free_port().unwrap();
    let new = "the-next-secret-of-a-test-that-nobody-guesses";
    let of = ["secret0", "secret1"];
    let first = node("n0", port).set(&secret(dir.path(), of[0], SECRET));
    let first = first.start(&dir.path().join("n0")).await;
    let setup = joins(node("n1", free_port().unwrap()), port);
    let setup = setup.set(&secret(dir.path(), of[1], SECRET));
    let mut second = setup.start(&dir.path().join("n1")).await;
    ready(&second).await;
    let steps = [
        format!("{SECRET}\n{new}\n"),
        format!("{new}\n{SECRET}\n"),
        format!("{new}\n"),
    ];
    for (step, text) in steps.iter().enumerate() {
        // One node has it before the other; meanwhile the other one is started again, and is let in.
        for (at, name) in of.iter().enumerate() {
            secret(dir.path(), name, text);
            if at == 0 {
                eventually("it is read", async || {
                    let series = "esker_cluster_secret_reloads_total{result=\"ok\"} ";
                    let reloads = value(&first, series).await?;
                    (reloads > step as f64).then_some(())
                })
                .await;
                second.stop().await;
                second.restart(&setup).await;
                ready(&second).await;
            }
        }
        eventually("it is read", async || {
            let series = "esker_cluster_secret_reloads_total{result=\"ok\"} ";
            (value(&second, series).await? > 0.0).then_some(())
        })
        .await;
    }
    // The old one is worth nothing any more.
    let late = joins(node("n2", free_port().unwrap()), port);
    let late = late.set(&secret(dir.path(), "old", SECRET));
    let (_, said) = late.start_refused(&dir.path().join("n2")).await;
    assert!(said.contains("secret is missing or wrong"), "{said}");
    // What is no secret changes nothing.
    secret(dir.path(), of[0], "short");
    let problem = first.problem("cluster_secret_not_reloaded").await;
    assert!(problem.contains("at least 32"), "{problem}");
    second.stop().await;
    second.restart(&setup).await;
    ready(&second).await;
}

#[tokio::test]
async fn the_end_of_a_nodes_certificate_is_reported_before_it_comes() {
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let dir = tempfile::tempdir().unwrap();
    let (authority, files) = (Authority::new(), Files::new(dir.path(), "files"));
    files.write(&authority, 5 * DAY);
    let setup = files.of(node("n0", free_port().unwrap()));
    let server = setup.start(&dir.path().join("n0")).await;
    let problem = server.problem("peer_certificate_expires_soon").await;
    assert!(problem.contains("expires on"), "{problem}");
    ready(&server).await;
    let health = server.http1().get("/health/ready").send().await;
    let health = health.expect(200).json();
    let mut notes = health["notes"].as_array().unwrap().iter();
    let of_certificate = |note: &Value| note["code"] == "peer_certificate_expires_soon";
    assert!(notes.any(of_certificate), "{health}");
    let series = "esker_peer_certificate_expiry_timestamp_seconds ";
    let ends = value(&server, series).await.unwrap();
    let now = std::time::SystemTime::now();
    let now = now.duration_since(std::time::UNIX_EPOCH).unwrap();
    let left = ends - now.as_secs_f64();
    assert!(
        left < 5.1 * DAY.as_secs_f64() && left > 4.0 * DAY.as_secs_f64(),
        "{left} s"
    );
    files.write(&authority, YEAR);
    eventually("nothing is noted any more", async || {
        let health = server.http1().get("/health/ready").send().await;
        health.json().get("notes").is_none().then_some(())
    })
    .await;
}
