//! The names of the log's files: which exist, and which are missing.
//!
//! Names are read by raft-engine's own parser, so that exactly the files that it will open are inspected. A
//! name that it would misread is an error.

use std::io;
use std::path::{Path, PathBuf};

use raft_engine::internals::{FileId, FileNameExt, LogQueue};

use super::spans::Misfit;
use super::{InspectError, Queue, TornTail};
use crate::log::extents::file_name;

/// Sequence number of the first file of a fresh queue.
pub(super) const FIRST_SEQ: u64 = 1;

/// Digits of the sequence number in a file's name; raft-engine cuts a longer name there.
const SEQ_WIDTH: usize = 16;

/// One file of the log, by name.
pub(super) struct LogName {
    pub(super) queue: Queue,
    pub(super) seq: u64,
    pub(super) path: PathBuf,
}

impl LogName {
    /// The error for damage in this file.
    pub(super) fn rot(&self, offset: u64, what: String) -> InspectError {
        InspectError::Rot {
            path: self.path.clone(),
            offset,
            what,
        }
    }

    /// The error for a batch of this file that does not follow those before it.
    pub(super) fn misfit(&self, offset: u64, misfit: Misfit) -> InspectError {
        let path = self.path.clone();
        match misfit {
            Misfit::Gap(gap) => InspectError::Gap {
                path,
                offset,
                // raft-engine's numbers begin at 1: see `region` of the log.
                group: gap.region.saturating_sub(1),
                after: gap.after,
                next: gap.next,
            },
            Misfit::Other(what) => InspectError::OtherCopy { path, offset, what },
        }
    }

    /// The error for a failed operation on this file.
    pub(super) fn io(&self, operation: &'static str, source: io::Error) -> InspectError {
        InspectError::Io {
            operation,
            path: self.path.clone(),
            source,
        }
    }

    pub(super) fn torn(&self, offset: u64, bytes: u64) -> TornTail {
        TornTail {
            queue: self.queue,
            path: self.path.clone(),
            offset,
            bytes,
        }
    }

    /// The path of the file before this one.
    pub(super) fn predecessor(&self) -> PathBuf {
        self.path
            .with_file_name(file_name(self.queue, self.seq.saturating_sub(1)))
    }
}

/// The log files in `dir`, (append, rewrite), each in order and without a gap.
pub(super) fn list(dir: &Path) -> Result<(Vec<LogName>, Vec<LogName>), InspectError> {
    let failed = |source| InspectError::Io {
        operation: "list",
        path: dir.to_owned(),
        source,
    };
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok((Vec::new(), Vec::new())),
        Err(e) => return Err(failed(e)),
    };
    let (mut append, mut rewrite) = (Vec::new(), Vec::new());
    for entry in entries {
        let path = entry.map_err(failed)?.path();
        let found = std::fs::metadata(&path);
        if found.as_ref().is_ok_and(|found| !found.is_file()) {
            continue;
        }
        if let Some(file) = parse(path)? {
            // A broken link may lead to a log file later.
            found.map_err(|e| file.io("look at", e))?;
            match file.queue {
                Queue::Append => append.push(file),
                Queue::Rewrite => rewrite.push(file),
            }
        }
    }
    in_order(&mut append)?;
    in_order(&mut rewrite)?;
    Ok((append, rewrite))
}

/// The log file at `path`, or `None` if raft-engine would ignore it.
fn parse(path: PathBuf) -> Result<Option<LogName>, InspectError> {
    let name = path.file_name().unwrap_or_default();
    let Some(name) = name
        .to_str()
        .filter(|n| n.len() < SEQ_WIDTH || n.is_char_boundary(SEQ_WIDTH))
    else {
        return Err(InspectError::Foreign {
            path,
            why: "raft-engine panics at such a name",
        });
    };
    let Some(id) = FileId::parse_file_name(name) else {
        return Ok(None);
    };
    if id.build_file_name() != name {
        return Err(InspectError::Foreign {
            path,
            why: "raft-engine would take it for a log file, and ignore all older ones",
        });
    }
    let queue = match id.queue {
        LogQueue::Append => Queue::Append,
        LogQueue::Rewrite => Queue::Rewrite,
    };
    Ok(Some(LogName {
        queue,
        seq: id.seq,
        path,
    }))
}

fn in_order(files: &mut [LogName]) -> Result<(), InspectError> {
    files.sort_by_key(|file| file.seq);
    for pair in files.windows(2) {
        // Canonical names are distinct, so the numbers strictly rise.
        let expected = pair[0].seq + 1;
        if pair[1].seq != expected {
            let name = file_name(pair[0].queue, expected);
            return Err(InspectError::MissingFile {
                path: pair[0].path.with_file_name(name),
                why: format!("there are older files, and {}", pair[1].path.display()),
            });
        }
    }
    Ok(())
}
