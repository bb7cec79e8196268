//! Ctrl-C and requests to terminate.

use tokio::signal::unix::{Signal, SignalKind, signal};

use crate::exit::Failure;

/// What asks the command to end.
pub struct Stop {
    interrupt: Signal,
    terminate: Signal,
}

impl Stop {
    /// From now on they do not end the process by themselves.
    pub fn listen() -> Result<Stop, Failure> {
        let cannot = |e| Failure::wrong("io", format!("listening for signals: {e}"));
        Ok(Stop {
            interrupt: signal(SignalKind::interrupt()).map_err(cannot)?,
            terminate: signal(SignalKind::terminate()).map_err(cannot)?,
        })
    }

    /// Waits for the next one.
    pub async fn asked(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}
