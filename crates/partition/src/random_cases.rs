//! How many random cases a property is tried with.
//!
//! A case opens databases of its own, and each run of the suite draws other cases, so a run has few of them: enough
//! that each kind of step happens. `make soak-partition` sets `PROPTEST_CASES`, and tries thousands.

/// The number in `PROPTEST_CASES`, or the one that is usual in the suite.
pub(crate) fn cases(usual: u32) -> u32 {
    match std::env::var("PROPTEST_CASES") {
        Ok(wanted) => wanted.parse().expect("PROPTEST_CASES is a number"),
        Err(_) => usual,
    }
}
