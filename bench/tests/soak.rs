//! The soak, for as long as a test may take. `make soak` runs it for any time.

#![allow(clippy::unwrap_used)]

use std::path::Path;
use std::process::Command;

/// Plain, conditional and fenced appenders and followers, on two sets of streams; the checker is
/// shown to fail on bad histories in the test kit.
#[test]
fn fifty_kills_lose_nothing_that_was_acknowledged() {
    let bench = Path::new(env!("CARGO_BIN_EXE_esker-bench"));
    let esker = bench.parent().unwrap().join("esker");
    if !esker.exists() {
        // `cargo test -p esker-bench` alone does not build it; the workspace's tests do.
        let built = Command::new(env!("CARGO"))
            .args(["build", "--release", "--locked", "-p", "esker"])
            .status()
            .unwrap();
        assert!(built.success(), "the `esker` binary does not build");
    }
    let seed = testkit::seeds::one(1, "--test soak");
    let output = Command::new(bench)
        .args(["soak", "--rounds", "50", "--longest", "400"])
        .args(["--seed", &seed.to_string()])
        .arg("--esker")
        .arg(&esker)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}\n{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
}
