//! No code: this crate asks for the features of dependencies that the tests and benchmarks of the workspace
//! turn on, so that a build of the binary alone chooses the same, and Cargo compiles each dependency once.
