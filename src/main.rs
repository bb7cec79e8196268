//! The `esker` binary: argument parsing and output. What it does is in the crates below it.

mod admin;
mod config_cmd;
mod demo;
mod exit;
mod follow_cmd;
mod output;
mod server_cmd;
mod snapshot_cmd;
mod state_cmd;
mod status_cmd;
mod stream_cmd;
mod term;

use clap::{Parser, Subcommand};

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

fn main() -> std::process::ExitCode {
    exit::install_panic_hook();
    let cli = Cli::parse();
    let result = match cli.command {
        Command::Server(args) => server_cmd::run(&args),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status_cmd::run(args),
        Command::Stream(args) => stream_cmd::run(args),
        Command::Follow(args) => follow_cmd::run(*args),
        Command::State(args) => state_cmd::run(args),
        Command::Snapshot(args) => snapshot_cmd::run(*args),
        Command::Config(args) => config_cmd::run(&args),
    };
    exit::report(result)
}
