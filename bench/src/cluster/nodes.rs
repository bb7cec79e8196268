//! The nodes of a cluster, as processes.

use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bench_harness::machine;
use serde_json::Value;
use testkit::ports::free_port;

use crate::process::Server;

/// Time limit of one start.
const READY_AT_MOST: Duration = Duration::from_secs(60);
/// Time limit for the nodes to vote, or to elect a leader.
const FORMED_AT_MOST: Duration = Duration::from_secs(120);
/// How often they are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(50);
/// The partition of streams.
const PARTITION: u64 = 1;

/// Nodes that form a cluster; or one that is alone. Dropping them kills them.
pub struct Nodes {
    program: PathBuf,
    dir: PathBuf,
    nodes: Vec<Node>,
}

struct Node {
    /// `None` after it was killed.
    process: Option<Server>,
    client_port: u16,
    peer_port: u16,
}

impl Nodes {
    /// Starts so many, and waits until they vote. One is a server without a cluster.
    pub async fn start(program: PathBuf, dir: PathBuf, count: usize) -> anyhow::Result<Nodes> {
        let mut nodes = Nodes {
            program,
            dir,
            nodes: Vec::new(),
        };
        match count {
            1 => nodes.add_process(false).await?,
            _ => {
                for _ in 0..count {
                    nodes.add_process(true).await?;
                }
                nodes.voting(count).await?;
                nodes.spread().await?;
            }
        }
        Ok(nodes)
    }

    /// Waits until the leaderships are spread, so that none moves during a measurement: the catalog and the partition
    /// of streams belong to two nodes.
    async fn spread(&self) -> anyhow::Result<()> {
        let deadline = Instant::now() + FORMED_AT_MOST;
        loop {
            if let Ok(view) = self.view(0).await {
                let leaders = view["partitions"].as_array().into_iter().flatten();
                let leaders: Vec<_> = leaders.filter_map(|of| of["leader"].as_u64()).collect();
                if let [catalog, streams] = leaders[..]
                    && catalog != streams
                {
                    return Ok(());
                }
            }
            if Instant::now() > deadline {
                bail!("one node leads everything");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Adds a node, which gets all data then. It is ready once it has all of it, so nothing is waited for.
    pub fn add(&mut self) -> anyhow::Result<()> {
        self.begin(true)?;
        Ok(())
    }

    async fn add_process(&mut self, in_cluster: bool) -> anyhow::Result<()> {
        let process = self.begin(in_cluster)?;
        process.ready(READY_AT_MOST).await
    }

    fn begin(&mut self, in_cluster: bool) -> anyhow::Result<&mut Server> {
        self.nodes.push(Node {
            process: None,
            client_port: free_port()?,
            peer_port: free_port()?,
        });
        let at = self.nodes.len() - 1;
        let process = self.spawn(at, in_cluster)?;
        Ok(self.nodes[at].process.insert(process))
    }

    fn spawn(&self, at: usize, in_cluster: bool) -> anyhow::Result<Server> {
        let node = &self.nodes[at];
        let data = self.dir.join(format!("n{at}"));
        let mut command = Command::new(&self.program);
        command
            .arg("server")
            .arg("--data-dir")
            .arg(&data)
            .arg("--listen")
            .arg(format!("127.0.0.1:{}", node.client_port))
            .args(["--set", "partitions=1"]);
        if in_cluster {
            let mut set = |setting: String| {
                command.arg("--set").arg(setting);
            };
            set(format!("cluster.name=n{at}"));
            set(format!("cluster.peer-listen=127.0.0.1:{}", node.peer_port));
            if at > 0 {
                let first = self.nodes[0].peer_port;
                set(format!("cluster.join=127.0.0.1:{first}"));
            }
        }
        let log = data.with_extension("log");
        Server::spawn("a node", &mut command, node.client_port, &log)
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// Where clients reach a node.
    pub fn url(&self, at: usize) -> String {
        format!("http://127.0.0.1:{}", self.nodes[at].client_port)
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, at: usize) {
        // Dropping it kills it and waits.
        self.nodes[at].process = None;
    }

    /// Starts a node again that was killed, and waits until it is healthy.
    pub async fn restart(&mut self, at: usize) -> anyhow::Result<()> {
        let mut process = self.spawn(at, true)?;
        process.ready(READY_AT_MOST).await?;
        self.nodes[at].process = Some(process);
        Ok(())
    }

    /// Processor time of all nodes that run, in seconds.
    pub fn processor_seconds(&self) -> f64 {
        let running = self.nodes.iter().filter_map(|node| node.process.as_ref());
        let ticks = running.map(|process| machine::cpu_ticks(process.pid()).unwrap_or_default());
        ticks.sum::<u64>() as f64 / 100.0
    }

    /// The cluster as a node shows it.
    async fn view(&self, at: usize) -> anyhow::Result<Value> {
        let process = self.nodes[at].process.as_ref();
        let process = process.context("the node was killed")?;
        let (status, answer) = process.get("/esker/v1/cluster").await?;
        anyhow::ensure!(status == 200, "/esker/v1/cluster answers {status}");
        let (_, body) = answer.split_once("\r\n\r\n").context("no body")?;
        Ok(serde_json::from_str(body)?)
    }

    /// What a node has of the partition of streams, as node `at` shows it: its last applied entry.
    pub async fn applied(&self, at: usize, of: usize) -> anyhow::Result<Option<u64>> {
        let view = self.view(at).await?;
        let name = format!("n{of}");
        let replicas = partition(&view).and_then(|it| it["replicas"].as_array());
        let mut replicas = replicas.into_iter().flatten();
        let replica = replicas.find(|it| it["name"] == name.as_str());
        Ok(replica.and_then(|it| it["applied"].as_u64()))
    }

    /// Waits until a node knows who leads the partition of streams, and returns the leader.
    pub async fn leader(&self, as_of: usize) -> anyhow::Result<usize> {
        let deadline = Instant::now() + FORMED_AT_MOST;
        loop {
            if let Ok(view) = self.view(as_of).await {
                let name = partition(&view).and_then(|it| it["leader_name"].as_str());
                let leader = name.and_then(|name| name.strip_prefix('n')?.parse().ok());
                // A node that was killed leads for as long as no other one is elected.
                let lives = |at: &usize| self.nodes.get(*at).is_some_and(|it| it.process.is_some());
                if let Some(leader) = leader.filter(lives) {
                    return Ok(leader);
                }
            }
            if Instant::now() > deadline {
                bail!("nobody leads the partition of streams");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
    }

    /// Waits until so many vote in all partitions, and have what has been applied by then.
    pub async fn voting(&self, count: usize) -> anyhow::Result<()> {
        let deadline = Instant::now() + FORMED_AT_MOST;
        let at = self.nodes.iter().position(|node| node.process.is_some());
        let at = at.context("no node runs")?;
        while !matches!(self.view(at).await, Ok(view) if is_formed(&view, count)) {
            if Instant::now() > deadline {
                bail!("{count} nodes do not vote");
            }
            tokio::time::sleep(LOOK_INTERVAL).await;
        }
        Ok(())
    }
}

fn partition(view: &Value) -> Option<&Value> {
    let mut partitions = view["partitions"].as_array()?.iter();
    partitions.find(|it| it["partition"] == PARTITION)
}

/// Whether so many nodes have caught up and vote in all partitions.
fn is_formed(view: &Value, count: usize) -> bool {
    let votes = |it: &&Value| matches!(it["role"].as_str(), Some("leader" | "follower"));
    let is_formed = |of: &Value| {
        let replicas = of["replicas"].as_array();
        let replicas = replicas.map_or(&[][..], Vec::as_slice);
        let has_all = |it: &Value| it["lag"].as_u64().is_some_and(|lag| lag < 100);
        replicas.iter().filter(votes).count() >= count && replicas.iter().all(has_all)
    };
    let partitions = view["partitions"].as_array();
    partitions.is_some_and(|all| !all.is_empty() && all.iter().all(is_formed))
}
