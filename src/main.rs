//! The `esker` binary: argument parsing and output. The server and the libraries are in the crates below it.

#![deny(clippy::print_stdout, clippy::print_stderr)]

// First, because the modules below use its macros.
#[macro_use]
mod output;

mod admin;
mod allocator;
mod cluster_cmd;
mod completion_cmd;
mod config_cmd;
mod confirm;
mod demo;
mod encryption_key;
mod exit;
mod failure;
mod follow_cmd;
mod globals;
mod import_cmd;
mod input;
mod interrupts;
mod json;
mod man_cmd;
mod name_lookup;
mod output_file;
mod refusal;
mod relay;
mod remote;
mod restart;
mod secret_file;
mod server_address;
mod server_cmd;
mod service_manager;
mod snapshot_cmd;
mod state_cmd;
mod status_cmd;
mod stream_cmd;
mod term;
mod tls;
mod token_cmd;

use clap::{Arg, CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use failure::Failure;
use globals::Globals;

/// A durable log-and-state server whose centre is bounded recovery.
#[derive(Parser)]
#[command(name = "esker", version, about, long_about = None)]
struct Cli {
    #[command(flatten)]
    globals: Globals,

    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run the server in the foreground.
    Server(server_cmd::Args),
    Demo(demo::Args),
    Status(status_cmd::Args),
    Cluster(cluster_cmd::Args),
    Stream(stream_cmd::Args),
    Follow(Box<follow_cmd::Args>),
    State(state_cmd::Args),
    Snapshot(Box<snapshot_cmd::Args>),
    Token(token_cmd::Args),
    Import(import_cmd::Args),
    /// Check or show the configuration that a server would run with.
    Config(config_cmd::Args),
    Completion(completion_cmd::Args),
    #[command(hide = true)]
    Man(man_cmd::Args),
    /// Print the version of this program.
    Version,
}

impl Command {
    /// The name of a command that contacts no server.
    fn without_server(&self) -> Option<&'static str> {
        let name = match self {
            Command::Server(_) => "server",
            Command::Demo(_) => "demo",
            Command::Config(_) => "config",
            Command::Completion(_) => "completion",
            Command::Man(_) => "man",
            Command::Version => "version",
            Command::Status(_)
            | Command::Cluster(_)
            | Command::Stream(_)
            | Command::Follow(_)
            | Command::State(_)
            | Command::Snapshot(_)
            | Command::Token(_)
            | Command::Import(_) => return None,
        };
        Some(name)
    }

    /// The name of a command that prints no JSON. A server that cannot start reports that as JSON.
    fn without_json(&self) -> Option<&'static str> {
        match self {
            Command::Demo(_) => Some("demo"),
            Command::Completion(_) => Some("completion"),
            Command::Man(_) => Some("man"),
            Command::Cluster(args) => args.without_json(),
            _ => None,
        }
    }
}

/// Commands for which `--server` or `--json` has no meaning: their help leaves it out.
const WITHOUT_SERVER: [&str; 6] = ["server", "demo", "config", "completion", "man", "version"];
const WITHOUT_JSON: [&str; 4] = ["server", "demo", "completion", "man"];

/// In every command, an environment variable that is set to the empty string counts as unset.
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

/// The commands and their arguments.
fn command() -> clap::Command {
    let hide = |mut command: clap::Command, names: &[&str], option: &'static str| {
        for name in names {
            command = command.mut_subcommand(name, |below| hidden(below, option));
        }
        command
    };
    let command = Cli::command().mut_args(without_empty_variable);
    let command = command.mut_subcommands(without_empty_variables);
    let command = hide(command, &WITHOUT_SERVER, "server");
    let command = hide(command, &WITHOUT_SERVER, "token_file");
    let command = hide(command, &WITHOUT_SERVER, "ca_file");
    let command = hide(command, &WITHOUT_SERVER, "client_cert");
    let command = hide(command, &WITHOUT_SERVER, "client_key");
    let command = command.mut_subcommand("cluster", |below| hide(below, &["try"], "json"));
    hide(command, &WITHOUT_JSON, "json")
}

/// Hides a global option in the help of a command and of its subcommands.
fn hidden(command: clap::Command, option: &'static str) -> clap::Command {
    let all = Cli::command();
    let Some(arg) = all.get_arguments().find(|arg| arg.get_id() == option) else {
        return command;
    };
    command.arg(arg.clone().hide(true))
}

fn main() -> std::process::ExitCode {
    exit::install_panic_hook();
    name_lookup::set_up();
    let arguments: Vec<_> = std::env::args_os().collect();
    let wants_json = json::is_wanted(&arguments);
    interrupts::report_as_json(wants_json);
    let color = globals::color_of(&arguments);
    term::use_color(color);
    let matches = command().color(color).try_get_matches_from(arguments);
    let cli = match matches.and_then(|mut matches| Cli::from_arg_matches_mut(&mut matches)) {
        Ok(cli) => cli,
        Err(error) => return exit::report_usage(&error, wants_json).into(),
    };
    output::be_quiet(cli.globals.quiet);
    if let Err(failure) = fits(&cli.globals, &cli.command) {
        return exit::report(Err(failure), wants_json).into();
    }
    let access = &cli.globals.access;
    if cli.command.without_server().is_none()
        && let Some(file) = &access.ca_file
    {
        // These may use object storage, too, whose certificates come from other authorities. They reach servers
        // through clients that trust the file alone: `esker follow` by way of a relay.
        let uses_storage = matches!(cli.command, Command::Follow(_) | Command::Snapshot(_));
        tls::trust_only(file, uses_storage);
    }
    let result = match cli.command {
        Command::Server(args) => exit::end(exit::report(server_cmd::run(&args), wants_json)),
        Command::Demo(args) => demo::run(&args),
        Command::Status(args) => status_cmd::run(args, access),
        Command::Cluster(args) => cluster_cmd::run(args, access),
        Command::Stream(args) => stream_cmd::run(args, access),
        Command::Follow(args) => follow_cmd::run(*args, access),
        Command::State(args) => state_cmd::run(args, access),
        Command::Snapshot(args) => snapshot_cmd::run(*args, access),
        Command::Token(args) => token_cmd::run(args, access),
        Command::Import(args) => import_cmd::run(args, access),
        Command::Config(args) => config_cmd::run(&args, wants_json),
        Command::Completion(args) => completion_cmd::run(&args, &mut command()),
        Command::Man(args) => man_cmd::run(&args, command()),
        Command::Version => version(wants_json),
    };
    exit::report(result, wants_json).into()
}

/// Refuses a global option where it has no meaning.
fn fits(globals: &Globals, command: &Command) -> Result<(), Failure> {
    let refused = |name, option, why| {
        let message = format!("`esker {name}` {why}: leave {option} out");
        Err(Failure::usage("usage", message))
    };
    match (command.without_server(), command.without_json()) {
        (Some(name), _) if globals.server.is_some() => refused(name, "--server", "asks no server"),
        (Some(name), _) if globals.access.token_file.is_some() => {
            refused(name, "--token-file", "asks no server")
        }
        (_, Some(name)) if globals.json => refused(name, "--json", "prints no JSON"),
        _ => Ok(()),
    }
}

fn version(wants_json: bool) -> Result<(), Failure> {
    let version = env!("CARGO_PKG_VERSION");
    match wants_json {
        true => output::print(serde_json::json!({ "version": version })),
        false => output::print(format_args!("esker {version}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_arguments_are_well_formed() {
        command().debug_assert();
    }
}
