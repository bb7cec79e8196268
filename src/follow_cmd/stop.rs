//! Ctrl-C and requests to terminate.

use crate::failure::Failure;
use crate::interrupts::Interrupts;

/// What asks the command to end.
pub struct Stop(Interrupts);

impl Stop {
    /// From now on they do not end the process by themselves.
    pub fn listen() -> Result<Stop, Failure> {
        Interrupts::listen("a snapshot that was being taken may be there").map(Stop)
    }

    /// Waits for the next one.
    pub async fn asked(&mut self) {
        self.0.next().await;
    }
}
