//! A replicated key-value map: three processes, gRPC between them, compressed snapshots of bytes.
//!
//! ```text
//! cargo run -p esker-raft --features grpc --example kv -- --demo
//! cargo run -p esker-raft --features grpc --example kv -- found 1 DIR 127.0.0.1:7201 1=127.0.0.1:7101 2=… 3=…
//! ```
//!
//! The arguments of a node are its number, its directory, its address for clients, and the addresses of
//! all nodes. `found` is for the first start of each node, and left out at every later one: only the
//! operator knows which start is the first, because a replaced disk is as empty as a new one. Clients send
//! lines, for instance with `nc`: `set KEY VALUE`, `get KEY`, `status`.

use std::collections::BTreeMap;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, ExitCode};
use std::sync::Arc;
use std::time::{Duration, Instant};

use esker_raft::runtime::Writing;
use esker_raft::transport::grpc::{GrpcConfig, GrpcTransport};
use esker_raft::{
    Config, Group, GroupId, GroupOptions, InMemory, InMemoryState, Lsn, Node, NodeId, SnapshotError,
};
use parking_lot::RwLock;

type Anything<T> = Result<T, Box<dyn std::error::Error>>;
/// Clients read it; only the state machine changes it.
type Shared = Arc<RwLock<BTreeMap<String, String>>>;

/// The state machine: `KEY VALUE` sets a key.
struct Map(Shared);

impl InMemoryState for Map {
    /// How many keys there are.
    type Output = usize;

    fn apply(&mut self, _lsn: Lsn, command: &[u8]) -> usize {
        let command = String::from_utf8_lossy(command);
        let (key, value) = command.split_once(' ').unwrap_or((&command, ""));
        let mut map = self.0.write();
        map.insert(key.to_owned(), value.to_owned());
        map.len()
    }

    fn snapshot(&self) -> Result<Vec<u8>, SnapshotError> {
        (self.capture())()
    }

    /// Applies wait for the clone only; the rest runs concurrently.
    fn capture(&self) -> Writing {
        let map = self.0.read().clone();
        Box::new(move || {
            let failed = |e: &dyn std::fmt::Display| SnapshotError(e.to_string());
            let json = serde_json::to_vec(&map).map_err(|e| failed(&e))?;
            zstd::encode_all(&json[..], 3).map_err(|e| failed(&e))
        })
    }

    fn restore(&mut self, snapshot: &[u8]) -> Result<(), SnapshotError> {
        let failed = |e: &dyn std::fmt::Display| SnapshotError(e.to_string());
        let json = zstd::decode_all(snapshot).map_err(|e| failed(&e))?;
        *self.0.write() = serde_json::from_slice(&json).map_err(|e| failed(&e))?;
        Ok(())
    }
}

/// Runs one node until it is killed.
fn node(
    founds: bool,
    id: u64,
    dir: &Path,
    clients: SocketAddr,
    peers: BTreeMap<NodeId, String>,
) -> Anything<()> {
    let listen = peers
        .get(&NodeId(id))
        .ok_or("the node is not among its peers")?;
    let listen = listen.parse()?;
    let founders: Vec<NodeId> = peers.keys().copied().collect();
    let grpc = GrpcConfig {
        peers,
        ..GrpcConfig::default()
    };
    let transport = patiently(|| GrpcTransport::bind(listen, grpc.clone()))?;
    let mut config = Config::new(NodeId(id), dir);
    config.tick_interval = Duration::from_millis(50);
    config.snapshot_hint_threshold_entries = 200;
    let (node, _) = Node::start_among(config, Arc::new(transport))?;
    let map = Shared::default();
    // A voter that lost its disk must not vote again: later starts need the log.
    let options = match founds {
        true => GroupOptions::founded_by(GroupId(1), &founders),
        false => GroupOptions::reopening(GroupId(1)),
    };
    let group = node.open_member(options, InMemory::new(Map(map.clone())))?;

    for client in patiently(|| TcpListener::bind(clients))?.incoming() {
        let (client, group, map) = (client?, group.clone(), map.clone());
        // The error of a client that disconnects only ends its thread.
        std::thread::spawn(move || serve(client, &group, &map).map_err(|e| e.to_string()));
    }
    Ok(())
}

/// Another process may have the address for a while.
fn patiently<T>(bind: impl Fn() -> io::Result<T>) -> io::Result<T> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match bind() {
            Err(e) if e.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                std::thread::sleep(Duration::from_millis(50));
            }
            bound => return bound,
        }
    }
}

fn serve(client: TcpStream, group: &Group<usize>, map: &Shared) -> Anything<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().build()?;
    let mut answers = client.try_clone()?;
    for line in BufReader::new(client).lines() {
        let line = line?;
        let answer = match line.split_once(' ').unwrap_or((&line, "")) {
            ("set", rest) => match runtime.block_on(group.execute(rest.into())) {
                Ok(keys) => format!("ok, {keys} keys"),
                Err(error) => format!("error: {error} (leader: {:?})", group.leader()),
            },
            // After the read index, the map has everything that was committed before.
            ("get", key) => match runtime.block_on(group.read_index()) {
                Ok(_) => map.read().get(key).cloned().unwrap_or_default(),
                Err(error) => format!("error: {error:?}"),
            },
            ("status", _) => {
                let (status, counters) = (group.status(), group.counters());
                format!(
                    "{:?} applied={} floor={} log_start={} snapshots_taken={} snapshots_received={}",
                    status.role,
                    status.applied,
                    status.floor,
                    status.log_start,
                    counters.snapshots_taken,
                    counters.engine.snapshots_received,
                )
            }
            _ => "error: say set KEY VALUE, get KEY, or status".to_owned(),
        };
        writeln!(answers, "{answer}")?;
    }
    Ok(())
}

/// Three processes of this program; they end when this is dropped.
struct Demo {
    dir: std::path::PathBuf,
    nodes: BTreeMap<u64, Child>,
    peers: Vec<String>,
    clients: BTreeMap<u64, String>,
    deadline: Instant,
}

impl Drop for Demo {
    fn drop(&mut self) {
        for child in self.nodes.values_mut() {
            let _ = child.kill().and_then(|()| child.wait());
        }
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}

impl Demo {
    fn start(&mut self, id: u64, how: &[&str]) -> Anything<()> {
        let (dir, clients) = (self.dir.join(id.to_string()), &self.clients[&id]);
        let mut command = Command::new(std::env::current_exe()?);
        let command = command.args(how).arg(id.to_string()).arg(dir).arg(clients);
        self.nodes.insert(id, command.args(&self.peers).spawn()?);
        Ok(())
    }

    fn kill(&mut self, id: u64) -> Anything<()> {
        let mut child = self.nodes.remove(&id).ok_or("it does not run")?;
        Ok(child.kill().and_then(|()| child.wait().map(|_| ()))?)
    }

    /// Sends lines to one node, and returns its answers.
    fn say(&self, id: u64, lines: &[String]) -> Anything<Vec<String>> {
        let mut stream = TcpStream::connect(&self.clients[&id])?;
        stream.set_read_timeout(Some(Duration::from_secs(10)))?;
        stream.write_all((lines.join("\n") + "\n").as_bytes())?;
        let answers = BufReader::new(stream).lines().take(lines.len());
        Ok(answers.collect::<Result<_, _>>()?)
    }

    fn status(&self, id: u64) -> String {
        let status = self.say(id, &["status".to_owned()]);
        status.map_or_else(|e| format!("no answer: {e}"), |s| s.concat())
    }

    fn is_late(&self) -> bool {
        Instant::now() > self.deadline
    }

    /// Waits until a node's status fulfils the condition.
    fn wait(&self, what: &str, ids: &[u64], like: impl Fn(&str) -> bool) -> Anything<u64> {
        loop {
            if let Some(id) = ids.iter().find(|id| like(&self.status(**id))) {
                return Ok(*id);
            }
            if self.is_late() {
                let all = ids
                    .iter()
                    .map(|id| format!("node {id}: {}", self.status(*id)));
                let all = all.collect::<Vec<_>>().join("; ");
                return Err(format!("waited in vain: {what} ({all})").into());
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn write(&self, from: usize, to: usize) -> Anything<u64> {
        let lines: Vec<_> = (from..to)
            .map(|n| format!("set key-{n} value {n}"))
            .collect();
        while !self.is_late() {
            let ids: Vec<_> = self.nodes.keys().copied().collect();
            let leader = self.wait("a leader", &ids, |s| s.starts_with("Leader"))?;
            // It may lose its leadership meanwhile; setting a key again changes nothing.
            let written = |answer: &String| answer.starts_with("ok");
            if (self.say(leader, &lines)).is_ok_and(|answers| answers.iter().all(written)) {
                return Ok(leader);
            }
        }
        Err("waited in vain: all keys are written".into())
    }
}

/// A number in a node's status; 0 if it is not there.
fn number(status: &str, name: &str) -> u64 {
    let mut words = status.split(' ').filter_map(|word| word.split_once('='));
    let value = words.find(|(key, _)| *key == name).map(|(_, value)| value);
    value.and_then(|value| value.parse().ok()).unwrap_or(0)
}

fn demo() -> Anything<()> {
    // Bound at the same time, so that they differ; released before the nodes take them.
    let free: Vec<_> = (0..6)
        .map(|_| TcpListener::bind("127.0.0.1:0"))
        .collect::<Result<_, _>>()?;
    let addresses: Vec<_> = free
        .iter()
        .map(|l| l.local_addr().map(|a| a.to_string()))
        .collect::<Result<_, _>>()?;
    let (peers, clients) = addresses.split_at(3);
    let mut demo = Demo {
        dir: std::env::temp_dir().join(format!("esker-raft-kv-{}", std::process::id())),
        nodes: BTreeMap::new(),
        peers: (1..)
            .zip(peers)
            .map(|(id, at): (u64, _)| format!("{id}={at}"))
            .collect(),
        clients: (1..).zip(clients.iter().cloned()).collect(),
        deadline: Instant::now() + Duration::from_secs(180),
    };
    drop(free);
    (1..=3).try_for_each(|id| demo.start(id, &["found"]))?;
    let leader = demo.write(0, 300)?;
    println!("three nodes; node {leader} leads; 300 keys are written");
    let away = leader % 3 + 1;
    demo.kill(away)?;
    println!("node {away} is killed");
    // A leader keeps its log for a member that was in contact a moment ago, which would then catch up by
    // entries. So the loop goes on until the entries that the member lacks are removed.
    let mut keys = 300;
    let mut leader = leader;
    while number(&demo.status(leader), "log_start") <= 301 {
        leader = demo.write(keys, keys + 300)?;
        keys += 300;
        std::thread::sleep(Duration::from_millis(100));
    }
    println!(
        "{} more keys are written; node {leader}: {}",
        keys - 300,
        demo.status(leader)
    );
    demo.start(away, &[])?;
    let caught_up = |s: &str| s.contains("snapshots_received=1");
    demo.wait("a snapshot is installed", &[away], caught_up)?;
    let last = keys - 1;
    let value = demo.say(away, &[format!("get key-{last}")])?.concat();
    println!("node {away} is back: {}", demo.status(away));
    println!("node {away}, asked for key-{last}: {value:?}");
    if value != format!("value {last}") {
        return Err("it has another value".into());
    }
    println!("it caught up by snapshot");
    Ok(())
}

fn run(arguments: &[String]) -> Anything<()> {
    let (founds, rest) = match arguments {
        [found, rest @ ..] if found == "found" => (true, rest),
        all => (false, all),
    };
    let [id, dir, clients, peers @ ..] = rest else {
        return demo();
    };
    let peer = |peer: &String| -> Anything<(NodeId, String)> {
        let (id, address) = peer.split_once('=').ok_or("a peer is ID=HOST:PORT")?;
        Ok((NodeId(id.parse()?), address.to_owned()))
    };
    let peers = peers.iter().map(peer).collect::<Anything<_>>()?;
    node(founds, id.parse()?, Path::new(dir), clients.parse()?, peers)
}

/// Runs a node with the arguments of one, else the demonstration.
pub fn main() -> ExitCode {
    let arguments: Vec<_> = std::env::args().skip(1).collect();
    match run(&arguments) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("{error}");
            ExitCode::FAILURE
        }
    }
}
