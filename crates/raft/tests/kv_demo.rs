//! The example's demonstration, played to its end: this test is the example, and starts itself as its
//! three nodes. It ends by itself within its own deadline of three minutes.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../examples/kv.rs"]
mod kv;

fn main() -> std::process::ExitCode {
    // What runs tests may only want to know which there are.
    if std::env::args().any(|argument| argument == "--list") {
        return std::process::ExitCode::SUCCESS;
    }
    kv::main()
}
