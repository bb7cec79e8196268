//! Who belongs to a cluster, and who does not any more: nodes that lose their log or their disk, copies of data
//! directories, removed nodes that come back, and restores.
//!
//! | module | what it shows |
//! |---|---|
//! | [`rejoin`] | a node that lost its log or its disk joins again under a new number |
//! | [`refusals`] | what would make a second history, and is refused |
//! | [`voters`] | how votes move, and what keeps them from it |
//! | [`departures`] | commands that wait until nothing counts on a node |
//! | [`lineages`] | nodes that join after a loss; snapshots of the repository at a member's start |
//! | [`removed`] | what a removed node says, and what becomes of its replicas |
//! | [`mounts`] | a log whose disk is not mounted |
//! | [`survivor`] | a node that goes on alone, after the others were lost for good |
//! | [`strangers`] | addresses of the cluster at which somebody else answers |

mod departures;
mod lineages;
mod mounts;
mod refusals;
mod rejoin;
mod removed;
mod strangers;
mod survivor;
mod voters;

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use s2_sdk::error::ReadError;
use s2_sdk::types::SequencedRecord;
use s2_sdk::{S2, S2Stream};
use serde_json::{Value, json};
use testkit::ports::free_port;

use crate::support::{Server, Setup, eventually, sdk};

/// Attempts of a client that waits until a partition has a leader again.
const ATTEMPTS: u32 = 200;
/// Partitions of all tests, the catalog included.
const PARTITIONS: usize = 3;

/// Nodes on loopback, each with its own setup and data directory.
struct Nodes {
    base: Setup,
    setups: Vec<Setup>,
    servers: Vec<Server>,
    peers: Vec<u16>,
    directory: tempfile::TempDir,
}

impl Nodes {
    /// One node, with a listener for others. All nodes put their snapshots into one directory.
    async fn first() -> Nodes {
        Nodes::first_with(&[]).await
    }

    /// The same, with more settings.
    async fn first_with(settings: &[String]) -> Nodes {
        let directory = tempfile::tempdir().unwrap();
        let destination = directory.path().join("repository");
        let base = Setup::default()
            .partitions(2)
            .set("logs.level=info")
            .set(&format!("snapshots.destination={}", destination.display()));
        let base = settings.iter().fold(base, |base, one| base.set(one));
        let mut nodes = Nodes {
            base,
            setups: Vec::new(),
            servers: Vec::new(),
            peers: Vec::new(),
            directory,
        };
        nodes.join().await;
        nodes
    }

    /// Three nodes that vote.
    async fn three() -> Nodes {
        Nodes::three_with(&[]).await
    }

    /// The same, with more settings.
    async fn three_with(settings: &[String]) -> Nodes {
        let mut nodes = Nodes::first_with(settings).await;
        nodes.join().await;
        nodes.join().await;
        nodes.have_voters(0, 3).await;
        nodes
    }

    /// Starts another node, which joins the first one.
    async fn join(&mut self) -> usize {
        let at = self.setups.len();
        let (listen, peer) = (free_port().unwrap(), free_port().unwrap());
        let mut setup = self
            .base
            .clone()
            .listen(&format!("127.0.0.1:{listen}"))
            .set(&format!("cluster.peer-listen=127.0.0.1:{peer}"))
            .set(&format!("cluster.name=n{at}"));
        if at > 0 {
            setup = setup.set(&format!("cluster.join=127.0.0.1:{}", self.peers[0]));
        }
        let server = setup.start(&self.data(at)).await;
        self.setups.push(setup);
        self.servers.push(server);
        self.peers.push(peer);
        at
    }

    /// Free addresses for one more process: for `listen`, and the setting of the peers' address.
    fn join_ports(&self) -> (String, String) {
        let (listen, peer) = (free_port().unwrap(), free_port().unwrap());
        (
            format!("127.0.0.1:{listen}"),
            format!("cluster.peer-listen=127.0.0.1:{peer}"),
        )
    }

    fn data(&self, at: usize) -> PathBuf {
        self.directory.path().join(format!("n{at}"))
    }

    /// The setup of a node, which finds the others by the address of this one too.
    fn joining(&self, at: usize, other: usize) -> Setup {
        let address = format!("cluster.join=127.0.0.1:{}", self.peers[other]);
        self.setups[at].clone().set(&address)
    }

    async fn restart(&mut self, at: usize) {
        let setup = self.setups[at].clone();
        self.servers[at].restart(&setup).await;
    }

    fn client(&self, at: usize) -> S2 {
        sdk::client(self.servers[at].url(), ATTEMPTS)
    }

    /// What a node shows of the cluster; `None` while it cannot be asked.
    async fn shown(&self, at: usize) -> Option<Value> {
        let http = self.servers[at].http1();
        let answer = http.get("/esker/v1/cluster").try_send().await.ok()?;
        (answer.status == 200).then(|| answer.json())
    }

    /// Waits until each partition has so many voters, all of them applied what the leader has, and the others are
    /// gone from the list of nodes. No change of the voters is under way then, in which those before it would still be
    /// needed. Returns the numbers of the nodes.
    async fn have_voters(&self, asked: usize, voters: usize) -> BTreeSet<u64> {
        let what = format!("each partition has {voters} voters, as node {asked} shows");
        eventually(&what, async || {
            let shown = self.shown(asked).await?;
            let nodes = shown["nodes"].as_array()?;
            let partitions = shown["partitions"].as_array()?;
            let votes = |replica: &&Value| {
                ["leader", "follower", "candidate"].contains(&replica["role"].as_str().unwrap())
                    && replica["lag"] == 0
            };
            let all_vote = partitions.iter().all(|partition| {
                let replicas = partition["replicas"].as_array().unwrap();
                let members = &partition["members"];
                let count = |which: &str| members[which].as_array().map(Vec::len);
                let is_complete =
                    count("voters") == Some(voters) && count("voters_before") == Some(0);
                is_complete
                    && replicas.len() == nodes.len()
                    && replicas.iter().filter(votes).count() == voters
            });
            let active = nodes.iter().filter(|node| node["state"] == "active");
            let numbers: BTreeSet<u64> = active.filter_map(|node| node["node"].as_u64()).collect();
            let is_done =
                all_vote && partitions.len() == PARTITIONS && numbers.len() == nodes.len();
            is_done.then_some(numbers)
        })
        .await
    }

    /// Waits until a node is not ready, for this reason. Returns the reason in words.
    async fn not_ready(&self, at: usize, code: &str) -> String {
        eventually(&format!("node {at} is not ready: {code}"), async || {
            let http = self.servers[at].http1();
            let answer = http.get("/health/ready").try_send().await.ok()?;
            let text = answer.text();
            (answer.status == 503 && text.contains(code)).then_some(text)
        })
        .await
    }

    /// Appends a record to one of a few streams in all partitions, by way of a node.
    async fn append(&self, at: usize, body: &str) {
        let basin = self.client(at).basin(sdk::basin_name("test-basin"));
        for name in STREAMS {
            sdk::append(&basin.stream(sdk::stream_name(name)), [body]).await;
        }
    }

    async fn create(&self, at: usize) {
        let basin = sdk::basin(&self.client(at), "test-basin").await;
        for name in STREAMS {
            sdk::stream(&basin, name).await;
        }
    }

    /// Makes a node lead a partition.
    async fn lead(&self, partition: usize, at: usize) {
        let what = format!("node {at} leads partition {partition}");
        eventually(&what, async || {
            let shown = self.shown(at).await?;
            let of = &shown["partitions"].as_array()?[partition];
            if of["leader_name"] == format!("n{at}") {
                return Some(());
            }
            let path = format!("/esker/v1/cluster/partitions/{partition}/leader");
            let http = self.servers[at].http1();
            let asked = http
                .post(&path)
                .json(&json!({ "to": format!("n{at}") }))
                .try_send()
                .await;
            drop(asked.ok()?);
            None
        })
        .await;
    }

    /// Makes a node lead all partitions for the next seconds: a leader that has just begun is left alone by what spreads
    /// leaders, and one that has led for longer may lose its place at any moment.
    async fn lead_all(&self, at: usize) {
        let other = (at + 1) % self.servers.len();
        for partition in 0..PARTITIONS {
            self.lead(partition, other).await;
            self.lead(partition, at).await;
        }
    }

    /// Appends to all streams without a majority, all at once: the log gets them, and nothing is acknowledged.
    async fn append_in_vain(&self, at: usize, times: usize) {
        let basin = sdk::client(self.servers[at].url(), 1).basin(sdk::basin_name("test-basin"));
        let mut appends = tokio::task::JoinSet::new();
        for name in STREAMS {
            for _ in 0..times {
                let stream = basin.stream(sdk::stream_name(name));
                appends.spawn(async move { stream.append(sdk::input(["in vain"])).await.is_ok() });
            }
        }
        let wait = std::time::Duration::from_secs(1);
        while let Ok(Some(done)) = tokio::time::timeout(wait, appends.join_next()).await {
            assert!(
                !done.unwrap(),
                "an append was acknowledged without a majority"
            );
        }
    }

    /// Checks that all streams have these records, as a node reads them.
    async fn have(&self, at: usize, bodies: &[&str]) {
        let basin = self.client(at).basin(sdk::basin_name("test-basin"));
        for name in STREAMS {
            let read = read_all(&basin.stream(sdk::stream_name(name))).await;
            assert_eq!(sdk::bodies(&read), bodies, "{name}, read from node {at}");
        }
    }

    /// Puts a snapshot of each partition into the repository, by the node that leads it.
    async fn put_snapshots(&self) {
        for partition in 0..PARTITIONS {
            eventually(
                &format!("a snapshot of partition {partition}"),
                async || {
                    for server in &self.servers {
                        let path = format!("/esker/v1/partitions/{partition}/snapshots");
                        let asked = server.http1().post(&path).json(&json!({})).try_send().await;
                        if asked.is_ok_and(|answer| answer.status.is_success()) {
                            return Some(());
                        }
                    }
                    None
                },
            )
            .await;
        }
    }
}

/// Reads all records of a stream, whose sequence numbers may end in the gap of a fork.
async fn read_all(stream: &S2Stream) -> Vec<SequencedRecord> {
    let (mut records, mut next) = (Vec::new(), 0);
    loop {
        let batch = match stream.read(sdk::from_seq(next, 1000)).await {
            Ok(batch) => batch,
            Err(ReadError::ReadUnwritten(_)) => return records,
            Err(error) => panic!("{error}"),
        };
        let Some(last) = batch.records.last() else {
            return records;
        };
        next = last.seq_num + 1;
        records.extend(batch.records);
    }
}

/// Streams of the two partitions of streams.
const STREAMS: [&str; 4] = ["a", "b", "c", "d"];

/// The number of the node that a data directory belongs to.
fn number_of(data: &Path) -> u64 {
    let identity = fs::read(data.join("node.json")).unwrap();
    let identity: Value = serde_json::from_slice(&identity).unwrap();
    identity["node_id"].as_u64().unwrap()
}

/// A copy of a data directory.
fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let to = to.join(entry.file_name());
        match entry.file_type().unwrap().is_dir() {
            true => copy(&entry.path(), &to),
            false => drop(fs::copy(entry.path(), to).unwrap()),
        }
    }
}
