//! How the process ends: exit codes, the form of an error, and what a panic does.
//!
//! Exit codes: 0 done, 1 found something wrong, 2 usage, 3 could not reach.

use std::process::ExitCode;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// Stable, for programs.
    pub code: &'static str,
    /// What happened, to what, and what to do.
    pub message: String,
    /// The process's exit code.
    pub exit: u8,
}

impl Failure {
    /// Something is wrong.
    pub fn wrong(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            code,
            message: message.to_string(),
            exit: 1,
        }
    }

    /// The command or its configuration cannot be meant.
    pub fn usage(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            exit: 2,
            ..Failure::wrong(code, message)
        }
    }

    /// What it needs could not be reached.
    pub fn unreachable(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            exit: 3,
            ..Failure::wrong(code, message)
        }
    }
}

/// Prints a failure and turns the result into an exit code.
pub fn report(result: Result<(), Failure>) -> ExitCode {
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            eprintln!("error [{}]: {}", failure.code, failure.message);
            ExitCode::from(failure.exit)
        }
    }
}

/// A panic ends the process. A server that lost a thread cannot promise anything: what was
/// acknowledged is in the log, and the next start replays it.
pub fn install_panic_hook() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        print(info);
        std::process::abort();
    }));
}
