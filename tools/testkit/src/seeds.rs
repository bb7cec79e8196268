//! The seeds of randomised tests.
//!
//! The suite runs the same seeds each time: a run that fails shows a fault of the change that it tests, and the next
//! run shows it again. `make soak` and its parts run seeds that were never tried.
//!
//! All such tests have the same variables: `ESKER_SEED=N` runs seed N alone; `ESKER_SEEDS=N` runs N seeds,
//! from `ESKER_SEED` or the test's usual first one on; where a test can run for any time,
//! `ESKER_SEED_SECONDS=N` sets the time. A failure prints the variable and the command that repeat it: see
//! [`again`]. A seed decides what is done, and when. In tests of real processes it does not decide how far these are
//! by then: the same seed may find a fault at one time and not at another.
//!
//! Properties (`proptest!`) draw their cases from `PROPTEST_RNG_SEED`, which `.cargo/config.toml` sets.

use std::ops::Range;

/// The seed to run, or to begin with.
pub const SEED: &str = "ESKER_SEED";

/// The number of seeds to run.
pub const SEEDS: &str = "ESKER_SEEDS";

/// The number of seconds for which new seeds are run.
pub const SECONDS: &str = "ESKER_SEED_SECONDS";

/// A number from the environment.
///
/// # Panics
///
/// If the variable is set to something else.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    match text.parse() {
        Ok(number) => Some(number),
        Err(_) => panic!("{variable}={text} is no number"),
    }
}

/// The seed that the environment sets.
pub fn chosen() -> Option<u64> {
    number(SEED)
}

/// Whether the environment sets a seed or a number of them. A test that asserts what its usual seeds reach together
/// does not do so then.
pub fn are_chosen() -> bool {
    chosen().is_some() || number(SEEDS).is_some()
}

/// The seed of a test that runs one: that of the environment, or the usual one. Prints it, and how to run it again with
/// these arguments of `cargo test`, which choose the test.
pub fn one(usual: u64, arguments: &str) -> u64 {
    let seed = chosen().unwrap_or(usual);
    println!("seed {seed}; {}", again(seed, arguments));
    seed
}

/// A random seed, which most likely was not tried before: for tests that are to run for a time, as for a soak.
pub fn random() -> u64 {
    use std::hash::{BuildHasher as _, RandomState};
    // Short, so that it can be typed, and so that many more can follow it.
    RandomState::new().hash_one(std::process::id()) >> 24
}

/// The seeds that the environment sets; by default those in `usual`.
pub fn range(usual: Range<u64>) -> Range<u64> {
    range_of(chosen(), number(SEEDS), usual)
}

fn range_of(seed: Option<u64>, seeds: Option<u64>, usual: Range<u64>) -> Range<u64> {
    let first = seed.unwrap_or(usual.start);
    let count = match (seed, seeds) {
        (_, Some(count)) => count,
        (Some(_), None) => 1,
        (None, None) => usual.end - usual.start,
    };
    first..first.saturating_add(count)
}

/// How to repeat a failure: the variable, and the arguments of `cargo test` that choose the test.
pub fn again(seed: u64, arguments: &str) -> String {
    format!("again with: {SEED}={seed} cargo test --release {arguments}")
}

/// Prints how to repeat a failure, if it is dropped in a panic.
pub struct PrintOnPanic {
    seed: u64,
    arguments: String,
}

impl PrintOnPanic {
    /// For this seed, and the arguments of `cargo test` that choose the test.
    pub fn new(seed: u64, arguments: &str) -> PrintOnPanic {
        PrintOnPanic {
            seed,
            arguments: arguments.to_owned(),
        }
    }
}

impl Drop for PrintOnPanic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", again(self.seed, &self.arguments));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_alone_is_run_once_and_a_number_of_seeds_begins_with_it() {
        assert_eq!(range_of(None, None, 5..9), 5..9);
        assert_eq!(range_of(Some(7), None, 5..9), 7..8);
        assert_eq!(range_of(None, Some(100), 5..9), 5..105);
        assert_eq!(range_of(Some(7), Some(2), 5..9), 7..9);
    }
}
