//! `esker completion`.

use std::io::{self, Write as _};

use clap_complete::Shell;

use crate::failure::Failure;
use crate::output::written;

/// Print a script with which a shell completes commands and options.
#[derive(clap::Args)]
#[command(after_help = "\
Examples:
  source <(esker completion bash)
  esker completion zsh > ~/.zfunc/_esker
  esker completion fish > ~/.config/fish/completions/esker.fish")]
pub struct Args {
    /// The shell
    shell: ShellName,
}

#[derive(Clone, Copy, clap::ValueEnum)]
enum ShellName {
    Bash,
    Zsh,
    Fish,
}

impl From<ShellName> for Shell {
    fn from(name: ShellName) -> Shell {
        match name {
            ShellName::Bash => Shell::Bash,
            ShellName::Zsh => Shell::Zsh,
            ShellName::Fish => Shell::Fish,
        }
    }
}

pub fn run(args: &Args, command: &mut clap::Command) -> Result<(), Failure> {
    let mut script = Vec::new();
    clap_complete::generate(Shell::from(args.shell), command, "esker", &mut script);
    let mut out = io::stdout().lock();
    written(out.write_all(&script).and_then(|()| out.flush()))?;
    Ok(())
}
