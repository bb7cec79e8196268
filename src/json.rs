//! `--json`: standard output is JSON, and a failure is in it.
//!
//! A command that prints one document has a failure's `error` in it, beside what was found all the same;
//! one that prints a document a line has it in the last line.

use std::ffi::OsString;

use clap::error::ErrorKind;
use serde::Serialize;

use crate::exit::Failure;
use crate::output::print;

/// A failure, for programs.
#[derive(Serialize)]
struct Problem<'a> {
    code: &'a str,
    message: &'a str,
    what_to_do: &'a str,
}

/// A document, and what failed beside it.
#[derive(Serialize)]
struct Answer<'a, T: Serialize> {
    #[serde(flatten)]
    document: &'a T,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<Problem<'a>>,
}

/// Whether a command line asks for JSON. It need not be one that can be meant.
pub fn is_wanted(arguments: &[OsString]) -> bool {
    let mut options = arguments.iter().take_while(|argument| *argument != "--");
    let mut follows_format = false;
    options.any(|option| {
        let is_format = std::mem::replace(&mut follows_format, option == "--format");
        option == "--json" || option == "--format=json" || (is_format && option == "json")
    })
}

/// Prints a document over several lines, with what failed beside it, and hands the result on.
pub fn print_with(document: &impl Serialize, result: Result<(), Failure>) -> Result<(), Failure> {
    answer(document, result, |answer| {
        serde_json::to_string_pretty(answer)
    })
}

/// The same, in one line.
pub fn print_line_with(
    document: &impl Serialize,
    result: Result<(), Failure>,
) -> Result<(), Failure> {
    answer(document, result, |answer| serde_json::to_string(answer))
}

fn answer<T: Serialize>(
    document: &T,
    result: Result<(), Failure>,
    text: impl FnOnce(&Answer<'_, T>) -> serde_json::Result<String>,
) -> Result<(), Failure> {
    let what_to_do = result.as_ref().err().map(Failure::what_to_do);
    let error = match (&result, &what_to_do) {
        (Err(failure), Some(what_to_do)) => Some(Problem {
            code: failure.code,
            message: &failure.message,
            what_to_do,
        }),
        _ => None,
    };
    let text = text(&Answer { document, error })
        .map_err(|e| Failure::wrong("io", format!("writing the output: {e}")))?;
    print(text)?;
    result.map_err(|failure| Failure {
        is_printed: true,
        ..failure
    })
}

/// Prints a failure as a document of its own, unless one that is printed has it.
pub fn print_failure(failure: Failure) {
    #[derive(Serialize)]
    struct Nothing {}
    if !failure.is_printed {
        // The exit code still tells that it failed.
        let _ = print_line_with(&Nothing {}, Err(failure));
    }
}

/// A command line that cannot be meant, as a failure.
pub fn usage(error: &clap::Error) -> Failure {
    let text = error.render().to_string();
    let message = match error.kind() {
        ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => "no subcommand is named",
        // What follows it is its usage.
        _ => text.split("\n\n").next().unwrap_or_default(),
    };
    let message = message.strip_prefix("error: ").unwrap_or(message);
    Failure::usage("usage", message.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_wanted_where_an_option_says_it() {
        for (arguments, wanted) in [
            (&["esker", "status", "--json"][..], true),
            (&["esker", "stream", "read", "--format", "json"], true),
            (&["esker", "stream", "read", "--format=json"], true),
            (&["esker", "stream", "read", "--format", "text"], false),
            (&["esker", "server", "--set", "logs.format=json"], false),
            (&["esker", "state", "get", "json", "--format"], false),
            (&["esker", "state", "get", "--", "--json"], false),
        ] {
            let arguments: Vec<_> = arguments.iter().map(OsString::from).collect();
            assert_eq!(is_wanted(&arguments), wanted, "{arguments:?}");
        }
    }
}
