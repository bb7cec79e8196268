//! The end of the process: exit codes, the form of an error, and the panic hook.
//!
//! Exit codes: 0 done, 1 found something wrong, 2 usage, 3 could not reach.

use std::time::Duration;

use esker_server::telemetry;

use crate::failure::Failure;
use crate::term::{Paint, columns, plain_lines, wrapped};
use crate::{json, output};

/// Columns by which the further lines of an error are indented.
const INDENT: usize = 2;
/// Time limit for writing the message of a panic.
const PANIC_TIMEOUT: Duration = Duration::from_secs(3);

/// Prints a failure as text and, with `wants_json`, also as JSON. Returns the exit code.
pub fn report(result: Result<(), Failure>, wants_json: bool) -> u8 {
    match result {
        Ok(()) => 0,
        Err(failure) => {
            // A part of it may come from a server or a store.
            let text = format!("error [{}]: {}", failure.code, plain_lines(&failure.text()));
            say!("{}", wrapped(&text, columns(std::io::stderr()), INDENT));
            let exit = failure.exit;
            if wants_json {
                json::print_failure(failure);
            }
            exit
        }
    }
}

/// Ends the process at once, without the destructors of C++ statics that a return from `main` would run: they
/// destroy what a thread that is still in RocksDB uses, and the process would abort.
pub fn end(code: u8) -> ! {
    telemetry::flush_logs();
    let _ = std::io::Write::flush(&mut std::io::stdout());
    // SAFETY: `_exit` takes any number, and does nothing but end the process.
    #[allow(unsafe_code)]
    unsafe {
        libc::_exit(code.into())
    }
}

/// Prints help, the version, or an error of the command line.
pub fn report_usage(error: &clap::Error, wants_json: bool) -> u8 {
    if wants_json && error.kind() == clap::error::ErrorKind::DisplayVersion {
        return report(crate::version(true), true);
    }
    if !error.use_stderr() {
        return report(output::written(error.print()).map(|_| ()), wants_json);
    }
    let failure = json::usage(error);
    output::ask(usage_text(error, &failure));
    if wants_json {
        json::print_failure(failure);
    }
    2
}

/// The message of clap about a command line, with the code of the error.
fn usage_text(error: &clap::Error, failure: &Failure) -> String {
    let rendered = error.render();
    let text = match Paint::stderr().is_on() {
        true => rendered.ansi().to_string(),
        false => rendered.to_string(),
    };
    let code = failure.code;
    match text.contains("error:") {
        true => text.replacen("error:", &format!("error [{code}]:"), 1),
        // The text of clap is help.
        false => format!("{text}\nerror [{code}]: {}\n", failure.message),
    }
}

/// Installs a hook with which a panic ends the process. A server that lost a thread can keep no promise: what
/// was acknowledged is in the log, and the next start replays it. A panic of consensus stops one partition, and
/// is logged.
pub fn install_panic_hook() {
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |info| {
        if esker_server::panic_is_caught() {
            tracing::error!(panic = %info, "consensus contradicts itself: a partition stops");
            return;
        }
        // Standard error may have no reader: the write is not awaited longer than the time limit.
        let _ = std::thread::Builder::new().spawn(|| {
            std::thread::sleep(PANIC_TIMEOUT);
            std::process::abort();
        });
        telemetry::flush_logs();
        print(info);
        std::process::abort();
    }));
}
