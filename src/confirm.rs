//! Confirmation by a person before something is deleted for good.

use std::io::IsTerminal as _;

use crate::failure::Failure;
use crate::{input, output};

/// Asks on standard error whether to continue; with `yes`, returns at once.
///
/// # Errors
///
/// `declined`; `needs_yes` where there is no terminal to ask on.
pub async fn confirm(question: &str, yes: bool) -> Result<(), Failure> {
    if yes {
        return Ok(());
    }
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage(
            "needs_yes",
            format!("{question} There is no terminal for the question: add --yes to confirm it"),
        ));
    }
    output::ask(format_args!("{question} Go on? [y/N] "));
    match input::read_line().await.as_deref().map(str::trim) {
        Ok("y" | "Y" | "yes") => Ok(()),
        _ => Err(Failure::wrong("declined", "nothing was deleted")),
    }
}
