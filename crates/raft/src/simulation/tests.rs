//! Runs of seeds, and what they must have covered.

use super::*;

/// Runs of each test in the normal suite.
const SEEDS: u64 = 600;

/// Prints how to repeat a run that panics.
struct OnPanic(u64);

impl Drop for OnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", command(self.0));
        }
    }
}

fn command(seed: u64) -> String {
    format!(
        "repeat it with:\n  ESKER_SIM_SEED={seed} cargo test --release -p esker-raft \
         simulation::tests::replay -- --nocapture"
    )
}

fn try_seeds(seeds: impl Iterator<Item = u64>, enough: impl Fn(&Reached) -> bool) -> Reached {
    let mut all = Reached::default();
    for seed in seeds {
        let guard = OnPanic(seed);
        match run(seed, None) {
            Ok(reached) => all += &reached,
            Err(what) => panic!("seed {seed}: {what}"),
        }
        std::mem::forget(guard);
        if enough(&all) {
            break;
        }
    }
    all
}

fn variable(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
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
fn whatever_happens_promises_are_kept_and_peace_brings_progress_1() {
    suite(0);
}

#[test]
fn whatever_happens_promises_are_kept_and_peace_brings_progress_2() {
    suite(1);
}

#[test]
fn whatever_happens_promises_are_kept_and_peace_brings_progress_3() {
    suite(2);
}

#[test]
fn whatever_happens_promises_are_kept_and_peace_brings_progress_4() {
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
    let Some(seed) = variable("ESKER_SIM_SEED") else {
        return;
    };
    let guard = OnPanic(seed);
    let mut world = World::new(seed, None);
    println!("{:?}", world.scenario);
    if variable("ESKER_SIM_TRACE").is_some() {
        world = world.traced(true);
    }
    match finish(world).0 {
        Ok(reached) => println!("{reached:?}"),
        Err(what) => panic!("seed {seed}: {what}"),
    }
    std::mem::forget(guard);
}

/// Runs for a given number of seeds or seconds; does nothing without `ESKER_SIM_SEEDS` or
/// `ESKER_SIM_SECONDS`.
#[test]
#[allow(
    clippy::disallowed_methods,
    reason = "how long to go on, and nothing else, is by the clock"
)]
fn soak() {
    let (seeds, seconds) = (variable("ESKER_SIM_SEEDS"), variable("ESKER_SIM_SECONDS"));
    if seeds.is_none() && seconds.is_none() {
        return;
    }
    let from = variable("ESKER_SIM_FROM").unwrap_or(1 << 32);
    let began = std::time::Instant::now();
    let all = from..from.saturating_add(seeds.unwrap_or(u64::MAX));
    let reached = try_seeds(all, |_| {
        seconds.is_some_and(|most| began.elapsed().as_secs() >= most)
    });
    println!("{reached:?}");
}
