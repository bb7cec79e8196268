//! The number of a start, by which members drop what an earlier start of a process has sent.

use std::path::Path;

use super::error::NodeError;
use crate::ids::Incarnation;

/// The number of this start: one more than that of the last one, and durable before any message carries it. Other
/// members drop messages with a lower number than they have seen, so a node that has no number of an earlier start,
/// because it is new or because the file was lost, takes the seconds since the epoch: more than it can have
/// counted.
pub(super) fn next_incarnation(dir: &Path) -> Result<Incarnation, NodeError> {
    let path = dir.join("incarnation");
    let failed = |error: std::io::Error| NodeError::Incarnation {
        path: path.clone(),
        why: error.to_string(),
        unreadable: error.kind() != std::io::ErrorKind::InvalidData,
    };
    let count = || -> std::io::Result<u64> {
        std::fs::create_dir_all(dir)?;
        let last = match std::fs::read_to_string(&path) {
            Ok(text) => (text.trim().parse())
                .map_err(|e| std::io::Error::new(std::io::ErrorKind::InvalidData, e))?,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => seconds_since_epoch(),
            Err(e) => return Err(e),
        };
        let next: u64 = last + 1;
        let temporary = dir.join("incarnation.tmp");
        std::fs::write(&temporary, next.to_string())?;
        std::fs::File::open(&temporary)?.sync_all()?;
        std::fs::rename(&temporary, &path)?;
        std::fs::File::open(dir)?.sync_all()?;
        Ok(next)
    };
    count().map(Incarnation).map_err(failed)
}

fn seconds_since_epoch() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}
