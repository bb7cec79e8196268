//! Runs the programs on the pages of `docs/guides/clients` and in `examples/` unchanged. The page of curl is
//! in [`transcripts`](crate::transcripts), the one of Go is not run, and the example of the state store is in
//! `tests/state/python.rs`.

mod examples;
mod orders;

use std::path::{Path, PathBuf};
use std::process::Command;

use crate::support::{Server, run, stderr, stdout};

fn page(name: &str) -> String {
    let dir = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/guides/clients");
    std::fs::read_to_string(dir.join(name)).unwrap()
}

/// The code blocks of a page in a language.
fn blocks(page: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    page.split(&begin)
        .skip(1)
        .map(|rest| rest.split("```").next().unwrap().to_owned())
        .collect()
}

/// Programs of a page, each with its output as the page shows it.
fn programs(page: &str, language: &str) -> Vec<(String, String)> {
    let (programs, printed) = (blocks(page, language), blocks(page, "text"));
    assert_eq!(programs.len(), printed.len());
    programs.into_iter().zip(printed).collect()
}

/// Runs a program against a new server, whose URL or address is the argument, and checks its output.
fn prints(interpreter: &Path, name: &str, program: &str, printed: &str) {
    let server = Server::start();
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join(name), program).unwrap();
    let argument = match program.contains("statehouse") {
        true => server.address(),
        false => &server.url,
    };
    let mut command = Command::new(interpreter);
    command.arg(name).arg(argument).current_dir(dir.path());
    let output = run(command, b"");
    let said = stderr(&output);
    assert!(output.status.success(), "{program}: {said}");
    assert_eq!(stdout(&output), printed, "{said}");
}

/// A path in the directory into which `scripts/setup` installs clients.
fn cached(path: &str) -> PathBuf {
    let cache = std::env::var_os("XDG_CACHE_HOME").map(PathBuf::from);
    let cache =
        cache.unwrap_or_else(|| Path::new(&std::env::var_os("HOME").unwrap()).join(".cache"));
    cache.join("esker").join(path)
}

/// The interpreter that has the package `statehouse`.
fn python() -> PathBuf {
    let python = cached("statehouse/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run scripts/setup, which installs the Python client",
        python.display()
    );
    python
}

fn is_installed(program: &str) -> bool {
    let mut command = Command::new(program);
    command.arg("--version");
    command.output().is_ok_and(|output| output.status.success())
}

#[test]
fn the_programs_on_the_page_of_python_print_what_it_says() {
    let programs = programs(&page("python.md"), "python");
    assert_eq!(programs.len(), 2);
    for (program, printed) in programs {
        prints(&python(), "program.py", &program, &printed);
    }
}

/// Runs where Node is installed, which is no prerequisite of the project.
#[test]
fn the_module_on_the_page_of_typescript_prints_what_it_says() {
    let programs = programs(&page("typescript.md"), "typescript");
    assert_eq!(programs.len(), 1);
    for (program, printed) in programs {
        if is_installed("node") {
            prints(Path::new("node"), "program.mjs", &program, &printed);
        } else {
            eprintln!("Node is not installed: the module was not run");
        }
    }
}

#[test]
fn the_function_on_the_page_of_rust_reads_what_it_appended() {
    let shown = blocks(&page("rust.md"), "rust");
    let compiled = include_str!("orders.rs");
    assert_eq!(
        shown,
        [compiled],
        "tests/cli/clients/orders.rs is the page's function"
    );
    let server = Server::start();
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let read = runtime.block_on(orders::orders(&server.url)).unwrap();
    let expected = [(0, "apple"), (1, "pear")].map(|(n, body)| (n, body.to_owned()));
    assert_eq!(read, expected);
}
