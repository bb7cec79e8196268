//! Restarts the server's process in place.
//!
//! The process replaces itself (`exec`) by the same program with the same arguments. It keeps its process id,
//! so a supervisor notices nothing, and none is needed to start it again. Everything that it had open is
//! closed as at the end of a process, and the new start is the same as after any end.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::Command;

/// The option that gives the new process the addresses of the old one: a port that the system chose must stay
/// the same.
const ARGUMENT: &str = "--restarted=";

/// The path of the running program; `/proc/self/exe` if its file was replaced or deleted.
fn program() -> PathBuf {
    let own = std::env::current_exe().ok().filter(|path| path.exists());
    own.unwrap_or_else(|| "/proc/self/exe".into())
}

/// Checks that the program can be started again, before anything is stopped for that.
pub fn check_program() -> Result<(), String> {
    let program = program();
    rustix::fs::access(&program, rustix::fs::Access::EXEC_OK)
        .map_err(|error| format!("{} cannot be started again: {error}", program.display()))
}

/// The arguments of the new process, after the program's name.
fn arguments(own: impl Iterator<Item = OsString>, addresses: &[SocketAddr]) -> Vec<OsString> {
    let is_kept = |argument: &OsString| {
        let bytes = argument.as_encoded_bytes();
        !bytes.starts_with(ARGUMENT.as_bytes())
    };
    let addresses: Vec<String> = addresses.iter().map(SocketAddr::to_string).collect();
    let new = format!("{ARGUMENT}{}", addresses.join(","));
    own.filter(is_kept).chain([new.into()]).collect()
}

/// Replaces this process. Returns only if that fails, with the reason.
pub fn replace_process(addresses: &[SocketAddr]) -> std::io::Error {
    let mut own = std::env::args_os();
    let mut command = Command::new(program());
    if let Some(name) = own.next() {
        command.arg0(name);
    }
    command.args(arguments(own, addresses)).exec()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_is_started_again_and_again_is_told_the_addresses_once() {
        let own = [
            "server",
            "--listen",
            "127.0.0.1:0",
            "--set",
            "log.segment-size=1MiB",
        ];
        let addresses: Vec<SocketAddr> = ["127.0.0.1:7", "[::1]:8"]
            .map(|address| address.parse().unwrap())
            .into();
        let once = arguments(own.map(OsString::from).into_iter(), &addresses);
        let told = OsString::from("--restarted=127.0.0.1:7,[::1]:8");
        assert_eq!(once[..own.len()], own.map(OsString::from));
        assert_eq!(once[own.len()..], [told]);
        assert_eq!(arguments(once.clone().into_iter(), &addresses), once);
    }
}
