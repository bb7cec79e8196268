//! `esker cluster try`: nodes on this machine, as child processes.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use esker_server::admin::cluster::{ClusterView, MemberState};

use super::secret::generate;
use super::status::tables;
use super::trial_node::{FAILED, PEER_PORTS, TrialNode, peer_port};
use crate::admin::Admin;
use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::output::print;
use crate::remote::{AccessArgs, Remote};

/// How long all nodes may take to vote.
const FORM_TIMEOUT: Duration = Duration::from_secs(180);
/// How long nodes may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long killed nodes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// How often nodes are looked at.
const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Start a cluster on this machine, to try it.
///
/// Its nodes are child processes of this one. It waits until they vote, prints who leads what and what to try
/// next, and stops them on Ctrl-C. They listen on 127.0.0.1 alone: for clients on the base port and those after
/// it, for each other 100 above.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster try
  esker cluster try --dir ./trial --base-port 8071")]
pub struct Args {
    /// Number of nodes
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=9))]
    nodes: u16,

    /// Keep the nodes' data here, and go on with what is there [default: a scratch directory, removed at the end]
    #[arg(long, value_name = "DIR")]
    dir: Option<PathBuf>,

    /// Port of the first node for clients
    #[arg(long, value_name = "PORT", default_value_t = 7071, value_parser = clap::value_parser!(u16).range(1..=65_000))]
    base_port: u16,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|e| Failure::wrong("io", format!("starting the runtime: {e}")))?;
    runtime.block_on(perform(args))
}

async fn perform(args: &Args) -> Result<(), Failure> {
    check_ports(args)?;
    let io = |e: std::io::Error| Failure::wrong("io", format!("making the directory: {e}"));
    let (dir, scratch) = match &args.dir {
        Some(dir) => {
            std::fs::create_dir_all(dir).map_err(io)?;
            (std::path::absolute(dir).map_err(io)?, None)
        }
        None => {
            let scratch = tempfile::Builder::new().prefix("esker-cluster-").tempdir();
            let scratch = scratch.map_err(io)?;
            (scratch.path().to_owned(), Some(scratch))
        }
    };
    let left = format!("the directory {} may be left", dir.display());
    let mut interrupts = Interrupts::listen(&left)?;
    create_secret(&dir.join("secret"))?;
    let mut nodes = Vec::new();
    let started = (1..=args.nodes).try_for_each(|number| {
        nodes.push(TrialNode::start(&dir, number, args.base_port)?);
        Ok(())
    });
    let result = match started {
        Err(failure) => Err(failure),
        Ok(()) => tokio::select! {
            result = watch(&mut nodes) => result,
            () = interrupts.next() => Ok(()),
        },
    };
    remark!("Stopping the nodes; Ctrl-C once more kills them.");
    let stopped = stop(&mut nodes, &mut interrupts).await;
    let result = result.and(stopped);
    if let Some(scratch) = scratch {
        // A node that was brought back by hand still uses it.
        let in_use = nodes.iter().find(|node| answers(node.client_port));
        if let Some(node) = in_use {
            let kept = scratch.keep();
            remark!(
                "Node {} was started by hand and still runs: its data in {} is kept.",
                node.name,
                kept.display()
            );
        } else if let Err(failure) = &result {
            let kept = scratch.keep();
            remark!("{}: the logs are kept in {}.", failure.code, kept.display());
        } else {
            let path = dir.display().to_string();
            scratch
                .close()
                .map_err(|e| Failure::wrong("io", format!("cannot remove {path}: {e}")))?;
        }
    }
    result
}

/// Fails if a port is in use, before anything is started.
fn check_ports(args: &Args) -> Result<(), Failure> {
    for number in 1..=args.nodes {
        for port in [
            args.base_port + number - 1,
            peer_port(args.base_port, number),
        ] {
            let bound = TcpListener::bind((Ipv4Addr::LOCALHOST, port));
            bound.map_err(|e| {
                Failure::usage("listen", format!("cannot listen on 127.0.0.1:{port}: {e}")).advise(
                    format!(
                        "choose other ports with --base-port; {} from it on and {0} from {PEER_PORTS} above it are used",
                        args.nodes
                    ),
                )
            })?;
        }
    }
    Ok(())
}

/// Creates the file of the secret, if there is none.
fn create_secret(path: &Path) -> Result<(), Failure> {
    let created = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path);
    let secret = generate()?;
    match created.and_then(|mut file| writeln!(file, "{secret}")) {
        Err(e) if e.kind() != ErrorKind::AlreadyExists => Err(Failure::wrong(
            "io",
            format!("creating the secret {}: {e}", path.display()),
        )),
        _ => Ok(()),
    }
}

/// Waits until the cluster has formed, prints what to try, and then what happens to its nodes. Ends only with a
/// failure.
async fn watch(nodes: &mut [TrialNode]) -> Result<(), Failure> {
    let began = Instant::now();
    let mut before = String::new();
    let view = loop {
        for node in nodes.iter_mut() {
            if let Some(status) = node.newly_ended() {
                return Err(Failure::wrong(
                    FAILED,
                    format!(
                        "node {} has ended ({status}):\n{}",
                        node.name,
                        node.end_of_log()
                    ),
                ));
            }
        }
        let progress = match view(&nodes[0]).await {
            Ok(view) => match missing(&view, nodes.len()) {
                None => break view,
                Some(missing) => missing,
            },
            Err(_) => "node n1 starts".to_owned(),
        };
        if began.elapsed() >= FORM_TIMEOUT {
            return Err(Failure::wrong(
                FAILED,
                format!(
                    "the cluster has not formed within {} s: {progress}\n{}",
                    FORM_TIMEOUT.as_secs(),
                    nodes[0].end_of_log()
                ),
            ));
        }
        if progress != before {
            remark!("{progress}");
            before = progress;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    };
    print(tables(&view).trim_end())?;
    print(hints(nodes))?;
    loop {
        for node in nodes.iter_mut() {
            if let Some(status) = node.newly_ended() {
                print(format_args!(
                    "node {} (process {}) has ended: {status}; bring it back with\n  {}",
                    node.name,
                    node.pid,
                    node.command()
                ))?;
            }
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn view(node: &TrialNode) -> Result<ClusterView, Failure> {
    let address = node.url().parse();
    let address = address.map_err(|e| Failure::wrong("invalid", e))?;
    let admin = Admin::open(Remote::new(address, &AccessArgs::default())?).await?;
    admin.get(&["cluster"], &[]).await
}

/// What the cluster lacks until so many nodes take part in it.
fn missing(view: &ClusterView, nodes: usize) -> Option<String> {
    let active = view.nodes.iter();
    let active = active.filter(|node| node.state == MemberState::Active);
    let active = active.count();
    if active < nodes {
        return Some(format!("{active} of {nodes} nodes take part"));
    }
    let is_formed = |voters: usize, has_leader: bool, partition: u64| {
        let wanted = match nodes {
            5.. if partition == 0 => 5,
            3.. => 3,
            _ => 1,
        };
        has_leader && voters >= wanted
    };
    let formed = view.partitions.iter().filter(|of| {
        let votes = |role: &str| matches!(role, "leader" | "follower" | "candidate");
        let voters = of.replicas.iter().filter(|it| votes(&it.role)).count();
        let is_whole = of.replicas.len() == nodes;
        is_whole && is_formed(voters, of.leader.is_some(), of.partition)
    });
    let formed = formed.count();
    let all = view.partitions.len();
    (formed < all).then(|| format!("{formed} of {all} partitions have all their voters"))
}

fn hints(nodes: &[TrialNode]) -> String {
    let program = std::env::args_os().next().unwrap_or_default();
    let program = program.to_string_lossy();
    let mut text = String::from("\n");
    for node in nodes {
        text += &format!("{}  {}  process {}\n", node.name, node.url(), node.pid);
    }
    let last = &nodes[nodes.len() - 1];
    let (first, other) = (nodes[0].url(), last.url());
    text += &format!(
        "
Try it in another terminal:
  {program} stream create my-basin/orders --server {first}
  echo hello | {program} stream append my-basin/orders --server {other}
  kill -9 {}
  {program} cluster status --server {first}
  echo again | {program} stream append my-basin/orders --server {first}
Then bring {} back:
  {}
Ctrl-C stops all nodes that were started here.",
        last.pid,
        last.name,
        last.command()
    );
    text
}

/// Stops the nodes, and kills those that do not stop in time or at the next signal.
async fn stop(nodes: &mut [TrialNode], interrupts: &mut Interrupts) -> Result<(), Failure> {
    nodes.iter_mut().for_each(TrialNode::terminate);
    let stopped = tokio::select! {
        stopped = tokio::time::timeout(STOP_TIMEOUT, ended(nodes)) => stopped.is_ok(),
        () = interrupts.next() => false,
    };
    if stopped {
        return Ok(());
    }
    nodes.iter_mut().for_each(TrialNode::kill);
    let killed = tokio::time::timeout(KILL_TIMEOUT, ended(nodes)).await;
    killed.map_err(|_| {
        let pids: Vec<_> = nodes.iter().map(|node| node.pid.to_string()).collect();
        Failure::wrong(
            FAILED,
            format!("not all of the processes {} have ended", pids.join(", ")),
        )
    })
}

/// Waits until all have ended.
async fn ended(nodes: &mut [TrialNode]) {
    while !nodes.iter_mut().all(TrialNode::has_ended) {
        tokio::time::sleep(LOOK_INTERVAL / 5).await;
    }
}

/// Whether something listens on a port of this machine.
fn answers(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}
