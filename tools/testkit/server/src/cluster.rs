//! Nodes on loopback that form a cluster.
//!
//! Nodes are numbered in the order in which they were added, from 0 on, and node 3 is called `n3`. Most tests start
//! three ([`Cluster::start`]); one that needs a disk, a name or a setting of a node's own begins with
//! [`Cluster::empty`] and adds them one by one.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::ports::free_port;

use crate::http::{Answer, Http, Lost};
use crate::peer_links::PeerLinks;
use crate::server::{Server, Setup};
use crate::{eventually, sdk};

/// Attempts of a client that waits until a partition has a leader again.
const ATTEMPTS: u32 = 200;

/// Nodes that form a cluster.
pub struct Cluster {
    base: Setup,
    nodes: Vec<Node>,
    /// The ways between the nodes, if they can be cut.
    links: Option<PeerLinks>,
    /// The access token of its own requests, if the nodes ask for one.
    token: Option<String>,
    directory: tempfile::TempDir,
}

struct Node {
    setup: Setup,
    server: Server,
    /// Where others reach it.
    peer_port: u16,
}

impl Cluster {
    /// No nodes yet; each will have this setup, and addresses of its own.
    pub fn empty(base: &Setup) -> Cluster {
        Cluster {
            base: base.clone(),
            nodes: Vec::new(),
            links: None,
            token: None,
            directory: tempfile::tempdir().unwrap(),
        }
    }

    /// The same, with ways between the nodes that can be cut.
    pub fn linked(base: &Setup) -> Cluster {
        Cluster {
            links: Some(PeerLinks::default()),
            ..Cluster::empty(base)
        }
    }

    /// Looks at its nodes with this access token.
    pub fn with_token(mut self, token: &str) -> Cluster {
        self.token = Some(token.to_owned());
        self
    }

    /// Three nodes that vote in all partitions.
    pub async fn start(base: &Setup) -> Cluster {
        Cluster::empty(base).with_three().await
    }

    /// Adds three nodes, and waits until they vote and each partition has the leader that it keeps.
    pub async fn with_three(mut self) -> Cluster {
        for _ in 0..3 {
            self.add(|setup| setup).await;
        }
        self.voting().await;
        self.settle_leaders().await;
        self
    }

    /// Adds a node with a change of its setup, and starts it. Returns its number.
    pub async fn add(&mut self, change: impl FnOnce(Setup) -> Setup) -> usize {
        let data_dir = self.directory.path().join(format!("n{}", self.nodes.len()));
        self.add_on(&data_dir, change).await
    }

    /// The same, with its data here.
    pub async fn add_on(&mut self, data_dir: &Path, change: impl FnOnce(Setup) -> Setup) -> usize {
        let at = self.nodes.len();
        let listens = free_port().unwrap();
        let peer_port = match &self.links {
            Some(links) => links.open(at, listens).await,
            None => listens,
        };
        let mut setup = self
            .base
            .clone()
            .listen(&format!("127.0.0.1:{}", free_port().unwrap()))
            .set(&format!("cluster.peer-listen=127.0.0.1:{listens}"))
            .set(&format!("cluster.peer-advertise=127.0.0.1:{peer_port}"))
            .set(&format!("cluster.name=n{at}"));
        let others = self.nodes.iter().map(|node| node.peer_port);
        let others: Vec<String> = others.map(|port| format!("127.0.0.1:{port}")).collect();
        if !others.is_empty() {
            setup = setup.set(&format!("cluster.join={}", others.join(",")));
        }
        let setup = change(setup);
        let server = setup.start(data_dir).await;
        self.nodes.push(Node {
            setup,
            server,
            peer_port,
        });
        at
    }

    /// Number of nodes.
    pub fn count(&self) -> usize {
        self.nodes.len()
    }

    /// The numbers of the nodes.
    pub fn all(&self) -> std::ops::Range<usize> {
        0..self.nodes.len()
    }

    /// A node's process.
    pub fn server(&self, at: usize) -> &Server {
        &self.nodes[at].server
    }

    /// The same, to end it or to read its log.
    pub fn server_mut(&mut self, at: usize) -> &mut Server {
        &mut self.nodes[at].server
    }

    /// A node's setup.
    pub fn setup(&self, at: usize) -> &Setup {
        &self.nodes[at].setup
    }

    /// Changes a node's setup for its next start.
    pub fn set_up(&mut self, at: usize, change: impl FnOnce(Setup) -> Setup) {
        let node = &mut self.nodes[at];
        node.setup = change(node.setup.clone());
    }

    /// Where other nodes reach a node: a port of 127.0.0.1.
    pub fn peer_port(&self, at: usize) -> u16 {
        self.nodes[at].peer_port
    }

    /// Where nodes without a directory of their own keep their data.
    pub fn directory(&self) -> PathBuf {
        self.directory.path().to_owned()
    }

    /// The ways between the nodes.
    ///
    /// # Panics
    ///
    /// If they cannot be cut: the cluster was not begun with [`Cluster::linked`].
    pub fn links(&self) -> &PeerLinks {
        self.links.as_ref().unwrap()
    }

    /// A client of a node that retries whatever fails, also appends that may have been made: for a test in which nodes fail.
    /// One that promises that nothing fails uses [`Server::sdk`], which retries nothing.
    pub fn client(&self, at: usize) -> s2_sdk::S2 {
        sdk::client(self.server(at).url(), ATTEMPTS)
    }

    /// Sends a signal to a node.
    pub fn signal(&self, at: usize, signal: Signal) {
        self.nodes[at].server.signal(signal);
    }

    /// Kills a node with SIGKILL.
    pub fn kill(&mut self, at: usize) {
        self.nodes[at].server.kill();
    }

    /// Asks a node to stop, and waits until it has.
    pub async fn stop(&mut self, at: usize) {
        self.nodes[at].server.stop().await;
    }

    /// Starts a node again that has ended.
    pub async fn restart(&mut self, at: usize) {
        let setup = self.nodes[at].setup.clone();
        self.nodes[at].server.restart(&setup).await;
    }

    /// Starts all nodes again, at the same time.
    pub async fn restart_all(&mut self) {
        let restarts = self.nodes.iter_mut().map(|node| async {
            let setup = node.setup.clone();
            node.server.restart(&setup).await;
        });
        futures::future::join_all(restarts).await;
    }

    /// A client for requests about the cluster.
    pub fn http(&self, at: usize) -> Http {
        let http = self.server(at).http1();
        match &self.token {
            Some(token) => http.with_token(token),
            None => http,
        }
    }

    /// The cluster as a node shows it.
    ///
    /// # Errors
    ///
    /// The node does not answer.
    pub async fn view(&self, at: usize) -> Result<Value, Lost> {
        let http = self.http(at);
        Ok(http.get("/esker/v1/cluster").try_send().await?.json())
    }

    /// Waits until each node is active and has its replica of each partition, with as many voters as there should be,
    /// as node 0 shows it.
    pub async fn voting(&self) {
        self.voting_as_of(0, self.count()).await;
    }

    /// The same of so many nodes, as a node shows it. No change of the voters is under way then, in which those before it
    /// would still be needed; that it is complete has reached the other nodes soon after.
    pub async fn voting_as_of(&self, at: usize, count: usize) {
        self.all_vote(at, count).await;
        tokio::time::sleep(Duration::from_secs(1)).await;
        self.all_vote(at, count).await;
    }

    async fn all_vote(&self, at: usize, count: usize) {
        eventually("all nodes vote", async || {
            let view = self.view(at).await.ok()?;
            let nodes = view["nodes"].as_array()?;
            let active = nodes
                .iter()
                .filter(|node| node["state"] == "active")
                .count();
            let partitions = view["partitions"].as_array()?;
            let is_whole = |of: &Value| {
                let replicas = of["replicas"].as_array()?;
                let votes = |it: &&Value| {
                    matches!(
                        it["role"].as_str(),
                        Some("leader" | "follower" | "candidate")
                    )
                };
                let voters = replicas.iter().filter(votes).count();
                let is_complete = of["members"]["voters_before"].as_array()?.is_empty();
                let wanted = match count {
                    5.. if of["partition"] == 0 => 5,
                    3.. => 3,
                    _ => 1,
                };
                let all_vote = replicas.len() == count && voters == wanted;
                Some(all_vote && is_complete && of["leader"].is_u64())
            };
            let is_whole = partitions.iter().all(|of| is_whole(of) == Some(true));
            (active == count && is_whole).then_some(())
        })
        .await;
    }

    /// The node that leads a partition, once a node knows it.
    pub async fn leader_of(&self, partition: u64, as_of: usize) -> usize {
        eventually(&format!("partition {partition} has a leader"), async || {
            let view = self.view(as_of).await.ok()?;
            let partitions = view["partitions"].as_array()?;
            let of = partitions.iter().find(|of| of["partition"] == partition)?;
            of["leader_name"].as_str()?.strip_prefix('n')?.parse().ok()
        })
        .await
    }

    /// The term of each partition, once all nodes have answered, as a node shows it.
    pub async fn terms(&self, at: usize) -> Vec<u64> {
        eventually("all nodes show their terms", async || {
            let view = self.view(at).await.ok()?;
            let terms = view["partitions"].as_array()?.iter().map(|of| {
                let replicas = of["replicas"].as_array()?.iter();
                let terms: Vec<u64> = replicas.filter_map(|it| it["term"].as_u64()).collect();
                (terms.len() == self.count()).then(|| terms.into_iter().max())?
            });
            terms.collect::<Option<Vec<u64>>>()
        })
        .await
    }

    /// Asks a node to change the cluster.
    ///
    /// # Panics
    ///
    /// If it does not answer.
    pub async fn change(&self, at: usize, path: &str, body: &Value) -> Answer {
        let path = format!("/esker/v1/cluster/{path}");
        let http = self.http(at);
        http.post(&path).json(body).send().await
    }

    /// The node that keeps the leadership of a partition while no node is lost. Any other one gives it to this one once it
    /// has led for ten seconds: nodes spread leaderships over the voters, in the order of their numbers.
    pub async fn keeper_of(&self, partition: u64, as_of: usize) -> usize {
        eventually(&format!("partition {partition} has voters"), async || {
            let view = self.view(as_of).await.ok()?;
            let partitions = view["partitions"].as_array()?;
            let of = partitions.iter().find(|of| of["partition"] == partition)?;
            let voters = of["members"]["voters"].as_array()?;
            let mut voters: Vec<u64> = voters.iter().filter_map(Value::as_u64).collect();
            voters.sort_unstable();
            let at = usize::try_from(partition).ok()?;
            let keeper = voters.get(at.checked_rem(voters.len())?)?;
            let nodes = view["nodes"].as_array()?;
            let keeper = nodes.iter().find(|node| node["node"] == *keeper)?;
            keeper["name"].as_str()?.strip_prefix('n')?.parse().ok()
        })
        .await
    }

    /// Moves each leadership to the node that keeps it, so that none moves by itself later.
    pub async fn settle_leaders(&self) {
        let view = eventually("a node answers", async || self.view(0).await.ok()).await;
        let partitions = view["partitions"].as_array().map_or(0, Vec::len);
        for partition in 0..partitions as u64 {
            let keeper = self.keeper_of(partition, 0).await;
            self.lead(partition, keeper).await;
        }
    }

    /// Makes a node lead a partition. If it is not the one that [keeps](Cluster::keeper_of) it, the leadership moves on
    /// ten seconds later.
    pub async fn lead(&self, partition: u64, at: usize) {
        let path = format!("partitions/{partition}/leader");
        let to = json!({"to": format!("n{at}")});
        eventually(&format!("n{at} leads partition {partition}"), async || {
            let answer = self.change(at, &path, &to).await;
            let leads = self.leader_of(partition, at).await == at;
            (answer.status == 200 && leads).then_some(())
        })
        .await;
    }
}
