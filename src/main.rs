//! The `esker` binary: argument parsing and output. What it does is in the crates below it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

// Its macro is used below it.
#[macro_use]
mod output;

mod admin;
mod config_cmd;
mod demo;
mod exit;
mod failure;
mod follow_cmd;
mod input;
mod interrupts;
mod json;
mod output_file;
mod restart;
mod server_address;
mod server_cmd;
mod snapshot_cmd;
mod state_cmd;
mod status_cmd;
mod stream_cmd;
mod term;

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};

/// A durable log-and-state server whose centre is bounded recovery.
#[derive(Parser)]
#[command(version, about, long_about = None, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server in the foreground.
    Server(server_cmd::Args),
    Demo(demo::Args),
    Status(status_cmd::Args),
    Stream(stream_cmd::Args),
    Follow(Box<follow_cmd::Args>),
    State(state_cmd::Args),
    Snapshot(Box<snapshot_cmd::Args>),
    /// Check or show the configuration that a server would run with.
    Config(config_cmd::Args),
}

/// A variable of the environment that is set to nothing says nothing, in every command.
fn without_empty_variables(command: clap::Command) -> clap::Command {
    command
        .mut_args(without_empty_variable)
        .mut_subcommands(without_empty_variables)
}

fn without_empty_variable(arg: Arg) -> Arg {
    let value = arg.get_env().and_then(std::env::var_os);
    match value.is_some_and(|value| value.is_empty()) {
        true => arg.env(None::<&str>),
        false => arg,
    }
}

fn main() -> std::process::ExitCode {
    exit::install_panic_hook();
    let command = Cli::command().mut_args(without_empty_variable);
    let command = command.mut_subcommands(without_empty_variables);
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = json::is_wanted(&arguments);
    interrupts::report_as_json(wants_json);
    let matches = command.try_get_matches_from(arguments);
    let cli = match matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(cli) => cli,
        Err(error) => return exit::report_usage(&error, wants_json).into(),
    };
    let result = match cli.command {
        Command::Server(args) => exit::end(exit::report(server_cmd::run(&args), wants_json)),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status_cmd::run(args),
        Command::Stream(args) => stream_cmd::run(args),
        Command::Follow(args) => follow_cmd::run(*args),
        Command::State(args) => state_cmd::run(args),
        Command::Snapshot(args) => snapshot_cmd::run(*args),
        Command::Config(args) => config_cmd::run(&args),
    };
    exit::report(result, wants_json).into()
}
