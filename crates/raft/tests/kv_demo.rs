//! Runs the demonstration of the example: this test is the example, and starts itself as its three nodes.
//! It has a deadline of three minutes.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../examples/kv.rs"]
mod kv;

fn main() -> std::process::ExitCode {
    // A test runner may only list the tests.
    if std::env::args().any(|argument| argument == "--list") {
        return std::process::ExitCode::SUCCESS;
    }
    kv::main()
}
