//! How the process ends: exit codes, the form of an error, and what a panic does.
//!
//! Exit codes: 0 done, 1 found something wrong, 2 usage, 3 could not reach.

use std::process::ExitCode;
use std::time::Duration;

use esker_server::telemetry;

use crate::output;
use crate::term::plain_lines;

/// How long a process that panicked may take to write why.
const PANIC_TIMEOUT: Duration = Duration::from_secs(3);

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
            // A part of it may be a server's or a store's words.
            say!(
                "error [{}]: {}",
                failure.code,
                plain_lines(&failure.message)
            );
            ExitCode::from(failure.exit)
        }
    }
}

/// Prints help, the version, or what is wrong with the command line.
pub fn report_usage(error: &clap::Error) -> ExitCode {
    let printed = error.print();
    if error.use_stderr() {
        return ExitCode::from(2);
    }
    report(output::written(printed).map(|_| ()))
}

/// A panic ends the process. A server that lost a thread cannot promise anything: what was
/// acknowledged is in the log, and the next start replays it.
pub fn install_panic_hook() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        // Nobody may read standard error: it is not waited for longer than that.
        let _ = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(PANIC_TIMEOUT);
            std::process::abort();
        });
        telemetry::flush_logs();
        print(info);
        std::process::abort();
    }));
}
