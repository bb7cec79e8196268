//! Power cuts: whatever the moment, what was acknowledged is there.
//!
//! Each seed is one life of a machine: threads propose to several groups, the power goes at some
//! moment, the files are left as a disk may leave them, and the machine starts again. Real threads
//! and real time decide what was under way, so a seed fixes the choices, not the outcome. On a machine
//! that is busy with something else, less comes of a life; then there are more of them.

use std::sync::atomic::{AtomicBool, Ordering};

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::*;
use crate::log::fs::PowerCut;

const GROUPS: usize = 3;
const PROPOSERS: usize = 4;
/// Lives at the same time; most of each is waiting.
const AT_ONCE: u64 = 8;
/// As many seeds again, at most so often, until they have reached enough.
const ROUNDS: u64 = 10;

/// What one proposer knows in the end.
#[derive(Default)]
struct Known {
    /// In the order of the answers.
    acknowledged: Vec<String>,
    /// Proposed, and never answered.
    unknown: BTreeSet<String>,
}

/// What the lives came to, so that a test can see whether its seeds are worth anything.
#[derive(Debug, Default)]
struct Lives {
    acknowledged: usize,
    /// Commands under way when the power went, and how many of them are there all the same.
    unknown: usize,
    survived: usize,
    /// Lives that left a torn write, and lives long enough to purge.
    torn: usize,
    purged: usize,
}

#[test]
fn acknowledged_commands_survive_a_power_cut_that_drops_all_that_is_unsynced() {
    let enough =
        |lives: &Lives| lives.acknowledged > 1000 && lives.unknown > 100 && lives.purged > 10;
    let lives = live(0..60, |_| PowerCut::DropUnsynced, enough);
    assert!(enough(&lives), "the seeds reach too little: {lives:?}");
}

#[test]
fn acknowledged_commands_survive_a_power_cut_that_tears_the_last_write() {
    let enough = |lives: &Lives| {
        lives.acknowledged > 1000
            && lives.unknown > 100
            && lives.survived > 5
            && lives.torn > 5
            && lives.purged > 10
    };
    let lives = live(1000..1120, |seed| PowerCut::Tear { seed }, enough);
    assert!(enough(&lives), "the seeds reach too little: {lives:?}");
}

fn live(
    seeds: std::ops::Range<u64>,
    cut: impl Fn(u64) -> PowerCut + Sync,
    enough: impl Fn(&Lives) -> bool,
) -> Lives {
    let total = parking_lot::Mutex::new(Lives::default());
    let many = seeds.end - seeds.start;
    for round in 0..ROUNDS {
        let begin = seeds.start + round * many;
        live_all(begin..begin + many, &cut, &total);
        if enough(&total.lock()) {
            break;
        }
    }
    total.into_inner()
}

fn live_all(
    seeds: std::ops::Range<u64>,
    cut: &(impl Fn(u64) -> PowerCut + Sync),
    total: &parking_lot::Mutex<Lives>,
) {
    std::thread::scope(|scope| {
        for first in 0..AT_ONCE {
            let seeds = seeds.clone();
            scope.spawn(move || {
                for seed in seeds.skip(first as usize).step_by(AT_ONCE as usize) {
                    let one = life(seed, cut(seed));
                    let mut total = total.lock();
                    total.acknowledged += one.acknowledged;
                    total.unknown += one.unknown;
                    total.survived += one.survived;
                    total.torn += one.torn;
                    total.purged += one.purged;
                }
            });
        }
    });
}

fn life(seed: u64, cut: PowerCut) -> Lives {
    let mut rng = StdRng::seed_from_u64(seed);
    let (_keep, dir) = scratch();
    let faults = Faults::new();
    faults.track_unsynced();
    let stores: Vec<_> = (0..GROUPS).map(|_| Store::default()).collect();
    let mut config = config(&dir);
    // So that a short life has time to rotate and to purge.
    config.log.segment_size = 8 * 1024;
    config.log.purge_threshold = 16 * 1024;
    let (node, _) = Node::start(config.clone(), faults.clone()).unwrap();
    let host = Host::on(node, &stores);
    // Every other machine writes much, and flushes, compacts and purges. Of the others some write so
    // little at once that it may survive a torn write.
    let keeps_house = seed.is_multiple_of(2);
    let (sizes, stall, lifetime) = if keeps_house {
        ((8, 3000), 0..2000, 20_000..60_000)
    } else {
        let sizes = [(1, 1), (3, 100), (8, 1500)];
        (sizes[rng.random_range(0..3)], 0..3000, 2000..20_000)
    };
    // A sync takes its time, so that the power goes while one is under way.
    faults.stall_sync(Duration::from_micros(rng.random_range(stall)));
    let lifetime = Duration::from_micros(rng.random_range(lifetime));

    let dark = AtomicBool::new(false);
    let known = std::thread::scope(|scope| {
        if keeps_house {
            let rng = StdRng::seed_from_u64(rng.random());
            let (host, dark) = (&host, &dark);
            scope.spawn(move || keep_house(host, dark, rng));
        }
        let proposers: Vec<_> = (0..PROPOSERS)
            .map(|thread| {
                let groups = host.groups.clone();
                let rng = StdRng::seed_from_u64(rng.random());
                scope.spawn(move || propose_until_dark(&groups, thread, sizes, rng))
            })
            .collect();
        std::thread::sleep(lifetime);
        faults.power_cut(cut).unwrap();
        dark.store(true, Ordering::Relaxed);
        // Everything that still runs is dead, and does not know it.
        host.end();
        let join = |proposer: std::thread::ScopedJoinHandle<'_, _>| proposer.join().unwrap();
        proposers.into_iter().map(join).collect::<Vec<_>>()
    });

    faults.bury();
    drop(host);

    let (node, inspection) = Node::start(config, Faults::new())
        .unwrap_or_else(|e| panic!("seed {seed}: the log does not open: {e}"));
    // What was not flushed is gone from the stores, too, and comes from the log.
    Host::on(node, &stores).stop();

    let mut lives = Lives {
        torn: usize::from(inspection.torn_bytes() > 0),
        purged: usize::from(!dir.join("0000000000000001.raftlog").exists()),
        ..Lives::default()
    };
    for (at, store) in stores.iter().enumerate() {
        let found = store.commands();
        let context = format!("seed {seed}, group {at}");
        assert_no_repetition(&found, &context);
        let mut explained = BTreeSet::new();
        for known in known.iter().map(|groups: &Vec<Known>| &groups[at]) {
            assert_contains_in_order(&found, &known.acknowledged, &context);
            explained.extend(&known.acknowledged);
            explained.extend(&known.unknown);
            lives.acknowledged += known.acknowledged.len();
            lives.unknown += known.unknown.len();
            lives.survived += found.iter().filter(|c| known.unknown.contains(*c)).count();
        }
        for command in &found {
            assert!(
                explained.contains(command),
                "{context}: nobody proposed {command}"
            );
        }
    }
    lives
}

/// Flushes, compacts and purges until the power goes.
fn keep_house(host: &Host, dark: &AtomicBool, mut rng: StdRng) {
    while !dark.load(Ordering::Relaxed) {
        let at = rng.random_range(0..host.groups.len());
        // Without an answer, the group has stopped.
        let _ = host.groups[at].snapshot().blocking_recv();
        // Without power, raft-engine fails or panics; the machine is off.
        let purge = || host.node.log().purge();
        let _ = std::panic::catch_unwind(std::panic::AssertUnwindSafe(purge));
        std::thread::sleep(Duration::from_micros(rng.random_range(0..2000)));
    }
}

/// Proposes to all groups, up to `most` at a time, until nothing is answered any more. For each
/// group: what is known.
fn propose_until_dark(
    groups: &[Group<Answer>],
    thread: usize,
    (most, padding): (usize, usize),
    mut rng: StdRng,
) -> Vec<Known> {
    let mut known: Vec<_> = groups.iter().map(|_| Known::default()).collect();
    for round in 0.. {
        let mut waiting = Vec::new();
        for n in 0..rng.random_range(1..=most) {
            let at = rng.random_range(0..groups.len());
            let command = format!("t{thread}-{round}-{n}");
            let padding = rng.random_range(0..padding);
            match groups[at].propose(padded(&command, padding)) {
                Ok(answer) => waiting.push((at, command, answer)),
                Err(refused) => assert!(refused.has_no_side_effects(), "{refused}"),
            }
        }
        let mut dark = waiting.is_empty();
        for (at, command, waiting) in waiting {
            match answer(waiting) {
                Ok(answered) => {
                    assert_eq!(answered.command, command);
                    known[at].acknowledged.push(command);
                }
                Err(ProposeError::Unknown) => {
                    dark = true;
                    known[at].unknown.insert(command);
                }
                Err(other) => panic!("{other}"),
            }
        }
        if dark {
            break;
        }
    }
    known
}
