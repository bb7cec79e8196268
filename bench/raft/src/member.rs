//! One member in its own process, and its clients' protocol: see [`wire`](crate::wire).

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use esker_raft::transport::grpc::{GrpcConfig, GrpcTransport};
use esker_raft::{Config, Group, GroupId, GroupOptions, Node, NodeId, RemoveFiles, Transport};
use tokio::io::{AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};

use crate::host::{Payload, Values};
use crate::link::Link;
use crate::wire::{ADD_LEARNER, DONE, FAILED, MAX_FRAME, PROPOSE, SNAPSHOT, STATUS, Status};

/// What a member is told.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    #[arg(long)]
    pub id: u64,
    #[arg(long)]
    pub dir: PathBuf,
    /// Where it listens for clients.
    #[arg(long)]
    pub clients: SocketAddr,
    /// Where all members are: `ID=HOST:PORT`.
    #[arg(long, value_delimiter = ',')]
    pub peers: Vec<String>,
    /// Who founds the group; nobody, if it is to be joined.
    #[arg(long, value_delimiter = ',')]
    pub founders: Vec<u64>,
    /// Snapshots are of files, these among them.
    #[arg(long)]
    pub payload: Option<PathBuf>,
    /// Each snapshot has one of them anew.
    #[arg(long)]
    pub churn: bool,
    /// Entries between snapshots; 0 for those alone that are asked for.
    #[arg(long, default_value_t = 0)]
    pub snapshot_entries: u64,
    /// Bytes a second that arrive of large messages; all there are if 0.
    #[arg(long, default_value_t = 0)]
    pub slow: u64,
}

/// The group of all parts.
pub const GROUP: GroupId = GroupId(1);

/// Runs until it is killed, or its standard input ends.
pub fn run(args: Args) -> anyhow::Result<()> {
    std::thread::spawn(|| {
        let _ = std::io::copy(&mut std::io::stdin(), &mut std::io::sink());
        std::process::exit(0);
    });
    let mut peers = BTreeMap::new();
    for peer in &args.peers {
        let (id, address) = peer
            .split_once('=')
            .ok_or_else(|| anyhow::anyhow!("{peer}"))?;
        peers.insert(NodeId(id.parse()?), address.to_owned());
    }
    let listen = peers
        .get(&NodeId(args.id))
        .ok_or_else(|| anyhow::anyhow!("the member is not among its peers"))?
        .parse()?;
    let grpc = GrpcTransport::bind(
        listen,
        GrpcConfig {
            peers,
            ..GrpcConfig::default()
        },
    )?;
    let transport: Arc<dyn Transport> = match args.slow {
        0 => Arc::new(grpc),
        rate => Arc::new(Link::new(grpc, None, rate)),
    };
    let mut config = Config::new(NodeId(args.id), &args.dir);
    config.snapshot_hint_threshold_entries = args.snapshot_entries;
    config.snapshot_hint_threshold_bytes = 0;
    let (node, _) = Node::start_among(config, transport)?;
    let payload = args.payload.map(|dir| Payload {
        dir,
        staging: args.dir.join("staging"),
        churn: args.churn,
    });
    let founders: Vec<_> = args.founders.iter().copied().map(NodeId).collect();
    let mut options = GroupOptions::founded_by(GROUP, &founders);
    options.sink = Some(Arc::new(RemoveFiles));
    let group = node.open_member(options, Values::new(Arc::default(), payload))?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let listener = TcpListener::bind(args.clients).await?;
        loop {
            let (client, _) = listener.accept().await?;
            let (node, group) = (node.clone(), group.clone());
            // A client that disconnects ends its task with an error, which has no other effect.
            tokio::spawn(async move { serve(client, &node, &group).await });
        }
    })
}

async fn serve(client: TcpStream, node: &Node, group: &Group<()>) -> anyhow::Result<()> {
    client.set_nodelay(true)?;
    let (from, mut to) = client.into_split();
    let mut from = BufReader::new(from);
    let mut answer = Vec::new();
    loop {
        let length = from.read_u32_le().await? as usize;
        anyhow::ensure!(
            (1..=MAX_FRAME).contains(&length),
            "a frame of {length} bytes"
        );
        let operation = from.read_u8().await?;
        let mut rest = vec![0; length - 1];
        from.read_exact(&mut rest).await?;
        let done = match operation {
            PROPOSE => group.execute(rest).await.map(|()| Vec::new()).map_err(text),
            STATUS => serde_json::to_vec(&status(node, group)).map_err(text),
            SNAPSHOT => match group.trigger_snapshot().await {
                Ok(taken) => taken.map(|_| Vec::new()).map_err(text),
                Err(gone) => Err(text(gone)),
            },
            ADD_LEARNER => {
                let id = rest.first_chunk().map_or(0, |id| u64::from_le_bytes(*id));
                let added = group.add_learner(NodeId(id)).await;
                added.map(|()| Vec::new()).map_err(text)
            }
            other => Err(format!("there is no operation {other}")),
        };
        let (how, rest) = match done {
            Ok(rest) => (DONE, rest),
            Err(why) => (FAILED, why.into_bytes()),
        };
        answer.clear();
        answer.extend_from_slice(&(1 + rest.len() as u32).to_le_bytes());
        answer.push(how);
        answer.extend_from_slice(&rest);
        to.write_all(&answer).await?;
    }
}

fn text(why: impl std::fmt::Display) -> String {
    why.to_string()
}

fn status(node: &Node, group: &Group<()>) -> Status {
    let (status, counters) = (group.status(), group.counters());
    Status {
        leads: status.role == esker_raft::Role::Leader && status.applied_term == status.term,
        applied: status.applied.0,
        last: status.last.0,
        floor: status.floor.0,
        log_start: status.log_start.0,
        snapshots_taken: counters.snapshots_taken,
        snapshots_received: counters.engine.snapshots_received,
        fetches_resumed: counters.fetches_resumed,
        bytes_fetched: counters.bytes_fetched,
        bytes_sent: node.sent().bytes_sent,
        write_groups: node.writer().counts().groups,
    }
}

/// Time limit within which members connect to each other.
pub const WAIT_TIMEOUT: Duration = Duration::from_secs(60);
