//! Runs of seeds, and what they must have covered.

use testkit::seeds::{self, PrintOnPanic};

use super::*;

/// Runs of each test in the normal suite.
const SEEDS: u64 = 600;

/// The arguments of `cargo test` that repeat one seed.
const REPLAY: &str = "-p esker-raft simulation::tests::replay -- --nocapture";

fn try_seeds(seeds: impl Iterator<Item = u64>, enough: impl Fn(&Reached) -> bool) -> Reached {
    let mut all = Reached::default();
    for seed in seeds {
        let _printed = PrintOnPanic::new(seed, REPLAY);
        match run(seed, None) {
            Ok(reached) => all += &reached,
            Err(what) => panic!("seed {seed}: {what}"),
        }
        if enough(&all) {
            break;
        }
    }
    all
}

/// Under all faults every rule holds, and without faults there is progress.
fn suite(part: u64) {
    let first = part * SEEDS;
    let reached = try_seeds(first..first + SEEDS, |_| false);
    println!("{reached:?}");
    let Reached {
        crashes,
        crashes_installing,
        crashes_fetching,
        lost_logs,
        retired,
        failed_snapshots,
        installs,
        resumed,
        joint,
        promoted_later,
        reads,
        refused,
        corrupted,
        fetched_again,
        held_back,
        ..
    } = reached;
    assert!(
        crashes > 1000
            && crashes_installing > 50
            && crashes_fetching > 50
            && lost_logs > 20
            && retired > 20
            && failed_snapshots > 200
            && installs > 200
            && resumed > 50
            && joint > 200
            && promoted_later > 20
            && reads > 1000
            && refused > 100
            && corrupted > 1000
            && fetched_again > 1000
            && held_back > 20,
        "the seeds reach too little: {reached:?}"
    );
}

#[test]
fn every_rule_holds_under_faults_and_progress_resumes_after_them_1() {
    suite(0);
}

#[test]
fn every_rule_holds_under_faults_and_progress_resumes_after_them_2() {
    suite(1);
}

#[test]
fn every_rule_holds_under_faults_and_progress_resumes_after_them_3() {
    suite(2);
}

#[test]
fn every_rule_holds_under_faults_and_progress_resumes_after_them_4() {
    suite(3);
}

#[test]
fn a_seed_repeats_a_run_to_the_last_byte() {
    for seed in 0..8 {
        let traced = || finish(World::new(seed, None).traced(false));
        let (first, second) = (traced(), traced());
        assert!(first.0.is_ok());
        assert_ne!(first.1, 0);
        assert_eq!(first.1, second.1, "seed {seed}");
    }
}

#[test]
fn replay() {
    let (Some(seed), None) = (seeds::chosen(), seeds::number(seeds::SEEDS)) else {
        return;
    };
    let _printed = PrintOnPanic::new(seed, REPLAY);
    let mut world = World::new(seed, None);
    println!("{:?}", world.scenario);
    if std::env::var_os("ESKER_SIM_TRACE").is_some() {
        world = world.traced(true);
    }
    match finish(world).0 {
        Ok(reached) => println!("{reached:?}"),
        Err(what) => panic!("seed {seed}: {what}"),
    }
}

/// Runs for a given number of seeds or seconds; does nothing without `ESKER_SEEDS` or
/// `ESKER_SEED_SECONDS`.
#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "how long to go on, and nothing else, is by the clock"
)]
fn soak() {
    let count = seeds::number(seeds::SEEDS);
    let seconds = seeds::number(seeds::SECONDS);
    if count.is_none() && seconds.is_none() {
        return;
    }
    let from = seeds::chosen().unwrap_or(1 << 32);
    let began = std::time::Instant::now();
    let all = from..from.saturating_add(count.unwrap_or(u64::MAX));
    let reached = try_seeds(all, |_| {
        seconds.is_some_and(|most| began.elapsed().as_secs() >= most)
    });
    println!("{reached:?}");
}
