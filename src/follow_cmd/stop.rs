//! Ctrl-C and requests to terminate.

use crate::failure::Failure;
use crate::interrupts::Interrupts;

/// What asks the command to end.
pub struct Stop(Interrupts);

impl Stop {
    /// From now on, these signals no longer end the process by default.
    pub fn listen() -> Result<Stop, Failure> {
        Interrupts::listen("a snapshot that was being taken may be there").map(Stop)
    }

    /// Waits for the next signal.
    pub async fn asked(&mut self) {
        self.0.next().await;
    }
}
