//! A cluster with a history: three phases of work with a snapshot after each, and a fourth that only the log
//! has, because the server was killed.

use std::process::Command;

use futures::StreamExt as _;
use s2_sdk::S2;
use s2_sdk::types::{
    AppendInput, AppendRecord, AppendRecordBatch, CommandRecord, DeleteBasinInput,
    DeleteStreamInput, ListBasinsInput,
};

use super::contents::{Contents, contents, stream};
use super::target::{Kind, Node, PARTITIONS, Root, Target, copy_dir};
use crate::support::sdk::{self, basin_name, stream_name};
use crate::support::{Server, Setup, eventually};

/// The basin that exists from the first to the last phase.
pub const BASIN: &str = "kept-basin";
/// Streams in it.
const STREAMS: usize = 6;

/// The name of a stream that exists from the first to the last phase.
pub fn kept(i: usize) -> String {
    format!("{BASIN}/orders-{i}")
}

/// Work of every kind: appends, a trim, a stream created and one deleted, a basin created and one deleted.
pub async fn work(s2: &S2, phase: usize) {
    let basin = match phase {
        1 => sdk::basin(s2, BASIN).await,
        _ => s2.basin(basin_name(BASIN)),
    };
    for i in 0..STREAMS {
        if phase == 1 {
            sdk::stream(&basin, &format!("orders-{i}")).await;
        }
        let bodies = (0..20).map(|j| format!("{phase} {i} {j} {}", "x".repeat(50 * i)));
        sdk::append(&stream(s2, &kept(i)), bodies).await;
    }
    let trim: AppendRecord = CommandRecord::trim(4 * phase as u64).into();
    let trim = AppendRecordBatch::try_from_iter([trim]).unwrap();
    let trimmed = stream(s2, &kept(phase));
    trimmed.append(AppendInput::new(trim)).await.unwrap();

    let made = sdk::stream(&basin, &format!("made-in-{phase}")).await;
    sdk::append(&made, (0..3).map(|j| format!("{phase} made {j}"))).await;
    let of_phase = sdk::basin(s2, &format!("basin-of-{phase}")).await;
    for i in 0..2 {
        let short = sdk::stream(&of_phase, &format!("short-{i}")).await;
        sdk::append(&short, [format!("{phase} short")]).await;
    }
    if phase == 1 {
        return;
    }
    let old = stream_name(&format!("made-in-{}", phase - 1));
    basin
        .delete_stream(DeleteStreamInput::new(old))
        .await
        .unwrap();
    let old = basin_name(&format!("basin-of-{}", phase - 1));
    s2.delete_basin(DeleteBasinInput::new(old.clone()))
        .await
        .unwrap();
    eventually("the basin is gone", async || {
        let basins = s2.list_basins(ListBasinsInput::new()).await.unwrap();
        basins.values.iter().all(|b| b.name != old).then_some(())
    })
    .await;
}

/// The node after the kill.
pub struct History {
    pub node: Node,
    /// The contents at the end of each phase: the last snapshot was put after the third; after the fourth,
    /// everything was acknowledged and the server killed.
    pub phases: Vec<Contents>,
    /// The roots at that time.
    pub roots: Vec<Root>,
}

/// Servers that put snapshots on request only.
pub fn quiet() -> Setup {
    Setup::default()
        .set("snapshots.snapshot-interval=1h")
        .set("snapshots.num-retained=3")
}

/// Servers that put a snapshot as soon as anything is new.
pub fn eager() -> Setup {
    quiet().set("snapshots.snapshot-interval=500ms")
}

impl History {
    pub async fn new(destination: Kind, kind: &str) -> History {
        let setup = quiet().set(&format!("snapshots.snapshot-kind={kind}"));
        let node = Node::new(destination, setup).await;
        let saves = node.with(&["snapshots.snapshot-on-stop=true"]);
        let mut phases = Vec::new();
        for phase in 1..=3 {
            let mut server = saves.start(&node.data()).await;
            work(&server.sdk(), phase).await;
            phases.push(contents(&server.sdk()).await);
            if phase == 1 {
                // Each partition puts its first snapshot without a request; the ones of the stops count here.
                node.target.roots().await;
            }
            server.stop().await;
            if phase == 1 {
                copy_dir(&node.data(), &node.path("data-of-phase-1"));
            }
        }
        let mut server = node.setup.start(&node.data()).await;
        work(&server.sdk(), 4).await;
        phases.push(contents(&server.sdk()).await);
        server.kill();
        let roots = node.target.roots().await;
        for root in &roots {
            assert_eq!(root.retained().len(), 3, "{root:?}");
        }
        History {
            node,
            phases,
            roots,
        }
    }

    /// Everything that was acknowledged.
    pub fn full(&self) -> &Contents {
        &self.phases[3]
    }

    /// A copy to damage, whose servers put snapshots on request only.
    pub async fn copy(&self) -> Node {
        self.node.copy(quiet()).await
    }

    /// A copy to damage, whose servers put snapshots soon.
    pub async fn eager_copy(&self) -> Node {
        self.node.copy(eager()).await
    }
}

/// Runs scenarios, several at a time: they mostly wait.
pub async fn run_concurrently(scenarios: impl IntoIterator<Item = impl Future<Output = ()>>) {
    const AT_A_TIME: usize = 4;
    futures::stream::iter(scenarios)
        .buffer_unordered(AT_A_TIME)
        .collect::<()>()
        .await;
}

/// The lineage in each partition's root.
pub fn lineages(roots: &[Root]) -> Vec<String> {
    assert_eq!(roots.len() as u64, PARTITIONS + 1);
    roots.iter().map(Root::lineage).collect()
}

/// Starts a server, which has to serve, and reads everything that it has.
pub async fn start_and_read(setup: &Setup, node: &Node) -> (Server, Contents) {
    let server = setup.start(&node.data()).await;
    let seen = contents(&server.sdk()).await;
    (server, seen)
}

/// Waits until the newest snapshot of each partition is of the repository's lineage.
pub async fn wait_for_new_lineage(target: &Target) {
    eventually("a snapshot of the new line", async || {
        let kept = (0..=PARTITIONS).map(|partition| {
            let root = target.root(partition)?;
            let newest = root.retained().first()?.clone();
            let metadata = target.get(&format!("{newest}/metadata.json"))?;
            let metadata: serde_json::Value = serde_json::from_slice(&metadata).unwrap();
            (metadata["lineage"] == root.json["lineage"]).then_some(())
        });
        kept.collect::<Option<Vec<()>>>()
    })
    .await;
}

/// Waits until the newest snapshots cover everything that was acknowledged.
pub async fn caught_up(server: &Server, target: &Target) {
    eventually("everything is in the repository", async || {
        let ends = log_ends(server).await;
        let newest = |(at, lsn): (u64, &u64)| target.root(at).is_some_and(|r| r.newest() >= *lsn);
        (0..).zip(&ends).all(newest).then_some(())
    })
    .await;
}

/// The last LSN in each partition's log: nothing that was acknowledged is above it. Metrics are as old as the
/// last maintenance of the log.
pub async fn log_ends(server: &Server) -> Vec<u64> {
    let status = server.http1().get("/esker/v1/status").send().await;
    let status = status.expect(200).json();
    let partitions = status["partitions"].as_array().unwrap();
    assert_eq!(partitions.len() as u64, PARTITIONS + 1, "{status}");
    partitions
        .iter()
        .map(|partition| partition["last"].as_u64().unwrap())
        .collect()
}

/// Waits until `esker status` and `/health` report that nothing needs action.
pub async fn is_healthy(server: &Server, context: &str) {
    let what = format!("{context}: `esker status` ends with 0");
    eventually(&what, async || {
        let mut status = Command::new(env!("CARGO_BIN_EXE_esker"));
        status.args(["status", "--server", server.url()]);
        let shown = tokio::task::spawn_blocking(move || status.output()).await;
        let shown = shown.unwrap().unwrap();
        let healthy = server.http1().get("/health").send().await.status == 200;
        (shown.status.success() && healthy).then_some(())
    })
    .await;
}
