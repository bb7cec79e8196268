//! `esker man`: manual pages, for packages.

use std::path::PathBuf;

use crate::failure::Failure;

/// Write a manual page for each command into a directory.
///
/// The files are esker.1, esker-stream.1, esker-stream-append.1 and so on; those that are there are replaced.
#[derive(clap::Args)]
pub struct Args {
    /// The directory, which is created if it is missing
    #[arg(long, value_name = "DIR")]
    output: PathBuf,
}

pub fn run(args: &Args, command: clap::Command) -> Result<(), Failure> {
    let written = std::fs::create_dir_all(&args.output)
        .and_then(|()| clap_mangen::generate_to(command, &args.output));
    written.map_err(|e| {
        let directory = args.output.display();
        Failure::wrong("io", format!("writing manual pages to {directory}: {e}"))
    })
}
