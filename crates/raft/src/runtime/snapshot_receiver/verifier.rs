//! The thread that verifies fetched files.

use std::io;
use std::sync::Arc;
use std::sync::mpsc::{self, SyncSender};

use crate::store::Partial;
use crate::transfer::{Checksum, ReceiverEvent};

/// Verifies files one after the other while others are written. Its thread ends by itself once this is
/// dropped and the file in progress is verified.
pub(super) struct Verifier {
    files: mpsc::Sender<(u32, Checksum)>,
}

impl Verifier {
    pub fn start(partial: Arc<Partial>, events: SyncSender<ReceiverEvent>) -> io::Result<Verifier> {
        // Bounded: each file is queued at most once per receiver.
        let (files, queue) = mpsc::channel::<(u32, Checksum)>();
        std::thread::Builder::new()
            .name("snapshot-verifier".to_owned())
            .spawn(move || {
                while let Ok((file, checksum)) = queue.recv() {
                    let good = partial.verify(file, checksum).unwrap_or_else(|error| {
                        tracing::warn!(%error, "a fetched file cannot be verified");
                        false
                    });
                    if !good {
                        tracing::warn!(
                            file,
                            "a fetched file does not match its checksum: it is fetched again"
                        );
                    }
                    // Waits for a place in the queue, because this event must not be lost. The receiving
                    // thread empties the queue until it ends.
                    if events.send(ReceiverEvent::Verified { file, good }).is_err() {
                        return;
                    }
                }
            })?;
        Ok(Verifier { files })
    }

    pub fn verify(&self, file: u32, checksum: Checksum) {
        // The thread lives as long as this sender.
        let _ = self.files.send((file, checksum));
    }
}
