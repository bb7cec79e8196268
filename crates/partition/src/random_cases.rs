//! How many random cases a property is tried with.
//!
//! A case opens databases of its own, so a run of the suite has few of them: enough that each kind of step happens. They
//! are the same in each run (`PROPTEST_RNG_SEED` in `.cargo/config.toml`). `make soak-partition` sets `PROPTEST_CASES`
//! and another seed, and tries thousands.

/// The number in `PROPTEST_CASES`, or the one that is usual in the suite.
pub(crate) fn cases(usual: u32) -> u32 {
    match std::env::var("PROPTEST_CASES") {
        Ok(wanted) => wanted.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => usual,
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use proptest::strategy::ValueTree as _;
    use proptest::test_runner::TestRunner;

    #[test]
    fn the_same_cases_are_drawn_each_time() {
        let draw = || {
            let mut runner = TestRunner::new(ProptestConfig::default());
            any::<[u64; 4]>().new_tree(&mut runner).unwrap().current()
        };
        assert_eq!(
            draw(),
            draw(),
            "PROPTEST_RNG_SEED is not set: `.cargo/config.toml` does it"
        );
    }
}
