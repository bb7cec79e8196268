//! Runs the programs in `examples/` on new servers, and compares their output with the file beside them.

use std::path::{Path, PathBuf};
use std::process::Command;

use super::{cached, is_installed};
use crate::support::{Server, run, stderr, stdout};

/// The example in Rust, as it stands.
#[allow(dead_code)]
#[path = "../../../examples/rust-follow/src/main.rs"]
mod rust_follow;

fn example(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("examples")
        .join(path)
}

fn expected(name: &str) -> String {
    std::fs::read_to_string(example(name).join("output.txt")).unwrap()
}

/// Runs a program of the example `name` on a new server, and compares what it prints.
fn prints(name: &str, interpreter: &Path, program: &Path) {
    let server = Server::start();
    let mut command = Command::new(interpreter);
    command.arg(program).arg(&server.url);
    let output = run(command, b"");
    let said = stderr(&output);
    assert!(output.status.success(), "{name}: {said}");
    assert_eq!(stdout(&output), expected(name), "{name}: {said}");
}

#[test]
fn the_example_of_curl_prints_what_its_page_says() {
    prints("curl", Path::new("sh"), &example("curl/orders.sh"));
}

#[test]
fn the_example_of_the_python_sdk_prints_what_its_page_says() {
    let python = cached("s2-python/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup, which installs the Python SDK",
        python.display()
    );
    prints(
        "python-streams",
        &python,
        &example("python-streams/orders.py"),
    );
}

/// Runs where Node and npm are installed, which are no prerequisites of the project.
#[test]
fn the_example_of_the_typescript_sdk_prints_what_its_page_says() {
    if !is_installed("node") || !is_installed("npm") {
        eprintln!("Node and npm are not both installed: the example was not run");
        return;
    }
    let packages = cached("s2-node/node_modules");
    assert!(
        packages.exists(),
        "{} is missing: run scripts/setup, which installs the TypeScript SDK",
        packages.display()
    );
    // Node finds packages above the program's directory, and Node 20 runs modules by this ending.
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(packages, dir.path().join("node_modules")).unwrap();
    let program = dir.path().join("orders.mjs");
    std::fs::copy(example("typescript-streams/orders.ts"), &program).unwrap();
    prints("typescript-streams", Path::new("node"), &program);
}

#[test]
fn the_example_of_following_in_rust_prints_what_its_page_says() {
    let server = Server::start();
    let mut printed = String::new();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let mut print = |line: String| printed += &(line + "\n");
    runtime
        .block_on(rust_follow::follow(&server.url, &mut print))
        .unwrap();
    assert_eq!(printed, expected("rust-follow"));
}

#[test]
fn every_example_is_listed_and_has_a_page() {
    let index = std::fs::read_to_string(example("README.md")).unwrap();
    for entry in std::fs::read_dir(example("")).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            let name = path.file_name().unwrap().to_str().unwrap();
            assert!(path.join("README.md").exists(), "{name} has no README.md");
            assert!(index.contains(&format!("({name}/README.md)")), "{name}");
        }
    }
}
