//! `esker config`.

use clap::Subcommand;
use esker_server::config::{self, Overrides};
use esker_server::server;

use crate::failure::Failure;
use crate::json;
use crate::output::print;
use crate::server_address::SERVER_VARIABLE;
use crate::snapshot_cmd::REPOSITORY_VARIABLE;

/// Check or show the configuration that a server would run with.
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Say whether the configuration is valid, and what is wrong with it.
    Check {
        #[command(flatten)]
        overrides: Overrides,
    },
    /// Print the effective configuration as TOML, with where each value came from.
    Show {
        #[command(flatten)]
        overrides: Overrides,
    },
}

pub fn run(args: &Args, json: bool) -> Result<(), Failure> {
    let (overrides, show) = match &args.command {
        Command::Check { overrides } => (overrides, false),
        Command::Show { overrides } => (overrides, true),
    };
    // These variables configure `esker stream` and `esker snapshot`.
    let environment = config::environment()
        .filter(|(name, _)| name != SERVER_VARIABLE && name != REPOSITORY_VARIABLE);
    let loaded = config::load(overrides, environment).map_err(|e| Failure::usage(e.code(), e))?;
    for warning in &loaded.warnings {
        say!("warning: {warning}");
    }
    if show {
        return match json {
            true => json::print_with(&config::show_json(&loaded), Ok(())),
            false => print(config::show(&loaded).trim_end()),
        };
    }
    server::check(&loaded.config).map_err(|e| Failure::usage(e.code(), e))?;
    match json {
        true => {
            let document = serde_json::json!({ "valid": true, "warnings": loaded.warnings });
            json::print_with(&document, Ok(()))
        }
        false => print("the configuration is valid"),
    }
}
