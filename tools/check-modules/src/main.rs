//! Finds cycles between the modules of a crate: `check-modules NAME=DIRECTORY[:MOST]...`
//!
//! For each crate it prints how many modules are part of a cycle, and the cycles. It exits with 1 if there
//! are more than `MOST` (0 if it is left out), or fewer, so that the number in the script decreases with each
//! improvement; and with 2 if a source cannot be read.

mod graph;
mod source;

use std::path::Path;
use std::process::ExitCode;

use graph::cycles;
use source::Crate;

fn main() -> ExitCode {
    let mut failed = false;
    for argument in std::env::args().skip(1) {
        let Some((name, rest)) = argument.split_once('=') else {
            eprintln!("check-modules: {argument:?} is not NAME=DIRECTORY[:MOST]");
            return ExitCode::from(2);
        };
        let (dir, most) = rest.split_once(':').unwrap_or((rest, "0"));
        let Ok(most) = most.parse::<usize>() else {
            eprintln!("check-modules: {most:?} is not a number");
            return ExitCode::from(2);
        };
        match check(name, Path::new(dir), most) {
            Ok(kept) => failed |= !kept,
            Err(why) => {
                eprintln!("check-modules: {name}: {why}");
                return ExitCode::from(2);
            }
        }
    }
    ExitCode::from(u8::from(failed))
}

/// Checks a crate. Returns whether the number of modules in cycles is `most`.
fn check(name: &str, dir: &Path, most: usize) -> Result<bool, String> {
    let source = Crate::read(dir)?;
    let references = source.references();
    let cycles = cycles(source.modules.len(), &references);
    let count: usize = cycles.iter().map(Vec::len).sum();
    println!(
        "check-modules: {name}: {} modules, {count} in cycles",
        source.modules.len()
    );
    if count == most {
        return Ok(true);
    }
    if count < most {
        println!(
            "  do:     lower the number of {name} in scripts/check-modules from {most} to {count}"
        );
        return Ok(false);
    }
    for cycle in cycles {
        println!("  a cycle of {} modules:", cycle.len());
        for (from, to) in references.keys() {
            if cycle.contains(from) && cycle.contains(to) {
                let names: Vec<_> = references[&(*from, *to)]
                    .iter()
                    .map(String::as_str)
                    .collect();
                println!(
                    "    {} -> {}: {}",
                    source.modules[*from].path(),
                    source.modules[*to].path(),
                    names.join(", ")
                );
            }
        }
    }
    println!("  do:     move what both sides use into a module below them");
    Ok(false)
}
