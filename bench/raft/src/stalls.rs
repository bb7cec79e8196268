//! A long capture delays nothing: neither applies nor heartbeats.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use esker_raft::transport::grpc::{GrpcConfig, GrpcTransport};
use esker_raft::{Config, Group, GroupOptions, Node, NodeId, Role};
use parking_lot::Mutex;

use crate::cluster::free_addresses;
use crate::host::{Knobs, Values, command};
use crate::link::{Heard, Link};
use crate::member::{GROUP, WAIT_TIMEOUT};
use bench_harness::Run;
use bench_harness::page::{Figure, Section};

use crate::wait_for;

const PROPOSERS: u64 = 8;

struct Member {
    node: Node,
    group: Group<()>,
    knobs: Arc<Knobs>,
    heard: Arc<Mutex<Heard>>,
}

impl Drop for Member {
    fn drop(&mut self) {
        self.group.stop();
        self.node.stop();
    }
}

/// The longest gaps of one run, of all members.
struct Gaps {
    heartbeats: Duration,
    applies: Duration,
    proposals: u64,
    interval: Duration,
}

/// Runs three members with proposals for `length`; if `capturing`, they write snapshots all the time.
fn run(bench: &Run, name: &str, length: Duration, capturing: bool) -> anyhow::Result<Gaps> {
    let dir = bench.dir(name)?;
    let peers: BTreeMap<_, _> = (1..).map(NodeId).zip(free_addresses(3)?).collect();
    let ids: Vec<_> = peers.keys().copied().collect();
    let mut members = Vec::new();
    let mut interval = Duration::ZERO;
    for id in &ids {
        let grpc = GrpcTransport::bind(
            peers[id].parse()?,
            GrpcConfig {
                peers: peers.clone(),
                ..GrpcConfig::default()
            },
        )?;
        let (knobs, heard) = (Arc::<Knobs>::default(), Arc::default());
        let link = Link::new(grpc, Some(Arc::clone(&heard)), 0);
        let mut config = Config::new(*id, &dir.join(id.to_string()));
        config.snapshot_hint_threshold_entries = 0;
        config.snapshot_hint_threshold_bytes = 0;
        interval = config.tick_interval * config.heartbeat_ticks as u32;
        let (node, _) = Node::start_among(config, Arc::new(link))?;
        let options = GroupOptions::founded_by(GROUP, &ids);
        let group = node.open_member(options, Values::new(knobs.clone(), None))?;
        members.push(Member {
            node,
            group,
            knobs,
            heard,
        });
    }
    let leader = wait_for("somebody leads", WAIT_TIMEOUT, || {
        Ok(members.iter().position(|m| {
            let status = m.group.status();
            status.role == Role::Leader && status.applied_term == status.term
        }))
    })?;
    let over = AtomicBool::new(false);
    let proposals = AtomicU64::new(0);
    std::thread::scope(|scope| -> anyhow::Result<()> {
        for proposer in 0..PROPOSERS {
            let (group, over, proposals) = (&members[leader].group, &over, &proposals);
            scope.spawn(move || {
                let mut n = proposer;
                while !over.load(Ordering::Relaxed) {
                    if let Ok(answer) = group.propose(command(n % 10_000, &[b'v'; 256]))
                        && let Ok(Ok(())) = answer.blocking_recv()
                    {
                        proposals.fetch_add(1, Ordering::Relaxed);
                    }
                    n += PROPOSERS;
                }
            });
        }
        std::thread::sleep(Duration::from_secs(2));
        if capturing {
            for member in &members {
                *member.knobs.sleep.lock() = length;
                drop(member.group.trigger_snapshot());
            }
        }
        let began = Instant::now();
        for member in &members {
            member.heard.lock().begin();
            *member.knobs.applies.lock() = (Some(began), Duration::ZERO);
        }
        proposals.store(0, Ordering::Relaxed);
        std::thread::sleep(length);
        over.store(true, Ordering::Relaxed);
        Ok(())
    })?;
    let mut gaps = Gaps {
        heartbeats: Duration::ZERO,
        applies: Duration::ZERO,
        proposals: proposals.into_inner(),
        interval,
    };
    for (number, member) in members.iter().enumerate() {
        gaps.applies = gaps.applies.max(member.knobs.applies.lock().1);
        if number != leader {
            let mut heard = member.heard.lock();
            anyhow::ensure!(heard.heartbeats > 0, "no heartbeat was heard");
            heard.end();
            gaps.heartbeats = gaps.heartbeats.max(heard.longest_gap);
        }
    }
    bench.note(format!(
        "{name}: heartbeats {:?}, applies {:?}, {} proposals",
        gaps.heartbeats, gaps.applies, gaps.proposals
    ));
    for member in &members {
        *member.knobs.sleep.lock() = Duration::ZERO;
    }
    drop(members);
    std::fs::remove_dir_all(dir)?;
    Ok(gaps)
}

pub fn measure(bench: &Run) -> anyhow::Result<Section> {
    let length = Duration::from_secs(if bench.quick { 3 } else { 10 });
    let without = run(bench, "stalls-without", length, false)?;
    let with = run(bench, "stalls-with", length, true)?;
    let ms = |time: Duration| format!("{:.0} ms", time.as_secs_f64() * 1e3);
    let most = (2 * without.applies).max(Duration::from_millis(100));
    Ok(Section {
        title: "While a snapshot is written".into(),
        how: format!(
            "Three members in one process, gRPC between them, {PROPOSERS} proposers. On all three \
             `Capture::write` sleeps {} s, and all of that time is measured. Heartbeats are counted where \
             they arrive; their interval is {}. A stall of applies is the longest time between two of \
             them on any member, which in such a run are the disk's syncs; beside it, the same \
             run without a snapshot. It counts as none if it is not longer than 100 ms, or than twice \
             that.",
            length.as_secs(),
            ms(with.interval)
        ),
        figures: vec![
            Figure::plain("longest gap between heartbeats", ms(with.heartbeats))
                .beside(ms(without.heartbeats))
                .target(
                    format!("< {}", ms(2 * with.interval)),
                    with.heartbeats < 2 * with.interval,
                ),
            Figure::plain("longest gap between applies", ms(with.applies))
                .beside(ms(without.applies))
                .target("no stall", with.applies <= most),
            Figure::plain("proposals applied", with.proposals.to_string())
                .beside(without.proposals.to_string()),
        ],
        ..Section::default()
    })
}
