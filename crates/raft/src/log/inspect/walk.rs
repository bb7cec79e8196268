//! Files, each from its header to the first place that holds no valid batch; several at a time.

use std::collections::VecDeque;
use std::fs::File;
use std::sync::mpsc::{self, SyncSender};

use super::InspectError;
use super::batch::{self, Broken, Checked, FILE_HEADER_LEN};
use super::names::LogName;
use super::spans::Change;
use super::window::Window;

/// How far the valid part of a file reaches.
pub(super) struct Walk {
    pub(super) reader: Window,
    /// Where the valid part ends.
    pub(super) valid: u64,
    pub(super) stop: Stop,
}

/// Why the valid part of a file ends.
pub(super) enum Stop {
    /// The file does.
    End,
    /// What follows is no batch; it may be padding.
    Broken(Broken),
}

/// If the file is a stub (see the module above): how many of its bytes are not trailing zeros.
///
/// The header is durable before a file is used, and only its own bytes are allocated until then.
/// So a stub is never longer than a header, and a longer file without one has lost it.
pub(super) fn stub_bytes(name: &LogName) -> Result<Option<u64>, InspectError> {
    let mut reader = open(name)?;
    if reader.size > FILE_HEADER_LEN
        || batch::has_header(&mut reader).map_err(|e| name.io("read", e))?
    {
        return Ok(None);
    }
    let mut bytes = vec![0; reader.size as usize];
    reader
        .read_exact(0, &mut bytes)
        .map_err(|e| name.io("read", e))?;
    let last = bytes.iter().rposition(|byte| *byte != 0);
    Ok(Some(last.map_or(0, |i| i as u64 + 1)))
}

/// Batches that are handed on at a time, and how many such parts a file may be ahead: memory of some MiB,
/// and enough for a whole file of ordinary batches.
const PART_BATCHES: usize = 1024;
const MAX_PARTS: usize = 64;
/// Files that are read at a time.
const MAX_THREADS: usize = 4;

/// What a thread that reads a file hands on.
enum Part {
    /// Valid batches: where each begins, and what it does to its groups.
    Batches(Vec<(u64, Vec<Change>)>),
    /// There are no more.
    End(Result<Walk, InspectError>),
}

/// Reads files and checks their batches, several files at a time; calls `take` with each valid batch, and
/// `end` when the valid part of a file ends, in the order of the files.
///
/// # Errors
///
/// The first in the order of the files and of their bytes; those of the callbacks included.
pub(super) fn walk_all(
    files: &[LogName],
    mut take: impl FnMut(&LogName, u64, &[Change]) -> Result<(), InspectError>,
    mut end: impl FnMut(&LogName, Walk) -> Result<(), InspectError>,
) -> Result<(), InspectError> {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get().min(MAX_THREADS));
    std::thread::scope(|scope| {
        let mut files = files.iter();
        let mut ahead = VecDeque::new();
        loop {
            while ahead.len() < threads
                && let Some(file) = files.next()
            {
                let (parts, read) = mpsc::sync_channel(MAX_PARTS);
                let thread = std::thread::Builder::new().name("log-inspection".to_owned());
                let started = thread.spawn_scoped(scope, move || walk(file, &parts));
                started.map_err(|e| file.io("start a thread to read", e))?;
                ahead.push_back((file, read));
            }
            let Some((file, read)) = ahead.pop_front() else {
                return Ok(());
            };
            // If the thread panics, its channel ends, and the scope panics, too. After an error here the
            // channels of the others end, and with them their threads.
            for part in read {
                match part {
                    Part::Batches(batches) => {
                        for (at, changes) in &batches {
                            take(file, *at, changes)?;
                        }
                    }
                    Part::End(walked) => end(file, walked?)?,
                }
            }
        }
    })
}

/// Checks the batches of a file in order, up to the first broken one, and hands them on.
fn walk(name: &LogName, parts: &SyncSender<Part>) {
    let mut batches = Vec::new();
    let walked = walk_batches(name, |at, changes| {
        batches.push((at, changes));
        if batches.len() < PART_BATCHES {
            return true;
        }
        parts
            .send(Part::Batches(std::mem::take(&mut batches)))
            .is_ok()
    });
    // If nobody receives it any more, an earlier file has an error.
    if parts.send(Part::Batches(batches)).is_ok() {
        let _ = parts.send(Part::End(walked));
    }
}

/// Calls `take` with each valid batch, until it returns false.
fn walk_batches(
    name: &LogName,
    mut take: impl FnMut(u64, Vec<Change>) -> bool,
) -> Result<Walk, InspectError> {
    let mut reader = open(name)?;
    let failed = |e| name.io("read", e);
    if !batch::has_header(&mut reader).map_err(failed)? {
        return Err(name.rot(0, "the file's header is not one of this log".to_owned()));
    }
    let mut valid = FILE_HEADER_LEN;
    let mut stop = Stop::End;
    while valid < reader.size {
        match batch::check(&mut reader, valid, name.seq).map_err(failed)? {
            Checked::Valid { end, changes } => {
                if !take(valid, changes) {
                    break;
                }
                valid = end;
            }
            Checked::Broken(broken) => {
                stop = Stop::Broken(broken);
                break;
            }
        }
    }
    Ok(Walk {
        reader,
        valid,
        stop,
    })
}

fn open(name: &LogName) -> Result<Window, InspectError> {
    File::open(&name.path)
        .and_then(Window::new)
        .map_err(|e| name.io("open", e))
}
