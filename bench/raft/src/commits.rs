//! Commits per second and their processor time, beside etcd's.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;

use crate::cluster::{Cluster, cpu_seconds, free_addresses};
use crate::load::{self, Load};
use bench_harness::Run;
use bench_harness::page::{Figure, Section};
use bench_harness::stats::median_or_zero as median;

const PROPOSERS: u64 = 64;
const VALUE: usize = 256;
const KEYS: u64 = 10_000;
/// Entries between snapshots: etcd's default.
const SNAPSHOT_ENTRIES: &str = "100000";

#[derive(Clone, Copy, Debug)]
struct Rate {
    commits: f64,
    /// Processor seconds of the three servers per second.
    cpu: f64,
}

impl Rate {
    fn each(self) -> f64 {
        self.cpu / self.commits
    }
}

fn load_of(bench: &Run) -> Load {
    Load {
        clients: PROPOSERS,
        value_bytes: VALUE,
        keys: KEYS,
        warm: Duration::from_secs(2),
        measured: Duration::from_secs(if bench.quick { 3 } else { 15 }),
    }
}

fn ours(bench: &Run, dir: &Path) -> anyhow::Result<Rate> {
    let mut cluster = Cluster::new(dir, 3)?;
    let arguments = [
        "--founders",
        "1,2,3",
        "--snapshot-entries",
        SNAPSHOT_ENTRIES,
    ];
    (1..=3).try_for_each(|id| cluster.start(id, &arguments))?;
    let leader = cluster.leader()?;
    let pids = cluster.pids();
    let (mut before, mut after) = (0.0, 0.0);
    let groups = cluster.status(leader)?.write_groups;
    let (commits, took) = load::run(
        cluster.address(leader),
        load_of(bench),
        || {
            before = cpu_seconds(&pids)?;
            Ok(())
        },
        || {
            after = cpu_seconds(&pids)?;
            Ok(())
        },
    )?;
    let groups = cluster.status(leader)?.write_groups - groups;
    let rate = Rate {
        commits: commits as f64 / took.as_secs_f64(),
        cpu: (after - before) / took.as_secs_f64(),
    };
    bench.note(format!(
        "esker-raft: {rate:.2?}; {groups} syncs of the leader's"
    ));
    Ok(rate)
}

/// Three etcd servers; they end when this is dropped.
struct Etcd {
    members: Vec<Child>,
    endpoints: Vec<String>,
}

impl Drop for Etcd {
    fn drop(&mut self) {
        for member in &mut self.members {
            let _ = member.kill().and_then(|()| member.wait());
        }
    }
}

impl Etcd {
    fn start(dir: &Path) -> anyhow::Result<Etcd> {
        let addresses = free_addresses(6)?;
        let url = |at: &String| format!("http://{at}");
        let (peers, clients): (Vec<_>, Vec<_>) = (
            addresses[..3].iter().map(url).collect(),
            addresses[3..].iter().map(url).collect(),
        );
        let cluster: Vec<_> = peers
            .iter()
            .enumerate()
            .map(|(n, peer)| format!("m{n}={peer}"))
            .collect();
        let mut etcd = Etcd {
            members: Vec::new(),
            endpoints: clients.clone(),
        };
        for n in 0..3 {
            let log = std::fs::File::create(dir.join(format!("etcd-{n}.log")))?;
            let child = Command::new("etcd")
                .args(["--name", &format!("m{n}"), "--data-dir"])
                .arg(dir.join(format!("etcd-{n}")))
                .args(["--listen-peer-urls", &peers[n]])
                .args(["--initial-advertise-peer-urls", &peers[n]])
                .args(["--listen-client-urls", &clients[n]])
                .args(["--advertise-client-urls", &clients[n]])
                .args(["--initial-cluster", &cluster.join(",")])
                .args(["--initial-cluster-state", "new", "--logger", "zap"])
                .stdout(Stdio::null())
                .stderr(log)
                .spawn()?;
            etcd.members.push(child);
        }
        Ok(etcd)
    }
}

/// The program that loads etcd, built if necessary: in a workspace of its own, and a directory beside this
/// program's.
fn etcd_load(bench: &Run) -> anyhow::Result<PathBuf> {
    let found = |tool: &str| Command::new(tool).arg("--version").output().is_ok();
    anyhow::ensure!(
        found("protoc"),
        "etcd's client needs protoc to be built: apt-get install protobuf-compiler"
    );
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("etcd-load");
    let target = std::env::current_exe()?
        .parent()
        .and_then(Path::parent)
        .context("this program's directory")?
        .join("etcd-load");
    bench.note("building etcd-load, if that is not done");
    let built = Command::new("cargo")
        .args(["build", "--release", "--locked", "--quiet", "--target-dir"])
        .arg(&target)
        .current_dir(source)
        .status()?;
    anyhow::ensure!(built.success(), "etcd-load cannot be built");
    Ok(target.join("release").join("esker-bench-etcd-load"))
}

fn etcd(bench: &Run, dir: &Path, program: &Path) -> anyhow::Result<Rate> {
    let etcd = Etcd::start(dir)?;
    let pids: Vec<_> = etcd.members.iter().map(Child::id).collect();
    let load = load_of(bench);
    let mut loading = Command::new(program)
        .args([PROPOSERS.to_string(), VALUE.to_string(), KEYS.to_string()])
        .args([load.warm, load.measured].map(|t| t.as_millis().to_string()))
        .args(&etcd.endpoints)
        .stdout(Stdio::piped())
        .spawn()?;
    let said = BufReader::new(loading.stdout.take().context("its output")?);
    let (mut before, mut rate) = (0.0, None);
    for line in said.lines() {
        let line = line?;
        let words: Vec<_> = line.split(' ').collect();
        match words[..] {
            ["begin"] => before = cpu_seconds(&pids)?,
            ["end", puts, micros] => {
                let seconds = micros.parse::<f64>()? / 1e6;
                rate = Some(Rate {
                    commits: puts.parse::<f64>()? / seconds,
                    cpu: (cpu_seconds(&pids)? - before) / seconds,
                });
            }
            _ => {}
        }
    }
    anyhow::ensure!(loading.wait()?.success(), "etcd-load failed");
    let rate = rate.context("etcd-load said nothing")?;
    bench.note(format!("etcd: {rate:.2?}"));
    Ok(rate)
}

pub fn measure(bench: &Run) -> anyhow::Result<Section> {
    let peer = Command::new("etcd").arg("--version").output();
    let version = peer.ok().and_then(|said| {
        let said = String::from_utf8_lossy(&said.stdout).into_owned();
        Some(
            said.lines()
                .next()?
                .trim_start_matches("etcd Version: ")
                .to_owned(),
        )
    });
    let program = match &version {
        Some(_) => Some(etcd_load(bench)?),
        None => {
            bench.note(
                "etcd is not installed, so there is nothing beside: apt-get install etcd-server",
            );
            None
        }
    };
    let (mut all_ours, mut all_etcd) = (Vec::new(), Vec::new());
    for run in 0..bench.runs {
        let dir = bench.dir(&format!("commits-{run}"))?;
        all_ours.push(ours(bench, &dir)?);
        if let Some(program) = &program {
            all_etcd.push(etcd(bench, &dir, program)?);
        }
        std::fs::remove_dir_all(dir)?;
    }
    let of =
        |all: &[Rate], what: fn(&Rate) -> f64| median(&all.iter().map(what).collect::<Vec<_>>());
    let (rate, each) = (of(&all_ours, |r| r.commits), of(&all_ours, |r| r.each()));
    let mut figures = vec![
        Figure::plain("commits a second", format!("{rate:.0}")),
        Figure::plain(
            "processor time of all three for one",
            format!("{:.0} µs", each * 1e6),
        ),
    ];
    if !all_etcd.is_empty() {
        let (their_rate, their_each) = (of(&all_etcd, |r| r.commits), of(&all_etcd, |r| r.each()));
        let (times, cost) = (rate / their_rate, each / their_each);
        figures[0] = figures[0]
            .clone()
            .beside(format!("{their_rate:.0}"))
            .target("≥ 1.5×", times >= 1.5);
        figures[1] = figures[1]
            .clone()
            .beside(format!("{:.0} µs", their_each * 1e6))
            .target("≤ 0.5×", cost <= 0.5);
        figures.push(Figure::plain(
            "that is",
            format!("{times:.2}× the commits, {cost:.2}× the time each"),
        ));
    }
    let beside = match version {
        Some(version) => format!(
            "Beside it: Debian's etcd {version}, three members with its defaults, the same load through \
             the crate `etcd-client`, which puts keys."
        ),
        None => "etcd is not installed: there is nothing beside it.".to_owned(),
    };
    Ok(Section {
        title: "Commits".into(),
        how: format!(
            "{PROPOSERS} proposers, each with a connection of its own to the leader, each waiting for its \
             answer (committed and applied) before it proposes again: {VALUE} bytes under one of \
             {KEYS} keys. Three members, each write synced on each; a snapshot every {SNAPSHOT_ENTRIES} \
             entries, as etcd's default is. Our state machine holds its values in memory; etcd also \
             writes them to its database. {beside} Processor time is that of the three servers, not \
             of the load. Medians of {} runs, one after the other in turn.",
            bench.runs
        ),
        figures,
        ..Section::default()
    })
}
