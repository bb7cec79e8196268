//! Three members of etcd, and puts by gRPC.
//!
//! Of its protocol, only what a put and the search for the leader need is here: `rpc.proto` of etcd 3.4, packages
//! `etcdserverpb` and `mvccpb`.

use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use bench_harness::machine;
use esker_proto::codec::Codec;
use http::uri::PathAndQuery;
use testkit::ports::free_port;
use tonic::transport::{Channel, Endpoint};

use super::load::{Counted, Work};
use crate::process::Server;

/// Time limit for the members to elect a leader.
const LEADER_AT_MOST: Duration = Duration::from_secs(60);

/// `PutRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct Put {
    #[prost(bytes = "vec", tag = "1")]
    key: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    value: Vec<u8>,
}

/// `PutResponse`, of which nothing is used.
#[derive(Clone, PartialEq, prost::Message)]
struct PutDone {}

/// `StatusRequest`.
#[derive(Clone, PartialEq, prost::Message)]
struct AskStatus {}

/// `StatusResponse`.
#[derive(Clone, PartialEq, prost::Message)]
struct Status {
    #[prost(message, optional, tag = "1")]
    header: Option<Header>,
    #[prost(uint64, tag = "4")]
    leader: u64,
}

/// `ResponseHeader`.
#[derive(Clone, PartialEq, prost::Message)]
struct Header {
    #[prost(uint64, tag = "2")]
    member_id: u64,
}

/// What `etcd --version` prints first, if it can be executed.
pub fn version(program: &Path) -> Option<String> {
    let output = Command::new(program).arg("--version").output().ok()?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    let line = text.lines().next()?;
    Some(line.trim_start_matches("etcd Version: ").to_owned())
}

/// Three members. Dropping them kills them.
pub struct Etcd {
    members: Vec<Server>,
    urls: Vec<String>,
}

impl Etcd {
    /// Starts three members, with their defaults.
    pub fn start(program: &Path, dir: &Path) -> anyhow::Result<Etcd> {
        let ports = (0..6).map(|_| free_port()).collect::<Result<Vec<_>, _>>()?;
        let url = |port: &u16| format!("http://127.0.0.1:{port}");
        let peers: Vec<String> = ports[..3].iter().map(url).collect();
        let urls: Vec<String> = ports[3..].iter().map(url).collect();
        let named = peers.iter().enumerate();
        let cluster: Vec<_> = named.map(|(n, peer)| format!("m{n}={peer}")).collect();
        let mut members = Vec::new();
        for n in 0..3 {
            let mut command = Command::new(program);
            command
                .args(["--name", &format!("m{n}"), "--data-dir"])
                .arg(dir.join(format!("etcd-{n}")))
                .args(["--listen-peer-urls", &peers[n]])
                .args(["--initial-advertise-peer-urls", &peers[n]])
                .args(["--listen-client-urls", &urls[n]])
                .args(["--advertise-client-urls", &urls[n]])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-state", "new", "--logger", "zap"]);
            let log = dir.join(format!("etcd-{n}.log"));
            members.push(Server::spawn("etcd", &mut command, ports[3 + n], &log)?);
        }
        Ok(Etcd { members, urls })
    }

    /// The URL of the member that leads.
    pub async fn leader(&self) -> anyhow::Result<String> {
        let deadline = Instant::now() + LEADER_AT_MOST;
        loop {
            for url in &self.urls {
                if let Ok(status) = status(url).await
                    && status.leader != 0
                    && status
                        .header
                        .is_some_and(|it| it.member_id == status.leader)
                {
                    return Ok(url.clone());
                }
            }
            if Instant::now() > deadline {
                bail!("no member of etcd leads{}", self.members[0].log());
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }

    /// Processor time of all members, in seconds.
    pub fn processor_seconds(&self) -> f64 {
        let ticks = |it: &Server| machine::cpu_ticks(it.pid()).unwrap_or_default();
        self.members.iter().map(ticks).sum::<u64>() as f64 / 100.0
    }
}

async fn connect(url: &str) -> anyhow::Result<Channel> {
    let endpoint = Endpoint::from_shared(url.to_owned())?.tcp_nodelay(true);
    endpoint
        .connect()
        .await
        .with_context(|| format!("cannot connect to {url}"))
}

async fn call<T, U>(channel: &Channel, path: &'static str, message: T) -> anyhow::Result<U>
where
    T: prost::Message + Send + Sync + 'static,
    U: prost::Message + Default + Send + Sync + 'static,
{
    let mut client = tonic::client::Grpc::new(channel.clone());
    client.ready().await?;
    let path = PathAndQuery::from_static(path);
    let request = tonic::Request::new(message);
    Ok(client
        .unary(request, path, Codec::<T, U>::default())
        .await?
        .into_inner())
}

async fn status(url: &str) -> anyhow::Result<Status> {
    let channel = connect(url).await?;
    call(&channel, "/etcdserverpb.Maintenance/Status", AskStatus {}).await
}

/// Clients that put values of so many bytes, each under keys of its own.
pub async fn putters(
    url: &str,
    clients: usize,
    bytes: usize,
    keys: u64,
    counted: &Counted,
) -> anyhow::Result<Vec<Work>> {
    let mut all = Vec::new();
    for client in 0..clients {
        let channel = connect(url).await?;
        let counted = counted.clone();
        let work = async move {
            let value = vec![b'v'; bytes];
            let mut n = 0;
            while counted.goes_on() {
                let put = Put {
                    key: format!("key-{client}-{:09}", n % keys).into_bytes(),
                    value: value.clone(),
                };
                call::<Put, PutDone>(&channel, "/etcdserverpb.KV/Put", put).await?;
                n += 1;
                counted.add(1);
            }
            Ok(())
        };
        all.push(Box::pin(work) as Work);
    }
    Ok(all)
}
