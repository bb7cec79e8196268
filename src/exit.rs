//! How the process ends: exit codes, the form of an error, and what a panic does.
//!
//! Exit codes: 0 done, 1 found something wrong, 2 usage, 3 could not reach.

use std::time::Duration;

use esker_server::{errors, telemetry};

use crate::term::plain_lines;
use crate::{json, output};

/// How long a process that panicked may take to write why.
const PANIC_TIMEOUT: Duration = Duration::from_secs(3);

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    /// Stable, for programs.
    pub code: &'static str,
    /// What happened, and to what.
    pub message: String,
    /// What to do, where more is known than what the code alone advises.
    pub advice: Option<String>,
    /// The process's exit code.
    pub exit: u8,
    /// Whether a document that is printed has it.
    pub is_printed: bool,
}

impl Failure {
    /// Something is wrong.
    pub fn wrong(code: &'static str, message: impl ToString) -> Failure {
        Failure {
            code,
            message: message.to_string(),
            advice: None,
            exit: 1,
            is_printed: false,
        }
    }

    /// The same, with what to do.
    pub fn advise(self, advice: impl ToString) -> Failure {
        Failure {
            advice: Some(advice.to_string()),
            ..self
        }
    }

    /// What to do.
    pub fn what_to_do(&self) -> String {
        let advice = self.advice.as_deref();
        let advice = advice.or_else(|| errors::what_to_do(self.code));
        advice.unwrap_or("The message says why.").to_owned()
    }

    /// What happened, to what, and what to do, for people.
    pub fn text(&self) -> String {
        match &self.advice {
            Some(advice) => format!("{}; {advice}", self.message),
            None => self.message.clone(),
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

/// Prints a failure, for people and, where JSON is wanted, for programs, and turns the result into an
/// exit code.
pub fn report(result: Result<(), Failure>, wants_json: bool) -> u8 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            // A part of it may be a server's or a store's words.
            say!("error [{}]: {}", failure.code, plain_lines(&failure.text()));
            let exit = failure.exit;
            if wants_json {
                json::print_failure(failure);
            }
            exit
        }
    }
}

/// Ends the process at once, without the destructors of C++ statics that a return from `main` runs: a
/// thread that is still in RocksDB would use what they destroy, and abort the process.
pub fn end(code: u8) -> ! {
    telemetry::flush_logs();
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: `_exit` takes any number, and does nothing but end the process.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code.into())
    }
}

/// Prints help, the version, or what is wrong with the command line.
pub fn report_usage(error: &clap::Error, wants_json: bool) -> u8 {
    let printed = error.print();
    if !error.use_stderr() {
        return report(output::written(printed).map(|_| ()), wants_json);
    }
    if wants_json {
        json::print_failure(json::usage(error));
    }
    2
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
