//! Options of every command.

use std::ffi::OsString;

use clap::ColorChoice;

use crate::remote::AccessArgs;
use crate::server_address::ServerAddress;

/// Options of every command.
#[derive(clap::Args)]
#[command(next_help_heading = "Global options")]
pub struct Globals {
    /// Print JSON, also of a failure
    #[arg(long, global = true)]
    pub json: bool,

    /// Address of the server [env: ESKER_SERVER] [default: http://127.0.0.1:7070]
    #[arg(long, global = true, value_name = "URL")]
    pub server: Option<ServerAddress>,

    #[command(flatten)]
    pub access: AccessArgs,

    /// Leave out remarks and progress on standard error; errors and warnings are printed
    #[arg(long, short, global = true)]
    pub quiet: bool,

    /// When output has colours: auto is on a terminal, unless NO_COLOR is set or TERM is dumb
    #[arg(
        long,
        global = true,
        value_name = "WHEN",
        default_value = "auto",
        value_enum
    )]
    pub color: ColorChoice,
}

/// The value of `--color`, read before the command line is parsed: errors of the parser have colours, too.
pub fn color_of(arguments: &[OsString]) -> ColorChoice {
    let options = arguments.iter().take_while(|argument| *argument != "--");
    let options: Vec<_> = options.filter_map(|argument| argument.to_str()).collect();
    let joined = |option: &&str| option.strip_prefix("--color=").map(str::to_owned);
    let apart = options.windows(2).filter(|pair| pair[0] == "--color");
    let said = options
        .iter()
        .filter_map(joined)
        .chain(apart.map(|pair| pair[1].to_owned()));
    match said.last().as_deref() {
        Some("always") => ColorChoice::Always,
        Some("never") => ColorChoice::Never,
        _ => ColorChoice::Auto,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colours_are_as_the_command_line_says() {
        for (arguments, wanted) in [
            (&["esker", "status"][..], ColorChoice::Auto),
            (&["esker", "--color", "never", "status"], ColorChoice::Never),
            (&["esker", "status", "--color=always"], ColorChoice::Always),
            (
                &["esker", "state", "get", "--", "--color=always"],
                ColorChoice::Auto,
            ),
            (
                &["esker", "status", "--color", "sometimes"],
                ColorChoice::Auto,
            ),
        ] {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            assert_eq!(color_of(&arguments), wanted, "{arguments:?}");
        }
    }
}
