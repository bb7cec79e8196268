//! The official Python package of Statehouse, unmodified, against a real server; and the example.

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Server, Setup};

/// The interpreter that has the package.
///
/// # Panics
///
/// If it was not installed.
pub fn python() -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"));
    let python = cache.join("esker/statehouse/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup, which installs the Python client",
        python.display()
    );
    python
}

async fn server() -> Server {
    Setup::default().start_fresh().await
}

fn run(script: &str, server: &Server) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(script);
    let output = Command::new(python())
        .arg(path)
        .arg(server.address())
        .output()
        .unwrap();
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{script}:\n{error}");
    String::from_utf8(output.stdout).unwrap()
}

#[tokio::test]
async fn the_official_client_works_unmodified_with_every_call() {
    let server = server().await;
    let printed = run("tests/state/official_client.py", &server);
    assert!(
        printed.ends_with("all calls are as expected\n"),
        "{printed}"
    );
}

#[tokio::test]
async fn the_official_command_line_works_unmodified() {
    let server = server().await;
    run("tests/state/official_client.py", &server);
    let ctl = |arguments: &[&str]| {
        let output = Command::new(python())
            .args(["-m", "statehouse.cli", "--address", server.address()])
            .args(arguments)
            .output()
            .unwrap();
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{arguments:?}:\n{error}");
        String::from_utf8(output.stdout).unwrap()
    };
    assert!(ctl(&["health"]).contains("healthy"));
    assert!(ctl(&["version"]).contains(env!("CARGO_PKG_VERSION")));
    assert!(ctl(&["keys", "order"]).contains("Total: 3"));
    assert!(ctl(&["get", "order", "b", "--json-output"]).contains("\"version\": 1"));
    assert!(ctl(&["replay", "order"]).contains("Total events: 1"));
    assert!(ctl(&["tail", "order"]).contains("Last 1 events"));
    assert!(ctl(&["dump", "order"]).contains("\"commit_ts\""));
}

#[tokio::test]
async fn the_example_prints_what_its_guide_shows() {
    let server = server().await;
    let printed = run("examples/python-state/agent.py", &server);
    let expected = include_str!("../../examples/python-state/output.txt");
    assert_eq!(printed, expected);
}
