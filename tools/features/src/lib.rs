//! This crate has no code: it enables the features of dependencies that the tests and benchmarks of the
//! workspace enable, so that a build of the binary alone selects the same, and Cargo compiles each dependency
//! once.
