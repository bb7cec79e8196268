//! `esker cluster secret`.

use std::fs::File;
use std::io::Read as _;
use std::path::PathBuf;

use serde_json::json;

use crate::failure::Failure;
use crate::output::print;
use crate::output_file::OutputFile;

/// Where the system gives random bytes.
const RANDOM: &str = "/dev/urandom";

/// Print a new random secret for the nodes of a cluster.
///
/// All nodes need the same one, in the file that `cluster.secret-file` names.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  esker cluster secret --out cluster.secret")]
pub struct Args {
    /// Write it to a new file that only you can read, instead of to standard output
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Replace the file if it is there
    #[arg(long, requires = "out")]
    force: bool,

    /// Print a JSON object with the secret
    #[arg(long, conflicts_with = "out")]
    json: bool,
}

pub fn run(args: &Args) -> Result<(), Failure> {
    let secret = generate()?;
    match &args.out {
        Some(path) => {
            let mut file = OutputFile::create(path, args.force)?;
            file.keep_secret()?;
            let written = file.write_all(format!("{secret}\n").as_bytes());
            written.map_err(|e| file.failure(&e))?;
            file.finish()
        }
        None if args.json => print(json!({ "secret": secret })),
        None => print(secret),
    }
}

/// 32 random bytes, as 64 hexadecimal digits.
///
/// # Errors
///
/// `io`: the system gives none.
pub fn generate() -> Result<String, Failure> {
    let mut bytes = [0; 32];
    let read = File::open(RANDOM).and_then(|mut random| random.read_exact(&mut bytes));
    read.map_err(|e| Failure::wrong("io", format!("reading {RANDOM}: {e}")))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::generate;

    #[test]
    fn a_secret_is_one_that_a_node_accepts() {
        let (one, other) = (generate().unwrap(), generate().unwrap());
        assert_ne!(one, other);
        assert_eq!(one.len(), 64);
        assert!(one.bytes().all(|byte| byte.is_ascii_hexdigit()));
    }
}
