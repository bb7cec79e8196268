//! `esker cluster try`: nodes on this machine, as child processes.

use std::net::{Ipv4Addr, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::formation::{LOOK_INTERVAL, ended, formed, start};
use super::status::tables;
use super::trial_node::{FAILED, PEER_PORTS, TrialNode, find_taken};
use crate::failure::Failure;
use crate::interrupts::Interrupts;
use crate::output::print;

/// Most nodes of a trial.
const MAX_NODES: u16 = 9;
/// How long nodes may take to stop before they are killed.
const STOP_TIMEOUT: Duration = Duration::from_secs(20);
/// How long killed nodes may take to end.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);

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
    #[arg(long, value_name = "N", default_value_t = 3, value_parser = clap::value_parser!(u16).range(1..=i64::from(MAX_NODES)))]
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
    check_dir(&dir, args.nodes)?;
    let mut interrupts = Interrupts::listen(&left)?;
    let mut nodes = Vec::new();
    let started = start(&mut nodes, &dir, args.nodes, args.base_port, &[]);
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
    // A node that was brought back by hand still uses the directory.
    let in_use = nodes.iter().find(|node| answers(node.client_port));
    match (scratch, in_use) {
        (scratch, Some(node)) => {
            let kept = scratch.map_or(dir, tempfile::TempDir::keep);
            remark!(
                "Node {} was started by hand and still runs: stop it where it was started. Its data in {} is kept.",
                node.name,
                kept.display()
            );
        }
        (Some(scratch), None) => match &result {
            Err(failure) => {
                let kept = scratch.keep();
                remark!("{}: the logs are kept in {}.", failure.code, kept.display());
            }
            Ok(()) => {
                let path = dir.display().to_string();
                scratch
                    .close()
                    .map_err(|e| Failure::wrong("io", format!("cannot remove {path}: {e}")))?;
            }
        },
        (None, None) => {}
    }
    result
}

/// Fails if a port is in use, before anything is started.
fn check_ports(args: &Args) -> Result<(), Failure> {
    find_taken(args.base_port, args.nodes).map_err(|(port, e)| {
        Failure::usage("listen", format!("cannot listen on 127.0.0.1:{port}: {e}")).advise(format!(
            "choose other ports with --base-port; {} from it on and {0} from {PEER_PORTS} above it are used",
            args.nodes
        ))
    })
}

/// Fails if the directory has data of more nodes than are to be started: the partitions count on all of them.
fn check_dir(dir: &Path, nodes: u16) -> Result<(), Failure> {
    let there = (nodes + 1..=MAX_NODES).rev();
    let mut there = there.filter(|number| dir.join(format!("n{number}")).exists());
    there.next().map_or(Ok(()), |last| {
        let dir = dir.display();
        let more = format!("{dir} has the data of {last} nodes, and {nodes} are to be started");
        Err(Failure::usage(FAILED, more).advise(format!(
            "the cluster counts on all of its nodes: start it with --nodes {last}, or choose another --dir"
        )))
    })
}

/// Waits until the cluster has formed, prints what to try, and then what happens to its nodes. Ends only with a
/// failure.
async fn watch(nodes: &mut [TrialNode]) -> Result<(), Failure> {
    let view = formed(nodes, |lacks| remark!("{lacks}")).await?;
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
"
    );
    // A single node has no other that goes on without it.
    if nodes.len() > 1 {
        text += &format!(
            "  kill -9 {}
  {program} cluster status --server {first}
  echo again | {program} stream append my-basin/orders --server {first}
Then bring {} back:
  {}
",
            last.pid,
            last.name,
            last.command()
        );
    }
    text += "Ctrl-C stops all nodes that were started here; one that was brought back is stopped in its own terminal.";
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

/// Whether something listens on a port of this machine.
fn answers(port: u16) -> bool {
    let address = (Ipv4Addr::LOCALHOST, port).into();
    TcpStream::connect_timeout(&address, Duration::from_millis(500)).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_of_more_nodes_is_refused_with_their_number() {
        let dir = tempfile::tempdir().unwrap();
        check_dir(dir.path(), 1).unwrap();
        for number in 1..=5 {
            std::fs::create_dir(dir.path().join(format!("n{number}"))).unwrap();
        }
        for nodes in 5..=MAX_NODES {
            check_dir(dir.path(), nodes).unwrap();
        }
        let refused = check_dir(dir.path(), 3).unwrap_err();
        let said = format!("{refused:?}");
        assert!(
            said.contains("data of 5 nodes") && said.contains("--nodes 5"),
            "{said}"
        );
    }
}
