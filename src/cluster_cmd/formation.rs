//! The nodes of a trial become a cluster: their secret, their start, and the wait until all vote.

use std::fs::OpenOptions;
use std::io::{ErrorKind, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use esker_server::admin::cluster::{ClusterView, MemberState};

use super::secret::generate;
use super::trial_node::{FAILED, SECRET, TrialNode};
use crate::admin::Admin;
use crate::failure::Failure;
use crate::remote::Remote;

/// How long all nodes may take to vote.
const FORM_TIMEOUT: Duration = Duration::from_secs(180);
/// How often nodes are looked at.
pub const LOOK_INTERVAL: Duration = Duration::from_millis(250);

/// Starts so many nodes in a directory, with these further settings. Those that were started are in `nodes`, also if
/// one of them cannot be.
pub fn start(
    nodes: &mut Vec<TrialNode>,
    dir: &Path,
    count: u16,
    base_port: u16,
    settings: &[&str],
) -> Result<(), Failure> {
    create_secret(&dir.join(SECRET))?;
    for number in 1..=count {
        nodes.push(TrialNode::start(dir, number, base_port, settings)?);
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

/// Waits until all nodes vote, as far as they are to. `progress` is called with what is missing whenever that changes.
///
/// # Errors
///
/// A node has ended, or they take too long; the message has the end of a log.
pub async fn formed(
    nodes: &mut [TrialNode],
    mut progress: impl FnMut(&str),
) -> Result<ClusterView, Failure> {
    let began = Instant::now();
    let mut before = String::new();
    loop {
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
        let lacks = match view(&nodes[0]).await {
            Ok(view) => match missing(&view, nodes.len()) {
                None => return Ok(view),
                Some(missing) => missing,
            },
            Err(_) => "node n1 starts".to_owned(),
        };
        if began.elapsed() >= FORM_TIMEOUT {
            return Err(Failure::wrong(
                FAILED,
                format!(
                    "the cluster has not formed within {} s: {lacks}\n{}",
                    FORM_TIMEOUT.as_secs(),
                    nodes[0].end_of_log()
                ),
            ));
        }
        if lacks != before {
            progress(&lacks);
            before = lacks;
        }
        tokio::time::sleep(LOOK_INTERVAL).await;
    }
}

async fn view(node: &TrialNode) -> Result<ClusterView, Failure> {
    let address = node.url().parse();
    let address = address.map_err(|e| Failure::wrong("invalid", e))?;
    let admin = Admin::open(Remote::open(address)).await?;
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

/// Waits until all have ended.
pub async fn ended(nodes: &mut [TrialNode]) {
    while !nodes.iter_mut().all(TrialNode::has_ended) {
        tokio::time::sleep(LOOK_INTERVAL / 5).await;
    }
}
