//! One file, from its header to the first place that holds no valid batch.

use std::fs::File;

use super::InspectError;
use super::batch::{self, Broken, Checked, FILE_HEADER_LEN};
use super::extents::Reached;
use super::names::LogName;
use super::spans::{Change, Spans};
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

/// Checks the batches of a file in order, up to the first broken one, and that each follows those before
/// it.
pub(super) fn walk(
    name: &LogName,
    spans: &mut Spans,
    reached: &mut Reached,
) -> Result<Walk, InspectError> {
    let mut reader = open(name)?;
    let failed = |e| name.io("read", e);
    if !batch::has_header(&mut reader).map_err(failed)? {
        return Err(name.rot(0, "the file's header is not one of this log".to_owned()));
    }
    let mut valid = FILE_HEADER_LEN;
    while valid < reader.size {
        match batch::check(&mut reader, valid, name.seq).map_err(failed)? {
            Checked::Valid { end, changes } => {
                spans
                    .apply_batch(name.seq, &changes)
                    .map_err(|misfit| name.misfit(valid, misfit))?;
                for change in &changes {
                    if let Change::Note(note) = change
                        && !reached.note(note)
                    {
                        let what = "the note of the files' extents cannot be read";
                        return Err(name.rot(valid, what.to_owned()));
                    }
                }
                valid = end;
            }
            Checked::Broken(broken) => {
                return Ok(Walk {
                    reader,
                    valid,
                    stop: Stop::Broken(broken),
                });
            }
        }
    }
    Ok(Walk {
        reader,
        valid,
        stop: Stop::End,
    })
}

fn open(name: &LogName) -> Result<Window, InspectError> {
    File::open(&name.path)
        .and_then(Window::new)
        .map_err(|e| name.io("open", e))
}
